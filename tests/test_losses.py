"""Losses against their formulas in float64 NumPy, gradients against finite differences."""

import math

import numpy as np
import pytest
from gradcheck import check_grads

import minigan as mg
from minigan import losses
from minigan.array import Stream
from minigan.losses import LOSSES

RNG = np.random.default_rng(0)
REAL, FAKE = RNG.normal(0.5, 2, (6, 1)), RNG.normal(-0.5, 2, (6, 1))


def sigma(x):
    return 1 / (1 + np.exp(-x))


def log(x):
    return np.log(x)


def E(x):
    return np.mean(x)


# From the papers, in terms of probabilities and logs: discriminator's, then generator's.
FORMULAS = {
    "minimax": (
        lambda r, f: -E(log(sigma(r))) - E(log(1 - sigma(f))),
        lambda f, r: E(log(1 - sigma(f))),
    ),
    "non-saturating": (
        lambda r, f: -E(log(sigma(r))) - E(log(1 - sigma(f))),
        lambda f, r: -E(log(sigma(f))),
    ),
    "bce-eps": (
        lambda r, f: -E(log(sigma(r) + 1e-7)) - E(log(1 + 1e-7 - sigma(f))),
        lambda f, r: -E(log(sigma(f) + 1e-7)),
    ),
    "least-squares": (
        lambda r, f: 0.5 * E((r - 1) ** 2) + 0.5 * E(f**2),
        lambda f, r: 0.5 * E((f - 1) ** 2),
    ),
    "least-squares-cyclegan": (
        lambda r, f: 0.5 * (E((r - 1) ** 2) + E(f**2)),
        lambda f, r: E((f - 1) ** 2),
    ),
    "hinge": (
        lambda r, f: -E(np.minimum(0, -1 + r)) - E(np.minimum(0, -1 - f)),
        lambda f, r: -E(f),
    ),
    "wasserstein": (lambda r, f: E(f) - E(r), lambda f, r: -E(f)),
    "relativistic": (
        lambda r, f: -E(log(sigma(r - f))),
        lambda f, r: -E(log(sigma(f - r))),
    ),
    "relativistic-average": (
        lambda r, f: -E(log(sigma(r - E(f)))) - E(log(1 - sigma(f - E(r)))),
        lambda f, r: -E(log(sigma(f - E(r)))) - E(log(1 - sigma(r - E(f)))),
    ),
    "relativistic-average-ls": (
        lambda r, f: E((r - E(f) - 1) ** 2) + E((f - E(r) + 1) ** 2),
        lambda f, r: E((r - E(f) + 1) ** 2) + E((f - E(r) - 1) ** 2),
    ),
    "relativistic-average-ls-half": (
        lambda r, f: 0.5 * (E((r - (E(f) + 1)) ** 2) + E((f - (E(r) - 1)) ** 2)),
        lambda f, r: 0.5 * (E((r - (E(f) - 1)) ** 2) + E((f - (E(r) + 1)) ** 2)),
    ),
}


def test_every_loss_has_a_formula():
    assert LOSSES.keys() == FORMULAS.keys()
    assert {n for n, loss in LOSSES.items() if loss.relativistic} == {
        n for n in LOSSES if n.startswith("relativistic")
    }


@pytest.mark.parametrize("name", LOSSES)
def test_values(name):
    loss, (d, g) = LOSSES[name], FORMULAS[name]
    real, fake = mg.Tensor(REAL), mg.Tensor(FAKE)
    assert loss.discriminator(real, fake).item() == pytest.approx(d(REAL, FAKE), rel=1e-12)
    assert loss.generator(fake, real).item() == pytest.approx(g(FAKE, REAL), rel=1e-12)
    assert loss.discriminator(REAL, FAKE) == pytest.approx(d(REAL, FAKE), rel=1e-12)  # arrays
    patches = REAL.reshape(2, 1, 3, 1), FAKE.reshape(2, 1, 3, 1)
    assert loss.discriminator(*patches) == pytest.approx(d(REAL, FAKE), rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients(name):
    loss = LOSSES[name]
    check_grads(loss.discriminator, [REAL, FAKE], order=2)
    if loss.relativistic:
        check_grads(loss.generator, [FAKE, REAL], order=2)
    else:
        check_grads(loss.generator, [FAKE], order=2)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("size", [100.0, -100.0])
def test_confident_logits_are_finite_in_float32(name, size):
    real = mg.Tensor(np.full(4, size, np.float32), requires_grad=True)
    fake = mg.Tensor(np.full(4, -size, np.float32), requires_grad=True)
    for y in (LOSSES[name].discriminator(real, fake), LOSSES[name].generator(fake, real)):
        assert y.dtype == np.float32 and np.isfinite(y.numpy())
        grads = [mg.grad(y, x).numpy() for x in (real, fake)]
        assert np.isfinite(grads).all()


def test_who_saturates():
    """Where D is sure that a sample is fake, only the saturating generator gets no gradient."""
    fake = mg.Tensor(np.array([-30.0]), requires_grad=True)
    assert abs(mg.grad(LOSSES["minimax"].generator(fake), fake).item()) < 1e-12
    assert mg.grad(LOSSES["non-saturating"].generator(fake), fake).item() == pytest.approx(-1)


def test_the_saturating_generator_keeps_its_small_gradient_in_float32():
    """dL/dx = -σ(x) = -e^-20 there, to both orders that are asked for."""
    fake = mg.Tensor(np.array([-20.0], np.float32), requires_grad=True)
    for create_graph in (False, True):
        g = mg.grad(LOSSES["minimax"].generator(fake), fake, create_graph=create_graph)
        assert g.item() == pytest.approx(-math.exp(-20), rel=1e-5, abs=0)


def test_one_sided_smoothing_is_of_real_samples_alone():
    t = 0.9
    r, f = sigma(REAL), sigma(FAKE)
    expected = -E(t * log(r) + (1 - t) * log(1 - r)) - E(log(1 - f))
    for name in ("minimax", "non-saturating"):
        assert LOSSES[name].discriminator(REAL, FAKE, t) == pytest.approx(expected, rel=1e-12)
    expected = 0.5 * E((REAL - t) ** 2) + 0.5 * E(FAKE**2)
    assert LOSSES["least-squares"].discriminator(REAL, FAKE, t) == pytest.approx(expected)
    for name in set(LOSSES) - {n for n, loss in LOSSES.items() if loss.labelled}:
        with pytest.raises(ValueError, match=r"real_target: must be 1, not 0\.9"):
            LOSSES[name].discriminator(REAL, FAKE, t)


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.relativistic])
def test_a_relativistic_generator_needs_reals(name):
    with pytest.raises(ValueError, match="needs the logits of real samples"):
        LOSSES[name].generator(FAKE)


def test_halves():
    for d, g in [
        (losses.least_squares_d, losses.least_squares_g),
        (
            losses.relativistic_average_d,
            lambda f, half: losses.relativistic_average_g(f, REAL, half),
        ),
        (
            losses.relativistic_average_ls_d,
            lambda f, half: losses.relativistic_average_ls_g(f, REAL, half),
        ),
    ]:
        assert d(REAL, FAKE, half=True) == pytest.approx(0.5 * d(REAL, FAKE, half=False))
        assert g(FAKE, half=True) == pytest.approx(0.5 * g(FAKE, half=False))


# --------------------------------------------------------------------------- binary cross-entropy


def test_bce_on_probabilities_saturates_at_16_118():
    for dtype in (np.float32, np.float64):
        p = mg.Tensor(np.zeros((3, 1), dtype))
        assert losses.bce(p, 1.0).item() == pytest.approx(16.118, abs=5e-4)
    lost = mg.Tensor(np.full(3, -100.0, np.float32))
    assert LOSSES["bce-eps"].generator(lost).item() == pytest.approx(16.118, abs=5e-4)
    assert losses.bce(np.ones(3), 0.0) == pytest.approx(-math.log(1e-7), rel=1e-6)
    p = sigma(REAL)
    expected = -E(0.9 * log(p + 1e-7) + 0.1 * log(1 + 1e-7 - p))
    assert losses.bce(p, 0.9) == pytest.approx(expected, rel=1e-12)
    assert losses.bce(np.zeros(1), 1.0, eps=1e-3) == pytest.approx(-math.log(1e-3))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (losses.bce_with_logits, "bce_with_logits: logits .* and target .* of one shape"),
        (losses.bce, "bce: p .* and target .* of one shape"),
        (losses.relativistic_d, "relativistic_d: real .* and fake .* of one shape"),
        (losses.relativistic_g, "relativistic_g: fake .* and real .* of one shape"),
        (
            lambda x, t: losses.wgan_gp(lambda x: x, x, t, Stream(0, "alpha")),
            "wgan_gp: real .* and fake .* of one shape",
        ),
    ],
)
def test_operands_of_two_shapes_are_not_broadcast(call, words):
    x, t = np.full((4, 1), 0.5), np.full((4,), 0.5)
    for a, b in [(x, t), (mg.Tensor(x), mg.Tensor(t)), (t, x), (x, np.ones((1, 1)))]:
        with pytest.raises(ValueError, match=words):
            call(a, b)


def test_a_target_without_axes_is_a_number():
    expected = pytest.approx(losses.bce_with_logits(REAL, 0.9))
    assert losses.bce_with_logits(REAL, np.array(0.9)) == expected
    p = sigma(REAL)
    assert losses.bce(p, np.float64(0.9)) == pytest.approx(losses.bce(p, 0.9))


def test_bce_with_logits_takes_arrays_of_targets():
    t = np.array([[0], [1], [0], [1], [1], [0]])
    p = sigma(REAL)
    expected = -E(t * log(p) + (1 - t) * log(1 - p))
    assert losses.bce_with_logits(REAL, t) == pytest.approx(expected, rel=1e-12)
    x = mg.Tensor(REAL.astype(np.float32))
    assert losses.bce_with_logits(x, t).dtype == np.float32
    check_grads(lambda x: losses.bce_with_logits(x, t), [REAL])
    check_grads(lambda p: losses.bce(p, t), [p])


def test_bce_with_logits_keeps_its_precision_where_probabilities_round_to_one():
    x = np.array([30.0])
    assert losses.bce_with_logits(x, 1.0) == pytest.approx(math.exp(-30), rel=1e-9, abs=0)
    assert losses.bce_with_logits(x, 0.0) == pytest.approx(30, rel=1e-9)


# -------------------------------------------------------------------------------------- penalties

X, Y = RNG.normal(size=(5, 2, 3)), RNG.normal(size=(5, 2, 3))
W = RNG.normal(size=(6,))
NORM = math.sqrt((W**2).sum())


def linear(w, scale=1.0):
    """A discriminator whose gradient is w for every sample."""
    return lambda x: scale * (x.reshape(len(x), -1) * w).sum(axis=1)


def curved(w, v):
    """A discriminator whose gradient differs between samples: v · tanh(w x)."""
    return lambda x: (x.reshape(len(x), -1) @ w).tanh() @ v


PENALTIES = {
    "wgan_gp": (lambda d: losses.wgan_gp(d, X, Y, np.linspace(0, 1, 5)), 10 * (NORM - 1) ** 2),
    "wgan_gp-750": (
        lambda d: losses.wgan_gp(d, X, Y, np.linspace(0, 1, 5), weight=7, target=750),
        7 * (NORM - 750) ** 2 / 750**2,
    ),
    "dragan": (
        lambda d: losses.dragan(d, X, Y, weight=3, target=0.5),
        3 * (NORM - 0.5) ** 2,
    ),
    "r1": (lambda d: losses.r1(d, X, 4), 2 * NORM**2),
    "r1-no-half": (lambda d: losses.r1(d, X, 10, half=False), 10 * NORM**2),
    "r2": (lambda d: losses.r2(d, Y, 4), 2 * NORM**2),
    "r2-no-half": (lambda d: losses.r2(d, mg.Tensor(Y), 10, half=False), 10 * NORM**2),
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_of_a_linear_discriminator(name):
    penalty, expected = PENALTIES[name]
    assert penalty(linear(mg.Tensor(W))).item() == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_are_differentiable_by_the_weights(name):
    penalty, _ = PENALTIES[name]
    check_grads(lambda w: penalty(linear(w)), [W], order=1)
    w, v = RNG.normal(size=(6, 4)) / 2, RNG.normal(size=4)
    check_grads(lambda w, v: penalty(curved(w, v)), [w, v], order=1)


def gradient_norms(x, w, v):
    """‖∇D‖ of each sample for the curved discriminator, by hand."""
    slope = (1 - np.tanh(x.reshape(len(x), -1) @ w) ** 2) * v
    return np.sqrt(((slope @ w.T) ** 2).sum(axis=1))


def test_where_the_gradients_are_taken():
    w, v = RNG.normal(size=(6, 4)) / 2, RNG.normal(size=4)
    d = curved(mg.Tensor(w), mg.Tensor(v))
    a = np.array([0.0, 0.1, 0.5, 0.9, 1.0])
    between = a.reshape(5, 1, 1) * X + (1 - a).reshape(5, 1, 1) * Y
    near = X + 0.5 * X.std() * Y
    for penalty, expected in [
        (losses.wgan_gp(d, X, Y, a), 10 * E((gradient_norms(between, w, v) - 1) ** 2)),
        (losses.dragan(d, X, Y), 10 * E((gradient_norms(near, w, v) - 1) ** 2)),
        (losses.r1(d, X), 5 * E(gradient_norms(X, w, v) ** 2)),
        (losses.r2(d, Y), 5 * E(gradient_norms(Y, w, v) ** 2)),
    ]:
        assert penalty.item() == pytest.approx(expected, rel=1e-9)


def test_penalties_draw_from_a_stream():
    w, v = RNG.normal(size=(6, 4)), RNG.normal(size=4)
    d = curved(mg.Tensor(w), mg.Tensor(v))
    a = Stream(3, "penalty", 7).uniform(5)
    assert losses.wgan_gp(d, X, Y, Stream(3, "penalty", 7)).item() == (
        losses.wgan_gp(d, X, Y, a).item()
    )
    stream = Stream(3, "penalty", 7)
    noise = stream.uniform(X.shape) * stream.uniform((5, 1, 1))
    once = losses.dragan(d, X, Stream(3, "penalty", 7)).item()
    assert once == losses.dragan(d, X, noise).item()
    assert once != losses.dragan(d, X, Stream(3, "penalty", 8)).item()


@pytest.mark.parametrize("name", PENALTIES)
def test_a_flat_discriminator_has_a_finite_gradient(name):
    """Weights of zero, as some networks start with: sqrt alone would give NaN."""
    w = mg.Tensor(np.zeros(6), requires_grad=True)
    penalty = PENALTIES[name][0](linear(w))
    assert np.isfinite(penalty.item())
    assert np.isfinite(mg.grad(penalty, w).numpy()).all()


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_keep_float32(name):
    w = mg.Tensor(W.astype(np.float32), requires_grad=True)
    x, y = X.astype(np.float32), Y.astype(np.float32)
    for penalty in (
        losses.wgan_gp(linear(w), x, y, np.linspace(0, 1, 5)),
        losses.dragan(linear(w), x, Y),
        losses.r1(linear(w), x),
    ):
        assert penalty.dtype == np.float32
        assert mg.grad(penalty, w).dtype == np.float32


def test_a_discriminator_may_give_several_logits_a_sample():
    w = mg.Tensor(W)
    both = losses.r1(lambda x: mg.ops.stack([linear(w)(x), linear(w)(x)], axis=1), X)
    assert both.item() == pytest.approx(losses.r1(linear(w, 2.0), X).item())


def test_no_grad_is_refused():
    with mg.no_grad(), pytest.raises(ValueError, match="r1: D's logits are not recorded"):
        losses.r1(linear(mg.Tensor(W)), X)
