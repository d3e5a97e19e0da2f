"""A parsed kernel made ready to run: operands bound to registers, basic blocks, liveness."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np

from .opcodes import BOOL, DTYPES, I64, SOURCE_TYPES, U32, UNSIGNED, Value, source_dtypes
from .ptx import Address, Kernel, Label, Number, Op, Reg, Special, Symbol

SYNCS = {"bar", "barrier", "shfl", "vote", "match", "redux", "mma"}  # lanes wait for others
JUMPS = {"bra", "brx", "ret", "exit"}

NOT = object()  # as the dtype of an input: a negated predicate


class Input(NamedTuple):
    """Where a source comes from: a register (place ≥ 0) read as dtype, or a constant."""

    place: int
    dtype: Any
    constant: Any = None


@dataclass(slots=True)
class Block:
    """A basic block: instructions without a jump, then perhaps one jump or barrier."""

    start: int
    body: list[Op] = field(default_factory=list)
    last: Op | None = None
    following: int = 0
    targets: list[int] = field(default_factory=list)
    live: int = 0  # bit set of the registers that are read from here on before they are written


class Program:
    """A kernel made ready to run: operands bound, basic blocks, liveness."""

    def __init__(self, kernel: Kernel) -> None:
        self.kernel = kernel
        self.registers = list(kernel.registers)
        self.specials: dict[str, int] = {}  # name -> register that the machine fills
        for op in kernel.ops:
            self._bind(op)
        self.blocks = self._basic_blocks()
        self._find_live()
        widths = [size for op in kernel.ops for size in _access_sizes(op)]
        self.granule = min([4, *widths])  # bytes, the smallest access to shared or global memory
        self.outputs: set[str] = set()  # parameters through which it has been seen to write

    def _bind(self, op: Op) -> None:
        op.dtype = DTYPES[op.types[-1]] if op.types else U32
        halves = {"f16x2", "bf16x2", "bf16"} & set(op.types)
        if halves and op.name in SOURCE_TYPES and op.name not in ("mov", "cvt", "selp"):
            op.name = f"{op.name}.{halves.pop()}"  # another opcode, which nobody knows
        sources = [part for s in op.sources for part in (s if _is_vector(s) else (s,))]
        dtypes: list[Any] = [None] * len(sources)
        if op.name in SOURCE_TYPES:
            dtypes = source_dtypes(op, len(sources))
        op.inputs = tuple(
            self._input(source, dtype, op)
            for source, dtype in zip(sources, dtypes, strict=True)
            if not isinstance(source, Label)
        )

    def _input(self, source: Any, dtype: Any, op: Op) -> Input:
        if isinstance(source, Reg):
            return Input(source.place, dtype)
        if isinstance(source, tuple) and source[0] == "!":
            return Input(source[1].place, NOT)
        if isinstance(source, Address):
            return self._input(source.base, I64, op)
        if isinstance(source, Symbol):
            return Input(-1, None, (dtype or op.dtype).type(source.address))
        if isinstance(source, Special):
            if source.name not in self.specials:
                self.specials[source.name] = len(self.registers)
                self.registers.append(Reg(len(self.registers), 32))
            return Input(self.specials[source.name], dtype)
        if isinstance(source, Number):
            return Input(-1, None, constant(source, dtype or op.dtype))
        raise TypeError(source)

    def _basic_blocks(self) -> dict[int, Block]:
        kernel = self.kernel
        leaders = {0, *kernel.labels.values()}
        for op in kernel.ops:
            if op.name in JUMPS:
                leaders.add(op.pc + 1)
            if op.name in SYNCS:
                leaders |= {op.pc, op.pc + 1}
        starts = sorted(leader for leader in leaders if leader < len(kernel.ops))
        blocks = {}
        for start, end in zip(starts, [*starts[1:], len(kernel.ops)], strict=True):
            block = Block(start, kernel.ops[start:end], None, end)
            if block.body[-1].name in JUMPS or block.body[-1].name in SYNCS:
                block.last = block.body.pop()
            if block.last and block.last.name in ("bra", "brx"):
                label = block.last.sources[-1].name
                names = kernel.tables[label] if block.last.name == "brx" else [label]
                block.targets = [kernel.labels[name] for name in names]
            blocks[start] = block
        return blocks

    def _find_live(self) -> None:
        """Backwards data flow to the fixed point: live = read | (live of successors - written)."""
        uses = {}
        for block in self.blocks.values():
            read = written = 0
            for op in [*block.body, *([block.last] if block.last else [])]:
                indices = [i.place for i in op.inputs if i.place >= 0]
                for index in [*indices, *([op.guard[0].place] if op.guard else [])]:
                    read |= (1 << index) & ~written
                if op.guard is None:
                    for dest in op.dests:
                        if isinstance(dest, Reg):
                            written |= 1 << dest.place
            uses[block.start] = read, written
        changed = True
        while changed:
            changed = False
            for block in reversed(self.blocks.values()):
                read, written = uses[block.start]
                after = 0
                for start in [*block.targets, block.following]:
                    if start in self.blocks:
                        after |= self.blocks[start].live
                live = read | (after & ~written)
                changed |= live != block.live
                block.live = live


def _is_vector(source: Any) -> bool:
    return type(source) is tuple and source[0] != "!"


def _access_sizes(op: Op) -> list[int]:
    touches = op.name in ("ld", "st", "atom", "red") and not {"param", "local"} & set(op.mods)
    return [op.dtype.itemsize] if touches else []


def constant(number: Number, dtype: np.dtype[Any]) -> Value:
    """An immediate as a scalar of that dtype."""
    if dtype == BOOL:
        return np.bool_(number.value)
    if number.float_bits:
        value = np.array(number.value, UNSIGNED[number.float_bits // 8])
        value = value.view(f"f{number.float_bits // 8}")
        return value.astype(dtype)[()] if dtype.kind == "f" else value.view(dtype)[()]
    if dtype.kind == "f":
        return dtype.type(number.value)
    unsigned = UNSIGNED[dtype.itemsize]
    return np.array(number.value % 2 ** (8 * dtype.itemsize), unsigned).view(dtype)[()]
