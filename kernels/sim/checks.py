"""What a careful reader of a kernel looks for, looked for at every access.

Bounds, alignment, reads of what nothing has written, copies that may still be under way, and races:
two accesses by different threads that nothing orders (see order.py), of which one is a write that
changes the value, and which are not both atomic.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from .machine import WARP, Machine
from .memory import GlobalMemory, Space, Unwritten
from .opcodes import I64, Value
from .order import COPYING, MANY, SEVERAL, WARPS, Lanes, Order, Shadow, code_of, pc_of
from .program import Program
from .ptx import SIZES, Op, Symbol

# The state of a granule of global memory. QUIET: of an array that no launch of this kernel has
# written yet; its reads need no records. CONSTANT: of an array that must not be written.
OUTSIDE, UNREAD, MAPPED, QUIET, CONSTANT = range(5)


class NotQuiet(Exception):
    """The kernel writes arrays that were taken for read only: start again, and watch them."""


@dataclass
class Access:
    """One instruction's access to one granule a lane. how: read, write or atomic."""

    machine: Machine
    op: Op
    space: Space
    how: str
    lanes: Lanes
    shadow: Shadow
    cell: Any = None  # the granules, in shadow memory
    value: Any = None  # what is written

    def fault(self, kind: str, bad: Any, tell: Callable[[int], str]) -> None:
        """Raise for the first bad lane of the first block, if there is one."""
        places = np.flatnonzero(bad)
        if not places.size:
            return
        lanes = self.lanes
        k = int(places[np.lexsort((lanes.thread[places], lanes.column[places]))[0]])
        self.machine.fault_at(self.op, kind, tell(k), int(lanes.thread[k]), int(lanes.column[k]))

    def place(self, k: int) -> str:
        """What lane k touches, as the source calls it."""
        address = int(self.lanes.address[k])
        if self.space.name == "global":
            return self.machine.launch.memory.where_is(address)
        for symbol in self.machine.program.kernel.shared if self.space.name == "shared" else ():
            if symbol.address <= address < symbol.address + symbol.size:
                return self._element(symbol, address - symbol.address)
        return f"byte {address} of {self.space.name} memory"

    def _element(self, symbol: Symbol, offset: int) -> str:
        """`tile[17]`, by the type that the instruction moves: PTX keeps no other. Of several axes,
        or of vectors: `float 17 of tile`, counted through."""
        kind = self.op.types[-1] if self.op.types else "b32"
        name, size = plain_name(symbol.name), SIZES[kind]
        index, rest = divmod(offset, size)
        if symbol.size == size:
            return name
        if rest:
            return f"{name} + {offset} bytes"
        axes = rf"\b{re.escape(name)}\[[^\[\]]*\]\s*\["
        if symbol.align > size or re.search(axes, self.machine.source(self.op)):
            return f"{_WORDS.get(kind, 'element')} {index} of {name}"
        return f"{name}[{index}]"


_WORDS = {"f32": "float", "f64": "double"}


class Checks:
    """Watches one launch; raises Fault through the machine."""

    def __init__(self, memory: GlobalMemory, program: Program, blocks: int) -> None:
        self.granule = granule = program.granule
        self.outputs = program.outputs
        self.memory = memory
        self.order = Order(blocks)
        granules = -(-memory.bytes // granule)
        self.all_memory = Shadow(granules, with_blocks=True)
        self.state = np.zeros(granules, np.uint8)
        for extent in memory.extents:
            cells = self.state[extent.start // granule : -(-extent.end // granule)]
            array = extent.array
            cells[:] = MAPPED if array is None or extent.name in self.outputs else QUIET
            if array is not None and not array.flags.writeable:
                cells[:] = CONSTANT
            if isinstance(array, Unwritten) and array.unwritten is not None:
                cells[array.unwritten[::granule]] = UNREAD

    def start(self, machine: Machine) -> None:
        """New blocks: their shared memory is unwritten, their clocks stand at 0."""
        self.order.start(machine)
        self.shared = Shadow(-(-machine.shared_bytes // self.granule), with_blocks=False)

    def finish(self) -> None:
        """Arrays from empty() remember what is still unwritten."""
        for extent in self.memory.extents:
            array = extent.array
            if isinstance(array, Unwritten) and array.unwritten is not None:
                cells = self.state[extent.start // self.granule : -(-extent.end // self.granule)]
                array.unwritten = np.repeat(cells == UNREAD, self.granule)[: array.nbytes]

    # --- what the machine reports ----------------------------------------------------------------

    def block_sync(self, machine: Machine, op: Op, active: Value) -> None:
        self.order.block_sync(machine, active)

    def warp_sync(self, machine: Machine, op: Op, active: Value) -> None:
        self.order.warp_sync(machine, active)

    def fence(self, machine: Machine, op: Op, active: Value) -> None:
        self.order.fence(machine, active)

    def access(
        self,
        machine: Machine,
        op: Op,
        space: Space,
        address: Value,
        size: int,
        active: Value,
        how: str,
        values: Any = (),
    ) -> None:
        """Check an instruction of which each lane touches `size` bytes."""
        access = self._access(machine, op, space, address, active, how)
        self._placed(access, size)
        if space.name not in ("shared", "global"):
            return
        strong = {"volatile", "relaxed", "acquire", "release"} & set(op.mods)
        first = self._cells(access)
        for i in range(max(1, size // self.granule)):
            access.cell = first + i * access.shadow.columns
            access.value = _part(values, i * self.granule)
            if space.name == "global":
                self._mapped(access)
            if how != "write":
                self._written_before(access)
            if how == "read" and not strong:
                self._read(access)
            elif not strong:
                self._write(access)
        if how == "atomic" and space.name == "global":
            self.order.atomic(machine, active)

    def copy_begins(
        self, machine: Machine, op: Op, space: Space, address: Value, size: int, active: Value
    ) -> None:
        """A cp.async is a write by its thread, whose end nobody has seen yet."""
        self.access(machine, op, space, address, size, active, "write")
        self._stamp_copy(machine, op, space, address, size, active, COPYING)

    def copy_lands(
        self, machine: Machine, op: Op, space: Space, address: Value, size: int, active: Value
    ) -> None:
        """Its thread has waited for it."""
        self._stamp_copy(machine, op, space, address, size, active, None)

    def _stamp_copy(
        self,
        machine: Machine,
        op: Op,
        space: Space,
        address: Value,
        size: int,
        active: Value,
        code: int | None,
    ) -> None:
        access = self._access(machine, op, space, address, active, "write")
        first = self._cells(access)
        for i in range(size // self.granule):
            cell = first + i * access.shadow.columns
            access.shadow.written[cell] = access.lanes.stamp(op.pc, code)

    def _access(
        self, machine: Machine, op: Op, space: Space, address: Value, active: Value, how: str
    ) -> Access:
        """The active lanes in arrays of one dimension, and the shadow of their memory."""
        parts = (address, active, self.order.epoch, self.order.clock)
        uniform = space.name == "shared" and self.shared.columns == 1
        uniform = uniform and all(np.ndim(part) == 0 or part.shape[1] == 1 for part in parts)
        if space.name == "shared" and not uniform:
            self.shared.spread(machine.blocks)
        shape = (machine.threads, 1 if uniform else machine.blocks)
        column = np.arange(shape[1], dtype=I64).reshape(1, -1)
        mask = None if active is True else np.broadcast_to(active, shape)

        def flat(value: Value) -> np.ndarray:
            full = np.broadcast_to(value, shape)
            return full.reshape(-1) if mask is None else full[mask]

        lanes = Lanes(
            flat(address),
            flat(machine.thread),
            flat(column),
            flat(column + machine.first),
            flat(self.order.epoch),
            flat(self.order.clock),
            uniform,
        )
        shadow = self.shared if space.name == "shared" else self.all_memory
        return Access(machine, op, space, how, lanes, shadow)

    def _cells(self, access: Access) -> Any:
        """The first granule of each lane."""
        first = access.lanes.address // self.granule * access.shadow.columns
        return first + access.lanes.column if access.shadow.columns > 1 else first

    # --- single checks ---------------------------------------------------------------------------

    def _placed(self, access: Access, size: int) -> None:
        """Aligned to its size, and within the space."""
        address = access.lanes.address
        access.fault(
            "misaligned access",
            address & (size - 1) != 0,
            lambda k: (
                f"touches {size} bytes at {access.place(k)}, whose address is no multiple of {size}"
            ),
        )
        end = access.space.bytes
        within = "" if access.space.name == "global" else f" of {end} bytes in all"
        access.fault(
            "out of bounds",
            (address < 0) | (address + size > end),
            lambda k: f"touches {access.place(k)}{within}",
        )

    def _mapped(self, access: Access) -> None:
        """In an array, which may be written if it is."""
        state = self.state[access.cell]

        def tell(k: int) -> str:
            at = int(access.cell[k]) * self.granule
            return f"{_VERBS[access.how]} {self.memory.where_is(at)}"

        access.fault("out of bounds", state == OUTSIDE, tell)
        if access.how != "read":
            access.fault("write to a read-only array", state == CONSTANT, tell)
            if (state == QUIET).any():
                self._watch(access.cell[state == QUIET])
        if access.how == "write":
            self.state[access.cell] = MAPPED

    def _watch(self, cells: np.ndarray) -> None:
        """From now on the arrays of these granules count as written by this kernel."""
        for extent in self.memory.extents:
            first, end = extent.start // self.granule, -(-extent.end // self.granule)
            if ((cells >= first) & (cells < end)).any():
                self.outputs.add(extent.name)
        raise NotQuiet

    def _written_before(self, access: Access) -> None:
        shared = access.shadow is self.shared
        record = access.shadow.written[access.cell]
        access.fault(
            "read of unwritten memory",
            record == 0 if shared else self.state[access.cell] == UNREAD,
            lambda k: f"reads {access.place(k)}, which nothing has written",
        )
        if not shared:
            return

        def tell(k: int) -> str:
            copy = access.machine.program.kernel.ops[pc_of(int(record[k]))]
            return (
                f"reads {access.place(k)} while the cp.async of "
                f"{access.machine.source(copy)} may still be copying it: no cp.async.wait_group "
                f"before has waited for that group"
            )

        access.fault("read of a copy under way", code_of(record) == COPYING, tell)

    def _read(self, access: Access) -> None:
        shadow, cell, lanes = access.shadow, access.cell, access.lanes
        if access.space.name == "global" and (self.state[cell] >= QUIET).all():
            return
        written, blocks = shadow.written[cell], _at(shadow.writer, cell)
        bad = self.order.unordered(written, blocks, lanes)
        self._race(access, bad, written, blocks, "wrote")
        alone = ~self.order.unordered(shadow.read[cell], _at(shadow.reader, cell), lanes)
        shadow.add_readers(cell, lanes, access.op.pc, alone)

    def _write(self, access: Access) -> None:
        shadow, cell, lanes = access.shadow, access.cell, access.lanes
        written, blocks = shadow.written[cell], _at(shadow.writer, cell)
        unordered = bad = self.order.unordered(written, blocks, lanes)
        if access.how == "atomic" and bad.any():
            bad = bad & ~_were_atomic(access.machine, written)
        self._race(access, bad, written, blocks, "wrote")
        if access.how == "write":
            read, readers = shadow.read[cell], _at(shadow.reader, cell)
            bad = self.order.unordered(read, readers, lanes)
            self._race(access, bad, read, readers, "read")
        lost = shadow.write(cell, lanes, lanes.stamp(access.op.pc))
        if access.how == "atomic":
            foreign = False if blocks is None else (written != 0) & (blocks != lanes.block)
            shadow.add_atomics(cell, lanes, access.op.pc, lost | unordered, foreign)
        elif access.value is not None and lost.any():
            winner, blocks = shadow.written[cell], _at(shadow.writer, cell)
            column = None if blocks is None else blocks - access.machine.first
            theirs = lanes.of(access.value, access.machine.lanes, code_of(winner), column)
            mine = lanes.of(access.value, access.machine.lanes)
            bad = lost & (theirs != mine).any(axis=1)
            self._race(access, bad, winner, blocks, "also writes")

    def _race(self, access: Access, bad: Any, record: Any, blocks: Any, then: str) -> None:
        """Fault for the bad lanes, if their access makes a difference to the recorded one."""
        if not bad.any():
            return
        machine, lanes = access.machine, access.lanes
        if access.value is not None and then != "also writes":
            bad = bad & _changes(access)

        def tell(k: int) -> str:
            code = code_of(int(record[k]))
            other = machine.program.kernel.ops[pc_of(int(record[k]))]
            near = "__syncthreads()"
            who = "other threads"
            if code < WARPS:
                who = f"thread {machine.thread_id(code)}"
                if code // WARP == int(lanes.thread[k]) // WARP:
                    near = "__syncwarp() or __syncthreads()"
            elif code < MANY:
                who = f"threads of warp {code - WARPS}"
            between = f"with no {near} between"
            if blocks is not None and blocks[k] != lanes.block[k]:
                between = "and nothing orders two blocks of one launch"
                if blocks[k] == SEVERAL:
                    who = "several blocks"
                else:
                    who += f" of block {machine.block_id(int(blocks[k]))}"
            elif then == "also writes":
                between = "in the same instruction"
            return (
                f"{_VERBS[access.how]} {access.place(k)}, which {who} {then} in "
                f"{machine.source(other)}, {between}"
            )

        within = bad if blocks is None else bad & (blocks == lanes.block)
        if within.any():  # what a barrier mends comes first
            access.fault("race", within, tell)
        access.fault("race between blocks", bad, tell)


_VERBS = {"read": "reads", "write": "writes", "atomic": "atomically updates"}


def _at(array: np.ndarray | None, cell: Any) -> Any:
    return None if array is None else array[cell]


def _part(values: Any, offset: int) -> Any:
    """Of the values that a vector store writes, the one at that byte."""
    return values[min(offset // values[0].dtype.itemsize, len(values) - 1)] if values else None


def _changes(access: Access) -> Any:
    """Whether a write puts another value there than there is: if not, nobody can tell."""
    mine = access.lanes.of(access.value, access.machine.lanes)
    if mine.itemsize != 4:
        return np.True_
    row = access.lanes.address >> 2
    if not access.lanes.uniform:
        column = 0 if access.space.column is None else access.lanes.column
        return access.space.words.view(mine.dtype)[row, column] != mine[:, 0]
    return (access.space.words.view(mine.dtype)[row] != mine).any(axis=1)


def _were_atomic(machine: Machine, record: Any) -> np.ndarray:
    ops = machine.program.kernel.ops
    return np.array([ops[pc].name in ("atom", "red") for pc in pc_of(record).tolist()], bool)


def plain_name(symbol: str) -> str:
    """tile of _ZZ6kernelE4tile"""
    match = re.fullmatch(r"_ZZ.*E(\d+)(\w+)", symbol)
    return match[2][: int(match[1])] if match else symbol
