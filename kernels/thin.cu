// Products with a side of length 1, which would leave a tile of gemm.cu nearly empty: a matrix times
// a vector, and the outer product of two. All bounded by memory, which each reads once.
//
//     out[i,j] = act(Σ_d a(i,d) · b(d,j) + bias[j / inner]),   i < m, j < n, d < k
//
// Layout     a(i,d) = a[i · a_i + d · a_d], b(d,j) = b[d · b_d + j · b_j], out (m,n) row-major.
// Kernels    matmul_dot      a block an output, its threads along d: for a_d = b_d = 1
//            matmul_thread   a thread an output, neighbours along j: for b_j = 1
// Launch     matmul_dot: grid (m · n), block 128. matmul_thread: grid ⌈m · n / 256⌉, block 256.
// Rung       Bandwidth-bound. matmul_dot adds 128 partial sums by shuffles, always in one order.
// Defines    BIAS (1: add bias, 0: it is not read), ACT(x).

#ifndef BIAS
#define BIAS 0
#endif
#ifndef ACT
#define ACT(x) (x)
#endif

constexpr int WARPS = 4;

__device__ __forceinline__ float finish(float v, const float* bias, unsigned i) {
    if (BIAS) v += bias[i];
    return ACT(v);
}

extern "C" __global__ void __launch_bounds__(32 * WARPS)
matmul_dot(const float* a, const float* b, const float* bias, float* out, unsigned n, unsigned k,
           unsigned a_i, unsigned b_j, unsigned inner) {
    __shared__ float sums[WARPS];
    unsigned i = blockIdx.x / n, j = blockIdx.x % n;
    const float *row = a + i * a_i, *column = b + j * b_j;
    float v = 0.0f;
    for (unsigned d = threadIdx.x; d < k; d += 32 * WARPS) v += row[d] * column[d];
#pragma unroll
    for (int step = 16; step > 0; step /= 2) v += __shfl_xor_sync(0xffffffff, v, step);
    if (threadIdx.x % 32 == 0) sums[threadIdx.x / 32] = v;
    __syncthreads();
    if (threadIdx.x > 0) return;
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) v += sums[warp];
    out[blockIdx.x] = finish(v, bias, j / inner);
}

extern "C" __global__ void __launch_bounds__(256)
matmul_thread(const float* a, const float* b, const float* bias, float* out, unsigned m, unsigned n,
              unsigned k, unsigned a_i, unsigned a_d, unsigned b_d, unsigned inner) {
    unsigned e = blockIdx.x * 256 + threadIdx.x;
    if (e >= m * n) return;
    unsigned i = e / n, j = e % n;
    float v = 0.0f;
#pragma unroll 4
    for (unsigned d = 0; d < k; d++) v += a[i * a_i + d * a_d] * b[d * b_d + j];
    out[e] = finish(v, bias, j / inner);
}
