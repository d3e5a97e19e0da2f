// Tiled products in float32: what matmul.cu and conv.cu are compiled after.
//
//     out[i,j] = Σ_d  a(i,d) · b(d,j)
//
//                       rows i      columns j      depth d        a              b
//     matmul            m           n              k              a[m,k]         b[k,n]
//     conv2d            k           (n,p,q)        (c,r,s)        w[k,c,r,s]     x[n,c,h,w]
//     conv2d_wgrad      k           (c,r,s)        (n,p,q)        g[n,k,p,q]     x[n,c,h,w]
//     conv2d_dgrad      c           (n,i,j)        (k,t,u)        w[k,c,r,s]     g[n,k,p,q]
//
// No im2col matrix exists in memory: an "operand" says where element (index, depth) of its matrix
// lies, or that it lies in the padding, and the main loop copies it straight into shared memory.
//
// Launch     grid (⌈columns/BN⌉, ⌈rows/BM⌉, items · splits), block (BM/TM · BN/TN).
//            Items are products side by side: matrices of a batch, groups, phases.
//            The depth goes by steps of BK; split s sums steps [s, s+1) · split_steps into its own
//            slice out + s · size, and reduce_slices adds the slices in order. No atomics.
// Threads    A warp is ROW_LANES × COL_LANES threads, each with TM × TN outputs.
// Rung       5 of README.md: cp.async into two buffers, one barrier a step. Below sm_80, the same
//            loop with plain loads and stores. -DTF32=1 is rung 6: the same tiles multiplied by
//            mma.sync with operands rounded to TF32 (10 bits of mantissa), sm_80 and later.
// Defines    the tile BM BN BK TM TN; ALIGNED (1: the operands start at multiples of 16 bytes).
//            All indices fit in 31 bits: the launcher refuses larger arrays.
// Epilogue   BIAS (1: add the bias, 0: it is not read) and ACT(x), an activation. With splits they
//            are left to reduce_slices.

#ifndef BM
#define BM 64
#define BN 64
#define BK 16
#define TM 8
#define TN 8
#endif

#ifndef ALIGNED
#define ALIGNED 0
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

// Products that a block computes side by side, a half of each warp's columns each: two phases of
// conv2d_dgrad, whose outputs alternate in memory. Column j of a warp finds depth d of its own a at
// d · BANDS + slot(j).
#ifdef CONV2D_DGRAD
constexpr int BANDS = SW == 2 && DW == 1 && TN == 8 ? 2 : 1;
#else
constexpr int BANDS = 1;
#endif

constexpr int THREADS = (BM / TM) * (BN / TN);
constexpr int COL_LANES = BN / TN < 8 ? BN / TN : 8, ROW_LANES = 32 / COL_LANES;
constexpr int WARP_ROWS = ROW_LANES * TM, WARP_COLS = COL_LANES * TN;  // that a warp computes
constexpr int WARPS_ACROSS = BN / WARP_COLS;

__device__ constexpr int least(int a, int b) { return a < b ? a : b; }
constexpr int TRANSPOSING = 32 / least(8, BM);  // LANES of an a stored by columns

// ---- Copying tiles into shared memory -----------------------------------------------------------
//
// tile_a[i][d] and tile_b[d][j]. An operand says where its elements lie, and how a warp copies them:
//
//     at(o, d)    the element of row or column o at depth d (of tile_a: d counts BK · BANDS a step)
//     WIDTH       floats a copy: 4 where so many neighbours in the tile are so in memory, else 1
//     LANES       threads side by side along the tile's rows; 32 / LANES along its columns: as many
//                 as make the reads coalesced
//     PAD         floats between the tile's rows that keep the writes of a warp in different banks
//
// MIN_BLOCKS: the fewest that a multiprocessor must hold; five of 64 threads leave 168 registers to
// each, which copies of single floats, or through registers, may exceed.

struct Element {
    const float* at;
    bool inside;  // false: in the padding or past the end; a zero
};

template <class A>
constexpr int MIN_BLOCKS = THREADS == 64 && A::WIDTH == 4 && __CUDA_ARCH__ >= 800 ? 5 : 1;

// p, which the compiler may not take apart: it adds what depends on the step in one instruction.
__device__ __forceinline__ const float* fixed(const float* p) {
    asm("" : "+l"(p));
    return p;
}

// Depth step · BK + d. What does not depend on the step, the compiler takes out of the main loop.
struct Depth {
    unsigned step, d;

    __device__ unsigned all() const { return step * BK + d; }

    template <int N>
    __device__ unsigned over() const {
        return BK % N == 0 ? step * (BK / N) + d / N : N % BK == 0 ? step / (N / BK) : all() / N;
    }

    template <int N>
    __device__ unsigned modulo() const {
        return BK % N == 0 ? d % N : N % BK == 0 ? step % (N / BK) * BK + d : all() % N;
    }
};

// WIDTH floats to tile + i, or zeros; visible after wait_for_copies() and a barrier.
template <int WIDTH>
__device__ __forceinline__ void copy(float* tile, int i, Element e) {
#if __CUDA_ARCH__ >= 800
    unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(tile)) + 4 * i;
    int bytes = e.inside ? 4 * WIDTH : 0;  // those read; the rest is filled with zeros
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(e.at),
                 "n"(4 * WIDTH), "r"(bytes)
                 : "memory");
#else
#pragma unroll
    for (int j = 0; j < WIDTH; j++) tile[i + j] = e.inside ? e.at[j] : 0.0f;
#endif
}

__device__ __forceinline__ void wait_for_copies() {
#if __CUDA_ARCH__ >= 800
    asm volatile("cp.async.wait_all;" ::: "memory");
#endif
}

// tile[i][d] = a(first + i, step · DEEP + d), DEEP = BK · BANDS.
template <class A, int DEEP>
__device__ __forceinline__ void stage_a(float (*tile)[DEEP + A::PAD], const A& a, unsigned first,
                                        unsigned step) {
    constexpr int COPIES = BM * DEEP / A::WIDTH, DOWN = least(BM, 32 / A::LANES);
    unsigned thread = threadIdx.x % THREADS;  // which it is; now the compiler knows its bits
#pragma unroll
    for (int e = 0; e < COPIES; e += THREADS) {
        unsigned lane = thread % 32, warp = thread / 32 + e / 32;
        unsigned i = warp % (BM / DOWN) * DOWN + lane / A::LANES;
        unsigned d = (warp / (BM / DOWN) * A::LANES + lane % A::LANES) * A::WIDTH;
        if (COPIES % THREADS == 0 || thread + e < COPIES)
            copy<A::WIDTH>(tile[0], i * (DEEP + A::PAD) + d, a.at(first + i, {step, d}));
    }
}

// tile[d][j] = b(first + j, step · BK + d).
template <class B>
__device__ __forceinline__ void stage_b(float (*tile)[BN + B::PAD], const B& b, unsigned first,
                                        unsigned step) {
    constexpr int COPIES = BN * BK / B::WIDTH, DOWN = 32 / B::LANES;
    constexpr int ACROSS = BN / B::WIDTH / B::LANES;
    unsigned thread = threadIdx.x % THREADS;
#pragma unroll
    for (int e = 0; e < COPIES; e += THREADS) {
        unsigned lane = thread % 32, warp = thread / 32 + e / 32;
        unsigned j = (warp % ACROSS * B::LANES + lane % B::LANES) * B::WIDTH;
        unsigned d = warp / ACROSS * DOWN + lane / B::LANES;
        if (COPIES % THREADS == 0 || thread + e < COPIES)
            copy<B::WIDTH>(tile[0], d * (BN + B::PAD) + j, b.at(first + j, {step, d}));
    }
}

// ---- Multiplying two tiles ----------------------------------------------------------------------

__device__ __forceinline__ constexpr int slot(int j) {
#ifdef CONV2D_DGRAD
    if (BANDS == 2) return (j / (WARP_COLS / 2) + LEFT) % 2;
#endif
    return 0;
}

__device__ __forceinline__ int warp_row() { return threadIdx.x / 32 / WARPS_ACROSS * WARP_ROWS; }
__device__ __forceinline__ int warp_col() { return threadIdx.x / 32 % WARPS_ACROSS * WARP_COLS; }

__device__ __forceinline__ void load4(float* to, const float* from) {
    float4 v = *reinterpret_cast<const float4*>(from);
    to[0] = v.x, to[1] = v.y, to[2] = v.z, to[3] = v.w;
}

// acc[i][j] belongs to row i · ROW_LANES + lane / COL_LANES of the warp, and to column
// j/4 · 4 · COL_LANES + lane % COL_LANES · 4 + j%4: 8 lanes read 8 neighbouring float4.
template <int PITCH_A, int PITCH_B>
__device__ __forceinline__ void multiply_tiles(float (&acc)[TM][TN], const float (*a)[PITCH_A],
                                               const float (*b)[PITCH_B]) {
    constexpr int DEPTHS = 4 / BANDS;  // in a float4 of tile_a
    int lane = threadIdx.x % 32;
    int row = warp_row() + lane / COL_LANES, col = warp_col() + lane % COL_LANES * 4;
#pragma unroll
    for (int d = 0; d < BK; d += DEPTHS) {
        float fa[TM][4], fb[TN];
#pragma unroll
        for (int i = 0; i < TM; i++) load4(fa[i], &a[row + i * ROW_LANES][d * BANDS]);
#pragma unroll
        for (int t = 0; t < DEPTHS; t++) {
#pragma unroll
            for (int j = 0; j < TN; j += 4) load4(fb + j, &b[d + t][col + j * COL_LANES]);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++)
                    acc[i][j] += fa[i][t * BANDS + slot(j * COL_LANES)] * fb[j];
        }
    }
}

// ---- Rung 6: the same on tensor cores -----------------------------------------------------------

__device__ __forceinline__ unsigned to_tf32(float v) {
    unsigned bits = 0;
#if __CUDA_ARCH__ >= 800
    asm("cvt.rna.tf32.f32 %0, %1;" : "=r"(bits) : "f"(v));
#endif
    return bits;
}

// c (16,8) += a (16,8) · b (8,8), by one warp. Lane l holds, with g = l / 4 and t = l % 4,
// a(g, t), a(g+8, t), a(g, t+4), a(g+8, t+4), b(t, g), b(t+4, g), and of the result
// c(g, 2t), c(g, 2t+1), c(g+8, 2t), c(g+8, 2t+1).
__device__ __forceinline__ void mma(float* c, const unsigned* a, const unsigned* b) {
#if __CUDA_ARCH__ >= 800
    asm volatile(
        "mma.sync.aligned.m16n8k8.row.col.f32.tf32.tf32.f32 "
        "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
#endif
}

// The warp's outputs are TM/4 × TN tiles of 16 × 8; tile (i, j) is the four floats i · TN + j of acc.
template <int PITCH_A, int PITCH_B>
__device__ __forceinline__ void multiply_tiles_tf32(float (&acc)[TM][TN],
                                                    const float (*a)[PITCH_A],
                                                    const float (*b)[PITCH_B]) {
    int lane = threadIdx.x % 32, t = lane % 4;
    int row = warp_row() + lane / 4, col = warp_col() + lane / 4;
#pragma unroll
    for (int d = 0; d < BK; d += 8) {
        unsigned fa[BANDS][TM / 4][4];
#pragma unroll
        for (int e = 0; e < BANDS * TM; e++) {
            int band = e / TM, i = e / 4 % (TM / 4), down = e % 2 * 8, right = e / 2 % 2 * 4;
            fa[band][i][e % 4] = to_tf32(a[row + i * 16 + down][(d + t + right) * BANDS + band]);
        }
#pragma unroll
        for (int j = 0; j < TN; j++) {
            unsigned fb[2] = {to_tf32(b[d + t][col + j * 8]), to_tf32(b[d + t + 4][col + j * 8])};
#pragma unroll
            for (int i = 0; i < TM / 4; i++)
                mma(&acc[0][0] + (i * TN + j) * 4, fa[slot(j * 8)][i], fb);
        }
    }
}

// ---- The product --------------------------------------------------------------------------------

// This block's share of ⌈depth/BK⌉ steps: the splits are innermost in blockIdx.z.
struct Steps {
    unsigned begin, end;

    __device__ Steps(unsigned depth, unsigned splits, unsigned split_steps) {
        begin = blockIdx.z % splits * split_steps;
        end = min(begin + split_steps, (depth + BK - 1) / BK);
    }
};

// out(i, j) = Σ_d a(i, d) · b(d, j) for the tile of this block, over its steps of d.
template <class A, class B, class Out>
__device__ __forceinline__ void product(const A& a, const B& b, const Out& out, Steps steps) {
    constexpr int DEEP = BK * BANDS, PITCH_A = DEEP + A::PAD, PITCH_B = BN + B::PAD;
    __shared__ __align__(16) float memory[2 * BM * PITCH_A + 2 * BK * PITCH_B];
    auto tile_a = reinterpret_cast<float(*)[BM][PITCH_A]>(memory);
    auto tile_b = reinterpret_cast<float(*)[BK][PITCH_B]>(memory + 2 * BM * PITCH_A);
    unsigned row0 = blockIdx.y * BM, col0 = blockIdx.x * BN, now = 0;
    float acc[TM][TN] = {};

    stage_a<A, DEEP>(tile_a[0], a, row0, steps.begin);
    stage_b<B>(tile_b[0], b, col0, steps.begin);
    for (unsigned step = steps.begin; step < steps.end; step++, now ^= 1) {
        wait_for_copies();
        __syncthreads();  // tiles `now` are complete, and nobody reads the other pair any more
        if (step + 1 < steps.end) {
            stage_a<A, DEEP>(tile_a[now ^ 1], a, row0, step + 1);
            stage_b<B>(tile_b[now ^ 1], b, col0, step + 1);
        }
        if constexpr (TF32)
            multiply_tiles_tf32(acc, tile_a[now], tile_b[now]);
        else
            multiply_tiles(acc, tile_a[now], tile_b[now]);
    }

    // Through shared memory, a few rows at a time, so that lanes write neighbours.
    constexpr int ROWS = TF32 ? 8 : ROW_LANES, PITCH = WARP_COLS + 8, PHASE = WARP_COLS / BANDS;
    static_assert(THREADS / 32 * ROWS * PITCH <= sizeof(memory) / 4, "the tiles have room for it");
    int lane = threadIdx.x % 32;
    float* rows = memory + threadIdx.x / 32 * ROWS * PITCH;
    wait_for_copies();
    __syncthreads();  // nobody reads the tiles any more
#pragma unroll
    for (int first = 0; first < WARP_ROWS; first += ROWS) {
#pragma unroll
        for (int j = 0; j < TN; j += TF32 ? 1 : 4) {
            if (TF32) {
                const float* c = &acc[0][0] + (first / 16 * TN + j) * 4 + first % 16 / 4;
                *reinterpret_cast<float2*>(&rows[lane / 4 * PITCH + j * 8 + lane % 4 * 2]) =
                    make_float2(c[0], c[1]);
            } else {
                const float* c = &acc[first / ROWS][j];
                int to = lane / COL_LANES * PITCH + j * COL_LANES + lane % COL_LANES * 4;
                *reinterpret_cast<float4*>(&rows[to]) = make_float4(c[0], c[1], c[2], c[3]);
            }
        }
        __syncwarp();
#pragma unroll
        for (int e = 0; e < ROWS * WARP_COLS; e += 32) {
            int i = (e + lane) / WARP_COLS, at = (e + lane) % WARP_COLS;
            int j = at % BANDS * PHASE + at / BANDS;
            out.put(row0 + warp_row() + first + i, col0 + warp_col() + j, rows[i * PITCH + j]);
        }
        __syncwarp();
    }
}

// What becomes of the sum v of row or column i, to which bias[i] belongs.
__device__ __forceinline__ float finish(float v, const float* bias, int i) {
    if (BIAS) v += bias[i];
    return ACT(v);
}

__device__ __forceinline__ float* split_slice(float* out, unsigned splits, int out_size) {
    return out + static_cast<long long>(blockIdx.z % splits) * out_size;
}
