"""A layer in a Sequential that computes the activation behind it changes nothing else."""

import numpy as np
import pytest

import minigan as mg
from minigan import nn, ops


def nets():
    return {
        "linear": (nn.Linear(6, 4), (5, 6)),
        "conv": (nn.Conv2d(3, 4, 3, padding=1), (2, 3, 5, 5)),
        "no bias": (nn.Conv2d(3, 4, 3, bias=False), (2, 3, 5, 5)),
        "transposed": (nn.ConvTranspose2d(3, 4, 4, 2, 1), (2, 3, 5, 5)),
        "batch norm": (nn.BatchNorm2d(3), (4, 3, 5, 5)),
        "batch norm, averages": (nn.BatchNorm2d(3).eval(), (4, 3, 5, 5)),
    }


ACTS = {
    "relu": nn.ReLU, "leaky": lambda: nn.LeakyReLU(0.3), "tanh": nn.Tanh, "sigmoid": nn.Sigmoid
}  # fmt: skip


@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("name", list(nets()))
def test_values_and_gradients_of_both_orders(name, act):
    """Against the two ops apart, in float64, where rounding hides nothing."""
    mg.manual_seed(0)
    layer, shape = nets()[name]
    activation = ACTS[act]()
    for t in [*layer.parameters(), *(b for _, b in layer.named_buffers())]:
        t.data = t.data.astype(np.float64)
    x = mg.Tensor(np.random.default_rng(0).normal(size=shape), requires_grad=True)
    results = []
    for net in (nn.Sequential(layer, activation), lambda x: activation(layer(x))):
        y = net(x)
        targets = [x, *layer.parameters()]
        first = mg.grad((y * y).sum(), targets, create_graph=True)
        second = mg.grad(sum((g * g).sum() for g in first), targets)
        results.append([a.numpy() for a in (y, *first, *second)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_the_activation_runs_once(monkeypatch):
    """Two activations in a row are two; one behind a layer is one."""
    x = mg.Tensor(np.float32([[-1.0, 2.0]]))
    layer = nn.Linear(2, 2)
    layer.weight.data[...] = np.eye(2)
    layer.bias.data[...] = 0
    once = nn.Sequential(layer, nn.LeakyReLU(0.5))
    twice = nn.Sequential(layer, nn.LeakyReLU(0.5), nn.LeakyReLU(0.5))
    np.testing.assert_array_equal(once(x).numpy(), [[-0.5, 2]])
    np.testing.assert_array_equal(twice(x).numpy(), [[-0.25, 2]])
    np.testing.assert_array_equal(nn.Sequential(nn.LeakyReLU(0.5), layer)(x).numpy(), [[-0.5, 2]])


def test_a_layer_of_the_users_own_is_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    class Cut(nn.ReLU):
        def forward(self, x):
            return ops.relu(x - 1)

    x = mg.Tensor(np.float32([[-3.0, 1.0]]))
    layer = Doubled(2, 2, bias=False)
    layer.weight.data[...] = np.eye(2)
    np.testing.assert_array_equal(nn.Sequential(layer, nn.ReLU())(x).numpy(), [[0, 2]])
    plain = nn.Linear(2, 2, bias=False)
    plain.weight.data[...] = 2 * np.eye(2)
    np.testing.assert_array_equal(nn.Sequential(plain, Cut())(x).numpy(), [[0, 1]])


def test_the_table_still_shows_both():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.LeakyReLU(0.2)).trace_shapes((1, 6, 6))
    lines = [line for line in repr(net).splitlines() if "4 × 4 × 4" in line]
    assert "Conv2d" in lines[0] and "LeakyReLU(0.2)" in lines[1]
