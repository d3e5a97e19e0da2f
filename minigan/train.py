"""Training: the state of a run, and one step of it. The loop around it is in loop.py.

A step is a pure function of the state and the step number: latents, labels, data order and dropout
masks come from counter-based streams keyed by (seed, name, step). So a run that was stopped,
however rudely, goes on from its newest checkpoint and computes what it would have computed.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import numpy as np

from minigan import array, kernels, optim, schedules
from minigan.array import Array, Stream, manual_seed, to_device, to_numpy, xp_of
from minigan.autograd import observe
from minigan.captured import CapturedStep, check_recipe
from minigan.checkpoint import Checkpoint
from minigan.data import Batches, DataError, Dataset
from minigan.gan import Average, Game, Names, Turn, all_finite
from minigan.kernels import launcher
from minigan.losses import LOSSES
from minigan.models import FAMILIES
from minigan.nn import Module
from minigan.recipes import Recipe
from minigan.runs import RunError
from minigan.sample import Sampler, draw_latents, load_part, recipe_of, use_device

GRID = 100  # samples in a grid


class NonFinite(RuntimeError):
    """A loss, gradient or weight that is NaN or infinite: in which network and step, where from."""

    def __init__(self, step: int, net: str, op: str | None, what: str = "loss or gradient") -> None:
        self.step, self.net, self.op = step, net, op
        origin = f"; the first op that made one is {op}" if op else ""
        super().__init__(f"step {step}: NaN or infinity in the {net}'s {what}{origin}")


def make_optimizer(recipe: Recipe, net: Module, lr: float) -> optim.Optimizer:
    """The recipe's optimizer on all parameters of `net`."""
    rate: Any = lr
    if recipe.decay == "linear":
        rate = schedules.linear(lr, 0.0, recipe.steps)
    elif recipe.decay == "cosine":
        rate = schedules.multiply(lr, schedules.cosine(recipe.steps))
    named = net.named_parameters()
    if recipe.optimizer == "adam":
        return optim.Adam(named, lr=rate, betas=(recipe.beta1, recipe.beta2))
    if recipe.optimizer == "adamw":
        betas = (recipe.beta1, recipe.beta2)
        return optim.AdamW(named, lr=rate, betas=betas, weight_decay=recipe.weight_decay)
    if recipe.optimizer == "rmsprop":
        return optim.RMSProp(named, lr=rate, alpha=recipe.beta2, momentum=recipe.beta1)
    return optim.SGD(named, lr=rate, momentum=recipe.beta1)


class Inputs(NamedTuple):
    """What one turn reads: a batch of real images and the latents of fakes, with their labels where
    the nets take any. x is None where the turn reads fakes alone."""

    x: Array | None
    labels: Array | None
    z: Array
    fake_labels: Array | None

    def on(self, device: str) -> Inputs:
        """The same on a device."""
        return Inputs(*(None if a is None else to_device(a, device) for a in self))

    def overwrite(self, new: Inputs) -> None:
        """Take the values of new, which are in host memory, where these are on a GPU."""
        for mine, its in zip(self, new, strict=True):
            if mine is not None:
                mine.set(its)


class Trainer:
    """Two networks, their optimizers, the generator's average, and how far they have come.

    graph: on device cuda, capture a step as a CUDA graph, after the first, and replay that from
    then on. Steps with and without a lazy penalty are two graphs.

    Raises: DataError if the dataset does not fit the recipe; RecipeError if its steps cannot be
    captured.
    """

    def __init__(
        self, recipe: Recipe, dataset: Dataset, device: str = "cpu", graph: bool = False
    ) -> None:
        family = FAMILIES[recipe.net]
        self.graph = graph
        if graph:
            check_recipe(recipe, device)
        self.recipe, self.device, self.classes = recipe, use_device(device), family.classes
        if dataset.shape != family.image:
            raise DataError(
                f"{dataset.name}: its images are {_size(dataset.shape)}, but {recipe.net} takes "
                f"{_size(family.image)}"
            )
        if dataset.value_range != family.value_range:
            raise DataError(
                f"{dataset.name}: its values lie in {dataset.value_range}, but those of "
                f"{recipe.net} in {family.value_range}"
            )
        if family.classes and dataset.classes != family.classes:
            raise DataError(
                f"{dataset.name}: {recipe.net} needs labels of {family.classes} classes, and the "
                f"set has {dataset.classes or 'none'}"
            )
        self.dataset = dataset
        self.data_crc32 = zlib.crc32(np.ascontiguousarray(dataset.images).data)
        if family.classes and dataset.labels is not None:
            self.data_crc32 = zlib.crc32(dataset.labels.tobytes(), self.data_crc32)
        self.batches = Batches(dataset, recipe.batch, recipe.seed)
        self.batches_g = Batches(dataset, recipe.batch, recipe.seed, "data for the generator")
        manual_seed(recipe.seed)
        generator, discriminator = family.build(recipe.latent_dim, recipe.init)
        self.generator, self.discriminator = generator.to(device), discriminator.to(device)
        self.average = Average(generator, recipe.ema) if recipe.ema else None
        self.game = Game(
            generator,
            discriminator,
            LOSSES[recipe.loss],
            recipe.real_target,
            recipe.penalty,
            recipe.penalty_weight,
        )
        self.optimizer_g = make_optimizer(recipe, generator, recipe.lr_g)
        self.optimizer_d = make_optimizer(recipe, discriminator, recipe.lr_d)
        self.step = 0  # steps taken
        self.rollbacks = 0
        self.skipped = False  # whether the last step left an update out
        # Of the metrics since the last log line: [sum, how many]. Those still on the device: for
        # each kind of step, by the names of its figures, their sums end to end and how many.
        self.sums: dict[str, list[float]] = {}
        self._unseen: dict[Names, tuple[Array, int]] = {}
        self._figures: list[tuple[Names, Array]] = []  # of this step
        # Kinds of steps that were taken, and their CUDA graphs, if `graph`.
        self._captured: dict[bool, CapturedStep | None] = {}

    # ------------------------------------------------------------------------------------ one step

    def advance(self, on_nan: str = "stop") -> None:
        """Take one step: n_critic updates of the discriminator, one of the generator.

        on_nan: "stop" raises NonFinite before the update that would spread it; "skip" leaves that
        network's update out; "ignore" does not look. On device cuda a look at the numbers would
        wait for the GPU: there only "skip" looks in every step, else `check` does when called.
        """
        if self.graph and on_nan == "skip":
            raise ValueError("on_nan: a captured step cannot leave an update out; use stop")
        manual_seed(self.recipe.seed, self.step)
        kind = self._penalised
        if self.graph and (captured := self._captured.get(kind)):
            captured.advance()
        elif self.graph and kind in self._captured:
            self._captured[kind] = CapturedStep(self, self._captured.get(not kind))
        else:
            self.play([read.on(self.device) for read in self.inputs()], on_nan)
            self._captured[kind] = None
        self.step += 1
        if self.device != "cuda":
            self._look()

    def inputs(self) -> list[Inputs]:
        """What the turns of the next step read, in host memory: n_critic times the discriminator,
        then the generator."""
        r = self.recipe
        reals: list[tuple[Array | None, Array | None]] = [
            self.batches.batch_at(self.step * r.n_critic + i) for i in range(r.n_critic)
        ]
        fakes = [self._latents(f"discriminator {i}") for i in range(r.n_critic)]
        relativistic = self.game.loss.relativistic
        reals.append(self.batches_g.batch_at(self.step) if relativistic else (None, None))
        fakes.append(self._latents("generator"))
        return [
            Inputs(x, labels if self.classes else None, *fake)
            for (x, labels), fake in zip(reals, fakes, strict=True)
        ]

    def play(self, inputs: list[Inputs], on_nan: str = "stop") -> list[Turn | None]:
        """Compute the turns of a step, each with its update; None for those that were left out."""
        self.skipped = False
        turns = []
        for i, read in enumerate(inputs):
            turns.append(self._checked(i, partial(self._compute, i, read), on_nan))
            self._update(i, turns[-1])
        self._finish()
        return turns

    def update(self, turns: list[Turn | None]) -> None:
        """The updates of a step whose turns are computed."""
        for i, turn in enumerate(turns):
            self._update(i, turn)
        self._finish()

    @property
    def _penalised(self) -> bool:
        """Whether the gradient penalty is on in the next step, which makes it one of two kinds."""
        return self.step % self.recipe.penalty_every == 0

    def _player(self, i: int) -> str:
        """Whose turn the i-th of a step is."""
        return "discriminator" if i < self.recipe.n_critic else "generator"

    def _compute(self, i: int, read: Inputs) -> Turn:
        r, (x, labels, z, fake_labels) = self.recipe, read
        if self._player(i) == "generator":
            return self.game.generator_turn(z, x, labels, fake_labels)
        lazy = r.penalty_every if self._penalised else 0
        stream = self._stream(f"penalty {i}")
        return self.game.discriminator_turn(x, z, labels, fake_labels, lazy, stream)

    def _checked(self, i: int, compute: Callable[[], Turn], on_nan: str) -> Turn | None:
        """Compute a turn and, where that does not wait for a GPU, check it."""
        if on_nan == "ignore" or (self.device == "cuda" and on_nan != "skip"):
            return compute()
        nets = (self.generator, self.discriminator)
        buffers = [(b, b.data.copy()) for net in nets for _, b in net.named_buffers()]
        turn = compute()
        if all_finite([turn.loss, *turn.grads]):
            return turn
        for buffer, value in buffers:
            buffer.data[...] = value
        if on_nan != "skip":
            raise NonFinite(self.step, self._player(i), _first_non_finite(compute))
        self.skipped = True
        return None

    def _update(self, i: int, turn: Turn | None) -> None:
        """Change the player's network, and count the turn."""
        r, player = self.recipe, self._player(i)
        if turn is not None:
            self._figures += turn.figures.items()
            grads = turn.grads
            if r.clip_grad_norm:
                grads, _ = optim.clip_grad_norm(grads, r.clip_grad_norm)
            getattr(self, f"optimizer_{player[0]}").step(grads)
        if player == "discriminator" and r.clip_weights:
            optim.clip_weights(self.discriminator.parameters(), r.clip_weights)

    def _finish(self) -> None:
        """What follows the last turn."""
        self._count()
        if self.average:
            self.average.update(self.generator, self.step + 1)

    def _count(self) -> None:
        """Add the step's figures to the sums; on device cuda without waiting for them."""
        figures, self._figures = self._figures, []
        if not figures:
            return
        names = tuple(name for its, _ in figures for name in its)
        total, n = self._unseen.get(names, (None, 0))
        if total is None:
            total = xp_of(figures[0][1]).zeros(len(names), np.float32)
        starts = list(accumulate((len(its) for its, _ in figures), initial=0))
        rows = [[total[i : i + len(a)], a] for i, (_, a) in zip(starts, figures, strict=False)]
        kernels.pack(rows, starts[:-1], total)
        self._unseen[names] = total, n + 1

    def _look(self) -> None:
        """Fetch the sums from the device."""
        for names, (values, n) in self._unseen.items():
            for name, value in zip(names, to_numpy(values).tolist(), strict=True):
                total, many = self.sums.get(name, (0.0, 0))
                self.sums[name] = [total + value, many + n]
            values.fill(0)
        kept = self._unseen if self.graph else {}  # a captured step goes on adding to the arrays
        self._unseen = {names: (values, 0) for names, (values, _) in kept.items()}

    def check(self) -> None:
        """Look at the weights, and on device cuda at the sums, which `advance` does not there.

        Raises: NonFinite. A NaN or infinity of any step since the last look is in them still.
        """
        self._look()
        for name, net in (("discriminator", self.discriminator), ("generator", self.generator)):
            sums = [v for k, v in self.sums.items() if k.startswith("g_") == (name[0] == "g")]
            if self.device == "cuda" and not np.isfinite(sums).all():
                raise NonFinite(self.step, name, None)
            if not all_finite([p.data for p in net.parameters()]):
                raise NonFinite(self.step, name, None, "weights")

    def averages(self) -> dict[str, float]:
        """The mean of each metric since the last call, over the turns that had it."""
        self._look()
        means = {name: total / n for name, (total, n) in self.sums.items() if n}
        self.sums = {}
        return means

    def _stream(self, name: str) -> Stream:
        """The stream of `name` in this step; another one after each rollback."""
        suffix = f", attempt {self.rollbacks}" if self.rollbacks else ""
        return Stream(self.recipe.seed, name + suffix, self.step)

    def _latents(self, name: str) -> tuple[np.ndarray, np.ndarray | None]:
        """(z, labels of fakes or None) for one turn."""
        r = self.recipe
        z = draw_latents(r, self._stream(f"latents {name}"), r.batch)
        if not self.classes:
            return z, None
        if r.fake_labels == "constant":
            return z, np.arange(r.batch) % self.classes
        return z, self._stream(f"labels {name}").integers(r.batch, self.classes)

    # --------------------------------------------------------------------------------------- state

    def warm_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Compile all kernels of a step and of the samples, which else happens when they are first
        needed.   progress: called with (those that are ready, all of them) after each."""

        def steps() -> None:  # of another trainer, while nothing is computed
            random = array.generator
            place = vars(random).copy()  # from where others will draw
            try:
                other = Trainer(self.recipe, self.dataset, self.device)
                for _ in range(min(2, self.recipe.penalty_every)):  # with a lazy penalty, without
                    other.advance(on_nan="ignore")
                with suppress(ValueError):  # that samples which nobody has computed are NaN
                    other.sampler().samples(GRID, self.recipe.seed)
            finally:
                vars(random).update(place)

        if self.device == "cpu":
            kernels.warm_up(steps, progress)
            return
        with launcher.planning() as plan:
            steps()
        launcher.compile_all(plan, progress)

    def sampler(self) -> Sampler:
        """Samples from the average of the generator, or the generator if there is none."""
        net = self.average.net if self.average else self.generator
        return Sampler(self.recipe, net, self.device)

    def _parts(self) -> dict[str, Any]:
        parts = {
            "generator": self.generator,
            "discriminator": self.discriminator,
            "optimizer_g": self.optimizer_g,
            "optimizer_d": self.optimizer_d,
        }
        return parts | ({"average": self.average.net} if self.average else {})

    def checkpoint(self) -> Checkpoint:
        """All that a resumed training needs."""
        self._look()
        tensors = {
            f"{part}.{name}": value
            for part, owner in self._parts().items()
            for name, value in owner.state_dict().items()
        }
        state = {
            "format": 1,
            "recipe": self.recipe.to_dict(),
            "data_crc32": self.data_crc32,
            "step": self.step,
            "rollbacks": self.rollbacks,
            "sums": self.sums,
        }
        return Checkpoint(tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`.   Raises: RunError if it is of another recipe or format."""
        state = checkpoint.state
        if (its := recipe_of(checkpoint).net) != self.recipe.net:
            raise RunError(f"the checkpoint is of {its}, not of {self.recipe.net}")
        if state["data_crc32"] != self.data_crc32:
            raise RunError(
                f"{self.dataset.name} is not the data that the checkpoint was trained on: "
                "give the same --data to resume"
            )
        for part, owner in self._parts().items():
            load_part(owner, part, checkpoint)
        self.step, self.rollbacks = state["step"], state["rollbacks"]
        self.sums, self._unseen, self._captured = dict(state["sums"]), {}, {}
        self._figures = []


def launches_of_steps(recipe: Recipe, dataset: Dataset) -> tuple[int, int]:
    """(kernels that a step without the penalty launches on a GPU, that one with it does): counted,
    and none is launched.   recipe: of a lazy penalty."""
    counts = {}
    with launcher.planning(), kernels.use("sim"):
        trainer = Trainer(recipe, dataset, "sim")
        for _ in range(recipe.penalty_every + 1):  # the first of a kind makes arrays once for all
            kind = trainer._penalised
            with launcher.launch_log() as log:
                trainer.advance()
            counts[kind] = len(log)
    return counts[False], counts[True]


def _size(shape: tuple[int, int, int]) -> str:
    return f"{shape[1]}×{shape[2]} {'grey' if shape[0] == 1 else 'RGB'}"


def _first_non_finite(compute: Callable[[], Turn]) -> str | None:
    """Run a turn again and name the first op whose result is not finite."""
    first: list[str] = []

    def look(op: str, y: Array) -> None:
        if not first and y.dtype.kind == "f" and not all_finite([y]):
            first.append(op)

    with observe(look), np.errstate(all="ignore"):
        compute()
    return first[0] if first else None
