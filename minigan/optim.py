"""Optimizers, and the clipping of gradients and weights.

    optimizer = Adam(net.named_parameters(), lr=2e-4, betas=(0.5, 0.999))
    optimizer.step(minigan.grad(loss, net.parameters()))       or loss.backward(); optimizer.step()

Each group of parameters lies end to end in one flat array, and so do its gradients and its state:
a step is a few lines of maths on long arrays, and on a GPU one launch. The parameters' `data`
become views into that array; writing into them (`p.data[...] = value`) is fine at any time. A step
changes weights in place, so a graph that was recorded before it should not be differentiated after.

Notation: p parameters, g their gradients, lr the rate, step the number of this step from 1.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from minigan import kernels
from minigan.array import Array, to_numpy, xp_of
from minigan.autograd import Tensor
from minigan.flat import Flat, kind

Parameters = Iterable[Tensor] | Iterable[tuple[str, Tensor]]
Options = dict[str, Any]
State = dict[str, Array]
Rate = float | Callable[[int], float]  # a number, or a schedule of the optimizer's step from 0


class Optimizer:
    """What all optimizers do; a subclass adds the formula.

    params: Tensors, or pairs (name, Tensor) as net.named_parameters() gives them, or a list of
    groups: dicts with "params" and any options that differ from the constructor's.

    lr: the learning rate, or a schedule of it, called with the number of steps taken before.
    multiplier (of a group): multiplies lr. 0 or None freezes the group; below 0 it ascends: the
    gradient is negated, weight decay is not.

    weight_decay: adds weight_decay · p, the gradient of an L2 penalty, to g; AdamW differs.

    A parameter with no gradient (None) is skipped, and its own step count stays, as in PyTorch.

    Raises: ValueError for an option or parameter that cannot be.
    """

    decoupled = False  # whether weight decay leaves g alone, and update() does it

    def __init__(self, params: Any, lr: Rate, **options: Any) -> None:
        self.name = type(self).__name__
        self.steps = 0  # calls of step() so far
        self.params: dict[str, Tensor] = {}
        self.groups: list[Options] = []
        self._flats: list[Flat] = []
        defaults: Options = {"lr": lr, "multiplier": 1.0, **options}
        params = list(params)
        if not params:
            raise ValueError(f"{self.name}: no parameters were given")
        for group in params if isinstance(params[0], Mapping) else [{"params": params}]:
            if unknown := group.keys() - defaults.keys() - {"params"}:
                raise ValueError(
                    f"{self.name}: unknown option {min(unknown)!r} in a group: "
                    f"choose from {', '.join(defaults)}"
                )
            own = {key: value for key, value in group.items() if key != "params"}
            self._add_group(group["params"], {**defaults, **own})

    def _add_group(self, params: Parameters, options: Options) -> None:
        self.check(options)
        self.groups.append(options)
        kinds: dict[Any, list[int]] = {}
        for item in params:
            name, p = item if isinstance(item, tuple) else (str(len(self.params)), item)
            if not isinstance(p, Tensor) or p.dtype.kind != "f":
                what = p.dtype if isinstance(p, Tensor) else type(p).__name__
                raise ValueError(f"{self.name}: parameter {name} is no Tensor of floats but {what}")
            if name in self.params or any(p is other for other in self.params.values()):
                raise ValueError(f"{self.name}: parameter {name} was given twice")
            kinds.setdefault(kind(p.data), []).append(len(self.params))
            self.params[name] = p
        tensors = list(self.params.values())
        for places in kinds.values():
            mine = [tensors[i] for i in places]
            self._flats.append(Flat(places, mine, options, self.state_names(options)))

    def check(self, options: Options) -> None:
        """Raises: ValueError for a value out of its range."""
        for key, value in options.items():
            values = value if isinstance(value, tuple | list) else (value,)
            if key in ("lr", "momentum", "weight_decay") and not callable(value):
                self._require(value >= 0, key, value, "0 or above")
            elif key in ("alpha", "betas"):
                self._require(all(0 <= v < 1 for v in values), key, value, "in [0, 1)")
            elif key == "eps":
                self._require(value > 0, key, value, "above 0")

    def _require(self, condition: bool, key: str, value: Any, what: str) -> None:
        if not condition:
            raise ValueError(f"{self.name}: {key} must be {what}, not {value}")

    def state_names(self, options: Options) -> Sequence[str]:
        """What `update` keeps for each parameter between steps."""
        raise NotImplementedError

    def update(self, p: Array, g: Array, lr: float, step: int, s: State, options: Options) -> None:
        """The formula, on flat arrays: changes p and the state s in place, and not g."""
        raise NotImplementedError

    @property
    def rates(self) -> list[float]:
        """The signed learning rate that each group will have in the next step."""
        return [self._rate(options) for options in self.groups]

    def _rate(self, options: Options) -> float:
        lr = options["lr"]
        return float(lr(self.steps) if callable(lr) else lr) * (options["multiplier"] or 0.0)

    def step(self, grads: Sequence[Any] | None = None) -> None:
        """Update the parameters in place.

        grads: a gradient or None for each parameter, in the order given to the constructor, as
        `minigan.grad` returns them; by default each p.grad.

        Raises: ValueError if their number or a shape is wrong; nothing has changed then.
        """
        if grads is None:
            grads = [p.grad for p in self.params.values()]
        if len(grads) != len(self.params):
            raise ValueError(f"{self.name}: {len(grads)} gradients, {len(self.params)} parameters")
        for (name, p), g in zip(self.params.items(), grads, strict=True):
            if g is not None and g.shape != p.data.shape:
                raise ValueError(
                    f"{self.name}: the gradient of {name} has shape {tuple(g.shape)}, "
                    f"the parameter {tuple(p.shape)}"
                )
        arrays = [g.data if isinstance(g, Tensor) else g for g in grads]
        for flat in self._flats:
            if flat.options["multiplier"]:
                self._step(flat, [arrays[i] for i in flat.places])
        self.steps += 1

    def _step(self, flat: Flat, grads: list[Array | None]) -> None:
        rate, decay = self._rate(flat.options), flat.options["weight_decay"]
        flat.adopt()
        added = decay if not self.decoupled else 0.0
        for age, part, g in flat.gather(grads, copy=bool(rate < 0 or added)):
            p = flat.p[part]
            if rate < 0:
                g *= -1
            if added:
                g += added * p
            state = {key: a[part] for key, a in flat.state.items()}
            self.update(p, g, abs(rate), age, state, flat.options)

    def zero_grad(self) -> None:
        """Forget the gradients that `backward` accumulated."""
        for p in self.params.values():
            p.grad = None

    def _state(self) -> dict[str, Array]:
        """Name -> array of all that a resumed training needs, as views that can be written."""
        where = {place: (flat, i) for flat in self._flats for i, place in enumerate(flat.places)}
        state: dict[str, Array] = {}
        for place, name in enumerate(self.params):
            flat, i = where[place]
            state[f"{name}.step"] = flat.steps[i : i + 1].reshape(())
            state.update({f"{name}.{key}": flat.part(a, i) for key, a in flat.state.items()})
        return state

    def state_dict(self) -> dict[str, np.ndarray]:
        """Copies in host memory: "step" (int64), and "<parameter>.<what>" for each parameter.

        Options are not in it: they belong to the configuration.
        """
        state = {name: np.array(to_numpy(a)) for name, a in self._state().items()}
        return {"step": np.array(self.steps, np.int64), **state}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what state_dict() returned, bit for bit.

        Raises: ValueError that names the first entry that is missing, unexpected, or of another
        shape or dtype; nothing has changed then.
        """
        own = {"step": np.zeros((), np.int64), **self._state()}
        for name, a in own.items():
            if name not in state:
                raise ValueError(f"{self.name}: the state has no {name}")
            b = state[name]
            if b.shape != a.shape or b.dtype != a.dtype:
                raise ValueError(
                    f"{self.name}: {name} is {b.dtype} {tuple(b.shape)} in the state, "
                    f"{a.dtype} {tuple(a.shape)} here"
                )
        for name in state:
            if name not in own:
                raise ValueError(f"{self.name}: the state has {name}, which is no part of it here")
        for name, a in own.items():
            a[...] = xp_of(a).asarray(state[name])
        self.steps = int(own["step"])


class SGD(Optimizer):
    """Stochastic gradient descent, with PyTorch's arguments.

    v = momentum · v + (1 - dampening) · g        (v = g in a parameter's first step)
    p = p - lr · v                                nesterov: p - lr · (g + momentum · v)
    """

    def __init__(
        self, params: Any, lr: Rate = 1e-3, momentum: float = 0.0, dampening: float = 0.0,
        weight_decay: float = 0.0, nesterov: bool = False,
    ) -> None:  # fmt: skip
        options = {"momentum": momentum, "dampening": dampening, "nesterov": nesterov}
        super().__init__(params, lr, weight_decay=weight_decay, **options)

    def check(self, options: Options) -> None:
        super().check(options)
        if options["nesterov"] and (options["momentum"] == 0 or options["dampening"] != 0):
            raise ValueError(f"{self.name}: nesterov needs a momentum above 0 and no dampening")

    def state_names(self, options: Options) -> Sequence[str]:
        return ["v"] if options["momentum"] else []

    def update(self, p: Array, g: Array, lr: float, step: int, s: State, options: Options) -> None:
        momentum, dampening = options["momentum"], options["dampening"]
        if momentum:
            if step == 1:
                s["v"][...] = g
            else:
                s["v"] *= momentum
                s["v"] += (1 - dampening) * g
            g = g + momentum * s["v"] if options["nesterov"] else s["v"]
        p -= lr * g


class RMSProp(Optimizer):
    """RMSProp (Hinton 2012, lecture 6e), with PyTorch's arguments and its eps outside the root.

    v = alpha · v + (1 - alpha) · g²
    m = alpha · m + (1 - alpha) · g         if centered, v - m² stands for v below (Graves 2013,
    d = g / (sqrt(v) + eps)                 "Generating sequences with RNNs", eq. 38-45)
    b = momentum · b + d
    p = p - lr · b                          without momentum: b = d
    """

    def __init__(
        self, params: Any, lr: Rate = 1e-2, alpha: float = 0.99, eps: float = 1e-8,
        weight_decay: float = 0.0, momentum: float = 0.0, centered: bool = False,
    ) -> None:  # fmt: skip
        options = {"alpha": alpha, "eps": eps, "momentum": momentum, "centered": centered}
        super().__init__(params, lr, weight_decay=weight_decay, **options)

    def state_names(self, options: Options) -> Sequence[str]:
        return ["v"] + ["m"] * bool(options["centered"]) + ["b"] * bool(options["momentum"])

    def update(self, p: Array, g: Array, lr: float, step: int, s: State, options: Options) -> None:
        alpha, xp = options["alpha"], xp_of(p)
        s["v"] += (1 - alpha) * (g * g - s["v"])
        variance = s["v"]
        if options["centered"]:
            s["m"] += (1 - alpha) * (g - s["m"])
            variance = xp.maximum(variance - s["m"] * s["m"], 0)  # rounding can take it below 0
        d = g / (xp.sqrt(variance) + options["eps"])
        if options["momentum"]:
            s["b"] *= options["momentum"]
            s["b"] += d
            d = s["b"]
        p -= lr * d


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015, algorithm 1), with PyTorch's arguments.

    m = β1·m + (1-β1)·g,   v = β2·v + (1-β2)·g²
    p = p - lr · (m / (1-β1^step)) / (sqrt(v / (1-β2^step)) + eps)
    """

    def __init__(
        self, params: Any, lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 0.0,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas=betas, eps=eps, weight_decay=weight_decay)

    def state_names(self, options: Options) -> Sequence[str]:
        return ["m", "v"]

    def update(self, p: Array, g: Array, lr: float, step: int, s: State, options: Options) -> None:
        beta1, beta2 = options["betas"]
        decay = options["weight_decay"] if self.decoupled else 0.0
        kernels.adam(p, g, s["m"], s["v"], lr, beta1, beta2, options["eps"], decay, step)


class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019, algorithm 2).

    p = p · (1 - lr · weight_decay), then Adam's step; g stays as it is.
    """

    decoupled = True

    def __init__(
        self, params: Any, lr: Rate = 1e-3, betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8, weight_decay: float = 1e-2,
    ) -> None:  # fmt: skip
        super().__init__(params, lr, betas, eps, weight_decay)


# --------------------------------------------------------------------------------------- clipping


def grad_norm(grads: Iterable[Any]) -> float:
    """sqrt(Σ g²) over all elements of all gradients, summed in float64; None counts for nothing."""
    arrays = [g.data if isinstance(g, Tensor) else g for g in grads if g is not None]
    return math.sqrt(float(sum((a.astype(np.float64) ** 2).sum() for a in arrays)))


def clip_grad_norm(grads: Sequence[Any], max_norm: float) -> tuple[list[Any], float]:
    """(gradients scaled by max_norm/norm if their norm is above max_norm, that norm before).

    norm: of all together, see grad_norm. Returns Tensors where Tensors were given, None for None;
    what was given is not changed. A norm that is no number leaves the gradients as they are.
    """
    norm = grad_norm(grads)
    if not norm > max_norm:
        return list(grads), norm
    return [_map(g, lambda a: a * (max_norm / norm)) for g in grads], norm


def clip_grad_value(grads: Sequence[Any], max_value: float) -> list[Any]:
    """Gradients with each element clipped to [-max_value, max_value]; types as clip_grad_norm."""
    return [_map(g, lambda a: a.clip(-max_value, max_value)) for g in grads]


def clip_weights(params: Iterable[Tensor], max_value: float) -> None:
    """Clip the values of params in place to [-max_value, max_value].

    Keeps a critic Lipschitz: Arjovsky et al. 2017, "Wasserstein GAN", algorithm 1, with 0.01.
    """
    for p in params:
        p.data.clip(-max_value, max_value, out=p.data)


def _map(g: Any, function: Callable[[Array], Array]) -> Any:
    if isinstance(g, Tensor):
        return Tensor.wrap(function(g.data))
    return None if g is None else function(g)
