"""The commands as a user meets them; bad input is in test_cli_errors.py, kills in _kills.py."""

import json
import re
import resource
import shlex
import sys
from pathlib import Path

import numpy as np
import pytest
from cli_tool import SMALL, assert_same_training, here, installed, refused, saved
from PIL import Image

import minigan
from minigan import checkpoint, system
from minigan.cli.sample import _linear, _spherical
from minigan.kernels import threads
from minigan.recipes import RECIPES

doctor = sys.modules["minigan.cli.doctor"]  # the name in the package is the command


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """{recipe: a finished run of six steps}"""
    folder = tmp_path_factory.mktemp("runs")
    for name in RECIPES:
        sets = ["--set", "sample_every=3", "--set", "checkpoint_every=2"]
        done = here("train", name, *SMALL, "--steps", 6, *sets, "--out", folder / name)
        assert done.code == 0, done.err
    return {name: folder / name for name in RECIPES}


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image).astype(int)


def files(folder):
    return sorted(str(p.relative_to(folder)) for p in Path(folder).rglob("*"))


# ------------------------------------------------------------------------------------------- help


def test_help_names_every_command():
    done = installed("--help")
    assert done.code == 0
    for command in ("train", "sample", "recipes", "info", "doctor"):
        assert re.search(rf"^  {command}\s+\S", done.out, re.M)


def test_help_takes_under_half_a_second():
    """Of the processor's time, the best of a few tries: a busy machine must not fail it."""

    def used():
        usage = resource.getrusage(resource.RUSAGE_CHILDREN)
        return usage.ru_utime + usage.ru_stime

    times = []
    while len(times) < 5 and (not times or min(times) >= 0.5):
        begun = used()
        installed("--help")
        times.append(used() - begun)
    assert min(times) < 0.5, times


@pytest.mark.parametrize("command", ["train", "sample", "recipes", "info", "doctor"])
def test_help_of_each_command_has_an_example(command):
    done = here(command, "--help")
    assert done.code == 0
    assert re.search(rf"^  minigan {command}", done.out, re.M)


def test_version_and_no_command():
    assert minigan.__version__ in here("--version").out
    assert here().out == here("--help").out
    assert here().code == 0


# ------------------------------------------------------------------------------------------ train


def test_train_leaves_a_run_folder_and_says_where(tmp_path):
    done = installed("train", "mnist-dcgan", "--batch", 8, "--steps", 4, cwd=tmp_path)
    assert done.code == 0, done.err
    run = tmp_path / "runs" / "0001-mnist-dcgan"
    assert files(run) == [
        "checkpoints",
        "checkpoints/step-00000000.safetensors",
        "checkpoints/step-00000004.safetensors",
        "config.json",
        "environment.json",
        "log.jsonl",
        "progress.gif",
        "reals.png",
        "samples",
        "samples/00000000.png",
        "samples/00000004.png",
    ]
    for path in ("samples/00000004.png", "progress.gif", "log.jsonl"):
        assert f"runs/0001-mnist-dcgan/{path}" in done.out
    assert "minigan sample runs/0001-mnist-dcgan" in done.out
    assert pixels(run / "reals.png").shape == (3 * 30 + 2, 3 * 30 + 2)  # a batch of 8
    assert pixels(run / "samples/00000004.png").shape == (10 * 30 + 2, 10 * 30 + 2)
    assert json.loads((run / "log.jsonl").read_text())["step"] == 4


def test_lines_without_a_terminal_hold_no_control_codes(tmp_path):
    args = ("train", "mnist-gan", *SMALL, "--steps", 6)
    done = installed(*args, cwd=tmp_path, FORCE_COLOR="1", TERM="xterm-256color")
    assert done.code == 0
    text = done.out + done.err
    assert "\x1b" not in text and "\r" not in text
    lines = [line for line in done.out.splitlines() if re.match(r"\d/6 ", line)]
    assert [line[0] for line in lines] == ["2", "4", "6"]
    for figure in ("loss D ", "G ", "D(x) ", "D(G(z)) ", "D right on real ", "images/s", "left"):
        assert all(figure in line for line in lines)


def test_a_second_run_never_overwrites_the_first(cwd):
    args = ("train", "mnist-gan", *SMALL, "--steps", 2)
    assert here(*args).code == 0
    first = {p: (cwd / p).read_bytes() for p in files(cwd) if (cwd / p).is_file()}
    assert here(*args).code == 0
    assert {p: (cwd / p).read_bytes() for p in first} == first
    assert (cwd / "runs" / "0002-mnist-gan" / "config.json").exists()
    assert refused(here(*args, "--out", "runs/0001-mnist-gan"), "not overwritten")


def test_settings_reach_the_configuration(cwd):
    sets = ["--set", "lr_g=1e-3", "--set", "loss=hinge"]
    done = here("train", "mnist-gan", *SMALL, "--steps", 2, "--seed", 7, *sets)
    assert done.code == 0
    config = json.loads(Path("runs/0001-mnist-gan/config.json").read_text())
    assert config["name"], config["preset"] == ("mnist-gan", "default")
    expected = {"lr_g": 1e-3, "loss": "hinge", "seed": 7, "batch": 4, "steps": 2, "latent_dim": 3}
    assert {k: config["recipe"][k] for k in expected} == expected


def test_a_preset(cwd):
    done = here("train", "mnist-cgan", "--preset", "ocaml-torch", "--steps", 1, "--batch", 4)
    assert done.code == 0
    recipe = json.loads(Path("runs/0001-mnist-cgan/config.json").read_text())["recipe"]
    assert recipe["fake_labels"] == "constant" and recipe["beta1"] == 0.9


def test_dry_run_prints_the_plan_and_writes_nothing(tmp_path):
    done = installed("train", "mnist-cgan", *SMALL, "--steps", 30, "--dry-run", cwd=tmp_path)
    assert done.code == 0, done.err
    assert files(tmp_path) == []
    for text in ("generator\n", "discriminator\n", "1 × 28 × 28", "memory", "time", "15 lines"):
        assert text in done.out
    # 13 inputs of 3 latents and 10 classes, 128 hidden units
    assert f"{13 * 128 + 128 + 128 * 784 + 784:,}".replace(",", " ") in done.out
    assert "2 of " in done.out  # checkpoints: the start, the end


def test_dry_run_memory_grows_with_the_batch(cwd):
    def megabytes(batch):
        out = here("train", "mnist-dcgan", "--batch", batch, "--dry-run").out
        return int(re.search(r"^memory +(\d+) MB", out, re.M)[1])

    small, large = megabytes(4), megabytes(32)
    # of one sample at least: D's first activation before and after leaky ReLU, on fakes and reals
    assert large - small > 28 * 2 * 2 * 32 * 14 * 14 * 4 / 1e6


# ------------------------------------------------------------------------------------------- data


def pictures(folder, sizes, classes=()):
    rng = np.random.default_rng(0)
    for i, (w, h) in enumerate(sizes):
        home = folder / (classes[i % len(classes)] if classes else "")
        home.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (h, w, 3), np.uint8)).save(home / f"{i}.png")


def test_a_folder_of_pictures_of_any_size(cwd):
    pictures(cwd / "art", [(40, 30), (28, 28), (9, 50), (64, 64)] * 2)
    for i in range(7):
        (cwd / "art" / f"bad{i}.png").write_bytes(b"no picture")
    done = here("train", "mnist-gan", *SMALL, "--steps", 2, "--data", "art")
    assert done.code == 0, done.err
    assert "8 images 1×28×28" in done.out and "7 files skipped" in done.out
    assert done.out.count("skipped bad") == 5 and "and 2 more" in done.out
    assert "skipped bad0.png: not a picture" in done.out
    # It goes on from another folder too, as the path is kept whole.
    run = Path("runs/0001-mnist-gan").absolute()
    elsewhere = cwd / "elsewhere"
    elsewhere.mkdir()
    assert installed("train", "--resume", run, "--steps", 4, cwd=elsewhere).code == 0


def test_labels_that_are_not_used_are_mentioned(cwd):
    ignored = here("train", "mnist-gan", *SMALL, "--steps", 1)
    assert "its labels are not used" in ignored.out
    used = here("train", "mnist-cgan", *SMALL, "--steps", 1)
    assert "its labels are not used" not in used.out


def test_a_conditional_recipe_needs_labels(cwd):
    pictures(cwd / "plain", [(28, 28)] * 8)
    pictures(cwd / "three", [(28, 28)] * 9, classes=("a", "b", "c"))
    assert refused(here("train", "mnist-cgan", *SMALL, "--data", "plain"), "labels", "none")
    assert refused(here("train", "mnist-cgan", *SMALL, "--data", "three"), "10 classes", "3")
    assert not Path("runs").exists()


# ----------------------------------------------------------------------------------------- resume


@pytest.mark.parametrize("name", RECIPES)
def test_steps_in_two_parts_equal_steps_in_one(cwd, runs, name):
    sets = ["--set", "sample_every=3", "--set", "checkpoint_every=2"]
    assert here("train", name, *SMALL, "--steps", 3, *sets, "--out", "x").code == 0
    done = here("train", name, "--resume", "x", "--steps", 6)
    assert done.code == 0, done.err
    assert "from step 3 to 6" in done.out
    a, b = saved("x"), saved(runs[name])
    assert all(np.array_equal(a.tensors[k], b.tensors[k]) for k in b.tensors)
    assert a.tensors.keys() == b.tensors.keys()


def test_resume_alone_takes_the_newest_run_of_the_recipe(cwd):
    for name in ("mnist-gan", "mnist-cgan"):
        assert here("train", name, *SMALL, "--steps", 2).code == 0
    for i, args in enumerate((["mnist-gan", "--resume"], ["--resume", "mnist-gan"])):
        done = here("train", *args, "--steps", 4 + i)
        assert done.code == 0 and "runs/0001-mnist-gan" in done.out
    assert "runs/0002-mnist-cgan" in here("train", "--resume", "--steps", 3).out


def test_resume_of_a_finished_run_says_how_to_go_on(cwd, runs):
    before = (runs["mnist-gan"] / "log.jsonl").read_bytes()
    done = here("train", "mnist-gan", "--resume", runs["mnist-gan"])
    assert done.code == 0
    assert "is finished" in done.out
    assert f"--resume {runs['mnist-gan']} --steps 12" in done.out
    assert (runs["mnist-gan"] / "log.jsonl").read_bytes() == before


def test_resume_forgets_what_lies_beyond_the_checkpoint(cwd):
    sets = [
        "--set",
        "decay=constant",
        "--set",
        "sample_every=1",
        "--set",
        "checkpoint_every=4",
        "--set",
        "log_every=1",
    ]
    assert here("train", "mnist-gan", *SMALL[:4], *sets, "--steps", 7, "--out", "a").code == 0
    assert here("train", "mnist-gan", *SMALL[:4], *sets, "--steps", 9, "--out", "b").code == 0
    Path("a/checkpoints/step-00000007.safetensors").unlink()  # as if killed after step 7's log
    assert here("train", "mnist-gan", "--resume", "a", "--steps", 9).code == 0
    assert_same_training("a", "b")


def test_resume_passes_over_a_damaged_checkpoint_and_keeps_the_good_ones(cwd):
    sets = ["--set", "checkpoint_every=2", "--set", "keep_checkpoints=2"]
    assert here("train", "mnist-gan", *SMALL, *sets, "--steps", 6, "--out", "x").code == 0
    newest = Path("x/checkpoints/step-00000006.safetensors")
    newest.write_bytes(newest.read_bytes()[:-100])
    done = here("train", "mnist-gan", "--resume", "x", "--steps", 7)
    assert done.code == 0, done.err
    assert "passed over" in done.out and "step-00000006" in done.out
    assert "from step 4 to 7" in done.out
    names = [p.name for p in checkpoint.all_in(Path("x/checkpoints"))]
    assert names == ["step-00000007.safetensors", "step-00000006.safetensors"]
    assert all(checkpoint.load(p) for p in checkpoint.all_in(Path("x/checkpoints")))
    assert Path("x/checkpoints/step-00000006.safetensors.damaged").exists()


def test_resume_before_the_first_checkpoint_starts_over(cwd):
    assert here("train", "mnist-gan", *SMALL, "--steps", 3, "--out", "x").code == 0
    for path in Path("x/checkpoints").iterdir():
        path.unlink()
    done = here("train", "mnist-gan", "--resume", "x")
    assert done.code == 0 and "3 steps" in done.out
    assert saved("x").state["step"] == 3


@pytest.fixture
def six(cwd):
    """A run whose checkpoints are of steps 2, 4 and 6."""
    sets = ["--set", "checkpoint_every=2", "--set", "sample_every=1"]
    assert here("train", "mnist-gan", *SMALL, *sets, "--steps", 6, "--out", "six").code == 0
    return cwd / "six"


def test_an_older_checkpoint_goes_on_only_in_another_folder(six):
    before = files(six)
    old = six / "checkpoints" / "step-00000002.safetensors"
    assert refused(here("train", "mnist-gan", "--resume", old), "--out")
    done = here("train", "mnist-gan", "--resume", old, "--out", "branch")
    assert done.code == 0, done.err
    assert "from step 2 to 6" in done.out
    assert files(six) == before
    assert_same_training("branch", six)


def test_the_newest_checkpoint_may_be_named(six):
    newest = six / "checkpoints" / "step-00000006.safetensors"
    done = here("train", "mnist-gan", "--resume", newest, "--steps", 7)
    assert done.code == 0 and "from step 6 to 7" in done.out


@pytest.mark.parametrize(
    ("args", "word"),
    [
        (["--batch", "5"], "batch"),
        (["--seed", "5"], "seed"),
        (["--set", "lr_g=1"], "lr_g"),
        (["--preset", "ocaml-torch"], "preset"),
        (["--steps", "5"], "--steps 5"),
    ],
)
def test_what_a_resume_may_not_change(runs, args, word):
    before = files(runs["mnist-gan"])
    config = (runs["mnist-gan"] / "config.json").read_bytes()
    assert refused(here("train", "mnist-gan", "--resume", runs["mnist-gan"], *args), word)
    assert files(runs["mnist-gan"]) == before
    assert (runs["mnist-gan"] / "config.json").read_bytes() == config


def test_what_a_resume_may_change(cwd):
    assert here("train", "mnist-gan", *SMALL, "--steps", 2, "--out", "x").code == 0
    sets = ["--batch", "4", "--set", "log_every=1", "--set", "checkpoint_every=1"]
    assert here("train", "mnist-gan", "--resume", "x", "--steps", 5, *sets).code == 0
    recipe = json.loads(Path("x/config.json").read_text())["recipe"]
    assert (recipe["steps"], recipe["log_every"], recipe["checkpoint_every"]) == (5, 1, 1)


def test_a_resume_notices_other_data(cwd):
    pictures(cwd / "art", [(28, 28)] * 8)
    assert here("train", "mnist-gan", *SMALL, "--steps", 2, "--data", "art").code == 0
    (cwd / "art").rename(cwd / "moved")
    resume = ("train", "mnist-gan", "--resume", "--steps", 4)
    assert refused(here(*resume), "no such file")
    assert here(*resume, "--data", "moved").code == 0
    (cwd / "moved" / "0.png").unlink()
    assert refused(here("train", "--resume", "--steps", 5), "not the data", "--data")


# ----------------------------------------------------------------------------------------- sample


def sampled(*args):
    done = here("sample", *args)
    assert done.code == 0, done.err
    return Path(done.out.strip().rsplit(": ", 1)[1])


def test_sample_takes_the_newest_run_and_never_overwrites(cwd):
    assert here("train", "mnist-gan", *SMALL, "--steps", 2).code == 0
    first = sampled("--count", 9)
    content = first.read_bytes()
    second = sampled("--count", 9)
    assert first.parts[:2] == ("runs", "0001-mnist-gan") and first != second
    assert first.read_bytes() == content == second.read_bytes()
    assert pixels(first).shape == (3 * 30 + 2, 3 * 30 + 2)
    assert sampled("--count", 9, "--seed", 1).read_bytes() != content
    assert refused(here("sample", "--out", first), "not overwritten")


@pytest.mark.parametrize("name", ["mnist-gan", "mnist-dcgan"])
def test_a_sample_does_not_depend_on_how_many_are_drawn(cwd, runs, name):
    few = sampled(runs[name], "--count", 2, "--single", "--out", "few")
    many = sampled(runs[name], "--count", 130, "--single", "--out", "many")
    assert len(files(few)) == 2 and len(files(many)) == 130
    for name in files(few):
        assert (few / name).read_bytes() == (many / name).read_bytes()
    assert (many / "00000.png").read_bytes() != (many / "00128.png").read_bytes()


def test_sample_of_a_checkpoint_file(cwd, runs):
    checkpoints = runs["mnist-gan"] / "checkpoints"
    old = sampled(checkpoints / "step-00000002.safetensors", "--out", "old.png")
    new = sampled(checkpoints / "step-00000006.safetensors", "--out", "new.png")
    assert old.read_bytes() != new.read_bytes()
    assert sampled(runs["mnist-gan"], "--out", "same.png").read_bytes() == new.read_bytes()


def test_labels(cwd, runs):
    run = runs["mnist-cgan"]
    every = sampled(run, "--single", "--count", 20, "--out", "every")
    seven = sampled(run, "--single", "--count", 20, "--label", 7, "--out", "seven")
    same = [(every / f).read_bytes() == (seven / f).read_bytes() for f in files(every)]
    assert [i for i, equal in enumerate(same) if equal] == [7, 17]  # sample i has class i mod 10
    assert pixels(sampled(run, "--count", 25)).shape == (3 * 30 + 2, 10 * 30 + 2)
    assert refused(here("sample", run, "--label", 10), "0 to 9")
    assert refused(here("sample", run, "--label", -1), "0 to 9")
    assert refused(here("sample", runs["mnist-gan"], "--label", 1), "no classes")


@pytest.mark.parametrize("name", RECIPES)
def test_interpolation(cwd, runs, name):
    row = pixels(sampled(runs[name], "--interpolate", 5, "--seed", 3, "--seed", 8, "--seed", 2))
    assert row.shape == (2 * 30 + 2, 5 * 30 + 2)
    last_of_first, first_of_second = row[2:30, 122:150], row[32:60, 2:30]  # the sample of seed 8
    assert np.abs(last_of_first - first_of_second).max() <= 2
    with Image.open(sampled(runs[name], "--interpolate", 5, "--out", "way.gif")) as gif:
        assert (gif.n_frames, gif.size) == (5, (28, 28))


def test_an_interpolation_begins_at_the_sample_of_its_seed(cwd, runs):
    """On a net without batch statistics, to which its neighbours do not matter."""
    row = pixels(sampled(runs["mnist-gan"], "--interpolate", 4, "--seed", 5))
    for column, seed in ((0, 5), (3, 6)):
        single = sampled(runs["mnist-gan"], "--count", 1, "--seed", seed, "--columns", 1)
        expected = pixels(single)[2:30, 2:30]
        left = 2 + 30 * column
        assert np.abs(expected - row[2:30, left : left + 28]).max() <= 1


def test_paths_between_latents():
    a, b = np.array([3.0, 0, 0]), np.array([0, 0, 4.0])
    assert np.allclose(_linear(a, b, 0.25), [2.25, 0, 1])
    for t in (0, 1):
        assert np.allclose(_spherical(a, b, t), (a, b)[t])
    third = _spherical(a / 3, b / 4, 1 / 3)
    assert np.allclose(third, [np.cos(np.pi / 6), 0, np.sin(np.pi / 6)])
    assert np.allclose(_spherical(a, 2 * a, 0.5), 1.5 * a)  # the angle is 0


# ---------------------------------------------------------------------------------- recipes, info


def test_recipes_lists_them_all():
    done = installed("recipes")
    assert done.code == 0
    for text in (*RECIPES, "ocaml-torch", "346 977 + 36 513", "lr_g=0.0001"):
        assert text in done.out


def test_recipes_of_one_name_every_field():
    done = here("recipes", "mnist-cgan")
    for name in RECIPES["mnist-cgan"]["default"].to_dict():
        assert name == "about" or re.search(rf"^{name} ", done.out, re.M)
    assert re.search(r"^batch +64 +256 +2 or more +images a batch", done.out, re.M)


def test_info(runs):
    done = installed("info", runs["mnist-gan"])
    assert done.code == 0
    for text in ("step        6 of 6, finished", "good", "loss D", "NumPy", "d_loss"):
        assert text in done.out
    assert f"minigan train mnist-gan --resume {runs['mnist-gan']}" in done.out


def test_info_as_json_tells_of_damage(six):
    newest = six / "checkpoints" / "step-00000006.safetensors"
    content = bytearray(newest.read_bytes())
    content[-1] ^= 1
    newest.write_bytes(content)
    done = here("info", six, "--json")
    facts = json.loads(done.out)
    assert (facts["step"], facts["steps"], facts["finished"]) == (4, 6, False)
    assert [c["damage"] is None for c in facts["checkpoints"]] == [False, True, True]
    assert facts["last_log"]["step"] == 6
    assert facts["recipe"] == "mnist-gan" and facts["environment"]["numpy"] == np.__version__


def test_commands_that_are_printed_survive_a_space_in_the_path(cwd):
    done = here("train", "mnist-gan", *SMALL, "--steps", 1, "--out", "my runs/a b")
    (command,) = re.findall(r"minigan sample .*", done.out)
    assert here(*shlex.split(command)[1:]).code == 0
    assert here(*shlex.split(json.loads(here("info", "my runs/a b", "--json").out)["sample"])[1:])


# ----------------------------------------------------------------------------------------- doctor


def test_doctor_as_installed():
    done = installed("doctor")
    assert done.code == 0, done.out
    for text in ("Python", "BLAS", "threads", "by Numba", "10000 embedded digits", "CuPy"):
        assert text in done.out
    assert not re.search(r"^!!", done.out, re.M)


def examined():
    return {c["name"]: c for c in json.loads(here("doctor", "--json").out)}


def test_doctor_on_threads(monkeypatch):
    monkeypatch.setattr(threads, "_chosen", None)
    monkeypatch.setattr(system, "cores", lambda: 4)
    for said, state, advice in (
        ("4", "good", ""), ("9", "optional", "MINIGAN_NUM_THREADS=4"),
        ("1", "optional", "unset MINIGAN_NUM_THREADS"), ("four", "trouble", "unset"),
    ):  # fmt: skip
        monkeypatch.setenv("MINIGAN_NUM_THREADS", said)
        threads.set_count(None)
        (check,) = doctor._threads()
        assert (check.state, said in check.value) == (state, True) and advice in check.advice


def test_doctor_where_numba_does_not_work(tmp_path):
    (tmp_path / "numba.py").write_text("raise SystemError('_internal')")
    done = installed("doctor", PYTHONPATH=str(tmp_path))
    assert done.code == 0 and re.search(r"^ - CPU kernels not compiled", done.out, re.M)
    assert "_internal" in done.out and "pip install" in done.out


def test_doctor_without_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    cupy = examined()["CuPy"]
    assert cupy["state"] == "optional" and "pip install 'cupy-cuda12x[ctk]'" in cupy["advice"]
    assert here("doctor").code == 0


def test_doctor_on_two_cupys(monkeypatch):
    both = {"cupy": ["pillow", "click"]}  # stand for two CuPy packages: they have versions
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: True)
    monkeypatch.setattr(doctor.importlib.metadata, "packages_distributions", lambda: both)
    checks = list(doctor._cuda())
    assert [c.state for c in checks] == ["trouble"]
    assert "pip uninstall click pillow" in checks[0].advice


def test_doctor_without_nvrtc(monkeypatch):
    from minigan.kernels.sim import nvrtc

    def missing():
        raise nvrtc.CompilerMissing("none")

    monkeypatch.setattr(nvrtc, "version", missing)
    (check,) = doctor._nvrtc()
    assert check.state == "optional" and check.advice == nvrtc.ADVICE


def test_doctor_finds_a_kernel_that_computes_wrong_numbers(monkeypatch):
    from minigan import kernels

    monkeypatch.setattr(kernels, "bias_act", lambda x, *rest: x)
    check = doctor._try_kernel("cpu", "kernels", "reinstall")
    assert check.state == "trouble" and "wrong" in check.value


def test_doctor_on_old_numpy_and_unforeseen_errors(monkeypatch):
    monkeypatch.setattr(doctor, "_version", lambda package: (1, 26))

    def broken():
        raise RuntimeError("what\never")

    monkeypatch.setattr(doctor, "_threads", broken)
    checks = {c.name: c for c in doctor.examine()}
    assert checks["NumPy"].state == "trouble" and "numpy>=2" in checks["NumPy"].advice
    assert checks["broken"].value == "RuntimeError: what ever"
    assert here("doctor").code == 1


def test_threads_are_recorded_and_a_resume_with_others_is_told(tmp_path):
    args = ("train", "mnist-gan", *SMALL, "--out", "run")
    assert installed(*args, "--steps", 1, "--threads", 2, cwd=tmp_path).code == 0
    environment = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert environment["threads"]["kernels"] == 2
    again = ("train", "--resume", "run")
    same = installed(*again, "--steps", 2, "--threads", 2, cwd=tmp_path)
    assert same.code == 0 and "last bits" not in same.out
    other = installed(*again, "--steps", 3, "--threads", 1, cwd=tmp_path)
    assert "began on 2 threads and goes on with 1" in other.out and "--threads 2" in other.out
