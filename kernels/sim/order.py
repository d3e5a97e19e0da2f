"""Shadow memory, and which access happened before which.

A record says of a granule of memory who last wrote (or read) it, and when. Order comes from

    __syncthreads         the block's epoch rises
    __syncwarp, shuffles  Lamport clocks: of the lanes that meet, each gets the highest plus one
    atomics               a fence and then an atomic release what the block did, any later atomic
                          acquires it: enough for "the last block sums up"; nothing else orders
                          the blocks of a launch

A record names one thread, or that there were several in one warp, or in many (FastTrack, Flanagan
and Freund 2009, keeps one reader likewise). Lamport clocks may order more than the program does
where member masks are partial: a race can be missed there, but no correct program is accused.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .machine import WARP, Machine
from .opcodes import I64, Value

# A record has 63 bits: epoch + 1 | clock | code | pc of the instruction. 0: never.
PC, CODE, CLOCK = 20, 12, 12
# Codes: a thread, several of one warp, several, a cp.async under way.
WARPS, MANY, COPYING = 1024, 2048, 4095
SEVERAL = -1  # as the block of a record: threads of more than one


def pc_of(record: Any) -> Any:
    return record & (1 << PC) - 1


def code_of(record: Any) -> Any:
    return record >> PC & (1 << CODE) - 1


def warp_of(code: Any) -> Any:
    """The warp that a code speaks of; nonsense for MANY and COPYING."""
    return np.where(code < WARPS, code // WARP, code - WARPS)


@dataclass
class Lanes:
    """The lanes that touch memory in one instruction, in arrays of one dimension.

    uniform: all blocks do the same, and column 0 stands for them all.
    """

    address: np.ndarray
    thread: np.ndarray
    column: np.ndarray
    block: np.ndarray
    epoch: np.ndarray
    clock: np.ndarray
    uniform: bool = False

    def stamp(self, pc: int, code: Value = None) -> np.ndarray:
        """Records of these lanes' accesses now."""
        code = self.thread if code is None else code
        when = (self.epoch + 1) << CLOCK | np.minimum(self.clock, (1 << CLOCK) - 1)
        return (when << CODE | code) << PC | min(pc, (1 << PC) - 1)

    def of(
        self, value: Value, lanes: tuple[int, int], thread: Any = None, column: Any = None
    ) -> Any:
        """What a register holds for these lanes, or others: (lanes, 1; or blocks if uniform)."""
        full = np.broadcast_to(value, lanes)
        thread = self.thread if thread is None else thread
        if self.uniform:
            return full[thread]
        return full[thread, self.column if column is None else column].reshape(-1, 1)


class Shadow:
    """Records of the last write and the last read of each granule.

    Shared memory has a column a block; as long as all blocks do the same, one stands for all.
    """

    def __init__(self, granules: int, with_blocks: bool) -> None:
        self.columns = 1
        self.written = np.zeros(granules, I64)
        self.read = np.zeros(granules, I64)
        self.writer: np.ndarray | None = None  # blocks, where several share the memory
        self.reader: np.ndarray | None = None
        if with_blocks:
            self.writer, self.reader = np.zeros((2, granules), np.int32)

    def spread(self, columns: int) -> None:
        """Give each block a column of its own."""
        if self.columns == 1 and columns > 1:
            self.written = np.repeat(self.written, columns)
            self.read = np.repeat(self.read, columns)
            self.columns = columns

    def write(self, cell: Any, lanes: Lanes, record: Any) -> Any:
        """Leave records; return the lanes whose record another one's has overwritten."""
        self.written[cell] = record
        lost = self.written[cell] != record
        if self.writer is not None:
            self.writer[cell] = lanes.block
            lost |= self.writer[cell] != lanes.block
        return lost

    def add_readers(self, cell: Any, lanes: Lanes, pc: int, alone: Any) -> None:
        """Leave records of reads. alone: no reader before need be remembered beside this one."""
        before, warp = code_of(self.read[cell]), lanes.thread // WARP
        joined = np.where((warp_of(before) == warp) & (before < MANY), WARPS + warp, MANY)
        self.read[cell] = lanes.stamp(pc, np.where(alone, lanes.thread, joined))
        if self.reader is not None:
            mine = alone | (self.reader[cell] == lanes.block)
            self.reader[cell] = np.where(mine, lanes.block, SEVERAL)
        # of lanes that read one granule at once, one has left its record: make it name them all
        code = code_of(self.read[cell])
        lost = code != lanes.thread
        if not lost.any():
            return
        many = warp_of(code) != warp
        if self.reader is not None:
            elsewhere = self.reader[cell] != lanes.block
            self.reader[cell[elsewhere]] = SEVERAL
            many |= elsewhere
        self.read[cell[lost]] = lanes.stamp(pc, WARPS + warp)[lost]
        self.read[cell[many]] = lanes.stamp(pc, MANY)[many]

    def add_atomics(self, cell: Any, lanes: Lanes, pc: int, several: Any, blocks: Any) -> None:
        """Where threads did atomics on one granule: the record names them all."""
        self.written[cell[several]] = lanes.stamp(pc, MANY)[several]
        if self.writer is not None:
            elsewhere = (self.writer[cell] != lanes.block) | blocks
            self.writer[cell[elsewhere]] = SEVERAL


class Order:
    """The clocks of a launch."""

    def __init__(self, blocks: int) -> None:
        self.fenced = np.zeros(blocks, bool)
        self.released_epoch = np.full(blocks, -1, I64)
        self.released_at = np.zeros(blocks, I64)
        self.acquired_at = np.full(blocks, -1, I64)
        self.time = 0

    def start(self, machine: Machine) -> None:
        self.begun = machine.first + machine.blocks
        self.epoch: Value = np.zeros((1, 1), I64)
        self.clock: Value = np.zeros((1, 1), I64)

    def block_sync(self, machine: Machine, active: Value) -> None:
        if active is True:
            self.epoch = self.epoch + 1
            self.clock = np.zeros((1, 1), I64)
        else:
            came = np.broadcast_to(active, machine.lanes).any(axis=0, keepdims=True)
            self.epoch = self.epoch + came

    def warp_sync(self, machine: Machine, active: Value) -> None:
        if active is True and self.clock.size == 1:
            self.clock = self.clock + 1
            return
        met = machine.by_warp(np.where(active, self.clock, 0), 0).max(axis=1, keepdims=True) + 1
        self.clock = np.where(active, machine.by_lane(met), self.clock)

    def fence(self, machine: Machine, active: Value) -> None:
        self.fenced[_blocks(machine, active)] = True

    def atomic(self, machine: Machine, active: Value) -> None:
        """An atomic acquires; after a fence it also releases."""
        self.time += 1
        blocks = _blocks(machine, active)
        self.acquired_at[blocks] = self.time
        releasing = blocks[self.fenced[blocks]]
        epochs = np.broadcast_to(self.epoch, (1, machine.blocks))[0]
        self.released_epoch[releasing] = epochs[releasing - machine.first]
        self.released_at[releasing] = self.time

    def unordered(self, record: Any, blocks: Any, lanes: Lanes) -> np.ndarray:
        """Whether the recorded access is by another thread and nothing orders it before now.

        blocks: of the records; None for shared memory, which has but one.
        """
        code = code_of(record)
        epoch = (record >> (PC + CODE + CLOCK)) - 1
        bad: np.ndarray = (epoch == lanes.epoch) & (code != lanes.thread)
        if blocks is not None:
            bad = np.where(blocks == lanes.block, bad, self._apart(record, epoch, blocks, lanes))
        if not bad.any():
            return bad
        clock = record >> (PC + CODE) & (1 << CLOCK) - 1
        met = (warp_of(code) == lanes.thread // WARP) & (lanes.clock > clock) & (code < MANY)
        if blocks is not None:
            met &= blocks == lanes.block
        return bad & ~met

    def _apart(self, record: Any, epoch: Any, blocks: Any, lanes: Lanes) -> Any:
        """Whether the record is of another block, and no atomics have ordered the two."""
        elsewhere = (record != 0) & (blocks != lanes.block)
        if self.time == 0 or not elsewhere.any():
            return elsewhere
        acquired = self.acquired_at[lanes.block]
        released = epoch <= self.released_epoch[blocks]
        released &= self.released_at[blocks] <= acquired
        # all that is known of SEVERAL is whether every block that began has released since
        begun = slice(self.begun)
        all_released = bool((self.released_epoch[begun] >= 0).all())
        everyone = all_released & (acquired >= self.released_at[begun].max())
        return elsewhere & ~np.where(blocks == SEVERAL, everyone, released)


def _blocks(machine: Machine, active: Value) -> np.ndarray:
    """The blocks that have a lane in the mask."""
    some = np.broadcast_to(active, machine.lanes).any(axis=0)
    return np.flatnonzero(some) + machine.first
