// Work on flat buffers that hold all parameters of a network end to end.
//
//     pack       flat[START_j + i] = array_j[i]                    for up to 8 arrays
//     average    a[i] += blend · (p[i] - a[i])                     the moving average of the weights
//
// Layout     array_j (SIZE_j), contiguous; flat, a, p (n). Those beyond the last array are null, and
//            their SIZE is 0. blend (1) lies in device memory, so that a step captured as a CUDA
//            graph can be replayed with another one.
// Threads    One an element, neighbours side by side: coalesced.
// Launch     pack: grid (⌈largest SIZE / 256⌉, arrays); average: grid ⌈n / 256⌉. Block 256.
// Rung       Bandwidth-bound: 4 bytes read and 4 written an element; average reads 8.
// Defines    of pack: SIZES and STARTS, eight numbers each, joined by commas. The layout of a network
//            does not change, the arrays of its gradients do.

#ifndef SIZES
#define SIZES 4, 4, 0, 0, 0, 0, 0, 0
#define STARTS 0, 32, 0, 0, 0, 0, 0, 0
#endif

extern "C" __global__ void __launch_bounds__(256)
pack(const float* a0, const float* a1, const float* a2, const float* a3, const float* a4,
     const float* a5, const float* a6, const float* a7, float* flat) {
    const float* arrays[] = {a0, a1, a2, a3, a4, a5, a6, a7};
    constexpr unsigned sizes[] = {SIZES}, starts[] = {STARTS};
    unsigned i = blockIdx.x * 256 + threadIdx.x;
#pragma unroll
    for (unsigned j = 0; j < 8; j++)
        if (blockIdx.y == j && i < sizes[j]) flat[starts[j] + i] = arrays[j][i];
}

extern "C" __global__ void __launch_bounds__(256)
average(float* a, const float* p, const float* blend, unsigned n) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) a[i] += blend[0] * (p[i] - a[i]);
}
