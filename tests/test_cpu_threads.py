"""Who computes on which core: counts, errors, nesting, forks, and BLAS at one thread meanwhile."""

import os
import signal
import subprocess
import sys
import textwrap
import threading

import numpy as np
import pytest
from threadpoolctl import threadpool_info

from minigan.kernels import threads


def blas_threads():
    return [p["num_threads"] for p in threadpool_info() if p["user_api"] == "blas"]


def python(code, **environment):
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", textwrap.dedent(code)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,  # a hang at exit would end here
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


COUNT = "from minigan.kernels import threads; print(threads.count())"


@pytest.mark.parametrize(
    ("environment", "count"),
    [
        ({"MINIGAN_NUM_THREADS": "3", "OMP_NUM_THREADS": "2"}, "3"),
        ({"MINIGAN_NUM_THREADS": "", "OMP_NUM_THREADS": "5,2"}, "5"),
        ({"MINIGAN_NUM_THREADS": "", "OMP_NUM_THREADS": "", "OPENBLAS_NUM_THREADS": "4"}, "4"),
    ],
)
def test_the_environment_says_how_many(environment, count):
    assert python(COUNT, **environment) == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_else_as_many_as_the_cores_of_this_process():
    one = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n" + COUNT
    none = dict.fromkeys(threads.VARIABLES, "")
    assert python(one, **none) == "1"
    assert python(COUNT, **none) == str(len(os.sched_getaffinity(0)))


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5"])
def test_a_count_that_is_none_is_refused_by_name(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_chosen", None)
        patch.setenv("MINIGAN_NUM_THREADS", value)
        with pytest.raises(ValueError, match=f"MINIGAN_NUM_THREADS .*{value}"):
            threads.count()
    with pytest.raises(ValueError, match="at least 1, not 0"):
        threads.set_count(0)


@pytest.mark.parametrize(("n", "shards"), [(7, 3), (2, 5), (0, 2), (8, 2)])
def test_split_leaves_nothing_out(n, shards):
    parts = threads.split(n, shards)
    assert len(parts) == shards
    assert [i for a, b in parts for i in range(a, b)] == list(range(n))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


def test_every_shard_runs_once_each_on_its_own_thread():
    for _ in range(50):
        ran, meet = [], threading.Barrier(3, timeout=10)

        def task(i, ran=ran, meet=meet):
            meet.wait()  # all three at once, or never
            ran.append((i, threading.get_ident()))

        threads.run(task, 3)
        assert sorted(i for i, _ in ran) == [0, 1, 2] and len({t for _, t in ran}) == 3
        assert dict(ran)[0] == threading.get_ident()


def test_blas_is_held_at_one_thread_inside_and_given_back():
    before, inside = blas_threads(), []
    threads.run(lambda i: inside.append(blas_threads()), 2)
    with threads.one_blas_thread():
        threads.run(lambda i: inside.append(blas_threads()), 1)
        inside.append(blas_threads())
    assert all(n == 1 for counts in inside for n in counts) and inside[0]
    assert blas_threads() == before


@pytest.mark.parametrize("shard", [0, 1])
def test_an_error_comes_out_and_the_pool_lives_on(shard):
    ended = []

    def task(i):
        if i == shard:
            raise RuntimeError(f"shard {i}")
        ended.append(i)

    with pytest.raises(RuntimeError, match=f"shard {shard}"):
        threads.run(task, 2)
    assert ended == [1 - shard]
    threads.run(ended.append, 2)
    assert sorted(ended[1:]) == [0, 1]


def test_an_interrupt_waits_for_the_workers():
    """Ctrl-C during a kernel: no worker still writes when the exception comes out."""
    go, ended = threading.Event(), []

    def task(i):
        if i == 0:
            threading.Timer(0.2, go.set).start()
            signal.raise_signal(signal.SIGINT)
        go.wait(10)
        ended.append(i)

    with pytest.raises(KeyboardInterrupt):
        threads.run(task, 2)
    assert ended == [1]
    threads.run(ended.append, 2)
    assert len(ended) == 3


def test_nested_and_foreign_calls_do_all_their_shards():
    ran = []
    threads.run(lambda i: threads.run(lambda j: ran.append((i, j)), 2), 2)
    assert sorted(ran) == [(0, 0), (0, 1), (1, 0), (1, 1)]

    def user(k):
        for _ in range(200):
            threads.run(lambda i: ran.append((k, i)), 2)

    ran.clear()
    users = [threading.Thread(target=user, args=(k,)) for k in range(3)]
    for t in users:
        t.start()
    for t in users:
        t.join(30)
    assert len(ran) == 3 * 200 * 2


def test_errstate_of_the_caller_holds_on_the_workers():
    with np.errstate(over="ignore"):
        threads.run(lambda i: np.float32([1e38]) * np.float32([1e38]), 2)
    with np.errstate(over="raise"), pytest.raises(FloatingPointError):
        threads.run(lambda i: np.float32([1e38]) * np.float32([1e38 if i else 1]), 2)


def test_it_works_after_a_fork_and_ends_with_the_program():
    out = python("""
        import os
        from minigan.kernels import threads
        ran = []
        threads.run(ran.append, 3)
        child = os.fork()
        threads.run(ran.append, 3)
        if child == 0:
            os._exit(0 if sorted(ran) == [0, 0, 1, 1, 2, 2] else 1)
        print(os.waitpid(child, 0)[1], len(ran))
    """)
    assert out == "0 6"
