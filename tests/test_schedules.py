"""Schedules at their knots, from the formulas in their sources."""

import math

import pytest

from minigan.schedules import (
    constant,
    constant_then_linear,
    cosine,
    exponential,
    linear,
    multiply,
    sequence,
    step_decay,
    warmup,
)


@pytest.mark.parametrize(
    ("schedule", "knots"),
    [
        (constant(3e-4), {0: 3e-4, 7: 3e-4, 1e9: 3e-4}),
        (linear(1.0, 0.2, 100), {0: 1.0, 25: 0.8, 50: 0.6, 99.5: 0.204, 100: 0.2, 1000: 0.2}),
        (linear(start=0, end=10, steps=4), {1: 2.5, 3: 7.5, 4: 10}),
        (step_decay(every=30, factor=0.1), {0: 1, 29: 1, 30: 0.1, 59: 0.1, 60: 0.01}),
        (exponential(every=3000, base=0.95), {0: 1, 1500: 0.95**0.5, 3000: 0.95, 6000: 0.9025}),
        (cosine(100), {0: 1, 100 / 3: 0.75, 50: 0.5, 100: 0, 500: 0}),
        (cosine(100, end=0.1), {0: 1, 50: 0.55, 100: 0.1, 101: 0.1}),
        (warmup(4), {0: 0.25, 1: 0.5, 2: 0.75, 3: 1, 4: 1, 100: 1}),
        # CycleGAN: 100 epochs of 1, then 100 towards 0: 1 - 1/101 first, 1 - 100/101 last
        (
            constant_then_linear(100, 100),
            {0: 1, 99: 1, 100: 1 - 1 / 101, 199: 1 - 100 / 101, 200: 0, 999: 0},
        ),
        (
            constant_then_linear(100, 100, every=10),
            {999: 1, 1000: 1 - 1 / 101, 1009: 1 - 1 / 101, 1010: 1 - 2 / 101},
        ),
        (multiply(2e-4, step_decay(10, 0.5)), {0: 2e-4, 9: 2e-4, 10: 1e-4, 25: 5e-5}),
        (multiply(linear(0, 1, 10), linear(1, 0, 10)), {0: 0, 5: 0.25, 2: 0.16, 10: 0}),
        # each stage counts its own steps; the last one stays
        (
            sequence([(4, warmup(4)), (10, cosine(10)), (1, 0.125)]),
            {0: 0.25, 3: 1, 4: 1, 9: 0.5, 13.999: 0, 14: 0.125, 15: 0.125, 10**6: 0.125},
        ),
        (sequence([(600, 4.0), (600, linear(4, 3, 600))]), {599: 4, 600: 4, 900: 3.5, 2000: 3}),
    ],
    ids=str,
)  # fmt: skip
def test_knots(schedule, knots):
    for step, value in knots.items():
        assert schedule(step) == pytest.approx(value, rel=1e-9, abs=1e-7), step
        assert type(schedule(step)) is float


def test_began_decays_at_every_step():
    schedule = multiply(1e-4, exponential(every=3000, base=0.95))
    for i in (1, 2, 2999, 3001):
        assert schedule(i) == pytest.approx(1e-4 * math.exp(math.log(0.95) * i / 3000), rel=1e-12)


def test_a_schedule_is_a_value():
    a = multiply(2e-4, sequence([(10, warmup(10)), (5, cosine(steps=5))]))
    b = multiply(2e-4, sequence([(10, warmup(10)), (5, cosine(5, 0.0))]))
    assert a == b and hash(a) == hash(b)
    assert a != multiply(2e-4, sequence([(10, warmup(10)), (6, cosine(5))]))
    assert eval(repr(a)) == a
    with pytest.raises(AttributeError):
        a.function = None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: linear(1, 0, 0), "linear: steps must be above 0, not 0"),
        (lambda: step_decay(-3, 0.5), "step_decay: every must be above 0, not -3"),
        (lambda: sequence([]), "sequence: needs stages"),
        (lambda: sequence([(0, 1.0), (1, 2.0)]), "sequence: needs stages"),
        (lambda: cosine(10)(-1), "cosine: step must be 0 or above, not -1"),
        (lambda: cosine(10)(math.nan), "cosine: step must be 0 or above, not nan"),
    ],
)
def test_wrong_settings_are_errors_at_once(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_unknown_settings_are_errors():
    with pytest.raises(TypeError, match="gamma"):
        step_decay(every=10, factor=0.5, gamma=0.5)
