"""Schedules: numbers that are pure functions of the training step.

    lr = multiply(2e-4, constant_then_linear(n_const=100, n_decay=100, every=600))
    lr(0)  ->  0.0002

A name below called with its settings gives a Schedule, a frozen value to be called with the step.
Steps count from 0 and may be fractional; what depends on no earlier call needs no checkpoint.

Rates    (the number itself, in whatever unit was passed)       constant, linear, sequence
Factors  (1 at its highest: `multiply` it with a rate)          step_decay, exponential, cosine,
                                                                warmup, constant_then_linear
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import wraps
from inspect import signature
from typing import Any, Concatenate, ParamSpec

Settings = ParamSpec("Settings")


@dataclass(frozen=True, repr=False)
class Schedule:
    """`function` of the step, with its other arguments bound to `settings`."""

    function: Callable[..., float]
    settings: tuple[tuple[str, Any], ...]

    def __call__(self, step: float) -> float:
        """The value at `step`. Raises: ValueError if step is below 0."""
        if not step >= 0:
            raise ValueError(f"{self.function.__name__}: step must be 0 or above, not {step}")
        return float(self.function(step, **dict(self.settings)))

    def __repr__(self) -> str:
        settings = ", ".join(f"{name}={value!r}" for name, value in self.settings)
        return f"{self.function.__name__}({settings})"


def _schedule(
    function: Callable[Concatenate[float, Settings], float],
) -> Callable[Settings, Schedule]:
    """Decorator: turn f(step, settings) -> value into f(settings) -> Schedule."""

    @wraps(function)
    def factory(*args: Settings.args, **kwargs: Settings.kwargs) -> Schedule:
        bound = signature(function).bind(0, *args, **kwargs)
        bound.apply_defaults()
        settings: list[tuple[str, Any]] = [
            (name, tuple(value) if isinstance(value, list) else value)
            for name, value in bound.arguments.items()
        ]
        for name, value in settings:
            if name in ("steps", "every") and value <= 0:
                raise ValueError(f"{function.__name__}: {name} must be above 0, not {value}")
        schedule = Schedule(function, tuple(settings[1:]))
        schedule(0)  # so that wrong settings are an error here, not when training starts
        return schedule

    parameters = list(signature(function).parameters.values())[1:]
    factory.__dict__["__signature__"] = signature(function).replace(parameters=parameters)
    return factory


@_schedule
def constant(step: float, value: float) -> float:
    """value"""
    return value


@_schedule
def linear(step: float, start: float, end: float, steps: float) -> float:
    """start + (end - start) · step/steps, and `end` from `steps` on."""
    if step >= steps:
        return end
    return start + (end - start) * step / steps


@_schedule
def step_decay(step: float, every: float, factor: float) -> float:
    """factor ^ floor(step/every): a factor, multiplied in at once at each `every` steps."""
    return float(factor ** math.floor(step / every))


@_schedule
def exponential(step: float, every: float, base: float) -> float:
    """base ^ (step/every): a factor, smooth.   BEGAN decays by 0.95^(step/3000)."""
    return float(base ** (step / every))


@_schedule
def cosine(step: float, steps: float, end: float = 0.0) -> float:
    """end + (1 - end) · (1 + cos(π · step/steps)) / 2: a factor from 1 to `end`, where it stays.

    Loshchilov & Hutter 2017, "SGDR", eq. 5, without restarts.
    """
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * min(step / steps, 1)))


@_schedule
def warmup(step: float, steps: float) -> float:
    """min(1, (step + 1)/steps): a factor, 1/steps at first, as a rate of 0 would waste a step."""
    return min(1.0, (step + 1) / steps)


@_schedule
def constant_then_linear(step: float, n_const: int, n_decay: int, every: float = 1) -> float:
    """1 - max(0, epoch + 1 - n_const) / (n_decay + 1): CycleGAN's factor, never below 0.

    every: steps an epoch; epoch = floor(step/every) counts from 0. The first n_const epochs have
    1, then come n_decay epochs that fall to 1/(n_decay + 1), and 0 after those.
    """
    epoch = math.floor(step / every)
    return max(0.0, 1 - max(0, epoch + 1 - n_const) / (n_decay + 1))


@_schedule
def multiply(step: float, a: Schedule | float, b: Schedule | float) -> float:
    """a · b, of schedules or numbers: for example a rate and its factor."""
    return _value(a, step) * _value(b, step)


@_schedule
def sequence(step: float, stages: Sequence[tuple[float, Schedule | float]]) -> float:
    """One schedule after the other, each with its own step counted from 0.

    stages: (the steps that it lasts, schedule or number). The last one stays when they are over:
    `sequence([(1000, warmup(1000)), (50_000, cosine(50_000))])`.
    """
    if not stages or not all(steps > 0 for steps, _ in stages):
        raise ValueError(f"sequence: needs stages of more than 0 steps each, not {stages}")
    for steps, value in stages[:-1]:
        if step < steps:
            return _value(value, step)
        step -= steps
    return _value(stages[-1][1], step)


def _value(value: Schedule | float, step: float) -> float:
    return value(step) if isinstance(value, Schedule) else value
