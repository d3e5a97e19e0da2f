"""Reverse-mode automatic differentiation, of any order: the engine.

A Tensor is an array and, if it was computed from something that requires a gradient, the Node that
recorded how. `grad` walks the Nodes from an output back to the targets, and multiplies the incoming
gradient g = dL/dy with each operation's Jacobian, by the operation's vjp (vector-Jacobian product).

The one idea to take away: **the order of differentiation is the type that a vjp is passed.** A vjp
is written in operators and ops, which take arrays as well as Tensors. Handed arrays, it computes
first-order gradients at NumPy's speed and records nothing. Handed Tensors (`create_graph=True`),
the same lines are recorded in turn, so the gradient can be differentiated again.

What an operation is, and how it is given its vjps, is in primitive.py.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any

import numpy as np

from minigan import kernels
from minigan.array import Array, to_numpy, xp_of

_count = itertools.count()
_new, _ndarray = object.__new__, np.ndarray
_order = operator.attrgetter("order")


# Of each thread its own.
_recording: ContextVar[bool] = ContextVar("recording", default=True)
_observer: ContextVar[Callable[[str, Array], None] | None] = ContextVar("observer", default=None)
is_recording, observer = _recording.get, _observer.get


class Node:
    """One recorded operation, or a leaf: the part of a Tensor that the graph is made of.

    Nodes refer to the Nodes they came from and never to Tensors, so a graph has no cycles and is
    freed as soon as the last Tensor that leads to it goes. `order` grows with creation: every
    parent's is below its child's, which makes sorting by it a topological order.
    """

    __slots__ = ("attrs", "grad", "kept", "order", "parents", "plan")

    def __init__(
        self,
        plan: Any = None,  # of the op's nodes: what they keep, and whose vjps they run
        parents: Sequence[Node] = (),  # of the arguments that a gradient flows to
        kept: Sequence[Any] = (),  # [*arguments, saved, y], as far as vjps ask for them
        attrs: Any = None,
    ) -> None:
        self.plan = plan
        self.parents = parents
        self.kept = kept
        self.attrs = attrs
        self.grad: Tensor | None = None  # of leaves, filled by Tensor.backward
        self.order = next(_count)


def _as_array(data: Any) -> Array:
    """NumPy's scalars as arrays; what is an array as it is."""
    return np.asarray(data) if isinstance(data, np.generic) else data


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
        self.data = _as_array(data)
        self._leaf: Node | None = None
        self.node = None
        if requires_grad:
            self.requires_grad = True

    @staticmethod
    def wrap(data: Array, node: Node | None = None) -> Tensor:
        """A Tensor on `data` as it is, recorded by `node`."""
        t: Tensor = _new(Tensor)
        t.data = data if type(data) is _ndarray else _as_array(data)
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

    def requires_grad_(self, value: bool = True) -> Tensor:
        """Set requires_grad, and return this Tensor."""
        self.requires_grad = value
        return self

    @property
    def is_leaf(self) -> bool:
        """Whether it was made by a user, not by an op on something that requires a gradient."""
        return self.node is None or self.node.plan is None

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
        if self.node is None:
            raise ValueError("backward: this Tensor came from nothing that requires a gradient")
        leaves = [n for n in _reachable(self.node, 0) if n.plan is None]
        table = backpropagate(self, leaves, g, create_graph)
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

    def tolist(self) -> Any:
        """The values as nested lists of Python numbers."""
        return self.data.tolist()

    def __format__(self, spec: str) -> str:
        if spec and self.size != 1:
            raise TypeError(f"format: {spec!r} needs a Tensor of one element, not {self.shape}")
        return format(self.item(), spec) if spec else str(self)

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


def array_of(x: Any) -> Any:
    """The array of a Tensor; what is none, as it is."""
    return x.data if isinstance(x, Tensor) else x


def recorded(value: bool, function: Callable[..., Any], *args: Any) -> Any:
    """function(*args), recorded if `value` is true.

    An interrupt leaves all as it was before; one that comes as a with-block begins or ends may not.
    """
    before = is_recording()
    try:
        _recording.set(value)
        return function(*args)
    finally:
        _recording.set(before)


class no_grad:
    """Context manager: nothing that runs inside is recorded."""

    __slots__ = ("token",)

    def __enter__(self) -> None:
        self.token = _recording.set(False)

    def __exit__(self, *_: object) -> None:
        _recording.reset(self.token)


@contextmanager
def observe(call: Callable[[str, Array], None]) -> Iterator[None]:
    """Context manager: call(op name, result array) after every op, vjps' ops included."""
    token = _observer.set(call)
    try:
        yield
    finally:
        _observer.reset(token)


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
    table = backpropagate(y, [x.node for x in targets if x.node], g, create_graph)
    grads = []
    for x in targets:
        gx = table.get(x.node) if x.node else None
        gx = xp_of(x.data).zeros_like(x.data) if gx is None else gx
        grads.append(gx if isinstance(gx, Tensor) else Tensor.wrap(gx))
    return grads[0] if isinstance(xs, Tensor) else grads


def _reachable(root: Node, first: int) -> list[Node]:
    """The nodes that root came from, itself included, of order `first` or above."""
    found, seen = [root], {root}
    for node in found:
        for parent in node.parents:
            if parent not in seen and parent.order >= first:
                seen.add(parent)
                found.append(parent)
    return found


def backpropagate(
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
    g = (g if isinstance(g, Tensor) else Tensor.wrap(g)) if create_graph else array_of(g)
    if g.shape != y.shape:
        raise ValueError(f"grad: g has shape {g.shape}, y has {y.shape}")

    wanted = dict.fromkeys(targets)
    path: set[Node] = set()
    to_visit = []  # the nodes of the path that are no dead end, in order
    reachable = _reachable(y.node, min(t.order for t in targets))
    reachable.sort(key=_order)
    for node in reachable:
        if not path.isdisjoint(node.parents):
            path.add(node)
            to_visit.append(node)
        elif node in wanted:
            path.add(node)

    return recorded(create_graph, _walk, to_visit, path, wanted, y.node, g, create_graph)


def _walk(
    to_visit: list[Node], path: set[Node], wanted: dict[Node, None], root: Node, g: Any,
    create_graph: bool,
) -> dict[Node, Any]:  # fmt: skip
    """The table of gradients of `wanted`, from g of `root`, the last node that is visited."""
    table = {root: g}
    owned: set[Node] = set()  # whose entry is a buffer that this walk allocated
    later = not create_graph and kernels.costly_launches(g)
    rows: dict[Node, list[Any]] = {}  # of leaves, if later: what is summed at the end
    for node in reversed(to_visit):
        g = table.get(node) if node in wanted else table.pop(node, None)
        if g is None:
            continue
        parents, positions = node.parents, node.plan.positions
        into: Sequence[int] = node.plan.each
        if not path.issuperset(parents):
            into = [k for k in into if parents[k] in path]
        grads = node.plan.op.pull(node, g, into, create_graph)
        for k in into:
            gx = grads[k]
            if gx is None:
                continue
            array, x = gx.data if create_graph else gx, node.kept[positions[k]]
            if array.shape != x.shape:
                gx = sum_to(gx, x.shape)
            if array.dtype is not x.dtype and array.dtype != x.dtype:
                gx = gx.astype(x.dtype)
            parent = parents[k]
            if later and gx.dtype == np.float32:
                if parent.plan is None:
                    row = rows.setdefault(parent, [])
                    if len(row) == kernels.PARTS:
                        row[:] = kernels.totals([row])
                    row.append(gx)
                    continue
                if isinstance(gx, kernels.ChannelSum):
                    [gx] = kernels.totals([[gx]])
            before = table.get(parent)
            if before is None:
                table[parent] = gx
            elif create_graph:
                table[parent] = before + gx
            else:
                total = kernels.add(before, gx, out=before if parent in owned else None)
                table[parent] = total
                if not isinstance(total, np.generic):  # NumPy's sum of two scalars
                    owned.add(parent)
    leaves = [t for t in wanted if t in rows]
    table.update(zip(leaves, kernels.totals([rows[t] for t in leaves]), strict=True))
    return {t: table[t] for t in wanted if t in table}
