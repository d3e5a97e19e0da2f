"""Who computes on which core: counts, errors, nesting, forks, and BLAS at one thread meanwhile."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import numpy as np
import pytest
from threadpoolctl import threadpool_info, threadpool_limits

from minigan.kernels import compiled, jobs, loading, threads
from minigan.system import cores


@pytest.fixture(autouse=True)
def compiled_loops():
    assert loading.load()


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
        ({"OMP_NUM_THREADS": "5,2", "MKL_NUM_THREADS": "7"}, "5"),
        ({"OPENBLAS_NUM_THREADS": "4"}, "4"),
        ({"MKL_NUM_THREADS": "7", "NUMBA_NUM_THREADS": "6"}, "7"),
        ({"NUMBA_NUM_THREADS": "6"}, "6"),
    ],
)
def test_the_environment_says_how_many(environment, count):
    assert python(COUNT, **{**dict.fromkeys(threads.VARIABLES, ""), **environment}) == count


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_else_as_many_as_the_cores_of_this_process():
    one = "import os; os.sched_setaffinity(0, list(os.sched_getaffinity(0))[:1])\n" + COUNT
    none = dict.fromkeys(threads.VARIABLES, "")
    assert python(one, **none) == "1"
    assert python(COUNT, **none) == str(cores())


@pytest.mark.parametrize("value", ["two", "0", "-1", "1.5", "²", "1025", str(10**20)])
def test_a_count_that_is_none_is_refused_by_name(value):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threads, "_chosen", None)
        patch.setenv("MINIGAN_NUM_THREADS", value)
        with pytest.raises(ValueError, match=f"MINIGAN_NUM_THREADS .*{value}"):
            threads.count()


@pytest.mark.parametrize("number", [0, 1025, 10**20])
def test_so_is_one_that_is_set(number):
    with pytest.raises(ValueError, match=rf"must be 1 \.\. 1024, not {number}"):
        threads.set_count(number)


@pytest.mark.parametrize(("n", "shards"), [(7, 3), (2, 5), (0, 2), (8, 2)])
def test_split_leaves_nothing_out(n, shards):
    parts = threads.split(n, shards)
    assert len(parts) == shards
    assert [i for a, b in parts for i in range(a, b)] == list(range(n))
    assert max(b - a for a, b in parts) - min(b - a for a, b in parts) <= 1


@jobs.job("t")
def meet(seen, first, last, part):
    jobs._add(seen.ctypes.data, 1)
    for _ in range(1 << 33):  # some seconds
        if jobs._load(seen.ctypes.data) == 3:
            seen[0, 1 + part] = 1
            return


def count_rows(parts, rows=64, columns=4):
    """What each shard of `column_sums` over ones has counted."""
    sums = np.full((parts, columns), -1.0)
    arguments = np.ones((rows, columns), np.float32), sums
    threads.run(compiled.column_sums, arguments, rows, parts)
    return sums[:, 0].astype(int).tolist()


def test_every_shard_runs_once_each_with_its_own_part():
    for parts in (1, 2, 3, 5, 2):
        for rows in (0, 1, 7, 64):
            lengths = [b - a for a, b in threads.split(rows, parts)]
            assert count_rows(parts, rows) == lengths


def test_workers_sleep_after_a_while_and_wake():
    count_rows(3)
    pool = threads._pool
    for wait in (0, 0.05, 0, 0.05, 0.001):  # between tasks: they look out for 200 µs, then sleep
        time.sleep(wait)
        if wait == 0.05:
            assert pool.asleep[:2].all()
        assert count_rows(3) == [21, 21, 22]


def test_parts_run_at_the_same_time():
    """Three parts that wait for each other: one thread alone would wait in the first."""
    for _ in range(20):
        seen = np.zeros((1, 4), np.int64)
        threads.run(meet, (seen,), 3, 3)
        assert seen.tolist() == [[3, 1, 1, 1]]


def test_an_interrupt_waits_for_the_workers():
    """Ctrl-C during a kernel: no worker still writes when the exception comes out."""
    x, sums = np.ones((1_000_000, 8), np.float32), np.zeros((2, 8))
    threads.run(compiled.column_sums, (x, sums), 1, 2)
    interrupts = 0
    for _ in range(5):
        sums[...] = -1
        signal.setitimer(signal.ITIMER_REAL, 0.001)  # in the midst of some milliseconds
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(threads._pool.jobs, "finished", slowly(threads._pool.jobs.finished))
                signal.signal(signal.SIGALRM, signal.default_int_handler)
                threads.run(compiled.column_sums, (x, sums), len(x), 2)
        except KeyboardInterrupt:
            interrupts += 1
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
        assert sums[:, 0].tolist() == [500_000, 500_000]
    assert interrupts == 5
    assert count_rows(2) == [32, 32]


def slowly(finished):
    return lambda *args: time.sleep(0.002) or finished(*args)


def test_foreign_calls_do_all_their_shards():
    wrong = []

    def user(rows):
        for _ in range(300):
            if sum(got := count_rows(2, rows)) != rows:
                wrong.append(got)

    users = [threading.Thread(target=user, args=(50 + k,)) for k in range(4)]
    for t in users:
        t.start()
    for t in users:
        t.join(30)
    assert not wrong and not any(t.is_alive() for t in users)


within = threads.one_blas_thread(blas_threads)


@threads.one_blas_thread
def around():
    return within(), blas_threads()


@pytest.fixture
def many():
    """What BLAS has: more threads than one, which it may not have by itself."""
    with threadpool_limits(3, "blas"):
        assert max(blas_threads()) > 1
        yield blas_threads()


def test_blas_is_held_at_one_thread_and_given_back(many):
    for got in (within(), *around()):
        assert set(got) == {1}
    assert blas_threads() == many
    with pytest.raises(ZeroDivisionError):
        threads.one_blas_thread(lambda: 1 / 0)()
    assert blas_threads() == many


def test_blas_is_given_back_when_the_last_thread_leaves(many):
    inside, leave = threading.Barrier(2), threading.Event()

    @threads.one_blas_thread
    def meet():
        inside.wait(30)
        return leave.wait(30)

    other = threading.Thread(target=meet)
    other.start()
    threads.one_blas_thread(inside.wait)(30)
    assert set(blas_threads()) == {1}
    leave.set()
    other.join()
    assert set(within()) == {1}  # threadpoolctl may let only the main thread give it back
    assert blas_threads() == many


def interrupt(function, times):
    """Call it again and again until a signal's exception comes out of it; yields after each."""
    old = signal.signal(signal.SIGALRM, signal.default_int_handler)
    left = signal.setitimer(signal.ITIMER_REAL, 0)  # that of a limit on the test's time
    delays = np.random.default_rng(0).uniform(1e-5, 5e-4, times).tolist()
    try:
        for delay in delays:
            with pytest.raises(KeyboardInterrupt):
                signal.setitimer(signal.ITIMER_REAL, delay)
                while True:
                    function()
            yield
    finally:
        signal.signal(signal.SIGALRM, old)
        signal.setitimer(signal.ITIMER_REAL, *left)


def test_after_interrupts_the_workers_work_still():
    x, sums = np.ones((4, 4), np.float32), np.zeros((2, 4))
    for _ in interrupt(lambda: threads.run(compiled.column_sums, (x, sums), 4, 2), 1000):
        assert not threads._free.locked()
    for _ in range(20):  # they may still be waking
        threads.run(meet, (seen := np.zeros((1, 4), np.int64),), 3, 3)
        assert seen.tolist() == [[3, 1, 1, 1]]


@pytest.mark.parametrize("when", [0, 1])
def test_an_interrupt_while_a_worker_is_woken_leaves_none_asleep(when):
    """As it is asked whether he sleeps, and as he is woken: the next task wakes him then."""
    lock, pool = threading.Lock(), object.__new__(threads._Pool)
    lock.acquire()
    pool.asleep, pool.locks = np.ones(1, np.int64), [Interrupting(lock, when)]
    with pytest.raises(KeyboardInterrupt):
        pool._wake(1)
    pool._wake(1)
    assert not lock.locked()


class Interrupting:
    """A lock, and a signal that comes with the first call of it, or the second."""

    def __init__(self, lock, when):
        self.lock, self.when = lock, when

    def __getattr__(self, name):
        def call(*args):
            result = getattr(self.lock, name)(*args)
            self.when -= 1
            if self.when == -1:
                raise KeyboardInterrupt
            return result

        return call


def test_after_interrupts_blas_is_given_back(many):
    nothing = threads.one_blas_thread(threads.one_blas_thread(lambda: None))
    for _ in interrupt(nothing, 1000):
        assert not threads._limit.inside
        nothing()  # gives back what may be left
        assert not threads._limit.before
    assert set(within()) == {1} and blas_threads() == many


def test_it_works_after_a_fork_and_ends_with_the_program():
    out = python("""
        import os
        import numpy as np
        from minigan.kernels import compiled, jobs, loading, threads

        def count_rows():
            sums = np.zeros((3, 4))
            threads.run(compiled.column_sums, (np.ones((9, 4), np.float32), sums), 9, 3)
            return sums[:, 0].tolist()

        loading.warm_up()
        assert count_rows() == [3, 3, 3]
        child = os.fork()
        counted = count_rows()
        if child == 0:
            os._exit(0 if counted == [3, 3, 3] else 1)
        print(os.waitpid(child, 0)[1], counted)
    """)
    assert out == "0 [3.0, 3.0, 3.0]"
