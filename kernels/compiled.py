"""The CPU's loops over channels, logits and flat buffers: batch norm, activations, losses, Adam.

Arrays are float32 with elements in order, channels last:   rows (M,C), one pixel of one image each.

A loop works on a range of rows, so that threads can share an array: see jobs.py. Sums over rows are
float64, which rounds less and keeps pace with memory. There is no fast-math: a result is what its
lines say. An activation is a number here, see ACTS; `tanh` and `sigmoid` forward are not here,
NumPy's vectorised tanh and exp are faster than one call an element.
"""

from __future__ import annotations

import numba
import numpy as np

from minigan.kernels.jobs import inner, job

LINEAR, RELU, LEAKY_RELU, TANH, SIGMOID = range(5)
ACTS = {
    "linear": LINEAR, "relu": RELU, "leaky_relu": LEAKY_RELU, "tanh": TANH, "sigmoid": SIGMOID
}  # fmt: skip


# ---------------------------------------------------------------------------------- activations


@numba.njit(inline="always")
def activated(v, act, slope):
    if act == RELU:
        return np.float32(0) if v <= 0 else v  # a NaN stays one
    if act == LEAKY_RELU:
        return slope * v if v <= 0 else v
    return v


@numba.njit(inline="always")
def _act_gradient(g, y, act, slope):
    """g · act'(x), as a function of y = act(x)."""
    if act == RELU:
        return g if y > 0 else np.float32(0) * g
    if act == LEAKY_RELU:
        return g if y > 0 else slope * g
    if act == TANH:
        return g * (np.float32(1) - y * y)
    if act == SIGMOID:
        return g * (y * (np.float32(1) - y))
    return g


@job("m v m i f")
def bias_act(x, bias, y, act, slope, first, last, part):
    """y = act(x + bias[c])"""
    slope = np.float32(slope)
    for i in range(first, last):
        for c in range(x.shape[1]):
            y[i, c] = activated(x[i, c] + bias[c], act, slope)


@job("m m m d i f")
def bias_act_backward(g, y, gx, gbias, act, slope, first, last, part):
    """gx = g · act'(y),   gbias[c] = Σ gx"""
    gbias = gbias[part]
    slope = np.float32(slope)
    for c in range(g.shape[1]):
        gbias[c] = 0
    for i in range(first, last):
        for c in range(g.shape[1]):
            v = _act_gradient(g[i, c], y[i, c], act, slope)
            gx[i, c] = v
            gbias[c] += v


@job("m d")
def column_sums(g, sums, first, last, part):
    """sums[c] = Σ g"""
    sums = sums[part]
    for c in range(g.shape[1]):
        sums[c] = 0
    for i in range(first, last):
        for c in range(g.shape[1]):
            sums[c] += g[i, c]


@job("d i v")
def add_shards(sums, parts, total, first, last, part):
    """total[c] = Σ of the shards' sums"""
    for c in range(len(total)):
        value = 0.0
        for p in range(parts):
            value += sums[p, c]
        total[c] = value


# ----------------------------------------------------------------------------------- batch norm


@job("m d d")
def moments(x, sums, squares, first, last, part):
    """sums[c] = Σ x,   squares[c] = Σ x²"""
    sums, squares = sums[part], squares[part]
    for c in range(x.shape[1]):
        sums[c] = 0
        squares[c] = 0
    for i in range(first, last):
        for c in range(x.shape[1]):
            v = np.float64(x[i, c])
            sums[c] += v
            squares[c] += v * v


@job("d d i i f v v")
def statistics(sums, squares, parts, m, eps, mean, rstd, first, last, part):
    """mean[c], rstd[c] = 1 / sqrt(var + eps) from the shards' sums of `moments` over m rows"""
    for c in range(len(mean)):
        total, square = 0.0, 0.0
        for p in range(parts):
            total += sums[p, c]
            square += squares[p, c]
        total /= m
        var = square / m - total * total
        mean[c] = total
        rstd[c] = 1 / np.sqrt((0 if var < 0 else var) + eps)  # a NaN stays one


@job("m v v v m i f")
def normalise(x, mean, scale, bias, y, act, slope, first, last, part):
    """y = act((x - mean[c]) · scale[c] + bias[c])"""
    slope = np.float32(slope)
    for i in range(first, last):
        for c in range(x.shape[1]):
            y[i, c] = activated((x[i, c] - mean[c]) * scale[c] + bias[c], act, slope)


@job("m m m v v d d i f")
def batch_norm_sums(g, x, y, mean, rstd, ga_sum, gax_sum, act, slope, first, last, part):
    """With ga = g · act'(y):   ga_sum[c] = Σ ga,   gax_sum[c] = Σ ga · (x - mean) · rstd"""
    ga_sum, gax_sum = ga_sum[part], gax_sum[part]
    slope = np.float32(slope)
    for c in range(x.shape[1]):
        ga_sum[c] = 0
        gax_sum[c] = 0
    for i in range(first, last):
        for c in range(x.shape[1]):
            ga = _act_gradient(g[i, c], y[i, c], act, slope)
            ga_sum[c] += ga
            gax_sum[c] += ga * ((x[i, c] - mean[c]) * rstd[c])


@job("m m m v v v v v m i f")
def batch_norm_gradient(
    g, x, y, mean, rstd, scale, ga_mean, gax_mean, gx, act, slope, first, last, part
):
    """gx = scale · (ga - ga_mean - (x - mean) · rstd · gax_mean)"""
    slope = np.float32(slope)
    for i in range(first, last):
        for c in range(x.shape[1]):
            ga = _act_gradient(g[i, c], y[i, c], act, slope)
            xhat = (x[i, c] - mean[c]) * rstd[c]
            gx[i, c] = scale[c] * (ga - ga_mean[c] - xhat * gax_mean[c])


@job("m m m m v v d d d i f")
def batch_norm_double_sums(
    ggx, g, x, y, mean, rstd, ggx_sum, ggxx_sum, product_sum, act, slope, first, last, part
):
    """ggx_sum[c] = Σ ggx,   ggxx_sum[c] = Σ ggx·x̂,   product_sum[c] = Σ ggx·ga"""
    ggx_sum, ggxx_sum, product_sum = ggx_sum[part], ggxx_sum[part], product_sum[part]
    slope = np.float32(slope)
    for c in range(x.shape[1]):
        ggx_sum[c] = 0
        ggxx_sum[c] = 0
        product_sum[c] = 0
    for i in range(first, last):
        for c in range(x.shape[1]):
            v = np.float64(ggx[i, c])
            ggx_sum[c] += v
            ggxx_sum[c] += v * ((x[i, c] - mean[c]) * rstd[c])
            product_sum[c] += v * _act_gradient(g[i, c], y[i, c], act, slope)


@job("m m m m v v v v v v v v m m i f")
def batch_norm_double_gradient(
    ggx, g, x, y, mean, rstd, scale, e_ggx, e_ggxx, e_ga, e_gax, e_xhat, gg, gx, act, slope,
    first, last, part,
):  # fmt: skip
    """gg = act'(y) · scale · (ggx - e_ggx - x̂ · e_ggxx)

    gx = -scale · rstd · (e_gax · (ggx - e_ggx) + e_ggxx · (ga - e_ga) + x̂ · e_xhat)
    """
    slope = np.float32(slope)
    for i in range(first, last):
        for c in range(x.shape[1]):
            xhat = (x[i, c] - mean[c]) * rstd[c]
            d = ggx[i, c] - e_ggx[c]
            ga = _act_gradient(g[i, c], y[i, c], act, slope)
            gg[i, c] = _act_gradient(scale[c] * (d - xhat * e_ggxx[c]), y[i, c], act, slope)
            sum_ = e_gax[c] * d + e_ggxx[c] * (ga - e_ga[c]) + xhat * e_xhat[c]
            gx[i, c] = -scale[c] * rstd[c] * sum_


# --------------------------------------------------------------------------------------- logits


@inner
def _bce(x, target):
    """(loss, gradient) of one logit: see reference.bce_with_logits."""
    one, target = np.float32(1), np.float32(target)
    e = np.exp(-abs(x))
    larger, smaller = one / (one + e), e / (one + e)  # of σ(x) and σ(-x)
    this, other = (larger, smaller) if x > 0 else (smaller, larger)
    loss = (x if x > 0 else np.float32(0)) - target * x + np.log1p(e)
    return loss, (one - target) * this - target * other


@job("v f v v")
def bce_with_logits(x, target, loss, gx, first, last, part):
    """loss[0] = mean of bce,   gx: its gradient"""
    total = 0.0
    for i in range(len(x)):
        value, slope = _bce(x[i], target)
        total += value
        gx[i] = slope / np.float32(len(x))
    loss[0] = total / len(x)


@job("v v f v v")
def logistic_d(real, fake, target, loss, g, first, last, part):
    """loss[0] = bce(real, target) + bce(fake, 0),   g: its gradients by both, end to end"""
    totals = np.zeros(2)
    for k in range(2):
        x, t, at = (real, target, 0) if k == 0 else (fake, 0.0, len(real))
        for i in range(len(x)):
            value, slope = _bce(x[i], t)
            totals[k] += value
            g[at + i] = slope / np.float32(len(x))
    loss[0] = np.float32(totals[0] / len(real)) + np.float32(totals[1] / len(fake))


@job("v v v")
def logit_figures(real, fake, figures, first, last, part):
    """figures (6,): see reference.logit_figures"""
    for k in range(2):
        x, sign = (real, 1) if k == 0 else (fake, -1)
        sigmoids, right, total = 0.0, 0, 0.0
        for i in range(len(x)):
            e = np.exp(-abs(np.float64(x[i])))
            sigmoids += 1 / (1 + e) if x[i] > 0 else e / (1 + e)
            right += sign * x[i] > 0
            total += x[i]
        figures[k] = sigmoids / len(x)
        figures[2 + k] = right / len(x)
        figures[4 + k] = total / len(x)


# ----------------------------------------------------------------------------------------- Adam


@job("v v v v f f f f f f")
def adam(p, g, m, v, beta1, beta2, rate, root, eps, decay, first, last, part):
    """m = β1·m + (1-β1)·g,  v = β2·v + (1-β2)·g²,  p = p·decay - rate · m / (sqrt(v·root) + eps)"""
    new_m, new_v = np.float32(1 - beta1), np.float32(1 - beta2)
    rate, root, eps = np.float32(rate), np.float32(root), np.float32(eps)
    decay = np.float32(decay)
    p, g, m, v = p[first:last], g[first:last], m[first:last], v[first:last]
    for i in range(len(p)):
        m_i = m[i] + new_m * (g[i] - m[i])
        v_i = v[i] + new_v * (g[i] * g[i] - v[i])
        m[i] = m_i
        v[i] = v_i
        p[i] = p[i] * decay - rate * m_i / (np.sqrt(v_i * root) + eps)
