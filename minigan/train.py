"""Training: the state of a run, one step of it, and the loop that logs, draws and saves.

A step is a pure function of the state and the step number: latents, labels, data order and dropout
masks come from counter-based streams keyed by (seed, name, step). So a run that was stopped,
however rudely, goes on from its newest checkpoint and computes what it would have computed.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np

from minigan import kernels, optim, schedules
from minigan.array import Array, Stream, check_device, manual_seed, to_device, to_numpy, xp_of
from minigan.autograd import observe
from minigan.checkpoint import Checkpoint
from minigan.data import Batches, DataError, Dataset, to_uint8
from minigan.gan import Average, Game, Names, Turn, all_finite
from minigan.losses import LOSSES
from minigan.models import FAMILIES
from minigan.nn import Module
from minigan.recipes import Recipe
from minigan.runs import RunError, RunFolder

GRID = 100  # samples in a grid
_SAMPLE_BATCH = 128  # samples are made in batches of this size, however many are asked for
_GUESTS = 16  # latents of a caller's own in such a batch
_MOST_SKIPS = 100  # steps in a row that --on-nan skip leaves out before it gives up
_MOST_ROLLBACKS = 5


class NonFinite(RuntimeError):
    """A loss or gradient that is NaN or infinite: which network, in which step, and where from."""

    def __init__(self, step: int, net: str, op: str | None) -> None:
        self.step, self.net, self.op = step, net, op
        origin = f"; the first op that made one is {op}" if op else ""
        super().__init__(f"step {step}: NaN or infinity in the {net}'s loss or gradient{origin}")


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
        return optim.AdamW(named, lr=rate, betas=(recipe.beta1, recipe.beta2))
    if recipe.optimizer == "rmsprop":
        return optim.RMSProp(named, lr=rate, alpha=recipe.beta2, momentum=recipe.beta1)
    return optim.SGD(named, lr=rate, momentum=recipe.beta1)


class Sampler:
    """Samples from a generator: the i-th is a function of (seed, i, label) alone.

    Latents come in batches of 128, and whole batches are generated, however many samples are
    asked for: nets whose batch norm uses batch statistics then give the same i-th sample too.

    Raises: DeviceError.
    """

    def __init__(self, recipe: Recipe, generator: Module, device: str) -> None:
        self.recipe, self.generator, self.device = recipe, generator, _use(device)
        self.classes = FAMILIES[recipe.net].classes

    @staticmethod
    def of(checkpoint: Checkpoint, device: str = "cpu") -> Sampler:
        """The sampler of a training as it was saved.   Raises: RunError, RecipeError."""
        recipe = _recipe_of(checkpoint)
        generator, _ = FAMILIES[recipe.net].build(recipe.latent_dim, recipe.init)
        part = "average" if recipe.ema else "generator"
        _load_part(generator, part, checkpoint)
        return Sampler(recipe, generator.to(device), device)

    def latents(self, count: int, seed: int) -> np.ndarray:
        """float32 (count, latent_dim), in whole batches drawn and then cut."""
        chunks = -(-count // _SAMPLE_BATCH)
        drawn = [
            draw_latents(self.recipe, Stream(seed, "samples", i), _SAMPLE_BATCH)
            for i in range(chunks)
        ]
        return np.concatenate(drawn)[:count]

    def samples(self, count: int, seed: int, label: int | None = None) -> np.ndarray:
        """uint8 (count,C,H,W).   label: of all; None gives sample i the class i mod classes."""
        whole = -(-count // _SAMPLE_BATCH) * _SAMPLE_BATCH
        z, labels = self.latents(whole, seed), self._labels(whole, label)
        batches = [slice(i, i + _SAMPLE_BATCH) for i in range(0, whole, _SAMPLE_BATCH)]
        return np.concatenate([self._generate(z, labels, batch) for batch in batches])[:count]

    def images(self, z: np.ndarray, label: int | None = None) -> np.ndarray:
        """uint8 (N,C,H,W) of latents z (N,latent_dim), say of a path between two.   label: of all.

        Each is made among usual samples, 16 in a batch, so that batch statistics are the usual.
        """
        labels = self._labels(_SAMPLE_BATCH, label)
        made = []
        for guests in (z[i : i + _GUESTS] for i in range(0, len(z), _GUESTS)):
            batch = self.latents(_SAMPLE_BATCH, seed=0)
            batch[: len(guests)] = guests
            made.append(self._generate(batch, labels, slice(None))[: len(guests)])
        return np.concatenate(made)

    def _labels(self, count: int, label: int | None) -> np.ndarray | None:
        if not self.classes:
            return None
        return np.arange(count) % self.classes if label is None else np.full(count, label)

    def _generate(self, z: np.ndarray, labels: np.ndarray | None, of: slice) -> np.ndarray:
        game = Game(self.generator, self.generator)
        x = game.generate(to_device(z[of], self.device), None if labels is None else labels[of])
        return to_uint8(to_numpy(x))


def draw_latents(recipe: Recipe, stream: Stream, n: int) -> np.ndarray:
    """float32 (n, latent_dim), of the recipe's distribution."""
    shape = (n, recipe.latent_dim)
    return stream.normal(shape) if recipe.latent == "normal" else stream.uniform(shape, -1.0, 1.0)


def _use(device: str) -> str:
    """`device`, ready to compute.   Raises: DeviceError."""
    check_device(device)
    if device != "cuda":
        kernels.set_host(device)
    return device


class Trainer:
    """Two networks, their optimizers, the generator's average, and how far they have come.

    Raises: DataError if the dataset does not fit the recipe.
    """

    def __init__(self, recipe: Recipe, dataset: Dataset, device: str = "cpu") -> None:
        family = FAMILIES[recipe.net]
        self.recipe, self.device, self.classes = recipe, _use(device), family.classes
        if dataset.shape != family.image:
            raise DataError(
                f"{dataset.name}: its images are {_size(dataset.shape)}, but {recipe.net} takes "
                f"{_size(family.image)}"
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
        self.sums: dict[str, float] = {}  # of the metrics since the last log line
        self.counted = 0
        self._unseen: dict[Names, Array] = {}  # sums that are still on the device
        self._unseen_steps = 0

    # ------------------------------------------------------------------------------------ one step

    def advance(self, on_nan: str = "stop") -> None:
        """Take one step: n_critic updates of the discriminator, one of the generator.

        on_nan: "stop" raises NonFinite before the update that would spread it; "skip" leaves that
        network's update out. On device cuda a look at the numbers would wait for the GPU: there
        only "skip" looks in every step, else `check` does when it is called.
        """
        r = self.recipe
        manual_seed(r.seed, self.step)
        figures: dict[Names, Array] = {}
        for i in range(r.n_critic):
            turn = self._play("discriminator", partial(self._discriminator_turn, i), on_nan)
            figures |= turn.figures
            if r.clip_weights:
                optim.clip_weights(self.discriminator.parameters(), r.clip_weights)
        turn = self._play("generator", self._generator_turn, on_nan)
        figures |= turn.figures
        self.skipped = any(name.startswith("skipped") for names in figures for name in names)
        self.step += 1
        if self.average:
            self.average.update(self.generator, self.step)
        self._count(figures)

    def _count(self, figures: dict[Names, Array]) -> None:
        """Add a step's figures to the sums; on device cuda without waiting for them."""
        for names, values in figures.items():
            if names not in self._unseen:
                self._unseen[names] = xp_of(values).zeros_like(values)
            kernels.add(self._unseen[names], values, out=self._unseen[names])
        self._unseen_steps += 1
        if self.device != "cuda":
            self._look()

    def _look(self) -> None:
        """Fetch the sums from the device."""
        for names, values in self._unseen.items():
            for name, value in zip(names, to_numpy(values).tolist(), strict=True):
                self.sums[name] = self.sums.get(name, 0.0) + value
        self.counted += self._unseen_steps
        self._unseen, self._unseen_steps = {}, 0

    def check(self) -> None:
        """Look at the weights and sums on device cuda, where `advance` does not; others need not.

        Raises: NonFinite. A NaN or infinity of any step since the last look is in them still.
        """
        if self.device != "cuda":
            return
        self._look()
        for name, net in (("discriminator", self.discriminator), ("generator", self.generator)):
            sums = [v for key, v in self.sums.items() if key.startswith("g_") == (name[0] == "g")]
            if not np.isfinite(sums).all() or not all_finite([p.data for p in net.parameters()]):
                raise NonFinite(self.step, name, None)

    def averages(self) -> dict[str, float]:
        """The mean of each metric since the last call."""
        self._look()
        means = {name: total / self.counted for name, total in self.sums.items()}
        self.sums, self.counted = {}, 0
        return means

    def _stream(self, name: str) -> Stream:
        """The stream of `name` in this step; another one after each rollback."""
        suffix = f", attempt {self.rollbacks}" if self.rollbacks else ""
        return Stream(self.recipe.seed, name + suffix, self.step)

    def _latents(self, name: str) -> tuple[Array, np.ndarray | None]:
        """(z, labels of fakes or None) for one turn."""
        r = self.recipe
        z = to_device(draw_latents(r, self._stream(f"latents {name}"), r.batch), self.device)
        if not self.classes:
            return z, None
        if r.fake_labels == "constant":
            return z, np.arange(r.batch) % self.classes
        return z, self._stream(f"labels {name}").integers(r.batch, self.classes)

    def _reals(self, batches: Batches, position: int) -> tuple[Array, np.ndarray | None]:
        x, labels = batches.batch_at(position)
        return to_device(x, self.device), labels if self.classes else None

    def _discriminator_turn(self, i: int) -> Turn:
        r = self.recipe
        x, labels = self._reals(self.batches, self.step * r.n_critic + i)
        z, fake_labels = self._latents(f"discriminator {i}")
        lazy = r.penalty_every if self.step % r.penalty_every == 0 else 0
        stream = self._stream(f"penalty {i}")
        return self.game.discriminator_turn(x, z, labels, fake_labels, lazy, stream)

    def _generator_turn(self) -> Turn:
        z, fake_labels = self._latents("generator")
        if not self.game.loss.relativistic:
            return self.game.generator_turn(z, fake_labels=fake_labels)
        x, labels = self._reals(self.batches_g, self.step)
        return self.game.generator_turn(z, x, labels, fake_labels)

    def _play(self, name: str, compute: Callable[[], Turn], on_nan: str) -> Turn:
        """Compute a turn, check it, and update the network with it."""
        optimizer = getattr(self, f"optimizer_{name[0]}")
        if self.device == "cuda" and on_nan != "skip":
            turn = compute()
        else:
            nets = (self.generator, self.discriminator)
            buffers = [(b, b.data.copy()) for net in nets for _, b in net.named_buffers()]
            turn = compute()
            if not all_finite([turn.loss, *turn.grads]):
                for buffer, value in buffers:
                    buffer.data[...] = value
                if on_nan != "skip":
                    raise NonFinite(self.step, name, _first_non_finite(compute))
                one = xp_of(turn.loss).ones(1, np.float32)
                return Turn(turn.loss, [], {(f"skipped_{name[0]}",): one})
        grads = turn.grads
        if self.recipe.clip_grad_norm:
            grads, _ = optim.clip_grad_norm(grads, self.recipe.clip_grad_norm)
        optimizer.step(grads)
        return turn

    # --------------------------------------------------------------------------------------- state

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
            "counted": self.counted,
        }
        return Checkpoint(tensors, state)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go on from `checkpoint`.   Raises: RunError if it is of another recipe or format."""
        state = checkpoint.state
        if (its := _recipe_of(checkpoint).net) != self.recipe.net:
            raise RunError(f"the checkpoint is of {its}, not of {self.recipe.net}")
        if state["data_crc32"] != self.data_crc32:
            raise RunError(
                f"{self.dataset.name} is not the data that the checkpoint was trained on: "
                "give the same --data to resume"
            )
        for part, owner in self._parts().items():
            _load_part(owner, part, checkpoint)
        self.step, self.rollbacks = state["step"], state["rollbacks"]
        self.sums, self.counted = dict(state["sums"]), state["counted"]
        self._unseen, self._unseen_steps = {}, 0


def _recipe_of(checkpoint: Checkpoint) -> Recipe:
    if (its := checkpoint.state.get("format")) != 1:
        raise RunError(f"the checkpoint has format {its}, not 1: it is of another version")
    return Recipe.from_dict(checkpoint.state["recipe"])


def _load_part(owner: Any, part: str, checkpoint: Checkpoint) -> None:
    """Give a network or optimizer what a checkpoint has saved of it.   Raises: RunError."""
    prefix = f"{part}."
    values = {k.removeprefix(prefix): v for k, v in checkpoint.tensors.items()
              if k.startswith(prefix)}  # fmt: skip
    try:
        owner.load_state_dict(values)
    except ValueError as error:
        raise RunError(f"the checkpoint does not fit the recipe: {part}: {error}") from None


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


# -------------------------------------------------------------------------------------------- loop


class Reporter(Protocol):
    """Who is told of a training's progress; the command line draws it."""

    def step(self, trainer: Trainer) -> None:
        """After every step."""

    def log(self, record: dict[str, Any]) -> None:
        """After every log line."""

    def note(self, text: str) -> None:
        """Something worth a line of its own."""


@dataclass(frozen=True)
class Quiet:
    """A Reporter that says nothing."""

    def step(self, trainer: Trainer) -> None: ...
    def log(self, record: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...


def fit(
    trainer: Trainer,
    run: RunFolder,
    *,
    on_nan: str = "stop",
    reporter: Reporter | None = None,
    should_stop: Callable[[], bool] = lambda: False,
) -> bool:
    """Train to recipe.steps, leaving everything in `run`. Returns whether it got there.

    should_stop: asked after every step; if true, the state is saved and training ends early.
    on_nan: "stop", "skip" (leave the update out) or "rollback" (to the newest checkpoint, and on
    with other random numbers).

    Raises: NonFinite; OSError where the disk is full or not writable: the newest checkpoint stands.
    """
    reporter = reporter or Quiet()
    recipe = trainer.recipe
    if trainer.step == 0:
        run.save_reals(trainer.dataset.images[trainer.batches.indices_at(0)][:GRID])
        _draw(trainer, run)
        _save(trainer, run)
    clock, clocked, skips = time.perf_counter(), trainer.step, 0
    stopped = False

    looks = recipe.log_every, recipe.sample_every, recipe.checkpoint_every

    def due(every: int) -> bool:
        return trainer.step % every == 0 or trainer.step == recipe.steps

    while trainer.step < recipe.steps and not stopped:
        try:
            trainer.advance("skip" if on_nan == "skip" else "stop")
            stopped = should_stop()
            if stopped or any(map(due, looks)):
                trainer.check()
        except NonFinite as error:
            if on_nan != "rollback":
                raise
            _roll_back(trainer, run, error, reporter)
            clock, clocked = time.perf_counter(), trainer.step
            continue
        step = trainer.step
        skips = skips + 1 if trainer.skipped else 0
        if skips >= _MOST_SKIPS:
            raise NonFinite(step, "generator or discriminator", None)
        reporter.step(trainer)
        if due(recipe.log_every):
            now = time.perf_counter()
            record = {"step": step, **trainer.averages()}
            record["images_per_second"] = (step - clocked) * recipe.batch / (now - clock)
            clock, clocked = now, step
            run.append_log(record)
            reporter.log(record)
        if due(recipe.sample_every):
            _draw(trainer, run)
        if due(recipe.checkpoint_every) or stopped:
            _save(trainer, run)
    run.save_progress()
    return trainer.step >= recipe.steps


def _draw(trainer: Trainer, run: RunFolder) -> None:
    sampler = trainer.sampler()
    run.save_samples(trainer.step, sampler.samples(GRID, trainer.recipe.seed))


def _save(trainer: Trainer, run: RunFolder) -> None:
    run.save_checkpoint(trainer.checkpoint(), trainer.recipe.keep_checkpoints)


def _roll_back(trainer: Trainer, run: RunFolder, error: NonFinite, reporter: Reporter) -> None:
    rollbacks = trainer.rollbacks + 1
    if rollbacks > _MOST_ROLLBACKS:
        raise error
    path, content, _ = run.newest_checkpoint()
    trainer.restore(content)
    trainer.rollbacks = rollbacks
    run.rewind(trainer.step)
    reporter.note(f"{error}; back to {path.name} (rollback {rollbacks} of {_MOST_ROLLBACKS})")
