"""What the tools count kernels on: layers of networks as training launches them.

A case is a launch at the batch that a network trains with, `grid` and `kernel`, and a smaller
launch of the same tile and access pattern that sim can count in a second: `small`. Its counts are
scaled to the whole: those of the main loop by the steps of all blocks, the others by the blocks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from minigan.array import Array
from minigan.kernels import cuda, sim
from minigan.kernels.catalogue import RUNGS, rung_defines, rung_grid
from minigan.kernels.cuda import Kernel
from minigan.kernels.plan import Geometry, Plan, Tile, choose
from minigan.kernels.signatures import FOLDER, signatures
from minigan.kernels.sim.counters import Counters

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Case:
    """flops: useful ones of the whole launch. bytes: each of its arrays touched once.

    steps, blocks: of the whole launch over those of the small one.
    executed_over_useful: multiply-adds done over those needed; None where tiles do not matter.
    """

    name: str
    layer: str
    kernel: Kernel
    grid: Dims
    block: Dims
    flops: float
    bytes: float
    small: Callable[[], Small]
    steps: float = 1.0
    blocks: float = 1.0
    executed_over_useful: float | None = None

    def count(self) -> Counters:
        """Run the small launch on sim.   Raises: CompilerMissing, Fault."""
        s = self.small()
        signature = signatures()[s.kernel.name]
        if unknown := [p.name for p in signature.parameters if p.name not in s.arguments]:
            raise ValueError(f"cases.py: {s.kernel.name} now takes {', '.join(unknown)} too")
        args = [s.arguments[p.name] for p in signature.parameters]
        result = sim.run(
            FOLDER / signature.file,
            s.kernel.name,
            s.grid,
            s.block,
            *args,
            defines=dict(s.kernel.defines),
            checks=False,
            counters=True,
        )
        assert result.counters is not None
        return result.counters


class Small(NamedTuple):
    """arguments: by the names of the kernel's parameters."""

    kernel: Kernel
    grid: Dims
    block: Dims
    arguments: Mapping[str, Any]


def _random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def _empty(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def _nbytes(arguments: Mapping[str, Any]) -> int:
    return sum(a.nbytes for a in arguments.values() if isinstance(a, np.ndarray))


# ---- Layers -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layer:
    """A convolution x -> y, or the transposed one y -> x.   x (·,C,H,W), w (K,C,R,S), one group."""

    name: str
    geometry: Geometry
    transposed: bool = False

    def macs(self, batch: int) -> float:
        z = self.geometry
        return float(batch * z.K * z.P * z.Q * z.C * z.R * z.S)


def _layer(
    name: str, c: int, size: int, k: int, taps: int, stride: int, pad: int, transposed: bool = False
) -> Layer:
    pads = ((pad, pad), (pad, pad))
    shape_x, shape_w = (1, c, size, size), (k, c, taps, taps)
    z = Geometry.of(shape_x, shape_w, (stride, stride), pads, (1, 1), 1)
    return Layer(name, z, transposed)


NETS: dict[str, tuple[Layer, ...]] = {
    "mnist-dcgan": (
        _layer("G1, 100 -> 64", 64, 7, 100, 7, 1, 0, True),
        _layer("G2, 64 -> 32", 32, 14, 64, 4, 2, 1, True),
        _layer("G3, 32 -> 1", 1, 28, 32, 4, 2, 1, True),
        _layer("D1, 1 -> 32", 1, 28, 32, 4, 2, 1),
        _layer("D2, 32 -> 64", 32, 14, 64, 4, 2, 1),
        _layer("D3, 64 -> 1", 64, 7, 1, 7, 1, 0),
    ),
    "dcgan-64": (  # Radford et al. 2016, figure 1, with 512-256-128-64 channels
        _layer("G1, 100 -> 512", 512, 4, 100, 4, 1, 0, True),
        _layer("G2, 512 -> 256", 256, 8, 512, 4, 2, 1, True),
        _layer("G3, 256 -> 128", 128, 16, 256, 4, 2, 1, True),
        _layer("G4, 128 -> 64", 64, 32, 128, 4, 2, 1, True),
        _layer("G5, 64 -> 3", 3, 64, 64, 4, 2, 1, True),
        _layer("D1, 3 -> 64", 3, 64, 64, 4, 2, 1),
        _layer("D2, 64 -> 128", 64, 32, 128, 4, 2, 1),
        _layer("D3, 128 -> 256", 128, 16, 256, 4, 2, 1),
        _layer("D4, 256 -> 512", 256, 8, 512, 4, 2, 1),
        _layer("D5, 512 -> 1", 512, 4, 1, 4, 1, 0),
    ),
}
BATCH = 64


def label(layer: Layer) -> str:
    """mnist-dcgan D2, 32 -> 64"""
    net = next((net for net, layers in NETS.items() if layer in layers), "")
    return f"{net} {layer.name}".strip()


# ---- Products -----------------------------------------------------------------------------------


def _trim(value: int, most: int) -> int:
    """At most about `most`, and the same modulo 4, so that the same accesses are vectors."""
    return min(value, math.ceil(most / 4) * 4 + value % 4)


def _small_layer(z: Geometry, tile: Tile, op: str, batch: int) -> tuple[Geometry, int]:
    """Fewer channels and images: two tiles of rows and columns, and a few steps of depth."""
    deep = 6 * tile.bk
    pixels, unit, enough = z.P * z.Q, tile.bn, 2 * tile.bn  # of an image, and how many to have
    if op == "conv2d":
        c, k = _trim(z.C, math.ceil(deep / (z.R * z.S))), _trim(z.K, 2 * tile.bm)
    elif op == "conv2d_dgrad":
        taps = math.ceil(z.R / z.SH) * math.ceil(z.S / z.SW)
        c, k = _trim(z.C, 2 * tile.bm), _trim(z.K, math.ceil(deep / taps))
        pixels = math.ceil(z.H / z.SH) * math.ceil(z.W / z.SW)
    else:
        c, k = _trim(z.C, math.ceil(2 * tile.bn / (z.R * z.S))), _trim(z.K, 2 * tile.bm)
        unit, enough = tile.bk, deep
    return replace(z, C=c, K=k), _images(pixels, unit, enough, batch)


def _images(pixels: int, unit: int, enough: int, batch: int) -> int:
    """How many images to run: at least `enough` pixels, filling tiles of `unit` as well as the
    whole batch does."""

    def filled(n: int) -> float:
        return n * pixels / (math.ceil(n * pixels / unit) * unit)

    first = math.ceil(enough / pixels)
    few = [n for n in range(first, first + 8) if n < batch] or [batch]
    return min(few, key=lambda n: round(abs(filled(n) - filled(batch)), 2))


def _plan(z: Geometry, op: str, batch: int) -> Plan:
    plans = {
        "conv2d": z.plan_forward,
        "conv2d_dgrad": z.plan_dgrad,
        "conv2d_wgrad": z.plan_wgrad,
    }
    return plans[op](batch)


def _arrays(op: str, z: Geometry, n: int) -> dict[str, Array]:
    """The operands of a convolution and its result, by the names of the kernel's parameters."""
    x, w, y = (n, z.C, z.H, z.W), (z.K, z.C, z.R, z.S), (n, z.K, z.P, z.Q)
    if op == "conv2d":
        return {"x": _random(*x), "w": _random(*w), "y": _empty(*y)}
    if op == "conv2d_dgrad":
        return {"g": _random(*y), "w": _random(*w), "gx": _empty(*x)}
    return {"x": _random(*x), "g": _random(*y), "gw": _empty(*w)}


def convolution(op: str, layer: Layer, batch: int = BATCH, tf32: bool = False) -> Case:
    """conv2d, conv2d_dgrad or conv2d_wgrad (op) by gemm.cu, cut as plan.py cuts it.

    Where plan.py prefers GEMM + col2im for a dgrad, it is that GEMM, named `dgrad + col2im`.
    """
    z, name = layer.geometry, op + (" TF32" if tf32 else "")
    if op == "conv2d_dgrad" and z.prefers_col2im(batch):
        z, name = z.one_tap, "dgrad + col2im"
    plan = _plan(z, op, batch)
    defines = {op.upper(): 1, **plan.tile.defines, **({"TF32": 1} if tf32 else {})}
    kernel = Kernel(op, tuple((defines | asdict(z)).items()))
    little, n = _small_layer(z, plan.tile, op, batch)
    its = replace(_plan(little, op, n), tile=plan.tile)  # its rows, columns and depth
    its = replace(its, split_steps=min(plan.split_steps, its.steps))

    def small() -> Small:
        arrays = _arrays(op, little, n)
        out = list(arrays)[-1]
        if its.splits > 1:
            arrays[out] = _empty(its.splits, *arrays[out].shape)
        scalars = {"bias": None, "batch": n}
        scalars |= {"splits": its.splits, "split_steps": its.split_steps}
        kernel = Kernel(op, tuple((defines | asdict(little)).items()))
        return Small(kernel, its.grid, its.block, arrays | scalars)

    x, w, y = batch * z.C * z.H * z.W, z.K * z.C * z.R * z.S, batch * z.K * z.P * z.Q
    executed = _steps(plan) * plan.tile.bm * plan.tile.bn * plan.tile.bk
    return Case(
        name=name,
        layer=label(layer),
        kernel=kernel,
        grid=plan.grid,
        block=plan.block,
        flops=2 * layer.macs(batch),
        bytes=4.0 * (x + w + y),
        small=small,
        steps=_steps(plan) / _steps(its),
        blocks=math.prod(plan.grid) / math.prod(its.grid),
        executed_over_useful=executed / layer.macs(batch),
    )


def _steps(plan: Plan) -> int:
    """Steps of the main loop in all blocks."""
    x, y, _ = plan.grid
    return x * y * plan.batch * plan.steps


def _small_rung(z: Geometry) -> Geometry:
    return replace(z, C=min(z.C, 16), K=_trim(z.K, 64))


def rung(name: str, layer: Layer, batch: int = BATCH) -> Case:
    """conv2d by a kernel of ladder.cu."""
    z = layer.geometry
    little = _small_rung(z)
    columns = RUNGS[name][0]
    n = _images(z.P * z.Q, columns, max(256, columns), batch)
    defines = {"batch": n}

    def small() -> Small:
        kernel = Kernel(name, rung_defines(little))
        return Small(
            kernel, rung_grid(name, little, n), (256,), _arrays("conv2d", little, n) | defines
        )

    x, w, y = batch * z.C * z.H * z.W, z.K * z.C * z.R * z.S, batch * z.K * z.P * z.Q
    grid = rung_grid(name, z, batch)
    blocks = math.prod(grid) / math.prod(rung_grid(name, little, n))
    return Case(
        name, label(layer), Kernel(name, rung_defines(z)), grid, (256,), 2 * layer.macs(batch),
        4.0 * (x + w + y), small, blocks * z.C / little.C, blocks,
    )  # fmt: skip


def product(m: int, n: int, k: int) -> Case:
    """A linear layer: (m,k) · (n,k)ᵀ + bias."""
    plan = choose(m, n, k)
    defines: dict[str, Any] = {
        "MATMUL": 1,
        **plan.tile.defines,
        "TRANS_A": 0,
        "TRANS_B": 1,
        "BIAS": 0,
    }
    defines |= {"ALIGNED": int(n % 4 == 0), "ACT(x)": "(x)"}
    kernel = Kernel("matmul", tuple(defines.items()))
    a, b = _trim(m, 2 * plan.tile.bm), _trim(n, 2 * plan.tile.bn)
    depth = _trim(k, 6 * plan.tile.bk)
    its = replace(plan, rows=a, columns=b, depth=depth)
    its = replace(its, split_steps=min(plan.split_steps, its.steps))

    def small() -> Small:
        out = _empty(its.splits, a, b)
        arrays = {"a": _random(a, depth), "b": _random(b, depth), "bias": None, "out": out}
        scalars = {
            "m": a,
            "n": b,
            "k": depth,
            "a_step": 0,
            "b_step": 0,
            "splits": its.splits,
            "split_steps": its.split_steps,
        }
        return Small(kernel, its.grid, its.block, arrays | scalars)

    return Case(
        "matmul", f"{m} × {k} · {k} × {n}", kernel, plan.grid, plan.block, 2.0 * m * n * k,
        4.0 * (m * k + k * n + m * n), small, _steps(plan) / _steps(its),
        math.prod(plan.grid) / math.prod(its.grid), plan.executed_over_useful,
    )  # fmt: skip


# ---- Kernels that memory bounds -----------------------------------------------------------------


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
        kernel.name, layer, kernel, grid, (256,), flops, float(_nbytes(arguments) + extra),
        lambda: few,
    )  # fmt: skip


def _channels(n: int, c: int, side: int) -> list[Case]:
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
    x, channel, slice_ = _random(n, c, inner), _random(c), _random(slices, c)
    layer, grid = f"({n},{c},{side},{side})", (slices, c)

    def case(name: str, flops: float, grid: Dims, **arguments: Any) -> Case:
        return _direct(Kernel(name, defines), layer, grid, arguments, flops * m)

    pair = {"weight": channel, "mean": channel, "rstd": channel}
    sums = {"gweight": channel, "gbias": channel}
    out = {"gg": _empty(m), "gx": _empty(m), "gw": _empty(c)}
    parts = {"partial_gweight": slice_.copy(), "partial_gbias": slice_.copy()}
    return [
        case("bias_act", 2, (math.ceil(m / 256),), x=x, bias=channel, y=_empty(m), n=m),
        case("bias_act_backward", 2, grid, g=x, y=x, gx=_empty(m), partials=slice_, m=of_channel),
        case("batch_norm", 9, grid, x=x, weight=channel, bias=channel, y=_empty(m), mean=_empty(c),
             rstd=_empty(c), m=of_channel, eps=1e-5),
        _direct(
            Kernel("batch_norm_averages", defines), f"{c} channels", (1,),
            {"mean": channel, "rstd": channel, "running_mean": _empty(c), "running_var": _empty(c),
             "batches": np.zeros(1, np.int64), "momentum": 0.1, "eps": 1e-5, "m": of_channel},
            9.0 * c, extra=2 * 4 * c,
        ),
        case("batch_norm_backward", 13, grid, g=x, x=x, y=x, **pair, gx=_empty(m),
             gweight=_empty(c), gbias=_empty(c), m=of_channel),
        case("batch_norm_stats", 4, grid, x=x, partial_mean=slice_, partial_squares=slice_.copy(),
             m=of_channel),
        case("batch_norm_apply", 5, grid, x=x, weight=channel, bias=channel, partial_mean=slice_,
             partial_squares=slice_, y=_empty(m), mean=_empty(c), rstd=_empty(c), m=of_channel,
             eps=1e-5),
        case("batch_norm_backward_sums", 6, grid, g=x, x=x, y=x, mean=channel, rstd=channel,
             **parts, m=of_channel),
        case("batch_norm_backward_apply", 7, grid, g=x, x=x, y=x, **pair, **parts, gx=_empty(m),
             gweight=_empty(c), gbias=_empty(c), m=of_channel),
        case("batch_norm_double_backward", 26, grid, ggx=x, g=x, x=x, y=x, **pair, **sums, **out,
             m=of_channel),
        case("batch_norm_double_backward_sums", 9, grid, ggx=x, g=x, x=x, y=x, mean=channel,
             rstd=channel, partials=_empty(3, slices, c), m=of_channel),
        case("batch_norm_double_backward_apply", 17, grid, ggx=x, g=x, x=x, y=x, **pair, **sums,
             partials=_random(3, slices, c), **out, m=of_channel),
    ]  # fmt: skip


def _others() -> list[Case]:
    z = NETS["mnist-dcgan"][0].geometry
    pixels, columns = z.C * z.H * z.W, (z.C * z.R * z.S, z.P, z.Q)
    n, parameters, numbers, splits, size = 8, 65536, 6400, 8, 32768
    key = {"key0": 1, "key1": 2, "step": 0, "first_block": 1}
    flat = {name: abs(_random(parameters)) for name in ("p", "g", "m", "v")}
    hyper = cuda.adam_hyper(1e-3, 0.9, 0.999, 1e-8, 0.0, 1)
    blocks = math.ceil(numbers / 2048)
    packing = {name: ",".join(values) for name, values in (
        ("SIZES", ["4096"] * 8), ("STARTS", [str(4096 * i) for i in range(8)]), ("GAPS", "0" * 8),
        ("COUNTS", "2" * 8), ("BATCHES", "0" * 32), ("INNERS", "0" * 32),
    )}  # fmt: skip
    return [
        _direct(
            Kernel("col2im", tuple(asdict(z).items())), label(NETS["mnist-dcgan"][0]),
            (math.ceil(n * pixels / 256),),
            {"cols": _random(n, *columns), "bias": None, "gx": _empty(n * pixels), "batch": n},
            float(n * math.prod(columns)),
        ),
        _direct(
            Kernel("reduce_slices", (("BIAS", 0), ("ACT(x)", "(x)"))), f"{splits} × {size}",
            (math.ceil(size / 256),),
            {"partials": _random(splits, size), "bias": None, "out": _empty(size),
             "slices": splits, "size": size, "n": size, "inner": 1},
            float(splits * size),
        ),
        _direct(
            Kernel("add"), f"{parameters} numbers", (parameters // 256,),
            {"a": flat["m"], "b": flat["p"], "y": _empty(parameters), "n": parameters,
             "factor": 1.0},
            2.0 * parameters,
        ),
        _direct(
            Kernel("scale"), f"{parameters} numbers", (parameters // 256,),
            {"x": flat["m"], "s": _random(1), "y": _empty(parameters), "n": parameters},
            float(parameters),
        ),
        _direct(
            Kernel("adam"), f"{parameters} parameters", (parameters // 256,),
            {**flat, "hyper": hyper, "n": parameters}, 15.0 * parameters,
            extra=3 * 4 * parameters,  # p, m and v are read and written
        ),
        _direct(
            Kernel("average"), f"{parameters} parameters", (parameters // 256,),
            {"a": flat["m"], "p": flat["p"], "blend": _random(1), "n": parameters},
            3.0 * parameters, extra=4 * parameters,  # a is read and written
        ),
        _direct(
            Kernel("pack", tuple(packing.items())), "8 × 2 × 4096 numbers", (16, 8),
            {**{f"{part}{i}": _random(4096) if part < "c" else None for part in "abcd"
                for i in range(8)}, "flat": _empty(8 * 4096)}, 8.0 * 4096,
        ),
        _direct(
            Kernel("bce_with_logits"), f"{BATCH} logits", (1,),
            {"x": _random(BATCH), "loss": _empty(1), "gx": _empty(BATCH), "n": BATCH, "t": 1.0},
            12.0 * BATCH,
        ),
        _direct(
            Kernel("logistic_d"), f"2 × {BATCH} logits", (1,),
            {"real": _random(BATCH), "fake": _random(BATCH), "loss": _empty(1),
             "gx": _empty(2 * BATCH), "n_real": BATCH, "n_fake": BATCH, "t": 1.0},
            24.0 * BATCH,
        ),
        _direct(
            Kernel("logit_figures"), f"{BATCH} logits", (1,),
            {"real": _random(BATCH), "fake": _random(BATCH), "figures": _empty(6),
             "n_real": BATCH, "n_fake": BATCH},
            10.0 * BATCH,
        ),
        _direct(
            Kernel("squares"), f"{parameters} numbers", (parameters // 4096,),
            {"x": flat["p"], "y": _empty(parameters // 4096), "gx": _empty(parameters),
             "n": parameters, "scale": 1.0},
            3.0 * parameters,
        ),
        _direct(
            Kernel("philox_uniform"), f"{numbers} numbers", (blocks,),
            {"out": _empty(numbers), "n": numbers, **key, "low": 0.0, "width": 1.0, "below": 1.0},
            3.0 * numbers,
        ),
        _direct(
            Kernel("philox_normal"), f"{numbers} numbers", (blocks,),
            {"out": _empty(numbers), "n": numbers, **key, "mean": 0.0, "std": 1.0}, 40.0 * numbers,
        ),
    ]  # fmt: skip


@lru_cache(maxsize=1)
def cases() -> tuple[Case, ...]:
    """At least one for each kernel: the products at a small layer of mnist-dcgan, and the
    convolutions and channels at a wide one of the 64×64 DCGAN too."""
    d2, wide = NETS["mnist-dcgan"][4], NETS["dcgan-64"][7]
    ops = ("conv2d", "conv2d_dgrad", "conv2d_wgrad")
    rungs = ("conv_naive", "conv_tiled", "conv_register", "conv_vectorised")
    return (
        *(rung(name, d2) for name in rungs),
        *(convolution(op, layer) for layer in (d2, wide) for op in ops),
        convolution("conv2d", wide, tf32=True),
        product(BATCH, 784, 128),
        *_channels(BATCH, 64, 7),
        *_channels(16, 256, 8),
        *_others(),
    )
