// One step of Adam (Kingma & Ba 2015, algorithm 1) on the flat buffer of all parameters.
//
//     m += (1-β1) · (g - m)        v += (1-β2) · (g² - v)
//     p  = p · decay - rate · m / (sqrt(v · correction) + eps)
//
// hyper = {1-β1, 1-β2, rate = lr/(1-β1^step), correction = 1/(1-β2^step), eps, decay = 1 - lr·wd}
// lies in device memory, so that a step captured as a CUDA graph can be replayed with new values.
//
// Layout     p, g, m, v (n); p, m and v change in place.
// Threads    One an element, neighbours side by side: coalesced.
// Launch     grid ⌈n / 256⌉, block 256. One launch for the whole model.
// Rung       Bandwidth-bound: 16 bytes read and 12 written an element.

extern "C" __global__ void __launch_bounds__(256)
adam(float* p, const float* g, float* m, float* v, const float* hyper, unsigned n) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= n) return;
    float blend1 = hyper[0], blend2 = hyper[1], rate = hyper[2], correction = hyper[3];
    float eps = hyper[4], decay = hyper[5];

    float gi = g[i];
    float mi = m[i] + blend1 * (gi - m[i]);
    float vi = v[i] + blend2 * (gi * gi - v[i]);
    m[i] = mi;
    v[i] = vi;
    p[i] = p[i] * decay - rate * mi / (sqrtf(vi * correction) + eps);
}
