"""What an operation is: a function on arrays, and a vjp for each of its arguments.

    @primitive
    def tanh(x):                       positional arguments are arrays, keyword-only ones attributes
        return xp_of(x).tanh(x)

    @tanh.vjp("x")
    def _(g, y):                       what a vjp names is what is kept alive until then: y, not x
        return g * (1 - y * y)

A vjp takes g, then any of: the op's arguments and attributes by name, `y` (the output), `shape` (of
the argument that it differentiates) and, for `*xs`, `position`. It never writes into g.

An op that is made of other ops, but has faster ways on arrays, is `fused`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

from minigan.array import Array
from minigan.autograd import Node, Tensor, backpropagate, is_recording, observer, recorded
from minigan.rules import RESERVED, Like, Plan, Rule


def _parts(args: Sequence[Any]) -> tuple[list[Any], list[Node | None], bool]:
    """(arrays, nodes, whether any is a Tensor) of an op's arguments."""
    arrays: list[Any] = []
    nodes: list[Node | None] = []
    any_tensor = False
    for a in args:
        if isinstance(a, Tensor):
            any_tensor = True
            arrays.append(a.data)
            nodes.append(a.node)
        else:
            arrays.append(a)
            nodes.append(None)
    return arrays, nodes, any_tensor


class Primitive:
    """An operation: a function of arrays, and a vjp for each of them."""

    keeps_all = False  # whether nodes keep all arguments, or those that a vjp names
    _result = -1  # where in a node's `kept` that is which fast_vjp is passed: y

    def __init__(self, forward: Callable[..., Array]) -> None:
        self.forward = forward
        self.name = forward.__name__.strip("_")  # _linear is what the public linear records
        self.__doc__ = forward.__doc__
        self.__name__ = forward.__name__
        self.__module__ = forward.__module__
        self.__signature__ = inspect.signature(forward)
        parameters = self.__signature__.parameters.values()
        self.arguments = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.attributes = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if reserved := RESERVED & {*self.arguments, *self.attributes}:
            raise TypeError(f"{self.name}: {reserved} are names for its vjps, not for arguments")
        self.rules: dict[str, Rule | None] = {}
        self._constants: list[int] = []
        self._plans: dict[Any, Plan] = {}
        self._forward: Callable[..., tuple[Array, Any]] | None = None  # of fused ops
        self._fast_vjp: Callable[..., Sequence[Any]] | None = None
        self._fast_vjp_takes_wanted = False
        self._fast_vjp_arrays = 0  # the stop of their slice of a node's `kept`

    def __repr__(self) -> str:
        return f"<op {self.name}{self.__signature__}>"

    def vjp(self, *arguments: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: the vector-Jacobian product by each of `arguments`."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            for argument in arguments:
                if argument not in self.arguments:
                    raise TypeError(f"{self.name} has no argument {argument}")
                what = f"{self.name}: the vjp of {argument}"
                self.rules[argument] = Rule(what, function, self.arguments, [*self.attributes])
            self._plans.clear()
            return function

        return register

    def fast_vjp(self, function: Callable[..., Sequence[Any]]) -> Callable[..., Any]:
        """Decorator: all gradients at once, on arrays; taken instead of the vjps where it can be.

        (g, y, *arrays, **attrs) -> one gradient an argument, None where there is none.   y: None if
        no vjp names it.   arrays: as kept: those that a vjp names; for others a Like (shape and
        dtype), or None for constants; to be left out where no vjp names any.   If it takes
        `wanted`, the positions of the arguments whose gradient is asked for, it may leave others.
        """
        parameters = inspect.signature(function).parameters.values()
        self._fast_vjp = function
        self._fast_vjp_takes_wanted = "wanted" in [p.name for p in parameters]
        kinds = [p.kind for p in parameters]
        named = kinds.count(inspect.Parameter.POSITIONAL_OR_KEYWORD) - 2
        self._fast_vjp_arrays = -2 if inspect.Parameter.VAR_POSITIONAL in kinds else named
        return function

    def constant(self, *arguments: str) -> None:
        """Declare that the output does not depend smoothly on `arguments`: gradient zero."""
        self.rules.update(dict.fromkeys(arguments))
        self._constants += [self.arguments.index(a) for a in arguments]

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        if attrs and not self.variadic and not self.attributes.keys() >= attrs.keys():
            args, attrs = self._bind(args, attrs)
        arrays, nodes, any_tensor = _parts(args)
        if self._forward is None:
            y, saved = self.forward(*arrays, **attrs), None
        else:
            y, saved = self._forward(*arrays, **{**self.attributes, **attrs})
        if (call := observer()) is not None:
            call(self.name, y)
        if not any_tensor:
            return y
        return Tensor.wrap(
            y, self.record(nodes, arrays, attrs, y, saved) if is_recording() else None
        )

    def record(
        self, nodes: list[Node | None], arrays: list[Any], attrs: Any, y: Array, saved: Any
    ) -> Node | None:
        """The node of y; None if it is a constant. Both lists become the node's own."""
        for i in self._constants:
            if i < len(nodes):
                nodes[i] = None
        everywhere = None not in nodes
        mask = len(nodes) if everywhere else tuple([n is not None for n in nodes])
        plan = self._plans.get(mask)
        if plan is None:
            plan = self._plans[mask] = self._plan([n is not None for n in nodes])
        if not plan.positions or y.dtype.kind != "f":  # integers are constants
            return None
        for i in plan.unnamed:
            a = arrays[i]
            arrays[i] = Like(a.shape, a.dtype)
        for i in plan.unnamed_constants:
            arrays[i] = None
        arrays += saved, y if plan.with_y else None
        parents: Any = nodes if everywhere else [n for n in nodes if n is not None]
        return Node(plan, parents, arrays, attrs)

    def _plan(self, mask: list[bool]) -> Plan:
        """For gradients that flow to the arguments where mask is true."""
        names = [self.argument(i) for i in range(len(mask))]
        positions = [i for i, needed in enumerate(mask) if needed]
        rules = [self.rules.get(names[i]) for i in positions]
        return Plan(self, names, positions, rules, self.keeps_all)

    def pull(self, node: Node, g: Any, wanted: Sequence[int], create_graph: bool) -> list[Any]:
        """The gradient by each of node.parents, from g = dL/dy, if its index is in wanted.

        None stands for zeros, and for what is not wanted.
        """
        plan, kept = node.plan, node.kept
        if create_graph:
            kept = plan.as_tensors(node)
        elif self._fast_vjp is not None:
            options = {**self.attributes, **node.attrs}
            if self._fast_vjp_takes_wanted:
                options["wanted"] = [plan.positions[k] for k in wanted]
            grads = self._fast_vjp(g, kept[self._result], *kept[: self._fast_vjp_arrays], **options)
            return [grads[i] for i in plan.positions]
        grads = [None] * len(node.parents)
        for k in wanted:
            rule, i = plan.rules[k], plan.positions[k]
            if rule is None:
                what = f"{self.name} has no vjp for its argument {self.argument(i)!r}"
                raise NotImplementedError(what)
            found = kept
            if rule.wants_more:
                attributes = {**self.attributes, **node.attrs}.values()
                found = [*kept, *attributes, kept[i].shape, i]
            grads[k] = rule.function(g, *rule.take(found))
        return grads

    def _bind(self, args: Any, attrs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move array arguments that were passed by keyword to their positions."""
        try:
            bound = self.__signature__.bind(*args, **attrs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; it takes {self.__signature__}") from None
        bound.apply_defaults()
        return bound.args, {k: v for k, v in bound.kwargs.items() if k in attrs}

    def argument(self, i: int) -> str:
        """The name of the i-th."""
        return self.arguments[min(i, len(self.arguments) - 1)]


class Fused(Primitive):
    """A composite of ops with array-only shortcuts; the composite is the definition.

    fast_forward(*arrays, **attrs) -> (y, saved)
    fast_vjp(g, saved, *arrays, **attrs) -> one gradient an argument, given all arrays

    `grad(create_graph=True)` replays the composite on the saved arguments and differentiates that,
    unless the op has vjps. They may name `saved` too.
    """

    keeps_all = True
    _result = -2  # saved

    def fast_forward(self, function: Callable[..., tuple[Array, Any]]) -> Callable[..., Any]:
        self._forward = function
        return function

    def pull(self, node: Node, g: Any, wanted: Sequence[int], create_graph: bool) -> list[Any]:
        if self.rules or (self._fast_vjp is not None and not create_graph):
            return super().pull(node, g, wanted, create_graph)
        inputs, targets = [*node.kept[:-2]], []

        def replay() -> Any:
            for i, parent in zip(node.plan.positions, node.parents, strict=True):
                inputs[i] = _identity(Tensor.wrap(inputs[i], parent))
                targets.append(inputs[i].node)
            return self.forward(*inputs, **node.attrs)

        y = recorded(True, replay)
        table = backpropagate(y, [targets[k] for k in wanted], g, create_graph)
        return [table.get(t) for t in targets]


def primitive(forward: Callable[..., Array]) -> Primitive:
    """Decorator: make an op of a function on arrays; then give it a vjp for each argument."""
    return Primitive(forward)


def fused(composite: Callable[..., Any]) -> Fused:
    """Decorator: make an op of a function on ops; then give it array-only shortcuts."""
    return Fused(composite)


def computed_at_once(
    first: Primitive, xs: Sequence[Any], attrs: dict[str, Any],
    second: Primitive, more: Sequence[Any], options: dict[str, Any],
    compute: Callable[..., Array],
) -> Any:  # fmt: skip
    """second(first(*xs, **attrs), *more, **options), both by one compute(*arrays of xs and more).

    Recorded as the two, so no vjp of theirs may name what lies between: it is never there.
    """
    arrays, nodes, any_tensor = _parts((*xs, *more))
    y = compute(*arrays)
    if (call := observer()) is not None:
        call(first.name, y)
        call(second.name, y)
    if not any_tensor:
        return y
    if not is_recording():
        return Tensor.wrap(y)
    n = len(xs)
    between = first.record(nodes[:n], arrays[:n], attrs, y, None)
    return Tensor.wrap(y, second.record([between, *nodes[n:]], [y, *arrays[n:]], options, y, None))


@primitive
def _identity(x: Array) -> Array:
    return x


@_identity.vjp("x")
def _(g: Any) -> Any:
    return g
