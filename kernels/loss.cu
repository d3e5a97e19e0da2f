// Binary cross-entropy of logits with a target t for all of them, and its gradient:
//
//     bce(x, t) = 1/n Σ_i  max(x_i, 0) - t·x_i + ln(1 + e^-|x_i|)   (= -t ln σ(x) - (1-t) ln(1 - σ(x)))
//     gx_i      = (σ(x_i) - t) / n
//
// of one vector, and for a discriminator of two, loss = bce(real, t) + bce(fake, 0); the figures of a
// discriminator's logits that a training logs; and the gradient penalty's sum of squares:
//
//     figures = {mean σ(real), mean σ(fake), share of real > 0, of fake < 0, mean real, mean fake}
//     squares   y = scale · Σ x_i²,   gx_i = 2 · scale · x_i
//
// Layout     x, gx (n), loss (1);  real (n_real), fake (n_fake), their gradients behind each other in
//            gx (n_real + n_fake), figures (6); of squares, a block's share of y in y (blocks).
// Threads    One block: a batch of logits is a few hundred floats, and one launch is what counts. A
//            thread takes every 256th, and the block's sum is taken in a fixed order.
// Launch     grid 1, block 256; squares, of images: grid ⌈n / 4096⌉.
// Rung       Bound by the launch; squares by bandwidth.

constexpr unsigned THREADS = 256;

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

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// bce(x, t), in every thread, and its gradient.
// σ(x) - t is taken as (1-t)·σ(x) - t·σ(-x): small values keep their digits.
__device__ float bce(const float* x, float* gx, unsigned n, float t) {
    float sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n; i += THREADS) {
        float v = x[i], e = expf(-fabsf(v)), large = 1.0f / (1.0f + e), small = e * large;
        sum += (fmaxf(v, 0.0f) - t * v) + log1pf(e);
        gx[i] = ((1.0f - t) * (v > 0.0f ? large : small) - t * (v > 0.0f ? small : large)) / n;
    }
    return block_sum(sum) / n;
}

extern "C" __global__ void __launch_bounds__(THREADS)
bce_with_logits(const float* x, float* loss, float* gx, unsigned n, float t) {
    float mean = bce(x, gx, n, t);
    if (threadIdx.x == 0) loss[0] = mean;
}

extern "C" __global__ void __launch_bounds__(THREADS)
logistic_d(const float* real, const float* fake, float* loss, float* gx, unsigned n_real,
           unsigned n_fake, float t) {
    float sum = bce(real, gx, n_real, t) + bce(fake, gx + n_real, n_fake, 0.0f);
    if (threadIdx.x == 0) loss[0] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
logit_figures(const float* real, const float* fake, float* figures, unsigned n_real,
              unsigned n_fake) {
    float sigma = 0.0f, right = 0.0f, sum = 0.0f;
    for (unsigned i = threadIdx.x; i < n_real; i += THREADS) {
        sigma += sigmoid(real[i]);
        right += real[i] > 0.0f ? 1.0f : 0.0f;
        sum += real[i];
    }
    float sigma_fake = 0.0f, right_fake = 0.0f, sum_fake = 0.0f;
    for (unsigned i = threadIdx.x; i < n_fake; i += THREADS) {
        sigma_fake += sigmoid(fake[i]);
        right_fake += fake[i] < 0.0f ? 1.0f : 0.0f;
        sum_fake += fake[i];
    }
    float sums[6] = {block_sum(sigma) / n_real, block_sum(sigma_fake) / n_fake,
                     block_sum(right) / n_real, block_sum(right_fake) / n_fake,
                     block_sum(sum) / n_real,   block_sum(sum_fake) / n_fake};
    if (threadIdx.x == 0)
        for (int i = 0; i < 6; i++) figures[i] = sums[i];
}

extern "C" __global__ void __launch_bounds__(THREADS)
squares(const float* x, float* y, float* gx, unsigned n, float scale) {
    float sum = 0.0f;
    for (unsigned k = 0; k < 16; k++) {
        unsigned i = blockIdx.x * 4096 + k * THREADS + threadIdx.x;
        if (i >= n) break;
        float v = x[i];
        sum += v * v;
        gx[i] = 2.0f * scale * v;
    }
    sum = block_sum(sum);
    if (threadIdx.x == 0) y[blockIdx.x] = scale * sum;
}
