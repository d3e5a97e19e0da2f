"""What machine this is: for environment.json and `minigan doctor`."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from contextlib import suppress
from math import ceil
from pathlib import Path
from typing import Any

from threadpoolctl import threadpool_info


def cpu_model() -> str:
    """The processor's name, as the system gives it."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def cores(root: Path = Path("/")) -> int:
    """The cores that this process may use: by its affinity, and by the CPU time that a container
    allots, rounded up.   root: of the file system in which Linux tells that."""
    if hasattr(os, "sched_getaffinity"):
        some = len(os.sched_getaffinity(0))
    else:
        some = os.cpu_count() or 1
    return max(1, min([some, *map(ceil, _quotas(root))]))


def _quotas(root: Path) -> Iterator[float]:
    """CPU time by time that the process's control groups, and those around them, may use."""
    try:
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for group in groups:
        controllers, _, path = group.partition(":")[2].partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / ("cpu" if controllers else "")
        folder = top / path.lstrip("/")  # within a container it may be the top that it sees
        for at in (folder, *folder.parents):
            with suppress(OSError, ValueError, ZeroDivisionError):
                if controllers:
                    quota = float((at / "cpu.cfs_quota_us").read_text())
                    period = float((at / "cpu.cfs_period_us").read_text())
                else:
                    quota, period = map(float, (at / "cpu.max").read_text().split())
                if quota > 0:
                    yield quota / period
            if at == top:
                break


def _blas_pools() -> list[dict[str, Any]]:
    return [p for p in threadpool_info() if p["user_api"] == "blas"]


def blas() -> str:
    """NumPy's BLAS: library, version, and the kernels that it chose for this processor."""
    pools = _blas_pools()
    if not pools:
        return "unknown"
    p = pools[0]
    return " ".join(str(p[k]) for k in ("internal_api", "version", "architecture") if p.get(k))


def thread_counts() -> dict[str, int]:
    """cores: that this process may use.   blas: threads of NumPy's BLAS."""
    return {"cores": cores(), "blas": max((p["num_threads"] for p in _blas_pools()), default=1)}
