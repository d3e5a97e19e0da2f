"""Matrix products.   N batch, I in_features, O out_features."""

from __future__ import annotations

from typing import Any

from minigan import kernels
from minigan.array import Array
from minigan.ops.norm import then_bias_act
from minigan.ops.shape import expand_dims, getitem, squeeze, swapaxes
from minigan.primitive import primitive


@primitive
def _matmul(x: Array, b: Array) -> Array:
    return kernels.matmul(x, b)


@_matmul.vjp("x")
def _(g: Any, b: Any) -> Any:
    return _matmul(g, swapaxes(b, -1, -2))


@_matmul.vjp("b")
def _(g: Any, x: Any) -> Any:
    return _matmul(swapaxes(x, -1, -2), g)


def matmul(x: Any, b: Any) -> Any:
    """y = x @ b: x (...,n,k), b (...,k,m) -> y (...,n,m); vectors as NumPy too"""
    if x.ndim == 0 or b.ndim == 0:
        raise ValueError(f"matmul: needs at least one axis each, got {x.shape} and {b.shape}")
    if x.ndim == 1:
        return squeeze(matmul(expand_dims(x, 0), b), -2 if b.ndim > 1 else 0)
    if b.ndim == 1:
        return squeeze(_matmul(x, expand_dims(b, 1)), -1)
    return _matmul(x, b)


def _product(x: Array, w: Array, **finish: Any) -> Array:
    return kernels.matmul(x, w.T, **finish)


@primitive
def _linear(x: Array, w: Array) -> Array:
    return _product(x, w)


@_linear.vjp("x")
def _(g: Any, w: Any) -> Any:
    return _matmul(g, w)


@_linear.vjp("w")
def _(g: Any, x: Any) -> Any:
    return _matmul(g.T, x)


def linear(x: Any, w: Any, bias: Any = None, *, act: str = "linear", slope: float = 0.01) -> Any:
    """y = act(x wᵀ + bias).   x (...,I), w (O,I), bias (O,) -> y (...,O)

    act, slope: see bias_act.
    """
    (*batch, features), (out, expected) = x.shape, w.shape
    if features != expected:
        raise ValueError(
            f"linear: x has {features} features but w expects {expected}: "
            f"x {tuple(x.shape)}, w {tuple(w.shape)}"
        )
    rows = x if len(batch) == 1 else x.reshape(-1, features)
    y = then_bias_act(_linear, (rows, w), {}, _product, bias, out, act, slope)
    return y if len(batch) == 1 else y.reshape(*batch, out)


def embedding(labels: Any, w: Any) -> Any:
    """y = w[labels].   labels (...) of int, w (classes,O) -> y (...,O)"""
    return getitem(w, labels)
