"""Ops that move elements and compute nothing: reshape, transpose, slices, padding, joining."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from minigan.array import Array, xp_of
from minigan.autograd import array_of
from minigan.ops.arguments import Axes, axes_of, axis_of
from minigan.primitive import primitive


@primitive
def _reshape(x: Array, *, to: tuple[int, ...]) -> Array:
    return x.reshape(to)


@_reshape.vjp("x")
def _(g: Any, shape: tuple[int, ...]) -> Any:
    return g.reshape(shape)


def reshape(x: Any, *shape: Any) -> Any:
    """x with its elements, in C order, in another shape; one axis may be -1."""
    to = tuple(shape[0]) if len(shape) == 1 and not isinstance(shape[0], int) else shape
    return _reshape(x, to=to)


def flatten(x: Any, start: int = 0) -> Any:
    """x with the axes from `start` on joined into one; a new one if `start` is behind the last."""
    start = start if start == x.ndim else axis_of("flatten", start, x.ndim)
    return reshape(x, *x.shape[:start], math.prod(x.shape[start:]))


@primitive
def _transpose(x: Array, *, axes: tuple[int, ...]) -> Array:
    return x.transpose(axes)


@_transpose.vjp("x")
def _(g: Any, axes: tuple[int, ...]) -> Any:
    return _transpose(g, axes=tuple(int(i) for i in np.argsort(axes)))


def transpose(x: Any, *axes: Any) -> Any:
    """x with its axes in the order `axes`, reversed by default."""
    if len(axes) == 1 and not isinstance(axes[0], int):
        axes = tuple(axes[0]) if axes[0] is not None else ()
    order = axes_of("transpose", axes or range(x.ndim)[::-1], x.ndim)
    if len(order) != x.ndim:
        raise ValueError(f"transpose: {len(order)} axes given for x of {x.ndim}: {axes}")
    return _transpose(x, axes=order)


def swapaxes(x: Any, a: int, b: int) -> Any:
    """x with axes a and b exchanged."""
    order = list(range(x.ndim))
    a, b = axis_of("swapaxes", a, x.ndim), axis_of("swapaxes", b, x.ndim)
    order[a], order[b] = order[b], order[a]
    return transpose(x, order)


def squeeze(x: Any, axis: Axes = None) -> Any:
    """x without its axes of length 1, or without those of `axis`, which must have length 1."""
    if axis is None:
        return reshape(x, tuple(n for n in x.shape if n != 1))
    axes = axes_of("squeeze", axis, x.ndim)
    if any(x.shape[a] != 1 for a in axes):
        raise ValueError(f"squeeze: axis {axis} of shape {x.shape} is not of length 1")
    return reshape(x, tuple(n for i, n in enumerate(x.shape) if i not in axes))


def expand_dims(x: Any, axis: int) -> Any:
    """x with an axis of length 1 put in at `axis`."""
    axis = axis_of("expand_dims", axis, x.ndim + 1)
    return reshape(x, (*x.shape[:axis], 1, *x.shape[axis:]))


def _is_basic(index: Any) -> bool:
    """Whether the index takes each element at most once: ints, slices, None and ... only."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(p is None or p is ... or isinstance(p, int | np.integer | slice) for p in parts)


@primitive
def _getitem(x: Array, *, index: Any) -> Array:
    return x[index]


@_getitem.vjp("x")
def _(g: Any, shape: tuple[int, ...], index: Any) -> Any:
    return _unslice(g, size=shape, index=index)


@primitive
def _unslice(x: Array, *, size: tuple[int, ...], index: Any) -> Array:
    """The transpose of y = x[index]: zeros of shape `size`, with x added in at index."""
    xp = xp_of(x)
    y = xp.zeros(size, x.dtype)
    if _is_basic(index):
        y[index] = x
    else:
        xp.add.at(y, index, x)
    return y


@_unslice.vjp("x")
def _(g: Any, index: Any) -> Any:
    return _getitem(g, index=index)


def getitem(x: Any, index: Any) -> Any:
    """x[index], with NumPy's ints, slices, None, ..., and arrays of int or bool."""
    parts = index if isinstance(index, tuple) else (index,)
    parts = tuple(map(array_of, parts))
    return _getitem(x, index=parts if isinstance(index, tuple) else parts[0])


def flip(x: Any, axis: int | Sequence[int]) -> Any:
    """x with the order of its elements reversed along `axis`."""
    axes = axes_of("flip", axis, x.ndim)
    return getitem(x, tuple(slice(None, None, -1 if i in axes else 1) for i in range(x.ndim)))


def pad(x: Any, width: Sequence[tuple[int, int]], mode: str = "zero") -> Any:
    """x with width[i] = (before, after) elements added along axis i, as np.pad.

    mode: "zero", or "reflect" about the border elements, which are not repeated (each width must
    be below the axis' length then).
    """
    if mode not in ("zero", "reflect"):
        raise ValueError(f"pad: mode must be 'zero' or 'reflect', not {mode!r}")
    if len(width) != x.ndim:
        raise ValueError(f"pad: {len(width)} widths for {x.ndim} axes")
    if any(min(w) < 0 for w in width):
        raise ValueError(f"pad: widths must be 0 or above, not {list(width)}; slice to crop")
    if mode == "zero":
        size = tuple(n + a + b for n, (a, b) in zip(x.shape, width, strict=True))
        inner = tuple(slice(a, a + n) for n, (a, _) in zip(x.shape, width, strict=True))
        return _unslice(x, size=size, index=inner)
    for axis, (before, after) in enumerate(width):
        n = x.shape[axis]
        if max(before, after) >= n:
            raise ValueError(f"pad: cannot reflect {max(before, after)} of an axis of length {n}")
        lead = (slice(None),) * axis
        parts = [
            flip(getitem(x, (*lead, slice(1, before + 1))), axis),
            x,
            flip(getitem(x, (*lead, slice(n - 1 - after, n - 1))), axis),
        ]
        if before or after:
            x = concat([p for p in parts if p.shape[axis]], axis)
    return x


@primitive
def _concat(*xs: Array, axis: int, starts: tuple[int, ...]) -> Array:
    return xp_of(*xs).concatenate(xs, axis=axis)


@_concat.vjp("xs")
def _(g: Any, shape: Any, position: int, axis: int, starts: tuple[int, ...]) -> Any:
    first = starts[position]
    return g[(slice(None),) * axis + (slice(first, first + shape[axis]),)]


def concat(xs: Sequence[Any], axis: int = 0) -> Any:
    """The arrays of xs joined along an axis that they have."""
    axis = axis_of("concat", axis, xs[0].ndim)
    starts = [0]
    for x in xs:
        starts.append(starts[-1] + x.shape[axis])
    return _concat(*xs, axis=axis, starts=tuple(starts[:-1]))


def stack(xs: Sequence[Any], axis: int = 0) -> Any:
    """The arrays of xs, all of one shape, joined along a new axis."""
    axis = axis_of("stack", axis, xs[0].ndim + 1)
    return concat([expand_dims(x, axis) for x in xs], axis)
