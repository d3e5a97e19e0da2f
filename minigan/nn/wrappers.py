"""Wrappers that give a layer another weight than the one it stores."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigan.array import generator, xp_of
from minigan.autograd import Tensor
from minigan.nn.init import fan_in, normal
from minigan.nn.layers import ConvTranspose2d, Embedding
from minigan.nn.module import Module, Parameter


def _weight_of(wrapper: Module, layer: Any) -> Parameter:
    """The weight that the layer lets its caller replace.   Raises: TypeError if it has none."""
    weight = getattr(layer, "weight", None)
    if not isinstance(weight, Parameter) or weight.ndim < 2 or "weight" not in layer.accepts:
        what = layer.describe() if isinstance(layer, Module) else type(layer).__name__
        raise TypeError(
            f"{type(wrapper).__name__}: {what} has no weight matrix of its own: wrap a Linear, "
            "Conv2d, ConvTranspose2d or Embedding"
        )
    return weight


class EqualizedLR(Module):
    """The layer with weight · gain / sqrt(fan_in), the stored weight drawn from N(0, 1).

    So every layer learns at the same speed under Adam.   Karras et al. 2018, section 4.1.
    fan_in: in_channels · taps, of transposed convolutions too.   Bias starts at 0.
    """

    def __init__(self, layer: Any, gain: float = math.sqrt(2)) -> None:
        weight = _weight_of(self, layer)
        if isinstance(layer, Embedding):
            raise TypeError("EqualizedLR: an Embedding sums no inputs, its weight needs no scale")
        self.layer = layer
        shape = weight.shape
        weight.data[...] = normal(1.0)(shape, generator.stream("init"))
        if layer.bias is not None:
            layer.bias.data[...] = 0
        transposed = isinstance(layer, ConvTranspose2d)
        inputs = fan_in((shape[1], shape[0], *shape[2:])) if transposed else fan_in(shape)
        self.scale = gain / math.sqrt(inputs)

    def forward(self, x: Any) -> Any:
        return self.layer(x, self.layer.weight * self.scale)


class SpectralNorm(Module):
    """The layer with weight / σ, σ the largest singular value of the weight as (out, rest).

    σ = uᵀ W v, with u and v from n_iterations power iterations a training step (none in
    evaluation), taken as constants in the gradient.   Miyato et al. 2018, algorithm 1.
    """

    def __init__(self, layer: Any, n_iterations: int = 1, eps: float = 1e-12) -> None:
        weight = _weight_of(self, layer)
        self.layer, self.n_iterations, self.eps = layer, n_iterations, eps
        rows, columns = self._matrix(weight).shape
        stream = generator.stream("init")
        self.u = Tensor(_unit(stream.normal(rows), eps))
        self.v = Tensor(_unit(stream.normal(columns), eps))
        self._iterate(15)

    def _matrix(self, w: Any) -> Any:
        """(out, rest); the out axis of a transposed convolution's weight is its second."""
        if isinstance(self.layer, ConvTranspose2d):
            w = w.swapaxes(0, 1)
        return w.reshape(w.shape[0], -1)

    def _iterate(self, times: int) -> None:
        w = self._matrix(self.layer.weight.data)
        for _ in range(times):
            self.v.data[...] = _unit(w.T @ self.u.data, self.eps)
            self.u.data[...] = _unit(w @ self.v.data, self.eps)

    def forward(self, x: Any) -> Any:
        if self.training:
            self._iterate(self.n_iterations)
        u, v = self.u.data.copy(), self.v.data.copy()
        sigma = (self._matrix(self.layer.weight) @ v * u).sum()
        return self.layer(x, self.layer.weight / sigma)


def _unit(a: Any, eps: float) -> Any:
    return a / (xp_of(a).sqrt((a * a).sum()) + np.float32(eps))
