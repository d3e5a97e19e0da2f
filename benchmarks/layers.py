"""Each convolution of the recipes, three passes each: minigan against PyTorch, GFLOP a second.

    python benchmarks/layers.py                  all layers
    python benchmarks/layers.py --json layers.json

forward: y = conv(x, w).   dgrad: the gradient by x, which is also the generator's own layer.
wgrad: the gradient by w.   PyTorch in the faster of its two layouts, through the functions that its
autograd calls. Both run in processes of their own, and take turns.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Callable
from typing import Any

import numpy as np
from common import (
    Worker,
    answer,
    at_least_one,
    median_ms,
    new_file,
    print_table,
    report,
    take_turns,
    timed,
)

# name: (N, C, H, K, taps, stride, pad) of the convolution that the layer is, or is the dgrad of
LAYERS = {
    "mnist-dcgan G 1": (64, 64, 7, 100, 7, 1, 0),
    "mnist-dcgan G 2, D 2": (64, 32, 14, 64, 4, 2, 1),
    "mnist-dcgan G 3, D 1": (64, 1, 28, 32, 4, 2, 1),
    "dcgan64 3→64": (64, 3, 64, 64, 4, 2, 1),
    "dcgan64 64→128": (64, 64, 32, 128, 4, 2, 1),
    "dcgan64 128→256": (64, 128, 16, 256, 4, 2, 1),
    "dcgan64 256→512": (64, 256, 8, 512, 4, 2, 1),
    "dcgan64 z": (64, 512, 4, 100, 4, 1, 0),
}
PASSES = ("forward", "dgrad", "wgrad")


def arrays(layer: str) -> tuple[Any, Any, Any, int]:
    """x, w, g, and the FLOPs of each pass."""
    n, c, h, k, taps, stride, pad = LAYERS[layer]
    p = (h + 2 * pad - taps) // stride + 1
    rng = np.random.default_rng(0)
    x, w, g = (
        rng.standard_normal(shape).astype(np.float32)
        for shape in ((n, c, h, h), (k, c, taps, taps), (n, k, p, p))
    )
    return x, w, g, 2 * g.size * c * taps * taps


def minigan_pass(layer: str, name: str) -> Callable[[], Any]:
    from minigan import kernels

    x, w, g, _ = arrays(layer)
    *_, taps, stride, pad = LAYERS[layer]
    last = lambda a: np.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)  # noqa: E731
    x, g = last(x), last(g)
    rest: Any = ((stride,) * 2, ((pad,) * 2,) * 2, (1, 1), 1)
    if name == "forward":
        return lambda: kernels.conv2d(x, w, *rest)
    if name == "dgrad":
        return lambda: kernels.conv2d_dgrad(g, w, x.shape[2:], *rest)
    return lambda: kernels.conv2d_wgrad(x, g, (taps, taps), *rest)


def torch_pass(layer: str, name: str, last: bool) -> Callable[[], Any]:
    import torch

    from minigan.kernels import threads

    torch.set_num_threads(threads.count())
    layout = torch.channels_last if last else torch.contiguous_format
    x, w, g = (torch.tensor(a).contiguous(memory_format=layout) for a in arrays(layer)[:3])
    *_, stride, pad = LAYERS[layer]
    if name == "forward":
        return lambda: torch.nn.functional.conv2d(x, w, None, stride, pad)
    wanted = [name == "dgrad", name == "wgrad", False]
    return lambda: torch.ops.aten.convolution_backward(
        g, x, w, None, [stride] * 2, [pad] * 2, [1, 1], False, [0, 0], 1, wanted
    )


CONTENDERS: dict[str, Callable[[str, str], Callable[[], Any]]] = {
    "minigan": minigan_pass,
    "PyTorch": lambda layer, name: torch_pass(layer, name, False),
    "channels last": lambda layer, name: torch_pass(layer, name, True),
}


def work(contender: str) -> None:
    """A worker: [layer, pass] -> times in seconds, for about 50 ms."""

    def reply(question: list[str]) -> list[float]:
        function = CONTENDERS[contender](*question)
        first = min(timed(function, 3))
        return timed(function, max(3, min(100, int(0.05 / first))))

    answer(lambda: reply)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument(
        "--rounds", type=at_least_one, default=5, help="turns that each contender has"
    )
    parser.add_argument("--json", type=new_file, help="file for the results")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker:
        return work(args.worker)
    names = list(CONTENDERS) if importlib.util.find_spec("torch") else ["minigan"]
    workers = {c: Worker(__file__, ["--worker", c]) for c in names}
    rows: list[tuple[Any, ...]] = [("layer", "pass", *(f"{c} GF/s" for c in names), "minigan is")]
    results = []
    for layer in LAYERS:
        flops = arrays(layer)[3]
        for name in PASSES:
            times = take_turns(workers, [layer, name], args.rounds)
            ms = {c: median_ms(seconds) for c, seconds in times.items()}
            best = min((v for c, v in ms.items() if c != "minigan"), default=ms["minigan"])
            rates = [round(flops / v / 1e6) for v in ms.values()]
            rows.append((layer, name, *rates, f"{best / ms['minigan']:.2f}×"))
            results.append({"layer": layer, "pass": name, "flops": flops, "ms": ms})
    for worker in workers.values():
        worker.end()
    print_table(rows)
    report(args.json, results)


if __name__ == "__main__":
    main()
