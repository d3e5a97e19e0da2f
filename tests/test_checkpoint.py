"""Checkpoints: exact round trips, damage noticed, nothing lost when a write fails."""

import errno
import json
import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minigan import checkpoint
from minigan.checkpoint import Checkpoint, CheckpointError
from minigan.files import write_atomic


def content(step=3):
    rng = np.random.default_rng(step)
    return Checkpoint(
        {
            "net.weight": rng.normal(size=(4, 3)).astype(np.float32),
            "double": rng.normal(size=5),
            "count": np.array(7, np.int64),
            "empty": np.zeros((0, 2), np.float32),
        },
        {"step": step, "recipe": {"lr": 0.1 + 0.2}, "text": "π"},
    )


def save(folder, step):
    path = checkpoint.path_of(folder, step)
    checkpoint.save(path, content(step))
    return path


def test_round_trip_is_exact(tmp_path):
    path = save(tmp_path, 3)
    back, original = checkpoint.load(path), content(3)
    assert back.state == original.state
    assert back.tensors.keys() == original.tensors.keys()
    for name, a in original.tensors.items():
        assert back.tensors[name].dtype == a.dtype
        assert back.tensors[name].shape == a.shape
        assert np.array_equal(back.tensors[name], a)


def test_values_that_compare_unequal_or_equal_keep_their_bits(tmp_path):
    a = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    checkpoint.save(tmp_path / "c", Checkpoint({"a": a}, {"step": 0, "recipe": {}}))
    assert checkpoint.load(tmp_path / "c").tensors["a"].tobytes() == a.tobytes()


@given(data=st.data())
def test_a_truncated_file_is_an_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("c")
    path = save(folder, 1)
    whole = path.read_bytes()
    path.write_bytes(whole[: data.draw(st.integers(0, len(whole) - 1))])
    with pytest.raises(CheckpointError, match="damaged"):
        checkpoint.load(path)


@given(data=st.data())
def test_a_changed_byte_of_a_tensor_is_an_error(tmp_path_factory, data):
    folder = tmp_path_factory.mktemp("c")
    path = save(folder, 1)
    whole = bytearray(path.read_bytes())
    start = 8 + int.from_bytes(whole[:8], "little")  # behind the header
    i = data.draw(st.integers(start, len(whole) - 1))
    whole[i] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(whole)
    with pytest.raises(CheckpointError, match="CRC-32"):
        checkpoint.load(path)


@pytest.mark.parametrize("junk", [b"", b"PK\x03\x04 not this", os.urandom(0) + b"\x00" * 64])
def test_other_files_are_no_checkpoints(tmp_path, junk):
    path = tmp_path / "x"
    path.write_bytes(junk)
    with pytest.raises(CheckpointError, match="damaged, or no checkpoint"):
        checkpoint.load(path)


def test_a_foreign_safetensors_file_is_no_checkpoint(tmp_path):
    from safetensors.numpy import save_file

    save_file({"a": np.zeros(3, np.float32)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="no minigan checkpoint"):
        checkpoint.load(tmp_path / "x")


@pytest.mark.parametrize("state", [{}, {"step": 1}, {"step": "1", "recipe": {}}, [], None])
def test_a_state_without_its_keys_is_no_checkpoint(tmp_path, state):
    from safetensors.numpy import save_file

    header = {"minigan": json.dumps({"state": state, "crc32": {}})}
    save_file({}, tmp_path / "x", header)
    with pytest.raises(CheckpointError, match="no minigan checkpoint"):
        checkpoint.load(tmp_path / "x")


def test_candidates_come_newest_first_with_reasons(tmp_path):
    for step in (2, 10, 9):
        save(tmp_path, step)
    (tmp_path / "step-notes.txt").write_text("mine")
    checkpoint.path_of(tmp_path, 10).write_bytes(b"torn")
    found = list(checkpoint.candidates(tmp_path))
    assert [p.name for p, _ in found] == [f"step-{s:08d}.safetensors" for s in (10, 9, 2)]
    assert isinstance(found[0][1], CheckpointError)
    assert found[1][1].state["step"] == 9


def test_prune_keeps_the_newest_and_what_is_not_its_own(tmp_path):
    for step in range(5):
        save(tmp_path, step)
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / ".step-00000009.safetensors.tmp").write_bytes(b"left by a kill")
    checkpoint.prune(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == [
        "notes.txt", "step-00000003.safetensors", "step-00000004.safetensors",
    ]  # fmt: skip


@pytest.mark.parametrize("where", ["write", "fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path, monkeypatch, where):
    path = tmp_path / "file"
    write_atomic(path, b"old")

    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    if where == "write":

        class Full:
            def __enter__(self):
                return self

            def __exit__(self, *args):
                return False

            write = full

        monkeypatch.setattr("builtins.open", lambda *a: Full())
    else:
        monkeypatch.setattr(os, where, full)
    with pytest.raises(OSError, match="No space left"):
        write_atomic(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
