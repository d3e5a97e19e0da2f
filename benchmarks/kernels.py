"""The convolutions of mnist-dcgan and of a 64×64 DCGAN, layer by layer at batch 64.

    python benchmarks/kernels.py           on a card: measured, beside cuDNN where PyTorch is there;
                                           without one: counted and predicted
    python benchmarks/kernels.py --counted --arch sm_90 --net dcgan-64

Counted: instructions and accesses by sim, multiply-adds in the compiler's PTX. Predicted: what
bounds a kernel, and the share of the float32 peak, by the model of minigan.kernels.report. Only
what stands under "measured" comes from a GPU.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from minigan.array import DeviceError, check_device, gpus, to_device
from minigan.kernels import cuda
from minigan.kernels.architectures import ARCHITECTURES
from minigan.kernels.case import BATCH, NETS, Case, Layer
from minigan.kernels.cases import convolution, rung
from minigan.kernels.catalogue import conv2d_by
from minigan.kernels.report import Report, report
from minigan.kernels.sim import nvrtc

OPS = ("conv2d", "conv2d_dgrad", "conv2d_wgrad")


# ---- Without a card -----------------------------------------------------------------------------

COLUMNS = (
    ("kernel", 14, "conv_naive is rung 1 of the ladder; the others are rung 5, the default"),
    ("tile", 8, "outputs of a block"),
    ("regs", 4, "registers of a thread; +n: bytes that it spills"),
    ("FMA", 4, "share of float32 FMAs in the hot loop, counted in PTX"),
    ("ex/use", 6, "multiply-adds executed over useful ones"),
    ("sect", 5, "sectors a request to global memory, counted"),
    ("bank", 4, "bank conflict of the worst line, counted; 1: none"),
    ("blocks", 9, "blocks / multiprocessors of the card"),
    ("bound", 7, "predicted"),
    ("peak", 5, "share of the float32 peak, predicted"),
    ("gain", 6, "predicted cycles of conv_naive over its own"),
)


def counted(arch: str, nets: list[str]) -> None:
    a = ARCHITECTURES[arch]
    print(f"{arch}: {a.card} stands for it; batch {BATCH}; counted and predicted, nothing measured")
    for net in nets:
        print(f"\n{net}\n" + " ".join(f"{name:>{width}}" for name, width, _ in COLUMNS))
        for layer in NETS[net]:
            print(layer.name + (", transposed" if layer.transposed else ""))
            naive = report(rung("conv_naive", layer), arch)
            for case in cases(layer):
                print(row(case, report(case, arch), naive), flush=True)
    print()
    for name, _, meaning in COLUMNS:
        print(f"  {name:7} {meaning}")


def cases(layer: Layer) -> Iterator[Case]:
    yield rung("conv_naive", layer)
    for op in OPS:
        yield convolution(op, layer)


def row(case: Case, r: Report, naive: Report) -> str:
    defines = dict(case.kernel.defines)
    cells = (
        r.kernel,
        f"{defines['BM']}×{defines['BN']}" if "BM" in defines else "1",
        f"{r.registers}" + (f"+{r.spilled}" if r.spilled else ""),
        "-" if r.ffma_share is None else f"{r.ffma_share:.0%}",
        f"{r.executed_over_useful:.2f}" if r.executed_over_useful else "-",
        f"{r.sectors_per_request:.1f}",
        f"{r.bank_conflict:.1f}",
        f"{r.blocks}/{r.multiprocessors}",
        r.bound,
        f"{r.peak_share:.0%}",
        f"{naive.cycles[naive.bound] / r.cycles[r.bound]:.1f}",
    )
    return " ".join(f"{c:>{width}}" for c, (_, width, _) in zip(cells, COLUMNS, strict=True))


# ---- On a card ----------------------------------------------------------------------------------


def measured(nets: list[str]) -> None:
    print(f"{gpus()[0]}; batch {BATCH}; measured: the median of 20 launches after 5, by events")
    torch = _torch()
    beside = f"PyTorch {torch.__version__}" if torch else "no PyTorch with CUDA here"
    print(f"cuDNN: {beside}; float32, TF32 off")
    for net in nets:
        heads = f"{'kernel':>14} {'ms':>8} {'TFLOP/s':>8} {'GB/s':>7} {'cuDNN ms':>9} {'of it':>6}"
        print(f"\n{net}\n{heads}")
        for layer in NETS[net]:
            print(layer.name + (", transposed" if layer.transposed else ""))
            for op, run, case in runs(layer):
                ms = milliseconds(run)
                theirs = milliseconds_torch(torch, op, layer) if torch and op in OPS else None
                rates = f"{case.flops / ms / 1e9:8.2f} {case.bytes / ms / 1e6:7.1f}"
                line = f"{case.name:>14} {ms:8.3f} {rates}"
                print(line + (f" {theirs:9.3f} {theirs / ms:6.0%}" if theirs else ""), flush=True)


def runs(layer: Layer) -> Iterator[tuple[str, Callable[[], Any], Case]]:
    """(conv_naive or one of OPS, a launch of it on the card, its case)"""
    z = layer.geometry
    rng = np.random.default_rng(0)

    def values(*shape: int) -> Any:
        return to_device(rng.standard_normal(shape).astype(np.float32), "cuda")

    x, w = values(BATCH, z.C, z.H, z.W), values(z.K, z.C, z.R, z.S)
    g = values(BATCH, z.K, z.P, z.Q)
    stride, pad, dilation = (z.SH, z.SW), ((z.TOP, z.TOP), (z.LEFT, z.LEFT)), (z.DH, z.DW)
    rest = (stride, pad, dilation)
    launches: dict[str, Callable[[], Any]] = {
        "conv_naive": lambda: conv2d_by("conv_naive", x, w, *rest),
        "conv2d": lambda: cuda.conv2d(x, w, *rest, 1),
        "conv2d_dgrad": lambda: cuda.conv2d_dgrad(g, w, (z.H, z.W), *rest, 1),
        "conv2d_wgrad": lambda: cuda.conv2d_wgrad(x, g, (z.R, z.S), *rest, 1),
    }
    for (op, run), case in zip(launches.items(), cases(layer), strict=True):
        yield op, run, case


def milliseconds(run: Callable[[], Any]) -> float:
    import cupy

    times = []
    for i in range(25):
        start, end = cupy.cuda.Event(), cupy.cuda.Event()
        start.record()
        run()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(cupy.cuda.get_elapsed_time(start, end))
    return statistics.median(times)


def _torch() -> Any:
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return torch


def milliseconds_torch(torch: Any, op: str, layer: Layer) -> float:
    """The same by cuDNN."""
    z = layer.geometry
    on = {"device": "cuda", "dtype": torch.float32}
    x, w = torch.randn(BATCH, z.C, z.H, z.W, **on), torch.randn(z.K, z.C, z.R, z.S, **on)
    g = torch.randn(BATCH, z.K, z.P, z.Q, **on)
    how = {"stride": (z.SH, z.SW), "padding": (z.TOP, z.LEFT), "dilation": (z.DH, z.DW)}
    functions = {
        "conv2d": lambda: torch.nn.functional.conv2d(x, w, **how),
        "conv2d_dgrad": lambda: torch.nn.grad.conv2d_input(x.shape, w, g, **how),
        "conv2d_wgrad": lambda: torch.nn.grad.conv2d_weight(x, w.shape, g, **how),
    }
    times = []
    for i in range(25):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        functions[op]()
        end.record()
        end.synchronize()
        if i >= 5:
            times.append(start.elapsed_time(end))
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--counted", action="store_true", help="the counted table, also on a card")
    parser.add_argument(
        "--arch", default="sm_80", choices=ARCHITECTURES, help="of the counted table"
    )
    parser.add_argument("--net", choices=NETS, help="default: both")
    options = parser.parse_args()
    nets = [options.net] if options.net else list(NETS)
    try:
        if options.counted:
            raise DeviceError
        check_device("cuda")
    except DeviceError:
        try:
            counted(options.arch, nets)
        except nvrtc.CompilerMissing as missing:
            raise SystemExit(f"{missing}") from None
    else:
        measured(nets)


if __name__ == "__main__":
    main()
