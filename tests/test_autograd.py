"""The engine: what grad and backward promise, and the invariants that the design rests on."""

import gc
import operator
import sys
import threading
import weakref
from contextlib import contextmanager

import numpy as np
import pytest
from gradcheck import check_grads

import minigan as mg
from minigan import nn, ops
from minigan.autograd import is_recording, observe
from minigan.gan import generate


def leaf(*values, dtype=np.float64):
    return mg.Tensor(np.array(values, dtype), requires_grad=True)


def equal(t, *values):
    np.testing.assert_allclose(t.numpy(), values, rtol=1e-12)


@contextmanager
def no_collector():
    """Whatever is freed inside is freed by reference counts alone: it was in no cycle."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


# ------------------------------------------------------------------------------- grad and backward


def test_gradients_of_several_targets():
    x, b = leaf(1, 2), leaf(3, 4)
    y = (x * b).sum()
    gx, gb = mg.grad(y, [x, b])
    equal(gx, 3, 4), equal(gb, 1, 2)
    equal(mg.grad(y, b), 1, 2)
    assert x.grad is None and b.grad is None


def test_a_tensor_used_many_times_gets_the_sum():
    x = leaf(2.0)
    y = x * x + ops.concat([x, x]).sum() + ops.where(np.array(True), x, x) - x / x
    equal(mg.grad(y, x), 2 * 2 + 2 + 1)


def test_intermediate_results_and_y_itself_can_be_targets():
    x = leaf(2.0)
    h = x * 3
    y = h * h
    gx, gh, gy = mg.grad(y, [x, h, y])
    equal(gx, 36), equal(gh, 12), equal(gy, 1)


def test_g_weighs_the_outputs():
    x = leaf(1, 2, 3)
    equal(mg.grad(x * x, x, np.array([1.0, 0, -1])), 2, 0, -6)
    equal(mg.grad(x * x, x, mg.Tensor(np.array([1.0, 0, -1]))), 2, 0, -6)


def test_unreached_targets_get_zeros():
    x, b = leaf(1, 2), mg.Tensor(np.ones((2, 3), np.float32), requires_grad=True)
    gx, gb = mg.grad((x * x).sum(), [x, b])
    equal(gx, 2, 4)
    assert gb.dtype == np.float32 and (gb.numpy() == np.zeros((2, 3))).all()
    assert not mg.grad(mg.Tensor(1.0), [x])[0].numpy().any()


def test_unreached_arguments_of_a_fused_op_get_zeros():
    @mg.fused
    def first(x, unused):
        return x * x

    x, unused = leaf(1, 2), leaf(3, 4)
    for create_graph in (False, True):
        gx, zero = mg.grad(first(x, unused).sum(), [x, unused], create_graph=create_graph)
        equal(gx, 2, 4), equal(zero, 0, 0)
    first.fast_vjp(lambda g, saved, x, unused: (2 * g * x, None))
    upstream = unused * 2
    gx, zero = mg.grad(first(x, upstream).sum(), [x, unused])
    equal(gx, 2, 4), equal(zero, 0, 0)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: mg.grad(x * 2, x), r"y has shape \(2,\); give g"),
        (lambda x: mg.grad(x * 2, x, np.ones(3)), r"g has shape \(3,\), y has \(2,\)"),
        (lambda x: mg.grad(x.sum(), [x, mg.Tensor(1.0)]), r"xs\[1\] \(\) does not require"),
        (lambda x: (x * 2).backward(), r"y has shape \(2,\); give g"),
        (lambda x: setattr(x * 2, "requires_grad", False), "only a leaf can be changed"),
        (lambda x: setattr(x * 2, "grad", x), "no leaf"),
    ],
)
def test_misuse_is_an_error_in_words(call, words):
    with pytest.raises(ValueError, match=words):
        call(leaf(1, 2))


def test_backward_accumulates_in_leaves():
    x, b = leaf(1, 2), leaf(3, 4)
    h = x * b
    h.sum().backward()
    (x * 10).sum().backward()
    equal(x.grad, 13, 14), equal(b.grad, 1, 2)
    assert h.grad is None
    x.grad = None
    (x * 10).backward(np.array([1.0, 0.5]))
    equal(x.grad, 10, 5)
    assert not x.grad.requires_grad


def test_backward_accumulates_into_no_array_that_it_does_not_own():
    x, b, g = leaf(1, 2), leaf(3, 4), np.array([1.0, 10])
    y = x + b
    y.backward(g)
    first = x.grad.numpy().copy()
    y.backward(g)
    (x + x + x).backward(g)
    np.testing.assert_array_equal(g, [1, 10])
    np.testing.assert_array_equal(first, [1, 10])
    equal(x.grad, 5, 50), equal(b.grad, 2, 20)


def test_gradients_that_pass_through_unchanged_do_not_add_up_in_each_others_arrays():
    x, b, c, g = leaf(1, 2), leaf(3, 4), leaf(5, 6), np.array([1.0, 10])
    y = (x + b) + (x + c) + x
    gx, gb, gc_ = mg.grad(y, [x, b, c], g)
    equal(gx, 3, 30), equal(gb, 1, 10), equal(gc_, 1, 10)
    np.testing.assert_array_equal(g, [1, 10])


# ---------------------------------------------------------------------------------- higher orders


def test_derivatives_of_derivatives():
    x = leaf(0.5)
    y, order = x**4, []
    for _ in range(5):
        order.append(y.item())
        y = mg.grad(y, x, create_graph=True)
    np.testing.assert_allclose(order, [0.5**4, 4 * 0.5**3, 12 * 0.5**2, 24 * 0.5, 24])
    assert not y.numpy().any()


def test_only_create_graph_records_the_gradient():
    x = leaf(1, 2)
    assert not mg.grad((x * x).sum(), x).requires_grad
    assert mg.grad((x * x).sum(), x, create_graph=True).requires_grad
    (x**3).sum().backward(create_graph=True)
    equal(mg.grad(x.grad.sum(), x), 6, 12)


def test_gradients_flow_to_g():
    x, g = leaf(1, 2), leaf(3, 4)
    gx = mg.grad(x**3, x, g, create_graph=True)
    equal(mg.grad(gx.sum(), g), 3, 12)


def test_gradient_penalty():
    """R1 of D(x) = Σ tanh(x w):  d/dw ½|dD/dx|² against finite differences, through both passes."""
    rng = np.random.default_rng(0)
    x = mg.Tensor(rng.normal(size=(5, 3)), requires_grad=True)

    def penalty(w):
        gx = mg.grad(ops.tanh(x @ w).sum(), x, create_graph=True)
        return 0.5 * (gx * gx).sum()

    check_grads(penalty, [rng.normal(size=(3, 4))], order=2)


# ----------------------------------------------------------------------- what is recorded and when


def test_no_grad():
    x = leaf(1, 2)
    with mg.no_grad():
        y = x * 2
        assert not y.requires_grad and x.requires_grad
        with mg.no_grad():
            pass
        assert not (x * 2).requires_grad
    assert (x * 2).requires_grad
    with pytest.raises(KeyError), mg.no_grad():
        raise KeyError
    assert (x * 2).requires_grad


def test_grad_works_inside_no_grad():
    x = leaf(2.0)
    y = x * x * x
    with mg.no_grad():
        equal(mg.grad(y, x), 12)
        gx = mg.grad(y, x, create_graph=True)
        assert not (x * 2).requires_grad
    equal(mg.grad(gx, x), 12)


def test_detach():
    x = leaf(1, 2)
    cut = (x * x).detach()
    assert not cut.requires_grad and cut.is_leaf
    equal(mg.grad((cut * x).sum(), x), 1, 4)


def test_freezing_a_leaf():
    x, w = leaf(1, 2), leaf(3, 4)
    before = (x * w).sum()
    w.requires_grad = False
    after = (x * w).sum()
    with pytest.raises(ValueError, match="does not require a gradient"):
        mg.grad(after, w)
    after.backward()
    assert w.grad is None
    before.backward()  # recorded while w was trainable
    equal(w.grad, 1, 2)
    w.requires_grad = True
    assert w.is_leaf
    equal(w.grad, 1, 2)
    equal(mg.grad((x * w).sum(), w), 1, 2)


def test_threads_record_on_their_own():
    x = leaf(1, 2)
    inside, done, seen = threading.Event(), threading.Event(), {}

    def other():
        with mg.no_grad(), observe(lambda name, y: seen.setdefault(name, y)):
            inside.set()
            done.wait(10)
            seen["recorded"] = (x * 2).requires_grad

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(10)
    y = x - 2
    done.set()
    thread.join()
    assert y.requires_grad and not seen["recorded"]
    assert "mul" in seen and "sub" not in seen


def test_observe():
    x = leaf(0.0, 1.0)
    seen = []
    with observe(lambda name, y: seen.append((name, y.shape))):
        y = ops.tanh(x).sum()
        mg.grad(y, x)
    assert seen[:2] == [("tanh", (2,)), ("sum", ())]
    ops.tanh(x)
    count = len(seen)
    with observe(lambda name, y: seen.append(name)):
        with observe(lambda name, y: None):
            ops.exp(x)
        ops.log(x + 2)
    assert seen[count:] == ["add", "log"]


# ------------------------------------------------------------------- work and memory not spent


def critic(x, w1, b1, w2):
    h = ops.leaky_relu(ops.conv2d(x, w1, b1, stride=2, pad=1), slope=0.2)
    pooled = ops.avg_pool2d(h, 2)
    return pooled, ops.conv2d(pooled, w2).sum()


def critic_tensors(trainable):
    rng = np.random.default_rng(0)
    shapes = [(2, 3, 8, 8), (4, 3, 4, 4), (4,), (1, 4, 2, 2)]
    x, *weights = (mg.Tensor(rng.normal(size=shape)) for shape in shapes)
    x.requires_grad = True
    for w in weights:
        w.requires_grad = trainable
    return x, weights


def test_wgan_gps_inner_gradient_computes_no_weight_gradient():
    x, weights = critic_tensors(trainable=True)
    seen = []
    with observe(lambda name, y: seen.append(name)):
        _, y = critic(x, *weights)
        gx = mg.grad(y, x, create_graph=True)
    assert seen.count("conv2d") == 2 and seen.count("conv2d_dgrad") == 2
    assert "conv2d_wgrad" not in seen
    penalty = ((ops.sqrt((gx * gx).sum(axis=(1, 2, 3))) - 1) ** 2).mean()
    with observe(lambda name, y: seen.append(name)):
        mg.grad(penalty, weights)
    assert "conv2d_wgrad" in seen


def test_only_the_vjps_on_a_path_to_a_target_run():
    x, w = leaf(1, 2), leaf(3, 4)
    y = (ops.exp(x) * ops.tanh(w)).sum()
    with observe(lambda name, y: seen.append(name)):
        seen = []
        mg.grad(y, w)
    assert "exp" not in seen and len(seen) < 10


@pytest.mark.parametrize("trainable", [False, True])
def test_a_frozen_critic_keeps_no_activation_that_only_weight_gradients_would_read(trainable):
    x, weights = critic_tensors(trainable)
    with no_collector():
        pooled, y = critic(x, *weights)
        kept = weakref.ref(pooled.data)
        del pooled
        assert (kept() is not None) == trainable
        assert mg.grad(y, x).numpy().any()


def test_a_bias_keeps_no_output_for_its_gradient():
    x, (w, b, _) = critic_tensors(trainable=True)
    with no_collector():
        y = ops.conv2d(x, w, b)
        before_tanh = weakref.ref(y.data)
        y = ops.tanh(y)
        assert before_tanh() is None


@pytest.mark.parametrize("wanted", ["x", "w"])
def test_conv2d_keeps_each_array_for_the_others_gradient_only(wanted):
    x = mg.Tensor(np.ones((1, 1, 4, 4)), requires_grad=wanted == "x")
    w = mg.Tensor(np.ones((1, 1, 3, 3)), requires_grad=wanted == "w")
    refs = {"x": weakref.ref(x.data), "w": weakref.ref(w.data)}
    with no_collector():
        y = ops.conv2d(x, w)
        x = w = None
        assert {name for name, ref in refs.items() if ref() is None} == {wanted}
        assert y.requires_grad


def test_nothing_is_kept_without_a_gradient_to_compute():
    x = mg.Tensor(np.ones(3))
    data = weakref.ref(x.data)
    with no_collector():
        y = ops.exp(x) * ops.tanh(x)
        x = None
        assert data() is None and y.node is None


def test_a_graph_goes_with_its_last_tensor():
    x = leaf(1, 2)
    with no_collector():
        h = ops.tanh(x)
        y = ops.batch_norm(ops.reshape(h * h, 2, 1))
        arrays = [weakref.ref(t.data) for t in (h, y)]
        gx = mg.grad(y[0, 0], x, create_graph=True)
        arrays += [weakref.ref(gx.data)]
        mg.grad(gx.sum(), x)
        assert all(ref() is not None for ref in arrays)
        del h, y, gx
        assert all(ref() is None for ref in arrays)


def test_a_thousand_steps_hold_memory_flat():
    """A small GAN's worth of graphs, second order included; with the cycle collector off."""
    rng = np.random.default_rng(0)
    x = mg.Tensor(rng.normal(size=(8, 4)), requires_grad=True)
    w = mg.Tensor(rng.normal(size=(4, 4)), requires_grad=True)
    scale, shift = leaf(1, 1, 1, 1), leaf(0, 0, 0, 0)

    def step():
        h = ops.batch_norm(ops.linear(x, w), scale, shift, act="leaky_relu")
        y = ops.softplus(h).mean()
        gx = mg.grad(y, x, create_graph=True)
        loss = y + (gx * gx).sum()
        loss.backward()
        for p in (w, scale, shift):
            p.data -= 0.001 * p.grad.numpy()
            p.grad = None
        x.grad = None

    def live_objects():
        return sys.getallocatedblocks()  # every Python object and every array's header is in one

    with no_collector():
        for _ in range(1500):  # until Python's free lists, of up to 2000 tuples each, are full
            step()
        before = live_objects()
        for _ in range(1000):
            step()
        assert live_objects() - before < 300


def test_deep_graphs_need_no_recursion():
    x = leaf(1.0)
    y = x
    for _ in range(20_000):
        y = y + 1
    equal(mg.grad(y, x), 1)
    gx = mg.grad(y * y, x, create_graph=True)
    equal(mg.grad(gx, x), 2)
    data = weakref.ref(y.data)
    del y, gx
    assert data() is None


# ----------------------------------------------------------------------------------- defining ops


def test_a_user_defined_op():
    @mg.primitive
    def cube(x, *, times=1.0):
        return times * x**3

    @cube.vjp("x")
    def _(g, x, times):
        return g * (3 * times * x**2)

    rng = np.random.default_rng(0)
    check_grads(lambda x: cube(x, times=2.0), [rng.normal(size=3)], order=3)
    check_grads(cube, [rng.normal(size=3)], order=3)
    assert cube(2.0) == 8.0


def test_a_missing_rule_names_op_and_argument():
    @mg.primitive
    def shift(x, amount):
        return x + amount

    shift.vjp("x")(lambda g: g)
    x, amount = leaf(1.0), leaf(2.0)
    y = shift(x, amount)
    equal(mg.grad(y, x), 1)
    with pytest.raises(NotImplementedError, match="shift has no vjp for its argument 'amount'"):
        mg.grad(y, amount)


def test_a_vjp_may_be_registered_after_the_first_call():
    @mg.primitive
    def product(x, b):
        return x * b

    x, b = leaf(2.0), leaf(3.0)
    product(x, b)
    product.vjp("x")(lambda g, b: g * b)
    product.vjp("b")(lambda g, x: g * x)
    equal(mg.grad(product(x, b), b), 2)


def test_a_declared_constant_passes_no_gradient():
    @mg.primitive
    def quantise(x, step):
        return np.round(x / step) * step

    quantise.constant("x")
    quantise.vjp("step")(lambda g, y, step: g * y / step)
    x, step = leaf(1.3), leaf(0.5)
    y = quantise(x, step)
    gx, gstep = mg.grad(y, [x, step])
    equal(gx, 0), equal(gstep, 3)
    assert not quantise(x, 0.5).requires_grad


@pytest.mark.parametrize("name", ["y", "g", "shape", "position"])
def test_reserved_names_are_refused_at_registration(name):
    for signature in (f"lambda {name}: 0", f"lambda x, *, {name}: 0"):
        with pytest.raises(TypeError, match=f"'{name}'.* are names for its vjps"):
            mg.primitive(eval(signature))


@pytest.mark.parametrize("rule", [lambda x: x, lambda g, z: g, lambda: 0])
def test_a_vjp_that_asks_for_the_unknown_is_refused_at_registration(rule):
    @mg.primitive
    def double(x):
        return 2 * x

    with pytest.raises(TypeError, match="the vjp of x must take g, then any of"):
        double.vjp("x")(rule)
    with pytest.raises(TypeError, match="double has no argument b"):
        double.vjp("b")(lambda g: g)


def test_a_vjp_may_return_the_broadcast_shape_and_another_dtype():
    @mg.primitive
    def outer(x, b):
        return x * b

    outer.vjp("x")(lambda g, b: (g * b).astype(np.float64))
    x = mg.Tensor(np.ones((3, 1), np.float32), requires_grad=True)
    gx = mg.grad(outer(x, np.arange(4, dtype=np.float32)).sum(), x)
    assert gx.shape == (3, 1) and gx.dtype == np.float32
    np.testing.assert_array_equal(gx.numpy(), np.full((3, 1), 6))


def test_the_array_arguments_of_an_op_can_be_named():
    x, b = leaf(1, 2), leaf(3, 4)
    equal(ops.sub(b=b, x=x), -2, -2)
    equal(mg.grad(ops.mul(x, b=b).sum(), b), 1, 2)
    equal(ops.where(b=b, mask=np.array([True, False]), x=x), 1, 4)
    assert ops.leaky_relu(x=mg.Tensor(-1.0), slope=0.5).item() == -0.5


# -------------------------------------------------------------------------------------- fused ops


def fused_square_times():
    """x² · b with array-only shortcuts that count their calls."""
    calls = []

    @mg.fused
    def square_times(x, b, *, power=2):
        return x**power * b

    @square_times.fast_forward
    def _(x, b, *, power):
        calls.append("forward")
        return x**power * b, "saved"

    @square_times.fast_vjp
    def _(g, saved, x, b, *, power):
        calls.append("vjp")
        assert saved == "saved"
        return g * power * x ** (power - 1) * b, g * x**power

    return square_times, calls


def test_fused_ops_take_the_shortcuts_and_replay_the_composite_to_differentiate_again():
    square_times, calls = fused_square_times()
    x, b = leaf(1, 2), leaf(3, 4)
    y = square_times(x, b).sum()
    gx, gb = mg.grad(y, [x, b])
    equal(gx, 6, 16), equal(gb, 1, 4)
    assert calls == ["forward", "vjp"]
    gx, gb = mg.grad(y, [x, b], create_graph=True)
    equal(gx, 6, 16), equal(gb, 1, 4)
    assert calls == ["forward", "vjp"]
    equal(mg.grad(gx.sum(), x), 6, 8), equal(mg.grad(gx.sum(), b), 2, 4)


def test_a_fast_vjp_may_take_arrays_and_attributes_as_they_come():
    @mg.fused
    def product(x, b, *, times=1.0):
        return times * x * b

    x, b = leaf(2.0), leaf(3.0)
    for vjp in (
        lambda g, saved, x, b, *, times: (g * times * b, g * times * x),
        lambda g, saved, x, b, **attrs: (g * attrs["times"] * b, g * attrs["times"] * x),
        lambda g, saved, *xs, **attrs: [g * attrs["times"] * a for a in xs[::-1]],
    ):
        product.fast_vjp(vjp)
        gx, gb = mg.grad(product(x, b, times=5.0), [x, b])
        equal(gx, 15), equal(gb, 10)


def test_replaying_a_fused_op_stops_at_its_inputs():
    """x reaches it on two ways, and b is computed from x: neither is walked twice."""
    square_times, _ = fused_square_times()

    def f(x):
        h = ops.exp(x)
        return square_times(h, h * x) + square_times(x, x, power=3)

    check_grads(f, [np.array([0.3, -0.7])], order=3)
    x = leaf(0.3)
    y = square_times(ops.exp(ops.exp(x)), x)
    seen = []
    with observe(lambda name, y: seen.append(name)):
        mg.grad(y, x, create_graph=True)
    assert "exp" not in seen


def test_fused_ops_with_constant_arguments():
    square_times, _ = fused_square_times()
    x = leaf(1, 2)
    for create_graph in (False, True):
        gx = mg.grad(square_times(x, np.array([3.0, 4])).sum(), x, create_graph=create_graph)
        equal(gx, 6, 16)


# ------------------------------------------------------------------- Tensors among NumPy's arrays

OPERATORS = [
    operator.add, operator.sub, operator.mul, operator.truediv, operator.pow, operator.matmul,
    operator.lt, operator.le, operator.gt, operator.ge, operator.eq, operator.ne,
]  # fmt: skip


@pytest.mark.parametrize("op", OPERATORS, ids=lambda op: op.__name__)
def test_operators_mix_with_arrays_and_numbers_on_either_side(op):
    a, b = np.array([[1.0, 2], [3, 4]]), np.array([[2.0, 2], [0.5, 1]])
    t, u = mg.Tensor(a), mg.Tensor(b)
    for x, y in [(t, u), (t, b), (a, u)]:
        out = op(x, y)
        is_comparison = op.__name__ in ("lt", "le", "gt", "ge", "eq", "ne")
        assert isinstance(out, np.ndarray if is_comparison else mg.Tensor)
        np.testing.assert_array_equal(np.asarray(out), op(a, b))
    if op is not operator.matmul:
        for number in (2, 2.0, np.float64(2), np.array(2.0)):
            np.testing.assert_array_equal(np.asarray(op(t, number)), op(a, number))
            np.testing.assert_array_equal(np.asarray(op(number, t)), op(number, a))


def test_gradients_flow_through_operators_on_either_side():
    a = np.array([0.5, 2.0])

    def f(x):
        return a * x - x / a + a / x + (a - x) ** 2 + 2.0**x + x**a - (-x) + abs(x) + (a @ x)

    check_grads(f, [np.array([1.5, 0.7])], order=3)


def test_numbers_and_lists_become_float32_and_arrays_keep_their_dtype():
    assert mg.Tensor(1.5).dtype == mg.Tensor([1.0, 2]).dtype == np.float32
    assert mg.Tensor(np.zeros(2)).dtype == mg.Tensor(np.float64(1)).dtype == np.float64
    assert mg.Tensor([1, 2]).dtype.kind == "i" and mg.Tensor([True]).dtype == bool
    single = mg.Tensor(np.ones(3, np.float32))
    for y in [2 * single, single / 3, single**0.5, 1.0 - single, single.mean(), single.var()]:
        assert y.dtype == np.float32
    assert (single * mg.Tensor(2.5)).dtype == np.float32
    assert (single * np.ones(3)).dtype == np.float64


def test_mixed_dtypes_give_each_argument_its_own_gradient_dtype():
    x, b = leaf(1, 2, dtype=np.float32), leaf(3, 4)
    for create_graph in (False, True):
        gx, gb = mg.grad((x * b).sum(), [x, b], create_graph=create_graph)
        assert (gx.dtype, gb.dtype) == (np.float32, np.float64)


def test_integers_and_booleans_are_constants():
    x = leaf(1, 2, dtype=np.float32)
    for constant in (mg.Tensor([3, 4]), mg.Tensor([True, False])):
        y = x * constant
        np.testing.assert_array_equal(mg.grad(y.sum(), x).numpy(), constant.numpy())
        with pytest.raises(TypeError, match="cannot have a gradient"):
            constant.requires_grad = True
    assert (mg.Tensor([3, 4]) + 1).dtype.kind == "i"
    np.testing.assert_array_equal(x[mg.Tensor([1, 1, 0])].numpy(), [2, 2, 1])
    np.testing.assert_array_equal(x[x > 1].numpy(), [2])


def test_numpy_reads_tensors():
    t = mg.Tensor(np.arange(6.0).reshape(2, 3), requires_grad=True)
    assert np.shares_memory(np.asarray(t), t.data) and np.shares_memory(t.numpy(), t.data)
    assert np.asarray(t, dtype=np.float32).dtype == np.float32
    assert not np.shares_memory(np.array(t), t.data)
    np.testing.assert_array_equal(np.stack([t, t]), np.stack([t.data, t.data]))
    with pytest.raises(TypeError):
        np.exp(t)  # would silently drop the gradient


def test_dlpack_both_ways_shares_memory():
    t = mg.Tensor(np.arange(6, dtype=np.float32), requires_grad=True)
    out = np.from_dlpack(t)
    assert np.shares_memory(out, t.data) and (out == np.arange(6)).all()
    back = mg.Tensor(mg.from_dlpack(out))
    assert np.shares_memory(back.data, t.data)


def test_python_reads_tensors():
    t = mg.Tensor([[1.5, -2.0]])
    assert (len(t), t.shape, t.ndim, t.size) == (1, (1, 2), 2, 2)
    assert float(t[0, 0]) == t[0, 0].item() == 1.5 and int(t[0, 1]) == -2
    assert bool(mg.Tensor(1.0)) and not mg.Tensor(0.0)
    assert [row.shape for row in t] == [(2,)]
    assert repr(t) == "Tensor([[ 1.5, -2. ]])"
    assert "requires_grad=True" in repr(leaf(1.0)) and "float64" in repr(leaf(1.0))
    assert len({t, t, mg.Tensor(1.0)}) == 2
    with pytest.raises(TypeError, match="no axes"):
        iter(mg.Tensor(1.0))
    with pytest.raises(TypeError, match="not changed in place"):
        t[0] = 1.0


def test_rows_of_a_tensor_carry_gradients():
    x = leaf([1.0, 2], [3, 4])
    first, second = x
    np.testing.assert_array_equal(mg.grad((first * second).sum(), x).numpy(), [[3, 4], [1, 2]])


def test_methods_do_what_the_ops_do():
    a = np.arange(1.0, 7).reshape(1, 2, 3)
    t = mg.Tensor(a)
    pairs = [
        (t.T, a.T), (t.reshape(3, 2), a.reshape(3, 2)), (t.reshape((6,)), a.ravel()),
        (t.view(-1), a.ravel()), (t.flatten(), a.ravel()), (t.squeeze(0), a[0]),
        (t.transpose(2, 0, 1), a.transpose(2, 0, 1)), (t.swapaxes(0, 2), a.swapaxes(0, 2)),
        (t.sum(1), a.sum(1)), (t.mean(axis=(0, 2)), a.mean(axis=(0, 2))), (t.var(2), a.var(2)),
        (t.max(1), a.max(1)), (t.min(), a.min()), (t.exp(), np.exp(a)), (t.log(), np.log(a)),
        (t.sqrt(), np.sqrt(a)), (t.tanh(), np.tanh(a)), (t.clip(2, 3), a.clip(2, 3)),
        ((-t).relu(), 0 * a), ((-t).abs(), a), (t.sigmoid(), 1 / (1 + np.exp(-a))),
        (t.astype(np.float32), a.astype(np.float32)), (t.std(2), a.std(2)),
        (t.clamp(2, 3), a.clip(2, 3)), (t.clamp(min=2), a.clip(2)), (t.clamp(max=2), a.clip(max=2)),
        (t.square(), a * a), (t.softplus(), np.log1p(np.exp(a))),
        (t.log_softmax(1), a - np.log(np.exp(a).sum(axis=1, keepdims=True))),
        ((-t).leaky_relu(0.2), -0.2 * a), (t.expand(4, -1, 3), np.tile(a, (4, 1, 1))),
        (t.expand((5, 1, -1, -1)), np.tile(a, (5, 1, 1, 1))),
    ]  # fmt: skip
    for got, expected in pairs:
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-14)
        assert got.dtype == expected.dtype


def test_a_limit_that_is_not_there_holds_nothing_back():
    for limits in ({"min": 2.0}, {"max": 2.0}):
        check_grads(lambda x, limits=limits: x.clamp(**limits), [np.array([1.0, 3.0])])
    with pytest.raises(ValueError, match="clip: give low, high or both"):
        leaf(1.0).clip()


def test_what_python_asks_of_a_tensor():
    x = leaf([1.0, 5], [3, 4])
    assert x.tolist() == [[1, 5], [3, 4]]
    assert x.argmax() == 1 and x.argmax(axis=0).tolist() == [1, 0]
    assert f"{mg.Tensor(0.12345):.3f}, {mg.Tensor([7]):03d}" == "0.123, 007"
    assert f"{mg.Tensor([1.0])}" == "Tensor([1.])"
    with pytest.raises(TypeError, match=r"'\.3f' needs a Tensor of one element, not \(2, 2\)"):
        f"{x:.3f}"
    frozen = x.requires_grad_(False)
    assert frozen is x and not x.requires_grad
    assert mg.Tensor([1.0]).requires_grad_().requires_grad


def test_a_result_of_integers_is_a_constant():
    x = leaf(1.5, 2.5)
    y = x.astype(np.int64)
    assert not y.requires_grad and not (y * 2).requires_grad
    assert not x.astype(bool).requires_grad and x.astype(np.float16).requires_grad
    equal(mg.grad((x * y).sum(), x), 1, 2)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: ops.relu(x, dim=1), "^relu: .*unexpected keyword argument 'dim'; it takes"),
        (lambda x: ops.leaky_relu(x, slop=0.2), "^leaky_relu: .*'slop'; it takes .*slope"),
        (lambda x: x.sum(dim=1), r"^Tensor.sum\(\) got an unexpected keyword argument 'dim'"),
        (lambda x: x.clip(0, 1, 2), r"^Tensor.clip\(\) takes from 1 to 3"),
    ],
)
def test_an_argument_that_an_op_does_not_have_is_an_error_that_names_the_op(call, words):
    with pytest.raises(TypeError, match=words):
        call(leaf(1, 2))


def test_expand_refuses_what_it_cannot_reach():
    for to in [(3,), (-1, 2, 3), (2, 4)]:
        with pytest.raises(ValueError, match="broadcast"):
            leaf([1, 2, 3], [4, 5, 6]).expand(*to)


def test_backward_of_a_constant_is_an_error():
    with pytest.raises(ValueError, match="nothing that requires a gradient"):
        mg.Tensor([1.0]).sum().backward()


def test_an_interrupt_at_any_call_leaves_recording_on():
    x = leaf([1, 2], [3, 5], [8, 2])
    net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())

    def work():
        gx = mg.grad((ops.batch_norm(x) ** 2).sum(), x, create_graph=True)
        mg.grad((gx * gx).sum(), x)
        generate(net, x.data)

    def interrupted_at(n):
        def count(frame, event, arg):
            nonlocal n
            n -= event == "call"
            if n < 0:
                raise KeyboardInterrupt

        sys.setprofile(count)
        try:
            work()
        except KeyboardInterrupt:
            return True
        finally:
            sys.setprofile(None)
        return False

    work()
    calls = 0
    while interrupted_at(calls):
        assert is_recording(), f"at call {calls}"
        calls += 1
    assert calls > 50
