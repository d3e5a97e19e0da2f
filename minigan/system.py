"""What machine this is: for environment.json and `minigan doctor`."""

from __future__ import annotations

import os
import platform
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


def cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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
