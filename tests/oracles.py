"""What the ops on images should compute, as loops over single elements, in float64.

Slow and literal on purpose: each function is its definition, shares no line with the package, and
was compared with PyTorch 2.13.
"""

import math

import numpy as np


def _two(value):
    return (value, value) if isinstance(value, int) else tuple(value)


def _four(pad):
    """int, (h, w) or ((top, bottom), (left, right)) -> top, bottom, left, right"""
    h, w = _two(pad)
    return (*_two(h), *_two(w))


def _meetings(sizes, out, taps, stride, pad, dilation):
    """Every (p, q, r, s, i, j): output (p,q) reads input (i,j) through tap (r,s)."""
    (sh, sw), (dh, dw), (top, _, left, _) = _two(stride), _two(dilation), _four(pad)
    for p, q, r, s in np.ndindex(*out, *taps):
        i, j = p * sh + r * dh - top, q * sw + s * dw - left
        if 0 <= i < sizes[0] and 0 <= j < sizes[1]:
            yield p, q, r, s, i, j


def out_size(size, taps, stride=1, pad=0, dilation=1):
    """How often the (dilated) window fits, counted by sliding it."""
    (top, bottom, left, right), strides, dilations = _four(pad), _two(stride), _two(dilation)
    counts = []
    for n, extra, k, s, d in zip(
        size, (top + bottom, left + right), taps, strides, dilations, strict=True
    ):
        counts.append(sum(1 for i in range(0, n + extra, s) if i + d * (k - 1) < n + extra))
    return tuple(counts)


def conv2d(x, w, bias=None, *, stride=1, pad=0, dilation=1, groups=1):
    (n, _, h, wd), (k, cg, *taps) = x.shape, w.shape
    out = out_size((h, wd), taps, stride, pad, dilation)
    y = np.zeros((n, k, *out))
    for p, q, r, s, i, j in _meetings((h, wd), out, taps, stride, pad, dilation):
        for m in range(k):
            first = m // (k // groups) * cg  # the first input channel of m's group
            for c in range(cg):
                y[:, m, p, q] += x[:, first + c, i, j] * w[m, c, r, s]
    return y if bias is None else y + bias[:, None, None]


def conv2d_dgrad(gy, w, size, *, stride=1, pad=0, dilation=1, groups=1):
    (n, k, *out), (_, cg, *taps) = gy.shape, w.shape
    gx = np.zeros((n, cg * groups, *size))
    for p, q, r, s, i, j in _meetings(size, out, taps, stride, pad, dilation):
        for m in range(k):
            first = m // (k // groups) * cg
            for c in range(cg):
                gx[:, first + c, i, j] += gy[:, m, p, q] * w[m, c, r, s]
    return gx


def conv2d_wgrad(x, gy, taps, *, stride=1, pad=0, dilation=1, groups=1):
    (_, channels, *size), (_, k, *out) = x.shape, gy.shape
    cg = channels // groups
    gw = np.zeros((k, cg, *taps))
    for p, q, r, s, i, j in _meetings(size, out, taps, stride, pad, dilation):
        for m in range(k):
            first = m // (k // groups) * cg
            for c in range(cg):
                gw[m, c, r, s] += np.dot(x[:, first + c, i, j], gy[:, m, p, q])
    return gw


def conv_transpose2d(x, w, bias=None, *, stride=1, pad=0, output_padding=0, dilation=1, groups=1):
    """Each input pixel stamps x · w onto the output, then the padding is cut off."""
    (n, c, h, wd), (_, kg, r, s) = x.shape, w.shape
    (sh, sw), (dh, dw), (eh, ew) = _two(stride), _two(dilation), _two(output_padding)
    top, bottom, left, right = _four(pad)
    full = np.zeros(
        (
            n,
            kg * groups,
            (h - 1) * sh + dh * (r - 1) + 1 + eh,
            (wd - 1) * sw + dw * (s - 1) + 1 + ew,
        )
    )
    for i, j, a, b, m in np.ndindex(h, wd, r, s, c):
        first = m // (c // groups) * kg
        for k in range(kg):
            full[:, first + k, i * sh + a * dh, j * sw + b * dw] += x[:, m, i, j] * w[m, k, a, b]
    y = full[:, :, top : full.shape[2] - bottom, left : full.shape[3] - right]
    return y if bias is None else y + bias[:, None, None]


def _pool(x, kernel, stride, pad, fill, reduce):
    k = _two(kernel)
    s = k if stride is None else _two(stride)
    top, bottom, left, right = _four(pad)
    x = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)), constant_values=fill)
    p, q = out_size(x.shape[2:], k, s)
    y = np.zeros((*x.shape[:2], p, q))
    for i, j in np.ndindex(p, q):
        window = x[:, :, i * s[0] : i * s[0] + k[0], j * s[1] : j * s[1] + k[1]]
        y[:, :, i, j] = reduce(window, axis=(2, 3))
    return y


def avg_pool2d(x, kernel, stride=None, pad=0):
    return _pool(x, kernel, stride, pad, 0.0, np.mean)


def max_pool2d(x, kernel, stride=None, pad=0):
    return _pool(x, kernel, stride, pad, -np.inf, np.max)


def _between(i, n, to, align_corners):
    """Output i lies at position `at` among n inputs: [(index, weight), (index, weight)]"""
    if align_corners:
        at = i * (n - 1) / (to - 1) if to > 1 else 0.0
    else:
        at = max((i + 0.5) * n / to - 0.5, 0.0)
    low = min(math.floor(at), n - 1)
    return [(low, 1 - (at - low)), (min(low + 1, n - 1), at - low)]


def resize(x, size, mode="nearest", align_corners=False):
    y = np.zeros((*x.shape[:2], *size))
    for i, j in np.ndindex(*size):
        if mode == "nearest":
            row, column = i * x.shape[2] // size[0], j * x.shape[3] // size[1]
            y[:, :, i, j] = x[:, :, row, column]
            continue
        for row, a in _between(i, x.shape[2], size[0], align_corners):
            for column, b in _between(j, x.shape[3], size[1], align_corners):
                y[:, :, i, j] += a * b * x[:, :, row, column]
    return y


def normalised(x, axes, eps):
    return (x - x.mean(axis=axes, keepdims=True)) / np.sqrt(x.var(axis=axes, keepdims=True) + eps)


def per_channel(a, x):
    return a.reshape(-1, *[1] * (x.ndim - 2))


ACTIVATIONS = {
    "linear": lambda x, slope: x,
    "relu": lambda x, slope: x * (x > 0),
    "leaky_relu": lambda x, slope: np.where(x > 0, x, slope * x),
    "tanh": lambda x, slope: (np.exp(x) - np.exp(-x)) / (np.exp(x) + np.exp(-x)),
    "sigmoid": lambda x, slope: 1 / (1 + np.exp(-x)),
}


def bias_act(x, bias=None, *, act="linear", slope=0.01):
    return ACTIVATIONS[act](x if bias is None else x + per_channel(bias, x), slope)


def batch_norm(x, weight=None, bias=None, *, eps=1e-5, act="linear", slope=0.01):
    y = normalised(x, (0, *range(2, x.ndim)), eps)
    y = y if weight is None else y * per_channel(weight, x)
    y = y if bias is None else y + per_channel(bias, x)
    return ACTIVATIONS[act](y, slope)
