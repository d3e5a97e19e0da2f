"""Check gradients of any order against central differences along a random direction.

With v = dL/dy and a direction d, both random:   Σ <gx, d>  =  <v, f(x + ε·d) - f(x - ε·d)> / 2ε

One number tests every element of every gradient at once. For order 2 the function under test is the
gradient itself, (x, v) -> gx, and so on: its own vjp, checked by the same lines.
"""

import numpy as np

import minigan as mg
from minigan import ops


def check_grads(f, xs, order=2, eps=1e-5, tolerance=1e-6, seed=0):
    """Assert that the gradients of y = f(*Tensors) by all of `xs` are right, up to `order`.

    xs: arrays, in float64 unless f is linear in each of them and eps=1, which is exact.
    tolerance: relative to Σ |gx · d|, so that cancellation in the sum does not matter.
    """
    rng = np.random.default_rng(seed)
    dtype = xs[0].dtype

    def value(*arrays):
        return f(*(mg.Tensor(a, requires_grad=True) for a in arrays))

    leaves = [mg.Tensor(x, requires_grad=True) for x in xs]
    y = f(*leaves)
    v = np.asarray(rng.normal(size=y.shape)).astype(dtype)
    gxs = mg.grad(y, leaves, v)
    for gx, x in zip(gxs, xs, strict=True):
        assert (gx.shape, gx.dtype) == (x.shape, x.dtype), f"gradient of {x.shape} is {gx.shape}"

    directions = [np.asarray(rng.normal(size=x.shape)).astype(dtype) for x in xs]
    ahead = value(*(x + eps * d for x, d in zip(xs, directions, strict=True)))
    behind = value(*(x - eps * d for x, d in zip(xs, directions, strict=True)))
    expected = np.vdot(v, (ahead.numpy() - behind.numpy()) / (2 * eps))
    products = [gx.numpy() * d for gx, d in zip(gxs, directions, strict=True)]
    actual = sum(p.sum() for p in products)
    scale = max(1.0, sum(np.abs(p).sum() for p in products))
    assert abs(actual - expected) <= tolerance * scale, (
        f"{order} orders to go: gradient along d is {actual}, the differences say {expected}"
    )
    if order == 1:
        return

    def vjp(*args):
        *inputs, g = args
        gradients = mg.grad(f(*inputs), inputs, g, create_graph=True)
        return ops.concat([gx.reshape(-1) for gx in gradients])

    flat = np.concatenate([gx.numpy().ravel() for gx in gxs])
    np.testing.assert_allclose(
        value_of(vjp, *xs, v), flat, rtol=1e-9, atol=1e-9, err_msg="create_graph changed the value"
    )
    check_grads(vjp, [*xs, v], order - 1, eps, tolerance, seed + 1)


def value_of(f, *arrays):
    return f(*(mg.Tensor(a, requires_grad=True) for a in arrays)).numpy()
