"""Convolution, its transpose, pooling and resizing, on images.

x (N,C,H,W)   w (K,C/groups,R,S)   y (N,K,P,Q)      P = (H + pads - dilation·(R-1) - 1)//stride + 1

Convolution is one trilinear form with three partial derivatives: conv2d, conv2d_dgrad (which is
the transposed convolution) and conv2d_wgrad. Each one's vjps are the other two, so three kernels
serve gradients of every order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from minigan import kernels
from minigan.array import Array, xp_of
from minigan.autograd import array_of
from minigan.kernels import conv_out_size
from minigan.ops.arguments import Pads, Pair, pads_of, pair
from minigan.ops.linear import matmul
from minigan.ops.math import broadcast_to
from minigan.ops.norm import then_bias_act
from minigan.ops.shape import pad as pad_axes
from minigan.ops.shape import reshape
from minigan.primitive import primitive


def _geometry(stride: Any, pad: Any, dilation: Any) -> tuple[Pair, Pads, Pair]:
    return pair("stride", stride, 1), pads_of(pad), pair("dilation", dilation, 1)


def _check_channels(op: str, name: str, x: Array, w: Array, channels: int, groups: int) -> None:
    if x.ndim != 4 or w.ndim != 4:
        raise ValueError(f"{op}: {name} {x.shape} and w {w.shape} must have 4 axes each")
    if groups < 1 or w.shape[0] % groups:
        raise ValueError(f"{op}: groups={groups} does not divide w's {w.shape[0]} first channels")
    if x.shape[1] != channels:
        raise ValueError(
            f"{op}: {name} has {x.shape[1]} channels but w expects {channels}: "
            f"{name} {x.shape}, w {w.shape}, groups={groups}"
        )


def _fprop(
    x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair, groups: int, **finish: Any
) -> Array:
    _check_channels("conv2d", "x", x, w, w.shape[1] * groups if w.ndim == 4 else 0, groups)
    p, q = conv_out_size(x.shape[2:], w.shape[2:], stride, pad, dilation)
    if p < 1 or q < 1:
        raise ValueError(
            f"conv2d: the kernel is larger than the padded input: x {x.shape}, w {w.shape}, "
            f"pad={pad}, dilation={dilation}"
        )
    return kernels.conv2d(x, w, stride, pad, dilation, groups, **finish)


@primitive
def _conv2d(x: Array, w: Array, *, stride: Pair, pad: Pads, dilation: Pair, groups: int) -> Array:
    return _fprop(x, w, stride, pad, dilation, groups)


def _dgrad(
    gy: Array, w: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    **finish: Any,
) -> Array:  # fmt: skip
    _check_channels("conv2d_dgrad", "gy", gy, w, w.shape[0], groups)
    expected = conv_out_size(size, w.shape[2:], stride, pad, dilation)
    if gy.shape[2:] != expected:
        raise ValueError(
            f"conv2d_dgrad: an input of size {size} gives an output of {expected}, but gy is "
            f"{gy.shape}: w {w.shape}, stride={stride}, pad={pad}, dilation={dilation}"
        )
    return kernels.conv2d_dgrad(gy, w, size, stride, pad, dilation, groups, **finish)


@primitive
def _conv2d_dgrad(
    gy: Array, w: Array, *, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    return _dgrad(gy, w, size, stride, pad, dilation, groups)


@primitive
def _conv2d_wgrad(
    x: Array, gy: Array, *, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    expected = conv_out_size(x.shape[2:], taps, stride, pad, dilation)
    if groups < 1 or x.shape[1] % groups or gy.shape[1] % groups:
        raise ValueError(
            f"conv2d_wgrad: groups={groups} does not divide the channels of x {x.shape} and gy "
            f"{gy.shape}"
        )
    if gy.shape[2:] != expected or gy.shape[0] != x.shape[0]:
        raise ValueError(
            f"conv2d_wgrad: x {x.shape} and taps {taps} give an output of {expected}, but gy is "
            f"{gy.shape}: stride={stride}, pad={pad}, dilation={dilation}"
        )
    return kernels.conv2d_wgrad(x, gy, taps, stride, pad, dilation, groups)


@_conv2d.vjp("x")
def _(g, w, shape, stride, pad, dilation, groups):  # type: ignore[no-untyped-def]
    return _conv2d_dgrad(
        g, w, size=shape[2:], stride=stride, pad=pad, dilation=dilation, groups=groups
    )


@_conv2d.vjp("w")
def _(g, x, shape, stride, pad, dilation, groups):  # type: ignore[no-untyped-def]
    return _conv2d_wgrad(
        x, g, taps=shape[2:], stride=stride, pad=pad, dilation=dilation, groups=groups
    )


def _gw(x: Array, gy: Array, taps: Pair, how: tuple[Pair, Pads, Pair, int]) -> Any:
    """conv2d_wgrad, on a GPU perhaps in slices that the engine adds up later."""
    stride, pad, dilation, groups = how
    if kernels.costly_launches(x):
        return kernels.conv2d_wgrad(x, gy, taps, *how, later=True)
    return _conv2d_wgrad(x, gy, taps=taps, stride=stride, pad=pad, dilation=dilation, groups=groups)


@_conv2d.fast_vjp
def _(g, y, x, w, *, stride, pad, dilation, groups, wanted):  # type: ignore[no-untyped-def]
    gx, how = None, (stride, pad, dilation, groups)
    if 0 in wanted:
        gx = _conv2d_dgrad(
            g, w, size=x.shape[2:], stride=stride, pad=pad, dilation=dilation, groups=groups
        )
    return gx, _gw(x, g, w.shape[2:], how) if 1 in wanted else None


@_conv2d_dgrad.vjp("gy")
def _(g, w, stride, pad, dilation, groups):  # type: ignore[no-untyped-def]
    return _conv2d(g, w, stride=stride, pad=pad, dilation=dilation, groups=groups)


@_conv2d_dgrad.vjp("w")
def _(g, gy, shape, stride, pad, dilation, groups):  # type: ignore[no-untyped-def]
    return _conv2d_wgrad(
        g, gy, taps=shape[2:], stride=stride, pad=pad, dilation=dilation, groups=groups
    )


@_conv2d_dgrad.fast_vjp
def _(g, y, gy, w, *, size, stride, pad, dilation, groups, wanted):  # type: ignore[no-untyped-def]
    ggy, how = None, (stride, pad, dilation, groups)
    if 0 in wanted:
        ggy = _conv2d(g, w, stride=stride, pad=pad, dilation=dilation, groups=groups)
    return ggy, _gw(g, gy, w.shape[2:], how) if 1 in wanted else None


@_conv2d_wgrad.vjp("x")
def _(g, gy, shape, stride, pad, dilation, groups):  # type: ignore[no-untyped-def]
    return _conv2d_dgrad(
        gy, g, size=shape[2:], stride=stride, pad=pad, dilation=dilation, groups=groups
    )


@_conv2d_wgrad.vjp("gy")
def _(g, x, stride, pad, dilation, groups):  # type: ignore[no-untyped-def]
    return _conv2d(x, g, stride=stride, pad=pad, dilation=dilation, groups=groups)


def conv2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    pad: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    act: str = "linear",
    slope: float = 0.01,
) -> Any:
    """y[n,k,p,q] = act(Σ_{c,r,s} x[n,c,p·stride+r·dilation-pad,...] · w[k,c,r,s] + bias[k])

    x (N,C,H,W), w (K,C/groups,R,S), bias (K,) -> y (N,K,P,Q).   stride, dilation: int or (h, w).
    pad: int, (h, w) or ((top, bottom), (left, right)).   Cross-correlation, as in PyTorch.
    act, slope: see bias_act.
    """
    s, p, d = _geometry(stride, pad, dilation)
    attrs = {"stride": s, "pad": p, "dilation": d, "groups": groups}
    return then_bias_act(_conv2d, (x, w), attrs, _fprop, bias, w.shape[0], act, slope)


def conv2d_dgrad(
    gy: Any,
    w: Any,
    size: Any,
    *,
    stride: Any = 1,
    pad: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """The gradient of conv2d by x: gy (N,K,P,Q), w (K,C/groups,R,S) -> gx (N,C,*size)

    gx[n,c,h,w] = Σ gy[n,k,p,q] · w[k,c,r,s] over p·stride + r·dilation - pad = h, and so on.
    """
    s, p, d = _geometry(stride, pad, dilation)
    return _conv2d_dgrad(
        gy, w, size=pair("size", size, 1), stride=s, pad=p, dilation=d, groups=groups
    )


def conv2d_wgrad(
    x: Any,
    gy: Any,
    taps: Any,
    *,
    stride: Any = 1,
    pad: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Any:
    """The gradient of conv2d by w: x (N,C,H,W), gy (N,K,P,Q) -> gw (K,C/groups,*taps)

    gw[k,c,r,s] = Σ_{n,p,q} x[n,c,p·stride+r·dilation-pad,...] · gy[n,k,p,q]
    """
    s, p, d = _geometry(stride, pad, dilation)
    return _conv2d_wgrad(
        x, gy, taps=pair("taps", taps, 1), stride=s, pad=p, dilation=d, groups=groups
    )


def conv_transpose2d(
    x: Any,
    w: Any,
    bias: Any = None,
    *,
    stride: Any = 1,
    pad: Any = 0,
    output_padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    act: str = "linear",
    slope: float = 0.01,
) -> Any:
    """The transposed convolution: act(conv2d_dgrad + bias), with x in the place of gy.

    x (N,C,H,W), w (C,K/groups,R,S), bias (K,) -> y (N,K,P,Q),
    P = (H-1)·stride - pads + dilation·(R-1) + output_padding + 1.   output_padding < stride:
    rows and columns added at the bottom and right, as in PyTorch.   act, slope: see bias_act.
    """
    s, p, d = _geometry(stride, pad, dilation)
    extra = pair("output_padding", output_padding, 0)
    _check_channels("conv_transpose2d", "x", x, w, len(w), groups)
    size = [0, 0]
    for i in (0, 1):
        if extra[i] >= s[i]:
            raise ValueError(
                f"conv_transpose2d: output_padding={output_padding} must be below stride={stride}"
            )
        taps = d[i] * (w.shape[2 + i] - 1) + 1
        size[i] = (x.shape[2 + i] - 1) * s[i] - p[i][0] - p[i][1] + taps + extra[i]
    if size[0] < 1 or size[1] < 1:
        raise ValueError(f"conv_transpose2d: x {x.shape} and pad={pad} leave no output")
    attrs = {"size": (size[0], size[1]), "stride": s, "pad": p, "dilation": d, "groups": groups}
    channels = w.shape[1] * groups
    return then_bias_act(_conv2d_dgrad, (x, w), attrs, _dgrad, bias, channels, act, slope)


# ---------------------------------------------------------------------------------------- pooling


def _windows(x: Array, kernel: Pair, stride: Pair, out: Pair) -> Any:
    """The view of x (N,C,H,W) that each of the R·S window positions reads, (N,C,P,Q) each."""
    for r in range(kernel[0]):
        for s in range(kernel[1]):
            rows = slice(r, r + stride[0] * (out[0] - 1) + 1, stride[0])
            columns = slice(s, s + stride[1] * (out[1] - 1) + 1, stride[1])
            yield x[:, :, rows, columns]


@primitive
def _sum_pool2d(x: Array, *, kernel: Pair, stride: Pair) -> Array:
    out = conv_out_size(x.shape[2:], kernel, stride, ((0, 0), (0, 0)), (1, 1))
    y = xp_of(x).zeros((*x.shape[:2], *out), x.dtype)
    for window in _windows(x, kernel, stride, out):
        y += window
    return y


@primitive
def _sum_unpool2d(gy: Array, *, size: Pair, kernel: Pair, stride: Pair) -> Array:
    gx = xp_of(gy).zeros((*gy.shape[:2], *size), gy.dtype)
    for window in _windows(gx, kernel, stride, gy.shape[2:]):
        window += gy
    return gx


@_sum_pool2d.vjp("x")
def _(g: Any, shape: Any, kernel: Pair, stride: Pair) -> Any:
    return _sum_unpool2d(g, size=shape[2:], kernel=kernel, stride=stride)


@_sum_unpool2d.vjp("gy")
def _(g: Any, kernel: Pair, stride: Pair) -> Any:
    return _sum_pool2d(g, kernel=kernel, stride=stride)


def _pool_geometry(op: str, x: Any, kernel: Any, stride: Any, pad: Any) -> tuple[Pair, Pair, Pads]:
    k = pair("kernel", kernel, 1)
    s = k if stride is None else pair("stride", stride, 1)
    p = pads_of(pad)
    if any(max(p[i]) * 2 > k[i] for i in (0, 1)):
        raise ValueError(f"{op}: pad={pad} must be at most half of the kernel {kernel}")
    if min(conv_out_size(x.shape[2:], k, s, p, (1, 1))) < 1:
        raise ValueError(f"{op}: the kernel {kernel} is larger than the padded x {x.shape}")
    return k, s, p


def avg_pool2d(x: Any, kernel: Any, stride: Any = None, pad: Any = 0) -> Any:
    """y = mean of each window of x, the zeros of the padding counted (PyTorch's default).

    x (N,C,H,W) -> y (N,C,P,Q).   stride: by default the kernel's size.
    """
    k, s, p = _pool_geometry("avg_pool2d", x, kernel, stride, pad)
    if any(p[0]) or any(p[1]):
        x = pad_images(x, p)
    return _sum_pool2d(x, kernel=k, stride=s) * (1.0 / (k[0] * k[1]))


@primitive
def _gather_pixels(x: Array, *, pixels: Array) -> Array:
    """y[n,c,...] = x[n,c].flat[pixels[n,c,...]]"""
    flat = x.reshape(*x.shape[:2], -1)
    rows = pixels.reshape(*x.shape[:2], -1)
    return xp_of(x).take_along_axis(flat, rows, axis=2).reshape(pixels.shape)


@primitive
def _scatter_pixels(gy: Array, *, pixels: Array, size: Pair) -> Array:
    """The transpose: each gy[n,c,...] added to gx[n,c].flat[pixels[n,c,...]]."""
    xp = xp_of(gy)
    n, c = gy.shape[:2]
    area = size[0] * size[1]
    base = xp.arange(n * c).reshape(n, c, 1, 1) * area
    gx = xp.zeros(n * c * area, gy.dtype)
    xp.add.at(gx, (pixels + base).ravel(), gy.ravel())
    return gx.reshape(n, c, *size)


@_gather_pixels.vjp("x")
def _(g: Any, shape: Any, pixels: Array) -> Any:
    return _scatter_pixels(g, pixels=pixels, size=shape[2:])


@_scatter_pixels.vjp("gy")
def _(g: Any, pixels: Array) -> Any:
    return _gather_pixels(g, pixels=pixels)


def max_pool2d(x: Any, kernel: Any, stride: Any = None, pad: Any = 0) -> Any:
    """y = max of each window of x; the first of equal elements takes the gradient (PyTorch's rule).

    x (N,C,H,W) -> y (N,C,P,Q).   stride: by default the kernel's size.   Padding never wins.
    """
    k, s, p = _pool_geometry("max_pool2d", x, kernel, stride, pad)
    data = array_of(x)
    xp = xp_of(data)
    h, w = data.shape[2:]
    out = conv_out_size((h, w), k, s, p, (1, 1))
    padded = xp.full((*data.shape[:2], h + sum(p[0]), w + sum(p[1])), -xp.inf, data.dtype)
    padded[:, :, p[0][0] : p[0][0] + h, p[1][0] : p[1][0] + w] = data
    first = xp.stack(list(_windows(padded, k, s, out))).argmax(axis=0)
    rows = xp.arange(out[0])[:, None] * s[0] + first // k[1] - p[0][0]
    columns = xp.arange(out[1]) * s[1] + first % k[1] - p[1][0]
    return _gather_pixels(x, pixels=rows * w + columns)


# --------------------------------------------------------------------------------------- resizing


def pad_images(x: Any, pads: Any, mode: str = "zero") -> Any:
    """x (N,C,H,W) padded by int, (h, w) or ((top, bottom), (left, right)), zero or reflect."""

    return pad_axes(x, ((0, 0), (0, 0), *pads_of(pads)), mode)


def upsample_nearest(x: Any, factor: int) -> Any:
    """Each pixel repeated factor × factor times: x (N,C,H,W) -> y (N,C,H·factor,W·factor)"""
    n, c, h, w = x.shape
    y = reshape(x, n, c, h, 1, w, 1)
    y = broadcast_to(y, (n, c, h, factor, w, factor))
    return reshape(y, n, c, h * factor, w * factor)


def _interpolation(size: int, to: int, mode: str, align_corners: bool, dtype: Any) -> np.ndarray:
    """The matrix A (to,size) with y = A x along one axis, as PyTorch's interpolate."""
    a = np.zeros((to, size), dtype)
    i = np.arange(to)
    if mode == "nearest":
        a[i, i * size // to] = 1
        return a
    if align_corners:
        at = i * ((size - 1) / (to - 1)) if to > 1 else np.zeros(1)
    else:
        at = np.maximum((i + 0.5) * (size / to) - 0.5, 0)
    low = np.minimum(at.astype(np.int64), size - 1)
    weight = at - low
    a[i, low] += 1 - weight
    a[i, np.minimum(low + 1, size - 1)] += weight
    return a


def resize(x: Any, size: Any, mode: str = "nearest", align_corners: bool = False) -> Any:
    """x (N,C,H,W) resampled to (N,C,*size), as PyTorch's interpolate without antialiasing.

    mode: "nearest", y[i] = x[floor(i·H/size)], or "bilinear" between pixel centres, or between
    the corner pixels' centres if align_corners.   Linear and separable: y = A_h x A_wᵀ.
    """
    if mode not in ("nearest", "bilinear"):
        raise ValueError(f"resize: mode must be 'nearest' or 'bilinear', not {mode!r}")
    h, w = pair("size", size, 1)
    if mode == "nearest" and h % x.shape[2] == 0 and h // x.shape[2] * x.shape[3] == w:
        return upsample_nearest(x, h // x.shape[2])
    xp = xp_of(array_of(x))
    rows = xp.asarray(_interpolation(x.shape[2], h, mode, align_corners, x.dtype))
    columns = xp.asarray(_interpolation(x.shape[3], w, mode, align_corners, x.dtype))
    return matmul(matmul(rows, x), columns.T)
