"""The kernel contract on NumPy and its BLAS alone: any float dtype, any groups, nothing compiled.

A convolution is a matrix product over the patches of x (im2col: "image to columns"):

    cols (G, C/G·R·S, N·P·Q)   w (G, K/G, C/G·R·S)

    conv2d        y    = w · cols
    conv2d_dgrad  gx   = col2im(wᵀ · g)
    conv2d_wgrad  gw   = g · colsᵀ
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from minigan.kernels import reference
from minigan.kernels.reference import Pads, Pair, adam, conv_out_size

__all__ = [
    "adam",
    "batch_norm",
    "batch_norm_backward",
    "batch_norm_double_backward",
    "bce_with_logits",
    "bias_act",
    "bias_act_backward",
    "conv2d",
    "conv2d_dgrad",
    "conv2d_wgrad",
    "logistic_d",
    "logit_figures",
    "matmul",
]

Array = Any

bias_act = reference.bias_act
bce_with_logits = reference.bce_with_logits
logistic_d = reference.logistic_d
logit_figures = reference.logit_figures
bias_act_backward = reference.bias_act_backward
batch_norm = reference.batch_norm
batch_norm_backward = reference.batch_norm_backward
batch_norm_double_backward = reference.batch_norm_double_backward


def _im2col(x: Array, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int) -> Array:
    """x (N,C,H,W) -> cols (G, C/G·R·S, N·P·Q)"""
    n, c, h, w = x.shape
    p, q = conv_out_size((h, w), taps, stride, pad, dilation)
    if any(pad[0]) or any(pad[1]):
        (top, bottom), (left, right) = pad
        padded = np.zeros((n, c, h + top + bottom, w + left + right), x.dtype)
        padded[:, :, top : top + h, left : left + w] = x
        x = padded
    sn, sc, sh, sw = x.strides
    patches = np.lib.stride_tricks.as_strided(
        x,
        (c, *taps, n, p, q),
        (sc, sh * dilation[0], sw * dilation[1], sn, sh * stride[0], sw * stride[1]),
        writeable=False,
    )
    return patches.reshape(groups, c // groups * taps[0] * taps[1], n * p * q)


def _col2im(cols: Array, size: Pair, taps: Pair, stride: Pair, pad: Pads, dilation: Pair) -> Array:
    """cols (C,R,S,N,P,Q) -> gx (N,C,H,W), each patch element added where im2col had read it."""
    c, _, _, n, p, q = cols.shape
    (top, bottom), (left, right) = pad
    gx = np.zeros((n, c, size[0] + top + bottom, size[1] + left + right), cols.dtype)
    by_channel = gx.transpose(1, 0, 2, 3)
    for r in range(taps[0]):
        for s in range(taps[1]):
            i, j = r * dilation[0], s * dilation[1]
            rows = slice(i, i + stride[0] * (p - 1) + 1, stride[0])
            columns = slice(j, j + stride[1] * (q - 1) + 1, stride[1])
            by_channel[:, :, rows, columns] += cols[:, r, s]
    return np.ascontiguousarray(gx[:, :, top : top + size[0], left : left + size[1]])


def _columns_of(g: Array, groups: int) -> Array:
    """g (N,K,P,Q) -> (G, K/G, N·P·Q)"""
    n, k, p, q = g.shape
    return g.transpose(1, 0, 2, 3).reshape(groups, k // groups, n * p * q)


def conv2d(x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair, groups: int) -> Array:
    k, _, *taps = w.shape
    p, q = conv_out_size(x.shape[2:], (taps[0], taps[1]), stride, pad, dilation)
    cols = _im2col(x, (taps[0], taps[1]), stride, pad, dilation, groups)
    y = w.reshape(groups, k // groups, cols.shape[1]) @ cols
    return np.ascontiguousarray(y.reshape(k, len(x), p, q).transpose(1, 0, 2, 3))


def conv2d_dgrad(
    g: Array, w: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    n, k, p, q = g.shape
    _, c, *taps = w.shape
    wt = w.reshape(groups, k // groups, c * prod(taps)).transpose(0, 2, 1)
    cols = (wt @ _columns_of(g, groups)).reshape(groups * c, *taps, n, p, q)
    return _col2im(cols, size, (taps[0], taps[1]), stride, pad, dilation)


def conv2d_wgrad(
    x: Array, g: Array, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    k, c = g.shape[1], x.shape[1]
    cols = _im2col(x, taps, stride, pad, dilation, groups)
    gw = _columns_of(g, groups) @ cols.transpose(0, 2, 1)
    return gw.reshape(k, c // groups, *taps)


def matmul(x: Array, b: Array) -> Array:
    return x @ b
