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
    def warps(self) -> int:
        return (self.bm // self.tm) * (self.bn // self.tn) // 32

    @property
    def fits_tensor_cores(self) -> bool:
        """Whether a warp's 32/LANES × LANES threads make whole mma tiles of 16 × 8."""
        return self.tm >= 4 and self.bn // self.tn >= 8

    @property
    def defines(self) -> dict[str, int]:
        return {"BM": self.bm, "BN": self.bn, "BK": self.bk, "TM": self.tm, "TN": self.tn}

    def step_cycles(self, blocks: int) -> float:
        """Predicted, of a step of so many blocks that share a multiprocessor: what bounds it of
        issuing instructions, reading shared memory and waiting for the copies."""
        issue = self.bk * self.tm * self.tn / self.share  # of a warp, an instruction a cycle
        shared = self.bk * (self.tm + self.tn)  # of a warp, that reads a float4 in four cycles
        warps = blocks * self.warps
        return max(issue * max(1.0, warps / SCHEDULERS), shared * warps, STEP_CYCLES)


TILES = (
    Tile(64, 128, 8, 8, share=0.86),
    Tile(64, 64, 8, 8, share=0.85),
    Tile(64, 64, 4, 4, share=0.75),
    Tile(64, 32, 4, 4, share=0.74),
    Tile(32, 64, 4, 8, share=0.78),
    Tile(32, 64, 4, 4, share=0.72),
    Tile(16, 64, 4, 8, share=0.73),
    Tile(32, 16, 4, 4, share=0.70),
    Tile(4, 32, 1, 4, share=0.37),
)

MULTIPROCESSORS = 108  # of an A100
SCHEDULERS = 4  # of a multiprocessor: a warp instruction a cycle each
STEP_CYCLES = 400  # the least time of a step: a load from memory and a barrier
LAUNCH_CYCLES = 4000  # a kernel more: about 3 µs
BYTES_PER_CYCLE = 1100  # of global memory, the whole card
MAX_SPLITS = 64
MAX_WASTE = 1.3  # a tile may execute so many times the multiply-adds of the fullest one


@dataclass(frozen=True)
class Plan:
    """A cut of out (rows, columns) = Σ over depth, `batch` times (groups, phases).

    bands: products of the batch that a block computes side by side, if its tile can.
    """

    tile: Tile
    rows: int
    columns: int
    depth: int
    batch: int
    split_steps: int
    bands: int = 1

    @property
    def steps(self) -> int:
        return max(1, math.ceil(self.depth / self.tile.bk))

    @property
    def splits(self) -> int:
        return math.ceil(self.steps / self.split_steps)

    @property
    def grid(self) -> tuple[int, int, int]:
        bands = self.bands if self.tile.tn == 8 else 1
        return (
            math.ceil(bands * self.columns / self.tile.bn),
            math.ceil(self.rows / self.tile.bm),
            self.batch // bands * self.splits,
        )

    @property
    def block(self) -> tuple[int, int, int]:
        return (32 * self.tile.warps, 1, 1)

    @property
    def all_steps(self) -> int:
        """Of the main loop, in all blocks."""
        x, y, z = self.grid
        return x * y * z // self.splits * self.steps

    @property
    def executed_over_useful(self) -> float:
        """Multiply-adds that the blocks do, over those that the product needs."""
        executed = self.all_steps * self.tile.bm * self.tile.bn * self.tile.bk
        return executed / max(1, self.batch * self.rows * self.columns * self.depth)

    @property
    def cycles(self) -> float:
        """Predicted."""
        blocks = math.ceil(math.prod(self.grid) / MULTIPROCESSORS)
        cycles = self.split_steps * self.tile.step_cycles(blocks)
        if self.splits > 1:
            partials = 4 * self.splits * self.batch * self.rows * self.columns
            cycles += LAUNCH_CYCLES + 2 * partials / BYTES_PER_CYCLE
        return cycles


@lru_cache(maxsize=4096)
def choose(rows: int, columns: int, depth: int, batch: int = 1, bands: int = 1) -> Plan:
    """The plan with the fewest predicted cycles."""
    plans = []
    for tile in TILES:
        steps = max(1, math.ceil(depth / tile.bk))
        for split_steps in {math.ceil(steps / splits) for splits in range(1, MAX_SPLITS + 1)}:
            plan = Plan(tile, rows, columns, depth, batch, split_steps, bands)
            if plan.grid[1] < 65536 and plan.grid[2] < 65536:
                plans.append(plan)
    if not plans:
        raise ValueError(
            f"a product of {rows} × {columns} × {depth}, {batch} times, needs more blocks "
            "than a grid has"
        )
    fullest = min(plan.executed_over_useful for plan in plans)
    full = [plan for plan in plans if plan.executed_over_useful <= MAX_WASTE * fullest]
    return min(full, key=lambda plan: (plan.cycles, plan.splits))


@dataclass(frozen=True)
class Thin:
    """A product with a side of length 1, as thin.cu computes it.

    swapped: as outᵀ = bᵀ · aᵀ. sizes: the kernel's scalars, all but the last.
    """

    kernel: str
    swapped: bool
    sizes: Dims
    grid: Dims
    block: Dims
    executed_over_useful: float


def thin(m: int, n: int, k: int, a_transposed: bool, b_transposed: bool) -> Thin | None:
    """How thin.cu computes (m,k) · (k,n), each maybe stored transposed; None: gemm.cu does."""
    if min(m, n, k) > 1 or m * n * k == 0:
        return None
    a_i, a_d = (1, m) if a_transposed else (k, 1)
    b_d, b_j = (1, k) if b_transposed else (n, 1)
    if k > 1 and a_d == b_d == 1:
        executed = math.ceil(k / 128) * 128 / k
        return Thin("matmul_dot", False, (n, k, a_i, b_j), (m * n,), (128,), executed)
    swapped = n == 1 and a_i == 1  # aᵀ is what neighbouring threads read
    if swapped:
        m, n, a_i, a_d, b_d, b_j = 1, m, 0, b_d, a_d, 1
    if b_j > 1 or k > m * n:
        return None
    blocks = math.ceil(m * n / 256)
    sizes, executed = (m, n, k, a_i, a_d, b_d), 256 * blocks / (m * n)
    return Thin("matmul_thread", swapped, sizes, (blocks,), (256,), executed)


@dataclass(frozen=True)
class Geometry:
    """A convolution, as the definitions of conv.cu and col2im.cu name it, batch apart.

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
    def is_dense(self) -> bool:
        """Whether each output sees the whole image: a linear layer of (C·H·W) -> (K)."""
        whole = (self.R, self.S, self.TOP, self.LEFT) == (self.H, self.W, 0, 0)
        return whole and self.P == self.Q == self.GROUPS == 1

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
        phases, bands = self.SH * self.SW, 2 if self.SW == 2 and self.DW == 1 else 1
        return choose(self.C // self.GROUPS, pixels, depth, phases * self.GROUPS, bands)

    def prefers_col2im(self, batch: int) -> bool:
        """Whether GEMM + col2im is predicted to beat the phases."""
        elements = batch * self.C * self.R * self.S * self.P * self.Q
        pixels = batch * self.C * self.H * self.W
        gather = LAUNCH_CYCLES + 4 * (2 * elements + pixels) / BYTES_PER_CYCLE
        columns = self.one_tap.plan_dgrad(batch)
        return columns.cycles + gather < self.plan_dgrad(batch).cycles
