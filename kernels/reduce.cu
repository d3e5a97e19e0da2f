// out[i] = act(Σ_s partials[s,i] + bias[c]), c = i / inner mod n: the second half of every split sum.
//
// Layout     partials (slices, size), out (size) = (..., n, inner), bias (n).
// Threads    One an output, neighbours side by side: coalesced. The slices are added in order, so
//            that the result does not depend on which block finished first.
// Launch     grid ⌈size / 256⌉, block 256.
// Rung       Bandwidth-bound: reads every partial once.
// Defines    BIAS (1: add bias, 0: it is not read), ACT(x).

#ifndef BIAS
#define BIAS 0
#endif
#ifndef ACT
#define ACT(x) (x)
#endif

extern "C" __global__ void __launch_bounds__(256)
reduce_slices(const float* partials, const float* bias, float* out, unsigned slices, unsigned size,
              unsigned n, unsigned inner) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= size) return;
    float v = 0.0f;
    for (unsigned s = 0; s < slices; s++) v += partials[static_cast<unsigned long long>(s) * size + i];
    if (BIAS) v += bias[i / inner % n];
    out[i] = ACT(v);
}
