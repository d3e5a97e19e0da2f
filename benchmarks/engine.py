"""Microseconds that one op takes: forward, with backward, and with a backward that is recorded.

    python benchmarks/engine.py                   4×4 and 512×512 arrays
    python benchmarks/engine.py --json engine.json

A chain of 50 ops y = tanh(y) or y = y · x, and its gradient by x; per op. Against PyTorch eager,
and NumPy's forward alone. All take turns in one process, on one thread.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from common import at_least_one, median_ms, new_file, print_table, report, timed

import minigan
from minigan.kernels import threads

LENGTH = 50
OPS = {"tanh": lambda xp, y, x: xp.tanh(y), "mul": lambda xp, y, x: y * x}


def chain(xp: Any, op: str, x: Any) -> Any:
    y = x
    for _ in range(LENGTH):
        y = OPS[op](xp, y, x)
    return y


def minigan_runs(op: str, a: np.ndarray) -> dict[str, Callable[[], Any]]:
    from minigan import ops

    x = minigan.Tensor(a, requires_grad=True)
    g = np.ones_like(a)
    return {
        "forward": lambda: chain(ops, op, x),
        "and backward": lambda: minigan.grad(chain(ops, op, x), x, g),
        "recorded": lambda: minigan.grad(chain(ops, op, x), x, g, create_graph=True),
    }


def torch_runs(op: str, a: np.ndarray) -> dict[str, Callable[[], Any]]:
    import torch

    torch.set_num_threads(1)
    x = torch.tensor(a, requires_grad=True)
    g = torch.ones_like(x)
    return {
        "forward": lambda: chain(torch, op, x),
        "and backward": lambda: torch.autograd.grad(chain(torch, op, x), x, g),
        "recorded": lambda: torch.autograd.grad(chain(torch, op, x), x, g, create_graph=True),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--sizes", type=at_least_one, nargs="+", default=[4, 512], help="sides of arrays"
    )
    parser.add_argument(
        "--rounds", type=at_least_one, default=10, help="turns that each contender has"
    )
    parser.add_argument("--json", type=new_file, help="file for the results")
    args = parser.parse_args()
    threads.set_count(1)
    contenders: dict[str, Any] = {"minigan": minigan_runs}
    if importlib.util.find_spec("torch"):
        contenders["PyTorch"] = torch_runs
    contenders["NumPy"] = lambda op, a: {"forward": lambda: chain(np, op, a)}
    rows: list[tuple[Any, ...]] = [("op", "size", "what", *contenders)]
    results = []
    for size in args.sizes:
        a = np.random.default_rng(0).uniform(0.9, 1.0, (size, size)).astype(np.float32)
        for op in OPS:
            runs = {c: make(op, a) for c, make in contenders.items()}
            for what in runs["minigan"]:
                micro = race({c: r[what] for c, r in runs.items() if what in r}, args.rounds)
                cells = [f"{micro[c]:.1f}" if c in micro else "" for c in contenders]
                rows.append((op, size, what, *cells))
                results.append({"op": op, "size": size, "what": what, "us": micro})
    print_table(rows)
    report(args.json, results)


def race(runs: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """µs an op of each, the median of all its turns."""
    times: dict[str, list[float]] = {c: [] for c in runs}
    for _ in range(rounds):
        for c, run in runs.items():
            calls = max(2, min(100, int(0.02 / min(timed(run, 2)))))
            times[c] += timed(run, calls)
    return {c: median_ms(seconds) * 1e3 / LENGTH for c, seconds in times.items()}


if __name__ == "__main__":
    main()
