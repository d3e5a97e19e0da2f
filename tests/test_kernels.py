"""Every CUDA kernel of the contract on sim, with all its checks, against reference.py in float64.

The tolerance is a rule: an error is at most twice that of the reference in float32, plus a floor of
a few roundings of the largest result.
"""

import hashlib
import math

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from minigan import kernels
from minigan.array import Stream
from minigan.kernels import check as checks
from minigan.kernels import cuda, plan, reference, sim
from minigan.kernels.operands import specialised
from minigan.kernels.plan import TILES, Plan
from minigan.kernels.signatures import FOLDER

EPS = np.finfo(np.float32).eps


def values(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def assert_as_good_as(got, plain, exact, what="", floor=4):
    """got is as near to exact as plain is, within the rule. Each may be a tuple."""
    if isinstance(got, tuple):
        for i, parts in enumerate(zip(got, plain, exact, strict=True)):
            assert_as_good_as(*parts, f"{what} result {i}", floor)
        return
    assert got.dtype == np.float32 and got.shape == exact.shape, what
    if not exact.size:
        return
    error, allowed = abs(got - exact).max(), 2 * abs(plain - exact).max()
    allowed += floor * EPS * abs(exact).max() + 1e-37
    assert error <= allowed, f"{what}: error {error:.3g} > {allowed:.3g}"


def check(name, *args, floor=4):
    """cuda.name(*args) against reference.name(*args)."""
    exact = [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args]
    function = getattr(reference, name)
    got = getattr(cuda, name)(*args)
    assert_as_good_as(got, function(*args), function(*exact), name, floor)


# ---- Convolutions -------------------------------------------------------------------------------


@st.composite
def convolutions(draw, max_batch=5, max_channels=9, max_size=11, groups=True):
    """(x shape, w shape, stride, pad, dilation, groups)"""
    two = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    group = draw(st.sampled_from([1, 1, 2, 3])) if groups else 1
    channels = group * draw(st.integers(1, max_channels // group))
    filters = group * draw(st.sampled_from([1, 2, 5, 17 // group, 70 // group]))
    taps, stride = draw(two(1, 5)), draw(two(1, 4))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (3, 2)]))
    pad = (draw(two(0, 5)), draw(two(0, 5)))
    size = draw(two(1, max_size))
    out = reference.conv_out_size(size, taps, stride, pad, dilation)
    assume(min(out) >= 1)
    x = (draw(st.integers(1, max_batch)), channels, *size)
    return x, (filters, channels // group, *taps), stride, pad, dilation, group


def check_convolution(case, seed, parts=("conv2d", "conv2d_dgrad", "conv2d_wgrad")):
    shape_x, shape_w, stride, pad, dilation, groups = case
    x, w = values(seed, *shape_x), values(seed + 1, *shape_w)
    out = reference.conv_out_size(shape_x[2:], shape_w[2:], stride, pad, dilation)
    g = values(seed + 2, shape_x[0], shape_w[0], *out)
    rest = (stride, pad, dilation, groups)
    if "conv2d" in parts:
        check("conv2d", x, w, *rest)
    if "conv2d_dgrad" in parts:
        check("conv2d_dgrad", g, w, shape_x[2:], *rest)
    if "conv2d_wgrad" in parts:
        check("conv2d_wgrad", x, g, shape_w[2:], *rest)


@given(convolutions(), st.integers(0, 99))
@settings(max_examples=15)
def test_convolutions_of_any_shape(case, seed):
    check_convolution(case, seed)


WIDE = ((3, 20, 9, 7), (70, 20, 3, 4), (2, 1), ((1, 2), (0, 1)), (1, 1), 1)


def name_of(tile):
    return f"{tile.bm}x{tile.bn}-{tile.tm}x{tile.tn}"


def force(monkeypatch, tile, split=1):
    """Have every product cut by `tile` into `split` splits of its depth."""

    def choose(rows, columns, depth, batch=1, bands=1):
        steps = max(1, -(-depth // tile.bk))
        return Plan(tile, rows, columns, depth, batch, -(-steps // split), bands)

    monkeypatch.setattr(plan, "choose", choose)
    monkeypatch.setattr(cuda, "choose", choose)


@pytest.mark.parametrize("tile", TILES, ids=name_of)
def test_convolutions_by_every_tile(tile, monkeypatch):
    force(monkeypatch, tile)
    monkeypatch.setattr(plan.Geometry, "prefers_col2im", lambda self, batch: False)
    check_convolution(WIDE, 0)


@pytest.mark.parametrize("tile", [t for t in TILES if t.tn == 8], ids=name_of)
@pytest.mark.parametrize("taps, left", [(4, 1), (4, 0), (3, 1), (5, 2)])
def test_two_phases_of_dgrad_in_a_block(tile, taps, left, monkeypatch):
    force(monkeypatch, tile)
    monkeypatch.setattr(plan.Geometry, "prefers_col2im", lambda self, batch: False)
    pad = ((1, 1), (left, 1))
    case = ((3, 70, 11, 9), (20, 70, 4, taps), (2, 2), pad, (1, 1), 1)
    with cuda.launch_log() as log:
        check_convolution(case, 0, ("conv2d_dgrad",))
    assert log[0].grid[2] == 2 and log[0].grid[0] * log[0].grid[1] > 2  # rows of two phases


@pytest.mark.parametrize("shape_w", [(1, 6, 5, 4), (20, 6, 5, 4)])
@pytest.mark.parametrize("batch", [1, 70])
def test_a_layer_that_sees_the_whole_image_is_a_matrix_product(shape_w, batch):
    with cuda.launch_log() as log:
        check_convolution(((batch, *shape_w[1:]), shape_w, (2, 3), ((0, 0), (0, 0)), (1, 1), 1), 0)
    assert {line.kernel for line in log} <= {
        "matmul",
        "matmul_dot",
        "matmul_thread",
        "reduce_slices",
    }


def test_operands_that_start_between_multiples_of_16_bytes(monkeypatch):
    force(monkeypatch, TILES[1])
    shape_x, shape_w, *rest = ((3, 8, 8, 8), (70, 8, 4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1)

    def beside(*shape):
        return values(0, math.prod(shape) + 1)[1:].reshape(shape)

    x, w, g = beside(*shape_x), beside(*shape_w), beside(3, 70, 4, 4)
    with cuda.launch_log() as log:
        check("conv2d", x, w, *rest)
        check("conv2d_dgrad", g, w, shape_x[2:], *rest)
        check("conv2d_wgrad", x, g, shape_w[2:], *rest)
    products = [line for line in log if line.kernel.startswith("conv2d")]
    assert len(products) == 3 and all(("ALIGNED", 0) in line.defines for line in products)


@pytest.mark.parametrize("split", [2, 3, 7])
def test_splits_add_up(split, monkeypatch):
    force(monkeypatch, TILES[1], split)
    with cuda.launch_log() as log:
        check_convolution(WIDE, 0)
    assert sum(line.kernel == "reduce_slices" for line in log) == 3


@given(convolutions(max_batch=2, max_channels=4), st.integers(0, 99))
@settings(max_examples=12)
def test_dgrad_by_col2im(case, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan.Geometry, "prefers_col2im", lambda self, batch: True)
        patch.setattr(plan.Geometry, "is_dense", False)
        with cuda.launch_log() as log:
            check_convolution(case, seed, ("conv2d_dgrad",))
    assert log[-1].kernel == "col2im"


@given(convolutions(max_batch=2, max_channels=4), st.integers(0, 99))
@settings(max_examples=12)
def test_dgrad_by_phases(case, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan.Geometry, "prefers_col2im", lambda self, batch: False)
        patch.setattr(plan.Geometry, "is_dense", False)
        with cuda.launch_log() as log:
            check_convolution(case, seed, ("conv2d_dgrad",))
    assert "col2im" not in [line.kernel for line in log]


def test_an_empty_batch():
    x, w = values(0, 0, 3, 5, 5), values(0, 4, 3, 2, 2)
    case = ((1, 1), ((0, 0), (0, 0)), (1, 1), 1)
    assert cuda.conv2d(x, w, *case).shape == (0, 4, 4, 4)
    assert not cuda.conv2d_wgrad(x, values(0, 0, 4, 4, 4), (2, 2), *case).any()


def test_same_result_twice():
    x, w = values(0, 8, 64, 6, 6), values(1, 8, 64, 3, 3)
    case = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    assert np.array_equal(cuda.conv2d(x, w, *case), cuda.conv2d(x, w, *case))


# ---- Matrix products ----------------------------------------------------------------------------


@given(
    st.tuples(*[st.integers(1, 90)] * 3), st.booleans(), st.booleans(), st.booleans(),
    st.sampled_from(["linear", "leaky_relu"]), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=20)
def test_matmul(sizes, trans_a, trans_b, with_bias, act, seed):
    check_matmul(sizes, trans_a, trans_b, with_bias, act, seed)


def check_matmul(sizes, trans_a, trans_b, with_bias, act, seed):
    m, n, k = sizes
    a = values(seed, *((k, m) if trans_a else (m, k)))
    b = values(seed + 1, *((n, k) if trans_b else (k, n)))
    bias = values(seed + 2, n) if with_bias else None

    a, b = a.T if trans_a else a, b.T if trans_b else b

    def product(a, b, bias):
        return reference.bias_act(a @ b, bias, act, 0.2)

    exact = [None if x is None else x.astype(np.float64) for x in (a, b, bias)]
    got = cuda.matmul(a, b, bias, act, 0.2)
    # BLAS sums in eight parts and more, which halves its error
    assert_as_good_as(got, product(a, b, bias), product(*exact), "matmul", floor=16)


@pytest.mark.parametrize(
    "shape_x, shape_b",
    [
        ((3, 20, 9), (3, 9, 17)),
        ((20, 9), (3, 9, 17)),
        ((2, 1, 20, 9), (3, 9, 17)),
        ((3, 20, 9), (9, 17)),
        ((0, 9), (9, 17)),
        ((5, 0), (0, 4)),
    ],
)
@pytest.mark.parametrize("split", [1, 2])
def test_matmul_of_batches(shape_x, shape_b, split, monkeypatch):
    force(monkeypatch, TILES[-1], split)
    x, b = values(0, *shape_x), values(1, *shape_b)
    assert_as_good_as(cuda.matmul(x, b), x @ b, x.astype(np.float64) @ b, "matmul", floor=16)


@given(
    st.permutations([1, 1, 300]) | st.permutations([1, 40, 300]), st.booleans(), st.booleans(),
    st.booleans(), st.integers(0, 99),
)  # fmt: skip
@settings(max_examples=20)
def test_matmul_with_a_side_of_length_1(sizes, trans_a, trans_b, with_bias, seed):
    check_matmul(sizes, trans_a, trans_b, with_bias, "relu", seed)


@pytest.mark.parametrize(
    "shapes", [((2, 3), (4, 5)), ((3,), (3, 4)), ((2, 3, 4), (3, 4, 5))], ids=str
)
def test_matmul_names_shapes_that_do_not_fit(shapes):
    with pytest.raises(ValueError, match=r"matmul: cannot multiply x \(.*\) by b \(.*\)"):
        cuda.matmul(values(0, *shapes[0]), values(1, *shapes[1]))


@pytest.mark.parametrize("split", [1, 4])
@pytest.mark.parametrize("tile", TILES, ids=name_of)
def test_matmul_by_every_tile(tile, split, monkeypatch):
    force(monkeypatch, tile, split)
    a, b, bias = values(0, 133, 70), values(1, 70, 131), values(2, 131)
    got = cuda.matmul(a, b, bias=bias, act="relu")
    exact = np.maximum(a.astype(np.float64) @ b + bias, 0)
    assert_as_good_as(got, np.maximum(a @ b + bias, 0), exact, "matmul", floor=16)


def round_to_tf32(a):
    """To 10 bits of mantissa, to nearest, ties away from zero."""
    bits = a.view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)


@pytest.mark.parametrize("tile", [t for t in TILES if t.fits_tensor_cores], ids=name_of)
def test_tf32_rounds_the_operands_and_nothing_else(tile, monkeypatch):
    force(monkeypatch, tile)
    a, b = values(0, 133, 70), values(1, 70, 131)
    with cuda.tf32():
        got = cuda.matmul(a, b)
    ra, rb = round_to_tf32(a), round_to_tf32(b)
    assert_as_good_as(got, ra @ rb, ra.astype(np.float64) @ rb, "matmul", floor=16)
    assert abs(got - a.astype(np.float64) @ b).max() > 20 * EPS * abs(got).max()


@pytest.mark.parametrize(
    "case", [WIDE, ((3, 70, 11, 9), (20, 70, 4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1)], ids=str
)
def test_tf32_convolutions(case, monkeypatch):
    force(monkeypatch, TILES[1])
    monkeypatch.setattr(plan.Geometry, "prefers_col2im", lambda self, batch: False)
    shape_x, shape_w, *rest = case
    x, w = round_to_tf32(values(0, *shape_x)), round_to_tf32(values(1, *shape_w))
    g = round_to_tf32(cuda.conv2d(x, w, *rest))
    with cuda.tf32(), cuda.launch_log() as log:
        check("conv2d", x, w, *rest)
        check("conv2d_dgrad", g, w, shape_x[2:], *rest)
        check("conv2d_wgrad", x, g, shape_w[2:], *rest)
    assert any(("TF32", 1) in line.defines for line in log)


# ---- Activations and batch norm -----------------------------------------------------------------

shapes = st.one_of(
    st.tuples(st.integers(1, 40), st.integers(1, 9)),
    st.tuples(st.integers(1, 6), st.integers(1, 5), st.integers(1, 9), st.integers(1, 9)),
    st.just((5, 2, 31, 33)),  # a channel in a block of 512 threads
)
SLICES = (17, 2, 31, 33)  # more than one slice a channel
activations = st.sampled_from(list(reference.ACTIVATIONS))


@given(shapes, activations, st.booleans(), st.integers(0, 99))
@example(SLICES, "leaky_relu", True, 0)
@settings(max_examples=12)
def test_bias_act(shape, act, with_bias, seed):
    x, g = values(seed, *shape), values(seed + 1, *shape)
    bias = values(seed + 2, shape[1]) if with_bias else None
    check("bias_act", x, bias, act, 0.2)
    y = reference.bias_act(x, bias, act, 0.2)
    check("bias_act_backward", g, y, act, 0.2, floor=8)


@given(shapes, activations, st.booleans(), st.booleans(), st.integers(0, 99))
@example(SLICES, "leaky_relu", True, True, 0)
@settings(max_examples=12)
def test_batch_norm(shape, act, with_weight, with_bias, seed):
    assume(np.prod(shape) > 4 * shape[1])  # few values a channel: rstd is ill-conditioned
    x, g = values(seed, *shape) * 3 + 2, values(seed + 1, *shape)
    weight = values(seed + 2, shape[1]) if with_weight else None
    bias = values(seed + 3, shape[1]) if with_bias else None
    check("batch_norm", x, weight, bias, 1e-5, act, 0.2, floor=16)
    y, mean, rstd = reference.batch_norm(x, weight, bias, 1e-5, act, 0.2)
    given = (g, x, y, weight, mean, rstd)
    check("batch_norm_backward", *given, act, 0.2, floor=16)
    _, *sums = reference.batch_norm_backward(*given, act, 0.2)
    ggx = values(seed + 4, *shape)
    check("batch_norm_double_backward", ggx, *given, *sums, act, 0.2, floor=32)


def test_the_small_tail_of_a_sigmoid_is_kept():
    x = np.array([[-1000.0, -80.0, -20.0, -3.0, 1000.0]], np.float32).T
    exact = np.exp(-np.logaddexp(0, -x.astype(np.float64)))
    y = cuda.bias_act(x, np.zeros(1, np.float32), "sigmoid", 0.0)
    np.testing.assert_allclose(y, exact, rtol=1e-5, atol=1e-38)
    low = np.full(4, -20, np.float32)
    np.testing.assert_allclose(cuda.logit_figures(low, low)[:2], np.exp(-20.0), rtol=1e-5)


@pytest.mark.parametrize("shape", [(5, 2, 31, 33), SLICES])
def test_batch_norm_far_from_zero(shape):
    """The variance is not lost in the square of the mean."""
    x = values(0, *shape) + 1000
    check("batch_norm", x, None, None, 1e-5, "linear", 0.0)


# ---- The small ones, and what ends a convolution ------------------------------------------------

SMALL = {
    "add", "average", "batch_norm_averages", "bce_with_logits", "logistic_d", "logit_figures",
    "pack", "scale", "squares", "totals",
}  # fmt: skip
CHECKS = list(checks.checks())


@pytest.mark.parametrize("row", CHECKS, ids=lambda row: f"{row.name}: {row.what}")
def test_as_minigan_kernels_check_does(row):
    outcome = checks.run(row, "sim")
    assert outcome.good, (outcome.failure, outcome.error, outcome.tolerance)


def test_these_checks_are_all_there():
    assert SMALL < {row.name for row in CHECKS} and len(CHECKS) >= 13


# ---- Adam and random numbers --------------------------------------------------------------------


@given(st.integers(1, 1500), st.integers(1, 10**5), st.sampled_from([0.0, 0.1]), st.integers(0, 99))
@example(256, 1, 0.0, 0)
@settings(max_examples=20)
def test_adam(n, step, weight_decay, seed):
    p, g, m = (values(i + seed, n) for i in range(3))
    v = values(3 + seed, n) ** 2
    hyper = (2e-3, 0.5, 0.999, 1e-8, weight_decay, step)

    def after(function, dtype):
        state = [a.astype(dtype) for a in (p, m, v)]
        function(state[0], g.astype(dtype), *state[1:], *hyper)
        return tuple(state)

    got = after(cuda.adam, np.float32)
    plain, exact = after(reference.adam, np.float32), after(reference.adam, np.float64)
    assert_as_good_as(got, plain, exact, "adam")


def test_adam_by_numbers_in_device_memory():
    """As a captured step is replayed: the same buffers, new numbers."""
    p, g, m, v = (values(i, 300) for i in range(4))
    state, hyper = [p.copy(), g, m.copy(), v**2], np.empty(6, np.float32)
    expected = [a.copy() for a in state]
    for step in (1, 2):
        hyper[:] = cuda.adam_hyper(1e-3, 0.5, 0.999, 1e-8, 0.01, step)
        cuda.adam_step(*state, hyper)
        cuda.adam(*expected, 1e-3, 0.5, 0.999, 1e-8, 0.01, step)
    assert all(np.array_equal(a, b) for a, b in zip(state, expected, strict=True))


def key_of(seed, name):
    digest = hashlib.blake2b(name.encode(), digest_size=8).digest()
    return seed, int.from_bytes(digest, "little")


counters = (st.integers(1, 5000), st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))


@given(*counters)
@example(2049, 2**64 - 1, 2**64 - 1)
@settings(max_examples=20)
def test_philox_uniform_is_the_streams_bit_by_bit(n, seed, step):
    got = np.empty(n, np.float32)
    cuda.philox_uniform(got, key_of(seed, "latents"), step, low=-1.5, high=0.3)
    assert np.array_equal(got, Stream(seed, "latents", step).uniform(n, -1.5, 0.3))


def test_philox_uniform_stays_below_high():
    """Between 16384 and 16385 float32 counts by 2^-10: many a number rounds up."""
    got = np.empty(8000, np.float32)
    cuda.philox_uniform(got, key_of(0, "latents"), low=2.0**14, high=2.0**14 + 1)
    assert np.array_equal(got, Stream(0, "latents").uniform(8000, 2.0**14, 2.0**14 + 1))
    assert got.max() == np.nextafter(np.float32(2**14 + 1), np.float32(0))


def test_philox_continues_where_a_stream_stopped():
    stream = Stream(3, "latents")
    stream.uniform(16)
    got = np.empty(100, np.float32)
    cuda.philox_uniform(got, key_of(3, "latents"), first_block=3)
    assert np.array_equal(got, stream.uniform(100))


@given(*counters)
@example(20001, 1, 0)
@settings(max_examples=20)
def test_philox_normal_is_the_streams_within_a_few_ulps(n, seed, step):
    got = np.empty(n, np.float32)
    cuda.philox_normal(got, key_of(seed, "z"), step)
    expected = Stream(seed, "z", step).normal(n)
    assert (abs(got - expected) <= 6 * np.spacing(abs(expected))).all()


# ---- What the launcher refuses ------------------------------------------------------------------


def adam_args(**changes):
    args = {name: np.zeros(4, np.float32) for name in "pgmv"}
    return list((args | {"hyper": np.zeros(6, np.float32), "n": 4} | changes).values())


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"g": np.zeros(4)}, "adam: argument g has dtype float64, not float32"),
        ({"m": np.zeros((4, 2), np.float32)[:, 0]}, "adam: argument m is not C-contiguous"),
        ({"v": 3.0}, "adam: argument v is an array, not float"),
        ({"n": -1}, "adam: argument n = -1 is no uint32"),
        ({"n": 1.5}, "adam: argument n = 1.5 is no uint32"),
        ({"n": np.zeros(2)}, "adam: argument n is a scalar"),
    ],
)
def test_launch_names_kernel_and_argument(changes, words):
    with pytest.raises((TypeError, ValueError), match=words):
        cuda.launch(cuda.Kernel("adam"), (1,), (256,), adam_args(**changes))


def test_launch_counts_arguments():
    with pytest.raises(TypeError, match=r"adam: 2 arguments for the parameters \(p, g, m, v"):
        cuda.launch(cuda.Kernel("adam"), (1,), (256,), adam_args()[:2])


def test_a_fault_is_in_the_line_of_its_file():
    a, b = values(0, 40, 16), values(1, 16, 40)
    tile = {"MATMUL": 1, "ALIGNED": 1} | TILES[2].defines
    lines = (FOLDER / "matmul.cu").read_text().splitlines()
    store = next(n for n, line in enumerate(lines, 1) if "data[i * n + j] = finish" in line)
    for arrays, words in (
        ((a, b, None, values(2, 40, 39)), f"line {store}: `if .i < m && j < n. data"),
        ((a, values(1, 15, 40), None, values(2, 40, 40)), r"line 1\d\d of gemm\.cu: `\S"),
    ):
        args = (*arrays, 40, 40, 16, 0, 0, 1, 1)
        with kernels.use("sim"), pytest.raises(sim.Fault, match=words):  # with its checks on
            cuda.launch(specialised("matmul", **tile), (1, 1, 1), (256,), args)


def test_launch_of_an_unknown_kernel():
    with pytest.raises(ValueError, match="no kernel 'adamant'"):
        cuda.launch(cuda.Kernel("adamant"), (1,), (256,), [])


def test_launch_of_no_blocks_does_nothing():
    with cuda.launch_log() as log:
        cuda.launch(cuda.Kernel("adam"), (0,), (256,), adam_args())
    assert log == []


def test_launch_log():
    with cuda.launch_log() as log:
        cuda.launch(cuda.Kernel("adam"), (2,), (256,), adam_args())
    assert [(line.kernel, line.grid, line.block) for line in log] == [
        ("adam", (2, 1, 1), (256, 1, 1))
    ]


def test_taps_that_do_not_fit():
    x, w = values(0, 1, 1, 3, 3), values(0, 1, 1, 4, 2)
    with pytest.raises(ValueError, match=r"4×2 taps, .* do not fit into 3×3 pixels"):
        cuda.conv2d(x, w, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_other_dtypes_are_refused_in_words(dtype):
    x, w = np.zeros((1, 1, 3, 3), dtype), np.zeros((1, 1, 2, 2), np.float32)
    with pytest.raises(TypeError, match=r"conv2d: x is \w+64, but .* float32 alone"):
        cuda.conv2d(x, w, (1, 1), ((0, 0), (0, 0)), (1, 1), 1)
