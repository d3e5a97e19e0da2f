"""Channels last: an image (N,C,H,W) as a view of an array (N,H,W,C), and what brings it about."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np

from minigan.kernels import loading, sharing

Array = Any

# By the number of axes: the order of axes that puts the second last, and that which puts it back.
_LAST = [(0, *range(2, axes), 1)[:axes] for axes in range(65)]
_FIRST = [(0, axes - 1, *range(1, axes - 1))[:axes] for axes in range(65)]


def whole(columns: int) -> int:
    """Columns in whole vectors."""
    return int(-(-columns // loading.gemm.LANES) * loading.gemm.LANES)


def transposed(a: Array, outer: int, m: int, n: int) -> Array:
    """a (outer,m,n) -> (outer,n,m), all flat"""
    b = np.empty(outer * m * n, np.float32)
    sharing.share(loading.gemm.transpose, (a.reshape(-1), b, m, n), outer, 2 * a.size)
    return b


def dense(a: Array) -> Array:
    """a with its elements in order, and not read-only, which the loops' types are not."""
    a = np.ascontiguousarray(a)
    return a if a.flags.writeable else a.copy()


def channels_last(x: Array) -> Array:
    """x (N,C,...) -> (N,...,C) with its elements in order; a view if they are."""
    last = x.transpose(_LAST[x.ndim])
    if last.flags.c_contiguous or not x.flags.c_contiguous:
        return dense(last)
    return transposed(dense(x), len(x), x.shape[1], prod(x.shape[2:])).reshape(last.shape)


def rows(x: Array) -> Array:
    """x (N,C,...) -> (M,C)"""
    return channels_last(x).reshape(-1, x.shape[1])


def images(rows: Array, shape: tuple[int, ...]) -> Array:
    """rows (M,C) -> (N,C,...) of that shape"""
    if len(shape) == 2:
        return rows
    return rows.reshape(shape[0], *shape[2:], shape[1]).transpose(_FIRST[len(shape)])
