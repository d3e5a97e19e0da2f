"""Parameters end to end in one flat array, for optimizers and averages to take them at once.

The parameters' `data` become views into that array.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from minigan import kernels
from minigan.array import Array, address, xp_of
from minigan.autograd import Tensor


def kind(a: Array) -> tuple[Any, Any]:
    """What arrays must share to lie in one."""
    return xp_of(a), a.dtype


def _starts(arrays: Sequence[Array]) -> list[int]:
    """Where each of them starts in a flat array, and last the length of it."""
    return kernels.aligned_starts([a.size for a in arrays], arrays[0].dtype.itemsize)


def lay_out(params: Sequence[Tensor]) -> None:
    """Put params end to end into one array, as an optimizer does, if they can share one."""
    if len({kind(p.data) for p in params}) == 1:
        Flat(list(range(len(params))), list(params), {}, ())


def laid_out(arrays: Sequence[Array]) -> Array | None:
    """The one array that they lie in end to end, in this order; None if they do not."""
    flat = arrays[0].base if arrays else None
    if not isinstance(flat, xp_of(flat).ndarray) or flat.ndim != 1:
        return None
    starts, first, itemsize = _starts(arrays), address(flat), flat.dtype.itemsize
    there = all(
        a.base is flat
        and a.dtype == flat.dtype
        and a.flags.c_contiguous
        and address(a) == first + start * itemsize
        for a, start in zip(arrays, starts, strict=False)
    )
    return flat if there and flat.size == starts[-1] else None


class Flat:
    """Parameters of one group, device and dtype, end to end in one array, with all that is theirs.

    places: where they stand in the optimizer's list.   options: those of their group.
    p, g: parameters and gradients.   state: name -> array like p.   steps: of each parameter.
    The gaps that alignment leaves hold zeros, which every update maps to zeros.
    """

    def __init__(
        self, places: list[int], params: list[Tensor], options: dict[str, Any], state: Sequence[str]
    ) -> None:
        self.places, self.params, self.options = places, params, options
        self.shapes = [p.shape for p in params]
        self.starts = _starts(params)
        xp = xp_of(params[0].data)
        self.p, self.g = (xp.zeros(self.starts[-1], params[0].dtype) for _ in range(2))
        self.state = {key: xp.zeros_like(self.p) for key in state}
        self.steps = np.zeros(len(params), np.int64)
        self.views: list[Array] = [None] * len(params)
        self.adopt()

    def part(self, flat: Array, i: int) -> Array:
        """The view of parameter i's values in one of the flat arrays."""
        start, shape = self.starts[i], self.shapes[i]
        return flat[start : start + math.prod(shape)].reshape(shape)

    def adopt(self) -> None:
        """Make each p.data a view of self.p; whoever put another array there keeps its values."""
        for i, p in enumerate(self.params):
            if p.data is self.views[i] and p.data.base is self.p:
                continue
            view = self.part(self.p, i)
            if kind(p.data) != kind(view) or p.data.shape != view.shape:
                raise ValueError(
                    f"optimizer: parameter {self.places[i]}, {tuple(p.shape)}, changed its device, "
                    "dtype or shape; make the optimizer after moving or changing the net"
                )
            view[...] = p.data
            p.data = self.views[i] = view

    def gather(self, grads: list[Array | None], copy: bool) -> Iterator[tuple[int, slice, Array]]:
        """Yields (step, part of the flat arrays to update, its gradients).

        One part if all parameters have a gradient and are equally old; else one for each run of
        neighbours that are; but one for each parameter where that costs less than to bring their
        gradients together. Parameters without a gradient are in none.

        copy: the gradients in any case, so that they may be changed.
        """
        if not copy and not kernels.costly_launches(self.p):
            for i, g in enumerate(grads):
                if g is not None:
                    self.steps[i] += 1
                    start = self.starts[i]
                    yield int(self.steps[i]), slice(start, start + g.size), g.ravel()
            return
        there = [i for i, g in enumerate(grads) if g is not None]
        flat = laid_out(grads) if len(there) == len(grads) and not copy else None
        if flat is None:
            kernels.pack([[grads[i]] for i in there], [self.starts[i] for i in there], self.g)
            flat = self.g
        self.steps[there] += 1
        steps = self.steps.tolist()
        ages = [0 if g is None else n for g, n in zip(grads, steps, strict=True)]
        for age, run in groupby(range(len(ages)), ages.__getitem__):
            members = list(run)
            if age:
                part = slice(self.starts[members[0]], self.starts[members[-1] + 1])
                yield age, part, flat[part]
