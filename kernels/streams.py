"""Cases of the kernels that memory bounds, which sim counts whole; see case.py."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from minigan.kernels import cuda
from minigan.kernels.case import BATCH, NETS, Case, Dims, Small, empty, label, nbytes, random
from minigan.kernels.launcher import Kernel


def _direct(
    kernel: Kernel,
    layer: str,
    grid: Dims,
    arguments: Mapping[str, Any],
    flops: float,
    extra: int = 0,
) -> Case:
    """A launch that sim counts whole. extra: bytes of arrays that are read and also written."""
    few = Small(kernel, grid, (256,), arguments)
    return Case(
        kernel.name, layer, kernel, grid, (256,), flops, float(nbytes(arguments) + extra),
        lambda: few,
    )  # fmt: skip


def channels(n: int, c: int, side: int) -> list[Case]:
    """bias_act and batch norm of x (n,c,side,side)."""
    inner = side * side
    m = n * c * inner
    of_channel = n * inner
    slices = math.ceil(of_channel / 4096)
    act = {
        "ACT(x)": "((x) > 0.0f ? (x) : (x) * 0.01f)",
        "ACT_GRAD(y)": "((y) > 0.0f ? 1.0f : 0.01f)",
    }
    defines = tuple(({"C": c, "INNER": inner} | act).items())
    x, channel, slice_ = random(n, c, inner), random(c), random(slices, c)
    layer, grid = f"({n},{c},{side},{side})", (slices, c)

    def case(name: str, flops: float, grid: Dims, **arguments: Any) -> Case:
        return _direct(Kernel(name, defines), layer, grid, arguments, flops * m)

    pair = {"weight": channel, "mean": channel, "rstd": channel}
    sums = {"gweight": channel, "gbias": channel}
    out = {"gg": empty(m), "gx": empty(m), "gw": empty(c)}
    parts = {"partial_gweight": slice_.copy(), "partial_gbias": slice_.copy()}
    return [
        case("bias_act", 2, (math.ceil(m / 256),), x=x, bias=channel, y=empty(m), n=m),
        case("bias_act_backward", 2, grid, g=x, y=x, gx=empty(m), partials=slice_, m=of_channel),
        case("batch_norm", 9, grid, x=x, weight=channel, bias=channel, y=empty(m), mean=empty(c),
             rstd=empty(c), m=of_channel, eps=1e-5),
        _direct(
            Kernel("batch_norm_averages", defines), f"{c} channels", (1,),
            {"mean": channel, "rstd": channel, "running_mean": empty(c), "running_var": empty(c),
             "batches": np.zeros(1, np.int64), "momentum": 0.1, "eps": 1e-5, "m": of_channel},
            9.0 * c, extra=2 * 4 * c,
        ),
        case("batch_norm_backward", 13, grid, g=x, x=x, y=x, **pair, gx=empty(m),
             gweight=empty(c), gbias=empty(c), m=of_channel),
        case("batch_norm_stats", 4, grid, x=x, partial_mean=slice_, partial_squares=slice_.copy(),
             m=of_channel),
        case("batch_norm_apply", 5, grid, x=x, weight=channel, bias=channel, partial_mean=slice_,
             partial_squares=slice_, y=empty(m), mean=empty(c), rstd=empty(c), m=of_channel,
             eps=1e-5),
        case("batch_norm_backward_sums", 6, grid, g=x, x=x, y=x, mean=channel, rstd=channel,
             **parts, m=of_channel),
        case("batch_norm_backward_apply", 7, grid, g=x, x=x, y=x, **pair, **parts, gx=empty(m),
             gweight=empty(c), gbias=empty(c), m=of_channel),
        case("batch_norm_double_backward", 26, grid, ggx=x, g=x, x=x, y=x, **pair, **sums, **out,
             m=of_channel),
        case("batch_norm_double_backward_sums", 9, grid, ggx=x, g=x, x=x, y=x, mean=channel,
             rstd=channel, partials=empty(3, slices, c), m=of_channel),
        case("batch_norm_double_backward_apply", 17, grid, ggx=x, g=x, x=x, y=x, **pair, **sums,
             partials=random(3, slices, c), **out, m=of_channel),
    ]  # fmt: skip


def others() -> list[Case]:
    z = NETS["mnist-dcgan"][0].geometry
    pixels, columns = z.C * z.H * z.W, (z.C * z.R * z.S, z.P, z.Q)
    n, parameters, numbers, splits, size = 8, 65536, 6400, 8, 32768
    key = {"key0": 1, "key1": 2, "step": 0, "first_block": 1}
    flat = {name: abs(random(parameters)) for name in ("p", "g", "m", "v")}
    hyper = cuda.adam_hyper(1e-3, 0.9, 0.999, 1e-8, 0.0, 1)
    blocks = math.ceil(numbers / 2048)
    packing = {name: ",".join(values) for name, values in (
        ("SIZES", ["4096"] * 8), ("STARTS", [str(4096 * i) for i in range(8)]), ("GAPS", "0" * 8),
        ("COUNTS", "2" * 8), ("LONG", "0" * 8),
        ("BATCHES", "0" * 32), ("INNERS", "0" * 32),
    )}  # fmt: skip
    return [
        _direct(
            Kernel("col2im", tuple(asdict(z).items())), label(NETS["mnist-dcgan"][0]),
            (math.ceil(n * pixels / 256),),
            {"cols": random(n, *columns), "bias": None, "gx": empty(n * pixels), "batch": n},
            float(n * math.prod(columns)),
        ),
        _direct(
            Kernel("reduce_slices", (("BIAS", 0), ("ACT(x)", "(x)"))), f"{splits} × {size}",
            (math.ceil(size / 256),),
            {"partials": random(splits, size), "bias": None, "out": empty(size),
             "slices": splits, "size": size, "n": size, "inner": 1},
            float(splits * size),
        ),
        _direct(
            Kernel("add"), f"{parameters} numbers", (parameters // 256,),
            {"a": flat["m"], "b": flat["p"], "y": empty(parameters), "n": parameters,
             "factor": 1.0},
            2.0 * parameters,
        ),
        _direct(
            Kernel("scale"), f"{parameters} numbers", (parameters // 256,),
            {"x": flat["m"], "s": random(1), "y": empty(parameters), "n": parameters},
            float(parameters),
        ),
        _direct(
            Kernel("adam"), f"{parameters} parameters", (parameters // 256,),
            {**flat, "hyper": hyper, "n": parameters}, 15.0 * parameters,
            extra=3 * 4 * parameters,  # p, m and v are read and written
        ),
        _direct(
            Kernel("average"), f"{parameters} parameters", (parameters // 256,),
            {"a": flat["m"], "p": flat["p"], "blend": random(1), "n": parameters},
            3.0 * parameters, extra=4 * parameters,  # a is read and written
        ),
        _direct(
            Kernel("pack", tuple(packing.items())), "8 × 2 × 4096 numbers", (16, 8),
            {**{f"{part}{i}": random(4096) if part < "c" else None for part in "abcd"
                for i in range(8)}, "flat": empty(8 * 4096)}, 8.0 * 4096,
        ),
        _direct(
            Kernel("bce_with_logits"), f"{BATCH} logits", (1,),
            {"x": random(BATCH), "loss": empty(1), "gx": empty(BATCH), "n": BATCH, "t": 1.0},
            12.0 * BATCH,
        ),
        _direct(
            Kernel("logistic_d"), f"2 × {BATCH} logits", (1,),
            {"real": random(BATCH), "fake": random(BATCH), "loss": empty(1),
             "gx": empty(2 * BATCH), "n_real": BATCH, "n_fake": BATCH, "t": 1.0},
            24.0 * BATCH,
        ),
        _direct(
            Kernel("logit_figures"), f"{BATCH} logits", (1,),
            {"real": random(BATCH), "fake": random(BATCH), "figures": empty(6),
             "n_real": BATCH, "n_fake": BATCH},
            10.0 * BATCH,
        ),
        _direct(
            Kernel("squares"), f"{parameters} numbers", (parameters // 4096,),
            {"x": flat["p"], "y": empty(parameters // 4096), "gx": empty(parameters),
             "n": parameters, "scale": 1.0},
            3.0 * parameters,
        ),
        _direct(
            Kernel("philox_uniform"), f"{numbers} numbers", (blocks,),
            {"out": empty(numbers), "n": numbers, **key, "low": 0.0, "width": 1.0, "below": 1.0},
            3.0 * numbers,
        ),
        _direct(
            Kernel("philox_normal"), f"{numbers} numbers", (blocks,),
            {"out": empty(numbers), "n": numbers, **key, "mean": 0.0, "std": 1.0}, 40.0 * numbers,
        ),
    ]  # fmt: skip
