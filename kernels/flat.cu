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

// The sum over channel c of g (batch, channels, inner): the share of a thread of `threads`.
__device__ __forceinline__ float channel_share(const float* g, unsigned c, unsigned channels,
                                               unsigned batch, unsigned inner, unsigned thread,
                                               unsigned threads) {
    float sum = 0.0f;
    for (unsigned e = thread; e < batch * inner; e += threads)
        sum += g[(e / inner * channels + c) * inner + e % inner];
    return sum;
}

extern "C" __global__ void __launch_bounds__(256)
pack(const float* a0, const float* a1, const float* a2, const float* a3, const float* a4,
     const float* a5, const float* a6, const float* a7, const float* b0, const float* b1,
     const float* b2, const float* b3, const float* b4, const float* b5, const float* b6,
     const float* b7, const float* c0, const float* c1, const float* c2, const float* c3,
     const float* c4, const float* c5, const float* c6, const float* c7, const float* d0,
     const float* d1, const float* d2, const float* d3, const float* d4, const float* d5,
     const float* d6, const float* d7, float* flat) {
    const float* parts[4][8] = {{a0, a1, a2, a3, a4, a5, a6, a7},
                                {b0, b1, b2, b3, b4, b5, b6, b7},
                                {c0, c1, c2, c3, c4, c5, c6, c7},
                                {d0, d1, d2, d3, d4, d5, d6, d7}};
    constexpr unsigned sizes[] = {SIZES}, starts[] = {STARTS}, gaps[] = {GAPS}, counts[] = {COUNTS};
    constexpr unsigned lengthy[] = {LONG}, batches[] = {BATCHES}, inners[] = {INNERS};
#pragma unroll
    for (unsigned j = 0; j < 8; j++) {
        if (blockIdx.y != j) continue;
        if (blockIdx.x == 0)
            for (unsigned i = threadIdx.x; i < gaps[j]; i += 256) flat[starts[j] + sizes[j] + i] = 0.0f;
        bool by_block = lengthy[j];
        unsigned i = by_block ? blockIdx.x : blockIdx.x * 256 + threadIdx.x;
        unsigned thread = by_block ? threadIdx.x : 0, threads = by_block ? 256 : 1;
        if (i >= sizes[j]) return;
        float sum = 0.0f;
#pragma unroll
        for (unsigned k = 0; k < 4; k++) {
            if (k >= counts[j]) break;
            unsigned batch = batches[8 * k + j], inner = inners[8 * k + j];
            if (batch > 0)
                sum += channel_share(parts[k][j], i, sizes[j], batch, inner, thread, threads);
            else if (thread == 0)
                sum += parts[k][j][i];
        }
        if (by_block) sum = block_sum(sum);
        if (thread == 0) flat[starts[j] + i] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256)
average(float* a, const float* p, const float* blend, unsigned n) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) a[i] += blend[0] * (p[i] - a[i]);
}
