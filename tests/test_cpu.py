"""The CPU's kernels against reference.py in float64, shared by one and by two threads.

The tolerance is a rule: an error is at most twice that of the reference in float32, plus a floor of
a few roundings of the largest result.
"""

import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minigan import kernels
from minigan.kernels import cpu, geometry, plain, reference, sharing, threads

EPS = np.finfo(np.float32).eps


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Share even small arrays among the threads, in pieces of a few lines."""
    monkeypatch.setattr(sharing, "LEAST", 1)
    monkeypatch.setattr(geometry, "PIECE_ROWS", 40)
    yield
    threads.set_count(None)


def values(seed, *shape):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def channels_last(x):
    """x with the same elements, in memory as the kernels themselves leave images."""
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def check(name, *args, floor=8):
    """cpu.name(*args) is as near to the exact result as the float32 reference is, by the rule."""
    function = getattr(reference, name)
    exact = function(*[a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args])
    plain, got = function(*args), getattr(cpu, name)(*args)
    if not isinstance(exact, tuple):
        exact, plain, got = (exact,), (plain,), (got,)
    for i, (e, p, y) in enumerate(zip(exact, plain, got, strict=True)):
        assert y.dtype == np.float32 and y.shape == e.shape
        error = abs(y - e).max()
        allowed = 2 * abs(p - e).max() + floor * EPS * abs(e).max()
        assert error <= allowed, f"{name}, result {i}: error {error:.3g} > {allowed:.3g}"


# ------------------------------------------------------------------------------------ convolution


@st.composite
def convolutions(draw):
    """(x shape, w shape, stride, pad, dilation, groups)"""
    two = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    group = draw(st.sampled_from([1, 1, 1, 2]))
    channels, filters = (group * draw(st.sampled_from([1, 2, 3, 9, 17])) for _ in range(2))
    taps, stride = draw(two(1, 5)), draw(two(1, 4))
    dilation = draw(st.sampled_from([(1, 1), (1, 1), (2, 1), (1, 3)]))
    pad, size = (draw(two(0, 5)), draw(two(0, 5))), draw(two(1, 12))
    assume(min(reference.conv_out_size(size, taps, stride, pad, dilation)) >= 1)
    x = (draw(st.integers(1, 5)), channels, *size)
    return x, (filters, channels // group, *taps), stride, pad, dilation, group


def check_convolution(case, seed, layout=lambda x: x):
    shape_x, shape_w, stride, pad, dilation, groups = case
    out = reference.conv_out_size(shape_x[2:], shape_w[2:], stride, pad, dilation)
    x, w = layout(values(seed, *shape_x)), values(seed + 1, *shape_w)
    g = layout(values(seed + 2, shape_x[0], shape_w[0], *out))
    rest = (stride, pad, dilation, groups)
    check("conv2d", x, w, *rest)
    check("conv2d_dgrad", g, w, shape_x[2:], *rest)
    check("conv2d_wgrad", x, g, shape_w[2:], *rest)


@given(convolutions(), st.integers(0, 99), st.sampled_from([1, 2, 3]), st.booleans())
@settings(max_examples=80, deadline=None)
def test_convolutions_of_any_shape(case, seed, count, last):
    threads.set_count(count)
    check_convolution(case, seed, channels_last if last else lambda x: x)


@pytest.mark.parametrize("size", [(1, 1), (4, 3), (9, 9)])
def test_a_filter_as_large_as_the_image(size):
    """Where patches need no gathering: one patch an image, or taps of one pixel."""
    threads.set_count(2)
    none = ((0, 0), (0, 0))
    for taps in (size, (1, 1)):
        check_convolution(((6, 5, *size), (7, 5, *taps), (1, 1), none, (1, 1), 1), 0)


def test_large_pieces_are_what_small_pieces_are(monkeypatch):
    case = ((6, 8, 16, 16), (12, 8, 4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1)
    threads.set_count(2)
    check_convolution(case, 0, channels_last)


@pytest.mark.parametrize(
    ("shape", "filters", "taps", "stride"),
    [((2, 256, 8, 8), 64, 5, 2), ((64, 1, 28, 28), 32, 4, 2), ((64, 64, 7, 7), 1, 7, 1)],
)
def test_long_sums(shape, filters, taps, stride):
    """Thousands of products each, in one pass or another, as wide layers and large batches have."""
    threads.set_count(2)
    pad = ((1, 1), (1, 1)) if stride > 1 else ((0, 0), (0, 0))
    case = (shape, (filters, shape[1], taps, taps), (stride, stride), pad, (1, 1), 1)
    for seed in range(3):
        check_convolution(case, seed)


def test_strided_and_read_only_arrays():
    rest = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    x, w = values(0, 3, 4, 18, 9), values(1, 5, 4, 3, 3)
    check("conv2d", x[:, ::2, ::-1], w[:, ::2].swapaxes(2, 3), *rest)
    check("bias_act", np.broadcast_to(x[:1], x.shape), w[0, :, 0, 0], "relu", 0.1)
    x, w, bias = channels_last(x), w[:, :, :1, :1].copy(), values(2, 4)
    x.flags.writeable = w.flags.writeable = bias.flags.writeable = False
    check("conv2d", x, w, *rest)
    check("bias_act", x, bias, "relu", 0.1)
    x, g = values(3, 3, 4, 8, 9), values(4, 3, 5, 8, 9)  # channels first
    x.flags.writeable = g.flags.writeable = False
    check("conv2d_wgrad", x, g, (3, 3), *rest)
    check("bias_act_backward", g, g, "relu", 0.1)


@pytest.mark.parametrize("dtype", [np.float64, np.float16])
def test_other_dtypes_take_the_plain_path(dtype):
    x, w = values(0, 2, 3, 6, 6).astype(dtype), values(1, 4, 3, 3, 3).astype(dtype)
    rest = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    y = cpu.conv2d(x, w, *rest)
    assert y.dtype == dtype
    np.testing.assert_allclose(y, reference.conv2d(x, w, *rest), rtol=100 * np.finfo(dtype).eps,
                               atol=100 * np.finfo(dtype).eps)  # fmt: skip


@given(
    st.tuples(*[st.integers(1, 40)] * 3), st.sampled_from([1, 2, 3]), st.booleans(), st.booleans()
)
@settings(max_examples=40, deadline=None)
def test_matmul(sizes, count, turn_x, turn_b):
    threads.set_count(count)
    m, n, k = sizes
    x = values(0, k, m).T if turn_x else values(0, m, k)
    b = values(1, n, k).T if turn_b else values(1, k, n)
    check("matmul", x, b)
    np.testing.assert_array_equal(cpu.matmul(x[None], b)[0], x @ b)


@pytest.mark.parametrize("turn_x", [False, True])
def test_matmul_of_long_sums(turn_x):
    x, b = values(0, 40, 9000), values(1, 9000, 50)
    check("matmul", np.asfortranarray(x) if turn_x else x, b)


# ------------------------------------------------------------------------- elementwise, batch norm

shapes = st.one_of(
    st.tuples(st.integers(2, 30), st.integers(1, 20)),
    st.tuples(st.integers(2, 6), st.sampled_from([1, 3, 16, 33]), *[st.integers(1, 9)] * 2),
    st.tuples(st.integers(2, 6), st.integers(1, 5), st.integers(1, 40)),
)


@pytest.mark.parametrize("act", reference.ACTIVATIONS)
@given(shape=shapes, count=st.sampled_from([1, 2]), plain=st.booleans())
@settings(max_examples=15, deadline=None)
def test_bias_act_and_batch_norm(act, shape, count, plain):
    threads.set_count(count)
    x, g = 3 + 2 * values(0, *shape), values(1, *shape)
    weight, bias = (None, None) if plain else (1 + values(2, shape[1]), values(3, shape[1]))
    check("bias_act", x, bias, act, 0.2)
    check("bias_act_backward", g, reference.bias_act(x, bias, act, 0.2), act, 0.2)
    check("batch_norm", x, weight, bias, 1e-5, act, 0.2)
    y, mean, rstd = reference.batch_norm(x, weight, bias, 1e-5, act, 0.2)
    given = (g, x, y, weight, mean, rstd)
    check("batch_norm_backward", *given, act, 0.2)
    _, *sums = reference.batch_norm_backward(*given, act, 0.2)
    if x.size > 4 * shape[1]:  # gx of two values a channel is but what rounding leaves
        check("batch_norm_double_backward", values(4, *shape), *given, *sums, act, 0.2)


def test_variance_far_from_zero():
    """A mean a thousand deviations away costs no more than it does in the reference."""
    x = 1000 + values(0, 64, 3, 8, 8)
    check("batch_norm", x, None, None, 1e-5, "linear", 0.1)


@pytest.mark.parametrize("act", ["linear", "relu", "leaky_relu"])
def test_nan_and_infinity_are_the_references(act):
    x = np.float32([[np.nan, np.inf, -np.inf, 0.0, -0.0, -1.0]])
    with np.errstate(invalid="ignore"):
        np.testing.assert_array_equal(
            cpu.bias_act(x, None, act, 0.1), reference.bias_act(x, None, act, 0.1)
        )


@given(
    st.integers(1, 300), st.sampled_from([1, 2]), st.integers(1, 1000), st.sampled_from([0, 0.1])
)
@settings(max_examples=30, deadline=None)
def test_adam(n, count, step, decay):
    threads.set_count(count)
    start = [values(i, n) for i in range(4)]
    start[3] = abs(start[3])
    rest = (1e-2, 0.5, 0.999, 1e-8, decay, step)
    exact, plain, got = ([a.astype(t) for a in start] for t in (np.float64, np.float32, np.float32))
    reference.adam(*exact, *rest)
    reference.adam(*plain, *rest)
    cpu.adam(*got, *rest)
    for e, p, y in zip(exact, plain, got, strict=True):
        assert abs(y - e).max() <= 2 * abs(p - e).max() + 4 * EPS * abs(e).max()


# -------------------------------------------------------------------------------------- determinism


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_same_bits_whoever_runs_the_shards(count):
    threads.set_count(count)
    x, g = values(0, 9, 5, 10, 10), values(1, 9, 6, 5, 5)

    def everything():
        gw = cpu.conv2d_wgrad(x, g, (4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1)
        y, mean, rstd = cpu.batch_norm(x, None, None, 1e-5, "relu", 0.1)
        return gw, mean, *cpu.batch_norm_backward(x, x, y, None, mean, rstd, "relu", 0.1)

    first = everything()
    with threads._free:  # the workers are taken, so that this thread runs all shards
        alone = everything()
    for again in (everything(), alone):
        for a, b in zip(first, again, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_convolutions_of_no_filters(dtype):
    rest = ((2, 2), ((1, 1), (1, 1)), (1, 1), 1)
    x, w, g = (np.ones(shape, dtype) for shape in ((2, 3, 8, 8), (0, 3, 4, 4), (2, 0, 4, 4)))
    for module in (cpu, plain):
        assert module.conv2d(x, w, *rest).shape == g.shape
        assert module.conv2d_wgrad(x, g, (4, 4), *rest).shape == w.shape
        np.testing.assert_array_equal(module.conv2d_dgrad(g, w, (8, 8), *rest), 0 * x)


def test_factors_without_end_take_no_memory_without_end(monkeypatch):
    monkeypatch.setattr(kernels, "_constants", kept := {})
    one = kernels.unit(np.ones((), np.float32))
    for factor in np.linspace(-2, 2, 1000).tolist():
        assert kernels.times(one, factor) == np.float32(factor)
    assert len(kept) < 500


# --------------------------------------------------------------- where the loops cannot be compiled

CONVOLVE = """
    import warnings
    import numpy as np
    from minigan.kernels import cpu, reference

    x = np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    rest = ((1, 1), ((1, 1), (1, 1)), (1, 1), 1)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        for _ in range(2):
            y = cpu.conv2d(x, w, *rest)
            z, mean, rstd = cpu.batch_norm(y, None, None, 1e-5, "relu", 0.0)
            cpu.batch_norm_backward(z, y, z, None, mean, rstd, "relu", 0.0)
    assert np.allclose(y, reference.conv2d(x, w, *rest), atol=1e-5)
    print(len(said), said[0].message)
"""


def python(code, **environment):
    """The output of a fresh Python that runs `code`."""
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_numba_it_works_and_says_so_once():
    out = python("import sys; sys.modules['numba'] = None\n" + textwrap.dedent(CONVOLVE))
    assert out.startswith("1 ") and "pip install --upgrade numba" in out


def test_with_numba_s_compiler_off_it_works_and_says_so_once():
    out = python(CONVOLVE, NUMBA_DISABLE_JIT="1")
    assert out.startswith("1 ") and "unset NUMBA_DISABLE_JIT" in out


def test_no_cache_folder_works_and_says_so_once():
    unwritable = """
        from numba.core import caching
        def refuse(self):
            raise OSError("read-only file system")
        caching._CacheLocator.ensure_cache_path = refuse
    """
    out = python(textwrap.dedent(unwritable) + textwrap.dedent(CONVOLVE))
    assert out.startswith("1 ") and "NUMBA_CACHE_DIR" in out


def test_importing_minigan_imports_no_numba():
    assert python("import sys, minigan, minigan.nn; print('numba' in sys.modules)") == "False\n"


def test_warm_up_reports_its_progress():
    out = python("from minigan import kernels; kernels.warm_up(progress=lambda *at: print(*at))")
    lines = [tuple(map(int, line.split())) for line in out.splitlines()]
    assert len(lines) > 5 and lines == [(i + 1, len(lines)) for i in range(len(lines))]


def test_what_steps_will_need_is_compiled_before_them():
    out = python("""
        import numpy as np
        from minigan import kernels
        from minigan.kernels import threads

        x = np.ones((4, 3), np.float32)
        kernels.warm_up(lambda: kernels.matmul(x, x.T), lambda *at: print(*at))
        from minigan.kernels import jobs
        before = [job.name for job in jobs.every() if job.address]
        print((kernels.matmul(x, x.T) == 3).all(), "matmul_columns" in before, "conv2d" in before)
        print([job.name for job in jobs.every() if job.address] == before)
    """)
    *progress, result, same = out.splitlines()
    assert progress == [f"{i + 1} {len(progress)}" for i in range(len(progress))]
    assert (result, same) == ("True True False", "True")


@given(st.tuples(st.integers(1, 70), st.integers(1, 70)), st.integers(0, 9))
@settings(max_examples=20, deadline=None)
def test_logits(sizes, seed):
    real, fake = (3 * values(seed + i, n) for i, n in enumerate(sizes))
    check("bce_with_logits", real, 0.9)
    check("logistic_d", real, fake, 0.9)
    check("logit_figures", real, fake)


def test_logits_far_out():
    far = np.float32([[-200], [200], [0]])
    for name, *args in (("bce_with_logits", far, 1.0), ("logistic_d", far, -far, 1.0)):
        check(name, *args)
    loss, gx = cpu.bce_with_logits(np.float32([np.nan, 1]), 1.0)
    assert np.isnan(loss) and np.isnan(gx[0])
