"""Normalisation, bias + activation, dropout.   x (N,C,...)"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from minigan import kernels
from minigan.array import Array, generator, xp_of
from minigan.autograd import array_of
from minigan.ops.math import leaky_relu, mean, mul, relu, sigmoid, sqrt, tanh
from minigan.ops.shape import reshape
from minigan.primitive import Primitive, computed_at_once, fused, primitive

# What a fused kernel may end in: act(x), and act'(x) as a function of y = act(x).
_ACTIVATIONS = {
    "linear": lambda x, slope: x,
    "relu": lambda x, slope: relu(x),
    "leaky_relu": lambda x, slope: leaky_relu(x, slope=slope),
    "tanh": lambda x, slope: tanh(x),
    "sigmoid": lambda x, slope: sigmoid(x),
}


def _check_activation(op: str, act: str, slope: float) -> None:
    if act not in _ACTIVATIONS:
        raise ValueError(f"{op}: act must be one of {', '.join(_ACTIVATIONS)}, not {act!r}")
    if slope < 0:
        raise ValueError(f"{op}: slope must be 0 or above, not {slope}")


def _act_gradient(g: Any, y: Any, act: str, slope: float) -> Any:
    """g · act'(x), from y = act(x)."""
    if act == "tanh":
        return g * (1 - y * y)
    if act == "sigmoid":
        return g * (y * (1 - y))
    if act == "linear":
        return g
    return _times_slope(g, of=array_of(y), act=act, slope=slope)


@primitive
def _times_slope(x: Array, *, of: Array, act: str, slope: float) -> Array:
    """y = x · act'(...), act'(...) a constant: that of an act piecewise linear, from its output."""
    return kernels.bias_act_backward(x, of, act, slope, with_bias=False)[0]


@_times_slope.vjp("x")
def _(g: Any, of: Array, act: str, slope: float) -> Any:
    return _times_slope(g, of=of, act=act, slope=slope)


def _per_channel(a: Any, x: Any) -> Any:
    """a (C,) -> (1,C,1,...), to broadcast against x (N,C,...)"""
    return reshape(a, (1, -1) + (1,) * (x.ndim - 2))


def _batch_axes(x: Any) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


@primitive
def _bias_act(x: Array, bias: Array, *, act: str, slope: float) -> Array:
    return kernels.bias_act(x, bias, act, slope)


@_bias_act.vjp("x")
def _(g: Any, y: Any, act: str, slope: float) -> Any:
    return _act_gradient(g, y, act, slope)


@_bias_act.vjp("bias")
def _(g: Any, y: Any, act: str, slope: float) -> Any:
    return _act_gradient(g, y, act, slope).sum(axis=_batch_axes(y))


@_bias_act.fast_vjp
def _(g, y, *, act, slope, wanted):  # type: ignore[no-untyped-def]
    return kernels.bias_act_backward(g, y, act, slope, with_bias=1 in wanted)


@primitive
def _add_bias(x: Array, bias: Array) -> Array:
    """y = x + bias[c], of which no derivative needs an array."""
    return kernels.bias_act(x, bias, "linear", 1.0)


@_add_bias.vjp("x")
def _(g: Any) -> Any:
    return g


@_add_bias.vjp("bias")
def _(g: Any) -> Any:
    return g.sum(axis=_batch_axes(g))


@_add_bias.fast_vjp
def _(g, y, *, wanted):  # type: ignore[no-untyped-def]
    return kernels.bias_act_backward(g, g, "linear", 1.0, with_bias=1 in wanted)


def bias_act(x: Any, bias: Any = None, *, act: str = "linear", slope: float = 0.01) -> Any:
    """y = act(x + bias[c]).   x (N,C,...), bias (C,) or None.

    act: linear, relu, leaky_relu (with slope), tanh or sigmoid.
    """
    _check_activation("bias_act", act, slope)
    if bias is None:
        return _ACTIVATIONS[act](x, slope)
    _check_bias("bias_act", "x", x, bias, x.shape[1])
    if act == "linear":
        return _add_bias(x, bias)
    return _bias_act(x, bias, act=act, slope=slope)


def _check_bias(op: str, name: str, operand: Any, bias: Any, size: int) -> None:
    if bias.shape != (size,):
        what = f"{name} {tuple(operand.shape)}"
        raise ValueError(f"{op}: {what} needs a bias of ({size},), not {bias.shape}")


def then_bias_act(
    product: Primitive,
    xs: tuple[Any, Any],
    attrs: dict[str, Any],
    compute: Callable[..., Array],
    bias: Any,
    channels: int,
    act: str,
    slope: float,
) -> Any:
    """bias_act(product(*xs, **attrs), bias, ...), in one kernel where the device has one.

    compute(*arrays, bias, act, slope): both.   channels: of the product, along axis 1.
    """
    _check_activation(product.name, act, slope)
    if bias is None:
        return _ACTIVATIONS[act](product(*xs, **attrs), slope)
    _check_bias(product.name, "w", xs[1], bias, channels)

    def both(x: Array, w: Array, b: Array) -> Array:
        return compute(x, w, **attrs, bias=b, act=act, slope=slope)

    last, options = (
        (_add_bias, {}) if act == "linear" else (_bias_act, {"act": act, "slope": slope})
    )
    return computed_at_once(product, xs, attrs, last, (bias,), options, both)


@fused
def _batch_norm(
    x: Any, weight: Any, bias: Any, *, eps: float, act: str, slope: float, stats: Any
) -> Any:
    d = x - mean(x, _batch_axes(x), keepdims=True)
    y = d / sqrt(mean(d * d, _batch_axes(x), keepdims=True) + eps)
    if weight is not None:
        y = y * _per_channel(weight, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    return _ACTIVATIONS[act](y, slope)


@_batch_norm.fast_forward
def _(x, weight, bias, *, eps, act, slope, stats):  # type: ignore[no-untyped-def]
    y, mean, rstd = kernels.batch_norm(x, weight, bias, eps, act, slope)
    if stats is not None:
        stats(mean, rstd)
    return y, (y, mean, rstd)


@_batch_norm.fast_vjp
def _(g, saved, x, weight, bias, *, eps, act, slope, stats):  # type: ignore[no-untyped-def]
    y, mean, rstd = saved
    return kernels.batch_norm_backward(g, x, y, weight, mean, rstd, act, slope)


@_batch_norm.vjp("x")
def _(g: Any, x: Any, weight: Any, y: Any, saved: Any, eps: float, act: str, slope: float) -> Any:
    if act in ("tanh", "sigmoid"):  # whose slope depends on y, and so on x
        g, act = _act_gradient(g, y, act, slope), "linear"
    return _batch_norm_gx(g, x, weight, eps=eps, act=act, slope=slope, results=saved)


@_batch_norm.vjp("weight")
def _(g: Any, x: Any, y: Any, eps: float, act: str, slope: float) -> Any:
    return (_act_gradient(g, y, act, slope) * batch_norm(x, eps=eps)).sum(axis=_batch_axes(x))


@_batch_norm.vjp("bias")
def _(g: Any, y: Any, act: str, slope: float) -> Any:
    return _act_gradient(g, y, act, slope).sum(axis=_batch_axes(y))


@fused
def _batch_norm_gx(
    gy: Any, x: Any, weight: Any, *, eps: float, act: str, slope: float, results: Any
) -> Any:
    """The gradient of _batch_norm by x, itself an op, of an act that is piecewise linear.

    results: (y, mean, rstd) of the forward pass.
    """
    axes = _batch_axes(x)
    ga = _act_gradient(gy, results[0], act, slope)
    d = x - mean(x, axes, keepdims=True)
    r = 1 / sqrt(mean(d * d, axes, keepdims=True) + eps)
    gx = ga - mean(ga, axes, keepdims=True) - d * r * mean(ga * d * r, axes, keepdims=True)
    return gx * r if weight is None else gx * r * _per_channel(weight, x)


@_batch_norm_gx.fast_forward
def _(gy, x, weight, *, eps, act, slope, results):  # type: ignore[no-untyped-def]
    y, mean, rstd = results
    gx, *sums = kernels.batch_norm_backward(gy, x, y, weight, mean, rstd, act, slope)
    return gx, sums


@_batch_norm_gx.fast_vjp
def _(g, sums, gy, x, weight, *, eps, act, slope, results):  # type: ignore[no-untyped-def]
    (y, mean, rstd), (gweight, gbias) = results, sums
    return kernels.batch_norm_double_backward(
        g, gy, x, y, weight, mean, rstd, gweight, gbias, act, slope
    )


def batch_norm(
    x: Any,
    weight: Any = None,
    bias: Any = None,
    *,
    eps: float = 1e-5,
    act: str = "linear",
    slope: float = 0.01,
    stats: Any = None,
) -> Any:
    """y = act(weight[c] · (x - mean[c]) / sqrt(var[c] + eps) + bias[c])

    x (N,C,...), weight and bias (C,) or None; mean and biased var of this batch, over all axes but
    C.   stats: called once with (mean, 1/sqrt(var + eps)) when they were computed, for running
    averages.   Ioffe & Szegedy 2015, algorithm 1.
    """
    if x.ndim < 2 or x.size == x.shape[1]:
        raise ValueError(f"batch_norm: needs more than one value a channel, got x {x.shape}")
    _check_activation("batch_norm", act, slope)
    return _batch_norm(x, weight, bias, eps=eps, act=act, slope=slope, stats=stats)


def instance_norm(x: Any, weight: Any = None, bias: Any = None, *, eps: float = 1e-5) -> Any:
    """batch_norm with the statistics of each image alone: over H, W for each n and c.

    x (N,C,H,W), weight and bias (C,) or None.   Ulyanov et al. 2016.
    """
    n, c = x.shape[:2]
    if x.size == n * c:
        raise ValueError(f"instance_norm: needs more than one value a channel, got x {x.shape}")
    y = reshape(batch_norm(reshape(x, 1, n * c, *x.shape[2:]), eps=eps), x.shape)
    if weight is not None:
        y = y * _per_channel(weight, x)
    return y if bias is None else y + _per_channel(bias, x)


def layer_norm(
    x: Any, shape: tuple[int, ...], weight: Any = None, bias: Any = None, *, eps: float = 1e-5
) -> Any:
    """y = weight · (x - mean) / sqrt(var + eps) + bias, mean and var over the last axes.

    shape: of those axes, and of weight and bias.   Ba et al. 2016.
    """
    if tuple(x.shape[x.ndim - len(shape) :]) != tuple(shape):
        raise ValueError(f"layer_norm: x {x.shape} does not end in {tuple(shape)}")
    rows = 1
    for n in x.shape[: x.ndim - len(shape)]:
        rows *= n
    y = reshape(batch_norm(reshape(x, 1, rows, -1), eps=eps), x.shape)
    if weight is not None:
        y = y * weight
    return y if bias is None else y + bias


def pixel_norm(x: Any, *, eps: float = 1e-8) -> Any:
    """y = x / sqrt(mean_c x² + eps), over axis 1.   Karras et al. 2018, section 4.2."""
    return x / sqrt(mean(x * x, 1, keepdims=True) + eps)


def dropout(x: Any, p: float = 0.5) -> Any:
    """y = x · mask / (1 - p), the mask 0 with probability p, else 1.   Srivastava et al. 2014.

    0 ≤ p < 1.   The mask comes from minigan.manual_seed's generator.
    """
    if not 0 <= p < 1:
        raise ValueError(f"dropout: p must be in [0, 1), not {p}")
    if p == 0:
        return x
    keep = generator.stream("dropout").uniform(x.shape) >= p
    mask = keep.astype(x.dtype) * x.dtype.type(1 / (1 - p))
    return mul(x, xp_of(array_of(x)).asarray(mask))
