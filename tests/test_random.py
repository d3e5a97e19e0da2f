"""Random streams: against a second Philox in Python's integers, and against what they promise."""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st

import minigan as mg
from minigan.array import Generator, Stream

MASK = 2**64 - 1


def philox4x64(counter, key):
    """Ten rounds on four 64-bit words: Salmon et al. 2011, section 3.3 and table 2."""
    c, (k0, k1) = counter, key
    for _ in range(10):
        a, b = 0xD2E7470EE14C6C93 * c[0], 0xCA5A826395121157 * c[2]
        c = [(b >> 64) ^ c[1] ^ k0, b & MASK, (a >> 64) ^ c[3] ^ k1, a & MASK]
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & MASK, (k1 + 0xBB67AE8584CAA73B) & MASK
    return c


def words(seed, name, step, n):
    """The first n raw 64-bit words of a stream."""
    key = seed, int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "little")
    blocks = (philox4x64([block, 0, 0, step], key) for block in range(1, n // 4 + 2))
    return [word for block in blocks for word in block][:n]


def halves(seed, name, step, n):
    return [half for w in words(seed, name, step, n) for half in (w & 0xFFFFFFFF, w >> 32)][:n]


def test_the_second_philox_is_the_papers():
    """Known answers published with the paper's code (Random123, kat_vectors: philox4x64-10)."""
    zeros = philox4x64([0, 0, 0, 0], (0, 0))
    assert zeros[:2] == [0x16554D9ECA36314C, 0xDB20FE9D672D0FDC]
    ones = philox4x64([MASK] * 4, (MASK, MASK))
    assert ones[:2] == [0x87B092C3013FE90B, 0x438C3C67BE8D0224]


keys = st.tuples(st.integers(0, MASK), st.text("az/0é", max_size=8), st.integers(0, MASK))


@given(keys, st.integers(0, 20))
@example((MASK, "z", MASK), 9)
def test_raw_words(key, n):
    assert [int(w) for w in Stream(*key).raw(n)] == words(*key, n)


@given(keys, st.integers(0, 20))
def test_uniform_and_integers_and_normal_follow_their_formulas(key, n):
    low_first = halves(*key, n + 1)
    uniform = [(w >> 8) / 2**24 for w in low_first[:n]]
    np.testing.assert_array_equal(Stream(*key).uniform(n), np.array(uniform, np.float32))
    integers = [w * 10 >> 32 for w in low_first[:n]]
    np.testing.assert_array_equal(Stream(*key).integers(n, 10), np.array(integers, np.int64))
    normal = []
    for a, b in zip(low_first[::2], low_first[1::2], strict=False):
        r, t = math.sqrt(-2 * math.log((a + 0.5) / 2**32)), 2 * math.pi * b / 2**32
        normal += [r * math.cos(t), r * math.sin(t)]
    got = Stream(*key).normal(n)
    np.testing.assert_allclose(got, np.array(normal[:n], np.float32), rtol=2e-6, atol=1e-7)


class Constant(Stream):
    """A stream of one raw word, for what happens once in 2^32 draws."""

    def __init__(self, word):
        self.word = word

    def raw(self, n):
        return np.full(n, self.word, np.uint64)


def test_the_ends_of_the_range():
    assert Constant(0).uniform(1)[0] == 0 and Constant(MASK).uniform(1)[0] == 1 - 2**-24
    assert Constant(MASK).integers(1, 10)[0] == 9
    np.testing.assert_allclose(Constant(0).normal(2), [math.sqrt(66 * math.log(2)), 0], rtol=1e-6)
    np.testing.assert_allclose(Constant(MASK).normal(2), [2**-16, 0], atol=1e-11)


@given(st.floats(-1e6, 1e6, width=32), st.floats(-1e6, 1e6, width=32), st.integers(0, MASK))
@example(-1.0, 1.0, 0)
@example(1.0, 2.0, 0)
def test_uniform_stays_below_high_even_where_float32_rounds_up(low, high, seed):
    assume(low < high)

    assert np.float32(low) <= Constant(MASK).uniform(1, low, high)[0] < np.float32(high)
    u = Stream(seed, "").uniform(100, low, high)
    assert u.dtype == np.float32
    assert (u >= np.float32(low)).all() and (u < np.float32(high)).all()


def test_moments():
    z = Stream(0, "z").normal((1000, 100), mean=2, std=3).astype(np.float64)
    assert abs(z.mean() - 2) < 0.05 and abs(z.std() - 3) < 0.03
    standard = (z.ravel() - 2) / 3
    assert abs((standard**3).mean()) < 0.05 and abs((standard**4).mean() - 3) < 0.1
    assert abs(np.corrcoef(standard[:-1], standard[1:])[0, 1]) < 0.01
    u = Stream(0, "u").uniform(100_000, -1, 1).astype(np.float64)
    assert abs(u.mean()) < 0.01 and abs(u.var() - 1 / 3) < 0.01
    counts = np.bincount(Stream(0, "i").integers(100_000, 7), minlength=7)
    assert len(counts) == 7 and (abs(counts - 100_000 / 7) < 500).all()


@given(st.integers(0, 200), st.integers(0, MASK))
def test_a_permutation_is_one(n, seed):
    order = Stream(seed, "order").permutation(n)
    assert order.dtype == np.int64 and sorted(order) == list(range(n))


def test_permutations_are_not_biased():
    firsts = [Stream(0, "p", step).permutation(5)[0] for step in range(2000)]
    assert (abs(np.bincount(firsts) - 400) < 80).all()


def test_seed_name_and_step_alone_decide():
    def draw(*key):
        return Stream(*key).normal((3, 4)).tolist()

    assert draw(1, "z", 2) == draw(1, "z", 2)
    different = [(1, "z", 2), (2, "z", 2), (1, "y", 2), (1, "z", 3), (1, "", 2), (2**63, "z", 2)]
    assert len({str(draw(*key)) for key in different}) == len(different)


def test_successive_calls_continue():
    stream = Stream(3, "z")
    first, second = stream.uniform(8), stream.uniform(8)
    np.testing.assert_array_equal(np.concatenate([first, second]), Stream(3, "z").uniform(16))


def test_shapes():
    stream = Stream(0, "z")
    assert stream.uniform((2, 3)).shape == stream.normal((2, 3)).shape == (2, 3)
    assert stream.uniform(()).shape == () and stream.normal((0, 4)).shape == (0, 4)


@pytest.mark.parametrize("seed", [-1, 2**64])
def test_a_seed_out_of_range_is_refused(seed):
    with pytest.raises(ValueError, match=f"seed must be .* not {seed}"):
        Stream(seed, "z")


def test_the_generator_is_a_function_of_seed_step_and_how_many_were_drawn():
    generator = Generator()
    generator.manual_seed(5, step=2)
    first, second = generator.stream("mask").raw(2), generator.stream("init").raw(2)
    np.testing.assert_array_equal(first, Stream(5, "mask/0", 2).raw(2))
    np.testing.assert_array_equal(second, Stream(5, "init/1", 2).raw(2))
    generator.manual_seed(5, step=2)
    np.testing.assert_array_equal(generator.stream("mask").raw(2), first)


def test_manual_seed_seeds_the_ops():
    def draw():
        return mg.ops.dropout(np.ones(50, np.float32)).tolist()

    mg.manual_seed(1)
    first, second = draw(), draw()
    mg.manual_seed(1)
    assert draw() == first and draw() == second != first
