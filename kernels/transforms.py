"""The transforms of Winograd's filtering, of one tile and of all that images have: see winograd.py.

Each is y = L · x · Rᵀ, x and y matrices of blocks of channels, L and R constant. That of a tile is
written in LLVM's code, like the tiles of tiles.py, so that a matrix of vectors stays in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.core import types
from numba.extending import intrinsic

from minigan.kernels.gemm import address
from minigan.kernels.jobs import inner
from minigan.kernels.tiles import LANES, VECTOR, WORD, Emitter

Matrix = Sequence[Sequence[float]]

# At the points 0, 1, ∞ and -1, for tiles of two and of three outputs.
B_TRANSPOSED = (
    ((1, -1, 0), (0, 1, 0), (0, -1, 1)),
    ((1, 0, -1, 0), (0, 0.5, 0.5, 0), (0, -1, 0, 1), (0, -0.5, 0.5, 0)),
)
A = ((1, 0), (1, 1), (0, 1)), ((1, 0, 0), (1, 1, 1), (0, 0, 1), (1, -1, 1))
G = ((1, 0), (1, 1), (0, 1)), ((1, 0), (1, 1), (0, 1), (1, -1))
POINTS = 4  # of an axis, at most


def _transposed(m: Matrix) -> Matrix:
    return tuple(zip(*m, strict=True))


def _sums(builder: Any, matrix: Matrix, vectors: Sequence[Any]) -> list[Any]:
    """matrix · vectors"""
    sums = []
    for line in matrix:
        total = None
        for factor, vector in zip(line, vectors, strict=True):
            if factor:
                if factor != 1:
                    vector = builder.fmul(vector, ir.Constant(VECTOR, [float(factor)] * LANES))
                total = vector if total is None else builder.fadd(total, vector)
        sums.append(total)
    return sums


def _transform(left: Matrix, right: Matrix, to_points: bool) -> Any:
    """The transform of one tile: y = left · x · rightᵀ, x and y matrices of blocks of floats."""

    @intrinsic
    def apply(_: Any, x: Any, down: Any, across: Any, rows: Any, pitch: Any, places: Any,
              length: Any) -> Any:  # fmt: skip
        """to_points: x is at the address `x`, its blocks `down` and `across` apart, and block (i,j)
        of y is row places[i,j] of `rows`, rows that are `pitch` long.   Else from rows to `x`.

        length: of a block, in whole vectors.   x, rows, places: addresses.
        """

        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            x, down, across, rows, pitch, places, length = arguments
            e = Emitter(builder, 0, 0)

            def on_grid(i: int, j: int) -> Any:
                shift = builder.add(builder.mul(down, WORD(i)), builder.mul(across, WORD(j)))
                return e.at(x, shift)

            def in_rows(i: int, j: int) -> Any:
                place = e.word(places, WORD(i * POINTS + j))
                return e.at(rows, builder.mul(place, pitch))

            of, to = (on_grid, in_rows) if to_points else (in_rows, on_grid)
            high, wide = range(len(left[0])), range(len(right[0]))
            sources = [[of(i, j) for j in wide] for i in high]
            targets = [[to(i, j) for j in range(len(right))] for i in range(len(left))]
            with e.loop(builder.sdiv(length, WORD(LANES))) as i:
                at = builder.mul(i, WORD(LANES))
                blocks = [[e.load(VECTOR, e.at(s, at)) for s in line] for line in sources]
                columns = [_sums(builder, left, column) for column in _transposed(blocks)]
                for line, values in zip(targets, _transposed(columns), strict=True):
                    for target, value in zip(line, _sums(builder, right, values), strict=True):
                        pointer = builder.inttoptr(e.at(target, at), VECTOR.as_pointer())
                        builder.store(value, pointer).align = 4
            return context.get_dummy_value()

        return types.void(*[types.int64] * 7), generate

    return apply


def _by_size(matrices: Sequence[Matrix], to_points: bool) -> Any:
    """The transform of a tile of m × n outputs, m and n two or three."""
    f22, f23, f32, f33 = (_transform(m, n, to_points) for m in matrices for n in matrices)

    @inner
    def apply(m, n, x, down, across, rows, pitch, places, length):
        if m == 2:
            if n == 2:
                f22(x, down, across, rows, pitch, places, length)
            else:
                f23(x, down, across, rows, pitch, places, length)
        elif n == 2:
            f32(x, down, across, rows, pitch, places, length)
        else:
            f33(x, down, across, rows, pitch, places, length)

    return apply


_input = _by_size(B_TRANSPOSED, True)  # Bᵀ d B
_output = _by_size([_transposed(a) for a in A], False)  # Aᵀ M A
_output_gradient = _by_size(A, True)  # A g Aᵀ
transform_filter = _by_size(G, True)  # G w Gᵀ
transform_filter_gradient = _by_size([_transposed(g) for g in G], False)  # Gᵀ U G


# ------------------------------------------------------------------------------------------ tiles
# `grid` are the tiles of an image: p q, the outputs of an axis, and how many of its tiles have
# three of them: threes_p threes_q. Those come first. Points are numbered as in a 4 × 4 matrix.


@inner
def _tiles(outputs, threes):
    return (outputs - threes) // 2


@inner
def _begin(tile, threes):
    """(the tile's first output, how many it has)"""
    return 2 * tile + min(tile, threes), 3 if tile < threes else 2


@inner
def _counts(grid, point):
    """How many tiles along each axis have this point."""
    p, q, threes_p, threes_q = grid
    high = threes_p if point // POINTS == 3 else _tiles(p, threes_p)
    wide = threes_q if point % POINTS == 3 else _tiles(q, threes_q)
    return high, wide


@inner
def first_rows(grid, images, starts):
    """starts[point]: its first row; starts[16]: the number of rows"""
    starts[0] = 0
    for point in range(POINTS * POINTS):
        high, wide = _counts(grid, point)
        starts[point + 1] = starts[point] + images * high * wide


@inner
def _places(grid, starts, n, i, j, places):
    """places[point]: the row of tile (i,j) of image n"""
    for point in range(POINTS * POINTS):
        high, wide = _counts(grid, point)
        places[point] = starts[point] + (n * high + i) * wide + j


@inner
def transform_inputs(area, start, geometry, grid, images, starts, places, rows):
    """rows = Bᵀ d B of the padded images in `area`, of which the tiles begin `start` floats in"""
    _, _, c, _, _, high, wide, step, _, _, _ = geometry
    p, q, threes_p, threes_q = grid
    line, depth = wide * c, step * step * c
    for n in range(images):
        for i in range(_tiles(p, threes_p)):
            y, m = _begin(i, threes_p)
            for j in range(_tiles(q, threes_q)):
                x, o = _begin(j, threes_q)
                _places(grid, starts, n, i, j, places)
                at = start + ((n * high + step * y) * wide + step * x) * c
                for e in range(step):
                    _input(
                        m, o, address(area, at + e * line), step * line, step * c,
                        rows + 4 * e * step * c, depth, address(places, 0), step * c
                    )  # fmt: skip


def _between(transform: Any) -> Any:
    """The function that transforms between rows and the tiles of y, of which the first image's
    begin with pixel `start`."""

    @inner
    def apply(y, start, k, geometry, grid, images, starts, places, rows):
        _, _, _, _, _, _, _, _, step, wide, pixels = geometry
        p, q, threes_p, threes_q = grid
        for n in range(images):
            for i in range(_tiles(p, threes_p)):
                line, m = _begin(i, threes_p)
                for j in range(_tiles(q, threes_q)):
                    column, o = _begin(j, threes_q)
                    _places(grid, starts, n, i, j, places)
                    pixel = start + n * pixels + (line * wide + column) * step
                    transform(
                        m, o, y + 4 * pixel * k, step * wide * k, step * k, rows, k,
                        address(places, 0), k
                    )  # fmt: skip

    return apply


transform_outputs = _between(_output)  # y = Aᵀ M A
transform_output_gradients = _between(_output_gradient)  # rows = A g Aᵀ
