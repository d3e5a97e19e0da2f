"""How a product is cut into blocks: the tile, the splits of the depth, the path of a dgrad.

Small GAN layers make fewer blocks than a GPU has multiprocessors, and few channels leave a large
tile mostly empty. `choose` weighs that by a model of the time, in clock cycles. It is a prediction
from counted instructions, no measurement, and always that of one card (MULTIPROCESSORS), so that
every device adds in the same order and gives the same result.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from minigan.kernels.reference import Pads, Pair, conv_out_size

Dims = tuple[int, ...]


@dataclass(frozen=True)
class Tile:
    """BM × BN outputs a block, TM × TN a thread, BK deep; see gemm.cu.

    share: of float32 multiply-adds among the instructions of the main loop, counted in conv2d's PTX
    (4×4 taps, stride 2).
    """

    bm: int
    bn: int
    tm: int
    tn: int
    share: float
    bk: int = 16

    @property
    def threads(self) -> int:
        return (self.bm // self.tm) * (self.bn // self.tn)

    @property
    def defines(self) -> dict[str, int]:
        return {"BM": self.bm, "BN": self.bn, "BK": self.bk, "TM": self.tm, "TN": self.tn}


TILES = (
    Tile(128, 128, 8, 8, share=0.79),
    Tile(64, 128, 4, 8, share=0.68),
    Tile(64, 64, 4, 4, share=0.67),
    Tile(32, 128, 4, 8, share=0.66),
    Tile(32, 64, 4, 4, share=0.53),
    Tile(16, 64, 4, 4, share=0.52),
    Tile(4, 32, 1, 4, share=0.20),
)

MULTIPROCESSORS = 108  # of an A100
SCHEDULERS = 4  # of a multiprocessor: a warp instruction a cycle each
STEP_CYCLES = 400  # the least time of a step: a load from memory and a barrier
LAUNCH_CYCLES = 4000  # a kernel more: about 3 µs
BYTES_PER_CYCLE = 1100  # of global memory, the whole card
MAX_SPLITS = 64


@dataclass(frozen=True)
class Plan:
    """A cut of out (rows, columns) = Σ over depth, `batch` times (groups, phases)."""

    tile: Tile
    rows: int
    columns: int
    depth: int
    batch: int
    split_steps: int

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.depth / self.tile.bk))

    @property
    def splits(self) -> int:
        return math.ceil(self.steps / self.split_steps)

    @property
    def grid(self) -> tuple[int, int, int]:
        return (
            math.ceil(self.columns / self.tile.bn),
            math.ceil(self.rows / self.tile.bm),
            self.batch * self.splits,
        )

    @property
    def block(self) -> tuple[int, int, int]:
        return (self.tile.threads, 1, 1)

    @property
    def executed_over_useful(self) -> float:
        """Multiply-adds that the blocks do, over those that the product needs."""
        x, y, _ = self.grid
        executed = x * self.tile.bn * y * self.tile.bm * self.steps * self.tile.bk
        return executed / max(1, self.rows * self.columns * self.depth)

    @property
    def cycles(self) -> float:
        """Predicted."""
        warp_instructions = self.tile.bk * self.tile.tm * self.tile.tn / self.tile.share
        warps = self.tile.threads / 32
        rounds = math.ceil(math.prod(self.grid) / MULTIPROCESSORS)
        step = warp_instructions * max(1.0, rounds * warps / SCHEDULERS)
        cycles = self.split_steps * max(step, STEP_CYCLES)
        if self.splits > 1:
            partials = 4 * self.splits * self.batch * self.rows * self.columns
            cycles += LAUNCH_CYCLES + 2 * partials / BYTES_PER_CYCLE
        return cycles


@lru_cache(maxsize=4096)
def choose(rows: int, columns: int, depth: int, batch: int = 1) -> Plan:
    """The plan with the fewest predicted cycles."""
    plans = []
    for tile in TILES:
        steps = max(1, math.ceil(depth / tile.bk))
        split = 1
        while split <= min(steps, MAX_SPLITS):
            plan = Plan(tile, rows, columns, depth, batch, math.ceil(steps / split))
            if plan.grid[1] < 65536 and plan.grid[2] < 65536:
                plans.append(plan)
            split *= 2
    if not plans:
        raise ValueError(
            f"a product of {rows} × {columns} × {depth}, {batch} times, needs more blocks "
            "than a grid has"
        )
    return min(plans, key=lambda plan: plan.cycles)


@dataclass(frozen=True)
class Geometry:
    """A convolution, as the definitions of gemm.cu and col2im.cu name it, batch apart.

    x (·,C,H,W), w (K,C/GROUPS,R,S), y (·,K,P,Q); stride SH SW, first pads TOP LEFT, dilation DH DW.
    """

    C: int
    H: int
    W: int
    K: int
    R: int
    S: int
    P: int
    Q: int
    SH: int
    SW: int
    TOP: int
    LEFT: int
    DH: int
    DW: int
    GROUPS: int

    @classmethod
    def of(cls, x: Dims, w: Dims, stride: Pair, pad: Pads, dilation: Pair, groups: int) -> Geometry:
        """From the shapes of x and w.   Raises: ValueError if the taps do not fit."""
        _, c, h, wd = x
        k, _, r, s = w
        p, q = conv_out_size((h, wd), (r, s), stride, pad, dilation)
        if min(p, q) < 1:
            raise ValueError(
                f"convolution: {r}×{s} taps, dilation {dilation}, do not fit into {h}×{wd} pixels "
                f"with pad {pad}"
            )
        (sh, sw), (dh, dw) = stride, dilation
        return cls(c, h, wd, k, r, s, p, q, sh, sw, pad[0][0], pad[1][0], dh, dw, groups)

    @property
    def one_tap(self) -> Geometry:
        """The 1×1 convolution whose dgrad is the columns (·, C·R·S, P, Q) that col2im gathers."""
        c = self.C * self.R * self.S
        return Geometry(
            c, self.P, self.Q, self.K, 1, 1, self.P, self.Q, 1, 1, 0, 0, 1, 1, self.GROUPS
        )

    def plan_forward(self, batch: int) -> Plan:
        depth = self.C // self.GROUPS * self.R * self.S
        return choose(self.K // self.GROUPS, batch * self.P * self.Q, depth, self.GROUPS)

    def plan_wgrad(self, batch: int) -> Plan:
        columns = self.C // self.GROUPS * self.R * self.S
        return choose(self.K // self.GROUPS, columns, batch * self.P * self.Q, self.GROUPS)

    def plan_dgrad(self, batch: int) -> Plan:
        """By phases: the pixels (h mod SH, w mod SW) apart, each with the taps that meet it."""
        pixels = batch * math.ceil(self.H / self.SH) * math.ceil(self.W / self.SW)
        taps_down = math.ceil(self.R * math.gcd(self.SH, self.DH) / self.SH)
        taps_across = math.ceil(self.S * math.gcd(self.SW, self.DW) / self.SW)
        depth = self.K // self.GROUPS * taps_down * taps_across
        return choose(self.C // self.GROUPS, pixels, depth, self.SH * self.SW * self.GROUPS)

    def prefers_col2im(self, batch: int) -> bool:
        """Whether GEMM + col2im is predicted to beat the phases."""
        elements = batch * self.C * self.R * self.S * self.P * self.Q
        pixels = batch * self.C * self.H * self.W
        gather = LAUNCH_CYCLES + 4 * (2 * elements + pixels) / BYTES_PER_CYCLE
        columns = self.one_tap.plan_dgrad(batch)
        return columns.cycles + gather < self.plan_dgrad(batch).cycles
