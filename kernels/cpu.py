"""The kernel contract on a CPU's cores: compiled loops, on shards of the batch.

This file chooses: which loops compute a convolution, in how many shards, and what they are handed.

    conv2d          winograd.py for wide layers of 4 × 4 taps and stride 2; else the product of
                    patches and filters, convolution.py
    conv2d_dgrad    the same; phase by phase, or by col2im where there are few channels
    conv2d_wgrad    the same; each shard's sum apart, added in order
    matmul          gemm.py

Results have the contract's shapes, and channels last in memory: an image (N,C,H,W) is a view of an
array (N,H,W,C), in which a pixel's channels are neighbours and a matrix of pixels needs no copy.
Arrays in any other order are taken too, and copied first.

This is for float32. Other dtypes, grouped convolutions, and all where Numba is missing, run as in
plain.py.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from minigan.kernels import layout, loading, plain, sharing, threads
from minigan.kernels.geometry import geometry
from minigan.kernels.reference import Pads, Pair

Array = Any


_FLOAT32 = np.dtype(np.float32)


def _fast(*arrays: Array | None) -> bool:
    """Whether the compiled loops can work on these arrays: float32, some elements."""
    for a in arrays:
        if a is not None and (not a.size or (a.dtype is not _FLOAT32 and a.dtype != _FLOAT32)):
            return False
    return bool(loading.loops) or (loading.loops is None and loading.load())


# ------------------------------------------------------------------------------------ convolution


def _packed(w: Array, n: int, n_step: int, outer: int, taps: int) -> Array:
    """w, flat, as the panels of a matrix of n columns: see gemm.pack."""
    panels = np.empty(outer * taps * layout.whole(n), np.float32)
    arguments = w, panels, n, n_step, outer, taps
    sharing.share(
        loading.gemm.pack, arguments, layout.whole(n) // loading.gemm.LANES, 2 * panels.size
    )
    return panels


_IN_LOOPS = ("linear", "relu", "leaky_relu")  # NumPy's vectorised tanh and exp do the others


def _ending(k: int, bias: Array | None, act: str, slope: float) -> tuple[Array, int, int, float]:
    """What the loops take of bias and activation: (bias, whether there is any, act, slope)."""
    code = loading.loops.ACTS[act] if act in _IN_LOOPS else loading.loops.LINEAR
    b = np.zeros(k, np.float32) if bias is None else layout.dense(bias)
    return b, int(bias is not None or code != loading.loops.LINEAR), code, slope


def _filters(w: Array) -> Array:
    """w (K,C,R,S) -> (K, R·S·C)"""
    k, c, r, s = w.shape
    if c == 1 or r * s == 1:
        return layout.dense(w).reshape(k, -1)
    return layout.transposed(layout.dense(w), k, c, r * s).reshape(k, -1)


def _columns(b: Array) -> tuple[Array, int, int]:
    """b (depth,n) as the loops read it: flat, and two numbers, see gemm.product."""
    depth, n = b.shape
    if b.T.flags.c_contiguous and not b.flags.c_contiguous:
        return (
            _packed(layout.dense(b.T).reshape(-1), n, depth, 1, depth),
            depth,
            int(loading.gemm.LANES),
        )
    if n % loading.gemm.LANES:
        whole = np.empty((depth, layout.whole(n)), np.float32)
        whole[:, :n] = b
        whole[:, n:] = 0
        b = whole
    return layout.dense(b).reshape(-1), 1, b.shape[1]


def conv2d(
    x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    bias: Array | None = None, act: str = "linear", slope: float = 0.0,
) -> Array:  # fmt: skip
    if groups != 1 or not _fast(x, w, bias):
        y = plain.conv2d(x, w, stride, pad, dilation, groups)
        return bias_act(y, bias, act, slope)
    n, c, *size = x.shape
    k, _, r, s = w.shape
    z = geometry(n, (size[0], size[1]), c, (r, s), stride, pad, dilation, k)
    if z.winograd:
        ending = _ending(k, bias, act, slope)
        y = loading.winograd.convolve(x, w, z.out, pad, False, z.work, ending)
        _finish(y, act)
        return layout.images(y, (n, k, *z.out))
    pixels, numbers, (how, area) = z.pixels, z.numbers, z.patches
    images = layout.channels_last(x).reshape(-1)
    flat = layout.dense(w).reshape(-1)
    outer, taps = (c, r * s) if r * s > 1 else (1, c)
    panels = _packed(flat, k, c * r * s, outer, taps)
    y = np.empty((n * pixels, k), np.float32)
    piece = z.piece(pixels)
    space = sharing.space(
        sharing.count(n, z.work),
        piece * area,
        2 * (piece * pixels + loading.gemm.ROWS),
    )
    arguments = images, panels, y, *_ending(k, bias, act, slope), how, piece, *space, numbers
    sharing.share(loading.convolution.conv2d, arguments, n, z.work)
    _finish(y, act)
    return layout.images(y, (n, k, *z.out))


def conv2d_dgrad(
    g: Array, w: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int,
    bias: Array | None = None, act: str = "linear", slope: float = 0.0,
) -> Array:  # fmt: skip
    if groups != 1 or not _fast(g, w, bias):
        gx = plain.conv2d_dgrad(g, w, size, stride, pad, dilation, groups)
        return bias_act(gx, bias, act, slope)
    n, k = g.shape[:2]
    _, c, r, s = w.shape
    z = geometry(n, size, c, (r, s), stride, pad, dilation, k)
    if z.winograd:
        ending = _ending(c, bias, act, slope)
        gx = loading.winograd.convolve(g, w, size, pad, True, z.work, ending)
        _finish(gx, act)
        return layout.images(gx, (n, c, *size))
    numbers, image = z.numbers, prod(size)
    gx = np.empty((n * image, c), np.float32)
    ending = _ending(c, bias, act, slope)
    if z.phases:
        panels = np.empty(r * s * k * layout.whole(c), np.float32)
        filters = layout.dense(w).reshape(-1), panels, numbers, k
        sharing.share(
            loading.convolution.pack_phases,
            filters,
            layout.whole(c) // loading.gemm.LANES,
            2 * panels.size,
        )
        piece = z.piece(image)
        rows = 2 * (piece * image + loading.gemm.ROWS)
        space = sharing.space(sharing.count(n, z.work), piece * z.framed, rows)
        arguments = layout.rows(g).reshape(-1), panels, gx, *ending, piece, *space, numbers, k
        sharing.share(loading.convolution.conv2d_dgrad, arguments, n, z.work)
    elif z.direct:
        wide = None if bias is None else np.tile(bias, r * s)
        return layout.images(
            matmul(layout.rows(g), _filters(w), wide, act, slope).reshape(-1, c), (n, c, *size)
        )
    else:
        cols = matmul(layout.rows(g), _filters(w)).reshape(-1)
        sharing.share(
            loading.convolution.col2im, (cols, gx, *ending, numbers), n, cols.size + gx.size
        )
    _finish(gx, act)
    return layout.images(gx, (n, c, *size))


def conv2d_wgrad(
    x: Array, g: Array, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    if groups != 1 or not _fast(x, g):
        return plain.conv2d_wgrad(x, g, taps, stride, pad, dilation, groups)
    n, c, *size = x.shape
    k = g.shape[1]
    z = geometry(n, (size[0], size[1]), c, taps, stride, pad, dilation, k)
    if z.winograd:
        return loading.winograd.wgrad(x, g, pad, z.work)
    pixels, numbers, (how, area) = z.pixels, z.numbers, z.whole_patches
    images, flat = layout.channels_last(x).reshape(-1), layout.rows(g).reshape(-1)
    runs = 1 if how == loading.convolution.LAID_OUT else taps[0]
    length = z.depth // runs
    shards, piece = sharing.count(n, z.work), z.piece(pixels)
    sums = np.empty((shards, k * runs * layout.whole(length)), np.float32)
    space = sharing.space(shards, piece * area, piece * pixels)
    arguments: tuple[Any, ...] = images, flat, sums, how, piece, *space, numbers, k
    sharing.share(loading.convolution.conv2d_wgrad, arguments, n, z.work)
    gw = np.empty((k, c, *taps), np.float32)
    arguments = sums.reshape(-1), gw.reshape(-1), shards, k, runs, length, c
    sharing.share(loading.convolution.add_sums, arguments, k, 2 * sums.size)
    return gw


_blas_matmul = threads.one_blas_thread(np.matmul)


def matmul(
    x: Array, b: Array, bias: Array | None = None, act: str = "linear", slope: float = 0.0
) -> Array:
    """act(x @ b + bias), the rows or the columns of the result shared among the threads."""
    if x.ndim != 2 or b.ndim != 2 or not _fast(x, b, bias):
        return bias_act(_blas_matmul(x, b), bias, act, slope)
    (m, depth), n = x.shape, b.shape[1]
    if 1 in (m, depth, n) and m * depth * n <= sharing.LEAST:  # tiles would be almost empty
        return _with_vector(x, b, bias, act, slope)
    y = np.empty((m, n), np.float32)
    work = m * n * depth // sharing.PRODUCTS
    in_order = x.flags.c_contiguous
    if not in_order and x.flags.f_contiguous:
        outer = layout.dense(x.T).reshape(-1), m, layout.dense(b).reshape(-1), y
        sharing.share(loading.gemm.matmul_outer, outer, m, work)
        return y if bias is None and act == "linear" else bias_act(y, bias, act, slope)
    left, ending = layout.dense(x).reshape(-1), _ending(n, bias, act, slope)
    in_order = b.flags.c_contiguous
    if m <= n and (in_order or b.flags.f_contiguous):
        right = layout.dense(b if in_order else b.T).reshape(-1)
        panels = layout.whole(n) // loading.gemm.LANES
        columns = left, depth, right, int(not in_order), y, *ending
        sharing.share(loading.gemm.matmul_columns, columns, panels, work)
    else:
        sharing.share(loading.gemm.matmul, (left, depth, *_columns(b), y, *ending), m, work)
    _finish(y, act)
    return y


def _with_vector(x: Array, b: Array, bias: Array | None, act: str, slope: float) -> Array:
    """The same, where a row or a column is all that x or b have."""
    if x.shape[1] == 1:
        y = x * b
    else:
        y = _blas_matmul(x, b)
    if act != "linear":
        return bias_act(y, bias, act, slope)
    return y if bias is None else np.add(y, bias, out=y)


# --------------------------------------------------------------------------- bias and activation


def bias_act(x: Array, bias: Array, act: str, slope: float) -> Array:
    if not _fast(x, bias):
        return plain.bias_act(x, bias, act, slope)
    rows = layout.rows(x)
    bias = np.zeros(x.shape[1], np.float32) if bias is None else layout.dense(bias)
    y = np.empty_like(rows)
    arguments = rows, bias, y, loading.loops.ACTS[act], slope
    sharing.share(loading.loops.bias_act, arguments, len(rows), x.size)
    _finish(y, act)
    return layout.images(y, x.shape)


def _finish(y: Array, act: str) -> None:
    """Apply, in place, the activations that the loops leave to NumPy."""
    if act == "tanh":
        np.tanh(y, out=y)
    elif act == "sigmoid":
        np.negative(y, out=y)
        with np.errstate(over="ignore"):  # 1 / (1 + ∞) is 0, as it should be
            np.exp(y, out=y)
        y += np.float32(1)
        np.reciprocal(y, out=y)


def bias_act_backward(g: Array, y: Array, act: str, slope: float) -> tuple[Array, Array]:
    if not _fast(g, y):
        return plain.bias_act_backward(g, y, act, slope)
    g_rows = layout.rows(g)
    sums = sharing.sums(g.shape[1])
    gx, job = g, loading.loops.column_sums
    arguments: tuple[Any, ...] = g_rows, sums
    if act != "linear":
        gx_rows = np.empty_like(g_rows)
        gx, job = layout.images(gx_rows, g.shape), loading.loops.bias_act_backward
        arguments = g_rows, layout.rows(y), gx_rows, sums, loading.loops.ACTS[act], slope
    shards = sharing.share(job, arguments, len(g_rows), g.size)
    return gx, _added(sums, shards, g.shape[1])


def _added(sums: Array, shards: int, channels: int) -> Array:
    """The shards' `sharing.sums`, added up."""
    total = np.empty(channels, np.float32)
    threads.run(loading.loops.add_shards, (sums, shards, total), 1, 1)
    return total


# ------------------------------------------------------------------------------------- batch norm


def batch_norm(
    x: Array, weight: Array, bias: Array, eps: float, act: str, slope: float
) -> tuple[Array, Array, Array]:
    if not _fast(x, weight, bias):
        return plain.batch_norm(x, weight, bias, eps, act, slope)
    rows = layout.rows(x)
    m, c = rows.shape
    sums = sharing.sums(c), sharing.sums(c)
    shards = sharing.share(loading.loops.moments, (rows, *sums), m, x.size)
    mean, rstd = np.empty(c, np.float32), np.empty(c, np.float32)
    threads.run(loading.loops.statistics, (*sums, shards, m, eps, mean, rstd), 1, 1)
    scale = rstd if weight is None else rstd * weight
    bias = np.zeros(c, np.float32) if bias is None else layout.dense(bias)
    y = np.empty_like(rows)
    arguments = rows, mean, scale, bias, y, loading.loops.ACTS[act], slope
    sharing.share(loading.loops.normalise, arguments, m, x.size)
    _finish(y, act)
    return layout.images(y, x.shape), mean, rstd


def batch_norm_backward(
    g: Array, x: Array, y: Array, weight: Array, mean: Array, rstd: Array, act: str, slope: float
) -> tuple[Array, Array, Array]:
    if not _fast(g, x, y, weight, mean, rstd):
        return plain.batch_norm_backward(g, x, y, weight, mean, rstd, act, slope)
    g_rows, x_rows, y_rows = layout.rows(g), layout.rows(x), layout.rows(y)
    mean, rstd = layout.dense(mean), layout.dense(rstd)
    m, c = x_rows.shape
    code = loading.loops.ACTS[act]
    sums = sharing.sums(c), sharing.sums(c)
    arguments: tuple[Any, ...] = g_rows, x_rows, y_rows, mean, rstd, *sums, code, slope
    shards = sharing.share(loading.loops.batch_norm_sums, arguments, m, x.size)
    gbias, gweight = (_added(a, shards, c) for a in sums)
    scale = rstd if weight is None else rstd * weight
    means = gbias / np.float32(m), gweight / np.float32(m)
    gx = np.empty_like(g_rows)
    arguments = g_rows, x_rows, y_rows, mean, rstd, scale, *means, gx, code, slope
    sharing.share(loading.loops.batch_norm_gradient, arguments, m, x.size)
    return layout.images(gx, x.shape), gweight, gbias


def batch_norm_double_backward(
    ggx: Array, g: Array, x: Array, y: Array, weight: Array, mean: Array, rstd: Array,
    gweight: Array, gbias: Array, act: str, slope: float,
) -> tuple[Array, Array, Array]:  # fmt: skip
    channels = (mean, rstd, gweight, gbias)
    if not _fast(ggx, g, x, y, weight, *channels):
        args = (ggx, g, x, y, weight, *channels, act, slope)
        return plain.batch_norm_double_backward(*args)
    rows = [layout.rows(a) for a in (ggx, g, x, y)]
    mean, rstd, gweight, gbias = map(layout.dense, channels)
    m, c = rows[0].shape
    code = loading.loops.ACTS[act]
    sums = sharing.sums(c), sharing.sums(c), sharing.sums(c)
    arguments = *rows, mean, rstd, *sums, code, slope
    shards = sharing.share(loading.loops.batch_norm_double_sums, arguments, m, 2 * x.size)
    e_ggx, e_ggxx, e_product = (a[:shards, :c].sum(axis=0) / m for a in sums)
    e_ga, e_gax = gbias / np.float64(m), gweight / np.float64(m)
    both = e_product - e_ggx * e_ga
    scale = rstd if weight is None else rstd * weight
    coefficients = [
        a.astype(np.float32) for a in (e_ggx, e_ggxx, e_ga, e_gax, both - 3 * e_ggxx * e_gax)
    ]
    gg, gx = (np.empty_like(rows[0]) for _ in range(2))
    arguments = *rows, mean, rstd, scale, *coefficients, gg, gx, code, slope
    sharing.share(loading.loops.batch_norm_double_gradient, arguments, m, 2 * x.size)
    gw = (m * rstd * (both - e_ggxx * e_gax)).astype(np.float32)
    return layout.images(gg, x.shape), layout.images(gx, x.shape), gw


# ------------------------------------------------------------------------------------------- Adam


def adam(
    p: Array, g: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int,
) -> None:  # fmt: skip
    arrays = (p, layout.dense(g), m, v)
    if not _fast(*arrays) or not all(a.ndim == 1 and a.flags.c_contiguous for a in arrays):
        return plain.adam(p, g, m, v, lr, beta1, beta2, eps, weight_decay, step)
    rate, root = lr / (1 - beta1**step), 1 / (1 - beta2**step)
    options = (beta1, beta2, rate, root, eps, 1 - lr * weight_decay)
    sharing.share(loading.loops.adam, (*arrays, *options), p.size, 4 * p.size)


# ----------------------------------------------------------------------------------------- logits


def bce_with_logits(x: Array, target: float) -> tuple[Array, Array]:
    if not _fast(x):
        return plain.bce_with_logits(x, target)
    loss, gx = np.empty(1, np.float32), np.empty(x.size, np.float32)
    threads.run(
        loading.loops.bce_with_logits, (layout.dense(x).reshape(-1), float(target), loss, gx), 1, 1
    )
    return loss.reshape(()), gx.reshape(x.shape)


def logistic_d(real: Array, fake: Array, target: float) -> tuple[Array, Array]:
    if not _fast(real, fake):
        return plain.logistic_d(real, fake, target)
    loss, g = np.empty(1, np.float32), np.empty(real.size + fake.size, np.float32)
    both = layout.dense(real).reshape(-1), layout.dense(fake).reshape(-1)
    threads.run(loading.loops.logistic_d, (*both, float(target), loss, g), 1, 1)
    return loss.reshape(()), g


def logit_figures(real: Array, fake: Array) -> Array:
    if not _fast(real, fake):
        return plain.logit_figures(real, fake)
    figures = np.empty(6, np.float32)
    both = layout.dense(real).reshape(-1), layout.dense(fake).reshape(-1)
    threads.run(loading.loops.logit_figures, (*both, figures), 1, 1)
    return figures
