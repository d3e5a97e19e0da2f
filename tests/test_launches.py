"""What a training step launches on a GPU: counted on a stand-in for CuPy, and on sim."""

import dataclasses

import numpy as np
import pytest
from cupy_stand_in import stand_in

import minigan as mg
from minigan import data, gan, kernels, losses, nn, ops, optim
from minigan.array import to_device
from minigan.flat import laid_out
from minigan.kernels import cuda, launcher, sim
from minigan.recipes import RecipeError, find
from minigan.train import Trainer

SET = data.load("mnist-10k")


@pytest.fixture(autouse=True)
def compiler():
    try:
        sim.nvrtc.library()
    except sim.CompilerMissing as missing:
        pytest.skip(str(missing))


def recipe(name, **changes):
    plain = {"penalty": "none", "penalty_every": 1, "batch": 2, "optimizer": "adam"}
    return dataclasses.replace(find(name), **(plain | changes))


# ---- Counts -------------------------------------------------------------------------------------


def tally_of_a_step(name, **changes):
    with stand_in(runs=False) as tally:
        trainer = Trainer(recipe(name, batch=64, **changes), SET, "cuda")
        trainer.advance()
        tally.clear()
        trainer.advance()
        return tally


def test_a_step_launches_our_kernels_and_nothing_else():
    tally = tally_of_a_step("mnist-dcgan")
    assert 50 < tally.launches <= 100
    assert not tally.others, "elementwise kernels of CuPy's own"


def test_a_step_with_r1_launches_our_kernels_and_nothing_else():
    tally = tally_of_a_step("mnist-dcgan", penalty="r1")
    assert tally.kernels["batch_norm_double_backward"] == 1
    assert tally.launches <= 110 and not tally.others


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_norm_keeps_its_averages_in_one_launch(momentum):
    x = np.random.default_rng(0).standard_normal((4, 3, 5, 5)).astype("f") * 2 + 1

    def train(device):
        norm = nn.BatchNorm2d(3, momentum=momentum).to(device)
        for _ in range(3):
            norm(mg.Tensor(to_device(x, device)))
        return {name: a.numpy() for name, a in norm.named_buffers()}

    with kernels.use("reference"):
        expected = train("cpu")
    with stand_in() as tally:
        got = train("cuda")
    assert tally.kernels == {"batch_norm": 3, "batch_norm_averages": 3} and not tally.others
    for name, a in expected.items():
        np.testing.assert_allclose(got[name], a, rtol=1e-5, atol=1e-6, err_msg=name)


def test_a_step_of_perceptrons_launches_less():
    tally = tally_of_a_step("mnist-gan")
    assert 30 < tally.launches <= 80 and not tally.others


def test_no_step_waits_for_the_gpu():
    for changes in ({}, {"n_critic": 2, "clip_weights": 0.01, "loss": "wasserstein"},
                    {"penalty": "r1"}, {"loss": "relativistic-average"}):  # fmt: skip
        tally = tally_of_a_step("mnist-gan", **changes)
        assert not tally.syncs, (changes, tally.syncs)


def test_skipping_nans_looks_in_every_step():
    with stand_in(runs=False) as tally:
        trainer = Trainer(recipe("mnist-gan"), SET, "cuda")
        trainer.advance("skip")
        assert tally.syncs


# ---- WGAN-GP ------------------------------------------------------------------------------------


def test_the_inner_gradient_of_wgan_gp_needs_no_wgrad():
    mg.manual_seed(0)
    critic = nn.Sequential(
        nn.Conv2d(1, 3, 4, stride=2, padding=1),
        nn.LeakyReLU(0.2),
        nn.Conv2d(3, 2, 3),
        nn.LeakyReLU(0.2),
        nn.Flatten(),
        nn.Linear(2 * 2 * 2, 1),
    )
    rng = np.random.default_rng(0)
    real, fake = (rng.standard_normal((4, 1, 8, 8)).astype(np.float32) for _ in range(2))
    alpha = rng.random(4).astype(np.float32)

    def run():
        with cuda.launch_log() as log:
            penalty = losses.wgan_gp(critic, real, fake, alpha)
            inner = {line.kernel for line in log}
            del log[:]
            grads = mg.grad(penalty, critic.parameters())
            outer = {line.kernel for line in log}
        return inner, outer, [penalty.numpy(), *(g.numpy() for g in grads)]

    *_, expected = run()
    with kernels.use("sim"):
        inner, outer, got = run()
    assert {"conv2d", "conv2d_dgrad"} <= inner and "conv2d_wgrad" not in inner
    assert "conv2d_wgrad" in outer
    for a, b in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_a_frozen_discriminator_launches_no_wgrad_and_sums_no_bias():
    mg.manual_seed(0)
    discriminator = nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(0.2), nn.Flatten(),
                                  nn.Linear(72, 1), nn.Reshape())  # fmt: skip
    generator = nn.Sequential(nn.Linear(3, 64), nn.Tanh(), nn.Reshape(1, 8, 8))
    z = np.random.default_rng(0).standard_normal((4, 3)).astype(np.float32)
    with kernels.use("sim"), cuda.launch_log() as log:
        gan.Game(generator, discriminator).generator_turn(z)
    names = [line.kernel for line in log]
    assert "conv2d_wgrad" not in names and "conv2d_dgrad" in names
    # one for the activation of each net's hidden layer; frozen and linear, the others need none
    assert names.count("bias_act_backward") == 2


# ---- One launch for a product, its bias and its activation --------------------------------------


@pytest.mark.parametrize("act", ["linear", "leaky_relu"])
def test_bias_and_activation_need_no_launch_of_their_own(act):
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype("f") for s in ((2, 3, 6, 6), (4, 3, 3, 3), (4,)))
    calls = [
        lambda: ops.conv2d(x, w, b, act=act),
        lambda: ops.conv_transpose2d(x, np.swapaxes(w, 0, 1).copy(), b, act=act),
        lambda: ops.linear(x[:, 0, 0], w.reshape(4, 27)[:, :6].copy(), b, act=act),
    ]
    for call in calls:
        expected = call()
        with kernels.use("sim"), cuda.launch_log() as log:
            np.testing.assert_allclose(call(), expected, rtol=1e-4, atol=1e-5)
        assert not {line.kernel for line in log} & {"bias_act"}


@pytest.mark.parametrize("uses", [1, 2, 4, 6])
def test_gradients_that_meet_at_parameters_are_summed_in_one_launch(uses):
    """Of all parameters together, biases too, however often each is used; in the order of targets,
    end to end, so that the optimizer takes them as they lie."""
    rng = np.random.default_rng(0)
    x, w, b = (rng.standard_normal(s).astype("f") for s in ((7, 5), (5, 5), (5,)))
    shift = rng.standard_normal(5).astype("f")

    def run():
        leaves = [mg.Tensor(a.copy(), requires_grad=True) for a in (shift, w, b, x)]
        h = leaves[3]
        for _ in range(uses):
            h = ops.linear(h, leaves[1], leaves[2]) + leaves[0] * 1.0
        return [g.numpy() for g in mg.grad(ops.tanh(h).sum(), [*leaves, h])]

    with kernels.use("reference"):
        expected = run()
    with kernels.use("sim"), cuda.launch_log() as log:
        got = run()
    for a, right in zip(got, expected, strict=True):
        np.testing.assert_allclose(a, right, rtol=1e-4, atol=1e-5)
    names = [line.kernel for line in log]
    assert names.count("pack") == 1 + (uses > 4) * 3  # four at a time
    assert "bias_act_backward" not in names
    assert laid_out(got[:4]) is not None


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_an_optimizer_leaves_the_gradients_that_it_is_given(sign, decay):
    w = mg.Tensor(np.ones((3, 3), np.float32), requires_grad=True)
    optimizer = optim.SGD([{"params": [w], "multiplier": sign}], lr=0.1, weight_decay=decay)
    with kernels.use("sim"):
        g = mg.grad((ops.matmul(w, w) * 2.0).sum(), w)
        before = g.numpy().copy()
        optimizer.step([g])
    np.testing.assert_array_equal(g.numpy(), before)
    np.testing.assert_allclose(w.numpy(), 1 - 0.1 * (sign * before + decay), rtol=1e-6)


@pytest.mark.parametrize(
    "grads",
    [
        lambda flat: [flat[:9].reshape(3, 3).T, flat[32:36]],
        lambda flat: [flat[:18:2].reshape(3, 3), flat[32:36]],
        lambda flat: [flat[:9].reshape(3, 3), flat[36:40]],
        lambda flat: [np.frombuffer(flat[:9].tobytes(), "f").reshape(3, 3), flat[32:36]],
    ],
)
def test_gradients_that_do_not_lie_as_parameters_do_are_copied(grads):
    flat = np.arange(64, dtype=np.float32)
    weights = [mg.Tensor(np.zeros(s, np.float32), requires_grad=True) for s in ((3, 3), 4)]
    optim.SGD(weights, lr=1.0).step(grads(flat))
    for w, g in zip(weights, grads(flat), strict=True):
        np.testing.assert_array_equal(w.numpy(), -g)


@pytest.mark.parametrize("dtype", [np.float64, np.int64])
def test_other_dtypes_are_refused_in_words(dtype):
    x = np.ones((3, 3), dtype)
    with kernels.use("sim"), pytest.raises(TypeError, match="float32 alone"):
        ops.matmul(x, x)


# ---- CUDA graphs and compiling ahead ------------------------------------------------------------


def train(steps, graph, **changes):
    """(state after so many steps, averages of the metrics, tally of the last step)"""
    r = recipe("mnist-gan", decay="linear", ema=0.9, steps=20, **changes)
    with stand_in() as tally:
        trainer = Trainer(r, SET, "cuda", graph=graph)
        for _ in range(steps):
            tally.clear()
            trainer.advance()
        last = dataclasses.replace(tally, kernels=tally.kernels.copy(), syncs=tally.syncs.copy())
        return trainer.checkpoint().tensors, trainer.averages(), last


@pytest.mark.parametrize(
    "changes, steps",
    [
        ({}, 3),
        ({"n_critic": 2}, 3),
        ({"penalty": "r1"}, 3),
        ({"penalty": "r1", "penalty_every": 2}, 6),  # two kinds of steps, two graphs
    ],
    ids=str,
)
def test_a_replayed_step_is_the_step(changes, steps):
    expected, means, _ = train(steps, graph=False, **changes)
    got, its_means, tally = train(steps, graph=True, **changes)
    assert tally.graphs == 1 and not tally.kernels and not tally.syncs
    assert got.keys() == expected.keys()
    for name in expected:
        np.testing.assert_array_equal(got[name], expected[name], err_msg=name)
    assert its_means == means


def test_the_default_recipe_with_its_penalty_is_two_graphs():
    """Every fourth step has R1: through convolutions and batch norm, its second derivative too."""
    r = dataclasses.replace(find("mnist-dcgan"), batch=2)
    with stand_in(runs=False) as tally:
        trainer = Trainer(r, SET, "cuda", graph=True)
        assert r.penalty == "r1" and r.penalty_every == 4
        for step in range(12):
            tally.clear()
            trainer.advance()
            if step > 4:  # each kind has been taken once, and captured when it came again
                assert tally.graphs == 1
                assert not tally.kernels and not tally.others and not tally.syncs


@pytest.mark.parametrize(
    "device, changes, reason",
    [
        ("cpu", {}, "needs device cuda"),
        ("cuda", {"penalty": "wgan-gp"}, "wgan-gp draws random numbers"),
        ("cuda", {"clip_grad_norm": 1.0}, "clip_grad_norm waits"),
        ("cuda", {"optimizer": "sgd"}, "sgd takes its rate by value"),
    ],
)
def test_steps_that_cannot_be_captured_are_refused(device, changes, reason):
    with pytest.raises(RecipeError, match=f"CUDA graph .* {reason}"):
        Trainer(recipe("mnist-gan", **changes), SET, device, graph=True)


@pytest.mark.parametrize("lazy", [{}, {"penalty": "r1", "penalty_every": 2}], ids=str)
def test_warming_up_compiles_all_that_training_needs(lazy):
    told = []
    with stand_in() as tally:
        trainer = Trainer(recipe("mnist-gan", **lazy), SET, "cuda")
        before = trainer.checkpoint()
        tally.clear()
        trainer.warm_up(lambda *at: told.append(at))
        assert not tally.kernels
        compiled = launcher.gpu_function.cache_info().misses
        after = trainer.checkpoint()
        trainer.advance()
        trainer.advance()
        assert launcher.gpu_function.cache_info().misses == compiled
    assert told == [(i + 1, compiled) for i in range(compiled)] and compiled > 10
    assert after.state == before.state
    for name, a in before.tensors.items():
        np.testing.assert_array_equal(after.tensors[name], a, err_msg=name)
