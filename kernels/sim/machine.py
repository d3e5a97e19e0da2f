"""The machine: runs all threads of some blocks at once, one instruction after the other.

Lanes form a matrix (threads of a block, blocks). A register holds one value a lane, or fewer
where lanes agree: a loop counter is a scalar, what depends on the thread alone has shape
(threads, 1), what depends on the block alone (1, blocks). NumPy's broadcasting does the rest, so
what is uniform costs nothing.

Divergence: lanes wait at program counters, `waiting[pc]` being a mask of lanes (True: all). The
lowest pc runs first, up to the end of its basic block; lanes that meet there go on together.
A mask costs only where it must: a result overwrites what the other lanes hold of a register,
unless one of them will still read it (`alive`).

Barriers: lanes that reach one are `parked` at it until all that it waits for have come: the block
for bar.sync, the lanes of the member mask for shuffles, votes and __syncwarp.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np

from . import opcodes
from .memory import GlobalMemory, Space, columns
from .opcodes import I64, U8, U16, U32, U64, UNSIGNED, Value
from .program import NOT, SYNCS, Block, Program
from .ptx import Op

LANES_AT_ONCE = 1 << 14  # lanes that fill the caches without missing them
WARP = 32
PATIENCE = 256  # basic blocks, after which the highest pc gets a turn: it may hold a spin lock

Action = Callable[["Machine", Op, Value], None]
ACTIONS: dict[str, Action] = {}  # opcodes that touch memory or other lanes: access.py, warp.py
ZERO = {1: np.False_, 8: U8.type(0), 16: U16.type(0), 32: U32.type(0), 64: U64.type(0)}


class Fault(RuntimeError):
    """A kernel did what it must not. line: in its CUDA source; block, thread: (x, y, z)."""

    def __init__(
        self,
        kind: str,
        detail: str,
        kernel: str,
        line: int,
        where: str,
        block: tuple[int, ...],
        thread: tuple[int, ...],
    ) -> None:
        self.kind, self.kernel, self.line = kind, kernel, line
        self.block, self.thread = block, thread
        super().__init__(
            f"{kind}: kernel {kernel}, {where}\n  block {block} thread {thread}: {detail}"
        )


def action(*names: str) -> Callable[[Action], Action]:
    def register(function: Action) -> Action:
        ACTIONS.update(dict.fromkeys(names, function))
        return function

    return register


def reinterpret(value: Value, dtype: Any) -> Value:
    """The bits of a register read as another type; narrower: the low bits, wider: zeros above."""
    if dtype is None:
        return value
    if dtype is NOT:
        return ~value
    if value.dtype.itemsize == dtype.itemsize:
        return value.view(dtype)
    unsigned = value.view(UNSIGNED[value.dtype.itemsize])
    return unsigned.astype(UNSIGNED[dtype.itemsize]).view(dtype)


def compute(machine: Machine, op: Op, active: Value) -> None:
    """Any instruction of opcodes.py."""
    registers = machine.registers
    values = []
    for index, dtype, const in op.inputs:
        if index < 0:
            values.append(const)
        else:
            value = registers[index]
            values.append(value if value.dtype is dtype else reinterpret(value, dtype))
    try:
        result = opcodes.FUNCTIONS[op.name](op, *values)
    except (NotImplementedError, KeyError):
        unknown(machine, op, active)
    if len(op.dests) == 1:
        machine.write(op, op.dests[0], result, active)
    else:
        for dest, value in zip(op.dests, result, strict=True):
            machine.write(op, dest, value, active)


def unknown(machine: Machine, op: Op, active: Value) -> NoReturn:
    machine.fault(
        op, "unknown opcode", f"sim does not know the PTX instruction `{op.text}`", active
    )


@dataclass
class Launch:
    """What a launch is made of. params: the bytes of the kernel's parameters."""

    program: Program
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    params: np.ndarray
    memory: GlobalMemory
    dynamic_shared: int
    describe: Callable[[int, int], str]  # (file, line) -> "line 7: `its text`"
    checks: Any = None
    counters: Any = None


class Machine:
    """Runs a launch, a chunk of blocks at a time."""

    def __init__(self, launch: Launch) -> None:
        self.launch = launch
        self.program = launch.program
        self.checks = launch.checks
        self.counters = launch.counters
        self.threads = int(np.prod(launch.block))
        self.params = Space("param", launch.params.view(U32).reshape(-1, 1))
        kernel = self.program.kernel
        self.shared_bytes = kernel.shared_static + launch.dynamic_shared

    def run(self) -> None:
        total = int(np.prod(self.launch.grid))
        at_once = max(1, LANES_AT_ONCE // self.threads)
        for first in range(0, total, at_once):
            self._start(first, min(at_once, total - first))
            self._run()

    def _start(self, first: int, blocks: int) -> None:
        """Fresh registers and memories for the blocks first .. first + blocks - 1."""
        self.first, self.blocks = first, blocks
        self.lanes = (self.threads, blocks)
        self.thread = np.arange(self.threads, dtype=I64).reshape(-1, 1)
        self.block = np.arange(first, first + blocks, dtype=I64).reshape(1, -1)
        kernel = self.program.kernel
        self.spaces = {
            "global": self.launch.memory,
            "const": self.launch.memory,
            "param": self.params,
            "shared": columns("shared", self.shared_bytes, self.lanes),
            "local": columns("local", kernel.local_bytes, self.lanes),
        }
        self.registers = [ZERO[register.bits] for register in self.program.registers]
        for name, index in self.program.specials.items():
            self.registers[index] = self._special(name)
        self.waiting: dict[int, Value] = {0: True}
        self.parked: dict[int, Value] = {}
        self.exited: Value = np.zeros((1, 1), bool)
        self.alive = 0
        self.mask: Value = True
        self.commits: Value = np.int64(0)  # cp.async groups that each thread has closed
        self.copies: list[Any] = []  # cp.async copies under way
        if self.checks:
            self.checks.start(self)

    def _special(self, name: str) -> Value:
        stem, _, letter = name.removeprefix("%").partition(".")
        axis = "xyz".find(letter)
        if stem in ("tid", "ntid"):
            return _axis(self.thread, self.launch.block, axis, stem == "ntid")
        if stem in ("ctaid", "nctaid"):
            return _axis(self.block, self.launch.grid, axis, stem == "nctaid")
        lane = (self.thread % WARP).astype(U32)
        one = U32.type(1)
        below = (one << lane) - one
        values: dict[str, Value] = {
            "laneid": lane,
            "warpid": (self.thread // WARP).astype(U32),
            "nwarpid": U32.type(-(-self.threads // WARP)),
            "lanemask_eq": one << lane,
            "lanemask_lt": below,
            "lanemask_le": below | one << lane,
            "lanemask_gt": ~(below | one << lane),
            "lanemask_ge": ~below,
            "dynamic_smem_size": U32.type(self.launch.dynamic_shared),
            "total_smem_size": U32.type(self.shared_bytes),
        }
        return values.get(stem, U32.type(0))  # clocks stand still

    # --- control flow --------------------------------------------------------------------------

    def _run(self) -> None:
        blocks = self.program.blocks
        turns = 0
        while self.waiting or self._release():
            turns += 1
            pc = max(self.waiting) if turns % PATIENCE == 0 else min(self.waiting)
            self.mask = mask = self.waiting.pop(pc)
            block = blocks[pc]
            self.alive = 0
            if mask is not True:
                for other in (*self.waiting, *self.parked):
                    self.alive |= blocks[other].live
            for op in block.body:
                if op.guard is None:
                    self._execute(op, mask)
                elif (active := self._guarded(op, mask)) is not None:
                    self._execute(op, active)
            self._leave(block, mask)

    def _execute(self, op: Op, active: Value) -> None:
        if self.counters:
            self.counters.instruction(self, op, active)
        ACTIONS.get(op.name, compute)(self, op, active)

    def _guarded(self, op: Op, mask: Value) -> Value:
        """The lanes of `mask` for which the guard holds; True for all lanes, None for none."""
        assert op.guard is not None
        predicate = self.registers[op.guard[0].place]
        return narrow(mask, ~predicate if op.guard[1] else predicate)

    def _leave(self, block: Block, mask: Value) -> None:
        """Send the lanes that came through a basic block on their ways."""
        op = block.last
        if op is None:
            self._go(block.following, mask)
            return
        if op.name in SYNCS:
            self._sync(op, block.following, mask)
            return
        active = mask
        if op.guard is not None:
            active = self._guarded(op, mask)
            if self.counters:
                self.counters.branch(self, op, mask, active)
            if active is None:
                self._go(block.following, mask)
                return
            rest = narrow(mask, np.logical_not(active))
            if rest is not None:
                self._go(block.following, rest)
        if self.counters:
            self.counters.instruction(self, op, active)
        if op.name == "bra":
            self._go(block.targets[0], active)
        elif op.name == "brx":
            choice = self.value(op, 0)
            for number, target in enumerate(block.targets):
                if (chosen := narrow(active, choice == number)) is not None:
                    self._go(target, chosen)
        else:
            self.exited = np.ones((1, 1), bool) if active is True else self.exited | active

    def _go(self, pc: int, mask: Value) -> None:
        if pc in self.waiting:
            mask = union(self.waiting[pc], mask)
        self.waiting[pc] = mask

    def _sync(self, op: Op, following: int, mask: Value) -> None:
        """Lanes arrive at a barrier: those that need not wait run it, the others are parked."""
        if op.guard is not None:
            active = self._guarded(op, mask)
            if active is not True:
                rest = mask if active is None else narrow(mask, np.logical_not(active))
                if rest is not None:
                    self._go(following, rest)
                if active is None:
                    return
            mask = active
        if op.pc in self.parked:
            mask = union(mask, self.parked.pop(op.pc))
        ready = True if mask is True else narrow(mask, self._complete(op, mask))
        if ready is not None:
            self.mask = ready
            self.alive = ~0 if ready is not True else 0
            self._execute(op, ready)
            self._go(following, ready)
            rest = None if ready is True else narrow(mask, ~ready)
            if rest is not None:
                self.parked[op.pc] = rest
        else:
            self.parked[op.pc] = mask

    def _complete(self, op: Op, arrived: Value) -> Value:
        """The lanes for which all that the barrier waits for are in `arrived`."""
        if op.name in ("bar", "barrier") and "warp" not in op.mods:
            return np.broadcast_to(arrived, self.lanes).all(axis=0, keepdims=True)
        ballot = self.ballot(arrived)
        return (self.members(op) & ~ballot) == 0

    def _release(self) -> bool:
        """Nobody can run: let go those whose barrier waits only for threads that have returned."""
        for pc, arrived in list(self.parked.items()):
            op = self.program.kernel.ops[pc]
            if self.checks and op.name in ("bar", "barrier") and "warp" not in op.mods:
                continue
            gone = np.logical_or(arrived, self.exited)
            ready = narrow(arrived, self._complete(op, gone))
            if ready is not None:
                rest = narrow(arrived, ~ready) if ready is not True else None
                self.parked.pop(pc)
                if rest is not None:
                    self.parked[pc] = rest
                self.mask, self.alive = ready, ~0
                self._execute(op, ready)
                self._go(self.program.blocks[pc].following, ready)
        if not self.waiting and self.parked:
            self._stuck()
        return bool(self.waiting)

    def _stuck(self) -> NoReturn:
        """Threads wait at a barrier that others never reach."""
        ops = self.program.kernel.ops
        pc, arrived = min(self.parked.items(), key=lambda item: ops[item[0]].line)
        op = ops[pc]
        full = np.broadcast_to(arrived, self.lanes)
        column = int(np.argmax(full.any(axis=0)))
        absent = np.flatnonzero(~full[:, column])
        name = "__syncthreads()" if op.name.startswith("bar") and "warp" not in op.mods else op.name
        if absent.size:
            other = int(absent[0])
            where = "has returned"
            for place, mask in self.parked.items():
                if place != pc and np.broadcast_to(mask, self.lanes)[other, column]:
                    where = f"waits at another one, in {self.source(ops[place])}"
            detail = (
                f"waits at {name}, but thread {self.thread_id(other)} of the same block {where}; "
                f"{int(full[:, column].sum())} of {self.threads} threads have come"
            )
        else:
            detail = f"waits at {name} for threads that never come"
        self.fault(op, "barrier not reached by all", detail, arrived)

    # --- registers and lanes -------------------------------------------------------------------

    def value(self, op: Op, n: int, dtype: Any = None) -> Value:
        """The n-th source of an instruction."""
        index, own, const = op.inputs[n]
        value = const if index < 0 else self.registers[index]
        return reinterpret(reinterpret(value, own), dtype)

    def write(self, op: Op, dest: Any, value: Value, active: Value) -> None:
        """Set a register for the active lanes; others keep theirs if it will be read."""
        if dest is None:
            return
        index = dest.place
        if active is not True and (active is not self.mask or self.alive >> index & 1):
            old = self.registers[index]
            if old.dtype != value.dtype:
                old = reinterpret(old, value.dtype)
            value = np.where(active, value, old)
        self.registers[index] = value

    def by_warp(self, value: Value, fill: Any) -> np.ndarray:
        """(threads, blocks or 1) -> (warps, 32, blocks or 1), the last warp padded with `fill`."""
        value = np.asarray(value)
        blocks = value.shape[1] if value.ndim else 1
        warps = -(-self.threads // WARP)
        full = np.full((warps * WARP, blocks), fill, value.dtype)
        full[: self.threads] = value
        return full.reshape(warps, WARP, blocks)

    def by_lane(self, value: np.ndarray) -> np.ndarray:
        """(warps, 32 or 1, blocks or 1) -> (threads, blocks or 1)"""
        full = np.broadcast_to(value, (len(value), WARP, value.shape[2]))
        return full.reshape(-1, value.shape[2])[: self.threads]

    def ballot(self, truth: Value) -> np.ndarray:
        """For each lane the bits of its warp, uint32."""
        bits = self.by_warp(truth, False).astype(U32) << np.arange(WARP, dtype=U32).reshape(
            1, -1, 1
        )
        return self.by_lane(np.bitwise_or.reduce(bits, axis=1, keepdims=True))

    def members(self, op: Op) -> Value:
        """The lanes that must take part in a warp's instruction, as bits, for each lane."""
        everyone = self.ballot(np.True_)
        if op.name in ("mma", "ldmatrix"):
            return everyone
        return self.value(op, len(op.inputs) - 1, U32) & everyone

    def thread_id(self, thread: int) -> tuple[int, ...]:
        x, y, _ = self.launch.block
        return (thread % x, thread // x % y, thread // (x * y))

    def block_id(self, block: int) -> tuple[int, ...]:
        x, y, _ = self.launch.grid
        return (block % x, block // x % y, block // (x * y))

    def source(self, op: Op) -> str:
        """The CUDA source line that an instruction comes from, number and text."""
        return self.launch.describe(op.file, op.line)

    def fault(self, op: Op, kind: str, detail: Any, lanes: Value) -> NoReturn:
        """Raise for the first of `lanes`. detail: text, or a function of (thread, block column)."""
        full = np.broadcast_to(lanes, self.lanes)
        column = int(np.argmax(full.any(axis=0)))
        thread = int(np.argmax(full[:, column]))
        text = detail if isinstance(detail, str) else detail(thread, column)
        self.fault_at(op, kind, text, thread, column)

    def fault_at(self, op: Op, kind: str, detail: str, thread: int, column: int) -> NoReturn:
        raise Fault(
            kind,
            detail,
            self.program.kernel.name,
            op.line,
            self.source(op),
            self.block_id(self.first + column),
            self.thread_id(thread),
        )


def _axis(number: np.ndarray, extents: tuple[int, int, int], axis: int, count: bool) -> Value:
    """The x, y or z of threads or blocks; a scalar where there is but one."""
    if count or extents[axis] == 1:
        return U32.type(extents[axis] if count else 0)
    return (number // int(np.prod(extents[:axis])) % extents[axis]).astype(U32)


def narrow(mask: Value, condition: Value) -> Value:
    """mask & condition; True if that is all lanes, None if it is none."""
    both = condition if mask is True else np.logical_and(mask, condition)
    if np.all(both):
        return True
    return both if np.any(both) else None


def union(a: Value, b: Value) -> Value:
    if a is True or b is True:
        return True
    both = a | b
    return True if both.all() else both
