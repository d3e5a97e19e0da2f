"""One training step, minigan against PyTorch: same nets, losses, batches, Adam and threads.

    python benchmarks/step.py                              all cases
    python benchmarks/step.py "mnist-dcgan 64" --rounds 20 --json step.json
    python benchmarks/step.py "mnist-dcgan 64" --start    seconds of a new process to step 1
    python benchmarks/step.py "mnist-dcgan 64" --scaling  one thread against all of them

A step is one update of the discriminator and one of the generator. Each contender runs in its own
process, and they take turns, so that what else the machine does hits all alike; medians of all
steps but the first of each turn. PyTorch (pip install torch) as a careful user writes
it: fused Adam, the discriminator frozen in the generator's step, gradients set to None, fakes made
without a graph; eager, eager with channels last, and compiled, half a minute before the first turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from math import inf
from typing import Any

import numpy as np
from common import (
    Failed,
    Worker,
    answer,
    at_least_one,
    median_ms,
    new_file,
    peak_mib,
    print_table,
    report,
    take_turns,
    timed,
)
from nets import CASES, Case, build

from minigan.kernels import threads

Step = Callable[[], Any]


def batch_of(case: Case) -> dict[str, np.ndarray]:
    """Inputs like those of training; what they are does not matter to the time."""
    rng = np.random.default_rng(0)
    flat = case.net == "mnist_gan"
    shape = (case.batch, int(np.prod(case.image))) if flat else (case.batch, *case.image)
    return {
        "x": rng.uniform(-1, 1, shape).astype(np.float32),
        "z": rng.standard_normal((case.batch, 100)).astype(np.float32),
        "labels": np.eye(10, dtype=np.float32)[rng.integers(0, 10, case.batch)],
        "alpha": rng.random(case.batch).astype(np.float32),
    }


# ---------------------------------------------------------------------------------------- minigan


def minigan_step(case: Case) -> Step:
    from minigan import nn, ops, optim
    from minigan.array import Stream
    from minigan.gan import Game
    from minigan.losses import LOSSES

    class Told(nn.Module):
        """The label beside the input."""

        per_sample = True

        def __init__(self, net: Any) -> None:
            self.net = net

        def forward(self, x: Any, labels: Any) -> Any:
            return self.net(ops.concat([x, labels], 1))

    batch = batch_of(case)
    generator, discriminator = build(case, nn, nn.Reshape)
    if case.classes:
        generator, discriminator = Told(generator), Told(discriminator)
    labels = batch["labels"] if case.classes else None
    loss = "wasserstein" if case.penalty == "wgan-gp" else "non-saturating"
    game = Game(generator, discriminator, LOSSES[loss], penalty=case.penalty)
    adam_g = optim.Adam(generator.named_parameters(), lr=2e-4, betas=(0.5, 0.999))
    adam_d = optim.Adam(discriminator.named_parameters(), lr=2e-4, betas=(0.5, 0.999))

    def step() -> None:
        x, z = batch["x"], batch["z"]
        turn = game.discriminator_turn(x, z, labels, labels, stream=Stream(0, "penalty"))
        adam_d.step(turn.grads)
        adam_g.step(game.generator_turn(z, fake_labels=labels).grads)

    return step


def multiplications(case: Case) -> int:
    """Of the products and convolutions in a step of minigan, which computes no unused gradient."""
    from minigan import kernels

    total = 0
    originals = {n: getattr(kernels, n) for n in ("conv2d", "conv2d_dgrad", "conv2d_wgrad")}

    def counting(name: str) -> Any:
        def kernel(a: Any, b: Any, *rest: Any, **finish: Any) -> Any:
            nonlocal total
            y = originals[name](a, b, *rest, **finish)
            # Each output element of conv2d is C·R·S of them, w's first axis left out.
            total += {
                "conv2d": y.size * b[0].size,
                "conv2d_dgrad": a.size * b[0].size,
                "conv2d_wgrad": b.size * y[0].size,
            }[name]
            return y

        return kernel

    def matmul(x: Any, b: Any, **finish: Any) -> Any:
        nonlocal total
        total += x.size * b.shape[-1]
        return product(x, b, **finish)

    product = kernels.matmul
    step = minigan_step(case)
    try:
        for name in originals:
            setattr(kernels, name, counting(name))
        kernels.matmul = matmul
        step()
    finally:
        for name, original in originals.items():
            setattr(kernels, name, original)
        kernels.matmul = product
    return total


# ---------------------------------------------------------------------------------------- PyTorch


def torch_step(case: Case, kind: str) -> Step:
    import torch
    from torch import nn

    torch.set_num_threads(threads.count())

    class View(nn.Module):
        def __init__(self, *shape: int) -> None:
            super().__init__()
            self.shape = shape

        def forward(self, x: Any) -> Any:
            return x.reshape(x.shape[0], *self.shape)

    batch = {name: torch.tensor(a) for name, a in batch_of(case).items()}
    generator, discriminator = build(case, nn, View)
    x, z, labels = batch["x"], batch["z"], batch["labels"]
    if kind == "channels last":
        generator = generator.to(memory_format=torch.channels_last)
        discriminator = discriminator.to(memory_format=torch.channels_last)
        if x.ndim == 4:
            x = x.to(memory_format=torch.channels_last)
    options: Any = {"lr": 2e-4, "betas": (0.5, 0.999), "fused": True}
    adam_g = torch.optim.Adam(generator.parameters(), **options)
    adam_d = torch.optim.Adam(discriminator.parameters(), **options)
    net_g, net_d = generator, discriminator
    if kind == "compiled":
        # Channels last, which it prefers, make wide convolutions three times slower on CPUs.
        how = {"dynamic": False, "options": {"layout_optimization": case.net != "dcgan"}}
        net_g, net_d = torch.compile(generator, **how), torch.compile(discriminator, **how)

    def told(a: Any) -> Any:
        return torch.cat([a, labels], 1) if case.classes else a

    def bce(logits: Any, target: float) -> Any:
        return nn.functional.binary_cross_entropy_with_logits(
            logits, torch.full_like(logits, target)
        )

    def penalty(fake: Any) -> Any:
        a = batch["alpha"].reshape(-1, 1, 1, 1)
        mixed = (a * x + (1 - a) * fake).requires_grad_()
        # torch.compile has no double backward: here it is the net as written.
        (g,) = torch.autograd.grad(discriminator(mixed).sum(), mixed, create_graph=True)
        return 10 * ((g.flatten(1).norm(dim=1) - 1) ** 2).mean()

    wasserstein = case.penalty == "wgan-gp"

    def step() -> None:
        with torch.no_grad():
            fake = net_g(told(z))
        real_logits, fake_logits = net_d(told(x)), net_d(told(fake))
        if wasserstein:
            loss = fake_logits.mean() - real_logits.mean() + penalty(fake)
        else:
            loss = bce(real_logits, 1.0) + bce(fake_logits, 0.0)
        adam_d.zero_grad(set_to_none=True)
        loss.backward()
        adam_d.step()
        discriminator.requires_grad_(False)
        logits = net_d(told(net_g(told(z))))
        loss = -logits.mean() if wasserstein else bce(logits, 1.0)
        adam_g.zero_grad(set_to_none=True)
        loss.backward()
        adam_g.step()
        discriminator.requires_grad_(True)

    return step


# ----------------------------------------------------------------------------------------- the run

CONTENDERS = {
    "minigan": minigan_step,
    "PyTorch": lambda case: torch_step(case, "eager"),
    "PyTorch channels last": lambda case: torch_step(case, "channels last"),
    "PyTorch compiled": lambda case: torch_step(case, "compiled"),
}


def work(contender: str, case: Case) -> None:
    """A worker: {"steps": n} -> n times in seconds; {} -> its peak memory in MiB."""

    def make() -> Callable[[dict[str, int]], Any]:
        step = CONTENDERS[contender](case)

        def reply(question: dict[str, int]) -> Any:
            if "steps" in question:
                return timed(step, question["steps"] + 1)[1:]  # the first finds cold caches
            return peak_mib()

        return reply

    answer(make)


def sgemm_rate(seconds: float = 1.0) -> float:
    """The best multiply-adds a second of NumPy's BLAS on all threads, on 1024 × 1024 matrices."""
    a = np.random.default_rng(0).random((1024, 1024), np.float32)
    best, end = 1e9, time.perf_counter() + seconds
    while time.perf_counter() < end:
        best = min(best, *timed(lambda: a @ a, 3))
    return 1024**3 / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(CASES)}")
    parser.add_argument(
        "--rounds", type=at_least_one, default=10, help="turns that each contender has"
    )
    parser.add_argument("--seconds", type=float, default=1.0, help="of a turn, about")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    limit = {"metavar": "SECONDS", "help": "to wait for torch.compile in each case (default 180)"}
    parser.add_argument("--compile-limit", type=float, default=180.0, **limit)
    parser.add_argument("--json", type=new_file, help="file for the results")
    parser.add_argument("--start", action="store_true", help="time new processes to step 1 instead")
    parser.add_argument("--scaling", action="store_true", help="time one thread against all")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if unknown := set(args.cases) - CASES.keys():
        parser.error(f"no case {min(unknown)!r}: choose from {', '.join(CASES)}")
    if args.worker and args.start:
        return CONTENDERS[args.worker](CASES[args.cases[0]])()
    if args.worker:
        return work(args.worker, CASES[args.cases[0]])
    if importlib.util.find_spec("torch") is None:
        print("PyTorch is not installed: pip install torch", file=sys.stderr)
    if args.start:
        return starts(args)
    if args.scaling:
        return scaling(args)
    rate = sgemm_rate()
    results = []
    for name in args.cases or CASES:
        results += measure(name, args, rate)
    rows = [("case", "contender", "ms a step", "images/s", "minigan is", "MiB", "of sgemm")]
    for r in results:
        share = f"{r['sgemm']:.0%}" if r["sgemm"] else ""
        rows.append((r["case"], r["contender"], r["ms"], round(r["images_per_s"]),
                     f"{r['ratio']:.2f}×", round(r["peak_mib"]), share))  # fmt: skip
    print_table(rows)
    report(args.json, results)


def starts(args: argparse.Namespace) -> None:
    """Print how long a new process takes to the end of its first step, all caches warm."""
    rows = [("case", "contender", "s to the end of step 1")]
    for name in args.cases or CASES:
        times: dict[str, list[float]] = {"minigan": [], "PyTorch": []}
        for _ in range(args.rounds + 1):  # the first warms the caches
            for contender, seconds in times.items():
                command = [sys.executable, __file__, name, "--start", "--worker", contender]
                seconds += timed(lambda command=command: subprocess.run(command, check=True), 1)
        rows += [(name, c, statistics.median(seconds[1:])) for c, seconds in times.items()]
    print_table(rows)
    report(args.json, [dict(zip(rows[0], row, strict=True)) for row in rows[1:]])


def scaling(args: argparse.Namespace) -> None:
    """Print what all threads gain over one, by the medians of the steps and by the best of them."""
    most = threads.count()
    rows = [("case", "contender", "ms, 1 thread", f"ms, {most} threads", "gain", "by the best")]
    contenders = ["minigan"]
    if importlib.util.find_spec("torch"):
        contenders += ["PyTorch", "PyTorch channels last"]
    for name in args.cases or CASES:
        pairs = [(c, cores) for c in contenders for cores in dict.fromkeys((1, most))]
        workers = {pair: Worker(__file__, [name, "--worker", pair[0]], pair[1]) for pair in pairs}
        slowest = 1e-9
        for pair, worker in list(workers.items()):
            try:
                worker.ask({"steps": 1})  # compiles, allocates
                slowest = max(slowest, *worker.ask({"steps": 3}))
            except Failed as reason:
                print(f"{name}: {pair[0]} does not work here: {reason}", file=sys.stderr)
                del workers[pair]
        number = max(1, round(args.seconds / slowest))
        times = take_turns(workers, {"steps": number}, args.rounds)
        for worker in workers.values():
            worker.end()
        for c in contenders:
            if not {(c, 1), (c, most)} <= times.keys():
                continue
            one, all_ = times[c, 1], times[c, most]
            gain, best = median_ms(one) / median_ms(all_), min(one) / min(all_)
            rows.append((name, c, median_ms(one), median_ms(all_), f"{gain:.2f}×", f"{best:.2f}×"))
    print_table(rows)
    report(args.json, [dict(zip(rows[0], row, strict=True)) for row in rows[1:]])


def measure(name: str, args: argparse.Namespace, rate: float) -> list[dict[str, Any]]:
    case = CASES[name]
    contenders = list(CONTENDERS) if importlib.util.find_spec("torch") else ["minigan"]
    if args.no_compile:
        contenders = [c for c in contenders if c != "PyTorch compiled"]
    workers = {c: Worker(__file__, [name, "--worker", c]) for c in contenders}
    steps = {}
    for c, worker in list(workers.items()):
        compiles = c == "PyTorch compiled"

        def tell(seconds: float, what: str = "torch.compile" if compiles else c) -> None:
            print(f"{name}: waiting for {what} since {seconds:.0f} s", file=sys.stderr)

        try:
            worker.ask({"steps": 1}, args.compile_limit if compiles else inf, tell)  # allocates
            steps[c] = max(1, round(args.seconds / max(1e-9, worker.ask({"steps": 1})[0])))
        except Failed as reason:
            print(f"{name}: {c} does not work here: {reason}", file=sys.stderr)
            del workers[c]
        except TimeoutError as reason:
            print(f"{name}: {c} is left out: {reason}; see --compile-limit", file=sys.stderr)
            del workers[c]
    number = min(200, max(1, min(steps.values(), default=1)))
    times = take_turns(workers, {"steps": number}, args.rounds)
    peaks = {c: worker.ask({}) for c, worker in workers.items()}
    for worker in workers.values():
        worker.end()
    if "minigan" not in times:
        return []
    flops = multiplications(case)
    ours = median_ms(times["minigan"])
    return [
        {
            "case": name,
            "contender": c,
            "ms": median_ms(seconds),
            "images_per_s": case.batch / median_ms(seconds) * 1e3,
            "ratio": median_ms(seconds) / ours,
            "peak_mib": peaks[c],
            "sgemm": flops / ours * 1e3 / rate if c == "minigan" else None,
            "steps": len(seconds),
        }
        for c, seconds in times.items()
    ]


if __name__ == "__main__":
    main()
