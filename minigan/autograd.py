"""Reverse-mode automatic differentiation, of any order.

A Tensor is an array and, if it was computed from something that requires a gradient, the Node that
recorded how. `grad` walks the Nodes from an output back to the targets, and multiplies the incoming
gradient g = dL/dy with each operation's Jacobian, by the operation's vjp (vector-Jacobian product).

The one idea to take away: **the order of differentiation is the type that a vjp is passed.** A vjp
is written in operators and ops, which take arrays as well as Tensors. Handed arrays, it computes
first-order gradients at NumPy's speed and records nothing. Handed Tensors (`create_graph=True`),
the same lines are recorded in turn, so the gradient can be differentiated again.

    @primitive
    def tanh(x):                       positional arguments are arrays, keyword-only ones attributes
        return xp_of(x).tanh(x)

    @tanh.vjp("x")
    def _(g, y):                       what a vjp names is what is kept alive until then: y, not x
        return g * (1 - y * y)

A vjp takes g, then any of: the op's arguments and attributes by name, `y` (the output), `shape` (of
the argument that it differentiates) and, for `*xs`, `position`. It never writes into g.
"""

from __future__ import annotations

import inspect
import itertools
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from minigan.array import Array, to_numpy, xp_of

_count = itertools.count()


class _State(threading.local):
    recording = True
    observer: Callable[[str, Array], None] | None = None


_state = _State()


class Node:
    """One recorded operation, or a leaf: the part of a Tensor that the graph is made of.

    Nodes refer to the Nodes they came from and never to Tensors, so a graph has no cycles and is
    freed as soon as the last Tensor that leads to it goes. `order` grows with creation: every
    parent's is below its child's, which makes sorting by it a topological order.
    """

    __slots__ = ("attrs", "dtypes", "grad", "kept", "op", "order", "parents", "saved", "shapes")

    def __init__(
        self,
        op: Primitive | None = None,
        parents: Sequence[Node | None] = (),  # of each argument; None for constants
        shapes: Sequence[Any] = (),  # of the arguments that have a parent, and their dtypes
        dtypes: Sequence[Any] = (),
        kept: Sequence[Any] = (),  # the arguments that a vjp will ask for, else None
        saved: Any = None,  # y, if a vjp will ask for it; of fused ops, what fast_forward saved
        attrs: dict[str, Any] | None = None,
    ) -> None:
        self.op = op
        self.parents = parents
        self.shapes = shapes
        self.dtypes = dtypes
        self.kept = kept
        self.saved = saved
        self.attrs = attrs or {}
        self.grad: Tensor | None = None  # of leaves, filled by Tensor.backward
        self.order = next(_count)


class Tensor:
    """An array that can be differentiated through.

    data: anything NumPy takes as an array. Python floats become float32; arrays keep their dtype.
    requires_grad: make this a leaf that `grad` and `backward` can differentiate by; floats only.
    """

    __slots__ = ("__weakref__", "_leaf", "data", "node")
    __array_ufunc__ = None  # so that  ndarray * Tensor  is Tensor.__rmul__

    data: Array
    node: Node | None

    def __init__(self, data: Any, requires_grad: bool = False) -> None:
        if isinstance(data, Tensor):
            data = data.data
        elif xp_of(data) is np and not isinstance(data, np.ndarray | np.generic):
            data = np.asarray(data)
            if data.dtype == np.float64:
                data = data.astype(np.float32)
        self.data = np.asarray(data) if isinstance(data, np.generic) else data
        self._leaf: Node | None = None
        self.node = None
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def wrap(data: Array, node: Node | None = None) -> Tensor:
        """A Tensor on `data` as it is, recorded by `node`."""
        t = Tensor.__new__(Tensor)
        t.data = np.asarray(data) if isinstance(data, np.generic) else data
        t._leaf = None
        t.node = node
        return t

    @property
    def requires_grad(self) -> bool:
        """Whether gradients flow to or through this Tensor. Set it on leaves to freeze them."""
        return self.node is not None

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        if not self.is_leaf:
            raise ValueError("requires_grad: only a leaf can be changed; use detach() instead")
        if value and self.data.dtype.kind != "f":
            raise TypeError(f"requires_grad: a {self.data.dtype} Tensor cannot have a gradient")
        if value and self._leaf is None:
            self._leaf = Node()  # one for life: graphs recorded before a freeze still find it
        self.node = self._leaf if value else None

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by a user, not by an op on something that requires a gradient."""
        return self.node is None or self.node.op is None

    @property
    def grad(self) -> Tensor | None:
        """What `backward` accumulated here, None before the first time."""
        return self._leaf.grad if self._leaf is not None else None

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        if self._leaf is None:
            if value is None:
                return
            raise ValueError("grad: this Tensor is no leaf that requires a gradient")
        self._leaf.grad = value

    def backward(self, g: Any = None, create_graph: bool = False) -> None:
        """Add dL/dx to x.grad for every leaf x that this Tensor came from.

        g: dL/d(self), by default 1, which needs a Tensor of one element.
        """
        leaves = [n for n in _reachable(self.node, 0) if n.op is None] if self.node else []
        table = _backpropagate(self, leaves, g, create_graph)
        for leaf, gx in table.items():
            gx = gx if isinstance(gx, Tensor) else Tensor.wrap(gx)
            leaf.grad = gx if leaf.grad is None else leaf.grad + gx

    def detach(self) -> Tensor:
        """The same array, cut off from the graph."""
        return Tensor.wrap(self.data)

    shape = property(lambda self: self.data.shape)
    ndim = property(lambda self: self.data.ndim)
    size = property(lambda self: self.data.size)
    dtype = property(lambda self: self.data.dtype)

    def numpy(self) -> np.ndarray:
        """The values in host memory; shares memory with the Tensor where it is there already."""
        return to_numpy(self.data)

    def item(self) -> Any:
        """The only element, as a Python number."""
        return self.data.item()

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(self.numpy(), dtype=dtype, copy=copy)

    def __dlpack__(self, **kwargs: Any) -> Any:
        return self.data.__dlpack__(**kwargs)

    def __dlpack_device__(self) -> Any:
        return self.data.__dlpack_device__()

    def __len__(self) -> int:
        return len(self.data)

    def __iter__(self) -> Iterator[Tensor]:
        if self.ndim == 0:
            raise TypeError("a Tensor of no axes cannot be iterated")
        return (self[i] for i in range(len(self)))

    def __bool__(self) -> bool:
        return bool(self.data)

    def __float__(self) -> float:
        return float(self.data)

    def __int__(self) -> int:
        return int(self.data)

    __hash__ = object.__hash__

    def __setitem__(self, index: Any, value: Any) -> None:
        raise TypeError(
            "a Tensor is not changed in place: use where(), concat() or pad(), or .data"
        )

    def __repr__(self) -> str:
        body = np.array2string(self.numpy(), separator=", ", prefix="Tensor(", threshold=100)
        extra = "" if self.dtype == np.float32 else f", dtype={self.dtype}"
        return f"Tensor({body}{extra}{', requires_grad=True' if self.requires_grad else ''})"

    if TYPE_CHECKING:  # minigan.ops gives Tensor its operators and methods

        def _binary(self, other: Any) -> Tensor: ...
        def _unary(self) -> Tensor: ...
        def _compare(self, other: Any) -> Any: ...
        def __getattr__(self, name: str) -> Any: ...
        def __getitem__(self, index: Any) -> Tensor: ...

        __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = _binary
        __truediv__ = __rtruediv__ = __pow__ = __rpow__ = __matmul__ = __rmatmul__ = _binary
        __neg__ = __abs__ = _unary
        __lt__ = __le__ = __gt__ = __ge__ = __eq__ = __ne__ = _compare  # type: ignore


def _array(x: Any) -> Any:
    return x.data if isinstance(x, Tensor) else x


class _Rule:
    """A vjp and the names of what it wants after g."""

    def __init__(self, op: Primitive, argument: str, function: Callable[..., Any]) -> None:
        self.function = function
        self.names = list(inspect.signature(function).parameters)
        known = {"y", "shape", "position", *op.arguments, *op.attributes}
        if self.names[:1] != ["g"] or not known.issuperset(self.names[1:]):
            raise TypeError(f"{op.name}: the vjp of {argument} must take g, then any of {known}")
        self.names = self.names[1:]
        self.keeps = {op.arguments.index(n) for n in self.names if n in op.arguments}
        self.keeps_y = "y" in self.names


class Primitive:
    """An operation: a function of arrays, and a vjp for each of them."""

    def __init__(self, forward: Callable[..., Array]) -> None:
        self.forward = forward
        self.name = forward.__name__
        self.__doc__ = forward.__doc__
        self.__name__ = forward.__name__
        self.__module__ = forward.__module__
        self.__signature__ = inspect.signature(forward)
        parameters = self.__signature__.parameters.values()
        self.arguments = [p.name for p in parameters if p.kind is not p.KEYWORD_ONLY]
        self.attributes = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY}
        self.variadic = any(p.kind is p.VAR_POSITIONAL for p in parameters)
        if reserved := {"g", "y", "shape", "position"} & {*self.arguments, *self.attributes}:
            raise TypeError(f"{self.name}: {reserved} are names for its vjps, not for arguments")
        self.rules: dict[str, _Rule | None] = {}
        self._constants: list[int] = []
        self._plans: dict[tuple[bool, ...], tuple[set[int], bool]] = {}
        self._fast_vjp: Callable[..., Sequence[Any]] | None = None

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
        no vjp names it.   arrays: all arguments if some vjp names one, and those None that none does.
        """
        self._fast_vjp = function
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
        if _state.observer is not None:
            _state.observer(self.name, y)
        if not any_tensor:
            return y
        recording = _state.recording
        return Tensor.wrap(y, self._record(parents, arrays, attrs, y, saved) if recording else None)

    def run(self, arrays: list[Any], attrs: dict[str, Any]) -> tuple[Array, Any]:
        """(y, what the node should save beside it), on arrays."""
        return self.forward(*arrays, **attrs), None

    def pull(self, node: Node, g: Any, wanted: list[int], create_graph: bool) -> list[Any]:
        """The gradients by the arguments at `wanted`, from g = dL/dy; None stands for zeros."""
        if self._fast_vjp is not None and not create_graph:
            grads = self._fast_vjp(g, node.saved, *node.kept, **{**self.attributes, **node.attrs})
            return [grads[i] for i in wanted]
        return [self._apply(node, i, g, create_graph) for i in wanted]

    def _bind(self, args: Any, attrs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Move array arguments that were passed by keyword to their positions."""
        bound = self.__signature__.bind(*args, **attrs)
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
        if True not in mask:
            return None
        plan = self._plans.get(mask)
        if plan is None:
            plan = self._plans[mask] = self._plan(mask)
        keeps, keeps_y = plan
        shapes = [a.shape if needed else None for a, needed in zip(arrays, mask, strict=True)]
        dtypes = [a.dtype if needed else None for a, needed in zip(arrays, mask, strict=True)]
        kept = [a if i in keeps else None for i, a in enumerate(arrays)] if keeps else ()
        return Node(self, parents, shapes, dtypes, kept, y if keeps_y else saved, attrs)

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
                values.append(Tensor.wrap(node.saved, node) if create_graph else node.saved)
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

    `grad(create_graph=True)` replays the composite on the saved arguments and differentiates that.
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

    def pull(self, node: Node, g: Any, wanted: list[int], create_graph: bool) -> list[Any]:
        if self._fast_vjp is not None and not create_graph:
            return super().pull(node, g, wanted, create_graph)
        with _recording(True):
            inputs = [
                a if p is None else _identity(Tensor.wrap(a, p))
                for a, p in zip(node.kept, node.parents, strict=True)
            ]
            y = self.forward(*inputs, **node.attrs)
        targets = [inputs[i].node for i in wanted]
        table = _backpropagate(y, targets, g, create_graph)
        return [table.get(t) for t in targets]


def primitive(forward: Callable[..., Array]) -> Primitive:
    """Decorator: make an op of a function on arrays; then give it a vjp for each argument."""
    return Primitive(forward)


def fused(composite: Callable[..., Any]) -> Fused:
    """Decorator: make an op of a function on ops; then give it array-only shortcuts."""
    return Fused(composite)


@primitive
def _identity(x: Array) -> Array:
    return x


@_identity.vjp("x")
def _(g: Any) -> Any:
    return g


@contextmanager
def _recording(value: bool) -> Iterator[None]:
    previous, _state.recording = _state.recording, value
    try:
        yield
    finally:
        _state.recording = previous


def no_grad() -> Any:
    """Context manager: nothing that runs inside is recorded."""
    return _recording(False)


@contextmanager
def observe(observer: Callable[[str, Array], None]) -> Iterator[None]:
    """Context manager: call observer(op name, result array) after every op, vjps' ops included."""
    previous, _state.observer = _state.observer, observer
    try:
        yield
    finally:
        _state.observer = previous


def sum_to(g: Any, shape: tuple[int, ...]) -> Any:
    """Sum g over the axes along which `shape` was broadcast to g.shape."""
    if g.shape == shape:
        return g
    extra = g.ndim - len(shape)
    axes = (*range(extra), *(i + extra for i, n in enumerate(shape) if n == 1))
    g = g.sum(axis=axes, keepdims=True)
    return g.reshape(shape)


def grad(
    y: Tensor, xs: Tensor | Iterable[Tensor], g: Any = None, create_graph: bool = False
) -> Any:
    """dL/dx for each x of xs (one Tensor, or several: a list then), given g = dL/dy.

    g: by default 1, which needs a y of one element. A target that y does not depend on gets zeros.
    create_graph: record the gradients too, so that they can be differentiated again.

    Raises: ValueError for a target that does not require a gradient, or a y of several elements
    without g; NotImplementedError naming the op and argument that has no vjp.
    """
    targets = [xs] if isinstance(xs, Tensor) else list(xs)
    for i, x in enumerate(targets):
        if x.node is None:
            raise ValueError(f"grad: xs[{i}] {x.shape} does not require a gradient")
    table = _backpropagate(y, [x.node for x in targets if x.node], g, create_graph)
    grads = []
    for x in targets:
        gx = table.get(x.node) if x.node else None
        gx = xp_of(x.data).zeros_like(x.data) if gx is None else gx
        grads.append(gx if isinstance(gx, Tensor) else Tensor.wrap(gx))
    return grads[0] if isinstance(xs, Tensor) else grads


def _reachable(root: Node, first: int) -> set[Node]:
    """The nodes that root came from, of order `first` or above."""
    seen, stack = {root}, [root]
    while stack:
        for parent in stack.pop().parents:
            if parent is not None and parent.order >= first and parent not in seen:
                seen.add(parent)
                stack.append(parent)
    return seen


def _backpropagate(
    y: Tensor, targets: Sequence[Node], g: Any, create_graph: bool
) -> dict[Node, Any]:
    """The table of gradients of `targets`: arrays, or Tensors if create_graph.

    Only nodes on a path from y to a target are visited, and only the vjps on such a path are run.
    """
    if g is None and y.size != 1:
        raise ValueError(f"grad: y has shape {y.shape}; give g of that shape, or reduce y first")
    if y.node is None or not targets:
        return {}
    g = xp_of(y.data).ones_like(y.data) if g is None else g
    g = (g if isinstance(g, Tensor) else Tensor.wrap(g)) if create_graph else _array(g)
    if g.shape != y.shape:
        raise ValueError(f"grad: g has shape {g.shape}, y has {y.shape}")

    wanted = set(targets)
    path: set[Node | None] = set()
    by_order = sorted(_reachable(y.node, min(t.order for t in targets)), key=lambda n: n.order)
    for node in by_order:
        if node in wanted or not path.isdisjoint(node.parents):
            path.add(node)

    table: dict[Node, Any] = {y.node: g}
    owned: set[Node] = set()  # whose entry is a buffer that this walk allocated
    with _recording(create_graph):
        for node in reversed(by_order):
            if node not in path or node.op is None:
                continue
            g = table.get(node) if node in wanted else table.pop(node, None)
            into = [i for i, p in enumerate(node.parents) if p in path]
            if g is None or not into:
                continue
            for i, gx in zip(into, node.op.pull(node, g, into, create_graph), strict=True):
                if gx is None:
                    continue
                gx = sum_to(gx, node.shapes[i])
                if gx.dtype != node.dtypes[i]:
                    gx = gx.astype(node.dtypes[i])
                parent = node.parents[i]
                assert parent is not None
                if parent not in table:
                    table[parent] = gx
                elif parent in owned:
                    table[parent] += gx
                else:
                    table[parent] = table[parent] + gx
                    if not create_graph:
                        owned.add(parent)
    return {t: table[t] for t in wanted if t in table}
