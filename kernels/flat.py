"""The small kernels, as in reference.py: losses, flat buffers, sums, random numbers.

One launch each, and what counts is their number: see README.md, "Launches".
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from minigan.array import Array
from minigan.kernels.launcher import launch, numbers
from minigan.kernels.operands import blocks, empty, expect, float32, specialised
from minigan.kernels.reference import ChannelSum, Pair, aligned_starts

Row = Sequence[Array | ChannelSum]
ROWS, PARTS = 8, 4  # that a launch of pack takes
LONG = 64  # terms that one thread should not add up alone


def bce_with_logits(x: Array, target: float) -> tuple[Array, Array]:
    (x,) = float32("bce_with_logits", x=x)
    loss, gx = empty(x, ()), empty(x, x.shape)
    launch(specialised("bce_with_logits"), (1,), (256,), (x, loss, gx, x.size, target))
    return loss, gx


def logistic_d(real: Array, fake: Array, target: float) -> tuple[Array, Array]:
    real, fake = float32("logistic_d", real=real, fake=fake)
    loss, gx = empty(real, ()), empty(real, (real.size + fake.size,))
    args = (real, fake, loss, gx, real.size, fake.size, target)
    launch(specialised("logistic_d"), (1,), (256,), args)
    return loss, gx


def logit_figures(real: Array, fake: Array) -> Array:
    real, fake = float32("logit_figures", real=real, fake=fake)
    figures = empty(real, (6,))
    args = (real, fake, figures, real.size, fake.size)
    launch(specialised("logit_figures"), (1,), (256,), args)
    return figures


def pack(rows: Sequence[Row], starts: Sequence[int], flat: Array) -> None:
    _pack(rows, starts, [0] * len(rows), flat)


def totals(rows: Sequence[Row]) -> list[Array]:
    """In one launch for eight rows, and end to end in one array, where there is a sum to take."""
    if all(len(row) == 1 and not isinstance(row[0], ChannelSum) for row in rows):
        return [row[0] for row in rows]
    sizes, like = [row[0].size for row in rows], _arrays_of(rows[0])[0]
    starts = aligned_starts(sizes, 4)
    flat = empty(like, (starts[-1],))
    gaps = [end - start - size for start, end, size in zip(starts, starts[1:], sizes, strict=False)]
    _pack(rows, starts[:-1], gaps, flat)
    shapes = [row[0].shape for row in rows]
    return [
        flat[start : start + size].reshape(shape)
        for start, size, shape in zip(starts, sizes, shapes, strict=False)
    ]


def _arrays_of(row: Row) -> list[Array]:
    return [part.g if isinstance(part, ChannelSum) else part for part in row]


def _pack(rows: Sequence[Row], starts: Sequence[int], gaps: Sequence[int], flat: Array) -> None:
    """gaps: how many zeros to write behind each row."""
    float32("pack", flat=flat)
    for first in range(0, len(rows), ROWS):
        some = rows[first : first + ROWS]
        arrays: list[list[Array | None]] = [[None] * ROWS for _ in range(PARTS)]
        batches, inners = ([[0] * ROWS for _ in range(PARTS)] for _ in range(2))
        by_block: list[int] = []
        grid = 1
        for j, row in enumerate(some):
            for k, (part, a) in enumerate(zip(row, _arrays_of(row), strict=True)):
                (arrays[k][j],) = float32("pack", **{f"rows[{first + j}][{k}]": a})
                expect("pack", f"rows[{first + j}][{k}]", part, row[0].shape)
                if isinstance(part, ChannelSum):
                    batches[k][j], inners[k][j] = len(a), math.prod(a.shape[2:])
            sums = [part.g for part in row if isinstance(part, ChannelSum)]
            by_block.append(int(any(a.ndim > 2 or len(a) > LONG for a in sums)))
            grid = max(grid, row[0].size if by_block[-1] else math.ceil(row[0].size / 256))
        layout = {
            "SIZES": [row[0].size for row in some],
            "STARTS": starts[first : first + ROWS],
            "GAPS": gaps[first : first + ROWS],
            "COUNTS": [len(row) for row in some],
            "LONG": by_block,
            "BATCHES": [n for part in batches for n in part],
            "INNERS": [n for part in inners for n in part],
        }
        defines = {
            key: ",".join(map(str, [*values, *[0] * (ROWS - len(values))]))
            for key, values in layout.items()
        }
        pointers = [a for part in arrays for a in part]
        launch(specialised("pack", **defines), (grid, len(some)), (256,), (*pointers, flat))


def average(a: Array, p: Array, blend: float) -> None:
    expect("average", "p", p, a.shape)
    args = (a, p, numbers(a, np.array([blend], np.float32)), a.size)
    launch(specialised("average"), blocks(a.size), (256,), args)


def squares(x: Array, scale: float) -> tuple[Array, Array]:
    (x,) = float32("squares", x=x)
    (slices,), gx = blocks(x.size, 4096), empty(x, x.shape)
    y = empty(x, (slices, 1))
    launch(specialised("squares"), (slices,), (256,), (x, y, gx, x.size, scale))
    return (totals([[ChannelSum(y)]])[0] if slices > 1 else y).reshape(()), gx


def add(a: Array, b: Array, out: Array | None = None, factor: float = 1.0) -> Array:
    a, b = float32("add", a=a, b=b)
    expect("add", "b", b, a.shape)
    y = empty(a, a.shape) if out is None else out
    launch(specialised("add"), blocks(a.size), (256,), (a, b, y, a.size, factor))
    return y


def scale(x: Array, s: Array) -> Array:
    x, s = float32("scale", x=x, s=s)
    y = empty(x, x.shape)
    launch(specialised("scale"), blocks(x.size), (256,), (x, s, y, x.size))
    return y


def adam_hyper(
    lr: float, beta1: float, beta2: float, eps: float, weight_decay: float, step: int
) -> np.ndarray:
    """The six numbers that adam.cu reads, float32; see its header."""
    rate, correction = lr / (1 - beta1**step), 1 / (1 - beta2**step)
    decay = 1 - lr * weight_decay
    return np.array([1 - beta1, 1 - beta2, rate, correction, eps, decay], np.float32)


def adam_step(p: Array, g: Array, m: Array, v: Array, hyper: Array) -> None:
    """adam with its numbers in device memory: those of adam_hyper."""
    for name, a in (("g", g), ("m", m), ("v", v)):
        expect("adam", name, a, p.shape)
    expect("adam", "hyper", hyper, (6,))
    launch(specialised("adam"), blocks(p.size), (256,), (p, g, m, v, hyper, p.size))


def adam(
    p: Array, g: Array, m: Array, v: Array, lr: float, beta1: float, beta2: float, eps: float,
    weight_decay: float, step: int,
) -> None:  # fmt: skip
    hyper = adam_hyper(lr, beta1, beta2, eps, weight_decay, step)
    adam_step(p, g, m, v, numbers(p, hyper))


def philox_uniform(
    out: Array, key: Pair, step: int = 0, first_block: int = 1, low: float = 0.0, high: float = 1.0
) -> None:
    """Fill out with U[low, high), bit by bit what minigan.array.Stream draws.

    key: (seed, 64-bit key of the stream's name). first_block: 1 + the blocks of 8 already drawn.
    """
    below = np.nextafter(np.float32(high), np.float32(low))
    args = (out, out.size, *key, step, first_block, low, high - low, below)
    launch(specialised("philox_uniform"), (math.ceil(out.size / 2048),), (256,), args)


def philox_normal(
    out: Array, key: Pair, step: int = 0, first_block: int = 1, mean: float = 0.0, std: float = 1.0
) -> None:
    """Fill out with N(mean, std²), within a few ulps of what minigan.array.Stream draws."""
    args = (out, out.size, *key, step, first_block, mean, std)
    launch(specialised("philox_normal"), (math.ceil(out.size / 2048),), (256,), args)
