// The second half of a transposed convolution by GEMM + col2im.
//
//     gx[n,c,h,w] = act(Σ_{r,s} cols[n, (c,r,s), p, q] + bias[c]),
//                       p·SH + r·DH - TOP = h,   q·SW + s·DW - LEFT = w
//
// cols[n,(c,r,s),p,q] = Σ_k g[n,k,p,q] · w[k,c,r,s] is a 1×1 conv2d_dgrad. Each pixel gathers its own
// terms, in the order of (r,s), where the usual col2im scatters with atomics.
//
// Layout     cols (batch, C, R, S, P, Q), gx (batch, C, H, W), bias (C).
// Threads    One a pixel, neighbours along w: reads of one tap are SW times coalesced.
// Launch     grid ⌈batch·C·H·W / 256⌉, block 256.
// Rung       Bandwidth-bound: each column element is read once.
// Defines    C H W R S P Q SH SW TOP LEFT DH DW; BIAS (1: add bias, 0: it is not read), ACT(x).

#ifndef C
#define C 1
#define H 4
#define W 4
#define R 4
#define S 4
#define P 2
#define Q 2
#define SH 2
#define SW 2
#define TOP 1
#define LEFT 1
#define DH 1
#define DW 1
#endif
#ifndef BIAS
#define BIAS 0
#endif
#ifndef ACT
#define ACT(x) (x)
#endif

extern "C" __global__ void __launch_bounds__(256)
col2im(const float* cols, const float* bias, float* gx, unsigned batch) {
    unsigned i = blockIdx.x * 256 + threadIdx.x;
    if (i >= batch * C * H * W) return;
    int w = i % W, h = i / W % H, nc = i / (W * H);
    float v = 0.0f;
#pragma unroll
    for (int r = 0; r < R; r++) {
        int up = h + TOP - r * DH, p = up / SH;
        if (up < 0 || up % SH != 0 || p >= P) continue;
#pragma unroll
        for (int s = 0; s < S; s++) {
            int over = w + LEFT - s * DW, q = over / SW;
            if (over < 0 || over % SW != 0 || q >= Q) continue;
            v += cols[(((nc * R + r) * S + s) * P + p) * Q + q];
        }
    }
    if (BIAS) v += bias[nc % C];
    gx[i] = ACT(v);
}
