// The matrix product, and the three convolutions that are one: tiled implicit GEMM in float32.
//
//     out[i,j] = Σ_d  a(i,d) · b(d,j)
//
//                       rows i      columns j      depth d        a              b
//     matmul            m           n              k              a[m,k]         b[k,n]
//     conv2d            k           (n,p,q)        (c,r,s)        w[k,c,r,s]     x[n,c,h,w]
//     conv2d_wgrad      k           (c,r,s)        (n,p,q)        g[n,k,p,q]     x[n,c,h,w]
//     conv2d_dgrad      c           (n,i,j)        (k,t,u)        w[k,c,r,s]     g[n,k,p,q]
//
// No im2col matrix exists in memory: an "operand" below says where element (index, depth) of its
// matrix lies, or that it lies in the padding, and the main loop copies it straight into shared
// memory. conv2d_dgrad treats the stride² residues (h mod SH, w mod SW) apart: pixels of one
// residue, a "phase", meet the same taps, so that no multiplication by an inserted zero is done.
//
// Layout     NCHW activations, KCRS weights, row-major matrices; all contiguous.
// Launch     grid (⌈columns/BN⌉, ⌈rows/BM⌉, items · splits), block (BM/TM · BN/TN).
//            Items are products side by side: matrices of a batch, or phases · GROUPS.
//            The depth goes by steps of BK; split s sums steps [s, s+1) · split_steps into its own
//            slice out + s · size, and reduce_slices adds the slices in order. No atomics.
// Threads    A warp is 4 × 8 threads, each with TM × TN outputs in groups of 4 neighbouring columns.
// Rung       5 of README.md: cp.async into two buffers, one barrier a tile. Below sm_80, the same
//            loop with plain loads and stores. -DTF32=1 is rung 6: the same tiles multiplied by
//            mma.sync with operands rounded to TF32 (10 bits of mantissa), sm_80 and later.
// Defines    one of MATMUL, CONV2D, CONV2D_DGRAD, CONV2D_WGRAD (1: compile this kernel; if none is
//            defined, conv2d); the tile BM BN BK TM TN; for the convolutions
//            C H W K R S P Q, SH SW (stride), TOP LEFT (pad), DH DW (dilation), GROUPS.
//            All indices fit in 32 bits: the launcher refuses larger arrays.
// Epilogue   BIAS (1: add bias[k] to conv2d, bias[c] to conv2d_dgrad, bias[n] to matmul, 0: it is not
//            read) and ACT(x), an activation. With splits they are left to reduce_slices.

#ifndef BM
#define BM 64
#define BN 64
#define BK 16
#define TM 4
#define TN 4
#endif

#ifndef TF32
#define TF32 0
#endif
#ifndef BIAS
#define BIAS 0
#endif
#ifndef ACT
#define ACT(x) (x)
#endif
#if TF32 && __CUDA_ARCH__ < 800
#error "TF32 needs compute capability 8.0"
#endif

#if !defined(MATMUL) && !defined(CONV2D) && !defined(CONV2D_DGRAD) && !defined(CONV2D_WGRAD)
#define CONV2D 1
#endif

#if !defined(MATMUL) && !defined(C)
#define C 64
#define H 16
#define W 16
#define K 128
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
#define GROUPS 1
#endif

constexpr int THREADS = (BM / TM) * (BN / TN);
constexpr int VM = TM < 4 ? TM : 4;             // rows of a thread that are neighbours
constexpr int PAD = TF32 ? 8 : TM < 4 ? 1 : 4;  // staggers the banks of a column of the tile
constexpr int COL_THREADS = BN / TN;
#if TF32 || defined(CONV2D_WGRAD)
constexpr int MIN_BLOCKS = 1;  // a multiprocessor: these need up to 226 registers,
#else
constexpr int MIN_BLOCKS = 2;  // the others at most the 128 that 2 × 256 threads leave
#endif

struct Element {
    unsigned offset;
    bool inside;  // false: in the padding or past the end; a zero
};

// ---- The main loop ------------------------------------------------------------------------------

// *shared = data[e.offset], or 0 outside; visible after wait_for_copies() and a barrier.
__device__ __forceinline__ void copy(float* shared, const float* data, Element e) {
#if __CUDA_ARCH__ >= 800
    unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(shared));
    int bytes = e.inside ? 4 : 0;  // those read; the rest of the 4 is filled with zeros
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(to), "l"(data + e.offset),
                 "r"(bytes)
                 : "memory");
#else
    *shared = e.inside ? data[e.offset] : 0.0f;
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// tile[d][o] = operand(first + o, step · BK + d). Neighbouring threads read along the index that is
// contiguous in memory.
template <int EXTENT, class Operand>
__device__ __forceinline__ void stage(float (*tile)[EXTENT + PAD], const Operand& operand,
                                      unsigned first, unsigned step) {
    constexpr unsigned INNER = Operand::DEPTH_IS_CONTIGUOUS ? BK : EXTENT;
    unsigned thread = threadIdx.x % THREADS;  // which it is; now the compiler knows its bits
#pragma unroll
    for (unsigned i = 0; i < EXTENT * BK; i += THREADS) {
        unsigned inner = thread % INNER + i % INNER, outer = thread / INNER + i / INNER;
        unsigned d = Operand::DEPTH_IS_CONTIGUOUS ? inner : outer;
        unsigned o = Operand::DEPTH_IS_CONTIGUOUS ? outer : inner;
        copy(&tile[d][o], operand.data, operand.at(first + o, step * BK + d));
    }
}

__device__ __forceinline__ unsigned to_tf32(float v) {
    unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
#endif
    return bits;
}

// c (16,8) += a (16,8) · b (8,8), by one warp.
__device__ __forceinline__ void mma(float* c, unsigned a0, unsigned a1, unsigned a2, unsigned a3,
                                    unsigned b0, unsigned b1) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
#endif
}

// Row and column in the tile of acc[i][j], for 4 neighbouring j from a multiple of 4.
//
// float32: a thread's groups lie far apart, so that 8 threads read 8 neighbouring float4.
// TF32: a warp covers 4·TM × 8·TN outputs by mma tiles of 16 × 8; group (i, j) is one of them.
__device__ __forceinline__ int thread_row(int i) {
    int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 / (COL_THREADS / 8);
    if (TF32) return warp_row * 4 * TM + i / 4 * 16 + lane / 4 + lane % 2 * 8;
    return i / VM * (BM / (TM / VM)) + (warp_row * 4 + lane / 8) * VM + i % VM;
}

__device__ __forceinline__ int thread_col(int i, int j) {
    int lane = threadIdx.x % 32, warp_col = threadIdx.x / 32 % (COL_THREADS / 8);
    if (TF32) return (warp_col * TN + i % 4 * (TN / 4) + j / 4) * 8 + lane % 4 / 2 * 4;
    return j / 4 * (BN / (TN / 4)) + (warp_col * 8 + lane % 8) * 4 + j % 4;
}

// acc += the product of two tiles, in float32: TM + TN reads of shared memory, as float4, for
// TM · TN multiply-adds.
__device__ __forceinline__ void multiply_tiles(float (&acc)[TM][TN], const float (*a)[BM + PAD],
                                               const float (*b)[BN + PAD]) {
#pragma unroll
    for (int d = 0; d < BK; d++) {
        float fa[TM], fb[TN];
#pragma unroll
        for (int i = 0; i < TM; i++) fa[i] = a[d][thread_row(i)];
#pragma unroll
        for (int j = 0; j < TN; j++) fb[j] = b[d][thread_col(0, j)];
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) acc[i][j] += fa[i] * fb[j];
    }
}

// This block's share of ⌈depth/BK⌉ steps: the splits are innermost in blockIdx.z.
struct Steps {
    unsigned begin, end;

    __device__ Steps(unsigned depth, unsigned splits, unsigned split_steps) {
        begin = blockIdx.z % splits * split_steps;
        end = min(begin + split_steps, (depth + BK - 1) / BK);
    }
};

// ---- Rung 6: the same product on tensor cores ---------------------------------------------------

// acc += the product of two tiles, by mma m16n8k8. In its layout lane l holds, with g = l / 4 and
// t = l % 4, a(g, t), a(g+8, t), a(g, t+4), a(g+8, t+4), b(t, g), b(t+4, g), and of the result
// c(g, 2t), c(g, 2t+1), c(g+8, 2t), c(g+8, 2t+1): four neighbours in acc.
__device__ __forceinline__ void multiply_tiles_tf32(float (&acc)[TM][TN],
                                                    const float (*a)[BM + PAD],
                                                    const float (*b)[BN + PAD]) {
    int lane = threadIdx.x % 32, warp = threadIdx.x / 32, g = lane / 4, t = lane % 4;
    int row = warp / (COL_THREADS / 8) * 4 * TM + g, col = warp % (COL_THREADS / 8) * 8 * TN + g;
#pragma unroll
    for (int d = 0; d < BK; d += 8) {
#pragma unroll
        for (int i = 0; i < TM; i += 4) {
            unsigned a0 = to_tf32(a[d + t][row + i / 4 * 16]);
            unsigned a1 = to_tf32(a[d + t][row + i / 4 * 16 + 8]);
            unsigned a2 = to_tf32(a[d + t + 4][row + i / 4 * 16]);
            unsigned a3 = to_tf32(a[d + t + 4][row + i / 4 * 16 + 8]);
#pragma unroll
            for (int n = 0; n < TN; n++) {
                float* c = &acc[i + n / (TN / 4)][n % (TN / 4) * 4];
                unsigned b0 = to_tf32(b[d + t][col + n * 8]);
                unsigned b1 = to_tf32(b[d + t + 4][col + n * 8]);
                mma(c, a0, a1, a2, a3, b0, b1);
            }
        }
    }
}

// Even and odd lanes trade halves, so that each holds 4 neighbouring columns of one row, to be
// stored as in float32: even lanes row g, odd ones row g + 8.
__device__ __forceinline__ void gather_columns(float (&acc)[TM][TN]) {
    bool odd = threadIdx.x % 2 == 1;
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j += 4) {
            float* c = &acc[i][j];
            float first = __shfl_xor_sync(0xffffffff, odd ? c[0] : c[2], 1);
            float second = __shfl_xor_sync(0xffffffff, odd ? c[1] : c[3], 1);
            if (odd) {
                c[0] = first;
                c[1] = second;
            } else {
                c[2] = first;
                c[3] = second;
            }
        }
}

// ---- The loop over the depth --------------------------------------------------------------------

// acc[i][j] += Σ_d a(row0 + thread_row(i), d) · b(col0 + thread_col(j), d) over `steps` tiles of d.
template <class A, class B>
__device__ __forceinline__ void multiply(float (&acc)[TM][TN], const A& a, const B& b,
                                         Steps steps) {
    __shared__ __align__(16) float tile_a[2][BK][BM + PAD];
    __shared__ __align__(16) float tile_b[2][BK][BN + PAD];
    unsigned row0 = blockIdx.y * BM, col0 = blockIdx.x * BN;

    stage<BM>(tile_a[0], a, row0, steps.begin);
    stage<BN>(tile_b[0], b, col0, steps.begin);
    int now = 0;
    for (unsigned step = steps.begin; step < steps.end; step++, now ^= 1) {
        wait_for_copies();
        __syncthreads();  // tiles `now` are complete, and nobody reads the other pair any more
        if (step + 1 < steps.end) {
            stage<BM>(tile_a[now ^ 1], a, row0, step + 1);
            stage<BN>(tile_b[now ^ 1], b, col0, step + 1);
        }
        if (TF32)
            multiply_tiles_tf32(acc, tile_a[now], tile_b[now]);
        else
            multiply_tiles(acc, tile_a[now], tile_b[now]);
    }
    if (TF32) gather_columns(acc);
}

// Hands each row's groups of 4 neighbouring columns to out.store(row, column, four values).
template <class Out>
__device__ __forceinline__ void store(const float (&acc)[TM][TN], const Out& out) {
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j += 4) {
            float4 v = make_float4(acc[i][j], acc[i][j + 1], acc[i][j + 2], acc[i][j + 3]);
            out.store(blockIdx.y * BM + thread_row(i), blockIdx.x * BN + thread_col(i, j), v);
        }
}

// What becomes of the sum v of row or column i, to which bias[i] belongs.
__device__ __forceinline__ float finish(float v, const float* bias, unsigned i) {
    if (BIAS) v += bias[i];
    return ACT(v);
}

__device__ __forceinline__ float4 finish(float4 v, const float* bias, unsigned i) {
    return make_float4(finish(v.x, bias, i), finish(v.y, bias, i), finish(v.z, bias, i),
                       finish(v.w, bias, i));
}

__device__ __forceinline__ float* split_slice(float* out, unsigned splits, int out_size) {
    return out + static_cast<long long>(blockIdx.z % splits) * out_size;
}

// ---- out[m,n] = act(Σ_k a[m,k] · b[k,n] + bias[n]) ----------------------------------------------
//
// A batch of them: the matrices of item i start at a + i · a_step and b + i · b_step.
// -DTRANS_A=1: a is stored (k,m).  -DTRANS_B=1: b is stored (n,k).
// -DALIGNED=1: n is a multiple of 4, a row's groups of 4 are stored as float4.

#ifdef MATMUL
#ifndef TRANS_A
#define TRANS_A 0
#define TRANS_B 0
#define ALIGNED 0
#endif

template <bool CONTIGUOUS>
struct Matrix {
    const float* data;
    unsigned extent, depth;
    static constexpr bool DEPTH_IS_CONTIGUOUS = CONTIGUOUS;

    __device__ Element at(unsigned o, unsigned d) const {
        unsigned offset = CONTIGUOUS ? o * depth + d : d * extent + o;
        return {offset, o < extent && d < depth};
    }
};

struct MatrixOut {
    float* data;
    const float* bias;
    unsigned m, n;

    __device__ float finished(float v, unsigned col) const { return finish(v, bias, col); }

    __device__ void store(unsigned row, unsigned col, float4 v) const {
        if (row >= m) return;
        float* to = data + row * n + col;
        if (ALIGNED) {
            if (col >= n) return;
            *reinterpret_cast<float4*>(to) =
                make_float4(finished(v.x, col), finished(v.y, col + 1), finished(v.z, col + 2),
                            finished(v.w, col + 3));
        } else {
            if (col < n) to[0] = finished(v.x, col);
            if (col + 1 < n) to[1] = finished(v.y, col + 1);
            if (col + 2 < n) to[2] = finished(v.z, col + 2);
            if (col + 3 < n) to[3] = finished(v.w, col + 3);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
matmul(const float* a, const float* b, const float* bias, float* out, unsigned m, unsigned n,
       unsigned k, unsigned a_step, unsigned b_step, unsigned splits, unsigned split_steps) {
    unsigned batch = gridDim.z / splits, item = blockIdx.z / splits;
    Matrix<!TRANS_A> rows{a + item * a_step, m, k};
    Matrix<TRANS_B> cols{b + item * b_step, n, k};
    float acc[TM][TN] = {};
    multiply(acc, rows, cols, Steps(k, splits, split_steps));
    float* slice = split_slice(out, splits, batch * m * n);
    store(acc, MatrixOut{slice + item * m * n, bias, m, n});
}
#endif  // MATMUL

// ---- The convolutions ---------------------------------------------------------------------------

#ifndef MATMUL
constexpr unsigned CG = C / GROUPS, KG = K / GROUPS;  // channels of one group

// Whether a depth lies past the end; the steps end there if it is a multiple of BK.
template <unsigned DEPTH>
__device__ __forceinline__ bool past(unsigned d) {
    return DEPTH % BK != 0 && d >= DEPTH;
}

#if defined(CONV2D) || defined(CONV2D_WGRAD)
constexpr unsigned CRS = CG * R * S, PQ = P * Q;

// x (batch,C,H,W) at channel-and-tap crs of this group, under output pixel npq.
template <bool DEPTH_IS_CRS>
__device__ __forceinline__ Element patch(unsigned group, unsigned batch, unsigned crs, unsigned npq) {
    unsigned c = crs / (R * S), r = crs / S % R, s = crs % S;
    unsigned n = npq / PQ, p = npq / Q % P, q = npq % Q;
    unsigned h = p * SH - TOP + r * DH, w = q * SW - LEFT + s * DW;  // above a size: wrapped below 0
    bool crs_inside = DEPTH_IS_CRS ? !past<CRS>(crs) : crs < CRS;
    return {((n * C + group * CG + c) * H + h) * W + w,
            crs_inside && n < batch && h < H && w < W};
}
#endif
#endif  // MATMUL

// ---- conv2d: y[n,k,p,q] = Σ_crs w[k,crs] · x[n, c, p·SH - TOP + r·DH, q·SW - LEFT + s·DW] ----------

#ifdef CONV2D
struct Weights {
    const float* data;
    unsigned group;
    static constexpr bool DEPTH_IS_CONTIGUOUS = true;

    __device__ Element at(unsigned k, unsigned crs) const {
        return {(group * KG + k) * CRS + crs, k < KG && !past<CRS>(crs)};
    }
};

struct Patches {
    const float* data;
    unsigned group, batch;
    static constexpr bool DEPTH_IS_CONTIGUOUS = false;

    __device__ Element at(unsigned npq, unsigned crs) const { return patch<true>(group, batch, crs, npq); }
};

struct Output {
    float* data;
    const float* bias;
    unsigned group, batch;

    __device__ void put(unsigned k, unsigned npq, float v) const {
        unsigned n = npq / PQ, channel = group * KG + k;
        if (k < KG && n < batch) data[(n * K + channel) * PQ + npq % PQ] = finish(v, bias, channel);
    }

    __device__ void store(unsigned k, unsigned npq, float4 v) const {
        unsigned n = npq / PQ, channel = group * KG + k;
        if (PQ % 4 == 0) {
            float* to = data + (n * K + channel) * PQ + npq % PQ;
            if (k < KG && n < batch) *reinterpret_cast<float4*>(to) = finish(v, bias, channel);
        } else {
            put(k, npq, v.x), put(k, npq + 1, v.y), put(k, npq + 2, v.z), put(k, npq + 3, v.w);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
conv2d(const float* x, const float* w, const float* bias, float* y, unsigned batch, unsigned splits,
       unsigned split_steps) {
    unsigned group = blockIdx.z / splits;
    float acc[TM][TN] = {};
    multiply(acc, Weights{w, group}, Patches{x, group, batch}, Steps(CRS, splits, split_steps));
    store(acc, Output{split_slice(y, splits, batch * K * PQ), bias, group, batch});
}
#endif  // CONV2D

// ---- conv2d_wgrad: gw[k,crs] = Σ_npq g[n,k,p,q] · x[n, c, p·SH - TOP + r·DH, ...] ------------------

#ifdef CONV2D_WGRAD
struct Gradients {
    const float* data;
    unsigned group, batch;
    static constexpr bool DEPTH_IS_CONTIGUOUS = true;

    __device__ Element at(unsigned k, unsigned npq) const {
        unsigned n = npq / PQ;
        return {(n * K + group * KG + k) * PQ + npq % PQ, k < KG && n < batch};
    }
};

struct Patches {
    const float* data;
    unsigned group, batch;
    static constexpr bool DEPTH_IS_CONTIGUOUS = true;

    __device__ Element at(unsigned crs, unsigned npq) const { return patch<false>(group, batch, crs, npq); }
};

struct Output {
    float* data;
    unsigned group;

    __device__ void put(unsigned k, unsigned crs, float v) const {
        if (k < KG && crs < CRS) data[(group * KG + k) * CRS + crs] = v;
    }

    __device__ void store(unsigned k, unsigned crs, float4 v) const {
        if (CRS % 4 == 0) {
            float* to = data + (group * KG + k) * CRS + crs;
            if (k < KG && crs < CRS) *reinterpret_cast<float4*>(to) = v;
        } else {
            put(k, crs, v.x), put(k, crs + 1, v.y), put(k, crs + 2, v.z), put(k, crs + 3, v.w);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
conv2d_wgrad(const float* x, const float* g, float* gw, unsigned batch, unsigned splits,
       unsigned split_steps) {
    unsigned group = blockIdx.z / splits;
    float acc[TM][TN] = {};
    multiply(acc, Gradients{g, group, batch}, Patches{x, group, batch},
             Steps(batch * PQ, splits, split_steps));
    store(acc, Output{split_slice(gw, splits, K * CRS), group});
}
#endif  // CONV2D_WGRAD

// ---- conv2d_dgrad: gx[n,c,h,w] = Σ_{k,r,s} g[n,k,p,q] · w[k,c,r,s],  h = p·SH - TOP + r·DH --------
//
// Phase (a,b) holds the pixels h = a + SH·i, w = b + SW·j. A tap r meets it if r·DH ≡ a + TOP
// (mod SH): the first such tap is r0, the next ones are T_STEP apart, r = r0 + T_STEP·t, and
// p = i + p0 - P_STEP·t with p0 = (a + TOP - r0·DH) / SH. Likewise s, q, j, u.

#ifdef CONV2D_DGRAD
__device__ constexpr int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }
__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

constexpr unsigned T_STEP = SH / gcd(SH, DH), U_STEP = SW / gcd(SW, DW);
constexpr unsigned P_STEP = T_STEP * DH / SH, Q_STEP = U_STEP * DW / SW;
constexpr unsigned T = ceil_div(R, T_STEP), U = ceil_div(S, U_STEP);  // taps of a phase, at most
constexpr unsigned I = ceil_div(H, SH), J = ceil_div(W, SW);          // pixels of a phase, at most
constexpr unsigned KTU = KG * T * U;

// One axis of a phase: its residue, its first tap, and where that tap of pixel 0 reads.
struct Axis {
    int residue, first_tap, first_out;

    // No tap below `step` meets the phase: first_tap = taps, past the end.
    __device__ Axis(int residue, int pad, int stride, int dilation, int step, int taps)
        : residue(residue), first_tap(taps), first_out(0) {
        for (int r = step - 1; r >= 0; r--)
            if ((residue + pad - r * dilation) % stride == 0) {
                first_tap = r;
                first_out = (residue + pad - r * dilation) / stride;
            }
    }
};

struct Weights {
    const float* data;
    unsigned group;
    Axis vertical, horizontal;
    static constexpr bool DEPTH_IS_CONTIGUOUS = R * S > 1;  // nearly: the taps of a phase

    __device__ Element at(unsigned c, unsigned ktu) const {
        unsigned k = ktu / (T * U), t = ktu / U % T, u = ktu % U;
        unsigned r = vertical.first_tap + T_STEP * t, s = horizontal.first_tap + U_STEP * u;
        return {(((group * KG + k) * CG + c) * R + r) * S + s,
                c < CG && !past<KTU>(ktu) && r < R && s < S};
    }
};

struct Gradients {
    const float* data;
    unsigned group, batch;
    Axis vertical, horizontal;
    static constexpr bool DEPTH_IS_CONTIGUOUS = false;

    __device__ Element at(unsigned nij, unsigned ktu) const {
        unsigned k = ktu / (T * U), t = ktu / U % T, u = ktu % U;
        unsigned n = nij / (I * J), i = nij / J % I, j = nij % J;
        unsigned p = i + vertical.first_out - P_STEP * t;
        unsigned q = j + horizontal.first_out - Q_STEP * u;
        return {((n * K + group * KG + k) * P + p) * Q + q,
                n < batch && !past<KTU>(ktu) && p < P && q < Q};
    }
};

struct Output {
    float* data;
    const float* bias;
    unsigned group, batch;
    int a, b;

    __device__ void put(unsigned c, unsigned nij, float v) const {
        unsigned n = nij / (I * J), h = a + nij / J % I * SH, w = b + nij % J * SW;
        unsigned channel = group * CG + c;
        if (c < CG && n < batch && h < H && w < W)
            data[((n * C + channel) * H + h) * W + w] = finish(v, bias, channel);
    }

    __device__ void store(unsigned c, unsigned nij, float4 v) const {
        if (SH == 1 && SW == 1 && H * W % 4 == 0) {
            unsigned n = nij / (H * W), channel = group * CG + c;
            float* to = data + (n * C + channel) * H * W + nij % (H * W);
            if (c < CG && n < batch) *reinterpret_cast<float4*>(to) = finish(v, bias, channel);
        } else {
            put(c, nij, v.x), put(c, nij + 1, v.y), put(c, nij + 2, v.z), put(c, nij + 3, v.w);
        }
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS)
conv2d_dgrad(const float* g, const float* w, const float* bias, float* gx, unsigned batch,
             unsigned splits, unsigned split_steps) {
    unsigned group = blockIdx.z / splits % GROUPS, phase = blockIdx.z / splits / GROUPS;
    Axis vertical(phase / SW, TOP, SH, DH, T_STEP, R);
    Axis horizontal(phase % SW, LEFT, SW, DW, U_STEP, S);
    float acc[TM][TN] = {};
    multiply(acc, Weights{w, group, vertical, horizontal},
             Gradients{g, group, batch, vertical, horizontal}, Steps(KTU, splits, split_steps));
    float* out = split_slice(gx, splits, batch * C * H * W);
    store(acc, Output{out, bias, group, batch, vertical.residue, horizontal.residue});
}
#endif  // CONV2D_DGRAD
