"""minigan: a GAN framework from scratch on NumPy and CuPy."""

from minigan import ops
from minigan.array import Stream, from_dlpack, manual_seed
from minigan.autograd import Tensor, grad, no_grad
from minigan.primitive import fused, primitive

__version__ = "0.1.0"
__all__ = [
    "Stream",
    "Tensor",
    "from_dlpack",
    "fused",
    "grad",
    "manual_seed",
    "no_grad",
    "ops",
    "primitive",
]
