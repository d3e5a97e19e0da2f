"""What a careful reader of a kernel looks for, looked for at every access.

Shadow memory keeps for each granule (the smallest access of the kernel, at most 4 bytes) who last
wrote and who last read it, and when. Two accesses by different threads race, if one of them
writes, they are not both atomic, and nothing orders them. Order comes from:

    __syncthreads        the block's epoch rises
    __syncwarp, shuffles Lamport clocks: of the lanes that meet, each gets the highest plus one
    atomics              a fence and then an atomic release what the block wrote, any later atomic
                         acquires it: enough for "the last block sums up"; else blocks are unordered

(FastTrack, Flanagan and Freund 2009, keeps one reader likewise; here the record says one thread,
one warp or many.) Clocks of a warp may order more than the program does where member masks are
partial: so a race can be missed there, but no correct program is accused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import numpy as np

from .machine import WARP, Machine
from .memory import GlobalMemory, Space, Unwritten
from .opcodes import I64, Value
from .parser import Op

# A record, 63 bits: epoch + 1 | clock | code | pc of the instruction. 0: never.
PC, CODE, CLOCK = 20, 12, 12
# Codes: a thread, a warp's threads, threads of several warps (or blocks), a copy under way.
WARPS, MANY, COPYING = 1024, 2048, 4095

SEVERAL = -1  # as the block of a record: threads of more than one

OUTSIDE, UNREAD, MAPPED, CONSTANT = range(4)  # state of a granule of global memory


@dataclass
class Accesses:
    """The lanes that touch memory in one instruction, in arrays of one dimension."""

    address: np.ndarray
    thread: np.ndarray
    column: np.ndarray
    block: np.ndarray
    epoch: np.ndarray
    clock: np.ndarray

    def stamp(self, pc: int, code: Value = None) -> np.ndarray:
        code = self.thread if code is None else code
        when = (self.epoch + 1) << CLOCK | np.minimum(self.clock, (1 << CLOCK) - 1)
        return (when << CODE | code) << PC | min(pc, (1 << PC) - 1)


class Shadow:
    """Records of the last write and read of each granule, one column a block (shared memory).

    As long as all blocks do the same, one column stands for all of them.
    """

    def __init__(self, granules: int, with_blocks: bool) -> None:
        self.columns = 1
        self.written = np.zeros(granules, I64)
        self.read = np.zeros(granules, I64)
        self.writer_block = np.zeros(granules if with_blocks else 0, np.int32)
        self.reader_block = np.zeros(granules if with_blocks else 0, np.int32)

    def spread(self, columns: int) -> None:
        if self.columns == 1 and columns > 1:
            self.written = np.repeat(self.written, columns)
            self.read = np.repeat(self.read, columns)
            self.columns = columns


class Checks:
    """Watches one launch; raises Fault through the machine."""

    def __init__(self, memory: GlobalMemory, granule: int, blocks: int) -> None:
        self.granule = granule
        self.memory = memory
        self.all_memory = Shadow(-(-memory.bytes // granule), with_blocks=True)
        self.state = np.zeros(-(-memory.bytes // granule), np.uint8)
        for extent in memory.extents:
            cells = self.state[extent.start // granule : -(-extent.end // granule)]
            array = extent.array
            cells[:] = MAPPED if array is None or array.flags.writeable else CONSTANT
            if isinstance(array, Unwritten) and array.unwritten is not None:
                cells[array.unwritten.reshape(-1)[::granule]] = UNREAD
        self.fenced = np.zeros(blocks, bool)
        self.released_epoch = np.full(blocks, -1, I64)
        self.released_at = np.zeros(blocks, I64)
        self.acquired_at = np.full(blocks, -1, I64)
        self.time = 0

    def start(self, machine: Machine) -> None:
        """New blocks: their shared memory is unwritten, their clocks stand at 0."""
        self.begun = machine.first + machine.blocks
        self.shared = Shadow(-(-machine.shared_bytes // self.granule), with_blocks=False)
        self.epoch: Value = np.zeros((1, 1), I64)
        self.clock: Value = np.zeros((1, 1), I64)

    def finish(self) -> None:
        """Arrays from empty() remember what is still unwritten."""
        for extent in self.memory.extents:
            array = extent.array
            if isinstance(array, Unwritten) and array.unwritten is not None:
                cells = self.state[extent.start // self.granule : -(-extent.end // self.granule)]
                left = np.repeat(cells == UNREAD, self.granule)[: array.nbytes]
                array.unwritten = left.reshape(array.unwritten.shape)

    # --- order ---------------------------------------------------------------------------------

    def block_sync(self, machine: Machine, op: Op, active: Value) -> None:
        if active is True:
            self.epoch = self.epoch + 1
            self.clock = np.zeros((1, 1), I64)
        else:
            came = np.broadcast_to(active, machine.lanes).any(axis=0, keepdims=True)
            self.epoch = self.epoch + came

    def warp_sync(self, machine: Machine, op: Op, active: Value) -> None:
        if active is True and self.clock.size == 1:
            self.clock = self.clock + 1
            return
        met = machine.by_warp(np.where(active, self.clock, 0), 0).max(axis=1, keepdims=True) + 1
        self.clock = np.where(active, machine.by_lane(met), self.clock)

    def fence(self, machine: Machine, op: Op, active: Value) -> None:
        self.fenced[self._blocks(machine, active)] = True

    def _atomic_order(self, machine: Machine, active: Value) -> None:
        """An atomic acquires; after a fence it also releases."""
        self.time += 1
        blocks = self._blocks(machine, active)
        self.acquired_at[blocks] = self.time
        releasing = blocks[self.fenced[blocks]]
        epochs = np.broadcast_to(self.epoch, (1, machine.blocks))[0]
        self.released_epoch[releasing] = epochs[releasing - machine.first]
        self.released_at[releasing] = self.time

    def _blocks(self, machine: Machine, active: Value) -> np.ndarray:
        some = np.broadcast_to(active, machine.lanes).any(axis=0)
        return np.flatnonzero(some) + machine.first

    # --- accesses ------------------------------------------------------------------------------

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
        """Check one instruction. how: read, write, atomic. size: bytes that each lane touches."""
        shared, everywhere = space.name == "shared", space.name == "global"
        uniform = shared and self._is_uniform(address, active)
        lanes = self._lanes(machine, address, active, uniform)
        self._placed(machine, op, space, lanes, size)
        if not (shared or everywhere):
            return
        if shared and not uniform:
            self.shared.spread(machine.blocks)
        shadow = self.shared if shared else self.all_memory
        first = lanes.address // self.granule * shadow.columns
        if shadow.columns > 1:
            first = first + lanes.column
        for i in range(max(1, size // self.granule)):
            cell = first + i * shadow.columns
            if everywhere:
                self._mapped(machine, op, lanes, cell, how)
            if how != "write":
                self._initialised(machine, op, space, shadow, lanes, cell)
            if "volatile" in op.mods or "relaxed" in op.mods or "acquire" in op.mods:
                continue
            if how == "read":
                self._read(machine, op, space, shadow, lanes, cell)
            else:
                value = _part(values, i * self.granule) if how == "write" else None
                self._write(machine, op, space, shadow, lanes, cell, how, value)
        if how == "atomic" and everywhere:
            self._atomic_order(machine, active)

    def copy_begins(
        self, machine: Machine, op: Op, space: Space, address: Value, size: int, active: Value
    ) -> None:
        """A cp.async is a write by its thread, whose end nobody has seen yet."""
        self.access(machine, op, space, address, size, active, "write")
        self._stamp_copy(machine, op, address, size, active, COPYING)

    def copy_lands(
        self, machine: Machine, op: Op, space: Space, address: Value, size: int, active: Value
    ) -> None:
        self._stamp_copy(machine, op, address, size, active, None)

    def _stamp_copy(
        self, machine: Machine, op: Op, address: Value, size: int, active: Value, code: Any
    ) -> None:
        uniform = self._is_uniform(address, active)
        lanes = self._lanes(machine, address, active, uniform)
        if not uniform:
            self.shared.spread(machine.blocks)
        first = lanes.address // self.granule * self.shared.columns
        if self.shared.columns > 1:
            first = first + lanes.column
        for i in range(size // self.granule):
            self.shared.written[first + i * self.shared.columns] = lanes.stamp(op.pc, code)

    def _is_uniform(self, address: Value, active: Value) -> bool:
        """Whether all blocks do the same, now and before."""
        values = (address, active, self.epoch, self.clock)
        return self.shared.columns == 1 and all(
            np.ndim(value) == 0 or value.shape[1] == 1 for value in values
        )

    def _lanes(self, machine: Machine, address: Value, active: Value, uniform: bool) -> Accesses:
        shape = (machine.threads, 1 if uniform else machine.blocks)
        column = np.arange(shape[1], dtype=I64).reshape(1, -1)
        parts = (address, machine.thread, column, column + machine.first, self.epoch, self.clock)
        full = [np.broadcast_to(part, shape) for part in parts]
        if active is True:
            return Accesses(*(part.reshape(-1) for part in full))
        mask = np.broadcast_to(active, shape)
        return Accesses(*(part[mask] for part in full))

    def _placed(self, machine: Machine, op: Op, space: Space, lanes: Accesses, size: int) -> None:
        """Aligned to its size, and within the space."""
        bad = lanes.address & (size - 1) != 0
        if bad.any():
            self._fault(machine, op, "misaligned access", bad, lanes, lambda k: (
                f"touches {size} bytes at {self._name(machine, space, lanes.address[k])}, "
                f"whose address is no multiple of {size}"
            ))  # fmt: skip
        bad = (lanes.address < 0) | (lanes.address + size > space.bytes)
        if bad.any():
            self._fault(machine, op, "out of bounds", bad, lanes, lambda k: (
                f"touches {self._name(machine, space, lanes.address[k])}"
                + ("" if space.name == "global" else f" of {space.bytes} bytes in all")
            ))  # fmt: skip

    def _mapped(self, machine: Machine, op: Op, lanes: Accesses, cell: Any, how: str) -> None:
        state = self.state[cell]
        bad = state == OUTSIDE
        if bad.any():
            self._fault(machine, op, "out of bounds", bad, lanes, lambda k: (
                f"{_VERB[how]} {self.memory.where_is(int(cell[k]) * self.granule)}"
            ))  # fmt: skip
        if how == "read":
            return
        bad = state == CONSTANT
        if bad.any():
            self._fault(machine, op, "write to a read-only array", bad, lanes, lambda k: (
                f"{_VERB[how]} {self.memory.where_is(int(lanes.address[k]))}"
            ))  # fmt: skip
        if how == "write":
            self.state[cell] = MAPPED

    def _initialised(
        self, machine: Machine, op: Op, space: Space, shadow: Shadow, lanes: Accesses, cell: Any
    ) -> None:
        record = shadow.written[cell]
        bad = record == 0 if shadow is self.shared else self.state[cell] == UNREAD
        if bad.any():
            self._fault(machine, op, "read of unwritten memory", bad, lanes, lambda k: (
                f"reads {self._name(machine, space, int(lanes.address[k]))}, "
                f"which nothing has written"
            ))  # fmt: skip
        bad = record >> PC & (1 << CODE) - 1 == COPYING
        if bad.any():

            def tell(k: int) -> str:
                copy = machine.program.kernel.ops[int(record[k]) & (1 << PC) - 1]
                return (
                    f"reads {self._name(machine, space, int(lanes.address[k]))} while the cp.async "
                    f"of line {copy.line}: `{machine.source(copy)}` may still be copying it: no "
                    f"cp.async.wait_group before has waited for that group"
                )

            self._fault(machine, op, "read of a copy under way", bad, lanes, tell)

    def _read(
        self, machine: Machine, op: Op, space: Space, shadow: Shadow, lanes: Accesses, cell: Any
    ) -> None:
        written = shadow.written[cell]
        blocks = shadow.writer_block[cell] if shadow.writer_block.size else None
        bad = self._unordered(written, blocks, lanes)
        if bad.any():
            self._race(machine, op, space, lanes, bad, written, blocks, "reads", "wrote")
        before = shadow.read[cell]
        blocks = shadow.reader_block[cell] if shadow.reader_block.size else None
        alone = ~self._unordered(before, blocks, lanes)
        shadow.read[cell] = self._merged(before, alone, lanes, op.pc)
        if blocks is not None:
            mine = alone | (blocks == lanes.block)
            shadow.reader_block[cell] = np.where(mine, lanes.block, SEVERAL)
        self._settle(shadow, lanes, cell, op.pc)

    def _settle(self, shadow: Shadow, lanes: Accesses, cell: Any, pc: int) -> None:
        """Lanes that read the same granule at once: one has left its record; make it say so."""
        record = shadow.read[cell]
        code = record >> PC & (1 << CODE) - 1
        lost = code != lanes.thread
        if not lost.any():
            return
        ours = np.where(code < WARPS, code // WARP, code - WARPS) == lanes.thread // WARP
        many = ~ours
        if shadow.reader_block.size:
            elsewhere = shadow.reader_block[cell] != lanes.block
            shadow.reader_block[cell[elsewhere]] = SEVERAL
            many |= elsewhere
        together = WARPS + lanes.thread // WARP
        shadow.read[cell[lost]] = lanes.stamp(pc, together)[lost]
        shadow.read[cell[many]] = lanes.stamp(pc, MANY)[many]

    def _merged(self, before: Any, alone: Any, lanes: Accesses, pc: int) -> np.ndarray:
        """The record of the readers after this read: mine, or a set that holds me and `before`."""
        code = before >> PC & (1 << CODE) - 1
        warp = lanes.thread // WARP
        theirs = np.where(code < WARPS, code // WARP, code - WARPS)
        joined = np.where((theirs == warp) & (code < MANY), WARPS + warp, MANY)
        return lanes.stamp(pc, np.where(alone, lanes.thread, joined))

    def _write(
        self,
        machine: Machine,
        op: Op,
        space: Space,
        shadow: Shadow,
        lanes: Accesses,
        cell: Any,
        how: str,
        value: Any,
    ) -> None:
        written = shadow.written[cell]
        blocks = shadow.writer_block[cell] if shadow.writer_block.size else None
        bad = self._unordered(written, blocks, lanes)
        if how == "atomic" and bad.any():
            bad &= ~self._was_atomic(machine, written)
        if bad.any() and value is not None:
            bad &= self._changes(machine, space, lanes, value)
        if bad.any():
            self._race(machine, op, space, lanes, bad, written, blocks, _VERB[how], "wrote")
        if how == "write":
            read = shadow.read[cell]
            readers = shadow.reader_block[cell] if shadow.reader_block.size else None
            bad = self._unordered(read, readers, lanes)
            if bad.any() and value is not None:
                bad &= self._changes(machine, space, lanes, value)
            if bad.any():
                self._race(machine, op, space, lanes, bad, read, readers, "writes", "read")
        shadow.written[cell] = stamp = lanes.stamp(op.pc)
        if blocks is not None:
            shadow.writer_block[cell] = lanes.block
        lost = shadow.written[cell] != stamp
        if blocks is not None:
            lost |= shadow.writer_block[cell] != lanes.block
        if how == "atomic":
            self._settle_atomics(shadow, lanes, cell, op.pc, written, blocks, lost)
        elif value is not None and lost.any():
            self._one_value(machine, op, space, shadow, lanes, cell, lost, value)

    def _settle_atomics(
        self,
        shadow: Shadow,
        lanes: Accesses,
        cell: Any,
        pc: int,
        before: Any,
        blocks: Any,
        lost: Any,
    ) -> None:
        """Atomics of several threads on one granule: the record names them all."""
        many = lost | self._unordered(before, blocks, lanes)
        shadow.written[cell[many]] = lanes.stamp(pc, MANY)[many]
        if blocks is not None:
            elsewhere = shadow.writer_block[cell] != lanes.block
            elsewhere |= (before != 0) & (blocks != lanes.block)
            shadow.writer_block[cell[elsewhere]] = SEVERAL

    def _one_value(
        self,
        machine: Machine,
        op: Op,
        space: Space,
        shadow: Shadow,
        lanes: Accesses,
        cell: Any,
        lost: Any,
        value: Any,
    ) -> None:
        """Lanes that write one granule at once must write the same value."""
        winner = shadow.written[cell]
        thread = winner >> PC & (1 << CODE) - 1
        column = lanes.column
        blocks = None
        if shadow.writer_block.size:
            blocks = shadow.writer_block[cell]
            column = blocks - machine.first
        full = np.broadcast_to(value, machine.lanes)
        bad = lost & (full[thread, column] != full[lanes.thread, lanes.column])
        if bad.any():
            self._race(machine, op, space, lanes, bad, winner, blocks, "writes", "also writes")

    def _changes(self, machine: Machine, space: Space, lanes: Accesses, value: Any) -> Any:
        """Whether the write puts another value there than there is: if not, nobody can tell."""
        mine = np.broadcast_to(value, machine.lanes)[lanes.thread, lanes.column]
        if mine.itemsize * 1 > 4:
            return np.True_
        column = 0 if space.column is None else lanes.column
        words = space.words.reshape(-1).view(mine.dtype)
        flat = (lanes.address >> 2) * space.words.shape[1] + column
        if mine.itemsize < 4:
            flat = flat * (4 // mine.itemsize) + (lanes.address & 3) // mine.itemsize
        return words[flat] != mine

    def _unordered(self, record: Any, blocks: Any, lanes: Accesses) -> np.ndarray:
        """Whether the recorded access is by another thread and nothing orders it before now."""
        code = record >> PC & (1 << CODE) - 1
        epoch = (record >> (PC + CODE + CLOCK)) - 1
        bad = (epoch == lanes.epoch) & (code != lanes.thread)
        if blocks is not None:
            elsewhere = (record != 0) & (blocks != lanes.block)
            if elsewhere.any() and self.time:
                acquired = self.acquired_at[lanes.block]
                released = (epoch <= self.released_epoch[blocks]) & (
                    self.released_at[blocks] <= acquired
                )
                elsewhere &= ~np.where(blocks == SEVERAL, self._all_released(acquired), released)
            bad = np.where(blocks == lanes.block, bad, elsewhere)
        if not bad.any():
            return bad
        clock = record >> (PC + CODE) & (1 << CLOCK) - 1
        theirs = np.where(code < WARPS, code // WARP, code - WARPS)
        ordered = (theirs == lanes.thread // WARP) & (lanes.clock > clock) & (code < MANY)
        if blocks is not None:
            ordered &= blocks == lanes.block
        return bad & ~ordered

    def _all_released(self, acquired: Any) -> Any:
        """Whether every block that began has released before: all that is known of SEVERAL."""
        begun = self.released_epoch[: self.begun]
        return (acquired >= self.released_at[: self.begun].max()) & (begun >= 0).all()

    def _was_atomic(self, machine: Machine, record: Any) -> np.ndarray:
        ops = machine.program.kernel.ops
        pcs = record & (1 << PC) - 1
        return np.array([ops[pc].name in ("atom", "red") for pc in pcs.tolist()], bool)

    # --- messages ------------------------------------------------------------------------------

    def _race(
        self,
        machine: Machine,
        op: Op,
        space: Space,
        lanes: Accesses,
        bad: Any,
        record: Any,
        blocks: Any,
        now: str,
        then: str,
    ) -> None:
        def tell(k: int) -> str:
            code = int(record[k]) >> PC & (1 << CODE) - 1
            other = machine.program.kernel.ops[int(record[k]) & (1 << PC) - 1]
            mine = int(lanes.thread[k])
            near = "__syncthreads()"
            if code < WARPS:
                who = f"thread {machine.thread_id(code)}"
                if code // WARP == mine // WARP:
                    near = "__syncwarp() or __syncthreads()"
            else:
                who = f"other threads of warp {code - WARPS}" if code < MANY else "other threads"
            between = f"with no {near} between"
            if blocks is not None and blocks[k] != lanes.block[k]:
                several = blocks[k] == SEVERAL
                who = (
                    "several blocks"
                    if several
                    else f"{who} of block {machine.block_id(int(blocks[k]))}"
                )
                between = "and nothing orders two blocks of one launch"
            elif other is op and then == "also writes":
                between = "in the same instruction"
            return (
                f"{now} {self._name(machine, space, int(lanes.address[k]))}, which {who} {then} "
                f"in line {other.line}: `{machine.source(other)}`, {between}"
            )

        kind = "race"
        if blocks is not None and (blocks[bad] != lanes.block[bad]).any():
            kind = "race between blocks"
        self._fault(machine, op, kind, bad, lanes, tell)

    def _name(self, machine: Machine, space: Space, address: int) -> str:
        """What lies at an address, as the source calls it."""
        if space.name == "global":
            return self.memory.where_is(int(address))
        for symbol in machine.program.kernel.shared if space.name == "shared" else ():
            if symbol.address <= address < symbol.address + symbol.size:
                return f"{plain_name(symbol.name)} + {address - symbol.address} bytes"
        return f"byte {address} of {space.name} memory"

    def _fault(
        self, machine: Machine, op: Op, kind: str, bad: Any, lanes: Accesses, tell: Any
    ) -> None:
        """Raise for the first bad lane of the first block."""
        places = np.flatnonzero(bad)
        k = places[np.lexsort((lanes.thread[places], lanes.column[places]))[0]]
        machine.fault_at(op, kind, tell(k), int(lanes.thread[k]), int(lanes.column[k]))


_VERB = {"read": "reads", "write": "writes", "atomic": "atomically updates"}


def _part(values: Any, offset: int) -> Any:
    """Of the values that a vector store writes, the one at that byte."""
    if not len(values):
        return None
    return values[min(offset // values[0].dtype.itemsize, len(values) - 1)]


def plain_name(symbol: str) -> str:
    """tile of _ZZ6kernelE4tile"""
    match = re.fullmatch(r"_ZZ.*E(\d+)(\w+)", symbol)
    return match[2][: int(match[1])] if match else symbol
