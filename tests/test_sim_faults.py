"""sim catches what a kernel must not do, names the line, and does not accuse correct kernels."""

import re

import numpy as np
import pytest

pytest.importorskip("ctypes")
from minigan.kernels import sim

try:
    sim.load('extern "C" __global__ void probe() {}')
except sim.CompilerMissing as missing:
    pytest.skip(str(missing), allow_module_level=True)


def kernel(parameters, body, before=""):
    return f'{before}\nextern "C" __global__ void k({parameters}) {{{body}\n}}\n'


def marked_line(source):
    """The number of the line that carries the mark //!"""
    return next(n for n, line in enumerate(source.splitlines(), 1) if "//!" in line)


def expect(kind, source, *args, grid=2, block=64, match="", **options):
    """Run, and want a Fault of that kind at the marked line, which says `match`."""
    with pytest.raises(sim.Fault) as caught:
        sim.run(source, "k", grid, block, *args, **options)
    fault = caught.value
    assert fault.kind == kind, str(fault)
    assert fault.line == marked_line(source), str(fault)
    assert fault.kernel == "k" and "kernel k, line" in str(fault)
    text = source.splitlines()[fault.line - 1].strip()
    assert text in str(fault)
    assert re.search(match, str(fault), re.S), str(fault)
    return fault


X = np.arange(256, dtype=np.float32)


def floats(n=256):
    return np.zeros(n, np.float32)


# Each bug: the fault's kind, the source with its line marked, and what the message must teach.
BUGS = {
    "barrier missing": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    // __syncthreads() belongs here
    y[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];  //!
""",
        ),
        r"reads tile\[\d+\], which thread \(63, 0, 0\) wrote in line 4: "
        r"`tile\[threadIdx.x\] = x\[threadIdx.x\];`, with no __syncthreads\(\) between",
    ),
    "barrier missing before the next tile": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[64];
    float sum = 0;
    for (int i = 0; i < 4; ++i) {
        tile[threadIdx.x] = x[threadIdx.x + 64 * i];  //!
        __syncthreads();
        sum += tile[63 - threadIdx.x];
    }
    y[blockIdx.x * 64 + threadIdx.x] = sum;
""",
        ),
        r"writes tile\[\d+\], .* read in line 8: .*no __syncthreads\(\) between",
    ),
    "all threads write one place": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float first;
    first = x[threadIdx.x];  //!
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = first;
""",
        ),
        r"writes first, .* also writes .* in the same instruction",
    ),
    "the last reader writes": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float total;
    if (threadIdx.x == 0) total = x[0];
    __syncthreads();
    float v = total;
    if (threadIdx.x == 63) total = v + 1;  //!
    y[blockIdx.x * 64 + threadIdx.x] = v;
""",
        ),
        r"thread \(63, 0, 0\): writes total, which other threads read in line 6",
    ),
    "a lane writes what its warp has just read": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncthreads();
    float v = tile[t / 32 * 32];
    if (t % 32 == 31) tile[t - 31] = v + 1;  //!
    y[blockIdx.x * 64 + t] = v;
""",
        ),
        r"which threads of warp 0 read in line 7: .* no __syncthreads\(\) between",
    ),
    "one reads early, the other reads and writes": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float total;
    if (threadIdx.x == 0) total = x[0];
    __syncthreads();
    float v = 0;
    if (threadIdx.x == 3) v = *(float*)&total + 1;
    asm volatile("" ::: "memory");
    if (threadIdx.x == 40) total += 2;  //!
    y[blockIdx.x * 64 + threadIdx.x] = v;
""",
        ),
        r"thread \(40, 0, 0\)",
    ),
    "a block writes what others have read": (
        "race between blocks",
        kernel(
            "const float* x, float* y",
            """
    float v = y[0] + x[threadIdx.x];
    __syncthreads();
    if (blockIdx.x == gridDim.x - 1 && threadIdx.x == 63) y[0] = v;  //!
    y[blockIdx.x * 64 + threadIdx.x + 1] = v;
""",
        ),
        r"which several blocks read in line 3.*nothing orders two blocks",
    ),
    "syncwarp missing": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    y[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x ^ 1];  //!
""",
        ),
        r"no __syncwarp\(\) or __syncthreads\(\) between",
    ),
    "race in global memory within a block": (
        "race",
        kernel(
            "const float* x, float* y",
            """
    int i = blockIdx.x * 64 + threadIdx.x;
    y[i] = x[i];
    y[128 + i] = y[blockIdx.x * 64 + 63 - threadIdx.x];  //!
""",
        ),
        r"reads y\[\d+\] .* wrote in line 4",
    ),
    "blocks overlap": (
        "race between blocks",
        kernel(
            "const float* x, float* y",
            """
    y[blockIdx.x * 63 + threadIdx.x] = x[blockIdx.x + threadIdx.x];  //!
""",
        ),
        r"nothing orders two blocks of one launch",
    ),
    "a block reads its neighbour": (
        "race between blocks",
        kernel(
            "const float* x, float* y",
            """
    int i = blockIdx.x * 64 + threadIdx.x;
    y[i] = x[i];
    __syncthreads();
    y[128 + i] = y[127 - i];  //!
""",
        ),
        r"reads y\[127\] .* thread \(63, 0, 0\) of block \(1, 0, 0\) wrote in line 4",
    ),
    "guard off by one": (
        "out of bounds",
        kernel(
            "const float* x, float* y",
            """
    int i = blockIdx.x * 64 + threadIdx.x;
    if (i <= 100)
        y[i * 2 + 56] = x[i];  //!
""",
        ),
        r"block \(1, 0, 0\) thread \(36, 0, 0\): writes y\[256\] \(y has 256 elements\)",
    ),
    "halo": (
        "out of bounds",
        kernel(
            "const float* x, float* y",
            """
    int i = blockIdx.x * 64 + threadIdx.x;
    y[i] = x[i - 1] + x[i + 1];  //!
""",
        ),
        r"block \(0, 0, 0\) thread \(0, 0, 0\): reads x\[-1\]",
    ),
    "index overflows": (
        "out of bounds",
        kernel(
            "const float* x, float* y",
            """
    int i = threadIdx.x * 100000 * 100000 + blockIdx.x;  // 10^10 does not fit into an int
    y[i] = x[threadIdx.x];  //!
""",
        ),
        r"thread \(1, 0, 0\)",
    ),
    "tile too small": (
        "out of bounds",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[60];
    tile[threadIdx.x] = x[threadIdx.x];  //!
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = tile[0];
""",
        ),
        r"thread \(60, 0, 0\): touches byte 240 of shared memory of 240 bytes in all",
    ),
    "misaligned float4": (
        "misaligned access",
        kernel(
            "const float* x, float* y",
            """
    float4 v = *(const float4*)(x + 4 * threadIdx.x % 64 + 2);  //!
    y[blockIdx.x * 64 + threadIdx.x] = v.x + v.w;
""",
        ),
        r"touches 16 bytes at x\[2\] .* no multiple of 16",
    ),
    "shared memory not written": (
        "read of unwritten memory",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[65];
    tile[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x + 1];  //!
""",
        ),
        r"thread \(63, 0, 0\): reads tile\[64\], which nothing has written",
    ),
    "wrong stride": (
        "out of bounds",
        kernel(
            "const float* x, float* y",
            """
    int row = blockIdx.x * 8 + threadIdx.x / 8, column = threadIdx.x % 8;
    y[row * 8 + column] = x[row * 18 + column];  //! rows of x are 16 long
""",
        ),
        r"block \(1, 0, 0\) thread \(52, 0, 0\): reads x\[256\]",
    ),
    "lost tail": (
        "read of unwritten memory",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[100];
    for (int i = threadIdx.x; i < 100 / 64 * 64; i += 64) tile[i] = x[i];
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = tile[threadIdx.x + 36];  //!
""",
        ),
        r"thread \(28, 0, 0\): reads tile\[64\], which nothing has written",
    ),
    "barrier under divergence": (
        "barrier not reached by all",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x < 40) {
        __syncthreads();  //!
        y[blockIdx.x * 64 + threadIdx.x] = tile[39 - threadIdx.x];
    }
""",
        ),
        r"thread \(0, 0, 0\): waits at __syncthreads\(\), but thread \(40, 0, 0\) .* has returned",
    ),
    "two barriers": (
        "barrier not reached by all",
        kernel(
            "const float* x, float* y",
            """
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    if (threadIdx.x & 1) {
        __syncthreads();  //!
        y[blockIdx.x * 64 + threadIdx.x] = tile[63 - threadIdx.x];
    } else {
        __syncthreads();
        y[blockIdx.x * 64 + threadIdx.x] = 2 * tile[63 - threadIdx.x];
    }
""",
        ),
        r"waits at another one, in line 9",
    ),
    "atomic and plain write": (
        "race between blocks",
        kernel(
            "const float* x, float* y",
            """
    atomicAdd(&y[threadIdx.x], 1.f);
    if (blockIdx.x == 1) y[threadIdx.x] = x[threadIdx.x];  //!
""",
        ),
        r"several blocks wrote in line 3.*nothing orders two blocks",
    ),
    "store to local array out of bounds": (
        "out of bounds",
        kernel(
            "const float* x, float* y",
            """
    float a[4] = {1, 2, 3, 4};
    int i = threadIdx.x;
    a[i] = x[i];  //!
    y[blockIdx.x * 64 + i] = a[(int)x[0]] + a[(int)x[1]];
""",
        ),
        r"thread \(4, 0, 0\)",
    ),
}


@pytest.mark.parametrize("bug", BUGS)
def test_bug_is_caught_with_its_line(bug):
    kind, source, match = BUGS[bug]
    expect(kind, source, X, floats(), match=match)


ASYNC = """
__device__ __forceinline__ void copy16(float* to, const float* from) {
    asm volatile("cp.async.ca.shared.global [%0], [%1], 16;"
        :: "r"((unsigned)__cvta_generic_to_shared(to)), "l"(from));
}
extern "C" __global__ void k(const float* x, float* y) {
    __shared__ float4 tile[2][64];
    int t = threadIdx.x;
    for (int i = 0; i < 2; ++i) {
        copy16((float*)&tile[i][t], x + 4 * (t + 64 * i));
        asm volatile("cp.async.commit_group;");
    }
    float sum = 0;
    asm volatile("cp.async.wait_group WAIT_FIRST;");
    SYNC
    sum += tile[0][63 - t].x;  /*first*/
    asm volatile("cp.async.wait_group WAIT_SECOND;");
    __syncthreads();
    sum += tile[1][63 - t].x;  /*second*/
    y[t] = sum;
}
"""


def asynchronous(first, second, sync="__syncthreads();", mark=""):
    source = ASYNC.replace("WAIT_FIRST", str(first)).replace("WAIT_SECOND", str(second))
    return source.replace("SYNC", sync).replace(f"/*{mark}*/", "//!")


@pytest.mark.parametrize("checks", [True, False])
def test_asynchronous_copy(checks):
    x, y = np.arange(512, dtype=np.float32), floats(64)
    sim.run(asynchronous(1, 0), "k", 1, 64, x, y, checks=checks)
    rows = x.reshape(2, 64, 4)[:, ::-1, 0]
    np.testing.assert_array_equal(y, rows[0] + rows[1])


@pytest.mark.parametrize(("waits", "mark"), [((2, 0), "first"), ((1, 1), "second")])
def test_a_wait_for_too_few_groups_is_caught(waits, mark):
    source = asynchronous(*waits, mark=mark)
    x = np.arange(512, dtype=np.float32)
    expect(
        "read of a copy under way", source, x, floats(64), grid=1, match="no cp.async.wait_group"
    )


def test_a_wait_for_too_few_groups_spoils_the_result_even_without_checks():
    x, y = np.arange(512, dtype=np.float32), floats(64)
    sim.run(asynchronous(2, 2), "k", 1, 64, x, y, checks=False)
    rows = x.reshape(2, 64, 4)[:, ::-1, 0]
    assert not np.any(y == rows[0] + rows[1])


def test_waiting_for_a_copy_is_not_a_barrier():
    source = asynchronous(1, 0, sync="", mark="first")
    x = np.arange(512, dtype=np.float32)
    expect("race", source, x, floats(64), grid=1, match="no .*__syncthreads.. between")


# --- arrays ------------------------------------------------------------------------------------

COPY = kernel(
    "const float* x, float* y, int n", "int i = threadIdx.x; if (i < n) y[i] = x[i];  //!"
)


def test_an_unwritten_array_must_be_written_before_it_is_read():
    middle, y = sim.empty(64), floats(64)
    sim.run(COPY, "k", 1, 64, X[:64], middle, 40)
    sim.run(COPY, "k", 1, 64, middle, y, 40)
    np.testing.assert_array_equal(y[:40], X[:40])
    fault = expect("read of unwritten memory", COPY, middle, y, 64, grid=1, match=r"x\[40\]")
    assert fault.thread == (40, 0, 0)
    assert middle.unwritten.reshape(64, 4).all(axis=1).sum() == 24


def test_a_null_pointer_is_out_of_bounds():
    expect("out of bounds", COPY, None, floats(64), 64, grid=1, match="a null pointer")


def test_a_read_only_array_cannot_be_written():
    y = floats(64)
    y.flags.writeable = False
    expect("write to a read-only array", COPY, X, y, 64, grid=1)


def test_a_slice_keeps_the_alignment_of_its_array():
    vector = kernel("const float4* x, float4* y", "y[threadIdx.x] = x[threadIdx.x];  //!")
    sim.run(vector, "k", 1, 8, X[4:36], floats(32))
    expect("misaligned access", vector, X[1:33], floats(32), grid=1, block=8)


def test_a_race_within_a_block_and_between_blocks_is_told_as_the_first():
    """What a __syncthreads() mends comes first, and title and text are of one race."""
    source = kernel("float* y", "y[threadIdx.x / 2] = threadIdx.x + 64 * blockIdx.x;  //!")
    fault = expect("race", source, floats(32), grid=2)
    assert "in the same instruction" in str(fault) and "two blocks" not in str(fault)
    source = kernel(
        "float* y",
        """
    y[threadIdx.x] = threadIdx.x + blockIdx.x;  //!
    y[63 - threadIdx.x] = 2;
""",
    )
    expect("race between blocks", source, floats(64), match="nothing orders two blocks")


@pytest.mark.parametrize(
    "declaration, index, place",
    [
        ("float tile[64]", "[threadIdx.x]", r"tile\[63\]"),
        ("float4 tile[64]", "[threadIdx.x].x", "float 252 of tile"),
        ("double tile[64]", "[threadIdx.x]", r"tile\[63\]"),
        ("float tile[4][16]", "[threadIdx.x / 16][threadIdx.x % 16]", "float 63 of tile"),
    ],
)
def test_a_fault_names_the_element(declaration, index, place):
    source = kernel(
        "float* y",
        f"""
    __shared__ {declaration};
    if (threadIdx.x < 63) tile{index} = 1;
    __syncthreads();
    y[threadIdx.x] = tile{index};  //!
""",
    )
    match = rf"reads {place}, which nothing has written"
    expect("read of unwritten memory", source, floats(64), grid=1, match=match)


def test_a_race_with_the_readers_of_an_array_that_was_only_read_before():
    source = kernel(
        "const float* x, float* y, int into_x",
        """
    float v = x[threadIdx.x];
    __syncthreads();
    float* z = into_x ? (float*)x : y;
    z[63 - threadIdx.x] = v + blockIdx.x;  //!
""",
    )
    for _ in range(2):
        sim.run(source, "k", 1, 64, X.copy(), floats(64), 0)
    expect("race between blocks", source, X.copy(), floats(64), 1)
    x = floats(128)
    expect("race between blocks", source, x[:96], x[32:], 0)


def test_memory_that_arguments_share_is_shared():
    shift = kernel("float* x, float* y", "y[threadIdx.x] = 2 * x[threadIdx.x];")
    x = np.arange(8, dtype=np.float32)
    sim.run(shift, "k", 1, 4, x[:6], x[4:])
    np.testing.assert_array_equal(x, [0, 1, 2, 3, 0, 2, 4, 6])


# --- correct programs are not accused ----------------------------------------------------------

CORRECT = {
    "exchange with syncwarp": (
        """
    __shared__ float tile[64];
    int t = threadIdx.x;
    tile[t] = x[t];
    __syncwarp();
    float v = tile[t ^ 1];
    __syncwarp();
    tile[t] = v + 1;
    __syncwarp();
    y[blockIdx.x * 64 + t] = tile[t ^ 2];
""",
        lambda: np.tile([X[t ^ 3] + 1 for t in range(64)], 2),
    ),
    "warp reduction in shared memory": (
        """
    __shared__ float tile[64];
    int t = threadIdx.x, lane = t & 31;
    tile[t] = x[t];
    __syncwarp();
    for (int step = 16; step; step /= 2) {
        float v = lane < step ? tile[t + step] : 0.f;
        __syncwarp();
        if (lane < step) tile[t] += v;
        __syncwarp();
    }
    y[blockIdx.x * 64 + t] = tile[t & 32];
""",
        lambda: np.tile(np.repeat(X[:64].reshape(2, 32).sum(1), 32), 2),
    ),
    "block reduction by shuffles": (
        """
    __shared__ float part[2];
    int t = threadIdx.x;
    float v = x[t];
    for (int step = 16; step; step /= 2) v += __shfl_down_sync(~0u, v, step);
    if (t % 32 == 0) part[t / 32] = v;
    __syncthreads();
    y[blockIdx.x * 64 + t] = part[0] + part[1];
""",
        lambda: np.full(128, X[:64].sum()),
    ),
    "last block sums up": (
        """
    __shared__ bool last;
    __shared__ float sum;
    int t = threadIdx.x;
    y[128 + blockIdx.x * 64 + t] = x[t];
    __threadfence();
    __syncthreads();
    if (t == 0) last = atomicAdd((unsigned*)&y[0], 1) == gridDim.x - 1;
    __syncthreads();
    if (last) {
        if (t == 0) sum = 0;
        __syncthreads();
        atomicAdd(&sum, y[128 + t] + y[192 + t]);
        __syncthreads();
        y[t] = t ? sum : 0.f;  // and resets the counter
    }
""",
        lambda: np.r_[0, np.full(63, 2 * X[:64].sum()), np.zeros(64)],
    ),
    "everybody writes the same": (
        """
    __shared__ float flag;
    flag = 3;
    y[blockIdx.x * 64 + threadIdx.x] = flag;
""",
        lambda: np.full(128, 3.0),
    ),
    "histogram": (
        """
    __shared__ unsigned bins[8];
    int t = threadIdx.x;
    if (t < 8) bins[t] = 0;
    __syncthreads();
    atomicAdd(&bins[(int)x[t] % 7], 1);
    __syncthreads();
    if (t < 8) atomicAdd(&y[t], (float)bins[t]);
""",
        lambda: np.r_[2 * np.bincount(np.arange(64) % 7, minlength=8), np.zeros(120)],
    ),
    "lanes of a warp part and meet": (
        """
    int t = threadIdx.x;
    float v = x[t];
    if (t % 32 < 16) v = v * 2; else v = v + __shfl_xor_sync(0xffff0000u, v, 1);
    __syncwarp();
    y[blockIdx.x * 64 + t] = __shfl_xor_sync(~0u, v, 16);
""",
        lambda: np.tile(
            [
                2 * X[t ^ 16] if (t ^ 16) % 32 < 16 else X[t ^ 16] + X[t ^ 17]
                for t in range(64)
            ],
            2,
        ),
    ),
    "early return before no barrier": (
        """
    int t = blockIdx.x * 64 + threadIdx.x;
    if (t >= 100) return;
    y[t] = x[t];
""",
        lambda: np.where(np.arange(128) < 100, X[:128], 0),
    ),
}  # fmt: skip


@pytest.mark.parametrize("program", CORRECT)
def test_correct_program_passes(program):
    body, expected = CORRECT[program]
    for checks in (True, False):
        y = floats()
        sim.run(kernel("const float* x, float* y", body), "k", 2, 64, X, y, checks=checks)
        np.testing.assert_allclose(y[:128], expected(), rtol=1e-6)


def test_a_chunk_of_blocks_sees_the_races_with_the_chunks_before():
    source = kernel("float* y", "y[threadIdx.x] = blockIdx.x;  //!")
    expect("race between blocks", source, floats(1024), grid=40, block=1024)


def test_blocks_that_differ_in_their_barriers():
    body = """
    __shared__ float tile[64];
    int t = threadIdx.x;
    float sum = 0;
    for (int i = 0; i <= blockIdx.x; ++i) {
        tile[t] = x[t] + i;
        __syncthreads();
        sum += tile[63 - t];
        __syncthreads();
    }
    y[blockIdx.x * 64 + t] = sum;
"""
    y = floats()
    sim.run(kernel("const float* x, float* y", body), "k", 4, 64, X, y)
    expected = [sum(X[63 - t] + i for i in range(b + 1)) for b in range(4) for t in range(64)]
    np.testing.assert_array_equal(y, expected)
