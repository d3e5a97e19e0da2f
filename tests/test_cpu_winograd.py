"""Winograd's filtering against reference.py in float64, by the tolerance rule of test_cpu.py."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from minigan.kernels import cpu, geometry, reference, sharing, threads

winograd = pytest.importorskip("minigan.kernels.winograd")

EPS = np.finfo(np.float32).eps
L = winograd.LANES


@pytest.fixture(autouse=True)
def small_shards(monkeypatch):
    """Take it for small arrays too, shared among the threads."""
    assert cpu._fast(np.zeros(1, np.float32)), "no Numba"
    if not winograd.EXACT_ENOUGH:
        pytest.skip("this processor rounds products before it adds them")
    monkeypatch.setattr(sharing, "LEAST", 1)
    monkeypatch.setattr(geometry, "WINOGRAD_TILES", 1)
    geometry.geometry.cache_clear()  # of what others have asked for
    yield
    geometry.geometry.cache_clear()
    threads.set_count(None)


def values(seed, *shape, last=True):
    x = np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)
    if not last:
        return x
    return np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)


def within(y, exact, plain, floor=8):
    assert y.dtype == np.float32 and y.shape == exact.shape
    error = abs(y - exact).max()
    allowed = 2 * abs(plain - exact).max() + floor * EPS * abs(exact).max()
    assert error <= allowed, f"error {error:.3g} > {allowed:.3g}"


def check(name, *args, **ending):
    """cpu.name by Winograd's filtering is as near to the exact result as the rule asks."""
    reached = []
    of = "wgrad" if name == "conv2d_wgrad" else "convolve"
    whole = getattr(winograd, of)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, of, lambda *a: (reached.append(of), whole(*a))[1])
        y = getattr(cpu, name)(*args, **ending)
    assert reached, "the direct path was taken"
    function = getattr(reference, name)
    exact = function(*[a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in args])
    plain = function(*args)
    if ending:
        exact, plain = (reference.bias_act(a, **ending) for a in (exact, plain))
    within(y, exact, plain)


@st.composite
def convolutions(draw):
    """(x shape, filters, pad): sizes that tiles of two and of three outputs must cover"""
    two = lambda low, high: st.tuples(st.integers(low, high), st.integers(low, high))  # noqa: E731
    pad, size = (draw(two(0, 3)), draw(two(0, 3))), draw(two(4, 21))
    assume(min(reference.conv_out_size(size, (4, 4), (2, 2), pad, (1, 1))) >= 2)
    c, k = draw(st.sampled_from([(L, L), (L, 3 * L), (2 * L, L), (4 * L, 2 * L)]))
    return (draw(st.integers(1, 9)), c, *size), k, pad  # in several pieces, when it is small


@given(convolutions(), st.integers(0, 99), st.sampled_from([1, 2, 3]), st.booleans())
@settings(max_examples=60, deadline=None)
def test_all_passes_of_any_shape(case, seed, count, last):
    shape, k, pad = case
    threads.set_count(count)
    rest = ((2, 2), pad, (1, 1), 1)
    out = reference.conv_out_size(shape[2:], (4, 4), *rest[:3])
    x, g = (values(seed + i, *s, last=last) for i, s in ((0, shape), (1, (shape[0], k, *out))))
    w = values(seed + 2, k, shape[1], 4, 4, last=False)
    check("conv2d", x, w, *rest)
    check("conv2d_dgrad", g, w, shape[2:], *rest)
    check("conv2d_wgrad", x, g, (4, 4), *rest)


@pytest.mark.parametrize("outputs", [2, 3, 4, 5, 7, 8])
def test_channels_of_a_dcgan(outputs):
    """Longer sums round more, and so may the plain ones: the rule holds of wide layers too."""
    threads.set_count(2)
    n, c, k, size = 4, 128, 256, (2 * outputs, 2 * outputs)
    rest = ((2, 2), ((1, 1), (1, 1)), (1, 1), 1)
    x, g = values(0, n, c, *size), values(1, n, k, outputs, outputs)
    w = 0.02 * values(2, k, c, 4, 4, last=False)
    check("conv2d", x, w, *rest)
    check("conv2d_dgrad", g, w, size, *rest)
    check("conv2d_wgrad", x, g, (4, 4), *rest)


@pytest.mark.parametrize("act", ["linear", "relu", "leaky_relu", "tanh"])
def test_bias_and_activation(act):
    threads.set_count(2)
    rest = ((2, 2), ((1, 1), (1, 1)), (1, 1), 1)
    x, w = values(0, 5, L, 10, 9), 0.05 * values(1, 2 * L, L, 4, 4, last=False)
    g, ending = values(2, 5, 2 * L, 5, 4), {"act": act, "slope": 0.2}
    check("conv2d", x, w, *rest, bias=values(3, 2 * L, 1, 1, 1)[:, 0, 0, 0], **ending)
    check("conv2d_dgrad", g, w, (10, 9), *rest, bias=values(4, L, 1, 1, 1)[:, 0, 0, 0], **ending)


def test_one_result_for_a_number_of_threads():
    x, g = values(0, 7, L, 12, 12), values(1, 7, L, 6, 6)
    rest = ((2, 2), ((1, 1), (1, 1)), (1, 1), 1)
    for count in (1, 2, 3):
        threads.set_count(count)
        first, second = (cpu.conv2d_wgrad(x, g, (4, 4), *rest) for _ in range(2))
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(
    ("taps", "stride", "dilation", "c", "size"),
    [(3, 2, 1, L, 12), (4, 1, 1, L, 12), (4, 2, 2, L, 12), (4, 2, 1, L + 1, 12), (4, 2, 1, L, 3)],
)
def test_other_convolutions_are_direct(taps, stride, dilation, c, size, monkeypatch):
    monkeypatch.setattr(winograd, "convolve", None)
    monkeypatch.setattr(winograd, "wgrad", None)
    rest = ((stride,) * 2, ((1, 1), (1, 1)), (dilation,) * 2, 1)
    x, w = values(0, 2, c, size, size), values(1, L, c, taps, taps, last=False)
    within(cpu.conv2d(x, w, *rest), reference.conv2d(x.astype(np.float64), w, *rest),
           reference.conv2d(x, w, *rest))  # fmt: skip
