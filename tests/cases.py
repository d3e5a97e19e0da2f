"""One table: every op of minigan.ops, what to call it with, and what NumPy says in float64.

Adding an op means adding a row; a test fails until there is one. The tests made from this table
(test_ops.py): forward, first to third derivatives, float32, non-contiguous inputs, untouched
inputs. `kinks` says where a derivative jumps or is infinite: the inputs stay away from there.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import oracles

import minigan as mg
from minigan import ops


@dataclass(frozen=True)
class Case:
    op: str
    inputs: list[Callable]  # of a seeded generator, each makes one differentiable argument
    reference: Callable  # (*inputs, **attrs) -> y, in NumPy and independent of the package
    attrs: dict[str, Any]
    call: Callable | None = None  # by default op(*inputs, **attrs)
    kinks: str = ""
    order: int = 3  # the highest that is checked
    multilinear: bool = False  # linear in each input: differences are exact with any eps

    def f(self, *xs):
        call = self.call or getattr(ops, self.op)
        return call(*xs, **self.attrs)

    def expected(self, *xs):
        return self.reference(*xs, **self.attrs)

    def draw(self, seed=0):
        rng = np.random.default_rng(seed)
        return [make(rng) for make in self.inputs]

    def __str__(self):
        attrs = ",".join(f"{k}={v}" for k, v in self.attrs.items() if not callable(v))
        return f"{self.op}({attrs})".replace(" ", "")


CASES: list[Case] = []


def row(op, inputs, reference, *, call=None, kinks="", order=3, multilinear=False, **attrs):
    CASES.append(Case(op, inputs, reference, attrs, call, kinks, order, multilinear))


# ------------------------------------------------------------------------------------ input makers


def normal(*shape):
    return lambda rng: rng.normal(size=shape)


def between(low, high, *shape):
    return lambda rng: rng.uniform(low, high, size=shape)


def away_from(points, *shape):
    """Normal, but at least 0.05 from each of `points`."""

    def make(rng):
        x = rng.normal(size=shape)
        while (near := np.abs(x[..., None] - np.array(points)).min(axis=-1) < 0.05).any():
            x[near] = rng.normal(size=near.sum())
        return x

    return make


def distinct(*shape):
    """Evenly spaced in -2 .. 2, shuffled: no two elements tie or nearly tie."""
    return lambda rng: rng.permutation(np.linspace(-2, 2, int(np.prod(shape)))).reshape(shape)


MASK = np.random.default_rng(7).random((3, 4)) < 0.5
LABELS = np.array([[2, 0, 2], [4, 4, 1]])

# fmt: off

# -------------------------------------------------------------------------- arithmetic, elementwise

row("add", [normal(3, 4), normal(4)], np.add, multilinear=True)
row("add", [normal(3, 4)], lambda x: x + 2.5, call=lambda x: 2.5 + x)
row("sub", [normal(3, 1), normal(2, 1, 4)], np.subtract, multilinear=True)
row("sub", [normal(3, 4)], lambda x: 1 - x, call=lambda x: 1 - x)
row("mul", [normal(3, 4), normal(3, 1)], np.multiply, multilinear=True)
row("mul", [normal(3, 4)], np.square, call=lambda x: x * x)
row("div", [normal(3, 4), away_from([0], 4)], np.divide, kinks="b = 0")
row("div", [away_from([0], 4)], np.reciprocal, call=lambda x: 1 / x, kinks="x = 0")
row("neg", [normal(3, 4)], np.negative, multilinear=True)
for n in (2, 3, 1, 0):
    row("power", [normal(3, 4)], lambda x, exponent: x**exponent, exponent=n)
for n in (0.5, -1.5):
    row(
        "power", [between(0.5, 2, 3, 4)], lambda x, exponent: x**exponent, exponent=n, kinks="x = 0"
    )
row("power", [between(0.5, 2, 3, 4), normal(3, 1)], np.power, kinks="x ≤ 0")
row("power", [normal(3)], lambda b: np.exp2(b), call=lambda b: 2.0**b)
row("exp", [normal(3, 4)], np.exp)
row("log", [between(0.5, 2, 3, 4)], np.log, kinks="x = 0")
row("sqrt", [between(0.5, 2, 3, 4)], np.sqrt, kinks="x = 0")
row("sign", [away_from([0], 3, 4)], np.sign, kinks="x = 0")
row("abs", [away_from([0], 3, 4)], lambda x: np.sqrt(x * x), kinks="x = 0")
row("where", [normal(3, 4), normal(3, 4)], lambda x, b: MASK * x + ~MASK * b,
    call=lambda x, b: ops.where(MASK, x, b), multilinear=True)
row("where", [normal(4), normal(2, 3, 1)], lambda x, b: MASK * x + ~MASK * b,
    call=lambda x, b: ops.where(MASK, x, b), multilinear=True)
row("where", [normal(3, 4)], lambda x: MASK * x - 1.0 * ~MASK,
    call=lambda x: ops.where(MASK, x, -1.0))
row("maximum", [distinct(3, 4), lambda rng: np.array([0.1, -0.03, 0.7, -0.9])],
    lambda x, b: np.where(x > b, x, b), kinks="x = b")
row("minimum", [distinct(3, 4), lambda rng: np.array([0.1, -0.03, 0.7, -0.9])],
    lambda x, b: np.where(x < b, x, b), kinks="x = b")
row("clip", [away_from([-0.5, 1.0], 4, 5)],
    lambda x, low, high: np.where(x < low, low, np.where(x > high, high, x)),
    low=-0.5, high=1.0, kinks="x = low, x = high")
row("tanh", [normal(3, 4)], lambda x: np.sinh(x) / np.cosh(x))
row("sigmoid", [normal(3, 4)], lambda x: 1 / (1 + np.exp(-x)))
row("softplus", [normal(3, 4)], lambda x: np.log(1 + np.exp(x)))
row("log_sigmoid", [normal(3, 4)], lambda x: np.log(1 / (1 + np.exp(-x))))
row("relu", [away_from([0], 3, 4)], lambda x: x * (x > 0), kinks="x = 0")
for slope in (0.01, 0.2, 1.5):
    row("leaky_relu", [away_from([0], 3, 4)], lambda x, slope: np.where(x > 0, x, slope * x),
        slope=slope, kinks="x = 0")
for alpha in (1.0, 0.5):
    row("elu", [away_from([0], 3, 4)], lambda x, alpha: np.where(x > 0, x, alpha * (np.exp(x) - 1)),
        alpha=alpha, kinks="x = 0")
for axis in (-1, 0, 1):
    row("log_softmax", [normal(3, 4, 2)],
        lambda x, axis: np.log(np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)),
        axis=axis)
row("astype", [normal(3, 4)], lambda x, dtype: x, dtype=np.float64)

# ----------------------------------------------------------------------------------- reductions

for axis, keepdims in [(None, False), (1, False), (-1, True), ((0, 2), False), ((-1, 0), True)]:
    given = {"axis": axis, "keepdims": keepdims}
    row("sum", [normal(3, 4, 2)], np.sum, multilinear=True, **given)
    row("mean", [normal(3, 4, 2)], np.mean, multilinear=True, **given)
    row("var", [normal(3, 4, 2)], np.var, **given)
    row("max", [distinct(3, 4, 2)], np.max, kinks="ties", **given)
    row("min", [distinct(3, 4, 2)], np.min, kinks="ties", **given)
row("var", [normal(3, 4)], np.var, axis=1, ddof=1)

# -------------------------------------------------------------------------------------- shapes

row("broadcast_to", [normal(3, 1)], lambda x: np.stack([x.repeat(4, axis=1)] * 2),
    call=lambda x: ops.broadcast_to(x, (2, 3, 4)), multilinear=True)
row("reshape", [normal(3, 4)], lambda x: x.ravel().reshape(2, 6),
    call=lambda x: ops.reshape(x, 2, -1), multilinear=True)
row(
    "flatten",
    [normal(2, 3, 4)],
    lambda x, start: np.stack([a.ravel() for a in x]),
    start=1,
    multilinear=True,
)
row("transpose", [normal(2, 3, 4)], lambda x: np.einsum("abc->cab", x),
    call=lambda x: ops.transpose(x, 2, 0, -2), multilinear=True)
row("transpose", [normal(3, 4)], lambda x: np.einsum("ab->ba", x), multilinear=True)
row(
    "swapaxes",
    [normal(2, 3, 4)],
    lambda x, a, b: np.einsum("abc->cba", x),
    a=0,
    b=-1,
    multilinear=True,
)
row("squeeze", [normal(1, 3, 1)], lambda x: x[0, :, 0], multilinear=True)
row("squeeze", [normal(1, 3, 1)], lambda x, axis: x[:, :, 0], axis=-1, multilinear=True)
row("expand_dims", [normal(3, 4)], lambda x, axis: x[..., None], axis=-1, multilinear=True)
for index in [
    np.s_[1],
    np.s_[-1, 1:],
    np.s_[..., None, ::2],
    np.s_[::-1, :, 3:0:-2],
    np.s_[[2, 0, 2]],
    np.s_[np.array([[0, 1], [1, 1]]), :, 1],
    np.s_[MASK],
    np.s_[:, :0],
]:
    row("getitem", [normal(3, 4, 5)], lambda x, index: x[index], index=index, multilinear=True)
row("flip", [normal(2, 3, 4)], lambda x, axis: x[::-1, :, ::-1], axis=(0, -1), multilinear=True)
row("pad", [normal(3, 4)], lambda x, width: np.pad(x, width), width=((2, 0), (1, 3)),
    multilinear=True)
row("pad", [normal(3, 4)], lambda x, width, mode: np.pad(x, width, mode),
    width=((2, 0), (1, 3)), mode="reflect", multilinear=True)
row("concat", [normal(2, 3), normal(2, 1), normal(2, 2)],
    lambda *xs, axis: np.hstack(xs), call=lambda *xs, axis: ops.concat(xs, axis), axis=-1,
    multilinear=True)
row("stack", [normal(2, 3), normal(2, 3)],
    lambda *xs, axis: np.dstack(xs), call=lambda *xs, axis: ops.stack(xs, axis), axis=-1,
    multilinear=True)

# ------------------------------------------------------------------------------ matrix products

for a, b, subscripts in [
    ((3, 4), (4, 2), "ij,jk->ik"),
    ((4,), (4, 2), "j,jk->k"),
    ((3, 4), (4,), "ij,j->i"),
    ((4,), (4,), "j,j->"),
    ((2, 3, 4), (4, 2), "nij,jk->nik"),
    ((3, 4), (2, 4, 2), "ij,njk->nik"),
    ((4,), (2, 4, 3), "j,njk->nk"),
    ((2, 1, 3, 4), (5, 4, 2), "nmij,ljk->nlik"),
]:
    row(
        "matmul",
        [normal(*a), normal(*b)],
        lambda x, b, s=subscripts: np.einsum(s, x, b),
        multilinear=True,
    )
row("linear", [normal(3, 4), normal(2, 4), normal(2)],
    lambda x, w, b: np.einsum("ni,oi->no", x, w) + b)
row("linear", [normal(2, 3, 4), normal(2, 4)],
    lambda x, w: np.einsum("mni,oi->mno", x, w), multilinear=True)
row("linear", [normal(4), normal(2, 4)], lambda x, w: np.einsum("i,oi->o", x, w), multilinear=True)
row("embedding", [normal(5, 3)], lambda w: np.stack([w[row] for row in LABELS]),
    call=lambda w: ops.embedding(LABELS, w), multilinear=True)

# ------------------------------------------------------------------------------- convolutions

GEOMETRIES = [
    {},
    {"stride": 2, "pad": 1},
    {"stride": (2, 3), "pad": ((1, 0), (2, 1)), "dilation": (1, 2)},
    {"pad": (0, 2), "groups": 2},
    {"stride": 3, "pad": ((0, 2), (1, 1)), "dilation": 2, "groups": 2},
]
X, SIZE, TAPS = (2, 4, 8, 7), (8, 7), (3, 2)
for geometry in GEOMETRIES:
    groups = geometry.get("groups", 1)
    out = oracles.out_size(SIZE, TAPS, **{k: v for k, v in geometry.items() if k != "groups"})
    x, w, gy = normal(*X), normal(6, 4 // groups, *TAPS), normal(2, 6, *out)
    row("conv2d", [x, w], oracles.conv2d, multilinear=True, **geometry)
    row("conv2d_dgrad", [gy, w], oracles.conv2d_dgrad, size=SIZE, multilinear=True, **geometry)
    row("conv2d_wgrad", [x, gy], oracles.conv2d_wgrad, taps=TAPS, multilinear=True, **geometry)
row("conv2d", [normal(2, 2, 4, 5), normal(3, 2, 3, 3), normal(3)], oracles.conv2d, pad=1)
for geometry in [
    {},
    {"stride": 2, "pad": 1},
    {"stride": (2, 3), "pad": ((1, 0), (1, 2)), "output_padding": (1, 2)},
    {"stride": 2, "pad": 1, "output_padding": 1, "groups": 2},
    {"stride": 2, "dilation": (2, 3), "output_padding": (1, 0)},
]:
    groups = geometry.get("groups", 1)
    row("conv_transpose2d", [normal(2, 4, 3, 4), normal(4, 6 // groups, 3, 2), normal(6)],
        oracles.conv_transpose2d, **geometry)

# -------------------------------------------------------------------------- pooling and resizing

for geometry in [
    {"kernel": 2},
    {"kernel": (3, 2), "stride": (1, 2), "pad": ((1, 0), (1, 1))},
    {"kernel": 2, "stride": 3, "pad": 1},
]:
    row("avg_pool2d", [normal(2, 2, 5, 6)], oracles.avg_pool2d, multilinear=True, **geometry)
    row("max_pool2d", [distinct(2, 2, 5, 6)], oracles.max_pool2d, kinks="ties", **geometry)
row("pad_images", [normal(2, 2, 4, 3)], lambda x, pads: np.pad(x, ((0, 0), (0, 0), (1, 1), (2, 2))),
    pads=(1, 2), multilinear=True)
row("pad_images", [normal(2, 2, 4, 3)],
    lambda x, pads, mode: np.pad(x, ((0, 0), (0, 0), (1, 3), (2, 0)), mode),
    pads=((1, 3), (2, 0)), mode="reflect", multilinear=True)
row("upsample_nearest", [normal(2, 2, 3, 2)], lambda x, factor: np.kron(x, np.ones((3, 3))),
    factor=3, multilinear=True)
for size in [(6, 8), (3, 7), (2, 3), (1, 9)]:
    row("resize", [normal(2, 2, 3, 4)], oracles.resize, size=size, multilinear=True)
    for align in (False, True):
        row("resize", [normal(2, 2, 3, 4)], oracles.resize, size=size, mode="bilinear",
            align_corners=align, multilinear=True)

# ------------------------------------------------------------------------------ normalisation


def with_act(shape, reference, affine=("weight", "bias")):
    """Inputs (x, then those of `affine`) whose pre-activation stays 0.02 away from 0."""

    def make(rng):
        while True:
            arrays = [rng.normal(size=shape), *(rng.normal(size=shape[1]) for _ in affine)]
            if np.abs(reference(*arrays)).min() > 0.02:
                return arrays

    return [lambda rng, i=i: make(np.random.default_rng(3))[i] for i in range(1 + len(affine))]


KINKED = {"relu": "pre-activation = 0", "leaky_relu": "pre-activation = 0"}
for act in oracles.ACTIVATIONS:
    given = {"act": act, "kinks": KINKED.get(act, ""), "slope": 0.2}
    row("bias_act", with_act((3, 2, 4), oracles.bias_act, ["bias"]), oracles.bias_act, **given)
    row("bias_act", with_act((3, 4), oracles.bias_act, []), oracles.bias_act, **given)
    for shape in [(6, 3), (2, 3, 2, 3)]:
        row("batch_norm", with_act(shape, oracles.batch_norm), oracles.batch_norm, **given)
    row("batch_norm", with_act((4, 3, 2), oracles.batch_norm, []), oracles.batch_norm, **given)
row("batch_norm", [normal(6, 3), normal(3)],
    lambda x, b, eps: oracles.batch_norm(x, None, b, eps=eps),
    call=lambda x, b, eps: ops.batch_norm(x, None, b, eps=eps), eps=0.3)
row("batch_norm", [normal(6, 3), normal(3)], oracles.batch_norm, eps=0.3)
row("instance_norm", [normal(2, 3, 4, 2), normal(3), normal(3)],
    lambda x, w, b, eps=1e-5: (
        oracles.normalised(x, (2, 3), eps) * w[:, None, None] + b[:, None, None]))
row(
    "instance_norm",
    [normal(2, 3, 4, 2)],
    lambda x, eps: oracles.normalised(x, (2, 3), eps),
    eps=0.1,
)
row("layer_norm", [normal(2, 3, 4), normal(3, 4), normal(3, 4)],
    lambda x, w, b: oracles.normalised(x, (1, 2), 1e-5) * w + b,
    call=lambda x, w, b: ops.layer_norm(x, (3, 4), w, b))
row("layer_norm", [normal(2, 3, 4)], lambda x, shape: oracles.normalised(x, 2, 1e-5), shape=(4,))
row("pixel_norm", [normal(2, 3, 2, 2)],
    lambda x: x / np.sqrt((x * x).mean(axis=1, keepdims=True) + 1e-8))


def seeded_dropout(x, p):
    mg.manual_seed(5, step=2)
    return ops.dropout(x, p)


def masked(x, p):
    keep = mg.array.Stream(5, "dropout/0", 2).uniform(x.shape) >= p
    return np.where(keep, x / (1 - p), 0)


row("dropout", [normal(4, 5)], masked, call=seeded_dropout, p=0.3)
row("dropout", [normal(4, 5)], masked, call=seeded_dropout, p=0.0)
