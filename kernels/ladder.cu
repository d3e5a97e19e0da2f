// The ladder to gemm.cu: conv2d four times, each rung one idea faster than the last.
//
//     y[n,k,p,q] = Σ_{c,r,s} x[n, c, p·SH - TOP + r·DH, q·SW - LEFT + s·DW] · w[k,c,r,s]
//
// Layout     x (batch,C,H,W), w (K,C,R,S), y (batch,K,P,Q); contiguous, one group.
//            As a product: rows k, columns npq = (n,p,q), depth crs = (c,r,s).
// Defines    C H W K R S P Q, SH SW (stride), TOP LEFT (pad), DH DW (dilation).
// Rungs      1 conv_naive        an output a thread, every operand from global memory
//            2 conv_tiled        a 16 × 16 tile a block: each operand loaded once for 16 threads
//            3 conv_register     64 × 64 a block, 4 × 4 a thread: each operand in shared memory
//                                read once for 4 multiply-adds
//            4 conv_vectorised   the same, but what a thread owns is contiguous: float4 reads of
//                                shared memory and weights, float4 writes of y
//            Rungs 5 (cp.async) and 6 (TF32 tensor cores) are gemm.cu. README.md has the counts.

#ifndef C
#define C 16
#define H 16
#define W 16
#define K 16
#define R 4
#define S 4
#define P 8
#define Q 8
#define SH 2
#define SW 2
#define TOP 1
#define LEFT 1
#define DH 1
#define DW 1
#endif

constexpr unsigned CRS = C * R * S, PQ = P * Q;

// x under tap crs of output pixel npq; 0 in the padding and past the end.
__device__ __forceinline__ float patch(const float* x, unsigned batch, unsigned crs, unsigned npq) {
    unsigned c = crs / (R * S), r = crs / S % R, s = crs % S;
    unsigned n = npq / PQ, p = npq / Q % P, q = npq % Q;
    unsigned h = p * SH - TOP + r * DH, w = q * SW - LEFT + s * DW;  // above a size: wrapped below 0
    if (crs >= CRS || n >= batch || h >= H || w >= W) return 0.0f;
    return x[((n * C + c) * H + h) * W + w];
}

__device__ __forceinline__ float weight(const float* w, unsigned k, unsigned crs) {
    return k < K && crs < CRS ? w[k * CRS + crs] : 0.0f;
}

__device__ __forceinline__ void store(float* y, unsigned batch, unsigned k, unsigned npq, float v) {
    unsigned n = npq / PQ;
    if (k < K && n < batch) y[(n * K + k) * PQ + npq % PQ] = v;
}

// ---- Rung 1: one thread, one output -------------------------------------------------------------
// Launch     grid (⌈batch·P·Q / 256⌉, K), block 256.
// Each multiply-add waits for two loads. The 32 threads of a warp share w and neighbour in x.

extern "C" __global__ void __launch_bounds__(256)
conv_naive(const float* x, const float* w, float* y, unsigned batch) {
    unsigned npq = blockIdx.x * 256 + threadIdx.x, k = blockIdx.y;
    float acc = 0.0f;
    for (unsigned crs = 0; crs < CRS; crs++) acc += weight(w, k, crs) * patch(x, batch, crs, npq);
    store(y, batch, k, npq, acc);
}

// ---- Rung 2: a tile in shared memory ------------------------------------------------------------
// Launch     grid (⌈batch·P·Q / 16⌉, ⌈K / 16⌉), block 256.
// Global loads fall 16-fold. Now each multiply-add waits for two loads from shared memory.

extern "C" __global__ void __launch_bounds__(256)
conv_tiled(const float* x, const float* w, float* y, unsigned batch) {
    __shared__ float tile_w[16][16 + 1];  // [k][crs]
    __shared__ float tile_x[16][16];      // [crs][npq]
    unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    unsigned k = blockIdx.y * 16 + ty, npq = blockIdx.x * 16 + tx;
    float acc = 0.0f;
    for (unsigned depth = 0; depth < CRS; depth += 16) {
        tile_w[ty][tx] = weight(w, k, depth + tx);
        tile_x[ty][tx] = patch(x, batch, depth + ty, npq);
        __syncthreads();
#pragma unroll
        for (unsigned d = 0; d < 16; d++) acc += tile_w[ty][d] * tile_x[d][tx];
        __syncthreads();  // before the tiles are written over
    }
    store(y, batch, k, npq, acc);
}

// ---- Rung 3: a tile in registers ----------------------------------------------------------------
// Launch     grid (⌈batch·P·Q / 64⌉, ⌈K / 64⌉), block 256.
// A thread owns rows ty, ty + 16, ... and columns tx, tx + 16, ...: 8 loads from shared memory,
// neighbouring threads in neighbouring banks, for 16 multiply-adds.

extern "C" __global__ void __launch_bounds__(256)
conv_register(const float* x, const float* w, float* y, unsigned batch) {
    __shared__ float tile_w[16][64 + 2];  // [crs][k], padded against bank conflicts of its stores
    __shared__ float tile_x[16][64];      // [crs][npq]
    unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    unsigned k0 = blockIdx.y * 64, npq0 = blockIdx.x * 64;
    float acc[4][4] = {};
    for (unsigned depth = 0; depth < CRS; depth += 16) {
#pragma unroll
        for (unsigned e = threadIdx.x; e < 16 * 64; e += 256) {
            tile_w[e % 16][e / 16] = weight(w, k0 + e / 16, depth + e % 16);
            tile_x[e / 64][e % 64] = patch(x, batch, depth + e / 64, npq0 + e % 64);
        }
        __syncthreads();
#pragma unroll
        for (unsigned d = 0; d < 16; d++) {
            float fw[4], fx[4];
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                fw[i] = tile_w[d][ty + 16 * i];
                fx[i] = tile_x[d][tx + 16 * i];
            }
#pragma unroll
            for (unsigned i = 0; i < 4; i++)
#pragma unroll
                for (unsigned j = 0; j < 4; j++) acc[i][j] += fw[i] * fx[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++)
#pragma unroll
        for (unsigned j = 0; j < 4; j++)
            store(y, batch, k0 + ty + 16 * i, npq0 + tx + 16 * j, acc[i][j]);
}

// ---- Rung 4: four floats an instruction ---------------------------------------------------------
// Launch     grid (⌈batch·P·Q / 64⌉, ⌈K / 64⌉), block 256.
// A thread owns rows 4·ty .. 4·ty + 3 and columns 4·tx .. 4·tx + 3: 2 loads from shared memory for 16
// multiply-adds. Weights are read as float4 if CRS, and y is written as float4 if P·Q, is a
// multiple of 4.

__device__ __forceinline__ float4 weight4(const float* w, unsigned k, unsigned crs) {
    if (CRS % 4 != 0)
        return make_float4(weight(w, k, crs), weight(w, k, crs + 1), weight(w, k, crs + 2),
                           weight(w, k, crs + 3));
    if (k >= K || crs >= CRS) return make_float4(0.0f, 0.0f, 0.0f, 0.0f);
    return *reinterpret_cast<const float4*>(w + k * CRS + crs);
}

__device__ __forceinline__ void store4(float* y, unsigned batch, unsigned k, unsigned npq,
                                       float4 v) {
    unsigned n = npq / PQ;
    if (PQ % 4 != 0) {
        store(y, batch, k, npq, v.x), store(y, batch, k, npq + 1, v.y);
        store(y, batch, k, npq + 2, v.z), store(y, batch, k, npq + 3, v.w);
    } else if (k < K && n < batch) {
        *reinterpret_cast<float4*>(y + (n * K + k) * PQ + npq % PQ) = v;
    }
}

extern "C" __global__ void __launch_bounds__(256)
conv_vectorised(const float* x, const float* w, float* y, unsigned batch) {
    __shared__ __align__(16) float tile_w[16][64 + 4];  // [crs][k]
    __shared__ __align__(16) float tile_x[16][64];      // [crs][npq]
    unsigned tx = threadIdx.x % 16, ty = threadIdx.x / 16;
    unsigned k0 = blockIdx.y * 64, npq0 = blockIdx.x * 64;
    unsigned row = threadIdx.x / 4, crs = threadIdx.x % 4 * 4;  // the four weights it loads
    float acc[4][4] = {};
    for (unsigned depth = 0; depth < CRS; depth += 16) {
        float4 four = weight4(w, k0 + row, depth + crs);
        tile_w[crs][row] = four.x;
        tile_w[crs + 1][row] = four.y;
        tile_w[crs + 2][row] = four.z;
        tile_w[crs + 3][row] = four.w;
#pragma unroll
        for (unsigned e = threadIdx.x; e < 16 * 64; e += 256)
            tile_x[e / 64][e % 64] = patch(x, batch, depth + e / 64, npq0 + e % 64);
        __syncthreads();
#pragma unroll
        for (unsigned d = 0; d < 16; d++) {
            float4 fw = *reinterpret_cast<const float4*>(&tile_w[d][4 * ty]);
            float4 fx = *reinterpret_cast<const float4*>(&tile_x[d][4 * tx]);
            float rows[4] = {fw.x, fw.y, fw.z, fw.w}, columns[4] = {fx.x, fx.y, fx.z, fx.w};
#pragma unroll
            for (unsigned i = 0; i < 4; i++)
#pragma unroll
                for (unsigned j = 0; j < 4; j++) acc[i][j] += rows[i] * columns[j];
        }
        __syncthreads();
    }
#pragma unroll
    for (unsigned i = 0; i < 4; i++)
        store4(y, batch, k0 + 4 * ty + i, npq0 + 4 * tx,
               make_float4(acc[i][0], acc[i][1], acc[i][2], acc[i][3]));
}
