"""What ops check of their arguments: axes, and pairs of ints."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.lib.array_utils import normalize_axis_index, normalize_axis_tuple

Axes = int | Sequence[int] | None
Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def axis_of(op: str, axis: int, ndim: int) -> int:
    """`axis` counted from the front.   Raises: AxisError, a ValueError, that names op."""
    return normalize_axis_index(axis, ndim, op)


def axes_of(op: str, axes: Axes, ndim: int) -> tuple[int, ...]:
    """`axes`, one or several or None for all, counted from the front, in their order.

    Raises: AxisError, a ValueError, that names op; ValueError for an axis that is there twice.
    """
    return tuple(range(ndim)) if axes is None else normalize_axis_tuple(axes, ndim, op)


def pair(name: str, value: Any, least: int) -> Pair:
    """One or two ints -> two.   Raises: ValueError that opens with `name`."""
    if type(value) is int and value >= least:
        return value, value
    both = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(both) != 2 or any(not isinstance(v, int | np.integer) or v < least for v in both):
        raise ValueError(f"{name} must be one or two ints of at least {least}, not {value!r}")
    return int(both[0]), int(both[1])


def pads_of(value: Any) -> Pads:
    """int, (height, width) or ((top, bottom), (left, right)) -> ((top, bottom), (left, right))"""
    if type(value) is int and value >= 0:
        return (value, value), (value, value)
    sides = tuple(value) if isinstance(value, tuple | list) else (value, value)
    if len(sides) != 2:
        raise ValueError(
            f"pad must be an int, (h, w) or ((top, bottom), (left, right)), not {value!r}"
        )
    return pair("pad", sides[0], 0), pair("pad", sides[1], 0)
