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
from minigan.autograd import Node, Tensor, array_of, backpropagate, recording, state

RESERVED = {"g", "y", "saved", "shape", "position"}  # what a vjp can name beside its op's own


class _Rule:
    """A vjp and the names of what it wants after g."""

    def __init__(self, op: Primitive, argument: str, function: Callable[..., Any]) -> None:
        self.function = function
        self.names = list(inspect.signature(function).parameters)
        known = {*RESERVED, *op.arguments, *op.attributes} - {"g"}
        if self.names[:1] != ["g"] or not known.issuperset(self.names[1:]):
            raise TypeError(f"{op.name}: the vjp of {argument} must take g, then any of {known}")
        self.names = self.names[1:]
        self.keeps = {op.arguments.index(n) for n in self.names if n in op.arguments}
        self.keeps_y = "y" in self.names


class Primitive:
    """An operation: a function of arrays, and a vjp for each of them."""

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
        self.rules: dict[str, _Rule | None] = {}
        self._constants: list[int] = []
        self._plans: dict[tuple[bool, ...], tuple[set[int], bool]] = {}
        self._fast_vjp: Callable[..., Sequence[Any]] | None = None
        self._fast_vjp_takes_wanted = False

    def __repr__(self) -> str:
        return f"<op {self.name}{self.__signature__}>"

    def vjp(self, *arguments: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        """Decorator: the vector-Jacobian product by each of `arguments`."""

        def register(function: Callable[..., Any]) -> Callable[..., Any]:
            for argument in arguments:
                if argument not in self.arguments:
                    raise TypeError(f"{self.name} has no argument {argument}")
                self.rules[argument] = _Rule(self, argument, function)
            self._plans.clear()
            return function

        return register

    def fast_vjp(self, function: Callable[..., Sequence[Any]]) -> Callable[..., Any]:
        """Decorator: all gradients at once, on arrays; taken instead of the vjps where it can be.

        (g, y, *arrays, **attrs) -> one gradient an argument, None where there is none.   y: None if
        no vjp names it.   arrays: as kept: those that a vjp names, None for others.   If it takes
        `wanted`, the positions of the arguments whose gradient is asked for, it may leave others.
        """
        self._fast_vjp = function
        self._fast_vjp_takes_wanted = "wanted" in inspect.signature(function).parameters
        return function

    def constant(self, *arguments: str) -> None:
        """Declare that the output does not depend smoothly on `arguments`: gradient zero."""
        self.rules.update(dict.fromkeys(arguments))
        self._constants += [self.arguments.index(a) for a in arguments]

    def __call__(self, *args: Any, **attrs: Any) -> Any:
        if attrs and not self.variadic and not self.attributes.keys() >= attrs.keys():
            args, attrs = self._bind(args, attrs)
        arrays, parents, any_tensor = [], [], False
        for a in args:
            if isinstance(a, Tensor):
                any_tensor = True
                arrays.append(a.data)
                parents.append(a.node)
            else:
                arrays.append(a)
                parents.append(None)
        y, saved = self.run(arrays, attrs)
        if state.observer is not None:
            state.observer(self.name, y)
        if not any_tensor:
            return y
        if not state.recording:
            return Tensor.wrap(y)
        return Tensor.wrap(y, self._record(parents, arrays, attrs, y, saved))

    def run(self, arrays: list[Any], attrs: dict[str, Any]) -> tuple[Array, Any]:
        """(y, what the node should save beside it), on arrays."""
        return self.forward(*arrays, **attrs), None

    def pull(self, node: Node, g: Any, wanted: list[int], create_graph: bool) -> list[Any]:
        """The gradients by the arguments at `wanted`, from g = dL/dy; None stands for zeros."""
        if self._fast_vjp is not None and not create_graph:
            options = {**self.attributes, **node.attrs}
            if self._fast_vjp_takes_wanted:
                options["wanted"] = wanted
            grads = self._fast_vjp(g, node.saved, *node.kept, **options)
            return [grads[i] for i in wanted]
        return [self._apply(node, i, g, create_graph) for i in wanted]

    def _bind(self, args: Any, attrs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move array arguments that were passed by keyword to their positions."""
        try:
            bound = self.__signature__.bind(*args, **attrs)
        except TypeError as error:
            raise TypeError(f"{self.name}: {error}; it takes {self.__signature__}") from None
        bound.apply_defaults()
        return bound.args, {k: v for k, v in bound.kwargs.items() if k in attrs}

    def _argument(self, i: int) -> str:
        return self.arguments[min(i, len(self.arguments) - 1)]

    def _plan(self, mask: tuple[bool, ...]) -> tuple[set[int], bool]:
        """(positions to keep, whether to keep y) if gradients are needed where `mask` is true."""
        rules = [self.rules.get(self._argument(i)) for i, needed in enumerate(mask) if needed]
        keeps: set[int] = set().union(*(r.keeps for r in rules if r))
        return keeps, any(r.keeps_y for r in rules if r)

    def _record(
        self, parents: list[Node | None], arrays: list[Any], attrs: Any, y: Array, saved: Any
    ) -> Node | None:
        for i in self._constants:
            if i < len(parents):
                parents[i] = None
        mask = tuple([p is not None for p in parents])
        if True not in mask or y.dtype.kind != "f":  # integers are constants
            return None
        plan = self._plans.get(mask)
        if plan is None:
            plan = self._plans[mask] = self._plan(mask)
        keeps, keeps_y = plan
        shapes = [a.shape if needed else None for a, needed in zip(arrays, mask, strict=True)]
        dtypes = [a.dtype if needed else None for a, needed in zip(arrays, mask, strict=True)]
        kept = [a if i in keeps else None for i, a in enumerate(arrays)] if keeps else ()
        return Node(self, parents, shapes, dtypes, kept, y if keeps_y else saved, attrs)

    def _output(self, node: Node) -> Array:
        """y, if a vjp names it."""
        return node.saved

    def _apply(self, node: Node, i: int, g: Any, create_graph: bool) -> Any:
        argument = self._argument(i)
        rule = self.rules.get(argument)
        if rule is None:
            raise NotImplementedError(f"{self.name} has no vjp for its argument {argument!r}")
        values: list[Any] = []
        for name in rule.names:
            if name == "shape":
                values.append(node.shapes[i])
            elif name == "position":
                values.append(i)
            elif name == "y":
                y = self._output(node)
                values.append(Tensor.wrap(y, node) if create_graph else y)
            elif name == "saved":
                values.append(node.saved)
            elif name in self.attributes:
                values.append(node.attrs.get(name, self.attributes[name]))
            else:
                j = self.arguments.index(name)
                parent = node.parents[j]
                wrap = create_graph and parent is not None
                values.append(Tensor.wrap(node.kept[j], parent) if wrap else node.kept[j])
        return rule.function(g, *values)


class Fused(Primitive):
    """A composite of ops with array-only shortcuts; the composite is the definition.

    fast_forward(*arrays, **attrs) -> (y, saved)
    fast_vjp(g, saved, *arrays, **attrs) -> one gradient an argument, given all arrays

    `grad(create_graph=True)` replays the composite on the saved arguments and differentiates that,
    unless the op has vjps. They may name `saved` too, whose first is y where one of them names y.
    """

    _forward: Callable[..., tuple[Array, Any]] | None = None

    def fast_forward(self, function: Callable[..., tuple[Array, Any]]) -> Callable[..., Any]:
        self._forward = function
        return function

    def run(self, arrays: list[Any], attrs: dict[str, Any]) -> tuple[Array, Any]:
        if self._forward is None:
            return self.forward(*arrays, **attrs), None
        return self._forward(*arrays, **{**self.attributes, **attrs})

    def _plan(self, mask: tuple[bool, ...]) -> tuple[set[int], bool]:
        return set(range(len(mask))), False

    def _output(self, node: Node) -> Array:
        return node.saved[0]

    def pull(self, node: Node, g: Any, wanted: list[int], create_graph: bool) -> list[Any]:
        if self.rules or (self._fast_vjp is not None and not create_graph):
            return super().pull(node, g, wanted, create_graph)
        with recording(True):
            inputs = [
                a if p is None else _identity(Tensor.wrap(a, p))
                for a, p in zip(node.kept, node.parents, strict=True)
            ]
            y = self.forward(*inputs, **node.attrs)
        targets = [inputs[i].node for i in wanted]
        table = backpropagate(y, targets, g, create_graph)
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
    arguments = [*xs, *more]
    y = compute(*map(array_of, arguments))
    if state.observer is not None:
        state.observer(first.name, y)
        state.observer(second.name, y)
    if not any(isinstance(a, Tensor) for a in arguments):
        return y
    if not state.recording:
        return Tensor.wrap(y)
    between = Tensor.wrap(y, first._record(*_parts(xs), attrs, y, None))
    return Tensor.wrap(y, second._record(*_parts([between, *more]), options, y, None))


def _parts(xs: Sequence[Any]) -> tuple[list[Node | None], list[Any]]:
    """(nodes, arrays) of arguments."""
    return [x.node if isinstance(x, Tensor) else None for x in xs], [array_of(x) for x in xs]


@primitive
def _identity(x: Array) -> Array:
    return x


@_identity.vjp("x")
def _(g: Any) -> Any:
    return g
