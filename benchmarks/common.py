"""What the benchmarks share: the machine, worker processes that take turns, tables and JSON."""

from __future__ import annotations

import importlib.metadata
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from minigan import system
from minigan.kernels import threads


def machine() -> dict[str, Any]:
    """Processor, versions and thread count."""
    facts: dict[str, Any] = {
        "processor": system.cpu_model(),
        "cores": system.cores(),
        "threads": threads.count(),
        "python": platform.python_version(),
        "blas": system.blas(),
    }
    for package in ("numpy", "numba", "torch"):
        try:
            facts[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def timed(function: Callable[[], Any], times: int) -> list[float]:
    """The seconds that each of `times` calls takes."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


class Worker:
    """A process of its own for each contender, so that neither its threads nor its memory are in
    another's way. It answers each line on stdin with a line of JSON on stdout."""

    def __init__(self, script: str, arguments: Sequence[str]) -> None:
        command = [sys.executable, script, *arguments]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, question: Any) -> Any:
        """Its answer; None if it has died."""
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            return None
        line = self.process.stdout.readline()
        return json.loads(line) if line else None

    def end(self) -> None:
        assert self.process.stdin
        self.process.stdin.close()
        self.process.wait()


def answer(function: Callable[[Any], Any]) -> None:
    """The other side of Worker: until stdin ends."""
    for line in sys.stdin:
        print(json.dumps(function(json.loads(line))), flush=True)


def take_turns(workers: dict[str, Worker], question: Any, rounds: int) -> dict[str, list[float]]:
    """Ask each worker in turn, `rounds` times, for times; the numbers of each, joined."""
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in list(workers.items()):
            got = worker.ask(question)
            if got is None:
                print(f"{name} does not work here", file=sys.stderr)
                del workers[name], times[name]
                continue
            times[name] += got
    return times


def median_ms(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


def print_table(rows: Sequence[Sequence[Any]]) -> None:
    """rows: the header first; numbers to the right."""
    text = [[f"{v:.3g}" if isinstance(v, float) else str(v) for v in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*text, strict=True)]
    for row in text:
        cells = [row[0].ljust(widths[0])]
        cells += [v.rjust(w) for v, w in zip(row[1:], widths[1:], strict=True)]
        print("| " + " | ".join(cells) + " |")
        if row is text[0]:
            print("|" + "|".join("-" * (w + 2) for w in widths) + "|")


def report(path: str | None, results: Any) -> None:
    """Print the machine, and write it with the results to `path` as JSON."""
    facts = machine()
    print(", ".join(f"{k} {v}" for k, v in facts.items() if v is not None))
    if path:
        Path(path).write_text(json.dumps({"machine": facts, "results": results}, indent=1) + "\n")
