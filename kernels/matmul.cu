// After gemm.cu: a batch of matrix products.
//
//     out[m,n] = act(Σ_k a[m,k] · b[k,n] + bias[n / INNER])
//
// Layout     row-major matrices; those of item i start at a + i · a_step and b + i · b_step.
// Launch     see gemm.cu.
// Defines    those of gemm.cu; TRANS_A (1: a is stored (k,m)), TRANS_B (1: b is stored (n,k));
//            A_WIDTH (4: rows of (m,k) are whole float4, else 1), B_WIDTH (likewise of (k,n));
//            INNER (columns that share an element of the bias).

#ifndef TRANS_A
#define TRANS_A 0
#define TRANS_B 0
#define A_WIDTH 1
#define B_WIDTH 1
#define INNER 1
#endif

struct Rows {
    const float* data;
    unsigned m, k;
    static constexpr int WIDTH = ALIGNED && !TRANS_A ? A_WIDTH : 1;
    static constexpr int LANES = TRANS_A ? TRANSPOSING : BK / WIDTH, PAD = TRANS_A || TF32 ? 4 : 0;

    __device__ Element at(unsigned i, Depth depth) const {
        unsigned d = depth.all();
        return {data + (TRANS_A ? d * m + i : i * k + d), i < m && d < k};
    }
};

struct Columns {
    const float* data;
    unsigned n, k;
    static constexpr int WIDTH = ALIGNED && !TRANS_B ? B_WIDTH : 1;
    static constexpr int LANES = TRANS_B ? 4 : least(32, BN / WIDTH), PAD = TRANS_B ? 4 : 8;

    __device__ Element at(unsigned j, Depth depth) const {
        unsigned d = depth.all();
        return {data + (TRANS_B ? j * k + d : d * n + j), j < n && d < k};
    }
};

struct Output {
    float* data;
    const float* bias;
    unsigned m, n;

    __device__ void put(unsigned i, unsigned j, float v) const {
        if (i < m && j < n) data[i * n + j] = finish(v, bias, j / INNER);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS<Rows>)
matmul(const float* a, const float* b, const float* bias, float* out, unsigned m, unsigned n,
       unsigned k, unsigned a_step, unsigned b_step, unsigned splits, unsigned split_steps) {
    int batch = gridDim.z / splits, item = blockIdx.z / splits, rows = m, cols = n, depth = k;
    float* to = split_slice(out, splits, batch * rows * cols) + item * rows * cols;
    product(Rows{a + item * a_step, rows, depth}, Columns{b + item * b_step, cols, depth},
            Output{to, bias, rows, cols}, Steps(depth, splits, split_steps));
}
