"""The figures that kernels may not exceed, in budget.json; the tests hold them to it.

A kernel that gets better leaves room: take it away with `minigan kernels report --update-budget`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from minigan.kernels.report import Report

FILE = Path(__file__).with_name("budget.json")
FIGURES = ("registers", "spilled", "static_shared", "bank_conflict", "sectors_per_request")
UPDATE = "minigan kernels report --update-budget"


def read() -> dict[str, Any]:
    return json.loads(FILE.read_text(encoding="utf-8"))


def measure(reports: Iterable[Report]) -> dict[str, dict[str, float]]:
    """The figures of each report that have a budget; fractions rounded up to a hundredth."""
    return {
        r.name: {figure: math.ceil(getattr(r, figure) * 100) / 100 for figure in FIGURES}
        for r in reports
    }


def write(kernels: dict[str, dict[str, float]], launches: dict[str, int]) -> None:
    """Make these figures the budget.   launches: of a training step, by its name."""
    budget = read() | {"launches": launches, "kernels": kernels}
    text = json.dumps(budget, indent=2, ensure_ascii=False)
    FILE.write_text(text + "\n", encoding="utf-8")


def exceeded(measured: dict[str, dict[str, float]], budget: dict[str, Any]) -> list[str]:
    """A line for each figure above its budget: which kernel, which figure, and what to do."""
    lines = []
    for name, figures in measured.items():
        allowed = budget["kernels"].get(name)
        if allowed is None:
            lines.append(f"{name} has no budget; to give it one: {UPDATE}")
            continue
        lines += [
            f"{name}: {figure} is {value:g}, above its budget of {allowed[figure]:g}; "
            f"if that cannot be helped: {UPDATE}"
            for figure, value in figures.items()
            if value > allowed[figure]
        ]
    return lines
