"""What PTX is made of: operands, instructions, kernels."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

SIZES = {"pred": 1, "b8": 1, "u8": 1, "s8": 1, "b16": 2, "u16": 2, "s16": 2, "f16": 2, "bf16": 2,
         "b32": 4, "u32": 4, "s32": 4, "f32": 4, "tf32": 4, "f16x2": 4, "bf16x2": 4,
         "b64": 8, "u64": 8, "s64": 8, "f64": 8}  # fmt: skip


class ParseError(ValueError):
    """PTX that sim cannot take: an indirect or recursive call, or a syntax it does not know."""


class Reg(NamedTuple):
    """A register: its place in the machine, and its width in bits (1: a predicate)."""

    place: int
    bits: int


class Number(NamedTuple):
    """An immediate: an int, or the bits of a float with its width."""

    value: int
    float_bits: int = 0


class Special(NamedTuple):
    """A special register such as %tid.x."""

    name: str


@dataclass(slots=True, eq=False)
class Symbol:
    """A variable in memory. address: within its space, given when all of the kernel is known."""

    name: str
    space: str
    size: int
    align: int
    address: int = -1
    data: bytes = b""


class Address(NamedTuple):
    """[base + offset]"""

    base: Reg | Symbol | Number
    offset: int


class Label(NamedTuple):
    name: str


Operand = Any  # Reg, Number, Special, Symbol, Address, Label, or a tuple of operands for {a, b}


@dataclass(slots=True)
class Op:
    """One instruction. guard: (predicate, negated), or None for an instruction without @p."""

    pc: int
    name: str
    mods: tuple[str, ...]
    dests: tuple[Operand, ...]
    sources: tuple[Operand, ...]
    guard: tuple[Reg, bool] | None
    file: int
    line: int
    text: str
    dtype: Any = None  # this and inputs are bound by program.py
    inputs: tuple[Any, ...] = ()

    @property
    def types(self) -> list[str]:
        """The type modifiers in the order they stand: ['f32'] of fma.rn.ftz.f32."""
        return [mod for mod in self.mods if mod in SIZES]


@dataclass(slots=True)
class Param:
    name: str
    type: str  # "u64", "f32", ...; "b8" for a struct by value
    size: int
    offset: int


@dataclass(slots=True)
class Kernel:
    name: str
    params: list[Param]
    ops: list[Op] = field(default_factory=list)
    labels: dict[str, int] = field(default_factory=dict)  # -> pc
    tables: dict[str, list[str]] = field(default_factory=dict)  # .branchtargets of brx.idx
    registers: list[Reg] = field(default_factory=list)
    shared: list[Symbol] = field(default_factory=list)
    shared_static: int = 0  # bytes; dynamic shared memory starts here
    local_bytes: int = 0  # a thread
