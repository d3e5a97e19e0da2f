"""Cases of the products, and the list of all cases; see case.py, and streams.py for the others."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from functools import lru_cache
from typing import Any

from minigan.array import Array
from minigan.kernels.case import BATCH, NETS, Case, Layer, Small, empty, label, random
from minigan.kernels.catalogue import RUNGS, rung_defines, rung_grid
from minigan.kernels.launcher import Kernel
from minigan.kernels.plan import Geometry, Plan, Tile, choose, thin
from minigan.kernels.signatures import signatures
from minigan.kernels.streams import channels, others


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
        return {"x": random(*x), "w": random(*w), "y": empty(*y)}
    if op == "conv2d_dgrad":
        return {"g": random(*y), "w": random(*w), "gx": empty(*x)}
    return {"x": random(*x), "g": random(*y), "gw": empty(*w)}


def convolution(op: str, layer: Layer, batch: int = BATCH, tf32: bool = False) -> Case:
    """conv2d, conv2d_dgrad or conv2d_wgrad (op) by conv.cu, cut as plan.py cuts it.

    Where plan.py prefers GEMM + col2im for a dgrad, it is that GEMM, named `dgrad + col2im`. Where
    each output sees the whole image, it is the product that cuda.py makes of it.
    """
    z, name = layer.geometry, op + (" TF32" if tf32 else "")
    if z.is_dense:
        return replace(product(*_dense(op, z, batch)), layer=f"{label(layer)}: {op}")
    if op == "conv2d_dgrad" and z.prefers_col2im(batch):
        z, name = z.one_tap, "dgrad + col2im"
    plan = _plan(z, op, batch)
    defines = {op.upper(): 1, **plan.tile.defines, "ALIGNED": 1, **({"TF32": 1} if tf32 else {})}
    kernel = Kernel(op, tuple((defines | asdict(z)).items()))
    little, n = _small_layer(z, plan.tile, op, batch)
    its = replace(_plan(little, op, n), tile=plan.tile)  # its rows, columns and depth
    its = replace(its, split_steps=min(plan.split_steps, its.steps))

    def small() -> Small:
        arrays = _arrays(op, little, n)
        out = list(arrays)[-1]
        if its.splits > 1:
            arrays[out] = empty(its.splits, *arrays[out].shape)
        scalars = {"bias": None, "batch": n}
        scalars |= {"splits": its.splits, "split_steps": its.split_steps}
        kernel = Kernel(op, tuple((defines | asdict(little)).items()))
        return Small(kernel, its.grid, its.block, arrays | scalars)

    x, w, y = batch * z.C * z.H * z.W, z.K * z.C * z.R * z.S, batch * z.K * z.P * z.Q
    executed = plan.all_steps * plan.tile.bm * plan.tile.bn * plan.tile.bk
    return Case(
        name=name,
        layer=label(layer),
        kernel=kernel,
        grid=plan.grid,
        block=plan.block,
        flops=2 * layer.macs(batch),
        bytes=4.0 * (x + w + y),
        small=small,
        steps=plan.all_steps / its.all_steps,
        blocks=math.prod(plan.grid) / math.prod(its.grid),
        executed_over_useful=executed / layer.macs(batch),
    )


def _dense(op: str, z: Geometry, batch: int) -> tuple[int, int, int, int, int]:
    """The arguments of `product` for a convolution that sees the whole image."""
    inputs, outputs = z.C * z.H * z.W, z.K
    if op == "conv2d":
        return batch, outputs, inputs, 0, 1
    if op == "conv2d_dgrad":
        return batch, inputs, outputs, 0, 0
    return outputs, inputs, batch, 1, 0


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


def product(m: int, n: int, k: int, a_transposed: int = 0, b_transposed: int = 1) -> Case:
    """(m,k) · (k,n), by the kernel and the cut that cuda.py chooses. A linear layer has its weights
    transposed."""
    useful, moved = 2.0 * m * n * k, 4.0 * (m * k + k * n + m * n)
    cut = thin(m, n, k, bool(a_transposed), bool(b_transposed))
    if cut is not None:
        sizes = (signatures()[cut.kernel].parameters)[4:]
        scalars = dict(zip((p.name for p in sizes), (*cut.sizes, 1), strict=True))
        pair = [random(m * k), random(k * n)][:: -1 if cut.swapped else 1]
        arrays = {"a": pair[0], "b": pair[1], "bias": None, "out": empty(m * n)}
        whole = Small(Kernel(cut.kernel), cut.grid, cut.block, arrays | scalars)
        return Case(
            cut.kernel, f"{m} × {k} · {k} × {n}", whole.kernel, cut.grid, cut.block, useful, moved,
            lambda: whole, executed_over_useful=cut.executed_over_useful,
        )  # fmt: skip
    plan = choose(m, n, k)
    transposed = {"TRANS_A": a_transposed, "TRANS_B": b_transposed, "INNER": 1}
    widths = {"A_WIDTH": 4 if k % 4 == 0 else 1, "B_WIDTH": 4 if n % 4 == 0 else 1}
    defines: dict[str, Any] = {"MATMUL": 1, **plan.tile.defines, "ALIGNED": 1}
    defines |= transposed | widths | {"BIAS": 0, "ACT(x)": "(x)"}
    kernel = Kernel("matmul", tuple(defines.items()))
    a, b = _trim(m, 2 * plan.tile.bm), _trim(n, 2 * plan.tile.bn)
    depth = _trim(k, 6 * plan.tile.bk)
    its = replace(plan, rows=a, columns=b, depth=depth)
    its = replace(its, split_steps=min(plan.split_steps, its.steps))

    def small() -> Small:
        out = empty(its.splits, a, b)
        arrays = {"a": random(a, depth), "b": random(b, depth), "bias": None, "out": out}
        sizes = {"m": a, "n": b, "k": depth, "a_step": 0, "b_step": 0}
        splits = {"splits": its.splits, "split_steps": its.split_steps}
        return Small(kernel, its.grid, its.block, arrays | sizes | splits)

    return Case(
        "matmul", f"{m} × {k} · {k} × {n}", kernel, plan.grid, plan.block, useful, moved,
        small, plan.all_steps / its.all_steps,
        math.prod(plan.grid) / math.prod(its.grid), plan.executed_over_useful,
    )  # fmt: skip


@lru_cache(maxsize=1)
def cases() -> tuple[Case, ...]:
    """At least one for each kernel: the products at a small layer of mnist-dcgan, and the
    convolutions and channels at a wide one of the 64×64 DCGAN too."""
    d2, head, wide = *NETS["mnist-dcgan"][4:], NETS["dcgan-64"][7]
    ops = ("conv2d", "conv2d_dgrad", "conv2d_wgrad")
    rungs = ("conv_naive", "conv_tiled", "conv_register", "conv_vectorised")
    return (
        *(rung(name, d2) for name in rungs),
        *(convolution(op, layer) for layer in (d2, wide) for op in ops),
        convolution("conv2d", wide, tf32=True),
        product(BATCH, 784, 128),
        *(convolution(op, head) for op in ops[:2]),
        *channels(BATCH, 64, 7),
        *channels(16, 256, 8),
        *others(),
    )
