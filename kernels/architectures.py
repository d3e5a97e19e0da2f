"""What an NVIDIA architecture holds, and how many blocks of a kernel that lets reside on it.

Limits of a multiprocessor: CUDA C++ Programming Guide 12.9, section "Compute Capabilities", tables
of technical specifications and of arithmetic throughput, as in `arch_traits` of NVIDIA's CCCL.
Allocation units: NVIDIA Nsight Compute, "Occupancy Calculator". A card stands for each: its
multiprocessors, boost clock and memory bandwidth are those of NVIDIA's data sheet for it.
"""

from __future__ import annotations

from dataclasses import dataclass

REGISTERS = 65536  # of a multiprocessor, 32 bits each
REGISTER_UNIT = 256  # registers are given to a warp in such pieces
SHARED_UNIT = 128  # bytes, likewise to a block
SCHEDULERS = 4  # of a multiprocessor; each issues a warp's instruction a cycle
L2_BYTES = 64  # a cycle, that a multiprocessor gets from the L2 cache


@dataclass(frozen=True)
class Architecture:
    """warps, blocks: at most resident on a multiprocessor. shared: its shared memory, bytes;
    reserved: of that, taken by the system for each block. lanes: float32 FMAs a cycle; tensor:
    TF32 FMAs a cycle of its tensor cores, dense.

    card: the one that stands for it; multiprocessors, clock (GHz, boost), bandwidth (GB/s) are its.
    """

    warps: int
    blocks: int
    shared: int
    reserved: int
    lanes: int
    tensor: int
    card: str
    multiprocessors: int
    clock: float
    bandwidth: float

    @property
    def peak(self) -> float:
        """float32 operations a cycle of the whole card; an FMA is two."""
        return 2.0 * self.lanes * self.multiprocessors

    @property
    def bytes_per_cycle(self) -> float:
        """Of the card's memory."""
        return self.bandwidth / self.clock

    @property
    def ridge(self) -> float:
        """Operations a byte from which on the FMA units bound, and no more the memory."""
        return self.peak / self.bytes_per_cycle


ARCHITECTURES = {
    "sm_70": Architecture(64, 32, 96 << 10, 0, 64, 0, "V100 SXM2", 80, 1.53, 900),
    "sm_80": Architecture(64, 32, 164 << 10, 1024, 64, 512, "A100 SXM 40 GB", 108, 1.41, 1555),
    "sm_86": Architecture(48, 16, 100 << 10, 1024, 128, 128, "GeForce RTX 3090", 82, 1.695, 936),
    "sm_89": Architecture(48, 24, 100 << 10, 1024, 128, 128, "GeForce RTX 4090", 128, 2.52, 1008),
    "sm_90": Architecture(64, 32, 228 << 10, 1024, 128, 1024, "H100 SXM", 132, 1.98, 3350),
    "sm_100": Architecture(64, 32, 228 << 10, 1024, 128, 2048, "B200", 148, 1.98, 7700),
    "sm_120": Architecture(48, 24, 100 << 10, 1024, 128, 128, "GeForce RTX 5090", 170, 2.407, 1792),
}


def resident_blocks(arch: str, threads: int, registers: int, shared: int) -> int:
    """Blocks of a kernel that a multiprocessor holds at once.

    threads: of a block. registers: of a thread. shared: bytes of a block, static and dynamic.
    """
    a = ARCHITECTURES[arch]
    warps = -(-threads // 32)
    of_warp = max(1, -(-registers * 32 // REGISTER_UNIT)) * REGISTER_UNIT
    by_registers = REGISTERS // SCHEDULERS // of_warp * SCHEDULERS // warps
    of_block = -(-(shared + a.reserved) // SHARED_UNIT) * SHARED_UNIT
    by_shared = a.shared // of_block if of_block else a.blocks
    return min(a.warps // warps, a.blocks, by_registers, by_shared)


def occupancy(arch: str, threads: int, registers: int, shared: int) -> float:
    """Share of the warps that a multiprocessor could hold, 0 .. 1."""
    blocks = resident_blocks(arch, threads, registers, shared)
    return blocks * -(-threads // 32) / ARCHITECTURES[arch].warps
