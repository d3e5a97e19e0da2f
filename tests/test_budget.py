"""Kernels that need more than kernels/budget.json allows fail here, and say what got worse."""

import dataclasses

import pytest
from cupy_stand_in import stand_in

from minigan import data
from minigan.kernels import budget, report
from minigan.kernels.sim import nvrtc
from minigan.recipes import find
from minigan.train import Trainer

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


def counted_step():
    """The tally of a training step at the recipe's batch, its kernels not run."""
    with stand_in(runs=False) as tally:
        trainer = Trainer(find("mnist-dcgan"), data.load("mnist-10k"), "cuda")
        trainer.advance()
        tally.clear()
        trainer.advance()
        return tally


def test_launches_of_a_training_step():
    tally, allowed = counted_step(), budget.read()["launches"]["mnist-dcgan"]
    assert tally.launches <= allowed, (
        f"a training step of mnist-dcgan launches {tally.launches} kernels, above the budget of "
        f"{allowed}; if that cannot be helped, change it in {budget.FILE}\n{tally}"
    )


def test_a_training_step_needs_at_most_a_hundred_launches():
    assert counted_step().launches <= BAR


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
