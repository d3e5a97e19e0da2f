"""Every op against NumPy and finite differences, from the table in cases.py."""

import inspect

import numpy as np
import oracles
import pytest
from cases import CASES
from gradcheck import check_grads
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import minigan as mg
from minigan import ops
from minigan.autograd import observe
from minigan.kernels.reference import ACTIVATIONS
from minigan.ops import norm
from minigan.primitive import Fused, Primitive

every_case = pytest.mark.parametrize("case", CASES, ids=str)


def gradients(f, xs, g):
    leaves = [mg.Tensor(x, requires_grad=True) for x in xs]
    return [gx.numpy() for gx in mg.grad(f(*leaves), leaves, g)]


# -------------------------------------------------------------------------- the table is complete


def primitives():
    modules = [m for m in vars(ops).values() if inspect.ismodule(m)]
    return {p.name: p for m in modules for p in vars(m).values() if isinstance(p, Primitive)}


def test_every_public_op_has_a_row():
    assert sorted(set(ops.__all__) - {case.op for case in CASES}) == []
    assert len(ops.__all__) > 50


def test_ops_exports_every_op_and_ops_alone():
    public = {
        name
        for name, op in vars(ops).items()
        if isinstance(op, Primitive) or inspect.isfunction(op)
        if op.__module__.startswith("minigan.ops.") and not name.startswith("_")
    }
    assert set(ops.__all__) == public


def test_every_argument_of_every_primitive_has_a_vjp_or_is_declared_constant():
    missing = [
        f"{p.name}: {argument}"
        for p in primitives().values()
        if not isinstance(p, Fused)
        for argument in p.arguments
        if argument not in p.rules
    ]
    assert missing == []


def test_the_rows_reach_every_primitive():
    seen = set()
    with observe(lambda name, y: seen.add(name)):
        for case in CASES:
            leaves = [mg.Tensor(x, requires_grad=True) for x in case.draw()]
            y = case.f(*leaves)
            mg.grad(y, leaves, np.ones(y.shape), create_graph=True)
    assert sorted(primitives().keys() - seen) == []


# -------------------------------------------------------------------------------- from the table


@every_case
def test_forward(case):
    xs = case.draw()
    expected = case.expected(*xs)
    on_arrays, on_tensors = case.f(*xs), case.f(*map(mg.Tensor, xs))
    assert not isinstance(on_arrays, mg.Tensor) and isinstance(on_tensors, mg.Tensor)
    for y in (on_arrays, on_tensors.numpy()):
        assert y.shape == expected.shape and y.dtype == np.float64
        np.testing.assert_allclose(y, expected, rtol=1e-12, atol=1e-12)


@every_case
def test_derivatives(case):
    check_grads(case.f, case.draw(), order=case.order)


@every_case
def test_float32_in_float32_out(case):
    """Also asserts the precision: a few float32 ulps of the largest element."""
    xs = [x.astype(np.float32) for x in case.draw()]
    exact = case.expected(*(x.astype(np.float64) for x in xs))
    attrs = {k: v for k, v in case.attrs.items() if k != "dtype"}
    if case.op == "astype":
        assert attrs != case.attrs
        return
    leaves = [mg.Tensor(x, requires_grad=True) for x in xs]
    y = case.f(*leaves)
    assert y.dtype == np.float32
    np.testing.assert_allclose(y.numpy(), exact, atol=2e-6 * max(1, np.abs(exact).max(initial=0)))
    g = np.random.default_rng(1).normal(size=y.shape).astype(np.float32)
    for create_graph in (False, True):
        for gx in mg.grad(y, leaves, g, create_graph=create_graph):
            assert gx.dtype == np.float32


@pytest.mark.parametrize("case", [c for c in CASES if c.multilinear], ids=str)
def test_multilinear_ops_equal_their_differences_in_float32(case):
    check_grads(case.f, [x.astype(np.float32) for x in case.draw()], order=1, eps=1, tolerance=1e-5)


def strided(x):
    """The same values as every second element of a larger array, axes in reverse, one backwards."""
    base = np.full([2 * n + 1 for n in reversed(x.shape)], np.nan)
    slices = [slice(1, 2 * n + 1, 2) for n in reversed(x.shape)]
    if x.ndim:
        slices[0] = slice(2 * x.shape[-1] - 1, None, -2)
    view = base[tuple(slices)].T
    view[...] = x
    assert x.size < 2 or not view.flags.c_contiguous
    return view


@every_case
def test_non_contiguous_inputs_and_gradients(case):
    xs = case.draw()
    y = case.expected(*xs)
    close = {"rtol": 1e-12, "atol": 1e-12}
    np.testing.assert_allclose(case.f(*map(strided, xs)), y, **close)
    g = np.random.default_rng(1).normal(size=y.shape)
    pairs = zip(
        gradients(case.f, [strided(x) for x in xs], strided(g) if g.ndim else g)
        + gradients(case.f, xs, np.broadcast_to(2.0, y.shape)),  # strides of 0, as from a sum
        gradients(case.f, xs, g) + gradients(case.f, xs, np.full(y.shape, 2.0)),
        strict=True,
    )
    for a, b in pairs:
        np.testing.assert_allclose(a, b, **close)


@every_case
def test_inputs_and_incoming_gradients_are_never_written_to(case, monkeypatch):
    """The first invariant of the engine, for the vjps of every op on the way."""

    def frozen(pull):
        def guarded(self, node, g, wanted, create_graph):
            before = np.array(g)
            out = pull(self, node, g, wanted, create_graph)
            np.testing.assert_array_equal(np.asarray(g), before, err_msg=self.name)
            return out

        return guarded

    monkeypatch.setattr(Primitive, "pull", frozen(Primitive.pull))
    monkeypatch.setattr(Fused, "pull", frozen(Fused.pull))
    xs = case.draw()
    for x in xs:
        x.setflags(write=False)
    leaves = [mg.Tensor(x, requires_grad=True) for x in xs]
    y = case.f(*leaves)
    g = np.ones(y.shape)
    g.setflags(write=False)
    mg.grad(y, leaves, g)
    mg.grad(y, leaves, g, create_graph=True)


# ---------------------------------------------------------------- fused ops and their definitions


@pytest.mark.parametrize("act", oracles.ACTIVATIONS)
@pytest.mark.parametrize("affine", [(), ("weight",), ("bias",), ("weight", "bias")], ids=str)
@pytest.mark.parametrize("shape", [(7, 3), (2, 3, 3, 2)])
def test_batch_norm_equals_its_composite_in_value_gradient_and_gradient_of_gradient(
    act, affine, shape
):
    rng = np.random.default_rng(0)
    xs = [rng.normal(size=shape), *(rng.normal(size=3) for _ in affine)]
    g, h = rng.normal(size=shape), rng.normal(size=shape)
    attrs = {"eps": 1e-3, "act": act, "slope": 0.2, "stats": None}

    def results(batch_norm):
        leaves = [mg.Tensor(x, requires_grad=True) for x in xs]
        given = dict(zip(affine, leaves[1:], strict=True))
        y = batch_norm(leaves[0], given.get("weight"), given.get("bias"), **attrs)
        first = mg.grad(y, leaves, g)
        again = mg.grad(y, leaves, g, create_graph=True)
        total = ops.sum(again[0] * h) + sum((gx * gx).sum() for gx in again)
        return [y, *first, *again, *mg.grad(total, leaves)]

    fast, slow = results(norm._batch_norm), results(norm._batch_norm.forward)
    assert len(fast) == 1 + 3 * len(xs)
    for a, b in zip(fast, slow, strict=True):
        np.testing.assert_allclose(a.numpy(), b.numpy(), rtol=1e-9, atol=1e-9)


def test_batch_norm_hands_out_its_statistics_once():
    x = np.random.default_rng(0).normal(2, 3, size=(8, 3, 5))
    seen = []
    leaf = mg.Tensor(x, requires_grad=True)
    y = ops.batch_norm(leaf, eps=0.1, stats=lambda mean, rstd: seen.append((mean, rstd)))
    mg.grad(y.sum(), leaf, create_graph=True)
    [(mean, rstd)] = seen
    np.testing.assert_allclose(mean, x.mean(axis=(0, 2)))
    np.testing.assert_allclose(rstd, 1 / np.sqrt(x.var(axis=(0, 2)) + 0.1))


@given(
    st.one_of(
        st.tuples(st.integers(3, 9), st.integers(1, 4)),
        st.tuples(*[st.integers(1, 3)] * 3, st.integers(3, 5)),
    ),
    st.sampled_from(["linear", "relu", "leaky_relu", "tanh", "sigmoid"]),
    st.booleans(),
    st.integers(0, 99),
)
@settings(max_examples=20, deadline=None)
def test_the_closed_forms_of_batch_norm_are_its_composite_to_the_third_order(
    shape, act, affine, seed
):
    """Penalties of penalties: each order's gradient enters a sum that is differentiated again."""
    rng = np.random.default_rng(seed)
    xs = [rng.normal(size=shape), *(1 + rng.random(shape[1]) for _ in range(2 * affine))]
    g, h, k = (rng.normal(size=shape) for _ in range(3))
    attrs = {"eps": 1e-2, "act": act, "slope": 0.2, "stats": None}

    def orders(batch_norm):
        leaves = [mg.Tensor(x, requires_grad=True) for x in xs]
        y = batch_norm(*leaves, *[None] * (3 - len(leaves)), **attrs)
        first = mg.grad(y, leaves, g, create_graph=True)
        second = mg.grad((first[0] * h).sum(), leaves, create_graph=True)
        third = mg.grad((second[0] * k).sum(), leaves)
        return [*first, *second, *third]

    for a, b in zip(orders(norm._batch_norm), orders(norm._batch_norm.forward), strict=True):
        a, b = a.numpy(), b.numpy()
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=1e-9 * max(1, abs(b).max()))


# ------------------------------------------------------------------------- shapes from hypothesis

shapes = hnp.array_shapes(min_dims=1, max_dims=3, max_side=4)
seeds = st.integers(0, 2**32 - 1)


@given(hnp.mutually_broadcastable_shapes(num_shapes=2, max_dims=4, max_side=4), seeds)
def test_broadcasting(pair, seed):
    rng = np.random.default_rng(seed)
    x, b = (rng.normal(size=s) for s in pair.input_shapes)
    b = np.asarray(b + np.copysign(1, b))
    for op, expected in [(ops.sub, x - b), (ops.div, x / b), (ops.maximum, np.fmax(x, b))]:
        np.testing.assert_allclose(op(mg.Tensor(x), b).numpy(), expected, rtol=1e-14)
    assert (mg.Tensor(x) * b).shape == pair.result_shape
    if (np.abs(x) > 0.01).all():
        check_grads(lambda x, b: x / b - b * x, [np.asarray(x), b], order=2)


@st.composite
def shape_and_axes(draw):
    shape = draw(hnp.array_shapes(min_dims=1, max_dims=4, max_side=4))
    n = len(shape)
    axes = draw(
        st.none()
        | st.integers(-n, n - 1)
        | st.lists(st.integers(-n, n - 1), unique_by=lambda a: a % n, max_size=n).map(tuple)
    )
    return shape, axes


@given(shape_and_axes(), st.booleans(), seeds)
def test_reductions_over_any_axes(shape_axes, keepdims, seed):
    shape, axis = shape_axes
    x = np.random.default_rng(seed).permutation(np.prod(shape)).reshape(shape) / 8
    for name in ("sum", "mean", "var", "max", "min"):
        op, expected = getattr(ops, name), getattr(np, name)(x, axis=axis, keepdims=keepdims)
        y = op(mg.Tensor(x), axis=axis, keepdims=keepdims)
        assert y.shape == expected.shape
        np.testing.assert_allclose(y.numpy(), expected, rtol=1e-12, atol=1e-12)
        method = getattr(mg.Tensor(x), name)(axis=axis, keepdims=keepdims)
        np.testing.assert_array_equal(method.numpy(), y.numpy())
        check_grads(lambda x, op=op: op(x, axis=axis, keepdims=keepdims), [x], order=1)


@given(st.data(), hnp.array_shapes(min_dims=1, max_dims=4, max_side=5), seeds)
def test_any_basic_index(data, shape, seed):
    index = data.draw(hnp.basic_indices(shape, allow_newaxis=True))
    x = np.random.default_rng(seed).normal(size=shape)
    y = mg.Tensor(x)[index]
    np.testing.assert_array_equal(y.numpy(), x[index])
    check_grads(lambda x: x[index] * 3, [x], order=2)


@given(shapes, st.data(), seeds)
def test_moving_axes_and_elements(shape, data, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    order = data.draw(st.permutations(range(len(shape))))
    width = data.draw(st.tuples(*[st.tuples(st.integers(0, 3), st.integers(0, 3))] * len(shape)))
    axes = tuple(i for i in order if data.draw(st.booleans()))
    t = mg.Tensor(x)
    np.testing.assert_array_equal(t.transpose(order).numpy(), np.transpose(x, order))
    np.testing.assert_array_equal(ops.pad(t, width).numpy(), np.pad(x, width))
    np.testing.assert_array_equal(ops.flip(t, axes).numpy(), np.flip(x, axes))
    reflect = [(min(a, n - 1), min(b, n - 1)) for (a, b), n in zip(width, shape, strict=True)]
    reflected = ops.pad(t, reflect, "reflect").numpy()
    np.testing.assert_array_equal(reflected, np.pad(x, reflect, "reflect"))
    for start in range(len(shape)):
        expected = (*shape[:start], int(np.prod(shape[start:])))
        assert t.flatten(start).shape == t.flatten(start - len(shape)).shape == expected

    def everything(x):
        return ops.pad(ops.flip(ops.transpose(x, order), 0), width)

    check_grads(everything, [x], order=2)


def test_empty_batches():
    x = mg.Tensor(np.zeros((0, 3, 4), np.float32), requires_grad=True)
    assert x.flatten(1).shape == (0, 12) and x.flatten().shape == (0,)
    y = ops.linear(x.flatten(1), np.ones((2, 12), np.float32))
    assert y.shape == (0, 2)
    assert mg.grad(y, x, np.zeros((0, 2), np.float32)).shape == (0, 3, 4)


# ----------------------------------------------------------------- where the maths needs a decision


def slope_at(f, x):
    leaf = mg.Tensor(np.asarray(x, np.float64), requires_grad=True)
    y = f(leaf)
    return mg.grad(y, leaf, np.ones(y.shape)).numpy()


def test_derivatives_at_kinks_are_the_documented_ones():
    np.testing.assert_array_equal(slope_at(ops.relu, [0.0, -0.0]), [0, 0])
    np.testing.assert_array_equal(slope_at(ops.abs, [-2, 0, 3]), [-1, 0, 1])
    np.testing.assert_array_equal(slope_at(ops.sign, [-2, 0, 3]), [0, 0, 0])
    np.testing.assert_array_equal(slope_at(ops.leaky_relu, [0.0]), [0.01])
    inside = slope_at(lambda x: ops.clip(x, low=-1, high=2), [-1.5, -1, 0, 2, 2.5])
    np.testing.assert_array_equal(inside, [0, 1, 1, 1, 0])
    np.testing.assert_array_equal(slope_at(lambda x: ops.max(x), [1, 3, 3, 0]), [0, 0.5, 0.5, 0])
    np.testing.assert_array_equal(
        slope_at(lambda x: ops.min(x, axis=0), [[1, 3], [1, 2], [4, 2]]),
        [[0.5, 0], [0.5, 0.5], [0, 0.5]],
    )
    for op in (ops.maximum, ops.minimum):
        np.testing.assert_array_equal(slope_at(lambda x, op=op: op(x, np.ones(1)), [1.0]), [0.5])
        np.testing.assert_array_equal(slope_at(lambda x, op=op: op(np.ones(1), x), [1.0]), [0.5])


def test_powers_at_zero_and_of_negative_numbers():
    np.testing.assert_array_equal(slope_at(lambda x: x**2, [0, -3]), [0, -6])
    np.testing.assert_array_equal(slope_at(lambda x: x**3, [0, -2]), [0, 12])
    np.testing.assert_array_equal(slope_at(lambda x: x**1, [0, -2]), [1, 1])
    np.testing.assert_array_equal(slope_at(lambda x: x**0, [0, -2]), [0, 0])
    b = mg.Tensor(np.array([0.0, 2.0, 1.0, 0.5]), requires_grad=True)
    x = mg.Tensor(np.array([0.0, 0.0, 0.0, 4.0]), requires_grad=True)
    gx, gb = mg.grad((x**b).sum(), [x, b])
    np.testing.assert_allclose(gx.numpy(), [0, 0, 1, 0.25])
    np.testing.assert_allclose(gb.numpy(), [0, 0, 0, 2 * np.log(4)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_logits_of_any_size_overflow_nowhere(dtype):
    x = np.array([-1e4, -100, -30, 0, 30, 100, 1e4], dtype)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        leaf = mg.Tensor(x, requires_grad=True)
        sigmoid, softplus = ops.sigmoid(leaf), ops.softplus(leaf)
        log_sigmoid = ops.log_sigmoid(leaf)
        slopes = [mg.grad(y.sum(), leaf).numpy() for y in (sigmoid, softplus, log_sigmoid)]
    exact = 1 / (1 + np.exp(-np.clip(x, -700, 700).astype(np.float64)))
    tiny = 1e-6 if dtype is np.float32 else 1e-15
    np.testing.assert_allclose(sigmoid.numpy(), exact, atol=tiny)
    np.testing.assert_allclose(
        softplus.numpy()[[0, 1, 3, 5, 6]], [0, 0, np.log(2), 100, 1e4], atol=1e-7
    )
    np.testing.assert_allclose(
        log_sigmoid.numpy()[[0, 1, 3, 5, 6]], [-1e4, -100, -np.log(2), 0, 0], atol=1e-7
    )
    np.testing.assert_allclose(slopes[0], exact * (1 - exact), atol=tiny)
    np.testing.assert_allclose(slopes[1], exact, atol=tiny)
    np.testing.assert_allclose(slopes[2], 1 - exact, atol=tiny)


def test_the_small_tail_of_a_sigmoid_is_kept():
    """σ(-20) is e^-20, not 0, also in float32, and is the gradient of softplus there."""
    x = mg.Tensor(np.array([-20.0, -80.0, -3.0], np.float32), requires_grad=True)
    exact = 1 / (1 + np.exp(-x.numpy().astype(np.float64)))
    np.testing.assert_allclose(ops.sigmoid(x).numpy(), exact, rtol=1e-6)
    np.testing.assert_allclose(mg.grad(ops.softplus(x).sum(), x).numpy(), exact, rtol=1e-6)
    fused = ops.bias_act(x.reshape(3, 1), np.zeros(1, np.float32), act="sigmoid")
    np.testing.assert_allclose(fused.numpy()[:, 0], exact, rtol=1e-6)
    np.testing.assert_allclose(ACTIVATIONS["sigmoid"][0](x.numpy(), 0), exact, rtol=1e-6)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        far = np.array([[-1000.0], [1000.0]], np.float32)
        y = ops.bias_act(far, np.zeros(1, np.float32), act="sigmoid")
    np.testing.assert_array_equal(y, [[0], [1]])


def test_softplus_keeps_its_small_tail():
    """ln(1 + e^-30) is e^-30, not 0, also in float32."""
    y = ops.softplus(np.array([-30.0, -80.0], np.float32))
    np.testing.assert_allclose(y, np.exp([-30.0, -80.0]), rtol=1e-5)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_log_softmax_of_large_logits(dtype):
    x = mg.Tensor(np.array([[1e4, 0, -1e4], [-1e4, -1e4, -1e4]], dtype), requires_grad=True)
    with np.errstate(over="raise", invalid="raise", divide="raise"):
        y = ops.log_softmax(x)
        gx = mg.grad(y, x, np.array([[0, 1, 0], [1, 0, 0]], dtype))
    np.testing.assert_allclose(y.numpy(), [[0, -1e4, -2e4], [-np.log(3)] * 3], rtol=1e-6)
    np.testing.assert_allclose(gx.numpy(), [[-1, 1, 0], [2 / 3, -1 / 3, -1 / 3]], rtol=1e-6)


def test_dropout():
    x = mg.Tensor(np.full((200, 100), 3, np.float32), requires_grad=True)
    mg.manual_seed(1)
    y, z = ops.dropout(x, 0.25), ops.dropout(x, 0.25)
    assert set(np.unique(y.numpy())) == {0, np.float32(4)}
    assert abs((y.numpy() == 0).mean() - 0.25) < 0.01
    assert (y.numpy() != z.numpy()).any()
    mg.manual_seed(1)
    np.testing.assert_array_equal(ops.dropout(x, 0.25).numpy(), y.numpy())
    np.testing.assert_allclose(mg.grad(y.sum(), x).numpy(), y.numpy() / 3, rtol=1e-6)


def test_astype_carries_gradients_back_in_the_dtype_of_its_input():
    x = mg.Tensor(np.ones(3, np.float32), requires_grad=True)
    y = x.astype(np.float64)
    assert y.dtype == np.float64
    gx = mg.grad((y * y).sum(), x)
    assert gx.dtype == np.float32
    np.testing.assert_array_equal(gx.numpy(), [2, 2, 2])


# -------------------------------------------------------------------------------------- errors


@pytest.mark.parametrize("axis", [2, -3, 5])
@pytest.mark.parametrize(
    ("op", "call"),
    [
        ("concat", lambda x, axis: ops.concat([x, x], axis)),
        ("flip", ops.flip),
        ("flip", lambda x, axis: ops.flip(x, (0, axis))),
        ("squeeze", ops.squeeze),
        ("swapaxes", lambda x, axis: ops.swapaxes(x, 0, axis)),
        ("transpose", lambda x, axis: ops.transpose(x, 0, axis)),
        ("log_softmax", lambda x, axis: ops.log_softmax(x, axis=axis)),
        ("sum", lambda x, axis: ops.sum(x, axis=axis)),
        ("max", lambda x, axis: ops.max(x, axis=axis)),
        ("mean", ops.mean),
        ("var", ops.var),
        ("expand_dims", lambda x, axis: ops.expand_dims(x, axis + np.sign(axis))),
        ("stack", lambda x, axis: ops.stack([x, x], axis + np.sign(axis))),
        ("flatten", lambda x, axis: ops.flatten(x, axis + np.sign(axis))),
    ],
)
def test_an_axis_that_is_not_there_is_an_error_that_names_the_op(op, call, axis):
    with pytest.raises(ValueError, match=f"^{op}: axis .* out of bounds"):
        call(mg.Tensor(np.ones((1, 1))), axis)


x4 = np.ones((2, 3, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: ops.conv2d(x4, np.ones((4, 2, 3, 3))), "conv2d: x has 3 channels but w expects 2"),
        (lambda: ops.conv2d(x4, np.ones((4, 3, 9, 3))), "conv2d: the kernel is larger"),
        (lambda: ops.conv2d(x4, np.ones((4, 3))), "conv2d: x .* and w .* must have 4 axes"),
        (lambda: ops.conv2d(x4[0], np.ones((4, 3, 3, 3))), "conv2d: .* must have 4 axes"),
        (lambda: ops.conv2d(x4, np.ones((4, 1, 3, 3)), groups=3), "groups=3 does not divide"),
        (lambda: ops.conv2d(x4, np.ones((4, 3, 3, 3)), stride=0), "stride must be .* not 0"),
        (lambda: ops.conv2d(x4, np.ones((4, 3, 3, 3)), pad=-1), "pad must be .* not -1"),
        (
            lambda: ops.conv_transpose2d(x4, np.ones((4, 2, 3, 3))),
            "conv_transpose2d: x has 3 channels",
        ),
        (lambda: ops.conv_transpose2d(x4, np.ones((3, 2))), "conv_transpose2d: .* 4 axes"),
        (
            lambda: ops.conv_transpose2d(x4, np.ones((3, 2, 3, 3)), stride=2, output_padding=2),
            "output_padding=2 must be below",
        ),
        (lambda: ops.conv_transpose2d(x4, np.ones((3, 2, 1, 1)), pad=4), "leave no output"),
        (lambda: ops.conv2d_dgrad(x4, np.ones((3, 2, 3, 3)), (9, 9)), "gives an output of"),
        (lambda: ops.conv2d_wgrad(x4, x4, (3, 3)), "conv2d_wgrad: .* gives? an output of"),
        (lambda: ops.max_pool2d(x4, 2, pad=2), "max_pool2d: pad=2 must be at most half"),
        (lambda: ops.avg_pool2d(x4, 9), "avg_pool2d: the kernel 9 is larger"),
        (lambda: ops.bias_act(x4, np.ones(4)), r"bias_act: x .* needs a bias of \(3,\)"),
        (lambda: ops.bias_act(x4, np.ones(3), act="gelu"), "act must be one of .* not 'gelu'"),
        (lambda: ops.bias_act(x4, act="gelu"), "act must be one of .* not 'gelu'"),
        (
            lambda: ops.bias_act(x4, np.ones(3), act="leaky_relu", slope=-1.0),
            "slope must be 0 or above",
        ),
        (lambda: ops.batch_norm(x4, act="gelu"), "act must be one of .* not 'gelu'"),
        (
            lambda: ops.batch_norm(x4, act="leaky_relu", slope=-1.0),
            "slope must be 0 or above",
        ),
        (lambda: ops.leaky_relu(x4, slope=-0.1), "leaky_relu: slope must be 0 or above"),
        (lambda: ops.batch_norm(x4[:1, :, 0, 0]), "batch_norm: needs more than one value"),
        (lambda: ops.instance_norm(x4[:, :, :1, :1]), "instance_norm: needs more than one value"),
        (lambda: ops.layer_norm(x4, (4, 8)), r"layer_norm: x .* does not end in \(4, 8\)"),
        (lambda: ops.linear(np.ones((2, 3)), np.ones((4, 5))), "linear: x has 3 features"),
        (lambda: ops.matmul(np.ones(()), np.ones(3)), "matmul: needs at least one axis"),
        (lambda: ops.resize(x4, (4, 4), mode="cubic"), "resize: mode must be"),
        (lambda: ops.resize(x4, 0), "size must be"),
        (lambda: ops.pad(x4, ((1, 1),)), "pad: 1 widths for 4 axes"),
        (lambda: ops.pad(np.ones(3), ((-1, 0),)), "pad: widths must be 0 or above"),
        (lambda: ops.pad(np.ones(3), ((3, 0),), "reflect"), "pad: cannot reflect 3"),
        (lambda: ops.pad(np.ones(3), ((1, 0),), "wrap"), "pad: mode must be"),
        (lambda: ops.squeeze(np.ones((1, 2)), 1), "squeeze: axis 1 .* is not of length 1"),
        (lambda: ops.dropout(x4, 1.0), r"dropout: p must be in \[0, 1\)"),
    ],
)
def test_a_wrong_call_is_an_error_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call()
