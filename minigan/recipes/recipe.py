"""A recipe: everything that decides what a training computes, in one frozen dataclass."""

from __future__ import annotations

import dataclasses
import difflib
import math
from dataclasses import dataclass, field
from typing import Any

from minigan.gan import PENALTIES
from minigan.losses import LOSSES
from minigan.models import FAMILIES
from minigan.nn.init import SCHEMES


class RecipeError(ValueError):
    """A field that does not exist, or a value that it cannot take; one line that says which."""


def _field(
    default: Any, help: str, choices: Any = None, low: float | None = None, high: Any = None
) -> Any:
    return field(
        default=default, metadata={"help": help, "choices": choices, "low": low, "high": high}
    )


OPTIMIZERS = ("adam", "adamw", "rmsprop", "sgd")


@dataclass(frozen=True)
class Recipe:
    """The fields that `minigan train RECIPE --set field=value` can change.

    A step is n_critic updates of the discriminator and one of the generator.

    Raises: RecipeError from `with_settings` and on construction, naming field and value.
    """

    net: str = _field("mnist-dcgan", "the pair of networks", FAMILIES)
    about: str = _field("", "what this recipe is")
    data: str = _field("mnist-10k", "the name of a known set, or a path")
    steps: int = _field(2000, "how long to train", low=1)
    batch: int = _field(64, "images a batch", low=2)
    seed: int = _field(0, "of all random numbers", low=0, high=2**63 - 1)

    latent_dim: int = _field(100, "length of z", low=1)
    latent: str = _field("normal", "distribution of z: N(0,1), or U(-1,1)", ("normal", "uniform"))
    fake_labels: str = _field(
        "random", "classes of fakes: drawn, or row r always r mod classes", ("random", "constant")
    )
    init: str = _field("pytorch", "initial weights", SCHEMES)

    loss: str = _field("non-saturating", "the game that is played", LOSSES)
    real_target: float = _field(1.0, "one-sided label smoothing, as 0.9", low=0, high=1)
    penalty: str = _field("none", "gradient penalty on the discriminator", PENALTIES)
    penalty_weight: float = _field(10.0, "its factor: λ of wgan-gp and dragan, γ of r1, r2", low=0)
    penalty_every: int = _field(1, "once in so many steps, times as many", low=1)
    n_critic: int = _field(1, "discriminator updates a step", low=1)
    clip_weights: float = _field(0.0, "of the discriminator, to ±this; 0: not", low=0)
    clip_grad_norm: float = _field(0.0, "of each network's gradient; 0: not", low=0)

    optimizer: str = _field("adam", "of both networks", OPTIMIZERS)
    lr_g: float = _field(2e-4, "learning rate of the generator", low=0)
    lr_d: float = _field(2e-4, "learning rate of the discriminator", low=0)
    beta1: float = _field(0.5, "Adam's β1; momentum of rmsprop and sgd", low=0, high=0.9999)
    beta2: float = _field(0.999, "Adam's β2; α of rmsprop", low=0, high=0.999999)
    weight_decay: float = _field(0.01, "adamw's, decoupled from the gradient", low=0)
    decay: str = _field(
        "constant", "of both rates over the steps", ("constant", "linear", "cosine")
    )
    ema: float = _field(
        0.0, "generator weights' moving average, used for samples; 0: none", low=0, high=0.999999
    )

    log_every: int = _field(50, "steps between log lines", low=1)
    sample_every: int = _field(250, "steps between sample grids", low=1)
    checkpoint_every: int = _field(500, "steps between checkpoints", low=1)
    keep_checkpoints: int = _field(3, "newest checkpoints kept", low=1)

    def __post_init__(self) -> None:
        for f in dataclasses.fields(self):
            value, limits = getattr(self, f.name), f.metadata
            if limits["choices"] is not None and value not in limits["choices"]:
                raise RecipeError(
                    f"{f.name} must be one of {', '.join(limits['choices'])}, not {value!r}"
                    f"{did_you_mean(str(value), list(limits['choices']))}"
                )
            if isinstance(value, float) and not math.isfinite(value):
                raise RecipeError(f"{f.name} must be a finite number, not {value}")
            if limits["low"] is not None and value < limits["low"]:
                raise RecipeError(f"{f.name} must be at least {limits['low']}, not {value}")
            if limits["high"] is not None and value > limits["high"]:
                raise RecipeError(f"{f.name} must be at most {limits['high']}, not {value}")
        if self.real_target != 1 and not LOSSES[self.loss].labelled:
            raise RecipeError(f"real_target must be 1: the loss {self.loss} has no labels")

    def with_settings(self, settings: dict[str, str]) -> Recipe:
        """This recipe with fields changed, their values parsed from text by the field's type."""
        types = {f.name: type(getattr(self, f.name)) for f in dataclasses.fields(self)}
        changes: dict[str, Any] = {}
        for name, text in settings.items():
            if name not in types:
                raise RecipeError(f"no field {name!r} in a recipe{did_you_mean(name, list(types))}")
            try:
                changes[name] = types[name](text)
            except ValueError:
                kind = {int: "a whole number", float: "a number"}[types[name]]
                raise RecipeError(f"{name} must be {kind}, not {text!r}") from None
        return dataclasses.replace(self, **changes)

    def to_dict(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Recipe:
        """The recipe of `to_dict`.   Raises: RecipeError for a field that this version lacks."""
        names = {f.name for f in dataclasses.fields(cls)}
        for name in values:
            if name not in names:
                raise RecipeError(f"no field {name!r} in a recipe: saved by another version?")
        return cls(**values)


def did_you_mean(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""
