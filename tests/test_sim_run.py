"""sim runs whole kernels: control flow, memories, warps, atomics, tensor cores, arguments."""

import struct
import subprocess
import sys
import textwrap

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minigan.kernels import sim
from minigan.kernels.sim import nvrtc

try:
    sim.load('extern "C" __global__ void probe() {}')
except sim.CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)


def run(parameters, body, *args, grid=1, block=64, before="", **options):
    source = f'{before}\nextern "C" __global__ void k({parameters}) {{{body}\n}}\n'
    return sim.run(source, "k", grid, block, *args, **options)


def floats(*shape):
    return np.zeros(shape, np.float32)


def ints(*shape):
    return np.zeros(shape, np.int32)


T = np.arange(64, dtype=np.int32)
both = pytest.mark.parametrize("checks", [True, False])

# --- control flow --------------------------------------------------------------------------------


@both
def test_divergent_loops_and_branches(checks):
    body = """
    int t = blockIdx.x * blockDim.x + threadIdx.x, steps = 0;
    unsigned n = t + 1;
    while (n != 1) {                       // Collatz
        if (n % 2) n = 3 * n + 1; else n /= 2;
        if (++steps == 30) break;
        if (steps > 20 && t % 3 == 0) continue;
        n += t % 2 ? 0 : 0;
    }
    if (t == 77) return;
    y[t] = steps;
"""
    y = ints(128)
    run("int* y", body, y, grid=2, checks=checks)

    def steps(t):
        n, count = t + 1, 0
        while n != 1 and count < 30:
            n, count = (3 * n + 1 if n % 2 else n // 2), count + 1
        return 0 if t == 77 else count

    np.testing.assert_array_equal(y, [steps(t) for t in range(128)])


@pytest.mark.parametrize("arch", ["sm_70", "sm_80", "sm_90", "sm_100", "sm_120"])
def test_code_for_every_architecture_runs(arch):
    source = 'extern "C" __global__ void k(const float* x, float* y) { y[threadIdx.x] = 2 * x[0]; }'
    y = np.zeros(4, np.float32)
    sim.run(source, "k", 1, 4, np.full(1, 3, np.float32), y, arch=arch)
    np.testing.assert_array_equal(y, 6)


def test_switch():
    cases = "".join(f"case {i}: y[t] = {i * i * 7 % 31}; break;\n" for i in range(40))
    y = ints(64)
    run("const int* x, int* y", f"int t = threadIdx.x; switch (x[t]) {{{cases}}}", T, y)
    np.testing.assert_array_equal(y, np.where(T < 40, T * T * 7 % 31, 0))


def test_indexed_branch():
    body = """
    int t = threadIdx.x; int r;
    asm volatile("{ .reg .u32 i; and.b32 i, %1, 3;\\n"
        "table: .branchtargets A, B, C, D;\\n brx.idx i, table;\\n"
        "A: mov.u32 %0, 5; bra.uni END;\\n B: mov.u32 %0, 6; bra.uni END;\\n"
        "C: mov.u32 %0, 7; bra.uni END;\\n D: mov.u32 %0, 8;\\n END:\\n }" : "=r"(r) : "r"(t));
    y[t] = r;
"""
    y = ints(64)
    run("int* y", body, y)
    np.testing.assert_array_equal(y, 5 + T % 4)


def test_labels_of_inline_code_that_is_unrolled():
    body = """
    int t = threadIdx.x; int r = t;
    #pragma unroll
    for (int i = 1; i < 5; ++i)
        asm volatile("{ .reg .pred p; setp.lt.s32 p, %0, 20; @p bra SKIP; sub.s32 %0, %0, %1;"
            " SKIP: add.s32 %0, %0, 1; }" : "+r"(r) : "r"(i * 3));
    y[t] = r;
"""
    y = ints(64)
    run("int* y", body, y)
    expected = T.copy()
    for i in range(1, 5):
        expected = np.where(expected < 20, expected, expected - 3 * i) + 1
    np.testing.assert_array_equal(y, expected)


@both
def test_a_value_that_leaves_a_loop_early_survives_the_others_iterations(checks):
    body = """
    int t = threadIdx.x; float seen = -1;
    for (int i = 0; i < 64; ++i) {
        float v = x[i] * 2;
        if (i == t) { seen = v; break; }
    }
    y[t] = seen;
"""
    x, y = np.random.default_rng(0).standard_normal(64).astype("f4"), floats(64)
    run("const float* x, float* y", body, x, y, checks=checks)
    np.testing.assert_array_equal(y, 2 * x)


@both
def test_device_functions_are_inlined(checks):
    before = """
struct Pair { float a; int b; };
__device__ __noinline__ float inner(float x, int n) {
    float a[6];
    for (int i = 0; i < 6; ++i) a[i] = x * i;
    if (n < 0) return -1;
    return a[n];
}
__device__ __noinline__ Pair outer(float x, int n) {
    Pair p; p.a = inner(x, n) + inner(x, 5 - n); p.b = n; return p;
}
"""
    body = """
    int t = threadIdx.x;
    Pair p = outer(x[t], t % 6), q = outer(x[t], t % 3);
    y[t] = p.a + p.b + 100 * q.a + inner(2, t % 2 ? -1 : 3);
"""
    x, y = T.astype(np.float32), floats(64)
    run("const float* x, float* y", body, x, y, before=before, checks=checks)
    expected = 5 * x + T % 6 + 500 * x + np.where(T % 2, -1, 6)
    np.testing.assert_array_equal(y, expected)


def test_a_guarded_call():
    before = 'extern "C" __device__ __noinline__ float twice(float x) { return 2 * x; }'
    body = """
    int t = threadIdx.x; float v;
    asm volatile("{ .reg .pred p; .param .b32 a; .param .b32 r; setp.gt.f32 p, %1, 0f41200000;"
        " st.param.f32 [a], %1; st.param.f32 [r], 0fBF800000; @p call.uni (r), twice, (a);"
        " ld.param.f32 %0, [r]; }" : "=f"(v) : "f"(x[t]));
    y[t] = v + twice(x[0]);
"""
    x, y = T.astype(np.float32), floats(64)
    run("const float* x, float* y", body, x, y, before=before)
    np.testing.assert_array_equal(y, np.where(T > 10, 2 * T, -1))


def test_recursion_and_printf_are_refused_by_name():
    recursive = "__device__ __noinline__ int f(int n) { return n < 2 ? n : f(n - 1) + f(n - 2); }"
    with pytest.raises(sim.ParseError, match="calls itself"):
        run("int* y", "y[0] = f(y[1]);", ints(2), before=recursive)
    with pytest.raises(sim.ParseError, match=r"line 2: .*printf is not simulated"):
        run("int* y", 'printf("%d", y[0]);', ints(2))


def test_three_dimensional_grid_and_block():
    body = """
    int b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    y[b * 24 + t] = blockIdx.x + 10 * blockIdx.y + 100 * blockIdx.z
        + 1000 * (threadIdx.x + 10 * threadIdx.y + 100 * threadIdx.z);
"""
    y = ints(5, 3, 2, 4, 3, 2)
    run("int* y", body, y, grid=(2, 3, 5), block=(2, 3, 4))
    bz, by, bx, tz, ty, tx = np.indices(y.shape)
    np.testing.assert_array_equal(y, bx + 10 * by + 100 * bz + 1000 * (tx + 10 * ty + 100 * tz))


def test_special_registers_of_a_warp():
    def special(name):
        return f'asm volatile("mov.u32 %0, %%{name};" : "=r"(y[threadIdx.x]));'

    lane = T % 32
    for name, expected in [
        ("laneid", lane),
        ("warpid", T // 32),
        ("lanemask_lt", (1 << lane.astype(np.int64)) - 1),
        ("lanemask_ge", 2**32 - (1 << lane.astype(np.int64))),
    ]:
        y = np.zeros(64, np.uint32)
        run("unsigned* y", special(name), y)
        np.testing.assert_array_equal(y, expected, err_msg=name)


# --- memories ------------------------------------------------------------------------------------


@both
@pytest.mark.parametrize(
    ("kind", "dtype"),
    [("signed char", "i1"), ("unsigned char", "u1"), ("short", "i2"), ("unsigned short", "u2"),
     ("int", "i4"), ("long long", "i8"), ("double", "f8"), ("float", "f4")],
)  # fmt: skip
def test_every_width_through_global_shared_and_local_memory(kind, dtype, checks):
    body = f"""
    __shared__ {kind} tile[64];
    {kind} mine[5];
    int t = threadIdx.x;
    for (int i = 0; i < 5; ++i) mine[i] = x[(t + i) % 64];
    tile[t] = mine[x[t] & 3];
    __syncthreads();
    y[blockIdx.x * 64 + t] = tile[63 - t] + mine[4];
""".replace("x[t] & 3", "(int)x[t] & 3")
    x = np.random.default_rng(1).integers(0, 100, 64).astype(dtype)
    y = np.zeros(192, dtype)
    run(f"const {kind}* x, {kind}* y", body, x, y, grid=3, checks=checks)
    mine = np.stack([np.roll(x, -i) for i in range(5)], 1)
    tile = mine[T, x.astype(int) & 3]
    expected = np.tile((tile[::-1].astype("f8") + mine[:, 4]).astype("i8").astype(dtype), 3)
    np.testing.assert_array_equal(y, expected)


@both
def test_vectors_and_dynamic_shared_memory(checks):
    body = """
    extern __shared__ float4 tile[];
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    float4 v = tile[63 - t];
    y[t] = make_float2(v.x + v.y, v.z - v.w);
"""
    x, y = np.random.default_rng(2).standard_normal((64, 4)).astype("f4"), floats(64, 2)
    run("const float4* x, float2* y", body, x, y, shared=1024, checks=checks)
    v = x[::-1]
    np.testing.assert_array_equal(y, np.stack([v[:, 0] + v[:, 1], v[:, 2] - v[:, 3]], 1))
    with pytest.raises(sim.Fault, match="out of bounds"):
        run("const float4* x, float2* y", body, x, y, shared=1008, checks=checks)


@both
def test_constant_and_global_variables_and_generic_pointers(checks):
    before = "__constant__ float table[3] = {1.5f, 2.5f, -3.f}; __device__ int count = 40;"
    body = """
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = table[t % 3];
    float own = 7;
    const float* p = t % 2 ? tile + t : tile;
    const float* q = x[0] > 0 ? x : &own;         // generic: global or local
    __syncthreads();
    y[t] = *p + count + *(volatile const float*)q;
"""
    x, y = np.float32([2]), floats(64)
    run("const float* x, float* y", body, x, y, before=before, checks=checks)
    table = np.float32([1.5, 2.5, -3])
    np.testing.assert_array_equal(y, table[np.where(T % 2, T % 3, 0)] + 42)


def test_one_instruction_into_two_spaces_is_refused():
    body = """
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = 0;
    y[t] = *(t % 2 ? tile + t : y + t);
"""
    with pytest.raises(sim.Fault, match=r"reaches into two memory spaces"):
        run("float* y", body, floats(64))


def test_a_stray_is_caught_without_checks_too():
    with pytest.raises(sim.Fault, match="out of bounds: kernel k, line 2") as caught:
        run("float* y", "y[threadIdx.x * 1000000000ll] = 1;", floats(4), checks=False)
    assert caught.value.thread == (1, 0, 0)


# --- warps ---------------------------------------------------------------------------------------

LANE = np.arange(64) % 32
BASE = np.arange(64) - LANE


@both
@pytest.mark.parametrize(
    ("call", "source"),
    [
        ("__shfl_sync(~0u, v, 5)", BASE + 5),
        ("__shfl_sync(~0u, v, t + 3)", BASE + (LANE + 3) % 32),
        ("__shfl_sync(~0u, v, 2, 8)", BASE + LANE // 8 * 8 + 2),
        ("__shfl_up_sync(~0u, v, 3)", BASE + np.where(LANE < 3, LANE, LANE - 3)),
        ("__shfl_up_sync(~0u, v, 1, 4)", BASE + np.where(LANE % 4 < 1, LANE, LANE - 1)),
        ("__shfl_down_sync(~0u, v, 7)", BASE + np.where(LANE > 24, LANE, LANE + 7)),
        ("__shfl_down_sync(~0u, v, 2, 16)", BASE + np.where(LANE % 16 > 13, LANE, LANE + 2)),
        ("__shfl_xor_sync(~0u, v, 9)", BASE + (LANE ^ 9)),
        ("__shfl_sync(~0u, v, b + t)", None),
    ],
)
def test_shuffles(call, source, checks):
    body = f"int t = threadIdx.x, b = blockIdx.x; float v = x[b * 64 + t]; y[b * 64 + t] = {call};"
    x, y = np.random.default_rng(3).standard_normal(192).astype("f4"), floats(192)
    run("const float* x, float* y", body, x, y, grid=3, checks=checks)
    for b in range(3):
        lanes = BASE + (LANE + b) % 32 if source is None else source
        np.testing.assert_array_equal(y.reshape(3, 64)[b], x.reshape(3, 64)[b][lanes])


@both
@pytest.mark.parametrize("block", [64, 40])
def test_votes_matches_and_reductions(block, checks):
    body = """
    int t = threadIdx.x, i = blockIdx.x * blockDim.x + t, v = x[i];
    unsigned all = __activemask();
    y[8 * i] = __ballot_sync(all, v > 4);
    y[8 * i + 1] = __any_sync(all, v == 9) + 2 * __all_sync(all, v < 9);
    y[8 * i + 2] = __match_any_sync(all, v);
    int same; y[8 * i + 3] = __match_all_sync(all, v / 20, &same) + same;
    y[8 * i + 4] = __reduce_add_sync(all, v);
    y[8 * i + 5] = __reduce_max_sync(all, v);
    y[8 * i + 6] = __reduce_min_sync(all, v - 5);
    y[8 * i + 7] = __syncthreads_count(v == 3) + 1000 * __syncthreads_or(v == 9);
"""
    rng = np.random.default_rng(4)
    x, y = rng.integers(0, 10, 2 * block).astype("i4"), np.zeros((2 * block, 8), "u4")
    run("const int* x, unsigned* y", body, x, y, grid=2, block=block, checks=checks)
    for b in range(2):
        whole = x[b * block : (b + 1) * block]
        for start in range(0, block, 32):
            v = whole[start : start + 32]
            bits = 1 << np.arange(len(v), dtype=np.int64)
            for lane, value in enumerate(v):
                ballot = bits[v > 4].sum()
                got = y[b * block + start + lane]
                expected = [
                    ballot,
                    (v == 9).any() + 2 * (v < 9).all(),
                    bits[v == value].sum(),
                    (bits.sum() + 1) % 2**32,
                    v.sum(),
                    v.max(),
                    int(v.min() - 5) % 2**32,
                    (whole == 3).sum() + 1000 * (whole == 9).any(),
                ]
                np.testing.assert_array_equal(got, np.array(expected).astype("u4"))


def test_a_shuffle_waits_for_the_lanes_of_its_mask():
    body = """
    int t = threadIdx.x; int v = t;
    if (t % 4 == 0) for (int i = 0; i < t; ++i) v += i;   // these come late
    if (t % 2 == 0) v = __shfl_xor_sync(0x55555555, v, 2); else v = -v;
    y[t] = v;
"""
    y = ints(64)
    run("int* y", body, y)
    v = np.where(T % 4 == 0, T + T * (T - 1) // 2, T)
    np.testing.assert_array_equal(y, np.where(T % 2 == 0, v[T ^ 2], -T))


def test_a_spin_lock_is_not_a_dead_lock():
    body = """
    int* lock = y; volatile int* sum = y + 1;
    while (atomicCAS(lock, 0, 1)) { }
    *sum += threadIdx.x;
    __threadfence();
    atomicExch(lock, 0);
"""
    y = ints(2)
    run("int* y", body, y, grid=2, block=4)
    assert y[1] == 2 * (0 + 1 + 2 + 3)


# --- atomics -------------------------------------------------------------------------------------


@both
def test_atomics(checks):
    body = """
    int i = blockIdx.x * 64 + threadIdx.x, v = x[i];
    atomicAdd(&y[0], v); atomicMin(&y[1], v); atomicMax(&y[2], v); atomicOr(&y[3], 1 << v % 32);
    atomicAnd(&y[4], ~(1 << v % 32)); atomicXor(&y[5], v); atomicSub(&y[6], v);
    atomicInc((unsigned*)&y[7], 100); atomicDec((unsigned*)&y[8], 1000);
    ticket[i] = atomicAdd(&y[9], 1);
    for (int old = y[10], seen; ; old = seen) {
        seen = atomicCAS(&y[10], old, old + 2);
        if (seen == old) break;
    }
    atomicAdd(f, v * 0.5f); atomicAdd(d, v * 0.25); atomicAdd(l, 1ull << 40);
""".replace("old = y[10]", "old = *(volatile int*)&y[10]")
    x = np.random.default_rng(5).integers(0, 1000, 128).astype("i4")
    y, ticket = ints(11), ints(128)
    y[1], y[4], y[8] = 9999, -1, 500
    f, d, long = floats(1), np.zeros(1), np.zeros(1, np.uint64)
    parameters = "const int* x, int* y, int* ticket, float* f, double* d, unsigned long long* l"
    run(parameters, body, x, y, ticket, f, d, long, grid=2, checks=checks)
    bits = np.bitwise_or.reduce(1 << (x % 32).astype("i8")).astype("u4").view("i4")
    np.testing.assert_array_equal(
        y,
        [x.sum(), x.min(), x.max(), bits, ~bits, np.bitwise_xor.reduce(x), -x.sum(), 128 % 101,
         500 - 128, 128, 256],
    )  # fmt: skip
    np.testing.assert_array_equal(np.sort(ticket), np.arange(128))
    assert f[0] == x.sum() / 2 and d[0] == x.sum() / 4 and long[0] == 128 << 40


@both
def test_atomics_in_shared_memory(checks):
    body = """
    __shared__ int bins[8];
    __shared__ unsigned long long wide[2];
    int t = threadIdx.x, v = x[blockIdx.x * 64 + t];
    if (t < 8) bins[t] = 0;
    if (t < 2) wide[t] = t;
    __syncthreads();
    int before = atomicAdd(&bins[v & 7], 1);
    atomicAdd(&wide[t & 1], 1ull << 33);
    __syncthreads();
    y[blockIdx.x * 64 + t] = 1000 * bins[v & 7] + before;
    if (t < 2) z[blockIdx.x * 2 + t] = wide[t];
"""
    x, y = np.random.default_rng(6).integers(0, 99, 192).astype("i4"), ints(192)
    z = np.zeros(6, "u8")
    parameters = "const int* x, int* y, unsigned long long* z"
    run(parameters, body, x, y, z, grid=3, checks=checks)
    for values, results in zip((x & 7).reshape(3, 64), y.reshape(3, 64), strict=True):
        for v in range(8):
            got = results[values == v]
            assert (got // 1000 == len(got)).all()
            np.testing.assert_array_equal(np.sort(got % 1000), np.arange(len(got)))
    np.testing.assert_array_equal(z, np.tile([32 << 33, (32 << 33) + 1], 3))


# --- tensor cores --------------------------------------------------------------------------------

MMA = """
    int lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    x += blockIdx.x * 16 * K; w += blockIdx.x * 8 * K; y += blockIdx.x * 128;
    float c[4] = {1, 2, 3, 4};
"""


@both
def test_tensor_core_tf32(checks):
    body = (
        MMA
        + """
    unsigned a[4] = {__float_as_uint(x[g * 8 + t]), __float_as_uint(x[(g + 8) * 8 + t]),
                     __float_as_uint(x[g * 8 + t + 4]), __float_as_uint(x[(g + 8) * 8 + t + 4])};
    unsigned b[2] = {__float_as_uint(w[t * 8 + g]), __float_as_uint(w[(t + 4) * 8 + g])};
    asm volatile("mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    y[g * 8 + 2 * t] = c[0]; y[g * 8 + 2 * t + 1] = c[1];
    y[(g + 8) * 8 + 2 * t] = c[2]; y[(g + 8) * 8 + 2 * t + 1] = c[3];
"""
    )
    rng = np.random.default_rng(7)
    x, w = (rng.standard_normal(s).astype("f4") for s in ((3, 16, 8), (3, 8, 8)))
    y = floats(3, 16, 8)
    parameters = "const float* x, const float* w, float* y"
    run(parameters, body, x, w, y, grid=3, block=32, defines={"K": 8}, checks=checks)

    def tf32(values):
        return (values.view("u4") & np.uint32(0xFFFFE000)).view("f4").astype("f8")

    c = np.where(np.arange(16)[:, None] < 8, [1, 2] * 4, [3, 4] * 4)
    np.testing.assert_array_equal(y, (tf32(x) @ tf32(w) + c).astype("f4"))
    assert np.abs(y - (x.astype("f8") @ w + c)).max() > 1e-5  # it is not float32


def test_tensor_core_half():
    body = (
        MMA
        + """
    const unsigned* p = (const unsigned*)x; const unsigned* q = (const unsigned*)w;
    unsigned a[4] = {p[g * 8 + t], p[(g + 8) * 8 + t], p[g * 8 + t + 4], p[(g + 8) * 8 + t + 4]};
    unsigned b[2] = {q[g * 8 + t], q[g * 8 + t + 4]};     // w is stored by columns
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, "
        "{%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};" : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
    y[g * 8 + 2 * t] = c[0]; y[g * 8 + 2 * t + 1] = c[1];
    y[(g + 8) * 8 + 2 * t] = c[2]; y[(g + 8) * 8 + 2 * t + 1] = c[3];
"""
    )
    rng = np.random.default_rng(8)
    x, w = (rng.standard_normal(s).astype("f2") for s in ((2, 16, 16), (2, 8, 16)))
    y = floats(2, 16, 8)
    parameters = "const unsigned short* x, const unsigned short* w, float* y"
    run(parameters, body, x.view("u2"), w.view("u2"), y, grid=2, block=32, defines={"K": 16})
    c = np.where(np.arange(16)[:, None] < 8, [1, 2] * 4, [3, 4] * 4)
    expected = x.astype("f8") @ w.astype("f8").transpose(0, 2, 1) + c
    np.testing.assert_array_equal(y, expected.astype("f4"))


# --- copies that run on their own ----------------------------------------------------------------


@both
def test_asynchronous_copies_of_every_size_with_zero_fill(checks):
    body = """
    __shared__ __align__(16) float tile[64 * 4];
    int t = threadIdx.x;
    for (int i = 0; i < 4; ++i) tile[4 * t + i] = 7;
    __syncthreads();
    unsigned to = (unsigned)__cvta_generic_to_shared(tile + 4 * t);
    int given = t % 3 == 0 ? 0 : t % 3 == 1 ? 4 : SIZE;
    asm volatile("cp.async.LEVEL.shared.global [%0], [%1], %2, %3;"
        :: "r"(to), "l"(t % 3 ? x + 4 * t : x), "n"(SIZE), "r"(given));
    asm volatile("cp.async.wait_all;");
    __syncthreads();
    for (int i = 0; i < 4; ++i) y[4 * t + i] = tile[4 * t + i];
"""
    x = np.random.default_rng(9).standard_normal((64, 4)).astype("f4")
    for size, level in ((4, "ca"), (8, "ca"), (16, "cg")):
        y = floats(64, 4)
        text = body.replace("LEVEL", level).replace("SIZE", str(size))
        run("const float* x, float* y", text, x, y, checks=checks)
        expected = np.full((64, 4), 7, "f4")
        expected[:, : size // 4] = 0
        for t in range(64):
            copied = (0, 1, size // 4)[t % 3]
            expected[t, :copied] = x[t, :copied]
        np.testing.assert_array_equal(y, expected)


# --- a matrix product by tiles, any shape --------------------------------------------------------

GEMM = """
extern "C" __global__ void gemm(const float* a, const float* b, float* c, int m, int n, int k) {
    __shared__ float as[8][9], bs[8][8];
    int tx = threadIdx.x, ty = threadIdx.y, row = blockIdx.y * 8 + ty, col = blockIdx.x * 8 + tx;
    float sum = 0;
    for (int start = 0; start < k; start += 8) {
        as[ty][tx] = row < m && start + tx < k ? a[row * k + start + tx] : 0;
        bs[ty][tx] = col < n && start + ty < k ? b[(start + ty) * n + col] : 0;
        __syncthreads();
        for (int i = 0; i < 8; ++i) sum += as[ty][i] * bs[i][tx];
        __syncthreads();
    }
    if (row < m && col < n) c[row * n + col] = sum;
}
"""


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 30), st.booleans())
def test_tiled_product(m, n, k, checks):
    rng = np.random.default_rng(m * 1000 + n * 40 + k)
    a, b = (rng.standard_normal(s).astype("f4") for s in ((m, k), (k, n)))
    c = sim.empty((m, n))
    sim.run(GEMM, "gemm", (-(-n // 8), -(-m // 8)), (8, 8), a, b, c, m, n, k, checks=checks)
    expected = np.zeros((m, n), np.float32)
    for i in range(k):  # fused: the product is not rounded
        product = a[:, i, None].astype("f8") * b[i].astype("f8")
        expected = (product + expected).astype("f4")
    np.testing.assert_array_equal(np.asarray(c), expected)
    assert not checks or not c.unwritten.any()


# --- arguments -----------------------------------------------------------------------------------


def test_scalars_are_cast_to_the_declared_type():
    body = "y[0] = a; y[1] = b; y[2] = c; y[3] = d; y[4] = e; y[5] = s.v[1] + s.n;"
    parameters = "double* y, float a, int b, unsigned long long c, double d, bool e, S s"
    y = np.zeros(6)
    struct_bytes = struct.pack("<i2f", 7, 1, 0.5)
    before = "struct S { int n; float v[2]; };"
    run(parameters, body, y, 0.1, np.int64(-3), 2**64 - 1, 0.1, True, struct_bytes, before=before)
    np.testing.assert_array_equal(y, [np.float32(0.1), -3, 2.0**64, 0.1, 1, 7.5])


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ((floats(4),), TypeError, "k takes 3 arguments but 1 were given"),
        ((np.zeros(4), 1, 2.0), TypeError, "k: y points at float32 but was given float64"),
        ((floats(4, 4).T[1:], 1, 2.0), ValueError, "k: y must be C-contiguous"),
        (([1.0], 1, 2.0), TypeError, "k: y is a pointer and takes a NumPy array, not list"),
        ((floats(4), 1.5, 2.0), TypeError, "k: n takes an integer, not 1.5"),
        ((floats(4), 2**40, 2.0), ValueError, "k: n takes 32 bits, which 1099511627776 exceeds"),
        ((floats(4), 1, "2"), TypeError, "k: a takes a number, not str"),
        ((floats(4), floats(4), 2.0), TypeError, "k: n is not a pointer but was given an array"),
    ],
)
def test_wrong_arguments_are_named(args, error, message):
    with pytest.raises(error, match=message):
        run("float* __restrict__ y, int n, const float a", "y[0] = n * a;", *args)


def test_wrong_launches_are_named():
    with pytest.raises(ValueError, match=r"block .*2048.* has 2048 threads, not 1 .. 1024"):
        run("float* y", "y[0] = 1;", floats(1), block=2048)
    with pytest.raises(ValueError, match=r"k: block \(1, 1, 128\) exceeds a GPU's limits"):
        run("float* y", "y[0] = 1;", floats(1), block=(1, 1, 128))
    with pytest.raises(ValueError, match=r"k: grid \(1, 70000, 1\) exceeds a GPU's limits"):
        run("float* y", "y[0] = 1;", floats(1), grid=(1, 70000))
    with pytest.raises(ValueError, match=r"k: 0 \+ 102400 bytes .* exceed the 101376 .* sm_86"):
        run("float* y", "y[0] = 1;", floats(1), shared=100 << 10, arch="sm_86")
    big = "__shared__ float a[13000]; a[threadIdx.x] = y[0]; __syncthreads(); y[1] = a[5];"
    with pytest.raises(ValueError, match=r"k: 52000 bytes of static shared memory"):
        run("float* y", big, floats(2))
    with pytest.raises(ValueError, match="no such kernel in this source; it has: k"):
        sim.run('extern "C" __global__ void k() {}', "f", 1, 1)
    with pytest.raises(sim.CompileError, match='identifier "oops" is undefined'):
        run("float* y", "oops = 1;", floats(1))
    y = floats(1)
    run("float* y", "y[0] = 1;", y, grid=0)
    assert y[0] == 0


def test_source_from_a_file_with_defines_and_an_include(tmp_path):
    (tmp_path / "common.cuh").write_text("#define TWICE(x) ((x) * 2)\n")
    path = tmp_path / "scale.cu"
    path.write_text(
        '#include "common.cuh"\nextern "C" __global__ void scale(float* y) {\n'
        "  y[threadIdx.x + SHIFT] = TWICE(SCALE);\n}\n"
    )
    y = floats(4)
    sim.run(path, "scale", 1, 4, y, defines={"SCALE": 4, "SHIFT": 0})
    np.testing.assert_array_equal(y, np.full(4, 8))
    with pytest.raises(sim.Fault, match=r"line 3: `y\[threadIdx.x \+ SHIFT\] = TWICE\(SCALE\);`"):
        sim.run(str(path), "scale", 1, 4, y, defines={"SCALE": 5, "SHIFT": 1})
    assert sim.load(path, defines={"SCALE": 4, "SHIFT": 0}) is sim.load(
        path, defines={"SHIFT": 0, "SCALE": 4}
    )


def test_a_fault_names_the_file_and_line_that_a_line_directive_gives():
    source = """#line 1 "first.cu"
__device__ void put(float* y, float v) {
    y[8] = v;
}
#line 20 "kernel.cu"
extern "C" __global__ void k(float* y, int n) {
    if (n) put(y, 1);
    y[9] = 2;
}"""
    with pytest.raises(sim.Fault, match=r"line 2 of first\.cu: `y\[8\] = v;`"):
        sim.run(source, "k", 1, 1, np.zeros(8, np.float32), 1)
    with pytest.raises(sim.Fault, match=r"line 22: `y\[9\] = 2;`"):
        sim.run(source, "k", 1, 1, np.zeros(8, np.float32), 0)


def test_a_fault_in_an_included_file_names_it(tmp_path):
    (tmp_path / "store.cuh").write_text(
        "__device__ __forceinline__ void store(float* y) {\n  y[threadIdx.x] = 1;\n}\n"
    )
    path = tmp_path / "k.cu"
    path.write_text('#include "store.cuh"\nextern "C" __global__ void k(float* y) { store(y); }\n')
    with pytest.raises(sim.Fault, match=r"line 2 of store.cuh: `y\[threadIdx.x\] = 1;`"):
        sim.run(path, "k", 1, 8, floats(4))


def test_machine_code_and_what_ptxas_says_of_it():
    compiled = nvrtc.compile(GEMM, arch="sm_90", cubin=True, options=["--ptxas-options=-v"])
    assert compiled.code.startswith(b"\x7fELF")
    assert "registers" in compiled.log and "0 bytes spill" in compiled.log
    assert nvrtc.version() >= (12, 0)


def test_without_checks_an_unwritten_array_counts_as_written():
    y = sim.empty(64)
    run("float* y", "y[threadIdx.x] = 1;", y, checks=False)
    run("float* y", "y[threadIdx.x] += 1;", y)
    np.testing.assert_array_equal(np.asarray(y), np.full(64, 2))


def test_without_the_compiler_sim_imports_and_says_what_to_install():
    code = """
        import ctypes, numpy as np
        from minigan.kernels import sim
        from minigan.kernels.sim import nvrtc
        nvrtc._candidates = lambda: iter(["libnvrtc-that-is-not-there.so"])
        try:
            sim.run('extern "C" __global__ void k() {}', "k", 1, 1)
        except sim.CompilerMissing as error:
            print(error)
    """
    text = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
    ).stdout
    assert text.strip().endswith('pip install "nvidia-cuda-nvrtc-cu12==12.9.*"')
    assert len(text.splitlines()) == 1


# ---- Kept PTX -----------------------------------------------------------------------------------

COPY = """
extern "C" __global__ void copy(const float* x, float* y) { y[threadIdx.x] = x[threadIdx.x]; }
"""


@pytest.fixture
def ptx_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "ptx"


@pytest.fixture
def compilations(monkeypatch):
    """The sources that NVRTC has compiled."""
    compiled, compile = [], nvrtc._compile
    monkeypatch.setattr(nvrtc, "_compile", lambda lib, source, *rest: (
        compiled.append(source), compile(lib, source, *rest))[1])  # fmt: skip
    return compiled


def test_ptx_is_compiled_once(ptx_folder, compilations):
    first = nvrtc.compile(COPY)
    assert nvrtc.compile(COPY).code == first.code and len(compilations) == 1
    nvrtc.compile(COPY, arch="sm_90")
    nvrtc.compile(COPY, defines={"N": 1})
    nvrtc.compile(COPY + "\n")
    assert len(compilations) == len(list(ptx_folder.iterdir())) == 4
    assert not list(ptx_folder.glob("*.tmp"))


def test_ptx_that_was_damaged_is_compiled_again(ptx_folder, compilations):
    first = nvrtc.compile(COPY)
    (file,) = ptx_folder.iterdir()
    file.write_bytes(file.read_bytes()[:-20])
    assert nvrtc.compile(COPY).code == first.code and len(compilations) == 2
    assert nvrtc.compile(COPY).code == first.code and len(compilations) == 2


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path, monkeypatch, compilations):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MINIGAN_CACHE", str(tmp_path / "file" / "cache"))
    assert nvrtc.compile(COPY).code == nvrtc.compile(COPY).code and len(compilations) == 2


def test_old_ptx_makes_room(ptx_folder, monkeypatch):
    monkeypatch.setattr(nvrtc, "_MOST_KEPT", 4)
    for n in range(7):
        nvrtc.compile(COPY, defines={"N": n})
        assert len(list(ptx_folder.iterdir())) <= 5


def test_warnings_are_told_each_time(ptx_folder):
    source = COPY.replace("{ y", "{ int unused; y")
    assert "unused" in nvrtc.compile(source).log and "unused" in nvrtc.compile(source).log
