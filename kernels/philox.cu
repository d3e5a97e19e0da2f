// Random numbers that agree with minigan.array.Stream: Philox4x64-10 (Salmon, Moraes, Dror & Shaw
// 2011, "Parallel random numbers: as easy as 1, 2, 3"), a bijection of a 256-bit counter by a
// 128-bit key. No state: element i of a stream is a function of (key, step, i).
//
//     counter (block, 0, 0, step), block counting from 1; one block gives 4 × 64 bits, read as
//     8 uint32, low half first.
//     uniform    low + (high - low) · (top 24 bits) / 2^24, and where that rounds up to high, the
//                float below it: `below`                                 bitwise that of Stream
//     normal     Box-Muller on pairs (a, b) of uint32, r = sqrt(-2 ln((a + 0.5) / 2^32)),
//                t = 2π b / 2^32: r cos t, r sin t                       within a few ulps
//
// Layout     out (n).
// Threads    One a counter block: 8 neighbouring outputs, which pass through shared memory, so that a
//            warp's stores are 32 neighbours.
// Launch     grid ⌈n / (8 · 256)⌉, block 256.
// Rung       Bound by integer multiplies: 20 of 64 × 64 bits a block.

typedef unsigned long long u64;

constexpr unsigned THREADS = 256;
constexpr unsigned PITCH = THREADS + 4;  // neighbours of one counter block lie 4 banks apart

// out[8 · thread + j] = v[j], if that is below n.
__device__ __forceinline__ void store(float* out, unsigned n, const float (&v)[8]) {
    __shared__ float staged[8 * PITCH];
#pragma unroll
    for (unsigned j = 0; j < 8; j++) staged[j * PITCH + threadIdx.x] = v[j];
    __syncthreads();
#pragma unroll
    for (unsigned k = 0; k < 8; k++) {
        unsigned e = k * THREADS + threadIdx.x, i = blockIdx.x * 8 * THREADS + e;
        if (i < n) out[i] = staged[e % 8 * PITCH + e / 8];
    }
}

struct Words {
    unsigned w[8];
};

__device__ __forceinline__ Words philox(u64 block, u64 step, u64 key0, u64 key1) {
    u64 c0 = block, c1 = 0, c2 = 0, c3 = step;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        u64 low0 = 0xD2E7470EE14C6C93ull * c0, high0 = __umul64hi(0xD2E7470EE14C6C93ull, c0);
        u64 low1 = 0xCA5A826395121157ull * c2, high1 = __umul64hi(0xCA5A826395121157ull, c2);
        c0 = high1 ^ c1 ^ key0;
        c1 = low1;
        c2 = high0 ^ c3 ^ key1;
        c3 = low0;
        key0 += 0x9E3779B97F4A7C15ull;
        key1 += 0xBB67AE8584CAA73Bull;
    }
    return {{static_cast<unsigned>(c0), static_cast<unsigned>(c0 >> 32),
             static_cast<unsigned>(c1), static_cast<unsigned>(c1 >> 32),
             static_cast<unsigned>(c2), static_cast<unsigned>(c2 >> 32),
             static_cast<unsigned>(c3), static_cast<unsigned>(c3 >> 32)}};
}

// Multiplication and addition rounded apart, as NumPy rounds them.
extern "C" __global__ void __launch_bounds__(THREADS)
philox_uniform(float* out, unsigned n, u64 key0, u64 key1, u64 step, u64 first_block, float low,
               float width, float below) {
    unsigned thread = blockIdx.x * THREADS + threadIdx.x;
    Words bits = philox(first_block + thread, step, key0, key1);
    float v[8];
#pragma unroll
    for (unsigned j = 0; j < 8; j++) {
        float u = static_cast<float>(bits.w[j] >> 8) * 0x1p-24f;
        v[j] = fminf(__fadd_rn(low, __fmul_rn(width, u)), below);
    }
    store(out, n, v);
}

// sqrt(-2 ln u), u = (a + 0.5) / 2^32. Near u = 1 the float nearest to u has lost most of 1 - u, and
// ln u with it: there 1 - u = (~a + 0.5) / 2^32 is rounded in its place.
__device__ __forceinline__ float radius(unsigned a) {
    float log_u = a < 0x80000000u
                      ? logf((static_cast<float>(a) + 0.5f) * 0x1p-32f)
                      : log1pf(-(static_cast<float>(~a) + 0.5f) * 0x1p-32f);
    return sqrtf(-2.0f * log_u);
}

extern "C" __global__ void __launch_bounds__(THREADS)
philox_normal(float* out, unsigned n, u64 key0, u64 key1, u64 step, u64 first_block, float mean,
              float std) {
    unsigned thread = blockIdx.x * THREADS + threadIdx.x;
    Words bits = philox(first_block + thread, step, key0, key1);
    float v[8];
#pragma unroll
    for (unsigned j = 0; j < 8; j += 2) {
        // b = quarter · 2^30 + rest with |rest| ≤ 2^29: the float of a small rest is exact enough
        // where the sine is small.
        unsigned b = bits.w[j + 1], quarter = (b + 0x20000000u) >> 30;
        float half_turns = static_cast<float>(static_cast<int>(b - (quarter << 30))) * 0x1p-31f;
        float r = radius(bits.w[j]), x = r * cospif(half_turns), y = r * sinpif(half_turns);
        float cosine = quarter % 2 == 0 ? x : y, sine = quarter % 2 == 0 ? y : x;
        if (quarter == 1 || quarter == 2) cosine = -cosine;
        if (quarter >= 2) sine = -sine;
        v[j] = fmaf(std, cosine, mean);
        v[j + 1] = fmaf(std, sine, mean);
    }
    store(out, n, v);
}
