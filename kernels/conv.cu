// After gemm.cu: the three convolutions as implicit products.
//
//     conv2d          y[n,k,p,q]  = Σ_{c,r,s} w[k,c,r,s] · x[n,c,h,w]
//     conv2d_wgrad    gw[k,c,r,s] = Σ_{n,p,q} g[n,k,p,q] · x[n,c,h,w]
//     conv2d_dgrad    gx[n,c,h,w] = Σ_{k,r,s} w[k,c,r,s] · g[n,k,p,q]
//                     h = p·SH - TOP + r·DH,   w = q·SW - LEFT + s·DW
//
// conv2d_dgrad treats the stride² residues (h mod SH, w mod SW) apart: pixels of one residue, a
// "phase", meet the same taps, so that no multiplication by an inserted zero is done.
//
// Layout     NCHW activations, KCRS weights; all contiguous.
// Launch     see gemm.cu. Items of conv2d_dgrad: phases / BANDS · GROUPS.
// Defines    those of gemm.cu; one of CONV2D, CONV2D_DGRAD, CONV2D_WGRAD (1: compile this kernel; if
//            none is defined, conv2d); C H W K R S P Q, SH SW (stride), TOP LEFT (pad),
//            DH DW (dilation), GROUPS.
// Epilogue   bias[k] in conv2d, bias[c] in conv2d_dgrad.

#if !defined(CONV2D) && !defined(CONV2D_DGRAD) && !defined(CONV2D_WGRAD)
#define CONV2D 1
#endif

#ifndef C
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

constexpr int CG = C / GROUPS, KG = K / GROUPS;  // channels of one group
constexpr int CRS = CG * R * S, PQ = P * Q;

// Whether i < SIZE, known while compiling if tiles of BLOCK divide it.
template <int SIZE, int BLOCK>
__device__ __forceinline__ bool below(unsigned i) {
    return SIZE % BLOCK == 0 || i < SIZE;
}

// Where x (batch,C,H,W) has channel c of this group, under tap rs = (r,s) of output pixel n, pq: at
// corner + tap, the first of which depends on the pixel alone.
struct Patch {
    int corner, tap;
    bool inside;

    __device__ Patch(int group, int batch, int c, unsigned rs, int n, unsigned pq) {
        int r = rs / S * DH, s = rs % S * DW, h = pq / Q * SH - TOP, w = pq % Q * SW - LEFT;
        corner = ((n * C + group * CG) * H + h) * W + w;
        tap = (c * H + r) * W + s;
        inside = n < batch && static_cast<unsigned>(h + r) < H && static_cast<unsigned>(w + s) < W;
    }
};

// ---- conv2d: y[n,k,p,q] = Σ_crs w[k,crs] · x[n, c, p·SH - TOP + r·DH, q·SW - LEFT + s·DW] ----------

#ifdef CONV2D
struct Weights {
    const float* data;
    int group;
    static constexpr int WIDTH = ALIGNED && CRS % 4 == 0 ? 4 : 1;
    static constexpr int LANES = BK / WIDTH, PAD = TF32 ? 4 : 0;

    __device__ Element at(unsigned k, Depth crs) const {
        const float* row = data + (group * KG + k) * CRS;
        return {fixed(row) + crs.all(), below<KG, BM>(k) && below<CRS, BK>(crs.all())};
    }
};

struct Patches {
    const float* data;
    int group;
    int batch;
    static constexpr int WIDTH = 1, LANES = 8, PAD = 8;

    __device__ Element at(unsigned npq, Depth crs) const {
        Patch patch(group, batch, crs.over<R * S>(), crs.modulo<R * S>(), npq / PQ, npq % PQ);
        return {fixed(data + patch.corner) + patch.tap,
                patch.inside && below<CRS, BK>(crs.all())};
    }
};

struct Output {
    float* data;
    const float* bias;
    int group;
    int batch;

    __device__ void put(unsigned k, unsigned npq, float v) const {
        int n = npq / PQ, channel = group * KG + k;
        float* to = data + n * K * PQ + npq % PQ + channel * PQ;
        if (below<KG, BM>(k) && n < batch) *to = finish(v, bias, channel);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS<Weights>)
conv2d(const float* x, const float* w, const float* bias, float* y, unsigned batch, unsigned splits,
       unsigned split_steps) {
    int group = blockIdx.z / splits, n = batch;
    product(Weights{w, group}, Patches{x, group, n},
            Output{split_slice(y, splits, n * K * PQ), bias, group, n},
            Steps(CRS, splits, split_steps));
}
#endif  // CONV2D

// ---- conv2d_wgrad: gw[k,crs] = Σ_npq g[n,k,p,q] · x[n, c, p·SH - TOP + r·DH, ...] ------------------

#ifdef CONV2D_WGRAD
struct Gradients {
    const float* data;
    int group;
    int batch;
    static constexpr int WIDTH = ALIGNED && PQ % 4 == 0 ? 4 : 1;
    static constexpr int LANES = BK / WIDTH, PAD = TF32 ? 4 : 0;

    __device__ Element at(unsigned k, Depth npq) const {
        int n = npq.over<PQ>(), pq = npq.modulo<PQ>(), row = (group * KG + k) * PQ;
        return {fixed(data + row) + (n * K * PQ + pq), below<KG, BM>(k) && n < batch};
    }
};

struct Patches {
    const float* data;
    int group;
    int batch;
    static constexpr int WIDTH = 1, LANES = 4, PAD = 4;

    __device__ Element at(unsigned crs, Depth npq) const {
        Patch patch(group, batch, crs / (R * S), crs % (R * S), npq.over<PQ>(), npq.modulo<PQ>());
        return {fixed(data + patch.tap) + patch.corner, patch.inside && below<CRS, BN>(crs)};
    }
};

struct Output {
    float* data;
    int group;

    __device__ void put(unsigned k, unsigned crs, float v) const {
        if (below<KG, BM>(k) && below<CRS, BN>(crs)) data[(group * KG + k) * CRS + crs] = v;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS<Gradients>)
conv2d_wgrad(const float* x, const float* g, float* gw, unsigned batch, unsigned splits,
             unsigned split_steps) {
    int group = blockIdx.z / splits, n = batch;
    product(Gradients{g, group, n}, Patches{x, group, n},
            Output{split_slice(gw, splits, K * CRS), group}, Steps(n * PQ, splits, split_steps));
}
#endif  // CONV2D_WGRAD

// ---- conv2d_dgrad: gx[n,c,h,w] = Σ_{k,r,s} g[n,k,p,q] · w[k,c,r,s],  h = p·SH - TOP + r·DH --------
//
// Phase (a,b) holds the pixels h = a + SH·i, w = b + SW·j. A tap r meets it if r·DH ≡ a + TOP
// (mod SH): the first such tap is r0, the next ones are T_STEP apart, r = r0 + T_STEP·t, and
// p = i + p0 - P_STEP·t with p0 = (a + TOP - r0·DH) / SH. Likewise s, q, j, u.
//
// With BANDS = 2 a block has the phases b = 0 and b = 1 of its pixels, side by side in each warp's
// columns. Taps s = 2u + slot alternate between them, so that tile_a has the taps in their order.

#ifdef CONV2D_DGRAD
__device__ constexpr int gcd(int a, int b) { return b == 0 ? a : gcd(b, a % b); }
__device__ constexpr int ceil_div(int a, int b) { return (a + b - 1) / b; }

constexpr int T_STEP = SH / gcd(SH, DH), U_STEP = SW / gcd(SW, DW);
constexpr int P_STEP = T_STEP * DH / SH, Q_STEP = U_STEP * DW / SW;
constexpr int T = ceil_div(R, T_STEP), U = ceil_div(S, U_STEP);  // taps of a phase, at most
constexpr int I = ceil_div(H, SH), J = ceil_div(W, SW);          // pixels of a phase, at most
constexpr int KTU = KG * T * U;

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

// Column j of the product: phase b = band + horizontal.residue, pixel nij.
struct Column {
    unsigned band, nij;

    __device__ explicit Column(unsigned j) {
        constexpr int PHASE = WARP_COLS / BANDS;
        band = j / PHASE % BANDS;
        nij = j / WARP_COLS * PHASE + j % PHASE;
    }
};

struct Weights {
    const float* data;
    int group;
    Axis vertical, horizontal;
    static constexpr bool MATRIX = R * S == 1;  // stored (k,c)
    static constexpr int WIDTH = ALIGNED && BANDS == 2 && S % 4 == 0 ? 4 : 1;
    static constexpr int LANES = MATRIX ? TRANSPOSING : BK * BANDS / WIDTH, PAD = MATRIX || TF32 ? 4 : 0;

    __device__ Element at(unsigned c, Depth e) const {
        Depth ktu{e.step, e.d / BANDS};
        int k = ktu.over<T * U>(), tu = ktu.modulo<T * U>();
        int r = vertical.first_tap + T_STEP * (tu / U), u = tu % U;
        int s = BANDS == 2 ? 2 * u + e.d % 2 : horizontal.first_tap + U_STEP * u;
        bool met = (T_STEP * T == R && DH == 1 || r < R) && (U_STEP * U == S && DW == 1 || s < S);
        const float* row = data + (group * KG * CG + c) * (R * S);
        return {fixed(row) + (k * CG * R * S + r * S + s),
                met && below<CG, BM>(c) && below<KTU, BK>(ktu.all())};
    }
};

struct Gradients {
    const float* data;
    int group;
    int batch;
    Axis vertical, horizontal;
    static constexpr bool MATRIX = R * S == 1 && SH == 1 && SW == 1 && TOP == 0 && LEFT == 0;
    static constexpr int WIDTH = ALIGNED && MATRIX && PQ % 4 == 0 ? 4 : 1;
    static constexpr int LANES = MATRIX ? least(32, BN / WIDTH) : 8, PAD = 8;

    __device__ Element at(unsigned o, Depth ktu) const {
        Column column(o);
        int k = ktu.over<T * U>(), tu = ktu.modulo<T * U>(), t = tu / U, u = tu % U;
        int n = column.nij / (I * J), i = column.nij / J % I, j = column.nij % J;
        int p = i + vertical.first_out;
        int q = j + (BANDS == 2 ? (column.band + LEFT) / 2 : horizontal.first_out);
        const float* corner = data + ((n * K + group * KG) * P + p) * Q + q;
        bool inside = static_cast<unsigned>(p - P_STEP * t) < P &&
                      static_cast<unsigned>(q - Q_STEP * u) < Q;
        return {fixed(corner) + (k * PQ - P_STEP * t * Q - Q_STEP * u),
                n < batch && inside && below<KTU, BK>(ktu.all())};
    }
};

struct Output {
    float* data;
    const float* bias;
    int group;
    int batch;
    int a, b;

    __device__ void put(unsigned c, unsigned o, float v) const {
        Column column(o);
        int n = column.nij / (I * J), channel = group * CG + c;
        int h = a + column.nij / J % I * SH, w = b + column.band + column.nij % J * SW;
        float* to = data + (n * C * H + h) * W + w + channel * (H * W);
        bool inside = n < batch && (H % SH == 0 || h < H) && (W % SW == 0 || w < W);
        if (below<CG, BM>(c) && inside) *to = finish(v, bias, channel);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, MIN_BLOCKS<Weights>)
conv2d_dgrad(const float* g, const float* w, const float* bias, float* gx, unsigned batch,
             unsigned splits, unsigned split_steps) {
    constexpr int ACROSS = SW / BANDS;  // phases side by side in the grid
    int group = blockIdx.z / splits % GROUPS, phase = blockIdx.z / splits / GROUPS, n = batch;
    Axis vertical(phase / ACROSS, TOP, SH, DH, T_STEP, R);
    Axis horizontal(phase % ACROSS, LEFT, SW, DW, U_STEP, S);
    float* out = split_slice(gx, splits, n * C * H * W);
    product(Weights{w, group, vertical, horizontal}, Gradients{g, group, n, vertical, horizontal},
            Output{out, bias, group, n, vertical.residue, horizontal.residue},
            Steps(KTU, splits, split_steps));
}
#endif  // CONV2D_DGRAD
