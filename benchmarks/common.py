"""What the benchmarks share: the machine, worker processes that take turns, tables and JSON."""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from math import inf
from pathlib import Path
from queue import Empty, Queue
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


def peak_mib() -> float:
    """The most memory that this process has held, in MiB."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux, whose ru_maxrss begins with what the parent has held
        (line,) = (a for a in status.read_text().splitlines() if a.startswith("VmHWM:"))
        return int(line.split()[1]) / 1024
    import resource  # which Windows has not

    unit = 1024**2 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def at_least_one(text: str) -> int:
    """For argparse: a number of turns or of elements."""
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, not {text!r}")
    return int(text)


def new_file(text: str) -> str:
    """For argparse: the path of a file to write, seen before anything is measured for it."""
    if not Path(text).parent.is_dir() or Path(text).is_dir():
        raise argparse.ArgumentTypeError(f"{text} cannot be written")
    return text


def timed(function: Callable[[], Any], times: int) -> list[float]:
    """The seconds that each of `times` calls takes."""
    seconds = []
    for _ in range(times):
        start = time.perf_counter()
        function()
        seconds.append(time.perf_counter() - start)
    return seconds


class Failed(Exception):
    """A contender cannot do it here, and why."""


class Worker:
    """A process of its own for each contender, so that neither its threads nor its memory are in
    another's way. It answers each line on stdin with a line of JSON on stdout.

    cores: how many threads it is to compute on, by default as many as this process would.
    """

    def __init__(self, script: str, arguments: Sequence[str], cores: int | None = None) -> None:
        environment = {**os.environ, "MINIGAN_NUM_THREADS": str(cores or threads.count())}
        self.process = subprocess.Popen(
            [sys.executable, script, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            process_group=0,
            env=environment,
        )
        self.answers: Queue[str] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout
        for line in self.process.stdout:
            self.answers.put(line)
        self.answers.put("")

    def ask(
        self, question: Any, limit: float = inf, waiting: Callable[[float], None] | None = None
    ) -> Any:
        """Its answer.   limit: in seconds.   waiting: called every ten seconds with those so far.

        Raises Failed, or TimeoutError beyond the limit; the process has ended then."""
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(question) + "\n")
            self.process.stdin.flush()
        start = time.perf_counter()
        while (passed := time.perf_counter() - start) < limit:
            try:
                line = self.answers.get(timeout=min(10.0, limit - passed))
            except Empty:
                if waiting is not None:
                    waiting(time.perf_counter() - start)
                continue
            got = json.loads(line) if line else {"failed": "its process died"}
            if isinstance(got, dict) and "failed" in got:
                self.end()
                raise Failed(got["failed"])
            return got
        os.killpg(self.process.pid, signal.SIGKILL)  # with the compilers that it has started
        self.end()
        raise TimeoutError(f"no answer within {limit:.0f} s")

    def end(self) -> None:
        assert self.process.stdin
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def answer(make: Callable[[], Callable[[Any], Any]]) -> None:
    """The other side of Worker: until stdin ends, or something fails.   make() answers it all."""
    try:
        function = make()
        for line in sys.stdin:
            print(json.dumps(function(json.loads(line))), flush=True)
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        print(json.dumps({"failed": f"{type(error).__name__}: {reason}"}), flush=True)


def take_turns(workers: dict[Any, Worker], question: Any, rounds: int) -> dict[Any, list[float]]:
    """Ask each worker in turn, `rounds` times, for times; the numbers of each, joined."""
    times: dict[Any, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name, worker in list(workers.items()):
            try:
                times[name] += worker.ask(question)
            except Failed as reason:
                print(f"{name} does not work here: {reason}", file=sys.stderr)
                del workers[name], times[name]
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
