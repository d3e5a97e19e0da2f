"""Optimizers against a second implementation, parameter by parameter, in float64."""

import copy
import math

import numpy as np
import pytest

import minigan as mg
from minigan.optim import (
    SGD,
    Adam,
    AdamW,
    RMSProp,
    clip_grad_norm,
    clip_grad_value,
    clip_weights,
    grad_norm,
)
from minigan.schedules import linear, step_decay

SHAPES = [(3, 4), (), (5,), (2, 3, 2, 2), (0,), (1,)]


# The textbook formulas on one float64 array: p, g and the state of one parameter, step from 1.


def sgd(p, g, s, t, lr, momentum=0, dampening=0, weight_decay=0, nesterov=False):
    g = g + weight_decay * p
    if momentum == 0:
        return p - lr * g
    s["v"] = g if t == 1 else momentum * s["v"] + (1 - dampening) * g
    return p - lr * (g + momentum * s["v"] if nesterov else s["v"])


def rmsprop(p, g, s, t, lr, alpha=0.99, eps=1e-8, weight_decay=0, momentum=0, centered=False):
    g = g + weight_decay * p
    s["v"] = alpha * s.get("v", 0) + (1 - alpha) * g**2
    s["m"] = alpha * s.get("m", 0) + (1 - alpha) * g
    d = g / (np.sqrt(s["v"] - s["m"] ** 2 if centered else s["v"]) + eps)
    s["b"] = momentum * s.get("b", 0) + d
    return p - lr * s["b"]


def adam(p, g, s, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0, decoupled=False):
    if decoupled:
        p = p - lr * weight_decay * p
    else:
        g = g + weight_decay * p
    s["m"] = betas[0] * s.get("m", 0) + (1 - betas[0]) * g
    s["v"] = betas[1] * s.get("v", 0) + (1 - betas[1]) * g**2
    m, v = s["m"] / (1 - betas[0] ** t), s["v"] / (1 - betas[1] ** t)
    return p - lr * m / (np.sqrt(v) + eps)


def adamw(p, g, s, t, lr, weight_decay=0.01, **options):
    return adam(p, g, s, t, lr, weight_decay=weight_decay, decoupled=True, **options)


CASES = [
    (SGD, sgd, {}),
    (SGD, sgd, {"momentum": 0.9}),
    (SGD, sgd, {"momentum": 0.9, "dampening": 0.3, "weight_decay": 0.1}),
    (SGD, sgd, {"momentum": 0.8, "nesterov": True, "weight_decay": 0.05}),
    (RMSProp, rmsprop, {}),
    (RMSProp, rmsprop, {"alpha": 0.9, "eps": 1e-3, "weight_decay": 0.1}),
    (RMSProp, rmsprop, {"alpha": 0.9, "momentum": 0.7, "centered": True, "eps": 1e-4}),
    (Adam, adam, {}),
    (Adam, adam, {"betas": (0.5, 0.99), "eps": 1e-3, "weight_decay": 0.1}),
    (Adam, adam, {"betas": (0.0, 0.9)}),
    (AdamW, adamw, {}),
    (AdamW, adamw, {"betas": (0.5, 0.99), "weight_decay": 0.2}),
]
IDS = [f"{c.__name__}-{'-'.join(o) or 'default'}" for c, _, o in CASES]


def values(seed=0, dtype=np.float64):
    rng = np.random.default_rng(seed)
    return [np.asarray(rng.normal(size=shape)).astype(dtype) for shape in SHAPES]


def params(dtype=np.float64):
    return [mg.Tensor(a, requires_grad=True) for a in values(0, dtype)]


def assert_close(tensors, arrays, tolerance=1e-12):
    for t, a in zip(tensors, arrays, strict=True):
        np.testing.assert_allclose(t.numpy(), a, rtol=tolerance, atol=tolerance)


def assert_equal(tensors, others):
    for t, o in zip(tensors, others, strict=True):
        np.testing.assert_array_equal(t.numpy(), o.numpy() if isinstance(o, mg.Tensor) else o)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(np.float64, 1e-11), (np.float32, 2e-5)], ids=["f64", "f32"]
)
@pytest.mark.parametrize(("optimizer", "formula", "options"), CASES, ids=IDS)
def test_steps_follow_the_formula(optimizer, formula, options, dtype, tolerance):
    ps = params(dtype)
    expected = [p.numpy().astype(np.float64) for p in ps]
    state = [{} for _ in ps]
    opt = optimizer(ps, lr=0.01, **options)
    for t in range(1, 7):
        grads = values(t, dtype)
        opt.step(grads if t % 2 else [mg.Tensor(g) for g in grads])
        expected = [
            formula(p, g.astype(np.float64), s, t, 0.01, **options)
            for p, g, s in zip(expected, grads, state, strict=True)
        ]
    assert all(p.dtype == dtype for p in ps)
    assert_close(ps, expected, tolerance)


@pytest.mark.parametrize(("optimizer", "formula", "options"), CASES, ids=IDS)
def test_a_parameter_with_no_gradient_waits(optimizer, formula, options):
    ps, rng = params(), np.random.default_rng(9)
    expected = [p.numpy().copy() for p in ps]
    state, steps = [{} for _ in ps], [0] * len(ps)
    opt = optimizer(ps, lr=0.01, **options)
    for t in range(8):
        grads = [g if rng.random() < 0.5 else None for g in values(t)]
        opt.step(grads)
        for i, g in enumerate(grads):
            if g is not None:
                steps[i] += 1
                expected[i] = formula(expected[i], g, state[i], steps[i], 0.01, **options)
    assert len(set(steps)) > 1
    assert opt.steps == 8
    assert_close(ps, expected, 1e-11)


def test_adam_s_first_step_is_the_rate_whatever_the_gradient():
    for scale in (1e-3, 1.0, 1e3):
        p = mg.Tensor(np.zeros(4), requires_grad=True)
        Adam([p], lr=0.1).step([scale * np.array([1.0, -1, 2, -5])])
        np.testing.assert_allclose(p.numpy(), [-0.1, 0.1, -0.1, 0.1], rtol=1e-4)


@pytest.mark.parametrize(("optimizer", "options"), [(c, o) for c, _, o in CASES], ids=IDS)
def test_finds_the_bottom_of_a_bowl(optimizer, options):
    p = mg.Tensor(np.array([3.0, -2.0]), requires_grad=True)
    bottom = np.array([1.0, 0.5])
    options = {**options, "weight_decay": 0}
    opt = optimizer([p], lr=linear(0.1, 0.0, 400), **options)
    for _ in range(400):
        loss = (mg.Tensor(np.array([1.0, 4.0])) * (p - bottom) ** 2).sum()
        opt.zero_grad()
        loss.backward()
        opt.step()
    np.testing.assert_allclose(p.numpy(), bottom, atol=2e-2)


# ------------------------------------------------------------------------------------------ groups


@pytest.mark.parametrize("optimizer", [SGD, Adam, RMSProp])
def test_gradients_may_be_read_only(optimizer):
    p, q = (mg.Tensor(np.ones(1, np.float32), requires_grad=True) for _ in range(2))
    (gp,) = mg.grad(p.sum(), [p])  # a view of the one that the sum's gradient is
    gp.data.flags.writeable = False
    optimizer([p], lr=0.5).step([gp])
    optimizer([q], lr=0.5).step([np.ones(1, np.float32)])
    np.testing.assert_array_equal(p.numpy(), q.numpy())


def test_groups_multipliers_ascent_and_freezing():
    a, b, c, d = (mg.Tensor(np.full(3, 2.0), requires_grad=True) for _ in range(4))
    groups = [
        {"params": [a]},
        {"params": [b], "multiplier": -2},
        {"params": [c], "multiplier": None},
        {"params": [d], "lr": 1.0, "multiplier": 0.5, "momentum": 0.9},
    ]
    opt = SGD(groups, lr=0.1)
    assert opt.rates == [0.1, -0.2, 0.0, 0.5]
    g = np.array([1.0, -1.0, 0.5])
    opt.step([g, g, g, g])
    opt.step([g, g, g, g])
    assert_close([a, b, c, d], [2 - 0.2 * g, 2 + 0.4 * g, 2 + 0 * g, 2 - 0.5 * g - 0.95 * g])


@pytest.mark.parametrize("zero", [0, 0.0, None])
@pytest.mark.parametrize("optimizer", [SGD, RMSProp, Adam, AdamW])
def test_frozen_groups_do_not_change_not_even_by_decay(optimizer, zero):
    ps = params()
    opt = optimizer([{"params": ps, "multiplier": zero}], lr=0.1, weight_decay=0.5)
    opt.step(values(1))
    assert_equal(ps, values(0))
    assert all(v == 0 for k, v in opt.state_dict().items() if k.endswith(".step"))


@pytest.mark.parametrize("optimizer", [SGD, RMSProp, Adam, AdamW])
def test_ascent_is_descent_of_the_negated_loss(optimizer):
    up, down = params(), params()
    ascent = optimizer([{"params": up, "multiplier": -1}], lr=0.01, weight_decay=0.1)
    descent = optimizer(down, lr=0.01, weight_decay=0.1)
    for t in range(3):
        ascent.step(values(t))
        descent.step([-g for g in values(t)])
    assert_close(up, [p.numpy() for p in down])


def test_dtypes_mix_in_one_group():
    a = mg.Tensor(np.ones(3, np.float32), requires_grad=True)
    b = mg.Tensor(np.ones(2, np.float64), requires_grad=True)
    c = mg.Tensor(np.ones(4, np.float32), requires_grad=True)
    SGD([a, b, c], lr=0.5).step([np.full(3, 2.0), np.full(2, 4.0), np.full(4, 6.0)])
    assert (a.dtype, b.dtype, c.dtype) == (np.float32, np.float64, np.float32)
    assert_close([a, b, c], [np.zeros(3), -np.ones(2), -2 * np.ones(4)])


def test_the_rate_follows_a_schedule_of_the_optimizer_s_steps():
    p = mg.Tensor(np.zeros(1), requires_grad=True)
    opt = SGD([p], lr=step_decay(every=2, factor=0.5))
    seen = []
    for _ in range(5):
        seen.append(opt.rates[0])
        opt.step([np.ones(1)])
    assert seen == [1, 1, 0.5, 0.5, 0.25]
    assert p.item() == -sum(seen)


# ------------------------------------------------------------------------- parameters and gradients


def test_backward_then_step_equals_step_with_the_gradients():
    one, two = params(), params()
    first, second = Adam(one, lr=0.1), Adam(two, lr=0.1)
    for _ in range(3):
        first.zero_grad()
        sum((p * p).sum() for p in one).backward()
        first.step()
        second.step(mg.grad(sum((p * p).sum() for p in two), two))
    assert_equal(one, two)
    first.zero_grad()
    assert all(p.grad is None for p in one)


def test_values_may_be_written_or_replaced_between_steps():
    for change in ("in place", "replaced", "copied"):
        ps, fresh = params(), params()
        opt = Adam(ps, lr=0.1)
        opt.step(values(1))
        if change == "copied":  # a deep copy's views are not views of its buffer
            ps, opt = copy.deepcopy((ps, opt))
        for p, value in zip(ps, values(5), strict=True):
            if change == "in place":
                p.data[...] = value
            else:
                p.data = value
        opt.step(values(2))

        reference = Adam(fresh, lr=0.1)
        reference.step(values(1))
        for p, value in zip(fresh, values(5), strict=True):
            p.data[...] = value
        reference.step(values(2))
        assert_equal(ps, fresh)


def test_a_deep_copy_trains_on_its_own():
    ps, reference = params(), params()
    opt, other = Adam(ps, lr=0.1), Adam(reference, lr=0.1)
    opt.step(values(1))
    other.step(values(1))
    twin_ps, twin = copy.deepcopy((ps, opt))
    before = [p.numpy().copy() for p in ps]
    twin.step(values(2))
    other.step(values(2))
    assert_equal(ps, before)
    assert_equal(twin_ps, reference)


def test_each_parameter_starts_on_an_aligned_address():
    ps = params(np.float32)
    Adam(ps)
    origin = ps[0].data.ctypes.data
    assert all((p.data.ctypes.data - origin) % 128 == 0 for p in ps if p.size)


def test_gradients_are_not_written_to():
    ps, grads = params(), values(1)
    opt = SGD([{"params": ps, "multiplier": -1}], lr=0.1, momentum=0.9, weight_decay=0.1)
    opt.step(grads)
    opt.step(grads)
    assert_equal([mg.Tensor(g) for g in grads], values(1))


# ------------------------------------------------------------------------------------------- state


@pytest.mark.parametrize(("optimizer", "formula", "options"), CASES, ids=IDS)
def test_a_resumed_training_is_the_same_bit_for_bit(optimizer, formula, options):
    def make():
        ps = params(np.float32)
        named = [(f"layer{i}.weight", p) for i, p in enumerate(ps)]
        return ps, optimizer(named, lr=linear(0.1, 0.01, 10), **options)

    def grads(t):  # the second parameter starts late
        return [None if i == 1 and t < 2 else g for i, g in enumerate(values(t, np.float32))]

    ps, opt = make()
    for t in range(5):
        opt.step(grads(t))
    state, weights = opt.state_dict(), [p.numpy().copy() for p in ps]
    assert all(isinstance(v, np.ndarray) for v in state.values())
    assert state["step"] == 5 and state["step"].dtype == np.int64
    assert state["layer1.weight.step"] == 3
    saved = {k: v.copy() for k, v in state.items()}
    for t in range(5, 8):
        opt.step(grads(t))
    for k, v in state.items():
        np.testing.assert_array_equal(v, saved[k])  # a snapshot, not views

    resumed, again = make()
    for p, w in zip(resumed, weights, strict=True):
        p.data[...] = w
    again.load_state_dict(saved)
    for t in range(5, 8):
        again.step(grads(t))
    assert_equal(resumed, ps)
    for k, v in opt.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[k], v)


def test_state_survives_safetensors():
    from safetensors.numpy import load, save

    ps = params(np.float32)
    opt = Adam(ps)
    opt.step(values(1, np.float32))
    again = Adam(params(np.float32))
    again.load_state_dict(load(save(opt.state_dict())))
    for k, v in opt.state_dict().items():
        np.testing.assert_array_equal(again.state_dict()[k], v)


def test_a_state_that_does_not_fit_is_refused_and_changes_nothing():
    net = [("a", mg.Tensor(np.zeros(3), True)), ("b", mg.Tensor(np.zeros((2, 2)), True))]
    opt = Adam(net)
    opt.step([np.ones(3), np.ones((2, 2))])
    good = opt.state_dict()
    for change, message in [
        ({"b.v": None}, "the state has no b.v"),
        ({"step": None}, "the state has no step"),
        ({"b.m": np.zeros(4)}, r"b.m is float64 \(4,\) in the state, float64 \(2, 2\) here"),
        ({"a.m": np.zeros(3, np.float32)}, r"a.m is float32 \(3,\) in the state"),
        ({"c.m": np.zeros(3)}, "the state has c.m, which"),
    ]:
        bad = {k: v * 7 for k, v in good.items()} | change
        with pytest.raises(ValueError, match=f"Adam: {message}"):
            opt.load_state_dict({k: v for k, v in bad.items() if v is not None})
        for k, v in opt.state_dict().items():
            np.testing.assert_array_equal(good[k], v)


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: Adam([]), "Adam: no parameters"),
        (lambda p: Adam([p], lr=-1.0), "Adam: lr must be 0 or above, not -1"),
        (lambda p: Adam([p], betas=(0.9, 1.0)), r"Adam: betas must be in \[0, 1\)"),
        (lambda p: RMSProp([p], eps=0), "RMSProp: eps must be above 0"),
        (lambda p: SGD([p], nesterov=True), "SGD: nesterov needs a momentum"),
        (lambda p: SGD([{"params": [p], "rate": 3}]), "SGD: unknown option 'rate'.*choose from lr"),
        (lambda p: SGD([p, p]), "SGD: parameter 1 was given twice"),
        (lambda p: SGD([("w", p), ("w", mg.Tensor([1.0]))]), "SGD: parameter w was given twice"),
        (lambda p: SGD([np.ones(3)]), "SGD: parameter 0 is no Tensor of floats but ndarray"),
        (lambda p: SGD([p]).step([]), "SGD: 0 gradients, 1 parameters"),
        (
            lambda p: SGD([("w", p)]).step([np.ones(3)]),
            r"SGD: the gradient of w has shape \(3,\), the parameter \(2,\)",
        ),
    ],
)
def test_errors_say_what_is_wrong(make, message):
    p = mg.Tensor(np.ones(2), requires_grad=True)
    with pytest.raises(ValueError, match=message):
        make(p)
    np.testing.assert_array_equal(p.numpy(), 1)


@pytest.mark.parametrize("value", [np.ones(2, np.float32), np.ones(5)])
def test_a_parameter_that_changed_its_kind_is_refused(value):
    p = mg.Tensor(np.ones(2), requires_grad=True)
    opt = SGD([p])
    p.data = value
    with pytest.raises(ValueError, match=r"parameter 0.*make the optimizer after"):
        opt.step([np.ones(value.shape)])


# ---------------------------------------------------------------------------------------- clipping


def test_clip_grad_norm_scales_all_together():
    grads = [np.array([3.0, 0.0]), None, mg.Tensor(np.array([[0.0], [4.0]]))]
    assert grad_norm(grads) == 5
    clipped, norm = clip_grad_norm(grads, 1.0)
    assert norm == 5
    np.testing.assert_allclose(clipped[0], [0.6, 0])
    assert clipped[1] is None
    np.testing.assert_allclose(clipped[2].numpy(), [[0], [0.8]])
    np.testing.assert_array_equal(grads[0], [3, 0])

    below, norm = clip_grad_norm(grads, 5.0)
    assert norm == 5
    np.testing.assert_array_equal(below[0], [3, 0])


def test_the_norm_of_huge_float32_gradients_is_finite():
    grads = [np.full(4, 1e25, np.float32)]
    assert grad_norm(grads) == pytest.approx(2e25, rel=1e-6)
    clipped, _ = clip_grad_norm(grads, 2.0)
    assert clipped[0].dtype == np.float32
    np.testing.assert_allclose(clipped[0], 1, rtol=1e-6)
    assert math.isnan(clip_grad_norm([np.array([np.nan])], 1.0)[1])


def test_clip_values_and_weights():
    grads = [np.array([-3.0, 0.5]), None, mg.Tensor(np.array([2.0]))]
    clipped = clip_grad_value(grads, 1.0)
    np.testing.assert_array_equal(clipped[0], [-1, 0.5])
    assert clipped[1] is None and clipped[2].item() == 1
    np.testing.assert_array_equal(grads[0], [-3, 0.5])

    p = mg.Tensor(np.array([-0.5, 0.005, 0.5]), requires_grad=True)
    opt = SGD([p], lr=0.0)
    clip_weights([p], 0.01)
    opt.step([np.zeros(3)])
    np.testing.assert_array_equal(p.numpy(), [-0.01, 0.005, 0.01])
