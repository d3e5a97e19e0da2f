"""Bad input: one clear line on stderr and an exit code, whatever is wrong, and nothing left."""

import gzip
import os
import re
import shutil
import struct
import subprocess
from pathlib import Path

import numpy as np
import pytest
from cli_tool import ENVIRONMENT, MINIGAN, SMALL, here, installed, refused, saved

from minigan import checkpoint
from minigan.checkpoint import Checkpoint
from minigan.runs import RunFolder

pytestmark = pytest.mark.usefixtures("cwd")


@pytest.fixture
def cwd(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("errors") / "run"
    assert here("train", "mnist-gan", *SMALL, "--steps", 2, "--out", folder).code == 0
    return folder


OPTIONS = {  # what is typed after `minigan`: (what the line must name)
    "train": ("which recipe", "mnist-dcgan"),
    "train mnist-dgcan": ("mnist-dgcan", "did you mean 'mnist-dcgan'"),
    "train mnist-gan --stepz 3": ("--stepz", "--steps"),
    "train mnist-gan --set lrg=3": ("lrg", "did you mean 'lr_g'"),
    "train mnist-gan --set batch": ("--set batch", "FIELD=VALUE"),
    "train mnist-gan --set loss=hing": ("loss", "'hing'", "hinge"),
    "train mnist-gan --set lr_g=fast": ("lr_g", "'fast'"),
    "train mnist-gan --set lr_g=nan": ("lr_g", "nan"),
    "train mnist-gan --set lr_g=inf": ("lr_g", "inf"),
    "train mnist-gan --set beta1=2": ("beta1", "2"),
    "train mnist-gan --batch 8 --set batch=9": ("batch", "twice"),
    "train mnist-gan --preset best": ("preset", "'best'", "ocaml-torch"),
    "train mnist-gan --batch 0": ("batch", "at least 2", "0"),
    "train mnist-gan --batch many": ("batch", "whole number", "many"),
    "train mnist-gan --batch 10001": ("batch", "10001", "10000"),
    "train mnist-gan --steps -1": ("steps", "at least 1", "-1"),
    "train mnist-gan --seed -1": ("seed", "-1"),
    "train mnist-gan --device tpu": ("--device", "tpu"),
    "train mnist-gan --threads 0": ("--threads", "1 .. 1024", "0"),
    "train mnist-gan --threads 1025": ("--threads", "1 .. 1024", "1025"),
    "train mnist-gan --threads two": ("--threads", "two"),
    "train mnist-gan --on-nan pray": ("--on-nan", "pray"),
    "train mnist-gan --data mnist-1k": ("mnist-1k", "mnist-10k"),
    "train mnist-gan --out /dev/null/x": ("/dev/null/x",),
    "train mnist-gan --resume": ("mnist-gan", "runs"),
    "train --resume nowhere": ("nowhere",),
    "sample": ("runs",),
    "sample nowhere": ("nowhere",),
    "sample --count 0": ("--count", "0"),
    "sample --seed -1": ("--seed", "-1"),
    "sample --interpolate 1": ("--interpolate", "1"),
    "sample --interpolate 5 --count 3": ("--count", "--interpolate"),
    "sample --seed 1 --seed 2": ("--seed", "--interpolate"),
    "sample --single --columns 3": ("--columns", "--single"),
    "sample --out x.jpg": ("x.jpg", ".png"),
    "info nowhere": ("nowhere",),
    "info .": ("config.json",),
    "recipes mnist": ("mnist", "mnist-gan"),
    "trian": ("trian",),
    "--vorsion": ("--vorsion",),
}


@pytest.mark.parametrize("line", OPTIONS)
def test_options(cwd, line):
    assert refused(here(*line.split()), *OPTIONS[line])
    assert list(cwd.iterdir()) == []


@pytest.mark.parametrize(
    "line", ["train mnist-dgcan", "train mnist-gan --stepz 3", "train mnist-gan --batch 0"]
)
def test_options_as_installed(cwd, line):
    assert refused(installed(*line.split(), cwd=cwd), *OPTIONS[line])


@pytest.mark.parametrize("command", ["train mnist-gan", "sample", "recipes"])
def test_a_number_of_threads_that_is_none(cwd, command):
    done = installed(*command.split(), cwd=cwd, MINIGAN_NUM_THREADS="two")
    assert refused(done, "MINIGAN_NUM_THREADS", "'two'")
    assert list(cwd.iterdir()) == []


def test_a_warning_is_a_line(cwd):
    Path("numba.py").write_text("raise SystemError('_internal')")
    args = ("train", "mnist-gan", *SMALL, "--steps", 1)
    done = installed(*args, cwd=cwd, PYTHONPATH=str(cwd))
    assert done.code == 0 and re.fullmatch(r"minigan: CPU kernels run on .*Numba.*\n", done.err)


def test_cuda_where_there_is_none():
    """On a machine with neither CuPy nor a GPU, and on one with CuPy alone."""
    try:
        import cupy
    except ImportError:
        cupy = None
    if cupy is not None and cupy.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert refused(installed("train", "mnist-gan", "--device", "cuda"), "cuda")


# ------------------------------------------------------------------------------------------- data

IDX = struct.pack(">BBBB3I", 0, 0, 8, 3, 16, 28, 28) + bytes(16 * 28 * 28)


def npz(**arrays):
    def write(path):
        with open(path, "wb") as file:
            np.savez(file, **arrays)

    return write


def content(data):
    return lambda path: path.write_bytes(data)


FILES = {  # name: (its maker, what the line says)
    "missing.idx": (lambda path: None, "no such file"),
    "empty.idx": (content(b""), "empty"),
    "truncated.idx": (content(IDX[:-9]), "announces"),
    "magic.idx": (content(b"\x7fELF" + IDX[4:]), "not an IDX file"),
    "truncated.gz": (content(gzip.compress(IDX)[:-30]), "truncated"),
    "corrupt.gz": (content(gzip.compress(IDX)[:-8] + bytes(8)), "cannot be read"),
    "few.idx": (content(struct.pack(">BBBB3I", 0, 0, 8, 3, 3, 28, 28) + bytes(2352)), "3 images"),
    "other.npz": (npz(pictures=np.zeros((9, 28, 28), np.uint8)), "no array named images"),
    "float.npz": (npz(images=np.zeros((9, 28, 28))), "float64"),
    "pickled.npz": (npz(images=np.array([{}], object)), "pickled"),
    "broken.npz": (content(b"PK\3\4 and no more"), "not an .npz"),
    "broken.zip": (content(b"PK\3\4 and no more"), "not a zip"),
    "folder": (lambda path: path.mkdir(), "no picture"),
    "text": (lambda path: (path.mkdir(), (path / "a.txt").write_text("a")), "1 skipped"),
}


@pytest.mark.parametrize("name", FILES)
def test_data(cwd, name):
    make, words = FILES[name]
    make(cwd / name)
    assert refused(here("train", "mnist-gan", *SMALL, "--data", name), name, words)
    assert not (cwd / "runs").exists()


# ------------------------------------------------------------------------------------ checkpoints


def test_a_run_whose_checkpoints_are_all_damaged(cwd, run):
    shutil.copytree(run, "copy")
    for path in checkpoint.all_in(Path("copy/checkpoints")):
        path.write_bytes(path.read_bytes()[:-50])
    for args in (["train", "mnist-gan", "--resume", "copy"], ["sample", "copy"]):
        assert refused(here(*args), "copy", "step-00000002", "step-00000000")


@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:5],
        lambda content: content[: len(content) // 2],
        lambda content: b"\x89PNG\r\n" + content[6:],
        lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    ],
    ids=["empty", "header", "half", "other", "one bit"],
)
def test_a_damaged_checkpoint_that_is_named(cwd, run, damage):
    shutil.copytree(run, "copy")
    path = Path("copy/checkpoints/step-00000002.safetensors")
    path.write_bytes(damage(path.read_bytes()))
    for args in (["train", "mnist-gan", "--resume", path], ["sample", path]):
        assert refused(here(*args), path, "damaged")


def test_a_safetensors_file_of_something_else(cwd, run):
    from safetensors.numpy import save_file

    shutil.copytree(run, "copy")
    path = Path("copy/checkpoints/step-00000009.safetensors")
    save_file({"weights": np.zeros(3, np.float32)}, path)
    assert refused(here("train", "--resume", path), path, "no minigan checkpoint")


def test_a_checkpoint_of_another_recipe(cwd, run):
    assert refused(here("train", "mnist-cgan", "--resume", run), "mnist-gan", "mnist-cgan")
    # and one that was copied into the wrong run
    assert here("train", "mnist-cgan", *SMALL, "--steps", 2, "--out", "c").code == 0
    source = Path("c/checkpoints/step-00000002.safetensors")
    shutil.copytree(run, "copy")
    shutil.copy(source, "copy/checkpoints/step-00000009.safetensors")
    assert refused(here("train", "mnist-gan", "--resume", "copy"), "mnist-cgan", "mnist-gan")


def test_a_checkpoint_of_other_sizes_or_of_another_version(cwd, run):
    good = saved(run)
    shutil.copytree(run, "copy")
    path = Path("copy/checkpoints/step-00000009.safetensors")
    tensors = {**good.tensors, "generator.0.weight": np.zeros((2, 2), np.float32)}
    checkpoint.save(path, Checkpoint(tensors, good.state))
    assert refused(here("train", "--resume", "copy"), "generator", "0.weight", "(2, 2)")
    checkpoint.save(path, Checkpoint(good.tensors, {**good.state, "format": 2}))
    for args in (["train", "--resume", "copy"], ["sample", "copy"]):
        assert refused(here(*args), "format 2")
    recipe = {**good.state["recipe"], "warp": 9}
    checkpoint.save(path, Checkpoint(good.tensors, {**good.state, "recipe": recipe}))
    assert refused(here("sample", "copy"), "warp", "version")


@pytest.mark.parametrize("text", ["", "{", "[]", '{"recipe": {"batch": 0}}'])
def test_a_damaged_config(cwd, run, text):
    shutil.copytree(run, "copy")
    Path("copy/config.json").write_text(text)
    for args in (["train", "--resume", "copy"], ["info", "copy"]):
        assert refused(here(*args), "copy/config.json")


def test_a_checkpoint_file_outside_of_a_run(cwd, run):
    shutil.copy(run / "checkpoints" / "step-00000002.safetensors", "lonely.safetensors")
    assert refused(here("train", "--resume", "lonely.safetensors"), "lies in no run")


# --------------------------------------------------------------------------------- out of something


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write anywhere")
def test_a_folder_that_may_not_be_written(cwd):
    (cwd / "locked").mkdir(mode=0o555)
    assert refused(here("train", "mnist-gan", *SMALL, "--out", "locked/run"), "locked/run")


def test_a_file_where_the_folder_should_be(cwd):
    (cwd / "runs").write_text("")
    assert refused(here("train", "mnist-gan", *SMALL), "runs")


def test_not_a_number_fails_with_advice(cwd):
    wild = ["--set", "lr_g=1e30", "--set", "lr_d=1e30", "--set", "optimizer=sgd"]
    wild += ["--set", "loss=wasserstein", "--batch", "4", "--steps", "30"]
    for on_nan in ("stop", "skip", "rollback"):
        done = here("train", "mnist-gan", *wild, "--on-nan", on_nan, "--out", on_nan)
        if on_nan == "skip":
            assert done.code == 0 or refused(done, "NaN", "lr_g", code=1)
            continue
        assert refused(done, "step 0", "generator", "first op", "lr_g", code=1)
        assert ("--on-nan rollback" in done.err) == (on_nan == "stop")
        assert done.out.count("back to step-") == (5 if on_nan == "rollback" else 0)


def test_out_of_memory(monkeypatch):
    def exhausted(*args, **kwargs):
        raise MemoryError("Unable to allocate 3 TiB")

    monkeypatch.setattr("minigan.train.Trainer.warm_up", lambda *_: None)  # it takes steps, too
    monkeypatch.setattr("minigan.train.Trainer.advance", exhausted)
    done = here("train", "mnist-gan", *SMALL)
    assert refused(done, "out of memory", "3 TiB", "--batch", "--resume runs/0001-mnist-gan")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_disk_that_is_full_when_it_logs(cwd, monkeypatch):
    create = RunFolder.create

    def full(*args):
        run = create(*args)
        run.log_path = Path("/dev/full")
        return run

    monkeypatch.setattr(RunFolder, "create", full)
    done = here("train", "mnist-gan", *SMALL, "--set", "checkpoint_every=1", "--steps", 4)
    assert refused(done, "/dev/full: No space left", "free some space", "step-00000001", "--resume")
    monkeypatch.undo()
    os.chdir(cwd)
    assert here("train", "mnist-gan", "--resume").code == 0
    assert saved("runs/0001-mnist-gan").state["step"] == 4


FULL = """
set -e
mount -t tmpfs -o size=15m minigan disk
head -c 5M /dev/zero >disk/filler
code=0
"$MINIGAN" train mnist-gan $SMALL --set checkpoint_every=1 --set keep_checkpoints=9 --steps 20 \
    --out disk/run >out 2>err || code=$?
echo $code >code
ls -A disk/run/checkpoints >left
rm disk/filler
"$MINIGAN" train mnist-gan --resume disk/run --set keep_checkpoints=1 >out2 2>err2
cp -r disk/run saved
"""


@pytest.fixture
def mount(cwd):
    """Skips where a small disk cannot be mounted."""
    (cwd / "disk").mkdir()
    probe = "mount -t tmpfs -o size=64k minigan disk"
    if not shutil.which("unshare"):
        pytest.skip("needs unshare")
    if subprocess.run(["unshare", "-m", "sh", "-c", probe], capture_output=True).returncode:
        pytest.skip("needs root, to mount a small disk")


@pytest.mark.usefixtures("mount")
def test_a_disk_that_is_full_in_the_middle_of_a_checkpoint(cwd):
    environment = {**ENVIRONMENT, "MINIGAN": MINIGAN, "SMALL": " ".join(SMALL)}
    shell = ["unshare", "-m", "sh", "-c", FULL]
    subprocess.run(shell, env=environment, check=True, timeout=120)
    (line,) = Path("err").read_text().splitlines()
    assert Path("code").read_text() == "2\n"
    left = Path("left").read_text().split()
    assert len(left) > 1 and all(name.startswith("step-") for name in left)  # no half file
    failed = f"step-{len(left):08d}.safetensors"
    assert line.startswith(f"minigan: disk/run/checkpoints/{failed}: No space left on device")
    assert f"free some space; the newest checkpoint stands ({left[-1]})" in line
    assert line.endswith("go on with: minigan train mnist-gan --resume disk/run")
    assert f"from step {len(left) - 1} to 20" in Path("out2").read_text()
    # The end is that of a training with room.
    args = [*SMALL, "--set", "checkpoint_every=1", "--steps", 20, "--out", "room"]
    assert here("train", "mnist-gan", *args).code == 0
    a, b = saved("saved"), saved("room")
    assert all(np.array_equal(a.tensors[k], b.tensors[k]) for k in b.tensors)
