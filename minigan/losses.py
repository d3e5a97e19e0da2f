"""The losses of GANs, functions of the discriminator's logits, and the penalties on its gradient.

real = D(x), fake = D(G(z)): logits of any shape, Tensors or arrays; each loss averages over all
elements, so a map of patches counts as so many samples. σ(x) = 1/(1 + e^-x); softplus(x) =
ln(1 + e^x) = -ln σ(-x) is how every logarithm below is computed, which overflows nowhere.

    loss = LOSSES["hinge"]
    d_loss = loss.discriminator(real, fake)
    g_loss = loss.generator(fake, real)           real is read only by relativistic losses

E means the average over a batch. A loss is minimised by the player whose it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from minigan import kernels, ops
from minigan.array import Array, Stream, xp_of
from minigan.autograd import Tensor, array_of, grad
from minigan.ops import mean, relu, sigmoid, softplus, sqrt
from minigan.primitive import fused

Logits = Any  # a Tensor, or an array


def _square(x: Any) -> Any:
    return x * x


def _check_shapes(op: str, **operands: Any) -> None:
    """Raises: ValueError for shapes that differ: (4,1) and (4,) would be broadcast to (4,4)."""
    (a, x), (b, t) = operands.items()
    if x.shape != t.shape:
        raise ValueError(
            f"{op}: {a} {tuple(x.shape)} and {b} {tuple(t.shape)} must be of one shape"
        )


# --------------------------------------------------------------------------- binary cross-entropy


def bce_with_logits(logits: Logits, target: Any) -> Any:
    """-E[ t · ln σ(x) + (1 - t) · ln(1 - σ(x)) ] = E[ t · softplus(-x) + (1 - t) · softplus(x) ]

    target t: a number or an array of the logits' shape, in [0, 1].
    """
    if not hasattr(target, "astype"):
        return _bce_with_logits(logits, target=float(target))
    if target.ndim:
        _check_shapes("bce_with_logits", logits=logits, target=target)
    target = target.astype(logits.dtype)
    return mean(target * softplus(-logits) + (1 - target) * softplus(logits))


@fused
def _bce_with_logits(logits: Any, *, target: float) -> Any:
    return mean(target * softplus(-logits) + (1 - target) * softplus(logits))


@_bce_with_logits.fast_forward
def _(logits, *, target):  # type: ignore[no-untyped-def]
    return kernels.bce_with_logits(logits, target)  # the loss, and its gradient to save


@_bce_with_logits.fast_vjp
def _(g, gx, logits, *, target):  # type: ignore[no-untyped-def]
    return (kernels.scale(gx, g),)


def bce(p: Any, target: Any, eps: float = 1e-7) -> Any:
    """-E[ t · ln(p + ε) + (1 - t) · ln(1 + ε - p) ], of probabilities p, as ocaml-torch.

    It saturates: bce(0, 1) = -ln ε = 16.118. bce_with_logits(x, t) does not, and should be
    preferred to bce(sigmoid(x), t). In float32 1 + ε is 1.00000012, so bce(1, 0) = 15.942.
    """
    if hasattr(target, "astype"):
        if target.ndim:
            _check_shapes("bce", p=p, target=target)
        target = target.astype(p.dtype)
    return -mean(target * ops.log(p + eps) + (1 - target) * ops.log((1 + eps) - p))


# ----------------------------------------------------------------------- pairs of losses, D then G
# real_target below 1 is one-sided label smoothing, of real samples alone: Salimans et al. 2016,
# "Improved techniques for training GANs", section 3.4; 0.9 in ocaml-torch's MNIST examples.


def logistic_d(real: Logits, fake: Logits, real_target: float = 1.0) -> Any:
    """-E[ln σ(real)] - E[ln(1 - σ(fake))]: Goodfellow et al. 2014, eq. 1, negated."""
    return _logistic_d(real, fake, target=float(real_target))


@fused
def _logistic_d(real: Any, fake: Any, *, target: float) -> Any:
    return bce_with_logits(real, target) + bce_with_logits(fake, 0.0)


@_logistic_d.fast_forward
def _(real, fake, *, target):  # type: ignore[no-untyped-def]
    return kernels.logistic_d(real, fake, target)  # the loss, and both gradients to save


@_logistic_d.fast_vjp
def _(g, saved, real, fake, *, target):  # type: ignore[no-untyped-def]
    both = kernels.scale(saved, g)
    return both[: real.size].reshape(real.shape), both[real.size :].reshape(fake.shape)


def minimax_g(fake: Logits) -> Any:
    """E[ln(1 - σ(fake))]: Goodfellow et al. 2014, eq. 1. Saturates where D wins: -> 0 there."""
    return -bce_with_logits(fake, 0.0)


def non_saturating_g(fake: Logits) -> Any:
    """-E[ln σ(fake)]: Goodfellow et al. 2014, section 3, the last paragraph."""
    return bce_with_logits(fake, 1.0)


def bce_eps_d(real: Logits, fake: Logits, real_target: float = 1.0) -> Any:
    """logistic_d by way of `bce`, with its ε: what ocaml-torch's MNIST examples minimise."""
    return bce(sigmoid(real), real_target) + bce(sigmoid(fake), 0.0)


def bce_eps_g(fake: Logits) -> Any:
    """non_saturating_g by way of `bce`, with its ε."""
    return bce(sigmoid(fake), 1.0)


def least_squares_d(real: Logits, fake: Logits, real_target: float = 1.0, half: bool = True) -> Any:
    """½ E[(real - real_target)²] + ½ E[fake²]: Mao et al. 2017, eq. 2 and 9, with a = 0, b = 1.

    half=False: without both ½.
    """
    loss = mean(_square(real - real_target)) + mean(_square(fake))
    return 0.5 * loss if half else loss


def least_squares_g(fake: Logits, half: bool = True) -> Any:
    """½ E[(fake - 1)²]: Mao et al. 2017, eq. 2 and 9, with c = 1.   half=False: without the ½."""
    loss = mean(_square(fake - 1))
    return 0.5 * loss if half else loss


def hinge_d(real: Logits, fake: Logits) -> Any:
    """E[max(0, 1 - real)] + E[max(0, 1 + fake)]: Miyato et al. 2018, eq. 16; Lim & Ye 2017."""
    return mean(relu(1 - real)) + mean(relu(1 + fake))


def wasserstein_d(real: Logits, fake: Logits) -> Any:
    """E[fake] - E[real]: Arjovsky et al. 2017, eq. 3, negated. D must be Lipschitz to mean much."""
    return mean(fake) - mean(real)


def wasserstein_g(fake: Logits) -> Any:
    """-E[fake]: Arjovsky et al. 2017, theorem 3; hinge's too (Miyato et al. 2018, eq. 17)."""
    return -mean(fake)


def relativistic_d(real: Logits, fake: Logits) -> Any:
    """-E[ln σ(real - fake)], in pairs: Jolicoeur-Martineau 2018, RSGAN."""
    _check_shapes("relativistic_d", real=real, fake=fake)
    return mean(softplus(fake - real))


def relativistic_g(fake: Logits, real: Logits) -> Any:
    """-E[ln σ(fake - real)], in pairs: Jolicoeur-Martineau 2018, RSGAN."""
    _check_shapes("relativistic_g", fake=fake, real=real)
    return mean(softplus(real - fake))


def relativistic_average_d(real: Logits, fake: Logits, half: bool = False) -> Any:
    """-E[ln σ(real - E fake)] - E[ln(1 - σ(fake - E real))]: ibid., RaSGAN.

    half=True: ½ of the whole. Gradients flow through the inner averages too.
    """
    loss = mean(softplus(mean(fake) - real)) + mean(softplus(fake - mean(real)))
    return 0.5 * loss if half else loss


def relativistic_average_g(fake: Logits, real: Logits, half: bool = False) -> Any:
    """relativistic_average_d with real and fake exchanged."""
    return relativistic_average_d(fake, real, half)


def relativistic_average_ls_d(real: Logits, fake: Logits, half: bool = False) -> Any:
    """E[(real - E fake - 1)²] + E[(fake - E real + 1)²]: ibid., RaLSGAN.

    half=True: ½ of the whole, as in ocaml-torch's relativistic_dcgan; its mnist_dcgan has no ½.
    """
    loss = mean(_square(real - mean(fake) - 1)) + mean(_square(fake - mean(real) + 1))
    return 0.5 * loss if half else loss


def relativistic_average_ls_g(fake: Logits, real: Logits, half: bool = False) -> Any:
    """relativistic_average_ls_d with real and fake exchanged."""
    return relativistic_average_ls_d(fake, real, half)


@dataclass(frozen=True)
class GanLoss:
    """What each player minimises.

    d, g: the two functions.   relativistic: g reads the logits of real samples too.
    labelled: d has a real_target, which label smoothing can lower.
    """

    d: Callable[..., Any]
    g: Callable[..., Any]
    source: str
    relativistic: bool = False
    labelled: bool = False

    def discriminator(self, real: Logits, fake: Logits, real_target: float = 1.0) -> Any:
        """The discriminator's loss. Raises: ValueError for a real_target where none is known."""
        if self.labelled:
            return self.d(real, fake, real_target)
        if real_target != 1:
            raise ValueError(
                f"real_target: must be 1, not {real_target}: this loss has no labels to smooth"
            )
        return self.d(real, fake)

    def generator(self, fake: Logits, real: Logits = None) -> Any:
        """The generator's loss. Raises: ValueError if it is relativistic and real is missing."""
        if not self.relativistic:
            return self.g(fake)
        if real is None:
            raise ValueError("generator: a relativistic loss needs the logits of real samples too")
        return self.g(fake, real)


_RELATIVISTIC = "Jolicoeur-Martineau 2018, The relativistic discriminator"

LOSSES = {
    "minimax": GanLoss(
        logistic_d, minimax_g, "Goodfellow et al. 2014, Generative adversarial nets", labelled=True
    ),
    "non-saturating": GanLoss(
        logistic_d, non_saturating_g, "Goodfellow et al. 2014, section 3", labelled=True
    ),
    "bce-eps": GanLoss(bce_eps_d, bce_eps_g, "ocaml-torch, examples/gan", labelled=True),
    "least-squares": GanLoss(
        least_squares_d, least_squares_g, "Mao et al. 2017, Least squares GANs", labelled=True
    ),
    "least-squares-cyclegan": GanLoss(
        least_squares_d,
        partial(least_squares_g, half=False),
        "Zhu et al. 2017, CycleGAN: the ½ in the discriminator's loss alone",
        labelled=True,
    ),
    "hinge": GanLoss(hinge_d, wasserstein_g, "Lim & Ye 2017; Miyato et al. 2018, eq. 16-17"),
    "wasserstein": GanLoss(wasserstein_d, wasserstein_g, "Arjovsky et al. 2017, Wasserstein GAN"),
    "relativistic": GanLoss(relativistic_d, relativistic_g, _RELATIVISTIC, relativistic=True),
    "relativistic-average": GanLoss(
        relativistic_average_d, relativistic_average_g, _RELATIVISTIC, relativistic=True
    ),
    "relativistic-average-ls": GanLoss(
        relativistic_average_ls_d, relativistic_average_ls_g, _RELATIVISTIC, relativistic=True
    ),
    "relativistic-average-ls-half": GanLoss(
        partial(relativistic_average_ls_d, half=True),
        partial(relativistic_average_ls_g, half=True),
        "ocaml-torch, relativistic_dcgan",
        relativistic=True,
    ),
}


# -------------------------------------------------------------------------------------- penalties
# Each takes D as a function from a Tensor of samples (N, ...) to logits (N, ...); close over labels
# outside. Gradients are taken of Σ logits, one sample's by its own values, and recorded, so that
# the penalty can be differentiated by D's weights.

NORM_EPS = 1e-12  # ‖g‖ = sqrt(Σ g² + 1e-12): 1e-6 at g = 0, where sqrt alone has no derivative

Discriminator = Callable[[Tensor], Tensor]


def wgan_gp(
    discriminator: Discriminator,
    real: Any,
    fake: Any,
    alpha: Array | Stream,
    weight: float = 10.0,
    target: float = 1.0,
) -> Any:
    """weight/target² · E[(‖∇D(x̂)‖ - target)²],   x̂ = α · real + (1 - α) · fake

    alpha: (N,), in [0, 1], or the Stream to draw it from, U[0, 1) for each sample.

    Gulrajani et al. 2017, "Improved training of Wasserstein GANs", algorithm 1. A target other
    than 1 is from Karras et al. 2018, "Progressive growing of GANs" (750 on CIFAR-10).
    """
    real, fake = array_of(real), array_of(fake)
    _check_shapes("wgan_gp", real=real, fake=fake)
    a = alpha.uniform(len(real)) if isinstance(alpha, Stream) else alpha
    a = _like(a, real).reshape(-1, *[1] * (real.ndim - 1))
    norm = _gradient_norm("wgan_gp", discriminator, a * real + (1 - a) * fake)
    return (weight / target**2) * mean(_square(norm - target))


def dragan(
    discriminator: Discriminator,
    real: Any,
    noise: Array | Stream,
    weight: float = 10.0,
    target: float = 1.0,
    scale: float = 0.5,
) -> Any:
    """weight · E[(‖∇D(x̂)‖ - target)²],   x̂ = real + scale · std(real) · noise

    noise: like real, or the Stream to draw it from. The paper has N(0, c·I); drawn here is what
    the authors' code adds, α·β with β ~ U[0, 1) for each value and α ~ U[0, 1) for each sample.

    Kodali et al. 2017, "On convergence and stability of GANs".
    """
    real = array_of(real)
    if isinstance(noise, Stream):
        noise = noise.uniform(real.shape) * noise.uniform((len(real), *[1] * (real.ndim - 1)))
    x = real + scale * real.std() * _like(noise, real)
    norm = _gradient_norm("dragan", discriminator, x)
    return weight * mean(_square(norm - target))


def r1(discriminator: Discriminator, real: Any, weight: float = 10.0, half: bool = True) -> Any:
    """weight/2 · E[‖∇D(x)‖²] of real samples x: Mescheder et al. 2018, eq. 9, weight = γ.

    StyleGAN2 has this ½. half=False, weight · E[‖∇D(x)‖²], is what the code of GAN_stability and
    ocaml-torch call reg_param = 10: it is γ = 20.
    """
    g = _gradient("r1", discriminator, real)
    return _squares(g, scale=(0.5 * weight if half else weight) / len(g))


def r2(discriminator: Discriminator, fake: Any, weight: float = 10.0, half: bool = True) -> Any:
    """weight/2 · E[‖∇D(x)‖²] of generated samples x: ibid., eq. 10.   half: see r1."""
    g = _gradient("r2", discriminator, fake)
    return _squares(g, scale=(0.5 * weight if half else weight) / len(g))


@fused
def _squares(x: Any, *, scale: float) -> Any:
    """scale · Σ x²"""
    return scale * (x * x).sum()


@_squares.fast_forward
def _(x, *, scale):  # type: ignore[no-untyped-def]
    return kernels.squares(x, scale)  # the sum, and its gradient to save


@_squares.fast_vjp
def _(g, gx, x, *, scale):  # type: ignore[no-untyped-def]
    return (kernels.scale(gx, g),)


@fused
def plus(loss: Any, penalty: Any, *, factor: float) -> Any:
    """loss + factor · penalty, of one shape."""
    return loss + factor * penalty


@plus.fast_forward
def _(loss, penalty, *, factor):  # type: ignore[no-untyped-def]
    return kernels.add(loss, penalty, factor=factor), None


@plus.fast_vjp
def _(g, saved, loss, penalty, *, factor):  # type: ignore[no-untyped-def]
    return g, kernels.times(g, factor)


def _like(a: Any, x: Array) -> Array:
    """a on the device and in the dtype of x."""
    return xp_of(x).asarray(array_of(a), dtype=x.dtype)


def _gradient(name: str, discriminator: Discriminator, x: Any) -> Any:
    """∂ Σ D(x) / ∂x, recorded.   x (N, ...)"""
    leaf = Tensor(array_of(x), requires_grad=True)
    logits = discriminator(leaf)
    if not logits.requires_grad:
        raise ValueError(f"{name}: D's logits are not recorded; is this inside no_grad()?")
    return grad(logits, leaf, kernels.unit(logits.data), create_graph=True)


def _gradient_norm(name: str, discriminator: Discriminator, x: Array) -> Any:
    """‖∂ Σ D(x) / ∂x‖ of each sample, recorded.   x (N, ...) -> (N,)"""
    g = _gradient(name, discriminator, x)
    return sqrt(_square(g).sum(axis=tuple(range(1, g.ndim))) + NORM_EPS)
