"""What a profiler counts, counted exactly, for each line of the CUDA source. None of it is a time.

Global memory moves in sectors of 32 bytes: a warp that reads 32 floats in a row makes one request
of 4 sectors; any more is waste. Shared memory has 32 banks of 4 bytes: a warp's access takes one
wavefront for each distinct word that falls into its fullest bank; accesses of 8 and 16 bytes go by
half and quarter warps (CUDA C++ Programming Guide, "Shared Memory").
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from .machine import WARP, Machine
from .memory import Space
from .opcodes import I64, Value
from .ptx import Op

SECTOR = 32  # bytes
BANKS = 32


@dataclass
class Counts:
    """Counts of a line or of a kernel. A request is one warp's execution of one instruction."""

    instructions: int = 0  # that warps have issued
    lane_instructions: int = 0  # of their threads that took part
    flops: int = 0  # an FMA is two
    ffma: int = 0  # float32 FMAs of threads
    branches: int = 0  # that warps have met, of those that depend on something
    divergent: int = 0  # of these, the ones that split their warp
    global_requests: int = 0
    global_sectors: int = 0
    global_bytes: int = 0  # that threads asked for
    shared_requests: int = 0
    shared_wavefronts: int = 0
    shared_least: int = 0  # wavefronts if no two words shared a bank
    shared_bytes: int = 0
    atomics: int = 0  # requests
    barriers: int = 0  # __syncthreads that warps have met

    @property
    def sectors_per_request(self) -> float:
        """4 for 32 floats in a row, 32 for a stride of 32 bytes or more."""
        return self.global_sectors / self.global_requests if self.global_requests else 0.0

    @property
    def bank_conflict(self) -> float:
        """1: none; n: n-way on average."""
        return self.shared_wavefronts / self.shared_least if self.shared_least else 1.0

    @property
    def lanes_active(self) -> float:
        """Share of the lanes that did something, 0 .. 1."""
        return self.lane_instructions / (WARP * self.instructions) if self.instructions else 0.0

    @property
    def ffma_share(self) -> float:
        """Share of the issued instructions' lanes that were float32 FMAs, 0 .. 1."""
        return self.ffma / self.lane_instructions if self.lane_instructions else 0.0

    def __add__(self, other: Counts) -> Counts:
        return Counts(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))


class Counters:
    """Watches one launch. lines: (file, line) -> Counts; the sum of them is `total`."""

    def __init__(self, files: dict[int, str]) -> None:
        self.files = files
        self.lines: dict[tuple[str, int], Counts] = {}

    @property
    def total(self) -> Counts:
        return sum(self.lines.values(), Counts())

    def of(self, file: str) -> dict[int, Counts]:
        """The counts of a file's lines, by number.   file: its name, without folders."""
        return {n: counts for (path, n), counts in self.lines.items() if Path(path).name == file}

    def line(self, number: int) -> Counts:
        """The counts of a line of the source itself (and of that number in what it includes)."""
        return sum((c for (_, n), c in self.lines.items() if n == number), Counts())

    def _counts(self, op: Op) -> Counts:
        key = (self.files.get(op.file, ""), op.line)
        return self.lines.setdefault(key, Counts())

    def instruction(self, machine: Machine, op: Op, active: Value) -> None:
        counts = self._counts(op)
        warps, lanes = _sizes(machine, active)
        counts.instructions += warps
        counts.lane_instructions += lanes
        counts.flops += flops(op) * lanes
        counts.ffma += lanes if op.name == "fma" and "f32" in op.mods else 0
        counts.atomics += warps if op.name in ("atom", "red") else 0
        counts.barriers += warps if op.name in ("bar", "barrier") and "warp" not in op.mods else 0

    def branch(self, machine: Machine, op: Op, mask: Value, taken: Value) -> None:
        """A branch that `taken` of the lanes of `mask` take."""
        counts = self._counts(op)
        counts.branches += _sizes(machine, mask)[0]
        if taken is not None and taken is not True:
            some = machine.by_warp(np.logical_and(mask, taken), False).any(axis=1)
            others = machine.by_warp(np.logical_and(mask, ~taken), False).any(axis=1)
            counts.divergent += int((some & others).sum()) * (machine.blocks // some.shape[1])

    def access(
        self,
        machine: Machine,
        op: Op,
        space: Space,
        address: Value,
        size: int,
        active: Value,
        how: str,
    ) -> None:
        if space.name not in ("global", "shared"):
            return
        counts = self._counts(op)
        warps, lanes = _sizes(machine, active)
        columns = max(np.shape(value)[1] if np.ndim(value) else 1 for value in (address, active))
        mask = machine.by_warp(
            np.broadcast_to(active, (machine.threads, columns)), False
        )  # (warps, 32, blocks)
        places = machine.by_warp(np.broadcast_to(address, (machine.threads, columns)), 0)
        same = machine.blocks // columns  # blocks that one column stands for
        if space.name == "global":
            counts.global_requests += warps
            counts.global_bytes += size * lanes
            counts.global_sectors += same * _distinct(np.where(mask, places // SECTOR, -1))
        else:
            counts.shared_requests += warps
            counts.shared_bytes += size * lanes
            wavefronts, least = _wavefronts(places, mask, size)
            counts.shared_wavefronts += same * wavefronts
            counts.shared_least += same * least


def flops(op: Op) -> int:
    """Floating-point operations of one thread in one instruction; an FMA is two."""
    if op.name == "mma":
        m, n, k = _mma_shape(op)
        return 2 * m * n * k // WARP
    if not op.types or op.types[-1] not in ("f32", "f64") or op.name not in _FLOPS:
        return 0
    return _FLOPS[op.name]


_FLOPS = {"fma": 2, "mad": 2} | dict.fromkeys(
    "add sub mul div min max rcp sqrt rsqrt ex2 lg2 sin cos tanh red atom".split(), 1
)


def _mma_shape(op: Op) -> tuple[int, int, int]:
    shape = next(mod for mod in op.mods if mod.startswith("m16"))
    m, rest = shape[1:].split("n")
    n, k = rest.split("k")
    return int(m), int(n), int(k)


def _sizes(machine: Machine, active: Value) -> tuple[int, int]:
    """The warps and the lanes of a mask."""
    if active is True:
        return -(-machine.threads // WARP) * machine.blocks, machine.threads * machine.blocks
    mask = machine.by_warp(np.broadcast_to(active, (machine.threads, np.shape(active)[1])), False)
    same = machine.blocks // mask.shape[2]
    return int(mask.any(axis=1).sum()) * same, int(mask.sum()) * same


def _distinct(values: np.ndarray) -> int:
    """The number of distinct values ≥ 0 along axis 1, summed over the others."""
    ordered = np.sort(values, axis=1)
    first = np.diff(ordered, axis=1, prepend=-1) != 0
    return int((first & (ordered >= 0)).sum())


def _wavefronts(address: Any, mask: Any, size: int) -> tuple[int, int]:
    """Wavefronts of shared accesses (warps, 32, blocks), and the least that they could be."""
    words = max(1, size // 4)
    word = np.where(mask, address >> 2, -1).transpose(0, 2, 1)
    word = word.reshape(-1, WARP // words, 1)  # by phases of 32, 16 or 8 lanes: 128 bytes each
    word = np.where(word >= 0, word + np.arange(words, dtype=I64), -1)
    word = np.sort(word.reshape(len(word), -1), axis=1)  # (phases of all warps, words)
    first = (np.diff(word, axis=1, prepend=-1) != 0) & (word >= 0)
    group = np.broadcast_to(np.arange(len(word)).reshape(-1, 1), word.shape)
    bank = np.bincount((group * BANKS + word % BANKS)[first], minlength=len(word) * BANKS)
    fullest = bank.reshape(-1, BANKS).max(axis=1)
    return int(fullest.sum()), int((fullest > 0).sum())
