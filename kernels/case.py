"""What the tools count kernels on: a launch as training makes it, and layers of networks.

A case is a launch at the batch that a network trains with, `grid` and `kernel`, and a smaller
launch of the same tile and access pattern that sim can count in a second: `small`. Its counts are
scaled to the whole: those of the main loop by the steps of all blocks, the others by the blocks.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from minigan.kernels import sim
from minigan.kernels.launcher import Kernel
from minigan.kernels.plan import Geometry
from minigan.kernels.signatures import FOLDER, signatures, source_of
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

    @property
    def needs_tensor_cores(self) -> bool:
        return ("TF32", 1) in self.kernel.defines

    def count(self) -> Counters:
        """Run the small launch on sim.   Raises: CompilerMissing, Fault."""
        s = self.small()
        signature = signatures()[s.kernel.name]
        if unknown := [p.name for p in signature.parameters if p.name not in s.arguments]:
            raise ValueError(
                f"{s.kernel.name} takes {', '.join(unknown)}, which its case does not give"
            )
        args = [s.arguments[p.name] for p in signature.parameters]
        name, defines = str(FOLDER / signature.file), dict(s.kernel.defines)
        module = sim.load(source_of(signature.file), defines=defines, name=name)
        result = module.launch(s.kernel.name, s.grid, s.block, *args, checks=False, counters=True)
        assert result.counters is not None
        return result.counters


class Small(NamedTuple):
    """arguments: by the names of the kernel's parameters."""

    kernel: Kernel
    grid: Dims
    block: Dims
    arguments: Mapping[str, Any]


def random(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def empty(*shape: int) -> np.ndarray:
    return np.zeros(shape, np.float32)


def nbytes(arguments: Mapping[str, Any]) -> int:
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
