"""Tiles of registers: the innermost loops of CPU products, written in LLVM's language.

A tile of y is held in vector registers while the products that make it are added up; each step
loads a vector or some of b, and multiplies them by one number of each row of a:

    y[row, columns] += a[row, k] · b[k, columns]     for the rows of the tile, and all k

LLVM's intermediate language has vectors of any length and keeps variables in registers, which is
all that this takes; Numba turns it into machine code for the processor. Addresses are in bytes,
all else in floats.
"""

from __future__ import annotations

import platform
from contextlib import contextmanager
from typing import Any

from llvmlite import ir
from numba.core import cgutils, codegen, config, types
from numba.extending import intrinsic


def _features() -> list[str]:
    """Of the processor that Numba compiles for: NUMBA_CPU_FEATURES, else those that it finds."""
    listed = config.CPU_FEATURES
    return (codegen.get_host_cpu_features() if listed is None else listed).split(",")


_avx512 = "+avx512f" in _features()
_many_registers = _avx512 or platform.machine() in ("arm64", "aarch64")  # 32, where others have 16
# Whether a product is not rounded before it is added.
FUSED = "+fma" in _features() or platform.machine() not in ("x86_64", "AMD64")

LANES = 16 if _avx512 else 8 if "+avx" in _features() else 4  # floats of a vector
ROWS = 8  # of product_tile
OUTER_ROWS, OUTER_VECTORS = 4, 4 if _many_registers else 2  # of outer_tile
OUTER = OUTER_VECTORS * LANES
# product_tile sums so many products apart, and then these sums: each addition rounds by the size
# of what it is added to, and thousands in a row would miss the kernels' tolerance. Outer products
# come in chunks: see gemm.CHUNK.
BLOCK = 256

_float, WORD = ir.FloatType(), ir.IntType(64)
VECTOR = ir.VectorType(_float, LANES)


class Emitter:
    """Writes the LLVM code of a tile: `rows` × `vectors` vectors of y."""

    def __init__(self, builder: Any, rows: int, vectors: int) -> None:
        self.builder, self.rows, self.vectors = builder, rows, vectors
        # Variables to LLVM, which makes registers of them.
        self.sums = [
            [cgutils.alloca_once(builder, VECTOR) for _ in range(vectors)] for _ in range(rows)
        ]
        self.fma = cgutils.get_or_insert_function(
            builder.module, ir.FunctionType(VECTOR, [VECTOR] * 3), f"llvm.fmuladd.v{LANES}f32"
        )

    def at(self, address: Any, floats: Any = 0) -> Any:
        """The address `floats` further on."""
        if isinstance(floats, int):
            floats = ir.Constant(WORD, floats)
        return self.builder.add(address, self.builder.mul(floats, ir.Constant(WORD, 4)))

    def load(self, kind: Any, address: Any) -> Any:
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = 8 if kind is WORD else 4
        return value

    def word(self, table: Any, index: Any) -> Any:
        """table[index], of 64-bit words"""
        return self.load(WORD, self.at(table, self.builder.mul(index, ir.Constant(WORD, 2))))

    def splat(self, address: Any) -> Any:
        """The vector of the one float there."""
        lane = ir.IntType(32)
        undefined = ir.Constant(VECTOR, ir.Undefined)
        one = self.builder.insert_element(undefined, self.load(_float, address), lane(0))
        first = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        return self.builder.shuffle_vector(one, undefined, first)

    def clear(self) -> None:
        for row in self.sums:
            for s in row:
                self.builder.store(ir.Constant(VECTOR, [0.0] * LANES), s)

    def gather(self, y: list[Any]) -> None:
        """sums += what is at y"""
        for sums, row in zip(self.sums, y, strict=True):
            for j, s in enumerate(sums):
                there = self.load(VECTOR, self.at(row, j * LANES))
                self.builder.store(self.builder.fadd(there, self.builder.load(s)), s)

    def step(self, a: list[Any], b: Any) -> None:
        """sums[i] += a[i] · b, a and b addresses"""
        vectors = [self.load(VECTOR, self.at(b, j * LANES)) for j in range(self.vectors)]
        for sums, address in zip(self.sums, a, strict=True):
            factor = self.splat(address)
            for s, v in zip(sums, vectors, strict=True):
                self.builder.store(
                    self.builder.call(self.fma, [factor, v, self.builder.load(s)]), s
                )

    def add(self, other: Emitter) -> None:
        """sums += other's"""
        for mine, its in zip(self.sums, other.sums, strict=True):
            for s, t in zip(mine, its, strict=True):
                total = self.builder.fadd(self.builder.load(s), self.builder.load(t))
                self.builder.store(total, s)

    def store(self, y: list[Any]) -> None:
        for sums, row in zip(self.sums, y, strict=True):
            for j, s in enumerate(sums):
                to = self.builder.inttoptr(self.at(row, j * LANES), VECTOR.as_pointer())
                self.builder.store(self.builder.load(s), to).align = 4

    def store_some(self, y: list[Any], rows: Any, columns: Any) -> None:
        """Of a tile of one vector: its first rows and columns."""
        lane, mask = ir.IntType(32), ir.VectorType(ir.IntType(1), LANES)
        lanes = ir.Constant(ir.VectorType(WORD, LANES), list(range(LANES)))
        some = self.builder.insert_element(ir.Constant(lanes.type, ir.Undefined), columns, lane(0))
        first = ir.Constant(ir.VectorType(lane, LANES), [0] * LANES)
        some = self.builder.shuffle_vector(some, some, first)
        wanted = self.builder.icmp_signed("<", lanes, some)
        pointer = VECTOR.as_pointer()
        masked = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(ir.VoidType(), [VECTOR, pointer, lane, mask]),
            f"llvm.masked.store.v{LANES}f32.p0",
        )
        for i, ((s,), row) in enumerate(zip(self.sums, y, strict=True)):
            with self.builder.if_then(self.builder.icmp_signed("<", WORD(i), rows)):
                to = self.builder.inttoptr(row, pointer)
                self.builder.call(masked, [self.builder.load(s), to, lane(4), wanted])

    @contextmanager
    def loop(self, count: Any) -> Any:
        with cgutils.for_range(self.builder, count, intp=WORD) as loop:
            yield loop.index


@intrinsic
def product_tile(
    _: Any, a: Any, runs: Any, stride: Any, length: Any, b: Any, pitch: Any, y: Any, column: Any,
    count: Any, width: Any,
) -> Any:  # fmt: skip
    """y[i][column + j] = Σ a[i][run, k] · b[run · length + k, j],   i < count, j < width

    count ≤ ROWS, width ≤ LANES.   a, y: addresses of tables of ROWS row addresses, those of a all
    to be read from.   b: an address; its rows are `pitch` apart, and LANES can be read of each.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        a, runs, stride, length, b, pitch, y, column, count, width = arguments
        e, block = Emitter(builder, ROWS, 1), Emitter(builder, ROWS, 1)
        rows = [e.word(a, WORD(i)) for i in range(ROWS)]
        e.clear()
        blocks = builder.sdiv(builder.add(length, WORD(BLOCK - 1)), WORD(BLOCK))
        with e.loop(runs) as run:
            starts = [e.at(row, builder.mul(run, stride)) for row in rows]
            line = builder.mul(run, length)
            with e.loop(blocks) as i:
                first = builder.mul(i, WORD(BLOCK))
                rest = builder.sub(length, first)
                fewer = builder.icmp_signed("<", rest, WORD(BLOCK))
                block.clear()
                with e.loop(builder.select(fewer, rest, WORD(BLOCK))) as j:
                    k = builder.add(first, j)
                    at = builder.mul(builder.add(line, k), pitch)
                    block.step([e.at(start, k) for start in starts], e.at(b, at))
                e.add(block)
        into = [e.at(e.word(y, WORD(i)), column) for i in range(ROWS)]
        full = builder.and_(
            builder.icmp_signed("==", count, WORD(ROWS)),
            builder.icmp_signed("==", width, WORD(LANES)),
        )
        with builder.if_else(full) as (then, otherwise):
            with then:
                e.store(into)
            with otherwise:
                e.store_some(into, count, width)
        return context.get_dummy_value()

    return types.void(*[types.int64] * 10), generate


def _outer(rows: int, vectors: int) -> Any:
    """The tile of a product that runs over rows: gw = Σ_pixel g[pixel] · x[pixel]."""

    @intrinsic
    def tile(_: Any, a: Any, pitch: Any, b: Any, offset: Any, length: Any, y: Any, y_pitch: Any,
             more: Any) -> Any:  # fmt: skip
        """y[i] (+)= Σ_k a[k · pitch + i] · b[k][offset:],   i < rows, k < length

        a, y: addresses.   b: address of a table of row addresses.   more: add to y.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            a, pitch, b, offset, length, y, y_pitch, more = arguments
            e = Emitter(builder, rows, vectors)
            into = [e.at(y, builder.mul(y_pitch, WORD(i))) for i in range(rows)]
            e.clear()
            with e.loop(length) as k:
                start = e.at(a, builder.mul(k, pitch))
                e.step([e.at(start, i) for i in range(rows)], e.at(e.word(b, k), offset))
            with builder.if_then(cgutils.is_not_null(builder, more)):
                e.gather(into)
            e.store(into)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), generate

    return tile


outer_tile, outer_tile_narrow = _outer(OUTER_ROWS, OUTER_VECTORS), _outer(OUTER_ROWS, 1)
outer_row, outer_row_narrow = _outer(1, OUTER_VECTORS), _outer(1, 1)


@intrinsic
def copy_vector(_: Any, source: Any, target: Any) -> Any:
    """Copy one vector from address to address."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        pointer = VECTOR.as_pointer()
        value = builder.load(builder.inttoptr(arguments[0], pointer))
        value.align = 4
        builder.store(value, builder.inttoptr(arguments[1], pointer)).align = 4
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def transpose_square(_: Any, source: Any, pitch: Any, rows: Any, targets: Any) -> Any:
    """Transpose LANES × LANES floats:   target[j][i] = source[i · pitch + j]

    source: address.   targets: that of a table of addresses.   rows: those that may be read; beyond
    them, the last one is read instead.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, pitch, rows, targets = arguments
        e = Emitter(builder, 0, 0)
        last = builder.sub(rows, WORD(1))
        vectors = []
        for i in range(LANES):
            there = builder.icmp_signed("<", WORD(i), rows)
            row = builder.select(there, WORD(i), last)
            vectors.append(e.load(VECTOR, e.at(source, builder.mul(row, pitch))))
        step = 1
        while step < LANES:  # swap blocks of step × step that face each other across the diagonal
            upper = [j if not j & step else LANES + j - step for j in range(LANES)]
            lower = [j + step if not j & step else LANES + j for j in range(LANES)]
            for i in range(LANES):
                if not i & step:
                    pair = vectors[i], vectors[i + step]
                    for to, lanes in ((i, upper), (i + step, lower)):
                        mask = ir.Constant(ir.VectorType(ir.IntType(32), LANES), lanes)
                        vectors[to] = builder.shuffle_vector(*pair, mask)
            step *= 2
        for j, vector in enumerate(vectors):
            to = builder.inttoptr(e.word(targets, WORD(j)), VECTOR.as_pointer())
            builder.store(vector, to).align = 4
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), generate
