"""Matrix products and convolutions on one CPU core: the loops around a tile of registers.

A tile of y is held in vector registers while the products that make it are added up; each step
loads a vector of b and multiplies it by one number of each row of a:

    y[row, LANES columns] += a[row, k] · b[k, LANES columns]     for ROWS rows and all k

Everything else serves to feed it. A convolution is the product of patches of x with the filters,
and its patches are never laid out (an "implicit GEMM"): with channels last, the S·C numbers of x
under one row of a filter are neighbours, a *run*, and the patch of a pixel is R runs at equal
distances. So a row of a is an address and a rule:

    a[row] = the floats at  address[row] + i · stride ... + length,  for i < runs

Where runs would be too short (images of one channel) or have gaps (a dilation), im2col lays the
patches out. Filters are packed beforehand into panels of LANES columns, so that b is read in order.

Images come in pieces, so that what one step writes is still in the cache when the next reads it.
Addresses are in bytes, all else in floats. Nothing here checks its arguments: cpu.py does.
"""

from __future__ import annotations

import platform
from contextlib import contextmanager
from typing import Any

import llvmlite.binding
import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

from minigan.kernels.compiled import _act, col2im, im2col
from minigan.kernels.jobs import job

_features = llvmlite.binding.get_host_cpu_features()
_many_registers = bool(_features.get("avx512f")) or platform.machine() in ("arm64", "aarch64")

LANES = 16 if _features.get("avx512f") else 8 if _features.get("avx") else 4  # floats of a vector
ROWS = 8  # of _tile
OUTER_ROWS, OUTER_VECTORS = 4, 4 if _many_registers else 2  # of _outer_tile
OUTER = OUTER_VECTORS * LANES

_float, _word = ir.FloatType(), ir.IntType(64)
_vector = ir.VectorType(_float, LANES)


class _Emitter:
    """Writes the LLVM code of a tile: `rows` × `vectors` vectors of y."""

    def __init__(self, builder: Any, rows: int, vectors: int) -> None:
        self.builder, self.rows, self.vectors = builder, rows, vectors
        # Variables to LLVM, which makes registers of them.
        self.sums = [
            [cgutils.alloca_once(builder, _vector) for _ in range(vectors)] for _ in range(rows)
        ]
        self.fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(_vector, [_vector] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

    def at(self, address: Any, floats: Any = 0) -> Any:
        """The address `floats` further on."""
        if isinstance(floats, int):
            floats = ir.Constant(_word, floats)
        return self.builder.add(address, self.builder.mul(floats, ir.Constant(_word, 4)))

    def load(self, kind: Any, address: Any) -> Any:
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = 8 if kind is _word else 4
        return value

    def word(self, table: Any, index: Any) -> Any:
        """table[index], of 64-bit words"""
        return self.load(_word, self.at(table, self.builder.mul(index, ir.Constant(_word, 2))))

    def splat(self, address: Any) -> Any:
        """The vector of the one float there."""
        lane = ir.IntType(32)
        undefined = ir.Constant(_vector, ir.Undefined)
        one = self.builder.insert_element(undefined, self.load(_float, address), lane(0))
        first = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, undefined, first)

    def clear(self) -> None:
        for row in self.sums:
            for s in row:
                self.builder.store(ir.Constant(_vector, [0.0] * LANES), s)

    def fetch(self, y: list[Any]) -> None:
        for sums, row in zip(self.sums, y, strict=True):
            for j, s in enumerate(sums):
                self.builder.store(self.load(_vector, self.at(row, j * LANES)), s)

    def step(self, a: list[Any], b: Any) -> None:
        """sums[i] += a[i] · b, a and b addresses"""
        vectors = [self.load(_vector, self.at(b, j * LANES)) for j in range(self.vectors)]
        for sums, address in zip(self.sums, a, strict=True):
            factor = self.splat(address)
            for s, v in zip(sums, vectors, strict=True):
                self.builder.store(
                    self.builder.call(self.fma, [factor, v, self.builder.load(s)]), s
                )

    def store(self, y: list[Any]) -> None:
        for sums, row in zip(self.sums, y, strict=True):
            for j, s in enumerate(sums):
                to = self.builder.inttoptr(self.at(row, j * LANES), _vector.as_pointer())
                self.builder.store(self.builder.load(s), to).align = 4

    def store_some(self, y: list[Any], rows: Any, columns: Any) -> None:
        """Of a tile of one vector: its first rows and columns."""
        lane, mask = ir.IntType(32), ir.VectorType(ir.IntType(1), LANES)
        lanes = ir.Constant(ir.VectorType(_word, LANES), list(range(LANES)))
        some = self.builder.insert_element(ir.Constant(lanes.type, ir.Undefined), columns, lane(0))
        first = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        some = self.builder.shuffle_vector(some, some, first)
        wanted = self.builder.icmp_signed("<", lanes, some)
        pointer = _vector.as_pointer()
        masked = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [_vector, pointer, lane, mask]),
            f"llvm.masked.store.v{LANES}f32.p0",
        )
        for i, ((s,), row) in enumerate(zip(self.sums, y, strict=True)):
            with self.builder.if_then(self.builder.icmp_signed("<", _word(i), rows)):
                to = self.builder.inttoptr(row, pointer)
                self.builder.call(masked, [self.builder.load(s), to, lane(4), wanted])

    @contextmanager
    def loop(self, count: Any) -> Any:
        with cgutils.for_range(self.builder, count, intp=_word) as loop:
            yield loop.index


@intrinsic
def _tile(
    _: Any, a: Any, runs: Any, stride: Any, length: Any, b: Any, pitch: Any, y: Any, column: Any,
    count: Any, width: Any,
) -> Any:  # fmt: skip
    """y[i][column + j] = Σ a[i][run, k] · b[run · length + k, j],   i < count, j < width

    count ≤ ROWS, width ≤ LANES.   a, y: addresses of tables of ROWS row addresses, those of a all
    to be read from.   b: an address; its rows are `pitch` apart, and LANES can be read of each.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, runs, stride, length, b, pitch, y, column, count, width = arguments
        e = _Emitter(builder, ROWS, 1)
        rows = [e.word(a, _word(i)) for i in range(ROWS)]
        e.clear()
        with e.loop(runs) as run:
            starts = [e.at(row, builder.mul(run, stride)) for row in rows]
            line = builder.mul(run, length)
            with e.loop(length) as k:
                at = builder.mul(builder.add(line, k), pitch)
                e.step([e.at(start, k) for start in starts], e.at(b, at))
        into = [e.at(e.word(y, _word(i)), column) for i in range(ROWS)]
        full = builder.and_(
            builder.icmp_signed("==", count, _word(ROWS)),
            builder.icmp_signed("==", width, _word(LANES)),
        )
        with builder.if_else(full) as (then, otherwise):
            with then:
                e.store(into)
            with otherwise:
                e.store_some(into, count, width)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


def _outer_tile(rows: int, vectors: int) -> Any:
    """The tile of a product that runs over rows: gw = Σ_pixel g[pixel] · x[pixel]."""

    @intrinsic
    def tile(_: Any, a: Any, pitch: Any, b: Any, offset: Any, length: Any, y: Any, y_pitch: Any,
             more: Any) -> Any:  # fmt: skip
        """y[i] (+)= Σ_k a[k · pitch + i] · b[k][offset:],   i < rows, k < length

        a, y: addresses.   b: address of a table of row addresses.   more: add to y.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, pitch, b, offset, length, y, y_pitch, more = arguments
            e = _Emitter(builder, rows, vectors)
            into = [e.at(y, builder.mul(y_pitch, _word(i))) for i in range(rows)]
            with builder.if_else(cgutils.is_not_null(builder, more)) as (then, otherwise):
                with then:
                    e.fetch(into)
                with otherwise:
                    e.clear()
            with e.loop(length) as k:
                start = e.at(a, builder.mul(k, pitch))
                e.step([e.at(start, i) for i in range(rows)], e.at(e.word(b, k), offset))
            e.store(into)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return tile


_outer_44, _outer_41 = _outer_tile(OUTER_ROWS, OUTER_VECTORS), _outer_tile(OUTER_ROWS, 1)
_outer_14, _outer_11 = _outer_tile(1, OUTER_VECTORS), _outer_tile(1, 1)


@numba.njit(inline="always")
def _outer(a, pitch, rows, b, offset, columns, length, y, y_pitch, more):  # type: ignore[no-untyped-def]
    """y[i, j] (+)= Σ_k a[k · pitch + i] · b[k][offset + j],   i < rows, j < columns, k < length

    Reads and writes up to a whole vector of columns.
    """
    for j in range(0, columns, OUTER):
        wide = columns - j > OUTER - LANES
        for i in range(0, rows, OUTER_ROWS):
            if rows - i >= OUTER_ROWS:
                if wide:
                    to = y + 4 * (i * y_pitch + j)
                    _outer_44(a + 4 * i, pitch, b, offset + j, length, to, y_pitch, more)
                    continue
                for v in range(j, columns, LANES):
                    to = y + 4 * (i * y_pitch + v)
                    _outer_41(a + 4 * i, pitch, b, offset + v, length, to, y_pitch, more)
                continue
            for r in range(i, rows):
                if wide:
                    to = y + 4 * (r * y_pitch + j)
                    _outer_14(a + 4 * r, pitch, b, offset + j, length, to, y_pitch, more)
                    continue
                for v in range(j, columns, LANES):
                    to = y + 4 * (r * y_pitch + v)
                    _outer_11(a + 4 * r, pitch, b, offset + v, length, to, y_pitch, more)


# ---------------------------------------------------------------------------------------- products


@numba.njit(inline="always")
def _address(a, index):  # type: ignore[no-untyped-def]
    """Of a[index], a of one axis."""
    return a.ctypes.data + index * a.itemsize


@numba.njit
def _pack(w, panels, base, i_count, j_count, l_count, i_step, j_step, l_step, n_step, n, first, last):  # type: ignore[no-untyped-def]  # fmt: skip
    """panels: b[(i,j,k), column] = w[base + i·i_step + j·j_step + k·l_step + column·n_step]

    For the panels numbered first .. last, each (i_count·j_count·l_count, LANES), the columns from n
    on filled with 0.
    """
    depth = i_count * j_count * l_count
    for panel in range(first, last):
        column = panel * LANES
        width = min(LANES, n - column)
        to = panels[panel * depth * LANES :]
        for k in range(l_count):
            for i in range(i_count):
                for j in range(j_count):
                    at = base + i * i_step + j * j_step + k * l_step + column * n_step
                    line = to[((i * j_count + j) * l_count + k) * LANES :]
                    for c in range(width):
                        line[c] = w[at + c * n_step]
                    for c in range(width, LANES):
                        line[c] = 0


@job("v v i i i i i i i i")
def pack(w, panels, i_count, j_count, l_count, i_step, j_step, l_step, n_step, n, first, last, part):  # type: ignore[no-untyped-def]  # fmt: skip
    """See _pack; base 0."""
    counts = i_count, j_count, l_count
    _pack(w, panels, 0, *counts, i_step, j_step, l_step, n_step, n, first, last)


@numba.njit
def _product(a, count, runs, stride, length, b, step, pitch, n, y):  # type: ignore[no-untyped-def]
    """y[i][0:n] = a[i] · b,   i < count.   a, y: tables of row addresses with ROWS spare places.

    b: the columns from j on begin at b[j · step], j a multiple of LANES, and their rows are `pitch`
    apart: (depth, LANES) for panels, (1, n) for a matrix in order whose n is a multiple of LANES.
    """
    for i in range(count, count + ROWS):
        a[i] = a[count - 1]
    for column in range(0, n, LANES):
        at = _address(b, column * step)
        for i in range(0, count, ROWS):
            rows, width = min(ROWS, count - i), min(LANES, n - column)
            of, to = _address(a, i), _address(y, i)
            _tile(of, runs, stride, length, at, pitch, to, column, rows, width)


@numba.njit
def _bias_act(y, bias, act, slope, first, last):  # type: ignore[no-untyped-def]
    """y = act(y + bias), rows first .. last"""
    slope = np.float32(slope)
    for i in range(first, last):
        for j in range(y.shape[1]):
            y[i, j] = _act(y[i, j] + bias[j], act, slope)


@job("v i v i i m v i i f t")
def matmul(x, depth, b, step, pitch, y, bias, finish, act, slope, table, first, last, part):  # type: ignore[no-untyped-def]
    """y = act(x · b + bias), rows first .. last.   x (M,depth).   b, step, pitch: see _product.

    finish: whether bias and act apply.   table: 2 · (last - first + ROWS) long, at least.
    """
    count, n = last - first, y.shape[1]
    half = table.shape[1] // 2
    rows, to = table[part, :half], table[part, half:]
    for i in range(count):
        rows[i] = _address(x, (first + i) * depth)
        to[i] = y.ctypes.data + 4 * (first + i) * n
    _product(rows, count, 1, 0, depth, b, step, pitch, n, to)
    if finish:
        _bias_act(y, bias, act, slope, first, last)


@job("v i v m t")
def matmul_outer(a, pitch, b, y, table, first, last, part):  # type: ignore[no-untyped-def]
    """y = aᵀ · b, rows first .. last.   a (K,pitch), b (K,N), N a multiple of LANES.

    table: K long, at least.
    """
    n, rows = y.shape[1], table[part]
    depth = len(b) // n
    for k in range(depth):
        rows[k] = _address(b, k * n)
    for k in range(0, depth, _CHUNK):
        at, to = _address(a, k * pitch + first), y.ctypes.data + 4 * first * n
        length = min(_CHUNK, depth - k)
        _outer(at, pitch, last - first, _address(rows, k), 0, n, length, to, n, k)


# ------------------------------------------------------------------------------------ convolutions
# `geometry` are the numbers that im2col takes:
#   h w c   p q   taps_r taps_s   stride_h stride_w   top left   dilation_h dilation_w

IN_PLACE, PADDED, LAID_OUT = range(3)  # where patches are read: in x, in a copy with its padding,
_CHUNK = 64  # or from im2col.   Rows of an outer product between two visits to its tile


@numba.njit
def _pad(x, to, n0, n1, h, w, c, top, left, bottom, right):  # type: ignore[no-untyped-def]
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


@numba.njit
def _patches(x, how, n0, n1, area, table, geometry):  # type: ignore[no-untyped-def]
    """Fill `table` with the addresses of the patches of images n0 .. n1.

    Returns (runs, stride, length) of each.
    """
    h, w, c, p, q, taps_r, taps_s, sh, sw, top, left, dh, dw = geometry
    if how == LAID_OUT:
        im2col(x, area, n0 * p, n1 * p, h, w, c, p, q, taps_r, taps_s, sh, sw, top, left, dh, dw)
        depth = taps_r * taps_s * c
        for i in range((n1 - n0) * p * q):
            table[i] = _address(area, i * depth)
        return 1, 0, depth
    if how == PADDED:
        high = max(h + top, (p - 1) * sh + dh * (taps_r - 1) + 1)
        wide = max(w + left, (q - 1) * sw + taps_s)
        _pad(x, area, n0, n1, h, w, c, top, left, high - h - top, wide - w - left)
        start = _address(area, 0)
    else:
        high, wide = h, w
        start = _address(x, n0 * h * w * c)
    i = 0
    for n in range(n1 - n0):
        for row in range(p):
            at = start + 4 * c * wide * (n * high + row * sh)
            for column in range(q):
                table[i] = at + 4 * c * column * sw
                i += 1
    return taps_r, dh * wide * c, taps_s * c


@job("v v m v i i f i i m t g")
def conv2d(
    x, panels, y, bias, finish, act, slope, how, piece, area, table, geometry, first, last, part
):  # type: ignore[no-untyped-def]
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
        _product(rows, count, runs, stride, length, panels, runs * length, LANES, k, to)
        if finish:
            _bias_act(y, bias, act, slope, n0 * pixels, n1 * pixels)


@numba.njit
def _phase(i, taps, stride, pad):  # type: ignore[no-untyped-def]
    """The taps that pixels h ≡ i (mod stride) of a convolution's input have met: number and first,
    and the output p that the last of them belongs to, for h = i."""
    first = (i + pad) % stride
    return max(0, (taps - first + stride - 1) // stride), first, (i + pad) // stride


@job("v v g i")
def pack_phases(w, panels, geometry, k, first, last, part):  # type: ignore[no-untyped-def]
    """The filters of `conv2d_dgrad`'s phases, one behind the other: their panels first .. last.

    w (K,C,R,S), flat.
    """
    _, _, c, _, _, taps_r, taps_s, sh, sw, top, left, _, _ = geometry
    width = (c + LANES - 1) // LANES
    at = 0
    for i in range(sh):
        count_r, r, _ = _phase(i, taps_r, sh, top)
        for j in range(sw):
            count_s, s, _ = _phase(j, taps_s, sw, left)
            if count_r * count_s == 0:
                continue
            # Outputs in rising order meet taps in falling order.
            base = (r + sh * (count_r - 1)) * taps_s + s + sw * (count_s - 1)
            size = taps_r * taps_s
            into = panels[at:]
            steps = -sh * taps_s, -sw, c * size, size
            _pack(w, into, base, count_r, count_s, k, *steps, c, first, last)
            at += count_r * count_s * k * width * LANES


@job("v v m v i i f i m t g i")
def conv2d_dgrad(
    g, panels, gx, bias, finish, act, slope, piece, area, table, geometry, k, first, last, part
):  # type: ignore[no-untyped-def]
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
        _pad(g, area, n0, n1, p, q, k, before_r, before_s, after_r, after_s)
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
                            rows[m] = _address(area, at + x * k)
                            to[m] = gx.ctypes.data + 4 * c * (into + x * sw)
                            m += 1
                depth = count_r * count_s * k
                if m:
                    part = panels[used:]
                    _product(rows, m, count_r, wide * k, count_s * k, part, depth, LANES, c, to)
                used += depth * ((c + LANES - 1) // LANES) * LANES
        if finish:
            _bias_act(gx, bias, act, slope, n0 * h * w, n1 * h * w)


@job("v v i i m v i i f i i m t g i")
def conv2d_dgrad_columns(
    g,
    b,
    step,
    pitch,
    gx,
    bias,
    finish,
    act,
    slope,
    direct,
    piece,
    area,
    table,
    geometry,
    k,
    first,
    last,
    part,
):  # type: ignore[no-untyped-def]
    """The same by col2im, for few channels or gapped taps:   cols = g · filters,   gx = col2im(cols)

    b: the filters as (K, R·S·C).   step, pitch: see _product.   direct: whether cols is gx itself.
    """
    h, w, c, p, q, taps_r, taps_s, sh, sw, top, left, dh, dw = geometry
    pixels, depth, image = p * q, taps_r * taps_s * c, h * w * c
    flat = gx.reshape(-1)
    half = table.shape[1] // 2
    area, rows, to = area[part], table[part, :half], table[part, half:]
    for n0 in range(first, last, piece):
        n1 = min(n0 + piece, last)
        count = (n1 - n0) * pixels
        start = _address(flat, n0 * image) if direct else _address(area, 0)
        for i in range(count):
            rows[i] = _address(g, (n0 * pixels + i) * k)
            to[i] = start + 4 * i * depth
        _product(rows, count, 1, 0, k, b, step, pitch, depth, to)
        if not direct:
            flat[n0 * image : n1 * image] = 0
            col2im(area, flat, n0 * p, n1 * p, h, w, c, p, q, taps_r, taps_s, sh, sw, top, left, dh, dw)  # fmt: skip
        if finish:
            _bias_act(gx, bias, act, slope, n0 * h * w, n1 * h * w)


@job("v v m i i m t g i")
def conv2d_wgrad(x, g, sums, how, piece, area, table, geometry, k, first, last, part):  # type: ignore[no-untyped-def]
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
        for i in range(0, count, _CHUNK):
            at = _address(g, (n0 * pixels + i) * k)
            part, rows = min(_CHUNK, count - i), _address(table, i)
            for run in range(runs):
                to = _address(sums, run * width)
                _outer(at, k, k, rows, run * stride, length, part, to, runs * width, more)
            more = 1


@job("v v i i i i i")
def add_sums(sums, gw, parts, k, runs, length, c, first, last, part):  # type: ignore[no-untyped-def]
    """gw (K,C,taps) = Σ_part sums, which are as conv2d_wgrad leaves them; filters first .. last"""
    width = (length + LANES - 1) // LANES * LANES
    taps = runs * length // c
    along = length // c
    for i in range(first, last):
        for p in range(1, parts):
            to, other = sums[i * runs * width :], sums[(p * k + i) * runs * width :]
            for j in range(runs * width):
                to[j] += other[j]
        for run in range(runs):
            at, to = sums[(i * runs + run) * width :], gw[i * c * taps + run * along :]
            for j in range(c):
                for s in range(along):
                    to[j * taps + s] = at[s * c + j]
