// Work on flat buffers that hold all parameters of a network end to end.
//
//     pack       flat[START_j + i] = Σ_k part_jk[i]                for up to 8 rows j of 4 parts k
//     average    a[i] += blend · (p[i] - a[i])                     the moving average of the weights
//
// Where gradients of several passes meet, they are added here. A part is an array (SIZE_j), or one of
// (BATCH_jk, SIZE_j, INNER_jk) of which each channel is summed: so a bias's gradient is taken from the
// gradients that it was added to, and with INNER 1 a weight's from the slices of a split product.
//
// Layout     parts contiguous; flat, a, p (n). Missing parts are null. blend (1) lies in device
//            memory, so that a step captured as a CUDA graph can be replayed with another one.
// Threads    One an element, neighbours side by side: coalesced. In a row of long channels one block
//            an element; it adds in a fixed order.
// Launch     pack: grid (most blocks that a row needs, rows): ⌈SIZE / 256⌉, or SIZE of long channels;
//            average: grid ⌈n / 256⌉. Block 256.
// Rung       Bandwidth-bound: reads each part once, writes 4 bytes an element; average reads 8.
// Defines    of pack, numbers joined by commas, which the layout of a network decides: SIZES, STARTS
//            GAPS (floats behind a row to fill with zeros), COUNTS (of a row's parts) and LONG (1: a
//            block an element), eight each;
//            BATCHES and INNERS, four times eight: BATCH 0 says that the part is an array.

#ifndef SIZES
#define SIZES 4, 4, 0, 0, 0, 0, 0, 0
#define STARTS 0, 32, 0, 0, 0, 0, 0, 0
#define GAPS 28, 28, 0, 0, 0, 0, 0, 0
#define COUNTS 1, 2, 0, 0, 0, 0, 0, 0
#define LONG 0, 1, 0, 0, 0, 0, 0, 0
#define BATCHES 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
#define INNERS 0, 9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0
#endif

// The sum of v over the block, in thread 0.
__device__ float block_sum(float v) {
    __shared__ float warp_sums[8];
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffff, v, step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (unsigned i = 0; i < 8; i++) v += warp_sums[i];
    return v;
}

constexpr unsigned sizes[] = {SIZES}, starts[] = {STARTS}, gaps[] = {GAPS}, counts[] = {COUNTS};
constexpr unsigned by_block[] = {LONG}, batches[] = {BATCHES}, inners[] = {INNERS};

// What part K of row J adds to element i of it: all, or in a row by blocks this thread's share.
template <unsigned J, unsigned K>
__device__ __forceinline__ float share(const float* part, unsigned i) {
    constexpr unsigned batch = batches[8 * K + J], inner = inners[8 * K + J];
    unsigned thread = by_block[J] ? threadIdx.x : 0, threads = by_block[J] ? 256 : 1;
    if constexpr (K >= counts[J]) {
        return 0.0f;
    } else if constexpr (batch == 0) {
        return thread == 0 ? part[i] : 0.0f;
    } else {
        float sum = 0.0f;
        for (unsigned e = thread; e < batch * inner; e += threads)
            sum += part[(e / inner * sizes[J] + i) * inner + e % inner];
        return sum;
    }
}

template <unsigned J>
__device__ __forceinline__ void row(const float* a, const float* b, const float* c, const float* d,
                                    float* flat) {
    if constexpr (gaps[J] > 0)  // less than 256
        if (blockIdx.x == 0 && threadIdx.x < gaps[J])
            flat[starts[J] + sizes[J] + threadIdx.x] = 0.0f;
    unsigned i = by_block[J] ? blockIdx.x : blockIdx.x * 256 + threadIdx.x;
    if (i >= sizes[J]) return;
    float sum = share<J, 0>(a, i) + share<J, 1>(b, i) + share<J, 2>(c, i) + share<J, 3>(d, i);
    if (by_block[J]) sum = block_sum(sum);
    if (!by_block[J] || threadIdx.x == 0) flat[starts[J] + i] = sum;
}

extern "C" __global__ void __launch_bounds__(256)
pack(const float* a0, const float* a1, const float* a2, const float* a3, const float* a4,
     const float* a5, const float* a6, const float* a7, const float* b0, const float* b1,
     const float* b2, const float* b3, const float* b4, const float* b5, const float* b6,
     const float* b7, const float* c0, const float* c1, const float* c2, const float* c3,
     const float* c4, const float* c5, const float* c6, const float* c7, const float* d0,
     const float* d1, const float* d2, const float* d3, const float* d4, const float* d5,
     const float* d6, const float* d7, float* flat) {
    switch (blockIdx.y) {
    case 0: return row<0>(a0, b0, c0, d0, flat);
    case 1: return row<1>(a1, b1, c1, d1, flat);
    case 2: return row<2>(a2, b2, c2, d2, flat);
    case 3: return row<3>(a3, b3, c3, d3, flat);
    case 4: return row<4>(a4, b4, c4, d4, flat);
    case 5: return row<5>(a5, b5, c5, d5, flat);
    case 6: return row<6>(a6, b6, c6, d6, flat);
    case 7: return row<7>(a7, b7, c7, d7, flat);
    }
}

extern "C" __global__ void __launch_bounds__(256)
average(float* a, const float* p, const float* blend, unsigned n) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) a[i] += blend[0] * (p[i] - a[i]);
}
