"""The kernel contract in plain NumPy: what every kernel computes, and the oracle of every test.

Any float dtype, no tricks. The alphabet, here and in all of minigan:

    x (N,C,H,W)  input      w (K,C/groups,R,S)  weight     y (N,K,P,Q)  output
    g = dL/dy    gx, gw     the gradients of x and w

    stride (sh,sw)   pad ((top,bottom),(left,right))   dilation (dh,dw)
    P = (H + top + bottom - dh·(R-1) - 1) // sh + 1,   Q likewise

Convolution is one trilinear form, Σ g[n,k,p,q] · x[n,c,p·sh+r·dh-top, ...] · w[k,c,r,s]; the three
functions below are its partial derivatives by g, x and w. Hence each one's derivatives are the
others, and a transposed convolution is conv2d_dgrad.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

Array = Any
Pair = tuple[int, int]
Pads = tuple[Pair, Pair]


def conv_out_size(size: Pair, taps: Pair, stride: Pair, pad: Pads, dilation: Pair) -> Pair:
    """(P,Q) from (H,W) and (R,S)."""
    h, w = (
        (size[i] + sum(pad[i]) - dilation[i] * (taps[i] - 1) - 1) // stride[i] + 1 for i in (0, 1)
    )
    return h, w


def _taps(
    x: Array, out: Pair, taps: Pair, stride: Pair, dilation: Pair
) -> Iterator[tuple[int, int, Array]]:
    """For each tap (r,s): the view of the padded x that it meets, (N,C,P,Q)."""
    for r in range(taps[0]):
        for s in range(taps[1]):
            top, left = r * dilation[0], s * dilation[1]
            yield (
                r,
                s,
                x[
                    :,
                    :,
                    top : top + stride[0] * (out[0] - 1) + 1 : stride[0],
                    left : left + stride[1] * (out[1] - 1) + 1 : stride[1],
                ],
            )


def conv2d(x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair, groups: int) -> Array:
    """y[n,k,p,q] = Σ_{c,r,s} x[n, c, p·sh + r·dh - top, q·sw + s·dw - left] · w[k,c,r,s]"""
    n, c, h, wd = x.shape
    k, taps = w.shape[0], w.shape[2:]
    p, q = conv_out_size((h, wd), taps, stride, pad, dilation)
    x = np.pad(x, ((0, 0), (0, 0), *pad))
    w = w.reshape(groups, k // groups, c // groups, *taps)
    y = np.zeros((n, groups, k // groups, p, q), x.dtype)
    for r, s, tap in _taps(x, (p, q), taps, stride, dilation):
        tap = tap.reshape(n, groups, c // groups, p, q)
        y += np.einsum("ngcpq,gkc->ngkpq", tap, w[..., r, s])
    return y.reshape(n, k, p, q)


def conv2d_dgrad(
    g: Array, w: Array, size: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    """gx[n,c,h,w] = Σ_{k,p,q,r,s} g[n,k,p,q] · w[k,c,r,s]  where conv2d reads x[n,c,h,w]:

    p·sh + r·dh - top = h,   q·sw + s·dw - left = w

    size (H,W), which (P,Q) alone does not determine when a stride is above 1.
    """
    n, k, p, q = g.shape
    _, c, *taps = w.shape
    (top, bottom), (left, right) = pad
    gx = np.zeros((n, groups, c, size[0] + top + bottom, size[1] + left + right), g.dtype)
    g = g.reshape(n, groups, k // groups, p, q)
    w = w.reshape(groups, k // groups, c, *taps)
    padded = gx.reshape(n, groups * c, *gx.shape[3:])
    for r, s, tap in _taps(padded, (p, q), taps, stride, dilation):
        tap += np.einsum("ngkpq,gkc->ngcpq", g, w[..., r, s]).reshape(tap.shape)
    return padded[:, :, top : top + size[0], left : left + size[1]].copy()


def conv2d_wgrad(
    x: Array, g: Array, taps: Pair, stride: Pair, pad: Pads, dilation: Pair, groups: int
) -> Array:
    """gw[k,c,r,s] = Σ_{n,p,q} x[n, c, p·sh + r·dh - top, q·sw + s·dw - left] · g[n,k,p,q]

    taps (R,S).
    """
    n, c = x.shape[:2]
    k, p, q = g.shape[1:]
    x = np.pad(x, ((0, 0), (0, 0), *pad))
    g = g.reshape(n, groups, k // groups, p, q)
    gw = np.empty((groups, k // groups, c // groups, *taps), g.dtype)
    for r, s, tap in _taps(x, (p, q), taps, stride, dilation):
        tap = tap.reshape(n, groups, c // groups, p, q)
        gw[..., r, s] = np.einsum("ngcpq,ngkpq->gkc", tap, g)
    return gw.reshape(k, c // groups, *taps)


def matmul(x: Array, b: Array) -> Array:
    """y = x @ b: x (...,n,k), b (...,k,m) -> y (...,n,m)"""
    return x @ b


def _sigmoid(x: Array) -> Array:
    with np.errstate(over="ignore"):  # 1 / (1 + ∞) is 0, as it should be
        return 1 / (1 + np.exp(-x))


# Activations that end a fused kernel. Each is inverted by its own output y, so that a backward pass
# keeps y alone:  dy/dx as a function of y.
ACTIVATIONS: dict[str, tuple[Callable[..., Array], Callable[..., Array]]] = {
    "linear": (lambda x, slope: x, lambda y, slope: np.ones_like(y)),
    "relu": (lambda x, slope: np.maximum(x, 0), lambda y, slope: (y > 0).astype(y.dtype)),
    "leaky_relu": (
        lambda x, slope: np.where(x > 0, x, x * slope),
        lambda y, slope: np.where(y > 0, 1, slope).astype(y.dtype),
    ),
    "tanh": (lambda x, slope: np.tanh(x), lambda y, slope: 1 - y * y),
    "sigmoid": (lambda x, slope: _sigmoid(x), lambda y, slope: y * (1 - y)),
}


def _per_channel(a: Array, x: Array) -> Array:
    return a.reshape(1, -1, *[1] * (x.ndim - 2))


def _batch_axes(x: Array) -> tuple[int, ...]:
    return (0, *range(2, x.ndim))


def bias_act(x: Array, bias: Array | None, act: str, slope: float) -> Array:
    """y = act(x + bias[c]).   x (N,C,...), bias (C,) or None.   slope: of leaky_relu, > 0."""
    if bias is not None:
        x = x + _per_channel(bias, x)
    return ACTIVATIONS[act][0](x, slope)


def bias_act_backward(g: Array, y: Array, act: str, slope: float) -> tuple[Array, Array]:
    """gx = g · act'(y),   gbias = Σ_{n,...} gx.   Returns (gx, gbias)."""
    gx = g * ACTIVATIONS[act][1](y, slope)
    return gx, gx.sum(axis=_batch_axes(g))


def batch_norm(
    x: Array, weight: Array | None, bias: Array | None, eps: float, act: str, slope: float
) -> tuple[Array, Array, Array]:
    """y = act(weight[c] · (x - mean[c]) · rstd[c] + bias[c]),   rstd = 1 / sqrt(var + eps)

    mean and (biased) var over all axes of x (N,C,...) but C; weight, bias (C,) or None.
    Returns (y, mean, rstd).   Ioffe & Szegedy 2015, algorithm 1.
    """
    mean = x.mean(axis=_batch_axes(x))
    var = x.var(axis=_batch_axes(x))
    rstd = 1 / np.sqrt(var + eps)
    y = (x - _per_channel(mean, x)) * _per_channel(rstd, x)
    if weight is not None:
        y = y * _per_channel(weight, x)
    if bias is not None:
        y = y + _per_channel(bias, x)
    return ACTIVATIONS[act][0](y, slope), mean, rstd


def batch_norm_averages(
    mean: Array, rstd: Array, running_mean: Array, running_var: Array, batches: Array,
    momentum: float | None, eps: float, m: int,
) -> None:  # fmt: skip
    """running += blend · (batch - running), in place, of the mean and the unbiased variance.

    mean, rstd: of a batch of m elements a channel.   batches: how many there were, counted here.
    blend = momentum, or 1 / batches if that is None: the mean of all batches.
    """
    batches += 1
    blend = 1 / batches if momentum is None else momentum
    running_mean += blend * (mean - running_mean)
    running_var += blend * ((rstd**-2 - eps) * (m / (m - 1)) - running_var)


def batch_norm_backward(
    g: Array,
    x: Array,
    y: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    act: str,
    slope: float,
) -> tuple[Array, Array, Array]:
    """With x̂ = (x - mean) · rstd, ga = g · act'(y) and M the elements a channel:

    gweight = Σ ga·x̂,   gbias = Σ ga,   gx = weight · rstd · (ga - gbias/M - x̂ · gweight/M)

    Returns (gx, gweight, gbias).   Ioffe & Szegedy 2015, section 3.
    """
    axes = _batch_axes(x)
    ga = g * ACTIVATIONS[act][1](y, slope)
    xhat = (x - _per_channel(mean, x)) * _per_channel(rstd, x)
    gweight = (ga * xhat).sum(axis=axes)
    gbias = ga.sum(axis=axes)
    m = x.size // x.shape[1]
    gx = ga - _per_channel(gbias / m, x) - xhat * _per_channel(gweight / m, x)
    gx = gx * _per_channel(rstd if weight is None else rstd * weight, x)
    return gx, gweight, gbias


def batch_norm_double_backward(
    ggx: Array,
    g: Array,
    x: Array,
    y: Array,
    weight: Array | None,
    mean: Array,
    rstd: Array,
    gweight: Array,
    gbias: Array,
    act: str,
    slope: float,
) -> tuple[Array, Array, Array]:
    """The gradients of gx of batch_norm_backward by g, x and weight, given ggx = dL/d(gx).

    For an act that is piecewise linear: act'(y) counts as constant. E is the mean over a channel,
    E[ga] = gbias/M and E[ga·x̂] = gweight/M as batch_norm_backward returned them, s = weight·rstd:

    gg      = act'(y) · s · (ggx - E[ggx] - x̂ · E[ggx·x̂])
    gx      = -s · rstd · ( E[ga·x̂] · (ggx - E[ggx]) + E[ggx·x̂] · (ga - E[ga])
                            + x̂ · (E[ggx·ga] - E[ggx]·E[ga] - 3 · E[ggx·x̂]·E[ga·x̂]) )
    gweight = M · rstd · (E[ggx·ga] - E[ggx]·E[ga] - E[ggx·x̂]·E[ga·x̂])

    Returns (gg, gx, gweight). Differentiate L = Σ ggx·gx by ga, and by x through x̂ and rstd.
    """
    m = x.size // x.shape[1]

    def channel(a: Array) -> Array:
        return _per_channel(a, x)

    def average(a: Array) -> Array:
        return channel(a.mean(axis=_batch_axes(x)))

    slopes = ACTIVATIONS[act][1](y, slope)
    ga = g * slopes
    xhat = (x - channel(mean)) * channel(rstd)
    scale = channel(rstd if weight is None else rstd * weight)
    e_ga, e_gax = channel(gbias / m), channel(gweight / m)
    e_ggx, e_ggxx, e_product = average(ggx), average(ggx * xhat), average(ggx * ga)
    both = e_product - e_ggx * e_ga
    gg = slopes * scale * (ggx - e_ggx - xhat * e_ggxx)
    gx = e_gax * (ggx - e_ggx) + e_ggxx * (ga - e_ga) + xhat * (both - 3 * e_ggxx * e_gax)
    gw = m * channel(rstd) * (both - e_ggxx * e_gax)
    return gg, -scale * channel(rstd) * gx, gw.reshape(-1)


def adam(
    p: Array,
    g: Array,
    m: Array,
    v: Array,
    lr: float,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
    step: int,
) -> None:
    """One step of Adam (Kingma & Ba 2015, algorithm 1) on flat arrays; p, m and v change in place.

    m = β1·m + (1-β1)·g,  v = β2·v + (1-β2)·g²,  step counts from 1
    p = p·(1 - lr·weight_decay) - lr · (m / (1-β1^step)) / (sqrt(v / (1-β2^step)) + eps)

    weight_decay is AdamW's, decoupled (Loshchilov & Hutter 2019).
    """
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    p *= 1 - lr * weight_decay
    p -= lr * (m / (1 - beta1**step)) / (np.sqrt(v / (1 - beta2**step)) + eps)


def bce_with_logits(x: Array, target: float) -> tuple[Array, Array]:
    """loss = mean of max(x,0) - t·x + ln(1 + e^-|x|),   gx = (σ(x) - t) / n

    Binary cross-entropy -t ln σ(x) - (1-t) ln(1 - σ(x)) for one target t, and its gradient.
    """
    e = np.exp(-abs(x))
    loss = (np.maximum(x, 0) - target * x + np.log1p(e)).mean()
    larger, smaller = 1 / (1 + e), e / (1 + e)  # of σ(x) and σ(-x)
    positive = x > 0
    gx = (1 - target) * np.where(positive, larger, smaller)
    gx -= target * np.where(positive, smaller, larger)
    return np.asarray(loss), gx / x.size


def logistic_d(real: Array, fake: Array, target: float) -> tuple[Array, Array]:
    """bce(real, target) + bce(fake, 0), and its gradients by real and fake, flat, end to end."""
    (on_real, g_real), (on_fake, g_fake) = (
        bce_with_logits(x, t) for x, t in ((real, target), (fake, 0.0))
    )
    return on_real + on_fake, np.concatenate([g_real.ravel(), g_fake.ravel()])


def logit_figures(real: Array, fake: Array) -> Array:
    """(mean σ(real), mean σ(fake), share of real > 0, of fake < 0, mean real, mean fake)"""
    sigmoid = ACTIVATIONS["sigmoid"][0]
    figures = [sigmoid(real, 0).mean(), sigmoid(fake, 0).mean(), (real > 0).mean(),
               (fake < 0).mean(), real.mean(), fake.mean()]  # fmt: skip
    return np.array(figures, real.dtype)


@dataclass(frozen=True)
class ChannelSum:
    """Σ g over all axes but C, to be taken later: g (N,C,...) -> (C,), or that in the shape `into`.

    A bias's gradient; or a product's, of which g holds N parts.
    """

    g: Array
    into: tuple[int, ...] = ()

    @property
    def shape(self) -> tuple[int, ...]:
        return self.into or (self.size,)

    @property
    def size(self) -> int:
        return self.g.shape[1]

    @property
    def dtype(self) -> Any:
        return self.g.dtype

    def take(self) -> Array:
        return self.g.sum(axis=_batch_axes(self.g)).reshape(self.shape)


def total(row: Sequence[Array | ChannelSum]) -> Array:
    """Σ of the parts of a row, which have one shape."""
    parts = [a.take() if isinstance(a, ChannelSum) else a for a in row]
    return sum(parts[1:], start=parts[0])


def pack(rows: Sequence[Sequence[Array | ChannelSum]], starts: Sequence[int], flat: Array) -> None:
    """flat[start : start + size] = total(row), for each row and its start."""
    for row, start in zip(rows, starts, strict=True):
        a = total(row)
        flat[start : start + a.size].reshape(a.shape)[...] = a


def totals(rows: Sequence[Sequence[Array | ChannelSum]]) -> list[Array]:
    """total(row) of each."""
    return [total(row) for row in rows]


ALIGNMENT = 128  # bytes at which arrays that lie end to end start, so that wide words can be loaded


def aligned_starts(sizes: Sequence[int], itemsize: int) -> list[int]:
    """Where arrays that lie end to end start, and last where they end."""
    unit = ALIGNMENT // itemsize
    return [0, *accumulate(-(-size // unit) * unit for size in sizes)]


def average(a: Array, p: Array, blend: float) -> None:
    """a += blend · (p - a), in place: a step of the moving average of weights p."""
    a += blend * (p - a)


def squares(x: Array, scale: float) -> tuple[Array, Array]:
    """y = scale · Σ x²,   gx = 2 · scale · x"""
    return np.asarray(scale * (x * x).sum()), 2 * scale * x


def add(a: Array, b: Array, out: Array | None = None, factor: float = 1.0) -> Array:
    """a + factor · b, which may be written into out."""
    return np.add(a, factor * b, out=out)


def scale(x: Array, s: Array) -> Array:
    """s · x, s without axes."""
    return s * x
