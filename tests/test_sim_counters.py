"""The counters of sim against counts that can be made by hand."""

import numpy as np
import pytest

from minigan.kernels import sim

try:
    sim.load('extern "C" __global__ void probe() {}')
except sim.CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)


def count(parameters, body, *args, grid=1, block=64, checks=False):
    """The counters of a kernel whose body starts in line 2."""
    source = f'extern "C" __global__ void k({parameters}) {{\n{body}\n}}\n'
    return sim.run(source, "k", grid, block, *args, checks=checks, counters=True).counters


def floats(n):
    return np.zeros(n, np.float32)


@pytest.mark.parametrize(
    ("index", "sectors"),
    [("t", 4), ("2 * t", 8), ("8 * t", 32), ("100 * t", 32), ("0", 1), ("t + 1", 5), ("t ^ 1", 4),
     ("t / 8", 1), ("63 - t", 4), ("64 * b + t", 4), ("blockDim.x * b", 1)],
)  # fmt: skip
def test_sectors_a_request(index, sectors):
    body = f"int t = threadIdx.x, b = blockIdx.x;\nfloat v = x[{index}];\ny[b * 64 + t] = v;"
    counters = count("const float* x, float* y", body, floats(6400), floats(192), grid=3)
    read, write = counters.line(3), counters.line(4)
    assert read.global_requests == write.global_requests == 2 * 3
    assert read.sectors_per_request == sectors
    assert read.global_bytes == 4 * 64 * 3
    assert write.sectors_per_request == 4
    assert counters.total.global_sectors == 6 * (sectors + 4)


def test_sectors_of_vectors_and_of_part_of_a_warp():
    body = """int t = threadIdx.x;
        float4 v = x[t];
        y[t] = v.x + v.y + v.z + v.w;
        if (t < 9) y[t] = x[t].x;"""
    counters = count("const float4* x, float* y", body, floats(256), floats(64))
    assert counters.line(3).sectors_per_request == 16
    assert counters.line(5).global_requests == 2  # a load and a store
    assert counters.line(5).global_sectors == 5 + 2  # 9 × 16 bytes apart, 36 bytes
    assert counters.line(5).global_bytes == 36 + 36


@pytest.mark.parametrize(
    ("kind", "index", "ways"),
    [("float", "t", 1), ("float", "2 * t", 2), ("float", "32 * t", 32), ("float", "33 * t", 1),
     ("float", "0", 1), ("float", "t / 2", 1), ("float", "17 * (t / 2) + 8 * (t % 2)", 2),
     ("float4", "t", 1), ("float4", "2 * t", 2), ("float2", "t", 1), ("float2", "16 * t", 16),
     ("float", "32 * (t % 4)", 4)],
)  # fmt: skip
def test_bank_conflicts(kind, index, ways):
    body = f"""
    extern __shared__ float tile[];
    int t = threadIdx.x;
    asm volatile("" : "+r"(t) :: "memory");  // keeps the compiler from seeing through
    {kind} v = (({kind}*)tile)[{index}];
    *({kind}*)(y + 4 * t) = v;
"""
    source = f'extern "C" __global__ void k(float* y) {{\n{body}\n}}\n'
    result = sim.run(
        source, "k", 2, 32, floats(128), shared=32 * 33 * 4, checks=False, counters=True
    )
    line = result.counters.line(6) + result.counters.line(7)  # a struct may be loaded at its use
    assert line.shared_requests == 2
    assert line.bank_conflict == ways
    assert line.shared_bytes == 2 * 32 * (4 * int(kind[5:] or 1))


def test_flops_barriers_and_lanes():
    body = """
    int t = threadIdx.x;
    float v = x[t];
    for (int i = 0; i < 10; ++i)
        v = v * v + x[i];
    __syncthreads();
    y[t] = v;
"""
    counters = count("const float* x, float* y", body, floats(64), floats(64))
    assert counters.line(6).ffma == 640
    assert counters.line(6).flops == 1280
    assert counters.total.flops == 1280
    assert counters.total.barriers == 2
    assert counters.total.lanes_active == 1


def test_a_branch_that_splits_a_warp_is_divergent():
    body = """
    int t = threadIdx.x;
    if (t % 2) atomicAdd(y, 1.f);
    if (t < 32) atomicAdd(y, 2.f);
"""
    counters = count("float* y", body, floats(1), grid=3)
    split, whole = counters.line(4), counters.line(5)
    assert (split.branches, split.divergent) == (6, 6)
    assert (whole.branches, whole.divergent) == (6, 0)
    assert split.atomics == 6 and whole.atomics == 3


def test_counts_do_not_depend_on_how_lanes_are_held():
    """The same accesses whether all blocks agree or not, with checks or without."""
    body = """
    __shared__ float tile[64];
    int t = threadIdx.x, u = t + z * blockIdx.x;
    tile[u] = x[u];
    __syncthreads();
    y[blockIdx.x * 64 + t] = tile[2 * u % 64];
"""
    totals = []
    for z in (0, 0, 64):  # 64: the indices differ between blocks by a whole turn
        text = body.replace("z * blockIdx.x", "(z * blockIdx.x) % 64" if z else "0")
        counters = count(
            "const float* x, float* y, unsigned z", text, floats(64), floats(256), z, grid=4
        )
        total = counters.total
        totals.append((total.global_sectors, total.shared_wavefronts, total.shared_least))
    assert totals[0] == totals[1] == totals[2]
