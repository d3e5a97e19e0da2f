"""How many cores a process may use."""

import os

import pytest

from minigan import system

V1 = "3:cpuset:/\n2:cpu,cpuacct:{}\n1:name=systemd:/x\n"


@pytest.fixture(autouse=True)
def eight_cores(monkeypatch):
    if hasattr(os, "sched_getaffinity"):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)))
    monkeypatch.setattr(os, "cpu_count", lambda: 8)


def root(path, groups, **files):
    """A file system in which the process is in these control groups."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_text(text)
    return path


def v2(tmp_path, group, **quotas):
    files = {f"sys/fs/cgroup/{at}/cpu.max": f"{quota}\n" for at, quota in quotas.items()}
    return root(tmp_path, f"0::{group}\n", **files)


def v1(tmp_path, group, **quotas):
    files = {}
    for at, quota in quotas.items():
        for name, value in zip(("quota", "period"), quota.split(), strict=True):
            files[f"sys/fs/cgroup/cpu/{at}/cpu.cfs_{name}_us"] = f"{value}\n"
    return root(tmp_path, V1.format(group), **files)


@pytest.mark.parametrize("version", [v1, v2])
@pytest.mark.parametrize(
    ("quota", "cores"),
    [("200000 100000", 2), ("150000 100000", 2), ("10000 100000", 1), ("50000 10000", 5),
     ("9900000 100000", 8)],
)  # fmt: skip
def test_a_container_s_quota_rounded_up(version, quota, cores, tmp_path):
    assert system.cores(version(tmp_path, "/", **{".": quota})) == cores


def test_no_quota(tmp_path):
    assert system.cores(tmp_path) == 8  # not on Linux
    assert system.cores(root(tmp_path / "a", "0::/\n")) == 8
    assert system.cores(v2(tmp_path / "b", "/", **{".": "max 100000"})) == 8
    assert system.cores(v1(tmp_path / "c", "/", **{".": "-1 100000"})) == 8


@pytest.mark.parametrize("version", [v1, v2])
def test_the_groups_around_have_quotas_too(version, tmp_path):
    quotas = {"a": "300000 100000", "a/b": "400000 100000", "c": "100000 100000"}
    assert system.cores(version(tmp_path, "/a/b", **quotas)) == 3


@pytest.mark.parametrize("version", [v1, v2])
def test_a_container_that_sees_its_own_group_at_the_top(version, tmp_path):
    assert system.cores(version(tmp_path, "/docker/1f2e", **{".": "100000 100000"})) == 1


def test_the_quota_of_another_controller_is_none(tmp_path):
    files = {"sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "100000"}
    files["sys/fs/cgroup/cpu/x/cpu.cfs_period_us"] = "100000"
    assert system.cores(root(tmp_path, V1.format("/y"), **files)) == 8


def test_a_list_of_groups_that_cannot_be_read_says_nothing(tmp_path):
    assert system.cores(root(tmp_path, "nonsense\n\n7:\n")) == 8
