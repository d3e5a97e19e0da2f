"""Figures of each kernel on an architecture, and what bounds it: `minigan kernels report`.

Where they come from, which every table and file says too:

    compiled    by NVRTC's ptxas: registers, spills, shared memory; hence occupancy
    counted     in PTX (share of FMAs in the hot loop), on sim (sectors, conflicts, instructions)
    predicted   the bound: of all that a launch needs, what needs the most clock cycles of the card
                that stands for the architecture. A way to order kernels, no time.

None of it is a measurement of a GPU.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

from minigan.kernels import plan
from minigan.kernels.architectures import (
    ARCHITECTURES,
    L2_BYTES,
    SCHEDULERS,
    occupancy,
    resident_blocks,
)
from minigan.kernels.case import Case
from minigan.kernels.cases import cases
from minigan.kernels.machine_code import code_of, hot_loop
from minigan.kernels.sim.counters import SECTOR, Counts

SOURCES = {
    "compiled": "registers, spills, shared memory, occupancy: by NVRTC's ptxas",
    "counted": "FMA share in the PTX of the hot loop; sectors, conflicts and bytes on sim",
    "predicted": "the bound, by a model of the card: a way to order kernels, no GPU timing",
}


@dataclass(frozen=True)
class Report:
    """One launch on one architecture.

    registers: of a thread. spilled: bytes of a thread. static_shared, dynamic_shared: bytes of a
    block. resident: blocks on a multiprocessor. ffma_share: of the hot loop, None if it has no FMA
    to speak of. bank_conflict: of the worst line. bytes_over_minimum: moved between multiprocessors
    and L2, over each array's size once. cycles: what each part of the card needs, predicted.
    """

    kernel: str
    layer: str
    arch: str
    card: str
    grid: tuple[int, ...]
    block: tuple[int, ...]
    blocks: int
    multiprocessors: int
    registers: int
    spilled: int
    static_shared: int
    dynamic_shared: int
    resident: int
    occupancy: float
    ffma_share: float | None
    sectors_per_request: float
    bank_conflict: float
    executed_over_useful: float | None
    bytes_over_minimum: float
    flops: float
    bytes: float
    cycles: dict[str, float]

    @property
    def name(self) -> str:
        return f"{self.kernel}, {self.layer}"

    @property
    def bound(self) -> str:
        """What needs the most cycles."""
        return max(self.cycles, key=lambda part: self.cycles[part])

    @property
    def explained(self) -> str:
        """The bound, and where blocks are too few to fill the card."""
        few = self.blocks < self.multiprocessors and self.bound not in ("launch", "memory")
        return f"{self.bound}, {self.blocks}/{self.multiprocessors} SMs" if few else self.bound

    @property
    def intensity(self) -> float:
        """Useful operations for each byte that must move."""
        return self.flops / self.bytes

    @property
    def peak_share(self) -> float:
        """Predicted: useful operations over what the FMA units could do in that time, 0 .. 1."""
        return self.flops / (ARCHITECTURES[self.arch].peak * self.cycles[self.bound])

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "bound": self.bound,
            "intensity": self.intensity,
            "peak_share_predicted": self.peak_share,
        }


# ---- Counting -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Counted:
    """counts: of the whole launch. worst_conflict: of a line that shared memory matters to."""

    counts: Counts
    worst_conflict: float


@lru_cache(maxsize=256)
def counted(case: Case) -> Counted:
    """The counts of the small launch, scaled to the whole one."""
    counters = case.count()
    loop = hot_loop(case.kernel, "sm_80").lines
    total, worst = Counts(), 1.0
    requests = counters.total.shared_requests
    for (path, line), counts in counters.lines.items():
        in_loop = (Path(path).name, line) in loop
        total += _times(counts, case.steps if in_loop else case.blocks)
        if counts.shared_requests > requests / 100:
            worst = max(worst, counts.bank_conflict)
    return Counted(total, worst)


def _times(counts: Counts, factor: float) -> Counts:
    return Counts(**{f.name: round(getattr(counts, f.name) * factor) for f in fields(counts)})


# ---- Predicting ---------------------------------------------------------------------------------


def predicted_cycles(case: Case, arch: str, counts: Counts, resident: int) -> dict[str, float]:
    """What the busiest multiprocessor, or the card, needs for each part of the work.

    issue     4 instructions of warps a cycle        fma     a lane, an FMA a cycle
    shared    a wavefront a cycle                    l2      64 bytes a cycle
    memory    each array once, at the card's bandwidth
    latency   a load and a barrier one after the other, as often as a block meets one
    tensor    the tensor cores' FMAs               launch   what one costs, however small
    """
    a = ARCHITECTURES[arch]
    blocks = math.prod(case.grid)
    of_busiest = math.ceil(blocks / a.multiprocessors)
    share = of_busiest / blocks
    warps = blocks * math.ceil(math.prod(case.block) / 32)
    rounds = math.ceil(of_busiest / max(1, resident))
    return {
        "issue": counts.instructions * share / SCHEDULERS,
        "fma": counts.ffma * share / a.lanes,
        "tensor": _tensor_fmas(case, counts) * share / a.tensor if a.tensor else 0.0,
        "shared": counts.shared_wavefronts * share,
        "l2": SECTOR * counts.global_sectors * share / L2_BYTES,
        "memory": case.bytes / a.bytes_per_cycle,
        "latency": rounds * (1 + counts.barriers / warps) * plan.STEP_CYCLES,
        "launch": float(plan.LAUNCH_CYCLES),
    }


def _tensor_fmas(case: Case, counts: Counts) -> float:
    return counts.flops / 2 - counts.ffma if case.needs_tensor_cores else 0.0


def report(case: Case, arch: str) -> Report:
    """All figures of a case.   Raises: CompilerMissing, CompileError, Fault."""
    code, loop, found = code_of(case.kernel, arch), hot_loop(case.kernel, arch), counted(case)
    threads, dynamic = math.prod(case.block), 0  # no kernel here asks for dynamic shared memory
    shared = code.shared + dynamic
    resident = resident_blocks(arch, threads, code.registers, shared)
    counts = found.counts
    return Report(
        kernel=case.name,
        layer=case.layer,
        arch=arch,
        card=ARCHITECTURES[arch].card,
        grid=case.grid,
        block=case.block,
        blocks=math.prod(case.grid),
        multiprocessors=ARCHITECTURES[arch].multiprocessors,
        registers=code.registers,
        spilled=code.spilled,
        static_shared=code.shared,
        dynamic_shared=dynamic,
        resident=resident,
        occupancy=occupancy(arch, threads, code.registers, shared),
        ffma_share=loop.ffma_share if loop.ffma_share >= 0.05 else None,
        sectors_per_request=counts.sectors_per_request,
        bank_conflict=found.worst_conflict,
        executed_over_useful=case.executed_over_useful,
        bytes_over_minimum=SECTOR * counts.global_sectors / case.bytes,
        flops=case.flops,
        bytes=case.bytes,
        cycles=predicted_cycles(case, arch, counts, resident),
    )


def chosen(names: Iterable[str] = ()) -> list[Case]:
    """The cases of kernels by name; all if none is given.   Raises: ValueError."""
    names = list(names)
    known = {case.kernel.name for case in cases()} | {case.name for case in cases()}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(f"{unknown[0]}: no such kernel; there are {', '.join(sorted(known))}")
    return [c for c in cases() if not names or c.kernel.name in names or c.name in names]
