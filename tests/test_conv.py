"""Convolution, pooling, resizing: any geometry, conventions by hand, and the kernels beneath."""

import numpy as np
import oracles
import pytest
from gradcheck import check_grads
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import minigan as mg
from minigan import kernels, ops
from minigan.kernels import cpu, reference
from minigan.ops import norm

small = st.integers(0, 2)
seeds = st.integers(0, 2**32 - 1)


@st.composite
def geometries(draw):
    """(x shape, w shape, keyword arguments) of a conv2d with at least one output."""
    stride, dilation = (draw(st.tuples(*[st.integers(1, 3)] * 2)) for _ in range(2))
    pad = draw(st.tuples(st.tuples(small, small), st.tuples(small, small)))
    groups = draw(st.integers(1, 3))
    taps = draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    size = draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    n, c, k = (draw(st.integers(1, 2)) for _ in range(3))
    assume(min(oracles.out_size(size, taps, stride, pad, dilation)) > 0)
    attrs = {"stride": stride, "pad": pad, "dilation": dilation, "groups": groups}
    return (n, c * groups, *size), (k * groups, c, *taps), attrs


def arrays(seed, *shapes):
    rng = np.random.default_rng(seed)
    return [rng.normal(size=shape) for shape in shapes]


@settings(max_examples=100)
@given(geometries(), seeds)
def test_the_conv_triple_of_any_geometry(geometry, seed):
    """Each against its loops, and the three partials of one trilinear form against each other:

    <conv(x,w), g> = <x, dgrad(g,w)> = <w, wgrad(x,g)>
    """
    x_shape, w_shape, attrs = geometry
    x, w = arrays(seed, x_shape, w_shape)
    y = oracles.conv2d(x, w, **attrs)
    [gy] = arrays(seed, y.shape)
    gx = ops.conv2d_dgrad(gy, w, x.shape[2:], **attrs)
    gw = ops.conv2d_wgrad(x, gy, w.shape[2:], **attrs)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(ops.conv2d(x, w, **attrs), y, **close)
    np.testing.assert_allclose(gx, oracles.conv2d_dgrad(gy, w, x.shape[2:], **attrs), **close)
    np.testing.assert_allclose(gw, oracles.conv2d_wgrad(x, gy, w.shape[2:], **attrs), **close)
    np.testing.assert_allclose([np.vdot(x, gx), np.vdot(w, gw)], np.vdot(y, gy), **close)


@settings(max_examples=30)
@given(geometries(), seeds)
def test_second_derivatives_of_any_geometry(geometry, seed):
    x_shape, w_shape, attrs = geometry
    check_grads(lambda x, w: ops.conv2d(x, w, **attrs), arrays(seed, x_shape, w_shape), order=2)


@settings(max_examples=100)
@given(geometries(), st.data(), seeds)
def test_transposed_convolution_of_any_geometry(geometry, data, seed):
    (n, c, h, w), (k, _, *taps), attrs = geometry
    extra = tuple(data.draw(st.integers(0, s - 1)) for s in attrs["stride"])
    full = [
        (size - 1) * s - sum(p) + d * (t - 1) + 1 + e
        for size, s, p, d, t, e in zip(
            (h, w), attrs["stride"], attrs["pad"], attrs["dilation"], taps, extra, strict=True
        )
    ]
    assume(min(full) > 0)
    x, weight, bias = arrays(seed, (n, c, h, w), (c, k // attrs["groups"], *taps), (k,))
    attrs["output_padding"] = extra
    y = ops.conv_transpose2d(x, weight, bias, **attrs)
    assert y.shape == (n, k, *full)
    expected = oracles.conv_transpose2d(x, weight, bias, **attrs)
    np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@settings(max_examples=60)
@given(st.data(), seeds)
def test_pooling_of_any_geometry(data, seed):
    kernel, stride = (data.draw(st.tuples(*[st.integers(1, 4)] * 2)) for _ in range(2))
    pad = tuple(
        (data.draw(st.integers(0, k // 2)), data.draw(st.integers(0, k // 2))) for k in kernel
    )
    size = data.draw(st.tuples(st.integers(1, 7), st.integers(1, 7)))
    assume(min(oracles.out_size(size, kernel, stride, pad)) > 0)
    [x] = arrays(seed, (2, 2, *size))
    for name in ("avg_pool2d", "max_pool2d"):
        op, expected = getattr(ops, name), getattr(oracles, name)(x, kernel, stride, pad)
        y = op(mg.Tensor(x), kernel, stride, pad).numpy()
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        check_grads(lambda x, op=op: op(x, kernel, stride, pad), [x], order=1)


@given(st.data(), seeds)
def test_resizing_to_any_size(data, seed):
    size, to = (data.draw(st.tuples(st.integers(1, 6), st.integers(1, 13))) for _ in range(2))
    align = data.draw(st.booleans())
    [x] = arrays(seed, (1, 2, *size))
    for mode in ("nearest", "bilinear"):
        y = ops.resize(mg.Tensor(x), to, mode, align_corners=align).numpy()
        expected = oracles.resize(x, to, mode, align_corners=align)
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)
        check_grads(lambda x, m=mode: ops.resize(x, to, m, align_corners=align), [x], order=1)


# ---------------------------------------------------------- conventions, by hand, all PyTorch's


def image(*rows):
    return np.array([[rows]], np.float32)


X = image([1, 2], [3, 4])
X3 = image([1, 2, 3], [4, 5, 6], [7, 8, 9])


def equal(y, *rows):
    np.testing.assert_array_equal(y, image(*rows))


def test_convolution_does_not_flip_its_kernel():
    equal(ops.conv2d(X3, image([1, 10], [100, 1000])), [5421, 6532], [8754, 9865])


def test_padding_can_differ_on_each_side():
    one = image([1])
    equal(ops.conv2d(X, one, pad=1), [0, 0, 0, 0], [0, 1, 2, 0], [0, 3, 4, 0], [0, 0, 0, 0])
    equal(ops.conv2d(X, one, pad=(0, 1)), [0, 1, 2, 0], [0, 3, 4, 0])
    top_right = ((1, 0), (0, 2))
    equal(ops.conv2d(X, one, pad=top_right), [0, 0, 0, 0], [1, 2, 0, 0], [3, 4, 0, 0])


def test_a_stride_that_does_not_fit_drops_the_rest():
    wide = image([1, 2, 3, 4, 5, 6])
    equal(ops.conv2d(wide, image([1, 1]), stride=(1, 3)), [3, 9])
    equal(ops.conv2d(wide, image([1, 1]), stride=(1, 4)), [3, 11])


def test_dilation_spreads_the_taps():
    equal(ops.conv2d(X3, image([1, 10], [100, 1000]), dilation=2), [9731])
    equal(ops.conv2d(X3, image([1, 10], [100, 1000]), dilation=(1, 2)), [6431], [9764])


def test_groups_read_their_own_channels():
    x = np.array([1, 2, 3, 4], np.float32).reshape(1, 4, 1, 1)
    w = np.array([[1, 10], [2, 20], [3, 30], [4, 40]], np.float32).reshape(4, 2, 1, 1)
    y = ops.conv2d(x, w, groups=2)
    np.testing.assert_array_equal(y.ravel(), [21, 42, 129, 172])


def test_transposed_convolution_stamps_its_kernel():
    w = image([1, 10], [100, 1000])
    equal(
        ops.conv_transpose2d(X, w, stride=2),
        [1, 10, 2, 20], [100, 1000, 200, 2000], [3, 30, 4, 40], [300, 3000, 400, 4000],
    )  # fmt: skip
    equal(ops.conv_transpose2d(X, w), [1, 12, 20], [103, 1234, 2040], [300, 3400, 4000])
    equal(ops.conv_transpose2d(X, w, stride=2, pad=1), [1000, 200], [30, 4])


def test_output_padding_adds_at_the_bottom_and_right():
    w = image([1, 10], [100, 1000])
    equal(
        ops.conv_transpose2d(X, w, stride=2, output_padding=1),
        [1, 10, 2, 20, 0], [100, 1000, 200, 2000, 0], [3, 30, 4, 40, 0],
        [300, 3000, 400, 4000, 0], [0, 0, 0, 0, 0],
    )  # fmt: skip
    # Cropped rows come back before zeros are added.
    equal(
        ops.conv_transpose2d(X, w, stride=2, pad=1, output_padding=1),
        [1000, 200, 2000], [30, 4, 40], [3000, 400, 4000],
    )  # fmt: skip


def test_transposed_weights_have_the_input_channels_first():
    x = np.array([1, 2], np.float32).reshape(1, 2, 1, 1)
    w = np.array([[1, 2, 3], [10, 20, 30]], np.float32).reshape(2, 3, 1, 1)
    y = ops.conv_transpose2d(x, w, np.array([100, 200, 300], np.float32))
    np.testing.assert_array_equal(y.ravel(), [121, 242, 363])


def test_average_pooling_counts_the_padding_and_max_pooling_does_not():
    equal(ops.avg_pool2d(X, 2), [2.5])
    equal(ops.avg_pool2d(X, 2, stride=1, pad=1), [0.25, 0.75, 0.5], [1, 2.5, 1.5], [0.75, 1.75, 1])
    equal(ops.max_pool2d(-X, 2, stride=1, pad=1), [-1, -1, -2], [-1, -1, -2], [-3, -3, -4])
    equal(ops.max_pool2d(X3, 2), [5])


def test_the_first_of_equal_elements_takes_max_poolings_gradient():
    x = mg.Tensor(image([5, 5, 1], [5, 5, 2]), requires_grad=True)
    y = ops.max_pool2d(x, 2, stride=1)
    equal(mg.grad(y, x, image([1, 10])).numpy(), [1, 10, 0], [0, 0, 0])


def test_resizing_conventions():
    row = image([0, 4])
    equal(ops.resize(row, (1, 4)), [0, 0, 4, 4])
    equal(ops.resize(image([0, 1, 2, 3, 4]), (1, 3)), [0, 1, 3])
    equal(ops.resize(row, (1, 4), "bilinear"), [0, 1, 3, 4])
    equal(ops.resize(row, (2, 5), "bilinear", align_corners=True), [0, 1, 2, 3, 4], [0, 1, 2, 3, 4])
    equal(ops.resize(image([0, 1, 2, 3]), (1, 2), "bilinear"), [0.5, 2.5])
    equal(ops.upsample_nearest(X, 2), [1, 1, 2, 2], [1, 1, 2, 2], [3, 3, 4, 4], [3, 3, 4, 4])


# ------------------------------------------------------------- the CPU kernels and their contract


def positional(attrs):
    return attrs["stride"], attrs["pad"], attrs["dilation"], attrs["groups"]


@settings(max_examples=60)
@given(geometries(), seeds)
def test_the_reference_kernels_are_the_definition(geometry, seed):
    x_shape, w_shape, attrs = geometry
    x, w = arrays(seed, x_shape, w_shape)
    y = oracles.conv2d(x, w, **attrs)
    [g] = arrays(seed, y.shape)
    with kernels.use("reference"):
        y2 = ops.conv2d(x, w, **attrs)
        gx = ops.conv2d_dgrad(g, w, x.shape[2:], **attrs)
        gw = ops.conv2d_wgrad(x, g, w.shape[2:], **attrs)
    np.testing.assert_allclose(y2, y, rtol=1e-12, atol=1e-12)
    expected = oracles.conv2d_dgrad(g, w, x.shape[2:], **attrs)
    np.testing.assert_allclose(gx, expected, rtol=1e-12, atol=1e-12)
    expected = oracles.conv2d_wgrad(x, g, w.shape[2:], **attrs)
    np.testing.assert_allclose(gw, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kernel", [reference, cpu], ids=["reference", "cpu"])
@pytest.mark.parametrize("act", oracles.ACTIVATIONS)
@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 3, 2)], ids=str)
def test_kernels_of_norm_and_activation_are_their_definitions_and_derivatives(kernel, act, shape):
    x, g, weight, bias = arrays(0, shape, shape, shape[1:2], shape[1:2])
    slope, eps = 0.2, 1e-3

    def check(y, gradients, f, inputs):
        leaves = [mg.Tensor(a, requires_grad=True) for a in inputs]
        expected = f(*leaves)
        np.testing.assert_allclose(y, expected.numpy(), rtol=1e-12, atol=1e-12)
        for a, b in zip(gradients, mg.grad(expected, leaves, g), strict=True):
            np.testing.assert_allclose(a, b.numpy(), rtol=1e-10, atol=1e-12)

    y = kernel.bias_act(x, bias, act, slope)
    activation = norm._ACTIVATIONS[act]
    gradients = kernel.bias_act_backward(g, y, act, slope)
    check(y, gradients, lambda x, b: activation(x + norm._per_channel(b, x), slope), [x, bias])

    y, mean, rstd = kernel.batch_norm(x, weight, bias, eps, act, slope)
    np.testing.assert_allclose(mean, x.mean(axis=(0, *range(2, x.ndim))))
    gradients = kernel.batch_norm_backward(g, x, y, weight, mean, rstd, act, slope)
    attrs = {"eps": eps, "act": act, "slope": slope, "stats": None}
    check(y, gradients, lambda *a: norm._batch_norm.forward(*a, **attrs), [x, weight, bias])


GEOMETRIES = {
    "dcgan": ((8, 16, 16, 16), (32, 16, 4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1),
    "same": ((4, 16, 12, 12), (16, 16, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 1),
    "1x1": ((8, 32, 7, 7), (16, 32, 1, 1), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "latent": ((16, 64, 4, 4), (24, 64, 4, 4), (1, 1), ((0, 0), (0, 0)), (1, 1), 1),
    "odd": ((4, 16, 11, 13), (12, 8, 3, 2), (2, 3), ((2, 1), (0, 2)), (2, 1), 2),
    "depthwise": ((4, 16, 10, 10), (16, 1, 3, 3), (1, 1), ((1, 1), (1, 1)), (1, 1), 16),
}


def assert_as_good_as_the_reference(kernel, *args, terms=0):
    """Tolerance as a rule: error ≤ 2 × the reference's error in float32, both against float64.

    The reference sums a convolution tap by tap, which rounds less than the straight sum of all
    terms that BLAS may take: a straight sum's expected error, 0.2 · eps · √terms, is allowed too.
    """

    def results(module, dtype):
        given = (a.astype(dtype) if isinstance(a, np.ndarray) else a for a in args)
        out = getattr(module, kernel)(*given)
        return [o for o in (out if isinstance(out, tuple) else (out,)) if o is not None]

    exact = results(reference, np.float64)
    plain, fast = results(reference, np.float32), results(cpu, np.float32)
    assert len(fast) == len(plain) == len(exact)
    for e, p, f in zip(exact, plain, fast, strict=True):
        assert f.shape == e.shape and f.dtype == np.float32
        rounding = np.finfo(np.float32).eps * np.sqrt(np.mean(e**2))
        error, plain_error = np.sqrt(np.mean((f - e) ** 2)), np.sqrt(np.mean((p - e) ** 2))
        allowed = max(2 * plain_error, 0.2 * rounding * np.sqrt(terms)) + 0.1 * rounding
        assert error <= allowed, f"{kernel}: error {error:.2g}, reference {plain_error:.2g}"


def singles(seed, *shapes):
    return [a.astype(np.float32) for a in arrays(seed, *shapes)]


@pytest.mark.parametrize("geometry", GEOMETRIES.values(), ids=GEOMETRIES)
def test_cpu_convolutions_are_as_exact_as_the_reference(geometry):
    x_shape, w_shape, *attrs = geometry
    x, w = singles(0, x_shape, w_shape)
    stride, pad, dilation, _ = attrs
    out = kernels.conv_out_size(x_shape[2:], w_shape[2:], stride, pad, dilation)
    [g] = singles(1, (x_shape[0], w_shape[0], *out))
    terms = np.prod(w_shape[1:])
    assert_as_good_as_the_reference("conv2d", x, w, *attrs, terms=terms)
    terms = w.size // x_shape[1]
    assert_as_good_as_the_reference("conv2d_dgrad", g, w, x_shape[2:], *attrs, terms=terms)
    terms = g.size // w_shape[0]
    assert_as_good_as_the_reference("conv2d_wgrad", x, g, w_shape[2:], *attrs, terms=terms)


@pytest.mark.parametrize("act", oracles.ACTIVATIONS)
@pytest.mark.parametrize("shape", [(16, 24, 9, 9), (64, 50)], ids=str)
def test_cpu_norm_and_activation_are_as_exact_as_the_reference(act, shape):
    x, g, weight, bias = singles(0, shape, shape, shape[1:2], shape[1:2])
    x += 3
    slope = 0.2
    assert_as_good_as_the_reference("bias_act", x, bias, act, slope)
    y = reference.bias_act(x, bias, act, slope)
    assert_as_good_as_the_reference("bias_act_backward", g, y, act, slope)
    for w, b in [(weight, bias), (None, None)]:
        assert_as_good_as_the_reference("batch_norm", x, w, b, 1e-5, act, slope)
        y, mean, rstd = reference.batch_norm(x, w, b, 1e-5, act, slope)
        given = (g, x, y, w, mean, rstd)
        assert_as_good_as_the_reference("batch_norm_backward", *given, act, slope)
        _, *sums = reference.batch_norm_backward(*given, act, slope)
        twice = (x[::-1].copy(), *given, *sums)
        assert_as_good_as_the_reference("batch_norm_double_backward", *twice, act, slope)
