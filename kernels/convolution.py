"""Convolutions on one CPU core, as products of patches and filters.

A patch is never laid out (an "implicit GEMM"): with channels last, the S·C numbers of x under one
row of a filter are neighbours, a *run*, and the patch of a pixel is R runs at equal distances, so
that an address and a rule make a row of the product:

    patch = the floats at  address + i · stride ... + length,  for i < runs

Where runs would be too short (images of one channel) or have gaps (a dilation), patches are laid
out one by one. Images come in pieces, so that what one step writes is still in the cache when the
next reads it. Nothing here checks its arguments: cpu.py does.

`geometry` is   h w c   p q   taps_r taps_s   stride_h stride_w   top left   dilation_h dilation_w.
"""

from __future__ import annotations

import numpy as np

from minigan.kernels.gemm import (
    CHUNK,
    address,
    bias_act_rows,
    outer_product,
    pack_columns,
    pad_images,
    product,
    transpose_block,
)
from minigan.kernels.jobs import inner, job
from minigan.kernels.tiles import LANES, copy_vector

# Where patches are read: in x, in a copy of it with its padding, or laid out one by one.
IN_PLACE, PADDED, LAID_OUT = range(3)


@inner
def _patches(x, how, n0, n1, area, table, geometry):
    """Fill `table` with the addresses of the patches of images n0 .. n1.

    Returns (runs, stride, length) of each.
    """
    h, w, c, p, q, taps_r, taps_s, sh, sw, top, left, dh, dw = geometry
    if how == IN_PLACE:
        high, wide = h, w
        start = address(x, n0 * h * w * c)
    else:
        high = max(h + top, (p - 1) * sh + dh * (taps_r - 1) + 1)
        wide = max(w + left, (q - 1) * sw + dw * (taps_s - 1) + 1)
        pad_images(x, area, n0, n1, h, w, c, top, left, high - h - top, wide - w - left)
        start = address(area, 0)
    i = 0
    for n in range(n1 - n0):
        for row in range(p):
            at = start + 4 * c * wide * (n * high + row * sh)
            for column in range(q):
                table[i] = at + 4 * c * column * sw
                i += 1
    if how != LAID_OUT:
        return taps_r, dh * wide * c, taps_s * c
    depth = taps_r * taps_s * c
    runs, run = (1, taps_s * c) if dw == 1 else (taps_s, c)
    to = address(area, (n1 - n0) * high * wide * c)
    for i in range(len(table)):
        if i == (n1 - n0) * p * q:
            break
        patch, table[i] = table[i], to
        for r in range(taps_r):
            for s in range(runs):
                at = patch + 4 * c * (r * dh * wide + s * dw)
                for j in range(0, run, LANES):  # what is too much, the next run covers
                    copy_vector(at + 4 * j, to + 4 * j)
                to += 4 * run
    return 1, 0, depth


@job("v v m v i i f i i m t g")
def conv2d(
    x, panels, y, bias, finish, act, slope, how, piece, area, table, geometry, first, last, part
):
    """y[(n,p,q), k] = act(Σ patch[(n,p,q)] · filter[k] + bias[k])   of the images first .. last

    panels: the filters, packed.   finish: whether bias and act apply.   piece: images at a time.
    area, table: space for a piece.
    """
    pixels, k = geometry[3] * geometry[4], y.shape[1]
    half = table.shape[1] // 2
    area, rows, to = area[part], table[part, :half], table[part, half:]
    for n0 in range(first, last, piece):
        n1 = min(n0 + piece, last)
        count = (n1 - n0) * pixels
        runs, stride, length = _patches(x, how, n0, n1, area, rows, geometry)
        for i in range(count):
            to[i] = y.ctypes.data + 4 * k * (n0 * pixels + i)
        product(rows, count, runs, stride, length, panels, runs * length, LANES, k, to)
        if finish:
            bias_act_rows(y, bias, act, slope, n0 * pixels, n1 * pixels)


@inner
def _phase(i, taps, stride, pad):
    """The taps that pixels h ≡ i (mod stride) of a convolution's input have met: number and first,
    and the output p that the last of them belongs to, for h = i."""
    first = (i + pad) % stride
    return max(0, (taps - first + stride - 1) // stride), first, (i + pad) // stride


@job("v v g i")
def pack_phases(w, panels, geometry, k, first, last, part):
    """The filters of `conv2d_dgrad`'s phases, one behind the other: their panels first .. last.

    w (K,C,R,S), flat.
    """
    _, _, c, _, _, taps_r, taps_s, sh, sw, top, left, _, _ = geometry
    taps, width = taps_r * taps_s, (c + LANES - 1) // LANES
    starts, steps = np.empty(taps, np.int64), np.empty(taps, np.int64)
    at = 0
    for i in range(sh):
        count_r, r, _ = _phase(i, taps_r, sh, top)
        for j in range(sw):
            count_s, s, _ = _phase(j, taps_s, sw, left)
            size = count_r * count_s * k * LANES
            for m in range(count_r * count_s):  # outputs in rising order meet taps in falling order
                tap_r = r + sh * (count_r - 1 - m // count_s)
                tap_s = s + sw * (count_s - 1 - m % count_s)
                starts[tap_r * taps_s + tap_s] = at + m * k * LANES
                steps[tap_r * taps_s + tap_s] = size
            at += size * width
    pack_columns(w, c, taps, k, c * taps, panels, starts, steps, first, last)


@job("v v m v i i f i m t g i")
def conv2d_dgrad(
    g, panels, gx, bias, finish, act, slope, piece, area, table, geometry, k, first, last, part
):
    """gx = act(Σ g · filters + bias), the transposed convolution, of the images first .. last

    Pixels of gx whose rows and columns leave the same remainders by the stride, a phase, have met
    the same taps; for them it is a convolution of g by these taps alone, of stride 1.
    gx (N·H·W, C).   panels: of pack_phases.   dilation 1.
    """
    h, w, c, p, q, taps_r, taps_s, sh, sw, top, left, _, _ = geometry
    before_r, before_s = (taps_r + sh - 1) // sh - 1, (taps_s + sw - 1) // sw - 1
    after_r, after_s = max(0, (h - 1 + top) // sh + 1 - p), max(0, (w - 1 + left) // sw + 1 - q)
    high, wide = before_r + p + after_r, before_s + q + after_s
    half = table.shape[1] // 2
    area, rows, to = area[part], table[part, :half], table[part, half:]
    for n0 in range(first, last, piece):
        n1 = min(n0 + piece, last)
        pad_images(g, area, n0, n1, p, q, k, before_r, before_s, after_r, after_s)
        used = 0
        for i in range(sh):
            count_r, _, last_p = _phase(i, taps_r, sh, top)
            for j in range(sw):
                count_s, _, last_q = _phase(j, taps_s, sw, left)
                line = before_r + last_p - (count_r - 1)
                column = before_s + last_q - (count_s - 1)
                m = 0
                for n in range(n1 - n0):
                    for y in range((h - i + sh - 1) // sh):
                        at = ((n * high + line + y) * wide + column) * k
                        into = ((n0 + n) * h + i + y * sh) * w + j
                        for x in range((w - j + sw - 1) // sw):
                            rows[m] = address(area, at + x * k)
                            to[m] = gx.ctypes.data + 4 * c * (into + x * sw)
                            m += 1
                depth = count_r * count_s * k
                if m:
                    part = panels[used:]
                    product(rows, m, count_r, wide * k, count_s * k, part, depth, LANES, c, to)
                used += depth * ((c + LANES - 1) // LANES) * LANES
        if finish:
            bias_act_rows(gx, bias, act, slope, n0 * h * w, n1 * h * w)


@job("v m v i i f g")
def col2im(cols, gx, bias, finish, act, slope, geometry, first, last, part):
    """gx = act(Σ of cols[patch, tap] over the patches and taps that have met the pixel + bias)

    cols (N·P·Q, R·S·C), flat: g · filters.   gx (N·H·W, C), its images first .. last.
    For transposed convolutions of few channels, or of taps with gaps.
    """
    h, w, c, p, q, taps_r, taps_s, sh, sw, top, left, dh, dw = geometry
    depth = taps_r * taps_s * c
    flat = gx.reshape(-1)
    # Unsigned, as Numba looks at each index whether it is negative if it can be.
    x_step, cols_step = np.uintp(sw * c), np.uintp(depth)
    # Neighbours that go together: all channels, or if they are few one at a time.
    run = np.uintp(c if c >= LANES else 1)
    for n in range(first, last):
        flat[n * h * w * c : (n + 1) * h * w * c] = 0
        for r in range(taps_r):
            for s in range(taps_s):
                shift = s * dw - left  # x's column is  q · sw + shift
                q0 = max(0, (sw - 1 - shift) // sw)
                count = min(q, (w - shift + sw - 1) // sw) - q0
                for start in range(np.uintp(0), np.uintp(c), run):
                    for line in range(p):
                        y = line * sh + r * dh - top
                        if y < 0 or y >= h:
                            continue
                        a = np.uintp(((n * h + y) * w + q0 * sw + shift) * c) + start
                        b = np.uintp(((n * p + line) * q + q0) * depth + (r * taps_s + s) * c)
                        b += start
                        if run == 1:
                            for _ in range(count):
                                flat[a] += cols[b]
                                a += x_step
                                b += cols_step
                        else:
                            for _ in range(count):
                                for j in range(run):
                                    flat[a + j] += cols[b + j]
                                a += x_step
                                b += cols_step
        if finish:
            bias_act_rows(gx, bias, act, slope, n * h * w, (n + 1) * h * w)


@job("v v m i i m t g i")
def conv2d_wgrad(x, g, sums, how, piece, area, table, geometry, k, first, last, part):
    """sums[k, run, i] = Σ_pixel g[pixel, k] · patch[pixel][run, i]   over the images first .. last

    sums (K, runs, length rounded up to whole vectors), flat.
    """
    pixels = geometry[3] * geometry[4]
    sums, area, table = sums[part], area[part], table[part]
    more = 0
    for n0 in range(first, last, piece):
        n1 = min(n0 + piece, last)
        count = (n1 - n0) * pixels
        runs, stride, length = _patches(x, how, n0, n1, area, table, geometry)
        width = (length + LANES - 1) // LANES * LANES
        for i in range(0, count, CHUNK):
            at = address(g, (n0 * pixels + i) * k)
            part, rows = min(CHUNK, count - i), address(table, i)
            for run in range(runs):
                to = address(sums, run * width)
                outer_product(at, k, k, rows, run * stride, length, part, to, runs * width, more)
            more = 1


@job("v v i i i i i")
def add_sums(sums, gw, parts, k, runs, length, c, first, last, part):
    """gw (K,C,taps) = Σ_part sums, which are as conv2d_wgrad leaves them; filters first .. last"""
    width = (length + LANES - 1) // LANES * LANES
    along = length // c
    for i in range(first, last):
        for p in range(1, parts):
            to, other = sums[i * runs * width :], sums[(p * k + i) * runs * width :]
            for j in range(runs * width):
                to[j] += other[j]
        at, to = i * runs * width, i * c * runs * along
        if width == length:
            transpose_block(sums, at, c, runs * along, c, gw, to, runs * along)
            continue
        for run in range(runs):
            transpose_block(sums, at + run * width, c, along, c, gw, to + run * along, runs * along)
