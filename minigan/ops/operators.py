"""Tensor's operators and methods, each one call of an op.

They stand here and not in autograd.py because ops stand above the engine; minigan.ops installs
them.
"""

from __future__ import annotations

import inspect
from typing import Any

from minigan.autograd import Tensor, array_of
from minigan.ops import math, shape
from minigan.ops.arguments import Axes
from minigan.ops.linear import matmul


class _Methods:
    """What Tensor gets. `self` is a Tensor."""

    # ------------------------------------------------------------------------------- operators

    def __add__(self, b: Any) -> Any:
        return math.add(self, b)

    def __radd__(self, b: Any) -> Any:
        return math.add(b, self)

    def __sub__(self, b: Any) -> Any:
        return math.sub(self, b)

    def __rsub__(self, b: Any) -> Any:
        return math.sub(b, self)

    def __mul__(self, b: Any) -> Any:
        return math.mul(self, b)

    def __rmul__(self, b: Any) -> Any:
        return math.mul(b, self)

    def __truediv__(self, b: Any) -> Any:
        return math.div(self, b)

    def __rtruediv__(self, b: Any) -> Any:
        return math.div(b, self)

    def __pow__(self, exponent: Any) -> Any:
        return math.power(self, exponent)

    def __rpow__(self, base: Any) -> Any:
        return math.power(base, self)

    def __matmul__(self, b: Any) -> Any:
        return matmul(self, b)

    def __rmatmul__(self, b: Any) -> Any:
        return matmul(b, self)

    def __neg__(self) -> Any:
        return math.neg(self)

    def __abs__(self) -> Any:
        return math.abs(self)

    def __getitem__(self, index: Any) -> Any:
        return shape.getitem(self, index)

    # ------------------------------------------------------------ comparisons: arrays of bool

    def __lt__(self, b: Any) -> Any:
        return array_of(self) < array_of(b)

    def __le__(self, b: Any) -> Any:
        return array_of(self) <= array_of(b)

    def __gt__(self, b: Any) -> Any:
        return array_of(self) > array_of(b)

    def __ge__(self, b: Any) -> Any:
        return array_of(self) >= array_of(b)

    def __eq__(self, b: Any) -> Any:
        return array_of(self) == array_of(b)

    def __ne__(self, b: Any) -> Any:
        return array_of(self) != array_of(b)

    # ----------------------------------------------------------------------------- elementwise

    def abs(self) -> Any:
        return math.abs(self)

    def exp(self) -> Any:
        return math.exp(self)

    def log(self) -> Any:
        return math.log(self)

    def sqrt(self) -> Any:
        return math.sqrt(self)

    def square(self) -> Any:
        return math.mul(self, self)

    def pow(self, exponent: Any) -> Any:
        return math.power(self, exponent)

    def clip(self, low: float | None = None, high: float | None = None) -> Any:
        return math.clip(self, low=low, high=high)

    def clamp(self, min: float | None = None, max: float | None = None) -> Any:
        return math.clip(self, low=min, high=max)

    def tanh(self) -> Any:
        return math.tanh(self)

    def sigmoid(self) -> Any:
        return math.sigmoid(self)

    def softplus(self) -> Any:
        return math.softplus(self)

    def relu(self) -> Any:
        return math.relu(self)

    def leaky_relu(self, slope: float = 0.01) -> Any:
        return math.leaky_relu(self, slope=slope)

    def log_softmax(self, axis: int = -1) -> Any:
        return math.log_softmax(self, axis=axis)

    def astype(self, dtype: Any) -> Any:
        return math.astype(self, dtype=dtype)

    # ------------------------------------------------------------------------------ reductions

    def sum(self, axis: Axes = None, keepdims: bool = False) -> Any:
        return math.sum(self, axis=axis, keepdims=keepdims)

    def mean(self, axis: Axes = None, keepdims: bool = False) -> Any:
        return math.mean(self, axis, keepdims)

    def var(self, axis: Axes = None, ddof: int = 0, keepdims: bool = False) -> Any:
        return math.var(self, axis, ddof, keepdims)

    def std(self, axis: Axes = None, ddof: int = 0, keepdims: bool = False) -> Any:
        """The square root of var, which has no derivative where all elements are equal."""
        return math.sqrt(math.var(self, axis, ddof, keepdims))

    def max(self, axis: Axes = None, keepdims: bool = False) -> Any:
        return math.max(self, axis=axis, keepdims=keepdims)

    def min(self, axis: Axes = None, keepdims: bool = False) -> Any:
        return math.min(self, axis, keepdims)

    def argmax(self, axis: int | None = None) -> Any:
        """The index of the first maximum, an array: it has no derivative."""
        return array_of(self).argmax(axis=axis)

    # ---------------------------------------------------------------------------------- shapes

    def reshape(self, *to: Any) -> Any:
        return shape.reshape(self, *to)

    def view(self, *to: Any) -> Any:
        return shape.reshape(self, *to)

    def flatten(self, start: int = 0) -> Any:
        return shape.flatten(self, start)

    def transpose(self, *axes: Any) -> Any:
        return shape.transpose(self, *axes)

    def permute(self, *axes: Any) -> Any:
        return shape.transpose(self, *axes)

    @property
    def T(self) -> Any:
        return shape.transpose(self)

    def swapaxes(self, a: int, b: int) -> Any:
        return shape.swapaxes(self, a, b)

    def squeeze(self, axis: Axes = None) -> Any:
        return shape.squeeze(self, axis)

    def unsqueeze(self, axis: int) -> Any:
        return shape.expand_dims(self, axis)

    def expand(self, *to: Any) -> Any:
        """broadcast_to(to), in which -1 keeps the length of an axis, as in PyTorch."""
        own, size = array_of(self).shape, tuple(to[0]) if isinstance(to[0], tuple | list) else to
        new = len(size) - len(own)
        if new < 0 or -1 in size[:new]:
            raise ValueError(f"expand: {own} cannot be broadcast to {size}")
        kept = [o if n == -1 else n for n, o in zip(size[new:], own, strict=True)]
        return math.broadcast_to(self, (*size[:new], *kept))


def install() -> None:
    """Give Tensor the methods of _Methods."""
    for name, method in vars(_Methods).items():
        if inspect.isfunction(method):
            method.__qualname__ = f"Tensor.{name}"  # what Python's own error texts call it
        if inspect.isfunction(method) or isinstance(method, property):
            setattr(Tensor, name, method)
