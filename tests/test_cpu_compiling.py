"""How the CPU's kernels come to be compiled: kept, by two processes, for which processor; and that
nothing of it is needed."""

import os
import platform
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from minigan.kernels import compiled, gemm, jobs, loading, threads, transforms, winograd


def python(code, **environment):
    """A fresh Python that runs `code`, its processes a group of their own."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def output(process):
    out, err = process.communicate(timeout=200)
    assert process.returncode == 0, err
    return out


# ----------------------------------------------------------------------------------- what is kept


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (gemm, "CHUNK", 32),
        (compiled, "ACTS", {**compiled.ACTS, "relu": 7}),
        (transforms, "G", (((1.0,),),)),
        (transforms, "_input", transforms._output),
        (winograd, "transform_outputs", winograd.transform_output_gradients),
        (gemm, "product", gemm.pad_images),
    ],
)
def test_what_kernels_are_made_of_decides_what_is_kept(module, name, value, monkeypatch):
    def version():
        jobs._version.cache_clear()
        return jobs._version()

    before = version()
    with monkeypatch.context() as patch:
        patch.setattr(module, name, value)
        assert version() != before
    for listed in ([0.5], [0.25]):
        with monkeypatch.context() as patch:
            patch.setattr(module, "RATES", listed, raising=False)
            assert version() != before
            before = version()
    jobs._version.cache_clear()


FULL = """
    import resource, warnings
    import numpy as np
    from minigan.kernels import cpu

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # each write to a file fails
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        x = np.ones((4, 3), np.float32)
        assert (cpu.bias_act(x, None, "relu", 0.0) == 1).all()
        assert (cpu.bias_act_backward(x, x, "relu", 0.0)[0] == 1).all()
    print(len(said), said[0].message)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="no limit on what a process writes")
def test_a_full_disk_works_and_is_told_once(tmp_path):
    out = output(python(FULL, NUMBA_CACHE_DIR=str(tmp_path)))
    assert out.startswith("1 ") and "cannot be kept" in out and "NUMBA_CACHE_DIR" in out


# ----------------------------------------------------------------------------------- two processes


class Slow:
    """A job that takes as long as one that must be compiled."""

    kernel = staticmethod(compiled.adam.kernel)

    def __init__(self, name, interrupt=False):
        self.name, self.interrupt, self.ready = name, interrupt, False

    def compile(self):
        if self.interrupt:
            raise KeyboardInterrupt
        time.sleep(0.17)
        self.ready = True


@pytest.fixture
def started(monkeypatch):
    """The processes that compile from the end."""
    assert loading.load()
    listed, whole = [], loading._from_the_end

    def start(names):
        listed.append(whole(names))
        return listed[-1]

    monkeypatch.setattr(loading, "_from_the_end", start)
    monkeypatch.setattr(jobs, "uncached", False)
    threads.set_count(2)
    yield listed
    threads.set_count(None)


@pytest.mark.parametrize("executable", ["/nowhere/python", "", None, "false", os.devnull])
def test_a_second_process_that_fails_harms_nothing(executable, started, monkeypatch):
    monkeypatch.setattr(sys, "executable", executable)
    slow, at = [Slow(f"job{i}") for i in range(5)], []
    loading.warm_up(slow, lambda *a: at.append(a))
    assert all(job.ready for job in slow) and at == [(i, 5) for i in range(1, 6)]
    assert started and all(p is None or p.poll() is not None for p in started)


def test_one_thread_starts_no_second_process(started):
    threads.set_count(1)
    loading.warm_up([Slow(f"job{i}") for i in range(5)])
    assert not started


def test_nor_do_few_jobs_or_such_as_were_kept(started, monkeypatch):
    loading.warm_up([Slow("job1"), Slow("job2"), Slow("job3")])
    monkeypatch.setattr(loading, "_LOADING", 10)
    loading.warm_up([Slow(f"job{i}") for i in range(5)])
    assert not started


def test_an_interrupt_ends_the_second_process(started):
    with pytest.raises(KeyboardInterrupt):
        loading.warm_up([Slow(f"job{i}", interrupt=i == 2) for i in range(5)])
    (second,) = started
    assert second.returncode == -signal.SIGKILL


COLD = """
    from minigan.kernels import loading, threads

    start = loading._from_the_end
    def told(names):
        process = start(names)
        print(process.pid, flush=True)
        return process
    loading._from_the_end = told
    threads.set_count(2)
    loading.warm_up()
"""


def running(process):
    try:
        return bool(Path(f"/proc/{process}/cmdline").read_text())  # a zombie has none
    except OSError:
        return False


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_who_ends_while_compiling_leaves_no_process(number, tmp_path):
    first = python(COLD, NUMBA_CACHE_DIR=str(tmp_path))
    second = int(first.stdout.readline())
    os.kill(first.pid, number)
    first.communicate(timeout=30)
    assert first.returncode == -number
    deadline = time.monotonic() + 10  # killed, it cannot tell; the other looks after each job
    while running(second):
        assert time.monotonic() < deadline  # interrupted before it had a name for the other, too
        time.sleep(0.1)


# ------------------------------------------------------------------------------------- processors

AS_OTHERS = """
    import numpy as np
    from minigan.kernels import cpu, reference, sharing, threads, tiles

    sharing.LEAST = 1
    threads.set_count(2)
    x, b, bias = (np.random.default_rng(i).standard_normal(shape).astype(np.float32)
                  for i, shape in enumerate([(37, 29), (29, 43), 43]))
    for left in (x, np.asfortranarray(x)):
        for right in (b, np.asfortranarray(b)):
            y = cpu.matmul(left, right, bias, "relu", 0.0)
            assert np.allclose(y, np.maximum(x.astype(float) @ b + bias, 0), atol=1e-5)
    print(tiles.LANES, tiles.OUTER_VECTORS, tiles.FUSED)
"""


@pytest.mark.skipif(platform.machine() != "x86_64", reason="another kind of processor")
@pytest.mark.parametrize(
    ("name", "features", "found"),
    [("haswell", "+avx,+avx2,+fma", "8 2 True\n"), ("x86-64", "+sse2", "4 2 False\n")],
)
def test_processors_of_shorter_vectors(name, features, found):
    from numba.core import codegen

    if not set(features.split(",")) <= set(codegen.get_host_cpu_features().split(",")):
        pytest.skip("this processor lacks them")
    said = output(python(AS_OTHERS, NUMBA_CPU_NAME=name, NUMBA_CPU_FEATURES=features))
    assert said == found
