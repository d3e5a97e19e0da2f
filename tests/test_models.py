"""The published nets: their parameter counts and shapes are facts of the sources."""

import numpy as np
import pytest

import minigan as mg
from minigan import nn
from minigan.gan import Game
from minigan.losses import LOSSES
from minigan.models import FAMILIES

PARAMETERS = {
    "mnist-gan": (114_064, 100_609),
    "mnist-dcgan": (346_977, 36_513),
    "mnist-cgan": (115_344, 101_889),
}


def build(name, init="pytorch"):
    mg.manual_seed(0)
    return FAMILIES[name].build(100, init)


def test_every_family_is_counted_here():
    assert PARAMETERS.keys() == FAMILIES.keys()


@pytest.mark.parametrize("name", FAMILIES)
def test_parameter_counts(name):
    generator, discriminator = build(name)
    assert (generator.parameter_count(), discriminator.parameter_count()) == PARAMETERS[name]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("init", ["pytorch", "ocaml-torch", "dcgan"])
def test_shapes_and_range(name, init):
    generator, discriminator = build(name, init)
    z = mg.Tensor(np.random.default_rng(0).normal(size=(5, 100)).astype(np.float32))
    labels = [np.array([0, 3, 9, 9, 1])] if FAMILIES[name].classes else []
    x = generator(z, *labels)
    assert x.shape == (5, *FAMILIES[name].image)
    assert np.abs(x.data).max() <= 1
    assert discriminator(x, *labels).shape == (5,)


def test_dcgan_grows_and_shrinks_as_published():
    generator, discriminator = build("mnist-dcgan")
    generator.trace_shapes((100,))
    discriminator.trace_shapes((1, 28, 28))
    assert [generator[i].output_shape for i in (1, 4, 7)] == [(64, 7, 7), (32, 14, 14), (1, 28, 28)]
    assert [discriminator[i].output_shape for i in (0, 2, 5)] == [
        (32, 14, 14),
        (64, 7, 7),
        (1, 1, 1),
    ]


def test_the_label_matters_to_both_conditional_nets():
    generator, discriminator = build("mnist-cgan")
    z = mg.Tensor(np.zeros((2, 100), np.float32))
    x = generator(z, np.array([3, 8]))
    assert not np.array_equal(x.data[0], x.data[1])
    logits = discriminator(mg.Tensor(np.zeros((2, 1, 28, 28), np.float32)), np.array([3, 8]))
    assert logits.data[0] != logits.data[1]


class MeanOfTheBatch(nn.Module):
    def forward(self, x):
        return x - x.mean(axis=0, keepdims=True)


class Innocent(nn.LeakyReLU):
    """Says nothing of itself, so it may do what its base does not."""


@pytest.mark.parametrize(
    ("extra", "passes"),
    [(nn.LeakyReLU(), 1), (Innocent(), 2), (MeanOfTheBatch(), 2), (nn.BatchNorm1d(8), 2)],
)
def test_real_and_fake_go_together_where_no_layer_mixes_samples(extra, passes):
    d = nn.Sequential(nn.Linear(6, 8), extra, nn.Linear(8, 1), nn.Reshape())
    g = nn.Sequential(nn.Linear(3, 6))
    rng = np.random.default_rng(0)
    x, z = (rng.standard_normal((5, n)).astype(np.float32) for n in (6, 3))
    seen = []
    first = d.children()[0][1]
    original = first.forward
    first.forward = lambda *a, **k: seen.append(len(a[0])) or original(*a, **k)
    turn = Game(g, d).discriminator_turn(x, z)
    del first.forward
    assert seen == ([10] if passes == 1 else [5, 5])
    fake = g(mg.Tensor(z)).data
    loss = LOSSES["non-saturating"].discriminator(d(mg.Tensor(x)), d(mg.Tensor(fake)), 1.0)
    expected = mg.grad(loss, d.parameters())
    np.testing.assert_allclose(turn.loss, loss.data, rtol=1e-6)
    for got, e in zip(turn.grads, expected, strict=True):
        np.testing.assert_allclose(got, e.data, rtol=1e-4, atol=1e-7)
