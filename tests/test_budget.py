"""Kernels that need more than kernels/budget.json allows fail here, and say what got worse."""

import dataclasses

import pytest
from cupy_stand_in import stand_in

from minigan import data
from minigan.kernels import budget, cases, report
from minigan.kernels.sim import nvrtc
from minigan.recipes import find
from minigan.train import Trainer, launches_of_steps

PRODUCTS = {"conv2d", "conv2d TF32", "conv2d_dgrad", "conv2d_wgrad", "dgrad + col2im", "matmul",
            "conv_naive", "conv_tiled", "conv_register", "conv_vectorised"}  # fmt: skip
BAR = 100  # launches of a training step of mnist-dcgan, everything included


def compiler():
    try:
        return list(nvrtc.version())
    except nvrtc.CompilerMissing as missing:
        pytest.skip(str(missing))


@pytest.fixture(scope="module")
def measured():
    if compiler() != budget.read()["nvrtc"]:
        pytest.skip(f"the budget is of NVRTC {budget.read()['nvrtc']}, not {compiler()}")
    return budget.measure(report.report(case, "sm_80") for case in report.chosen())


def test_no_kernel_exceeds_its_budget(measured):
    lines = budget.exceeded(measured, budget.read())
    assert not lines, "\n" + "\n".join(lines)


def test_the_budget_knows_no_other_kernels(measured):
    assert budget.read()["kernels"].keys() == measured.keys(), budget.UPDATE


def test_no_kernel_spills():
    allowed = budget.read()["kernels"]
    assert allowed and not any(figures["spilled"] for figures in allowed.values())


def test_what_streams_is_coalesced_and_free_of_conflicts():
    """32 neighbouring floats are 4 sectors; images of 7×7 begin anywhere in one: 5 and more."""
    names = {case.name for case in cases.cases()} - PRODUCTS
    assert len(names) > 20
    for name, figures in budget.read()["kernels"].items():
        if name.partition(",")[0] in names:
            assert figures["bank_conflict"] <= 2, name
            assert figures["sectors_per_request"] <= (5.5 if name.endswith(",7,7)") else 4.5), name


def test_a_figure_that_rises_is_named(measured):
    figures = {name: dict(values) for name, values in measured.items()}
    figures["adam, 65536 parameters"]["registers"] += 8
    (line,) = budget.exceeded(figures, {"kernels": measured})
    was = measured["adam, 65536 parameters"]["registers"]
    assert line.startswith("adam, 65536 parameters: registers is ")
    assert f"above its budget of {was:g}" in line and "--update-budget" in line


def test_a_kernel_without_a_budget_is_named(measured):
    lines = budget.exceeded(measured, {"kernels": {}})
    assert len(lines) == len(measured) and all("has no budget" in line for line in lines)


# ---- Launches -----------------------------------------------------------------------------------


STEPS = {"mnist-dcgan": 3, "mnist-dcgan with R1": 4}  # which of a training; R1 is every fourth


@pytest.fixture(scope="module")
def steps():
    """The tally of each step of STEPS, its kernels not run."""
    tallies = {}
    with stand_in(runs=False) as tally:
        trainer = Trainer(find("mnist-dcgan"), data.load("mnist-10k"), "cuda")
        for step in range(5):
            tally.clear()
            trainer.advance()
            tallies[step] = dataclasses.replace(
                tally, kernels=tally.kernels.copy(), others=tally.others.copy()
            )
    return {name: tallies[step] for name, step in STEPS.items()}


@pytest.mark.parametrize("name", STEPS)
def test_launches_of_a_training_step(steps, name):
    allowed = budget.read()["launches"][name]
    assert steps[name].launches <= allowed, (
        f"a step of {name} launches {steps[name].launches} kernels, above the budget of {allowed}; "
        f"if that cannot be helped: {budget.UPDATE}\n{steps[name]}"
    )


def test_a_training_step_needs_at_most_a_hundred_launches(steps):
    assert steps["mnist-dcgan"].launches <= BAR


def test_the_budget_counts_the_launches_that_a_gpu_would(steps):
    without, with_r1 = launches_of_steps(find("mnist-dcgan"), data.load("mnist-10k"))
    assert [without, with_r1] == [tally.launches for tally in steps.values()]


def test_a_step_on_a_gpu_is_that_of_the_cpu():
    """All of device cuda's own code, against the CPU: kernels on sim, CuPy's part on NumPy."""
    compiler()
    recipe = dataclasses.replace(find("mnist-dcgan"), batch=2)

    def losses(device):
        trainer = Trainer(recipe, data.load("mnist-10k"), device)
        trainer.advance()
        return trainer.averages()

    expected = losses("cpu")
    with stand_in():
        got = losses("cuda")
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name
