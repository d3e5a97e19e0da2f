// Kernels a channel at a time: bias + activation and batch normalisation, forward and backward, and
// the gradients of batch normalisation's gradient.
//
// Layout     x, y, g (batch, C, INNER), contiguous, INNER = H·W; bias, weight, mean, rstd (C).
// Reduction  A channel's M = batch · INNER elements are cut into slices of SLICE. Block (s, c)
//            holds slice s of channel c in registers, reduces it, and leaves one partial result at
//            partials[s·C + c]. The kernel that follows adds the partials, each block for itself
//            and in the same order: no atomics, no third launch. A channel that is one slice needs
//            no second kernel: batch_norm and batch_norm_backward keep it in registers.
// Threads    Thread t of a block holds elements t, t + THREADS, ... of its slice: coalesced if
//            INNER ≥ 8; with INNER = 1 (linear layers, small) a warp reads 32 sectors.
// Launch     grid (⌈M / SLICE⌉, C), block THREADS; bias_act: grid ⌈x.size / THREADS⌉.
// Rung       Bandwidth-bound: a channel of one slice is read and written once; of several, the two
//            forward kernels read x twice, the two backward ones g, x and y twice.
// Defines    C INNER, THREADS (256, 512 or 1024), and as needed BIAS and WEIGHT (1: the array is
//            there, 0: it is not read), ACT(x), ACT_GRAD(y): act'(x) from y = act(x), and GX (0: of
//            bias_act_backward gbias alone is wanted).

#ifndef C
#define C 3
#define INNER 64
#endif
#ifndef BIAS
#define BIAS 1
#endif
#ifndef WEIGHT
#define WEIGHT 1
#endif
#ifndef ACT
#define ACT(x) (x)
#define ACT_GRAD(y) (1.0f)
#endif
#ifndef GX
#define GX 1
#endif
#ifndef THREADS
#define THREADS 256
#endif

typedef long long i64;

constexpr unsigned PER_THREAD = 16;
constexpr unsigned SLICE = THREADS * PER_THREAD;

// Offset in x of element e of channel c.
__device__ __forceinline__ unsigned offset(unsigned e, unsigned c) {
    return (e / INNER * C + c) * INNER + e % INNER;
}

// Element `i` of this thread in this block's slice.
__device__ __forceinline__ unsigned element(unsigned i) {
    return blockIdx.x * SLICE + i * THREADS + threadIdx.x;
}

// Elements in slice s.
__device__ __forceinline__ float slice_count(unsigned s, unsigned m) {
    return static_cast<float>(min(SLICE, m - s * SLICE));
}

// The sum of v over the block, in every thread.
__device__ float block_sum(float v) {
    __shared__ float warp_sums[THREADS / 32];
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffff, v, step);
    if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = v;
    __syncthreads();
    v = 0.0f;
    for (unsigned i = 0; i < THREADS / 32; i++) v += warp_sums[i];
    __syncthreads();  // the next call may write warp_sums
    return v;
}

// ---- bias + activation --------------------------------------------------------------------------

// y = act(x + bias[c])
extern "C" __global__ void __launch_bounds__(THREADS)
bias_act(const float* x, const float* bias, float* y, unsigned n) {
    unsigned i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= n) return;
    float v = x[i];
    if (BIAS) v += bias[i / INNER % C];
    y[i] = ACT(v);
}

// gx = g · act'(y), and a slice's share of gbias[c] = Σ gx: all of it if there is one slice
extern "C" __global__ void __launch_bounds__(THREADS)
bias_act_backward(const float* g, const float* y, float* gx, float* partials, unsigned m) {
    unsigned c = blockIdx.y;
    float sum = 0.0f;
    for (unsigned i = 0; i < PER_THREAD; i++) {
        if (element(i) >= m) break;
        unsigned at = offset(element(i), c);
        float v = g[at] * ACT_GRAD(y[at]);
        if (GX) gx[at] = v;
        sum += v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x * C + c] = sum;
}

// ---- batch norm ---------------------------------------------------------------------------------

// A slice's mean, and its sum of squares about that mean: two passes, one read. Means are taken
// from the channel's first element, lest their differences drown where the mean is large.
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_stats(const float* x, float* partial_mean, float* partial_squares, unsigned m) {
    unsigned c = blockIdx.y;
    float v[PER_THREAD], origin = x[offset(0, c)];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < PER_THREAD; i++) {
        v[i] = element(i) < m ? x[offset(element(i), c)] - origin : 0.0f;
        sum += v[i];
    }
    float mean = block_sum(sum) / slice_count(blockIdx.x, m);
#pragma unroll
    for (unsigned i = 0; i < PER_THREAD; i++)
        squares += element(i) < m ? (v[i] - mean) * (v[i] - mean) : 0.0f;
    squares = block_sum(squares);
    if (threadIdx.x == 0) {
        partial_mean[blockIdx.x * C + c] = mean;
        partial_squares[blockIdx.x * C + c] = squares;
    }
}

// mean = Σ_s count_s · mean_s / m,   var = Σ_s (squares_s + count_s · (mean_s - mean)²) / m
// (Chan, Golub & LeVeque 1983), from the same origin;   y = act(weight · (x - mean) · rstd + bias)
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_apply(const float* x, const float* weight, const float* bias, const float* partial_mean,
                 const float* partial_squares, float* y, float* mean, float* rstd, unsigned m,
                 float eps) {
    unsigned c = blockIdx.y;
    float sum = 0.0f, squares = 0.0f;
    for (unsigned s = threadIdx.x; s < gridDim.x; s += THREADS)
        sum += slice_count(s, m) * partial_mean[s * C + c];
    float from_origin = block_sum(sum) / m, mu = x[offset(0, c)] + from_origin;
    for (unsigned s = threadIdx.x; s < gridDim.x; s += THREADS) {
        float shift = partial_mean[s * C + c] - from_origin;
        squares += partial_squares[s * C + c] + slice_count(s, m) * shift * shift;
    }
    float r = 1.0f / sqrtf(block_sum(squares) / m + eps);

    float scale = WEIGHT ? weight[c] : 1.0f, shift = BIAS ? bias[c] : 0.0f;
    for (unsigned i = 0; i < PER_THREAD; i++) {
        if (element(i) >= m) break;
        unsigned at = offset(element(i), c);
        float v = (x[at] - mu) * r * scale + shift;
        y[at] = ACT(v);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        mean[c] = mu;
        rstd[c] = r;
    }
}

// Both in one, for a channel of one slice.
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm(const float* x, const float* weight, const float* bias, float* y, float* mean,
           float* rstd, unsigned m, float eps) {
    unsigned c = blockIdx.y;
    float v[PER_THREAD], origin = x[offset(0, c)];
    float sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < PER_THREAD; i++) {
        v[i] = element(i) < m ? x[offset(element(i), c)] - origin : 0.0f;
        sum += v[i];
    }
    float from_origin = block_sum(sum) / m;
#pragma unroll
    for (unsigned i = 0; i < PER_THREAD; i++) {
        v[i] -= from_origin;
        squares += element(i) < m ? v[i] * v[i] : 0.0f;
    }
    float r = 1.0f / sqrtf(block_sum(squares) / m + eps);

    float scale = WEIGHT ? weight[c] : 1.0f, shift = BIAS ? bias[c] : 0.0f;
#pragma unroll
    for (unsigned i = 0; i < PER_THREAD; i++) {
        float normalised = v[i] * r * scale + shift;
        if (element(i) < m) y[offset(element(i), c)] = ACT(normalised);
    }
    if (threadIdx.x == 0) {
        mean[c] = origin + from_origin;
        rstd[c] = r;
    }
}

// With ga = g · act'(y) and x̂ = (x - mean) · rstd: a slice's share of Σ ga·x̂ and of Σ ga.
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_backward_sums(const float* g, const float* x, const float* y, const float* mean,
                         const float* rstd, float* partial_gweight, float* partial_gbias,
                         unsigned m) {
    unsigned c = blockIdx.y;
    float mu = mean[c], r = rstd[c], gweight = 0.0f, gbias = 0.0f;
    for (unsigned i = 0; i < PER_THREAD; i++) {
        if (element(i) >= m) break;
        unsigned at = offset(element(i), c);
        float ga = g[at] * ACT_GRAD(y[at]);
        gweight += ga * (x[at] - mu) * r;
        gbias += ga;
    }
    gweight = block_sum(gweight);
    gbias = block_sum(gbias);
    if (threadIdx.x == 0) {
        partial_gweight[blockIdx.x * C + c] = gweight;
        partial_gbias[blockIdx.x * C + c] = gbias;
    }
}

// gx = weight · rstd · (ga - gbias/m - x̂ · gweight/m)
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_backward_apply(const float* g, const float* x, const float* y, const float* weight,
                          const float* mean, const float* rstd, const float* partial_gweight,
                          const float* partial_gbias, float* gx, float* gweight, float* gbias,
                          unsigned m) {
    unsigned c = blockIdx.y;
    float sum_gweight = 0.0f, sum_gbias = 0.0f;
    for (unsigned s = threadIdx.x; s < gridDim.x; s += THREADS) {
        sum_gweight += partial_gweight[s * C + c];
        sum_gbias += partial_gbias[s * C + c];
    }
    sum_gweight = block_sum(sum_gweight);
    sum_gbias = block_sum(sum_gbias);

    float mu = mean[c], r = rstd[c], scale = WEIGHT ? weight[c] * r : r;
    float mean_gweight = sum_gweight / m, mean_gbias = sum_gbias / m;
    for (unsigned i = 0; i < PER_THREAD; i++) {
        if (element(i) >= m) break;
        unsigned at = offset(element(i), c);
        float ga = g[at] * ACT_GRAD(y[at]);
        gx[at] = scale * (ga - mean_gbias - (x[at] - mu) * r * mean_gweight);
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) {
        gweight[c] = sum_gweight;
        gbias[c] = sum_gbias;
    }
}

// Both in one, for a channel of one slice.
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_backward(const float* g, const float* x, const float* y, const float* weight,
                    const float* mean, const float* rstd, float* gx, float* gweight, float* gbias,
                    unsigned m) {
    unsigned c = blockIdx.y;
    float mu = mean[c], r = rstd[c], ga[PER_THREAD], xhat[PER_THREAD];
    float sum_gweight = 0.0f, sum_gbias = 0.0f;
#pragma unroll
    for (unsigned i = 0; i < PER_THREAD; i++) {
        bool inside = element(i) < m;
        unsigned at = offset(inside ? element(i) : 0, c);
        ga[i] = inside ? g[at] * ACT_GRAD(y[at]) : 0.0f;
        xhat[i] = (x[at] - mu) * r;
        sum_gweight += ga[i] * xhat[i];
        sum_gbias += ga[i];
    }
    sum_gweight = block_sum(sum_gweight);
    sum_gbias = block_sum(sum_gbias);

    float scale = WEIGHT ? weight[c] * r : r;
    float mean_gweight = sum_gweight / m, mean_gbias = sum_gbias / m;
#pragma unroll
    for (unsigned i = 0; i < PER_THREAD; i++)
        if (element(i) < m)
            gx[offset(element(i), c)] = scale * (ga[i] - mean_gbias - xhat[i] * mean_gweight);
    if (threadIdx.x == 0) {
        gweight[c] = sum_gweight;
        gbias[c] = sum_gbias;
    }
}

// running_mean += blend · (mean - running_mean), and so the variance: that of the batch, unbiased,
// (1/rstd² - eps) · m / (m - 1). blend is the momentum, or 1 / batches if that is below 0. One block.
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_averages(const float* mean, const float* rstd, float* running_mean, float* running_var,
                    i64* batches, float momentum, float eps, unsigned m) {
    i64 count = batches[0] + 1;
    __syncthreads();
    if (threadIdx.x == 0) batches[0] = count;
    float blend = momentum < 0.0f ? 1.0f / count : momentum;
    float unbiased = static_cast<float>(m) / (m - 1);
    for (unsigned c = threadIdx.x; c < C; c += THREADS) {
        float var = (1.0f / (rstd[c] * rstd[c]) - eps) * unbiased;
        running_mean[c] += blend * (mean[c] - running_mean[c]);
        running_var[c] += blend * (var - running_var[c]);
    }
}

// ---- The gradients of batch norm's gradient -----------------------------------------------------

// What reference.py's batch_norm_double_backward needs of a channel: means over it, with u = ggx.
struct Means {
    float u, u_xhat, u_ga;
};

// A slice's sums of u, u·x̂ and u·ga, in every thread.
__device__ Means double_sums(const float* ggx, const float* g, const float* x, const float* y,
                             float mu, float r, unsigned m, unsigned c) {
    Means sum = {0.0f, 0.0f, 0.0f};
    for (unsigned i = 0; i < PER_THREAD; i++) {
        if (element(i) >= m) break;
        unsigned at = offset(element(i), c);
        float u = ggx[at];
        sum.u += u;
        sum.u_xhat += u * ((x[at] - mu) * r);
        sum.u_ga += u * (g[at] * ACT_GRAD(y[at]));
    }
    return {block_sum(sum.u), block_sum(sum.u_xhat), block_sum(sum.u_ga)};
}

// gg = act'(y) · s · (u - E[u] - x̂ · E[u·x̂]),   s = weight · rstd
// gx = -s · rstd · (E[ga·x̂] · (u - E[u]) + E[u·x̂] · (ga - E[ga])
//                   + x̂ · (E[u·ga] - E[u]·E[ga] - 3 · E[u·x̂]·E[ga·x̂]))       of a slice, and
// gw = m · rstd · (E[u·ga] - E[u]·E[ga] - E[u·x̂]·E[ga·x̂])
__device__ void double_apply(const float* ggx, const float* g, const float* x, const float* y,
                             const float* weight, float mu, float r, float e_gax, float e_ga,
                             Means e, float* gg, float* gx, float* gw, unsigned m, unsigned c) {
    float scale = WEIGHT ? weight[c] * r : r;
    float both = e.u_ga - e.u * e_ga, product = e.u_xhat * e_gax;
    for (unsigned i = 0; i < PER_THREAD; i++) {
        if (element(i) >= m) break;
        unsigned at = offset(element(i), c);
        float slope = ACT_GRAD(y[at]), u = ggx[at] - e.u, xhat = (x[at] - mu) * r;
        float ga = g[at] * slope - e_ga;
        gg[at] = slope * scale * (u - xhat * e.u_xhat);
        gx[at] = -scale * r * (e_gax * u + e.u_xhat * ga + xhat * (both - 3.0f * product));
    }
    if (blockIdx.x == 0 && threadIdx.x == 0) gw[c] = m * r * (both - product);
}

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_double_backward_sums(const float* ggx, const float* g, const float* x, const float* y,
                                const float* mean, const float* rstd, float* partials,
                                unsigned m) {
    unsigned c = blockIdx.y, slices = gridDim.x;
    Means sum = double_sums(ggx, g, x, y, mean[c], rstd[c], m, c);
    if (threadIdx.x == 0) {
        float* mine = partials + blockIdx.x * C + c;  // partials (3, slices, C)
        mine[0] = sum.u;
        mine[slices * C] = sum.u_xhat;
        mine[2 * slices * C] = sum.u_ga;
    }
}

extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_double_backward_apply(const float* ggx, const float* g, const float* x, const float* y,
                                 const float* weight, const float* mean, const float* rstd,
                                 const float* gweight, const float* gbias, const float* partials,
                                 float* gg, float* gx, float* gw, unsigned m) {
    unsigned c = blockIdx.y, slices = gridDim.x;
    float sums[3];
    for (unsigned j = 0; j < 3; j++) {
        float sum = 0.0f;
        for (unsigned s = threadIdx.x; s < slices; s += THREADS)
            sum += partials[(j * slices + s) * C + c];
        sums[j] = block_sum(sum) / m;
    }
    double_apply(ggx, g, x, y, weight, mean[c], rstd[c], gweight[c] / m, gbias[c] / m,
                 {sums[0], sums[1], sums[2]}, gg, gx, gw, m, c);
}

// Both in one, for a channel of one slice; its second reading finds it in a cache.
extern "C" __global__ void __launch_bounds__(THREADS)
batch_norm_double_backward(const float* ggx, const float* g, const float* x, const float* y,
                           const float* weight, const float* mean, const float* rstd,
                           const float* gweight, const float* gbias, float* gg, float* gx,
                           float* gw, unsigned m) {
    unsigned c = blockIdx.y;
    Means sum = double_sums(ggx, g, x, y, mean[c], rstd[c], m, c);
    double_apply(ggx, g, x, y, weight, mean[c], rstd[c], gweight[c] / m, gbias[c] / m,
                 {sum.u / m, sum.u_xhat / m, sum.u_ga / m}, gg, gx, gw, m, c);
}
