"""channels.cu: bias + activation and batch norm, as in reference.py, forward and backward."""

from __future__ import annotations

import math
from typing import Any

from minigan.array import Array
from minigan.kernels.flat import totals
from minigan.kernels.launcher import launch
from minigan.kernels.operands import (
    activation,
    blocks,
    empty,
    expect,
    float32,
    specialised,
    workspace,
)
from minigan.kernels.reference import ChannelSum


def _by_channel(x: Array) -> tuple[int, int, int, dict[str, Any]]:
    """(channels, elements of each, slices of each, definitions) for channels.cu.

    One slice if a block can hold it: 16 elements a thread.
    """
    c, m = x.shape[1], x.size // x.shape[1]
    threads = next((t for t in (256, 512, 1024) if m <= 16 * t), 256)
    defines: dict[str, Any] = {"C": c, "INNER": math.prod(x.shape[2:]), "THREADS": threads}
    return c, m, math.ceil(m / (16 * threads)), defines


def bias_act(x: Array, bias: Array | None, act: str, slope: float) -> Array:
    (x,) = float32("bias_act", x=x)
    if bias is not None:
        (bias,) = float32("bias_act", bias=bias)
        expect("bias_act", "bias", bias, (x.shape[1],))
    y = empty(x, x.shape)
    defines = {"C": x.shape[1], "INNER": math.prod(x.shape[2:]), "BIAS": int(bias is not None)}
    kernel = specialised("bias_act", **defines, **activation(act, slope))
    launch(kernel, blocks(x.size), (256,), (x, bias, y, x.size))
    return y


def _partial_backward(g: Array, y: Array, act: str, slope: float) -> tuple[Array, Array]:
    """(gx, partial sums of gbias: of each slice, of each channel)"""
    g, y = float32("bias_act_backward", g=g, y=y)
    expect("bias_act_backward", "g", g, y.shape)
    c, m, slices, defines = _by_channel(y)
    gx = g if act == "linear" else empty(y, y.shape)
    partials = (workspace if slices > 1 else empty)(y, (slices, c))
    defines |= activation(act, slope) | {"GX": int(gx is not g)}
    args = (g, y, None if gx is g else gx, partials, m)
    launch(specialised("bias_act_backward", **defines), (slices, c), (defines["THREADS"],), args)
    return gx, partials


def bias_act_backward(g: Array, y: Array, act: str, slope: float) -> tuple[Array, Array]:
    gx, partials = _partial_backward(g, y, act, slope)
    return gx, totals([[ChannelSum(partials)]])[0] if len(partials) > 1 else partials[0]


KEPT = 1 << 20  # elements: larger gradients should not be kept until the end for their sums alone


def bias_act_backward_later(
    g: Array, y: Array, act: str, slope: float, with_bias: bool
) -> tuple[Array, Array | ChannelSum | None]:
    """The same with a gbias for `totals`, in fewer launches. Without an activation all is left to
    `totals`, if a block there can sum a channel."""
    if act == "linear":
        if not with_bias:
            return g, None
        if _by_channel(y)[2] == 1 and g.size <= KEPT:
            return g, ChannelSum(g)
    gx, partials = _partial_backward(g, y, act, slope)
    return gx, ChannelSum(partials) if len(partials) > 1 else partials[0]


def batch_norm(
    x: Array, weight: Array | None, bias: Array | None, eps: float, act: str, slope: float
) -> tuple[Array, Array, Array]:
    (x,) = float32("batch_norm", x=x)
    c, m, slices, defines = _by_channel(x)
    for name, a in (("weight", weight), ("bias", bias)):
        if a is not None:
            expect("batch_norm", name, a, (c,))
    weight, bias = (None if a is None else float32("batch_norm", a=a)[0] for a in (weight, bias))
    mean, rstd = (empty(x, (c,)) for _ in range(2))
    y = empty(x, x.shape)
    defines |= activation(act, slope)
    defines |= {"WEIGHT": int(weight is not None), "BIAS": int(bias is not None)}
    grid, block = (slices, c), (defines["THREADS"],)
    if slices == 1:
        once = (x, weight, bias, y, mean, rstd, m, eps)
        launch(specialised("batch_norm", **defines), grid, block, once)
        return y, mean, rstd
    means, squares = (workspace(x, (slices, c)) for _ in range(2))
    launch(specialised("batch_norm_stats", **defines), grid, block, (x, means, squares, m))
    args = (x, weight, bias, means, squares, y, mean, rstd, m, eps)
    launch(specialised("batch_norm_apply", **defines), grid, block, args)
    return y, mean, rstd


def batch_norm_averages(
    mean: Array, rstd: Array, running_mean: Array, running_var: Array, batches: Array,
    momentum: float | None, eps: float, m: int,
) -> None:  # fmt: skip
    op, c = "batch_norm_averages", mean.size
    arrays = {"rstd": rstd, "running_mean": running_mean, "running_var": running_var}
    for name, a in arrays.items():
        expect(op, name, a, (c,))
    args = (mean, *arrays.values(), batches, -1.0 if momentum is None else momentum, eps, m)
    launch(specialised(op, C=c, INNER=1), (1,), (256,), args)


def batch_norm_backward(
    g: Array, x: Array, y: Array, weight: Array | None, mean: Array, rstd: Array, act: str,
    slope: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    g, x, y, mean, rstd = float32("batch_norm_backward", g=g, x=x, y=y, mean=mean, rstd=rstd)
    c, m, slices, defines = _by_channel(x)
    for name, a, shape in (("g", g, x.shape), ("y", y, x.shape), ("mean", mean, (c,))):
        expect("batch_norm_backward", name, a, shape)
    if weight is not None:
        (weight,) = float32("batch_norm_backward", weight=weight)
        expect("batch_norm_backward", "weight", weight, (c,))
    gweight, gbias = (empty(x, (c,)) for _ in range(2))
    gx = empty(x, x.shape)
    defines |= activation(act, slope) | {"WEIGHT": int(weight is not None)}
    grid, block = (slices, c), (defines["THREADS"],)
    if slices == 1:
        args = (g, x, y, weight, mean, rstd, gx, gweight, gbias, m)
        launch(specialised("batch_norm_backward", **defines), grid, block, args)
        return gx, gweight, gbias
    partials = [workspace(x, (slices, c)) for _ in range(2)]
    sums = specialised("batch_norm_backward_sums", **defines)
    launch(sums, grid, block, (g, x, y, mean, rstd, *partials, m))
    args = (g, x, y, weight, mean, rstd, *partials, gx, gweight, gbias, m)
    launch(specialised("batch_norm_backward_apply", **defines), grid, block, args)
    return gx, gweight, gbias


def batch_norm_double_backward(
    ggx: Array, g: Array, x: Array, y: Array, weight: Array | None, mean: Array, rstd: Array,
    gweight: Array, gbias: Array, act: str, slope: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    op = "batch_norm_double_backward"
    c, m, slices, defines = _by_channel(x)
    for name, a in (("ggx", ggx), ("g", g), ("y", y)):
        expect(op, name, a, x.shape)
    for name, a in (("weight", weight), ("mean", mean), ("rstd", rstd), ("gweight", gweight),
                    ("gbias", gbias)):  # fmt: skip
        if a is not None:
            expect(op, name, a, (c,))
    ggx, g, x, y, mean, rstd, gweight, gbias = float32(
        op, ggx=ggx, g=g, x=x, y=y, mean=mean, rstd=rstd, gweight=gweight, gbias=gbias
    )
    if weight is not None:
        (weight,) = float32(op, weight=weight)
    gg, gx, gw = (empty(x, shape) for shape in (x.shape, x.shape, (c,)))
    defines |= activation(act, slope) | {"WEIGHT": int(weight is not None)}
    grid, block = (slices, c), (defines["THREADS"],)
    given, out = (ggx, g, x, y, weight, mean, rstd, gweight, gbias), (gg, gx, gw)
    if slices == 1:
        launch(specialised(op, **defines), grid, block, (*given, *out, m))
        return out
    partials = workspace(x, (3, slices, c))
    args = (ggx, g, x, y, mean, rstd, partials, m)
    launch(specialised(f"{op}_sums", **defines), grid, block, args)
    launch(specialised(f"{op}_apply", **defines), grid, block, (*given, partials, *out, m))
    return out
