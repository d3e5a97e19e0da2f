"""Winograd's minimal filtering for convolutions of 4 × 4 taps and stride 2, as GANs have them.

Along one axis, with the even and the odd pixels of x apart ("space to depth", a parity e), such a
convolution is a sum of two of stride 1 and two taps:

    y[p] = Σ_e Σ_a d[p + a] · w[a],   d[i] = x[2i + e - pad],   w[a] = w[2a + e],   a = 0, 1

The same holds of its transpose, of which each parity of gx is a convolution of g by two taps. To
make m outputs of such taps takes 2m multiplications, yet m + 1 are enough: F(m, 2) evaluates both
d and w at the points 0, 1, ∞, and -1 for m = 3, multiplies there, and interpolates:

    y = Aᵀ (G w ⊙ Bᵀ d)        on both axes   Y = Aᵀ (Σ_channels G w Gᵀ ⊙ Bᵀ d B) A
    gradient by w:   gw = Gᵀ (Σ_tiles A g Aᵀ ⊙ Bᵀ d B) G

With 2 × 2 outputs a tile, 9 multiplications do the work of 16, with 3 × 3 the work of 36 takes 16.
The points of a tile of two are among those of three, so both kinds share the filters' transforms,
and every length from two on is a sum of twos and threes. The matrices hold 0, ±1 and ½, so that a
result, before its activation, is within the kernels' tolerance; larger tiles would be faster and
less exact.

For each point there is one matrix product, over all tiles that have it, with rows that hold all
channels of both parities. What is between, `rows`, is one row a tile and point, point by point.
Five outputs along an axis, say, are two tiles:

    y[0] y[1] y[2]   of   d[0] d[1] d[2] d[3]   at   0, 1, ∞, -1
    y[3] y[4]        of   d[3] d[4] d[5]        at   0, 1, ∞

Of the 2 · 2 tiles of 5 × 5 outputs all four have the nine points (0, 1, ∞) × (0, 1, ∞), two have
(-1, 0), (-1, 1), (-1, ∞), two (0, -1), (1, -1), (∞, -1), and the first alone has (-1, -1). So an
image takes 9 · 4 + 3 · 2 + 3 · 2 + 1 = 49 rows, and of each pair of channels 49 multiplications,
where the plain sum takes 5 · 5 · 4 = 100.

Measured, milliseconds of the direct sums and of these, two cores of an AMD EPYC with AVX-512:

    N,C,H → K             conv2d         conv2d_dgrad   conv2d_wgrad
    64, 64, 32 → 128      20.7   12.6    20.9   13.4    23.0   14.7
    64, 128, 16 → 256     20.3   13.0    20.3   12.9    25.4   14.9
    64, 256, 8 → 512      20.7   14.4    21.4   15.3    31.4   19.2
    32, 256, 8 → 512      11.0    9.4    11.5    9.0    17.4   13.0
    16, 256, 8 → 512      11.8   11.4    12.9   11.8    16.8   17.6    64 tiles: too few
    8, 128, 16 → 256       2.9    3.1     3.1    3.4     4.3    4.2    72 tiles: too few

Source: Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, CVPR 2016, section 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache
from math import prod
from typing import Any

import numpy as np

from minigan.kernels import layout, sharing
from minigan.kernels.gemm import (
    address,
    bias_act_rows,
    outer_product,
    pad_images,
    product,
    transpose_block,
)
from minigan.kernels.jobs import inner, job
from minigan.kernels.reference import Pads, Pair
from minigan.kernels.tiles import FUSED, LANES, ROWS
from minigan.kernels.transforms import (
    POINTS,
    first_rows,
    transform_filter,
    transform_filter_gradient,
    transform_inputs,
    transform_output_gradients,
    transform_outputs,
)

Array = Any

# Where products are rounded before they are added, sums of hundreds of channels were seen to miss
# the kernels' tolerance (twice the error of the plain sum) by three percent.
EXACT_ENOUGH = FUSED


@inner
def _aligned(address):
    """The next where a vector lies in one line of cache."""
    return -(-address // (4 * LANES)) * (4 * LANES)


# ------------------------------------------------------------------------------------------- jobs
# `geometry` of a pass: the image that is read, its frame of zeros (above and left of it, and the
# size with it), `step`, its pixels from one d to the next; and of the image that is written (or is
# g) the pixels between outputs, its width and all its pixels; the points of each axis:
#   h w c   top left high wide   step   out_step out_wide out_pixels   points_p points_q
# `plan` has a line for each convolution of two taps: the grid (see transforms.py), the tiles' start
# in the frame in floats, and the pixel of the first output.

_PLACES, _STARTS = 0, POINTS * POINTS  # in a row of `table`; the addresses of rows are behind them
SPARE = 3 * POINTS * POINTS


@job("v v i i i i m t")
def winograd_filters(w, u, c, k, transposed, points_q, area, table, first, last, part):
    """u = G w Gᵀ, as panels of LANES columns, those numbered first .. last of each point

    conv2d's:   u[point][panel of K][e, f, c]
    transposed, for conv2d_dgrad:   u[e, f][point][panel of C][k]
    """
    places, area = table[part], area[part]
    points_p = len(u) // (c * k * 4 * points_q)
    width, depth = (c // LANES, k) if transposed else (k // LANES, 4 * c)
    block = width * depth * LANES
    for i in range(points_p):
        for j in range(points_q):
            places[i * POINTS + j] = (i * points_q + j) * block
    inputs, step, lane_step = (k, 16 * c, 16) if transposed else (c, 16, 16 * c)
    for panel in range(first, last):
        for i in range(inputs):
            transpose_block(
                w, panel * LANES * lane_step + i * step, lane_step, LANES, 16, area, 0, LANES
            )
            for e in range(2):
                for f in range(2):
                    tap, sign = ((2 + e) * 4 + 2 + f, -2) if transposed else (e * 4 + f, 2)
                    to = (panel * depth + i) * LANES
                    to += (e * 2 + f) * (points_p * points_q * block if transposed else c * LANES)
                    transform_filter(
                        points_p - 1, points_q - 1, address(area, tap * LANES), sign * 4 * LANES,
                        sign * LANES, address(u, to), 1, address(places, 0), LANES
                    )  # fmt: skip


@job("v v m v i i f i m t t g")
def winograd(
    x, u, y, bias, finish, act, slope, piece, area, table, plan, numbers, first, last, part
):  # fmt: skip
    """y = act(the convolutions of `plan` + bias), of the images first .. last

    u: of winograd_filters, one set for each line of the plan.   piece: images at a time.
    """
    geometry, points_q = numbers[:11], numbers[12]
    h, w, c, top, left, high, wide, step, _, _, out_pixels = geometry
    k, depth = y.shape[1], step * step * c
    frame = piece * high * wide * c
    area, table = area[part], table[part]
    places, starts = table[_PLACES:], table[_STARTS:]
    half = (len(table) - SPARE) // 2
    of, to = table[SPARE : SPARE + half], table[SPARE + half :]
    block = depth * k
    for n0 in range(first, last, piece):
        n1 = min(n0 + piece, last)
        pad_images(x, area, n0, n1, h, w, c, top, left, high - top - h, wide - left - w)
        for i in range(len(plan)):
            grid = plan[i, 0], plan[i, 1], plan[i, 2], plan[i, 3]
            first_rows(grid, n1 - n0, starts)
            d = _aligned(address(area, frame))
            m = d + 4 * starts[POINTS * POINTS] * depth
            transform_inputs(area, plan[i, 4], geometry, grid, n1 - n0, starts, places, d)
            filters = u[i * (len(u) // len(plan)) :]
            for point in range(POINTS * POINTS):
                count = starts[point + 1] - starts[point]
                for row in range(count):
                    of[row] = d + 4 * (starts[point] + row) * depth
                    to[row] = m + 4 * (starts[point] + row) * k
                if count:
                    panels = filters[(point // POINTS * points_q + point % POINTS) * block :]
                    product(of, count, 1, 0, depth, panels, depth, LANES, k, to)
            start = n0 * out_pixels + plan[i, 5]
            transform_outputs(y.ctypes.data, start, k, geometry, grid, n1 - n0, starts, places, m)
        if finish:
            bias_act_rows(y, bias, act, slope, n0 * out_pixels, n1 * out_pixels)


@job("v v i m t t g i")
def winograd_wgrad(x, g, piece, area, table, plan, numbers, k, first, last, part):
    """sums[point, k, (e,f,c)] = Σ_tile A g Aᵀ · Bᵀ d B   over the images first .. last

    sums: where `area` begins.
    """
    geometry, points_p, points_q = numbers[:11], numbers[11], numbers[12]
    h, w, c, top, left, high, wide, _, _, _, out_pixels = geometry
    depth = 4 * c
    grid = plan[0, 0], plan[0, 1], plan[0, 2], plan[0, 3]
    area, table = area[part], table[part]
    places, starts, of = table[_PLACES:], table[_STARTS:], table[SPARE:]
    sums, area = area, area[points_p * points_q * depth * k :]
    more = 0
    for n0 in range(first, last, piece):
        n1 = min(n0 + piece, last)
        pad_images(x, area, n0, n1, h, w, c, top, left, high - top - h, wide - left - w)
        first_rows(grid, n1 - n0, starts)
        rows = starts[POINTS * POINTS]
        d = _aligned(address(area, piece * high * wide * c))
        a = d + 4 * rows * depth
        transform_inputs(area, 0, geometry, grid, n1 - n0, starts, places, d)
        start = n0 * out_pixels
        transform_output_gradients(
            g.ctypes.data, start, k, geometry, grid, n1 - n0, starts, places, a
        )
        for row in range(rows):
            of[row] = d + 4 * row * depth
        for point in range(POINTS * POINTS):
            count = starts[point + 1] - starts[point]
            if count:
                at = (point // POINTS * points_q + point % POINTS) * k * depth
                outer_product(
                    a + 4 * starts[point] * k, k, k, address(of, starts[point]), 0, depth, count,
                    address(sums, at), depth, more
                )  # fmt: skip
        more = 1


@job("m v i i i i i t")
def winograd_gradient(area, gw, parts, c, k, points_p, points_q, table, first, last, part):
    """gw = Gᵀ (Σ_part sums) G, filters first .. last.   gw (K,C,4,4), flat

    area: as winograd_wgrad left it.
    """
    places, shards, sums = table[part], area, area[0]
    area = area[part, points_p * points_q * 4 * c * k :]
    for i in range(points_p):
        for j in range(points_q):
            places[i * POINTS + j] = (i * points_q + j) * k
    for i in range(first, last):
        for other in range(1, parts):
            for point in range(points_p * points_q):
                at = (point * k + i) * 4 * c
                to, more = sums[at:], shards[other, at:]
                for j in range(4 * c):
                    to[j] += more[j]
        for e in range(2):
            for f in range(2):
                transform_filter_gradient(
                    points_p - 1, points_q - 1, address(area, (e * 4 + f) * c), 8 * c, 2 * c,
                    address(sums, (i * 4 + e * 2 + f) * c), 4 * c, address(places, 0), c
                )  # fmt: skip
        transpose_block(area, 0, c, 16, c, gw, i * c * 16, 16)


# -------------------------------------------------------------------------------------- the passes


def _threes(outputs: int) -> int:
    """Tiles of three among those of an axis, as many as there can be if the others have two."""
    return outputs - 2 * -(-outputs // 3)


@dataclass(frozen=True)
class _Pass:
    """The arguments of a job: see `geometry` and `plan` above."""

    geometry: tuple[int, ...]
    plan: Array
    outputs: int  # channels

    @cached_property
    def points(self) -> tuple[int, int]:
        three_p, three_q = self.plan[:, 2:4].any(axis=0)
        return 3 + int(three_p), 3 + int(three_q)

    @cached_property
    def numbers(self) -> tuple[int, ...]:
        return *self.geometry, *self.points

    @cached_property
    def rows(self) -> int:
        """Of an image: each of its tiles has one for each of its points."""
        tiles = (self.plan[:, :2] - self.plan[:, 2:4]) // 2
        return int((tiles + self.plan[:, :2]).prod(axis=1).max())

    @cached_property
    def depth(self) -> int:
        """Floats of a row of inputs."""
        return self.geometry[7] ** 2 * self.geometry[2]

    @cached_property
    def filters(self) -> int:
        """Floats of the transformed filters of a line of the plan."""
        return prod(self.points) * self.depth * self.outputs

    def piece(self, images: int) -> int:
        """How many images to take at a time: so many that their rows and the filters, or the sums
        of wgrad, which a piece must fetch, are about as large."""
        floats = images * self.rows * (self.depth + self.outputs)
        return -(-images // max(1, round(floats / self.filters)))

    def space(self, shards: int, piece: int, more: int = 0) -> tuple[Array, Array]:
        _, _, c, _, _, high, wide, *_ = self.geometry
        floats = more + piece * (high * wide * c + self.rows * (self.depth + self.outputs))
        return sharing.space(shards, floats, SPARE + 2 * (piece * self.rows + ROWS))


@lru_cache(1024)
def _forward(size: Pair, c: int, out: Pair, k: int, pads: Pads) -> _Pass:
    (h, w), (p, q), ((top, _), (left, _)) = size, out, pads
    high, wide = max(top + h, 2 * p + 2), max(left + w, 2 * q + 2)
    geometry = h, w, c, top, left, high, wide, 2, 1, q, p * q
    return _Pass(geometry, np.array([[p, q, _threes(p), _threes(q), 0, 0]]), k)


@lru_cache(1024)
def _backward(size: Pair, c: int, out: Pair, k: int, pads: Pads) -> _Pass:
    """Pixel h = 2i + e - pad of an axis is Σ_a g[i - 1 + a] · w[2(1 - a) + e]."""
    axes = []
    for h, p, (pad, _) in zip(size, out, pads, strict=True):
        first = [(pad - e + 1) // 2 for e in range(2)]  # i
        begin = [2 * i + e - pad for e, i in enumerate(first)]  # h
        count = [(h - at + 1) // 2 for at in begin]
        before = max(0, 1 - min(first))
        start = [before + i - 1 for i in first]
        length = max(before + p, *(s + n + 1 for s, n in zip(start, count, strict=True)))
        axes.append((before, length, list(zip(count, start, begin, strict=True))))
    (top, high, rows), (left, wide, columns) = axes
    plan = [
        (m, n, _threes(m), _threes(n), (y * wide + x) * k, i * size[1] + j)
        for m, y, i in rows for n, x, j in columns
    ]  # fmt: skip
    geometry = *out, k, top, left, high, wide, 1, 2, size[1], prod(size)
    return _Pass(geometry, np.array(plan), c)


def _filters(w: Array, points: tuple[int, int], transposed: bool) -> Array:
    k, c = w.shape[:2]
    u = np.empty(prod(points) * 4 * c * k, np.float32)
    parts = (c if transposed else k) // LANES
    space = sharing.space(sharing.count(parts, u.size), 16 * LANES, SPARE)
    arguments = layout.dense(w).reshape(-1), u, c, k, int(transposed), points[1], *space
    sharing.share(winograd_filters, arguments, parts, u.size)
    return u


def convolve(
    x: Array, w: Array, out: Pair, pads: Pads, transposed: bool, work: int, ending: tuple[Any, ...]
) -> Array:
    """conv2d of x to `out` pixels or, transposed, conv2d_dgrad of x = g: rows (M,K) or (M,C)

    ending: see cpu._ending.
    """
    (n, _, *size), (k, c) = x.shape, w.shape[:2]
    here = size[0], size[1]
    of = _backward(out, c, here, k, pads) if transposed else _forward(here, c, out, k, pads)
    u = _filters(w, of.points, transposed)
    y = np.empty((n * prod(out), of.outputs), np.float32)
    shards = sharing.count(n, work)
    piece = of.piece(-(-n // shards))
    space = of.space(shards, piece)
    arguments = layout.rows(x).reshape(-1), u, y, *ending, piece, *space, of.plan, of.numbers
    sharing.share(winograd, arguments, n, work)
    return y


def wgrad(x: Array, g: Array, pads: Pads, work: int) -> Array:
    (n, c, *size), (_, k, *out) = x.shape, g.shape
    of = _forward((size[0], size[1]), c, (out[0], out[1]), k, pads)
    sums, shards = of.filters, sharing.count(n, work)
    piece = of.piece(-(-n // shards))
    area, table = of.space(max(shards, sharing.count(k, sums)), piece, sums)
    images = layout.rows(x).reshape(-1), layout.rows(g).reshape(-1)
    sharing.share(winograd_wgrad, (*images, piece, area, table, of.plan, of.numbers, k), n, work)
    gw = np.empty((k, c, 4, 4), np.float32)
    sharing.share(
        winograd_gradient, (area, gw.reshape(-1), shards, c, k, *of.points, table), k, sums
    )
    return gw
