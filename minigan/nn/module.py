"""Module: a part of a network, with its parameters, buffers and parts found by looking at it.

A parameter is an attribute that is a Parameter, a buffer one that is any other Tensor, a part one
that is a Module. Names are those of PyTorch: the attributes, joined by dots. What stands in a
network twice (tied weights) is listed once, by its first name; the state has it by all its names.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeGuard, TypeVar, overload

import numpy as np

from minigan import ops
from minigan.array import to_device, to_numpy
from minigan.autograd import Tensor, array_of, no_grad


class Parameter(Tensor):
    """A Tensor that training changes. requires_grad=False freezes it."""

    __slots__ = ()

    def __init__(self, data: Any, requires_grad: bool = True) -> None:
        super().__init__(data, requires_grad=requires_grad)


T = TypeVar("T")


def _once(named: Iterable[tuple[str, T]]) -> Iterator[tuple[str, T]]:
    """Each thing under its first name alone."""
    seen: set[int] = set()
    for name, thing in named:
        if id(thing) not in seen:
            seen.add(id(thing))
            yield name, thing


class Module:
    """Base of all layers and networks: subclasses define forward(x)."""

    training: bool = True
    per_sample: ClassVar[bool] = False  # see `per_sample` below; not inherited
    _last_shape: tuple[int, ...] | None = None  # of the batch that the last call gave
    accepts: ClassVar[frozenset[str]] = frozenset()  # the names of forward's parameters

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.accepts = frozenset(inspect.signature(cls.forward).parameters)

    def forward(self, *xs: Any, **options: Any) -> Any:
        raise NotImplementedError(f"{type(self).__name__} defines no forward()")

    def __call__(self, *xs: Any, **options: Any) -> Any:
        y = self.forward(*xs, **options)
        self._last_shape = getattr(y, "shape", None)
        return y

    @property
    def output_shape(self) -> tuple[int, ...] | None:
        """Of one sample, as of the last call; None before it, and where that gave no array."""
        return None if self._last_shape is None else tuple(self._last_shape[1:])

    # ------------------------------------------------------------------------------------- contents

    def children(self) -> list[tuple[str, Module]]:
        """(name, part) of the direct parts."""
        return [(k, v) for k, v in vars(self).items() if isinstance(v, Module)]

    def _all_modules(self, prefix: str = "") -> list[tuple[str, Module]]:
        found: list[tuple[str, Module]] = [(prefix, self)]
        for name, child in self.children():
            found += child._all_modules(f"{prefix}.{name}" if prefix else name)
        return found

    def _tree(self) -> list[Module]:
        """This and all parts, depth first; what stands in it twice is listed twice."""
        found = [self]
        for value in vars(self).values():
            if isinstance(value, Module):
                found += value._tree()
        return found

    def named_modules(self) -> Iterator[tuple[str, Module]]:
        """(name, part) of this and all parts, depth first; the name of this is ''."""
        return _once(self._all_modules())

    def modules(self) -> list[Module]:
        """This and all parts, depth first."""
        return [m for _, m in self.named_modules()]

    def _all_tensors(self) -> list[tuple[str, Tensor]]:
        return [
            (f"{prefix}.{name}" if prefix else name, value)
            for prefix, module in self._all_modules()
            for name, value in vars(module).items()
            if isinstance(value, Tensor)
        ]

    def named_parameters(self) -> Iterator[tuple[str, Parameter]]:
        return _once((name, t) for name, t in self._all_tensors() if isinstance(t, Parameter))

    def named_buffers(self) -> Iterator[tuple[str, Tensor]]:
        return _once((name, t) for name, t in self._all_tensors() if not isinstance(t, Parameter))

    def parameters(self) -> list[Parameter]:
        tensors = [t for module in self._tree() for t in vars(module).values()]
        return list({id(t): t for t in tensors if isinstance(t, Parameter)}.values())

    def buffers(self) -> list[Tensor]:
        return [b for _, b in self.named_buffers()]

    def parameter_count(self) -> int:
        """The number of values in all parameters."""
        return sum(p.size for p in self.parameters())

    # ---------------------------------------------------------------------------------------- state

    def train(self, mode: bool = True) -> Module:
        """Set training mode (batch statistics, dropout) in this and all parts."""
        for module in self.modules():
            module.training = mode
        return self

    def eval(self) -> Module:
        """Set evaluation mode in this and all parts."""
        return self.train(False)

    def requires_grad_(self, value: bool = True) -> Module:
        """Freeze (False) or unfreeze all parameters."""
        for p in self.parameters():
            p.requires_grad = value
        return self

    def zero_grad(self) -> None:
        """Forget what `backward` accumulated in the parameters."""
        for p in self.parameters():
            p.grad = None

    def apply(self, f: Callable[[Module], Any]) -> Module:
        """Call f(part) for each part, then f(this): to change how a network begins, say."""
        for _, child in self.children():
            child.apply(f)
        f(self)
        return self

    def to(self, device: str) -> Module:
        """Move all parameters and buffers to `device`: cpu, sim or cuda."""
        for _, t in self._all_tensors():
            t.data = to_device(t.data, device)
        return self

    def state_dict(self) -> dict[str, np.ndarray]:
        """A copy of every parameter and buffer, by PyTorch's name, in host memory."""
        return {name: np.array(to_numpy(t.data)) for name, t in self._all_tensors()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take the values of `state`, in place.

        Raises: ValueError that names the first name or shape that differs; nothing is changed then.
        """
        own = dict(self._all_tensors())
        for name, t in own.items():
            if name not in state:
                raise ValueError(f"load_state_dict: {name} is missing from the state")
            if tuple(state[name].shape) != tuple(t.shape):
                raise ValueError(
                    f"load_state_dict: {name} has shape {tuple(state[name].shape)} in the state "
                    f"but {tuple(t.shape)} here"
                )
        for name in state:
            if name not in own:
                raise ValueError(f"load_state_dict: the state has {name}, which is not here")
        for name, t in own.items():
            value = array_of(state[name])
            if type(value) is not type(t.data):
                value = to_device(value, "cpu" if isinstance(t.data, np.ndarray) else "cuda")
            t.data[...] = value

    # ----------------------------------------------------------------------------------------- text

    def describe(self) -> str:
        """The layer and its arguments, as the table prints them."""
        return type(self).__name__

    def trace_shapes(self, *shapes: tuple[int, ...]) -> Module:
        """Run one batch of zeros of these sample shapes, so that printing shows output shapes."""
        modes = [(m, m.training) for m in self.modules()]
        self.eval()
        with no_grad():
            self(*(Tensor(np.zeros((2, *shape), np.float32)) for shape in shapes))
        for module, mode in modes:
            module.training = mode
        return self

    def __repr__(self) -> str:
        """A table: layer, output shape of one sample (- before the first call), parameters.

        Of parts with parts of their own, only those that also hold parameters are listed, with
        these. A parameter counts where it stands first.
        """
        rows = [("layer", "output shape", "parameters")]
        counted: set[int] = set()
        for name, module in self._all_modules():
            own = [p for p in vars(module).values() if isinstance(p, Parameter)]
            if own or not module.children():
                shape = module.output_shape
                rows.append((
                    f"{name}  {module.describe()}".strip(),
                    "-" if shape is None else " × ".join(map(str, shape)) or "1",
                    _spaced(sum(p.size for p in own if id(p) not in counted)),
                ))  # fmt: skip
                counted.update(map(id, own))
        rows.append((type(self).__name__, "", _spaced(self.parameter_count())))
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        lines = [f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}" for a, b, c in rows]
        rule = "─" * (sum(widths) + 4)
        return "\n".join([lines[0], rule, *lines[1:-1], rule, lines[-1]])


def _spaced(n: int) -> str:
    return f"{n:,}".replace(",", " ")


def per_sample(net: Module) -> bool:
    """Whether all classes in net say by `per_sample = True`, each for itself, that what they make
    of a sample depends on it alone, and on no random numbers: batches may then be joined."""
    return all(vars(type(m)).get("per_sample", False) for m in net._tree())


class Activation(Module):
    """An elementwise function that the layer before it may compute along: see Sequential.

    act, slope: those of ops.bias_act.
    """

    act: str
    slope: float = 0.01

    def forward(self, x: Any) -> Any:
        return ops.bias_act(x, act=self.act, slope=self.slope)


_ACT = {"act", "slope"}


def _is_act(part: Module | None) -> TypeGuard[Activation]:
    return isinstance(part, Activation) and type(part).forward is Activation.forward


class _Parts(Module):
    """Parts named 0, 1, 2, ..."""

    def _number(self, parts: Iterable[Module]) -> None:
        for i, part in enumerate(parts):
            if not isinstance(part, Module):
                raise TypeError(
                    f"{type(self).__name__}: part {i} is a {type(part).__name__}, not a Module"
                )
            setattr(self, str(i), part)

    def __iter__(self) -> Iterator[Module]:
        return iter([part for _, part in self.children()])

    def __len__(self) -> int:
        return len(self.children())


class Sequential(_Parts):
    """The parts in order, each applied to the last one's output. Parts are named 0, 1, 2, ...

    A slice of it is a Sequential of the same parts, named from 0 on again.

    A part whose forward has the parameters act and slope computes the Activation behind it too,
    which saves reading and writing its output once more.
    """

    per_sample = True

    def __init__(self, *parts: Module) -> None:
        self._number(parts)

    @overload
    def __getitem__(self, i: int) -> Module: ...
    @overload
    def __getitem__(self, i: slice) -> Sequential: ...
    def __getitem__(self, i: int | slice) -> Module:
        parts = list(self)
        return Sequential(*parts[i]) if isinstance(i, slice) else parts[i]

    def forward(self, x: Any) -> Any:
        parts = [part for _, part in self.children()]
        done = None  # the activation that the part before it has computed
        for part, after in zip(parts, [*parts[1:], None], strict=True):
            if part is done:
                part._last_shape = x.shape
                done = None
            elif _is_act(after) and part.accepts >= _ACT:
                x = part(x, act=after.act, slope=after.slope)
                done = after
            else:
                x = part(x)
        return x


class ModuleList(_Parts):
    """Parts named 0, 1, 2, ... that the owner calls by itself."""

    def __init__(self, parts: Iterable[Module] = ()) -> None:
        if not isinstance(parts, Iterable):
            raise TypeError("ModuleList: takes an iterable of Modules: ModuleList([a, b])")
        self._number(parts)

    @overload
    def __getitem__(self, i: int) -> Module: ...
    @overload
    def __getitem__(self, i: slice) -> ModuleList: ...
    def __getitem__(self, i: int | slice) -> Module:
        parts = list(self)
        return ModuleList(parts[i]) if isinstance(i, slice) else parts[i]

    def forward(self, x: Any) -> Any:
        raise NotImplementedError("ModuleList: call its parts, not the list")
