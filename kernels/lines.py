"""How the counters of sim are shown, beside lines of source and in sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minigan.kernels.sim.counters import Counts


class Figure(NamedTuple):
    """A column. text: empty where the line has nothing of the kind."""

    head: str
    legend: str
    text: Callable[[Counts], str]


def short(n: float) -> str:
    """1234 -> 1.23k"""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


FIGURES = (
    Figure("instr", "instructions that warps issued", lambda c: short(c.instructions)),
    Figure(
        "lanes",
        "share of the warps' 32 lanes that took part; less is divergence or a ragged end",
        lambda c: f"{c.lanes_active:.0%}" if c.instructions else "",
    ),
    Figure(
        "sect/req",
        "sectors of 32 bytes a request to global memory: 4 for 32 floats in a row, 32 at worst",
        lambda c: f"{c.sectors_per_request:.1f}" if c.global_requests else "",
    ),
    Figure(
        "conflict",
        "bank conflict of shared memory: 1 none, n that an access takes n times as long",
        lambda c: f"{c.bank_conflict:.1f}" if c.shared_requests else "",
    ),
    Figure(
        "flop",
        "floating-point operations, an FMA is two",
        lambda c: short(c.flops) if c.flops else "",
    ),
)
