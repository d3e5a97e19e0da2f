"""Matrix products on one CPU core: the loops around a tile of registers, and what feeds it.

    y = a · b       product: rows of a are addresses, b lies in panels of LANES columns
    y = aᵀ · b      outer_product: rows of b are addresses; for gradients of weights

That a row is an address, and not a place in a matrix, is what lets a convolution use them without
a matrix of patches: see convolution.py.
"""

from __future__ import annotations

import numba
import numpy as np

from minigan.kernels.compiled import activated
from minigan.kernels.jobs import inner, job
from minigan.kernels.tiles import (
    LANES,
    OUTER,
    OUTER_ROWS,
    ROWS,
    outer_row,
    outer_row_narrow,
    outer_tile,
    outer_tile_narrow,
    product_tile,
    transpose_square,
)

CHUNK = 64  # rows of an outer product between two visits to its tile

# ------------------------------------------------------------------------------- moving the numbers


@numba.njit(inline="always")
def address(a, index):
    """Of a[index], a of one axis."""
    return a.ctypes.data + index * a.itemsize


@inner
def transpose_block(a, start, pitch, m, n, b, to, b_pitch):
    """b[to + j · b_pitch + i] = a[start + i · pitch + j],   i < m, j < n"""
    targets = np.empty(LANES, np.int64)
    for i in range(0, m, LANES):
        for j in range(0, n, LANES):
            if m - i >= LANES and n - j >= LANES:
                for k in range(LANES):
                    targets[k] = address(b, to + (j + k) * b_pitch + i)
                at = address(a, start + i * pitch + j)
                transpose_square(at, pitch, LANES, address(targets, 0))
                continue
            for k in range(j, min(j + LANES, n)):
                line = b[to + k * b_pitch :]
                for r in range(i, min(i + LANES, m)):
                    line[r] = a[start + r * pitch + k]


@job("v v i i")
def transpose(a, b, m, n, first, last, part):
    """b[i,k,j] = a[i,j,k],   first ≤ i < last.   a (·,m,n) -> b (·,n,m), flat"""
    for i in range(first, last):
        transpose_block(a, i * m * n, n, m, n, b, i * m * n, m)


@inner
def pack_columns(w, n, n_step, outer, outer_step, panels, starts, steps, first, last):
    """Columns of w, floats that are n_step apart, made neighbours: panels of LANES of them.

    panels[starts[t] + panel · steps[t] + i · LANES + c] = w[column · n_step + i · outer_step + t],
    column = panel · LANES + c,   for the panels first .. last, i < outer and t < len(starts).
    What belongs to columns that do not exist, from n on, holds anything.
    """
    targets = np.empty(LANES, np.int64)
    for panel in range(first, last):
        column = panel * LANES
        width = min(LANES, n - column)
        for i in range(outer):
            at = column * n_step + i * outer_step
            for t in range(0, len(starts), LANES):
                count = min(LANES, len(starts) - t)
                if count == LANES:
                    for k in range(LANES):
                        start = starts[t + k] + panel * steps[t + k] + i * LANES
                        targets[k] = address(panels, start)
                    transpose_square(address(w, at + t), n_step, width, address(targets, 0))
                    continue
                for k in range(t, t + count):
                    line = panels[starts[k] + panel * steps[k] + i * LANES :]
                    for c in range(width):
                        line[c] = w[at + c * n_step + k]


@job("v v i i i i")
def pack(w, panels, n, n_step, outer, taps, first, last, part):
    """b[(t,i), column] = w[column · n_step + i · taps + t], t < taps, i < outer, as panels

    A panel holds LANES of the n columns, (taps·outer, LANES). Those numbered first .. last.
    """
    starts, steps = np.empty(taps, np.int64), np.empty(taps, np.int64)
    for t in range(taps):
        starts[t] = t * outer * LANES
        steps[t] = taps * outer * LANES
    pack_columns(w, n, n_step, outer, taps, panels, starts, steps, first, last)


@inner
def pad_images(x, to, n0, n1, h, w, c, top, left, bottom, right):
    """to (n1-n0, top+h+bottom, left+w+right, c): images n0 .. n1 of x in a frame of zeros"""
    line = (left + w + right) * c
    i = 0
    for n in range(n0, n1):
        for y in range(-top, h + bottom):
            row = to[i : i + line]
            i += line
            if y < 0 or y >= h:
                for j in range(line):
                    row[j] = 0
                continue
            for j in range(left * c):
                row[j] = 0
            middle, at = row[left * c :], x[(n * h + y) * w * c :]
            for j in range(w * c):
                middle[j] = at[j]
            end = row[(left + w) * c :]
            for j in range(right * c):
                end[j] = 0


# ---------------------------------------------------------------------------------------- products


@inner
def product(a, count, runs, stride, length, b, step, pitch, n, y):
    """y[i][0:n] = a[i] · b,   i < count.   a, y: tables of row addresses with ROWS spare places.

    b: the columns from j on begin at b[j · step], j a multiple of LANES, and their rows are `pitch`
    apart: (depth, LANES) for panels, (1, n) for a matrix in order whose n is a multiple of LANES.
    """
    for i in range(count, count + ROWS):
        a[i] = a[count - 1]
    for column in range(0, n, LANES):
        at = address(b, column * step)
        for i in range(0, count, ROWS):
            rows, width = min(ROWS, count - i), min(LANES, n - column)
            of, to = address(a, i), address(y, i)
            product_tile(of, runs, stride, length, at, pitch, to, column, rows, width)


@numba.njit(inline="always")
def outer_product(a, pitch, rows, b, offset, columns, length, y, y_pitch, more):
    """y[i, j] (+)= Σ_k a[k · pitch + i] · b[k][offset + j],   i < rows, j < columns, k < length

    Reads and writes up to a whole vector of columns.
    """
    for j in range(0, columns, OUTER):
        wide = columns - j > OUTER - LANES
        for i in range(0, rows, OUTER_ROWS):
            if rows - i >= OUTER_ROWS:
                if wide:
                    to = y + 4 * (i * y_pitch + j)
                    outer_tile(a + 4 * i, pitch, b, offset + j, length, to, y_pitch, more)
                    continue
                for v in range(j, columns, LANES):
                    to = y + 4 * (i * y_pitch + v)
                    outer_tile_narrow(a + 4 * i, pitch, b, offset + v, length, to, y_pitch, more)
                continue
            for r in range(i, rows):
                if wide:
                    to = y + 4 * (r * y_pitch + j)
                    outer_row(a + 4 * r, pitch, b, offset + j, length, to, y_pitch, more)
                    continue
                for v in range(j, columns, LANES):
                    to = y + 4 * (r * y_pitch + v)
                    outer_row_narrow(a + 4 * r, pitch, b, offset + v, length, to, y_pitch, more)


@inner
def bias_act_rows(y, bias, act, slope, first, last):
    """y = act(y + bias), rows first .. last"""
    slope = np.float32(slope)
    for i in range(first, last):
        for j in range(y.shape[1]):
            y[i, j] = activated(y[i, j] + bias[j], act, slope)


@job("v i v i i m v i i f")
def matmul(x, depth, b, step, pitch, y, bias, finish, act, slope, first, last, part):
    """y = act(x · b + bias), rows first .. last.   x (M,depth).   b, step, pitch: see product.

    finish: whether bias and act apply.
    """
    count, n = last - first, y.shape[1]
    rows, to = np.empty(count + ROWS, np.int64), np.empty(count + ROWS, np.int64)
    for i in range(count):
        rows[i] = address(x, (first + i) * depth)
        to[i] = y.ctypes.data + 4 * (first + i) * n
    product(rows, count, 1, 0, depth, b, step, pitch, n, to)
    if finish:
        bias_act_rows(y, bias, act, slope, first, last)


@inner
def _copy_columns(b, start, pitch, depth, width, to):
    """to (depth,LANES) = b[start + k · pitch + j], j < width"""
    for k in range(depth):
        for j in range(width):
            to[k * LANES + j] = b[start + k * pitch + j]


@job("v i v i m v i i f")
def matmul_columns(x, depth, b, turned, y, bias, finish, act, slope, first, last, part):
    """The same by columns, vectors of them from first to last: for few rows, where b is most of the
    work.

    turned: whether b is (N,depth), else it is (depth,N).
    """
    count, n = y.shape
    slope = np.float32(slope)
    rows, panel = np.empty(count + ROWS, np.int64), np.empty(depth * LANES, np.float32)
    for i in range(count + ROWS):
        rows[i] = address(x, min(i, count - 1) * depth)
    to, targets = np.empty(ROWS, np.int64), np.empty(LANES, np.int64)
    for column in range(first * LANES, min(last * LANES, n), LANES):
        width = min(LANES, n - column)
        at, pitch = address(panel, 0), LANES
        if turned:
            for k in range(0, depth - LANES + 1, LANES):
                for j in range(LANES):
                    targets[j] = at + 4 * (k + j) * LANES
                transpose_square(address(b, column * depth + k), depth, width, address(targets, 0))
            for k in range(depth // LANES * LANES, depth):
                for j in range(width):
                    panel[k * LANES + j] = b[(column + j) * depth + k]
        elif width < LANES:
            _copy_columns(b, column, n, depth, width, panel)
        else:
            at, pitch = address(b, column), n
        for i in range(0, count, ROWS):
            here = min(ROWS, count - i)
            for j in range(here):
                to[j] = y.ctypes.data + 4 * (i + j) * n
            of = address(rows, i)
            product_tile(of, 1, 0, depth, at, pitch, address(to, 0), column, here, width)
            if finish:
                for j in range(i, i + here):
                    line, shift = y[j, column : column + width], bias[column : column + width]
                    for c in range(width):
                        line[c] = activated(line[c] + shift[c], act, slope)


@job("v i v m")
def matmul_outer(a, pitch, b, y, first, last, part):
    """y = aᵀ · b, rows first .. last.   a (K,pitch), b (K,N)"""
    n, count = y.shape[1], last - first
    depth, whole = len(b) // n, n // LANES * LANES
    rows, ends = np.empty(depth, np.int64), np.empty(depth, np.int64)
    # The columns after the last whole vector: copied, and their sums.
    rest, sums = np.empty(depth * LANES, np.float32), np.empty(count * LANES, np.float32)
    if whole < n:
        _copy_columns(b, whole, n, depth, n - whole, rest)
    for k in range(depth):
        rows[k], ends[k] = address(b, k * n), address(rest, k * LANES)
    to = y.ctypes.data + 4 * first * n
    for k in range(0, depth, CHUNK):
        at, length = address(a, k * pitch + first), min(CHUNK, depth - k)
        outer_product(at, pitch, count, address(rows, k), 0, whole, length, to, n, k)
        if whole < n:
            into = address(sums, 0)
            outer_product(at, pitch, count, address(ends, k), 0, LANES, length, into, LANES, k)
    for i in range(count):
        for j in range(n - whole):
            y[first + i, whole + j] = sums[i * LANES + j]
