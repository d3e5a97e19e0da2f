"""The rules by which an op is differentiated, and what its nodes keep for them."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

from minigan.autograd import Node, Tensor

RESERVED = {"g", "y", "saved", "shape", "position"}  # what a vjp can name beside its op's own


class Rule:
    """A vjp, and what it wants after g.

    take: finds that in a node's `kept`, or, if it wants more than is there, in
    [*kept, *attributes, shape, position].
    """

    def __init__(
        self, what: str, function: Callable[..., Any], arguments: list[str], attributes: list[str]
    ) -> None:
        known = {*RESERVED, *arguments, *attributes} - {"g"}
        first, *self.names = [*inspect.signature(function).parameters] or [""]
        if first != "g" or not known.issuperset(self.names):
            raise TypeError(f"{what} must take g, then any of {known}")
        self.function = function
        kept = ["saved", "y"]  # behind the arguments, whose number may vary
        self.wants_more = not {*arguments, *kept}.issuperset(self.names)
        behind = [*kept, *attributes, "shape", "position"] if self.wants_more else kept
        places = {name: i for i, name in enumerate(arguments)}
        places |= {name: i - len(behind) for i, name in enumerate(behind)}
        self.take = _taker([places[name] for name in self.names])


def _taker(places: list[int]) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """A function from a sequence to its elements at `places`."""
    if len(places) == 1:  # itemgetter gives one element by itself, but a slice in a sequence
        return itemgetter(slice(places[0], places[0] + 1 or None))
    return itemgetter(*places) if places else itemgetter(slice(0))


class Like:
    """What is kept of an argument that no vjp asks for."""

    __slots__ = ("dtype", "shape")

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.shape, self.dtype = shape, dtype


class Plan:
    """What the nodes of an op keep if gradients flow to the arguments at `positions`.

    rules: of each of these arguments, None if it has none.   each: the indices of both, and of the
    node's parents.   keeps_all: keep all arguments, not only those that a rule names.
    """

    __slots__ = (
        "each",
        "kept",
        "op",
        "positions",
        "rules",
        "unnamed",
        "unnamed_constants",
        "with_y",
    )

    def __init__(
        self,
        op: Any,
        names: Sequence[str],
        positions: list[int],
        rules: list[Rule | None],
        keeps_all: bool,
    ) -> None:
        self.op = op
        self.positions, self.rules, self.each = positions, rules, range(len(positions))
        named = {name for rule in rules if rule for name in rule.names}
        self.with_y = "y" in named
        unnamed = [i for i, name in enumerate(names) if not keeps_all and name not in named]
        self.unnamed = [i for i in unnamed if i in positions]
        self.unnamed_constants = [i for i in unnamed if i not in positions]
        self.kept = [(k, i) for k, i in enumerate(positions) if i not in unnamed]

    def as_tensors(self, node: Node) -> list[Any]:
        """What the node keeps, as Tensors where a gradient flows to it or to what it came from."""
        kept, parents = [*node.kept], node.parents
        for k, i in self.kept:
            kept[i] = Tensor.wrap(kept[i], parents[k])
        if self.with_y:
            kept[-1] = Tensor.wrap(kept[-1], node)
        return kept
