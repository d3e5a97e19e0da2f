"""Elementwise ops and reductions. x, y: operands, broadcast as NumPy does; g = dL/d(output).

Where a second operand would be called y, it is called b here: y is the output.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from minigan.array import Array, xp_of
from minigan.autograd import array_of
from minigan.ops.arguments import Axes, axes_of, axis_of
from minigan.primitive import primitive

# ------------------------------------------------------------------------------------ arithmetic


@primitive
def add(x: Array, b: Array) -> Array:
    """y = x + b"""
    return x + b


@add.vjp("x", "b")
def _(g: Any) -> Any:
    return g


@primitive
def sub(x: Array, b: Array) -> Array:
    """y = x - b"""
    return x - b


@sub.vjp("x")
def _(g: Any) -> Any:
    return g


@sub.vjp("b")
def _(g: Any) -> Any:
    return -g


@primitive
def mul(x: Array, b: Array) -> Array:
    """y = x · b"""
    return x * b


@mul.vjp("x")
def _(g: Any, b: Any) -> Any:
    return g * b


@mul.vjp("b")
def _(g: Any, x: Any) -> Any:
    return g * x


@primitive
def div(x: Array, b: Array) -> Array:
    """y = x / b"""
    return x / b


@div.vjp("x")
def _(g: Any, b: Any) -> Any:
    return g / b


@div.vjp("b")
def _(g: Any, y: Any, b: Any) -> Any:
    return -g * y / b


@primitive
def neg(x: Array) -> Array:
    """y = -x"""
    return -x


@neg.vjp("x")
def _(g: Any) -> Any:
    return -g


@primitive
def _power(x: Array, *, exponent: float) -> Array:
    return x**exponent


@_power.vjp("x")
def _(g: Any, x: Any, exponent: float) -> Any:
    if exponent in (0, 1):
        return g * exponent
    return g * (exponent * (x if exponent == 2 else power(x, exponent - 1)))


@primitive
def _power_xb(x: Array, b: Array) -> Array:
    return x**b


@_power_xb.vjp("x")
def _(g: Any, x: Any, b: Any) -> Any:
    zero = array_of(b) == 0  # there the derivative is 0, also at x = 0, where x^(b-1) is infinite
    return g * b * _power_xb(x, where(zero, 1.0, b - 1.0))


@_power_xb.vjp("b")
def _(g: Any, y: Any, x: Any) -> Any:
    zero = array_of(x) == 0  # lim x→0 of x^b log x is 0 for b > 0
    return g * y * log(where(zero, 1.0, x))


def power(x: Any, exponent: Any) -> Any:
    """y = x^exponent, the exponent a number or an operand like x (x ≥ 0 then)."""
    if isinstance(exponent, int | float):
        return _power(x, exponent=exponent if isinstance(exponent, int) else float(exponent))
    return _power_xb(x, exponent)


@primitive
def exp(x: Array) -> Array:
    """y = e^x"""
    return xp_of(x).exp(x)


@exp.vjp("x")
def _(g: Any, y: Any) -> Any:
    return g * y


@primitive
def log(x: Array) -> Array:
    """y = ln x"""
    return xp_of(x).log(x)


@log.vjp("x")
def _(g: Any, x: Any) -> Any:
    return g / x


@primitive
def sqrt(x: Array) -> Array:
    """y = √x"""
    return xp_of(x).sqrt(x)


@sqrt.vjp("x")
def _(g: Any, y: Any) -> Any:
    return 0.5 * g / y


@primitive
def sign(x: Array) -> Array:
    """y = -1, 0 or 1; its derivative is zero."""
    return xp_of(x).sign(x)


sign.constant("x")


@primitive
def abs(x: Array) -> Array:
    """y = |x|; the derivative at 0 is 0."""
    return xp_of(x).absolute(x)


@abs.vjp("x")
def _(g: Any, x: Any) -> Any:
    return g * sign(x)


# ------------------------------------------------------------------------ choices and comparisons


@primitive
def where(mask: Array, x: Array, b: Array) -> Array:
    """y = x where mask, else b. mask: bool, no derivative."""
    return xp_of(mask, x, b).where(mask, x, b)


where.constant("mask")


@where.vjp("x")
def _(g: Any, mask: Any) -> Any:
    return where(mask, g, g.dtype.type(0))


@where.vjp("b")
def _(g: Any, mask: Any) -> Any:
    return where(mask, g.dtype.type(0), g)


def _share(x: Any, b: Any, g: Any) -> Any:
    """1 where x > b, ½ where they tie, 0 elsewhere."""
    x, b = array_of(x), array_of(b)
    return (0.5 * (x > b) + 0.5 * (x >= b)).astype(g.dtype)


@primitive
def maximum(x: Array, b: Array) -> Array:
    """y = max(x, b); where they tie, each gets half of the gradient."""
    return xp_of(x, b).maximum(x, b)


@maximum.vjp("x")
def _(g: Any, x: Any, b: Any) -> Any:
    return g * _share(x, b, g)


@maximum.vjp("b")
def _(g: Any, x: Any, b: Any) -> Any:
    return g * _share(b, x, g)


@primitive
def minimum(x: Array, b: Array) -> Array:
    """y = min(x, b); where they tie, each gets half of the gradient."""
    return xp_of(x, b).minimum(x, b)


@minimum.vjp("x")
def _(g: Any, x: Any, b: Any) -> Any:
    return g * _share(b, x, g)


@minimum.vjp("b")
def _(g: Any, x: Any, b: Any) -> Any:
    return g * _share(x, b, g)


@primitive
def clip(x: Array, *, low: float | None = None, high: float | None = None) -> Array:
    """y = min(max(x, low), high); the derivative is 1 on [low, high]. None: no limit there."""
    if low is None and high is None:
        raise ValueError("clip: give low, high or both")
    return xp_of(x).clip(x, low, high)


@clip.vjp("x")
def _(g: Any, x: Any, low: float | None, high: float | None) -> Any:
    x = array_of(x)
    low, high = -math.inf if low is None else low, math.inf if high is None else high
    return g * ((x >= low) & (x <= high))


# ------------------------------------------------------------------------------------ activations


@primitive
def tanh(x: Array) -> Array:
    """y = tanh x                                                             dy/dx = 1 - y²"""
    return xp_of(x).tanh(x)


@tanh.vjp("x")
def _(g: Any, y: Any) -> Any:
    return g - g * y * y


@primitive
def sigmoid(x: Array) -> Array:
    """y = 1 / (1 + e^-x)"""
    with np.errstate(over="ignore"):  # 1 / (1 + ∞) is 0, as it should be
        return 1 / (1 + xp_of(x).exp(-x))


@sigmoid.vjp("x")
def _(g: Any, y: Any) -> Any:
    return g * (y * (1 - y))


@primitive
def softplus(x: Array) -> Array:
    """y = ln(1 + e^x), computed as max(x, 0) + ln(1 + e^-|x|), which overflows nowhere."""
    xp = xp_of(x)
    return xp.maximum(x, 0) + xp.log1p(xp.exp(-xp.absolute(x)))


@softplus.vjp("x")
def _(g: Any, x: Any) -> Any:
    return g * sigmoid(x)


def log_sigmoid(x: Any) -> Any:
    """y = ln(1 / (1 + e^-x)) = -softplus(-x)"""
    return -softplus(-x)


@primitive
def relu(x: Array) -> Array:
    """y = max(x, 0); the derivative at 0 is 0."""
    return xp_of(x).maximum(x, 0)


@relu.vjp("x")
def _(g: Any, y: Any) -> Any:
    return g * (array_of(y) > 0)


@primitive
def leaky_relu(x: Array, *, slope: float = 0.01) -> Array:
    """y = x where x > 0, else slope · x.   slope ≥ 0, so that y has the sign of x."""
    if slope < 0:
        raise ValueError(f"leaky_relu: slope must be 0 or above, not {slope}")
    xp = xp_of(x)
    return xp.maximum(x, slope * x) if slope <= 1 else xp.minimum(x, slope * x)


@leaky_relu.vjp("x")
def _(g: Any, y: Any, slope: float) -> Any:
    return where(array_of(y) > 0, g, g * slope)


@primitive
def elu(x: Array, *, alpha: float = 1.0) -> Array:
    """y = x where x > 0, else alpha · (e^x - 1).   Clevert et al. 2016."""
    xp = xp_of(x)
    return xp.where(x > 0, x, alpha * xp.expm1(xp.minimum(x, 0)))


@elu.vjp("x")
def _(g: Any, y: Any, alpha: float) -> Any:
    return g * where(array_of(y) > 0, g.dtype.type(1), y + alpha)


@primitive
def log_softmax(x: Array, *, axis: int = -1) -> Array:
    """y = x - ln Σ e^x along axis, shifted by the maximum first."""
    xp = xp_of(x)
    axis = axis_of("log_softmax", axis, x.ndim)
    x = x - x.max(axis=axis, keepdims=True)
    return x - xp.log(xp.exp(x).sum(axis=axis, keepdims=True))


@log_softmax.vjp("x")
def _(g: Any, y: Any, axis: int) -> Any:
    return g - exp(y) * g.sum(axis=axis, keepdims=True)


# ------------------------------------------------------------------------------------- reductions


def _keepdims(op: str, shape: tuple[int, ...], axis: Axes) -> tuple[int, ...]:
    """The shape that a reduction over `axis` would have had with keepdims."""
    axes = axes_of(op, axis, len(shape))
    return tuple(1 if i in axes else n for i, n in enumerate(shape))


@primitive
def sum(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """y = Σ x over axis (an int, several, or None for all)."""
    return x.sum(axis=None if axis is None else axes_of("sum", axis, x.ndim), keepdims=keepdims)


@sum.vjp("x")
def _(g: Any, shape: tuple[int, ...], axis: Axes) -> Any:
    return broadcast_to(g.reshape(_keepdims("sum", shape, axis)), shape)


def _count(op: str, x: Any, axis: Axes) -> int:
    return math.prod(x.shape[i] for i in axes_of(op, axis, x.ndim))


def mean(x: Any, axis: Axes = None, keepdims: bool = False) -> Any:
    """y = Σ x / M over axis, M the number of elements summed."""
    scale = 1.0 / _count("mean", x, axis)
    return sum(x, axis=axis, keepdims=keepdims) * scale


def var(x: Any, axis: Axes = None, ddof: int = 0, keepdims: bool = False) -> Any:
    """y = Σ (x - mean)² / (M - ddof) over axis."""
    scale = 1.0 / (_count("var", x, axis) - ddof)
    d = x - mean(x, axis, keepdims=True)
    return sum(d * d, axis=axis, keepdims=keepdims) * scale


@primitive
def max(x: Array, *, axis: Axes = None, keepdims: bool = False) -> Array:
    """y = max of x over axis; elements that tie share the gradient evenly."""
    return x.max(axis=None if axis is None else axes_of("max", axis, x.ndim), keepdims=keepdims)


@max.vjp("x")
def _(g: Any, x: Any, y: Any, axis: Axes) -> Any:
    kept = _keepdims("max", x.shape, axis)
    mask = (array_of(x) == array_of(y).reshape(kept)).astype(g.dtype)
    return g.reshape(kept) * (mask / mask.sum(axis=axis, keepdims=True))


def min(x: Any, axis: Axes = None, keepdims: bool = False) -> Any:
    """y = min of x over axis; elements that tie share the gradient evenly."""
    return -max(-x, axis=axis, keepdims=keepdims)


@primitive
def _broadcast_to(x: Array, *, to: tuple[int, ...]) -> Array:
    return xp_of(x).broadcast_to(x, to)


@_broadcast_to.vjp("x")
def _(g: Any) -> Any:
    return g  # the engine sums over broadcast axes


def broadcast_to(x: Any, shape: tuple[int, ...]) -> Any:
    """x repeated along new and length-1 axes to `shape`, as NumPy does; a read-only view."""
    return _broadcast_to(x, to=tuple(shape))


@primitive
def astype(x: Array, *, dtype: Any) -> Array:
    """x in another dtype; a constant if that is not a floating-point one."""
    return x.astype(dtype)


@astype.vjp("x")
def _(g: Any) -> Any:
    return g  # the engine casts to the dtype of x
