// What the engine does between the other kernels' launches:
//
//     add       y[i] = a[i] + factor · b[i] gradients that meet, factor 1; a penalty; y may be a
//     scale     y[i] = s[0] · x[i]          a saved gradient, times what comes from above
//
// Layout     a, b, x, y (n), s (1).
// Threads    One an element, neighbours side by side: coalesced.
// Launch     grid ⌈n / 256⌉, block 256.
// Rung       Bandwidth-bound: add moves 12 bytes an element, scale 8.

extern "C" __global__ void __launch_bounds__(256)
add(const float* a, const float* b, float* y, unsigned n, float factor) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = a[i] + factor * b[i];
}

extern "C" __global__ void __launch_bounds__(256)
scale(const float* x, const float* s, float* y, unsigned n) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i < n) y[i] = s[0] * x[i];
}
