"""How the counters of sim are shown, beside lines of source and in sum."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from minigan.kernels.sim.counters import Counts


class Figure(NamedTuple):
    """A column. text: empty where the line has nothing of the kind."""

    head: str
    width: int
    legend: str
    text: Callable[[Counts], str]


def short(n: float) -> str:
    """1234 -> 1.23k"""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if n >= size:
            return f"{n / size:.3g}{unit}"
    return f"{n:.0f}"


FIGURES = (
    Figure("instr", 6, "instructions that warps issued", lambda c: short(c.instructions)),
    Figure(
        "lanes",
        5,
        "share of the 32 lanes that took part; less: divergence or a ragged end",
        lambda c: f"{c.lanes_active:.0%}" if c.instructions else "",
    ),
    Figure(
        "sect",
        4,
        "sectors of 32 bytes a request to global memory; 4: 32 floats in a row",
        lambda c: f"{c.sectors_per_request:.1f}" if c.global_requests else "",
    ),
    Figure(
        "bank",
        4,
        "bank conflict of shared memory; 1: none, n: it takes n times as long",
        lambda c: f"{c.bank_conflict:.1f}" if c.shared_requests else "",
    ),
    Figure(
        "flop",
        5,
        "floating-point operations; an FMA is two",
        lambda c: short(c.flops) if c.flops else "",
    ),
)
