"""What there is in kernels/*.cu: each kernel's rung and job, and a launcher for the ladder's rungs.

A test holds the names here to those in the files.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import NamedTuple

import numpy as np

from minigan.array import Array, xp_of
from minigan.kernels import cuda
from minigan.kernels.plan import Geometry
from minigan.kernels.reference import Pads, Pair
from minigan.kernels.signatures import signatures


class Entry(NamedTuple):
    """rung: of the ladder in README.md; "-" for kernels that have none: memory bounds them."""

    name: str
    rung: str
    computes: str

    @property
    def file(self) -> str:
        return signatures()[self.name].file


KERNELS = {
    name: Entry(name, rung, computes)
    for name, rung, computes in (
        ("conv_naive", "1", "y = conv(x, w), an output a thread"),
        ("conv_tiled", "2", "y = conv(x, w), 16 × 16 tiles in shared memory"),
        ("conv_register", "3", "y = conv(x, w), 4 × 4 outputs a thread"),
        ("conv_vectorised", "4", "y = conv(x, w), four floats a load"),
        ("conv2d", "5, 6", "y = conv(x, w): implicit GEMM, cp.async; 6 is TF32"),
        ("conv2d_dgrad", "5, 6", "gx, the transposed convolution; its phases apart"),
        ("conv2d_wgrad", "5, 6", "gw = Σ over images and pixels of x · g"),
        ("matmul", "5, 6", "act(a · b + bias)"),
        ("matmul_dot", "-", "a matrix times a vector, a block an output"),
        ("matmul_thread", "-", "a vector times a matrix, an outer product: a thread an output"),
        ("col2im", "-", "gx from the columns of a GEMM: a gather, no atomics"),
        ("reduce_slices", "-", "act(Σ slices + bias): the end of every split sum"),
        ("bias_act", "-", "y = act(x + bias)"),
        ("bias_act_backward", "-", "gx = g · act'(y), and slices of gbias"),
        ("batch_norm", "-", "batch norm + activation, a channel a block"),
        ("batch_norm_averages", "-", "running averages of mean and variance"),
        ("batch_norm_backward", "-", "its gradients, a channel a block"),
        ("batch_norm_stats", "-", "mean and squares of a slice of a channel"),
        ("batch_norm_apply", "-", "y = act(weight · (x - mean) · rstd + bias)"),
        ("batch_norm_backward_sums", "-", "slices of Σ ga and Σ ga · x̂"),
        ("batch_norm_backward_apply", "-", "gx of batch norm, gweight, gbias"),
        ("batch_norm_double_backward", "-", "gradients of batch norm's gx by g, x and weight"),
        ("batch_norm_double_backward_sums", "-", "slices of Σ ggx, Σ ggx · x̂ and Σ ggx · ga"),
        ("batch_norm_double_backward_apply", "-", "the gradients of gx, from those sums"),
        ("add", "-", "y = a + factor · b: gradients that meet, a penalty"),
        ("scale", "-", "y = s · x: a saved gradient times that from above"),
        ("adam", "-", "one step of Adam on a flat buffer"),
        ("pack", "-", "up to 8 sums of gradients, end to end in a flat array"),
        ("average", "-", "a += blend · (p - a): moving average of weights"),
        ("bce_with_logits", "-", "binary cross-entropy of logits, and its gradient"),
        ("logistic_d", "-", "a discriminator's cross-entropy, and its gradients"),
        ("logit_figures", "-", "what a training logs of a discriminator's logits"),
        ("squares", "-", "a gradient penalty's scale · Σ x², and its gradient"),
        ("philox_uniform", "-", "uniform numbers, bit by bit those of the host"),
        ("philox_normal", "-", "normal numbers, those of the host within ulps"),
    )
}

RUNGS: dict[str, Pair] = {  # the ladder's kernels, and (columns, rows) of a block
    "conv_naive": (256, 1),
    "conv_tiled": (16, 16),
    "conv_register": (64, 64),
    "conv_vectorised": (64, 64),
}


def rung_grid(rung: str, z: Geometry, batch: int) -> Pair:
    columns, rows = RUNGS[rung]
    return math.ceil(batch * z.P * z.Q / columns), math.ceil(z.K / rows)


def rung_defines(z: Geometry) -> tuple[tuple[str, int], ...]:
    return tuple((key, value) for key, value in asdict(z).items() if key != "GROUPS")


def conv2d_by(rung: str, x: Array, w: Array, stride: Pair, pad: Pads, dilation: Pair) -> Array:
    """conv2d by a kernel of ladder.cu."""
    z = Geometry.of(x.shape, w.shape, stride, pad, dilation, 1)
    y = xp_of(x).empty((len(x), z.K, z.P, z.Q), np.float32)
    kernel = cuda.Kernel(rung, rung_defines(z))
    cuda.launch(kernel, rung_grid(rung, z, len(x)), (256,), (x, w, y, len(x)))
    return y
