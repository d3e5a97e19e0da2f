"""minigan doctor"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click

GOOD, OPTIONAL, TROUBLE = "good", "optional", "trouble"


@dataclass
class Check:
    """One thing looked at.   state: good, optional (missing, and needed by some only), trouble."""

    name: str
    value: str
    state: str = GOOD
    advice: str = ""


@click.command(short_help="Look for what is missing on this machine.")
@click.option("--json", "as_json", is_flag=True, help="The findings as JSON.")
def doctor(as_json: bool) -> None:
    """Look at Python, NumPy, CuPy, the GPU and its compiler, and say what mends each trouble.

    Exit code 1 if something is broken (!!), 0 if at most optional things are missing (-).

    \b
    minigan doctor
    minigan doctor --json
    """
    from minigan.cli.progress import working

    with working("looking"):
        checks = examine()
    if as_json:
        click.echo(json.dumps([asdict(c) for c in checks], indent=2))
    else:
        for c in checks:
            mark = {GOOD: "ok", OPTIONAL: "-", TROUBLE: "!!"}[c.state]
            click.echo(f"{mark:>2} {c.name:10} {c.value}")
            if c.advice:
                click.echo(f"   {'':10} -> {c.advice}")
    click.get_current_context().exit(int(any(c.state == TROUBLE for c in checks)))


def examine() -> list[Check]:
    """All checks; one that fails in an unforeseen way is itself a finding."""
    found: list[Check] = []
    for look in (_python, _numpy, _threads, _libraries, _package, _folders, _nvrtc, _cuda):
        try:
            found += look()
        except Exception as error:
            text = " ".join(str(error).split())
            found.append(
                Check(
                    look.__name__.strip("_"),
                    f"{type(error).__name__}: {text}",
                    TROUBLE,
                    "this is not foreseen: please report it",
                )
            )
    return found


def _version(package: str) -> tuple[int, ...]:
    parts = importlib.metadata.version(package).split(".")
    return tuple(int(p) for p in parts[:2] if p.isdigit())


# ----------------------------------------------------------------------------------------- the CPU


def _python() -> Iterator[Check]:
    import minigan

    yield Check("minigan", f"{minigan.__version__}, {Path(minigan.__file__).parent}")
    value = f"{platform.python_version()}, {sys.executable}"
    if sys.maxsize < 2**32:
        yield Check("Python", f"{value}, 32 bits", TROUBLE, "install a 64-bit Python")
    else:
        yield Check("Python", value)


def _numpy() -> Iterator[Check]:
    import numpy as np

    from minigan.system import blas, cpu_model

    yield Check("CPU", cpu_model())
    if _version("numpy") < (2, 0):
        yield Check("NumPy", np.__version__, TROUBLE, "pip install --upgrade 'numpy>=2'")
        return
    library = blas()
    if library == "unknown":
        yield Check(
            "NumPy",
            f"{np.__version__}, its BLAS is not known",
            OPTIONAL,
            "if training is slow: pip install --force-reinstall numpy, which brings OpenBLAS",
        )
    else:
        yield Check("NumPy", f"{np.__version__}, BLAS {library}")


def _threads() -> Iterator[Check]:
    from minigan.kernels import threads
    from minigan.system import cores

    try:
        count = threads.count()
    except ValueError as error:
        yield Check("threads", str(error), TROUBLE, f"unset {threads.VARIABLES[0]}")
        return
    value = f"{count} compute, on {cores()} cores"
    if count > cores():
        advice = f"more threads than cores wait for each other: {threads.VARIABLES[0]}={cores()}"
        yield Check("threads", value, OPTIONAL, advice)
    elif count < cores():
        said = [name for name in threads.VARIABLES if os.environ.get(name)]
        yield Check("threads", value, OPTIONAL, f"unset {', '.join(said)} to use every core")
    else:
        yield Check("threads", value)


def _libraries() -> Iterator[Check]:
    needed = {
        "pillow": "PIL",
        "click": "click",
        "rich": "rich",
        "safetensors": "safetensors",
        "threadpoolctl": "threadpoolctl",
    }
    missing = [
        package for package, module in needed.items() if importlib.util.find_spec(module) is None
    ]
    if missing:
        yield Check(
            "libraries",
            f"{', '.join(missing)} missing",
            TROUBLE,
            f"pip install {' '.join(missing)}",
        )
    else:
        yield Check("libraries", ", ".join(f"{p} {importlib.metadata.version(p)}" for p in needed))
    yield _numba()


def _numba() -> Check:
    """Whether the CPU's kernels can be compiled, seen by compiling one."""
    from minigan.kernels import loading

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        works = loading.load()
    advice = str(said[0].message) if said else ""
    if works:
        value = f"compiled by Numba {importlib.metadata.version('numba')}"
        return Check("CPU kernels", value, OPTIONAL if advice else GOOD, advice)
    value = "not compiled, on plain NumPy and several times slower"
    return Check("CPU kernels", value, OPTIONAL, advice or "pip install --upgrade numba")


def _package() -> Iterator[Check]:
    from minigan import data, kernels

    digits = Path(data.__file__).with_name("mnist-10k.npz")
    sources = list(Path(kernels.__file__).parent.glob("*.cu"))
    if digits.exists() and sources:
        yield Check("data", f"{len(data.load('mnist-10k'))} embedded digits")
    else:
        what = "mnist-10k.npz" if sources else "the kernels' .cu files"
        yield Check(
            "data",
            f"{what} missing from the installation",
            TROUBLE,
            "install minigan anew, from its clone: pip install --force-reinstall .",
        )


def _folders() -> Iterator[Check]:
    from minigan.files import cache_folder

    here, cache = Path("runs").absolute(), cache_folder()
    if _writable(here):
        yield Check("runs", f"{here} can be written")
    else:
        yield Check(
            "runs",
            f"{here} cannot be written",
            OPTIONAL,
            "go to another folder, or train with --out FOLDER",
        )
    if _writable(cache):
        yield Check("cache", f"{cache} can be written")
    else:
        yield Check(
            "cache",
            f"{cache} cannot be written",
            OPTIONAL,
            "for downloaded sets: set MINIGAN_CACHE to a folder that can",
        )


def _writable(folder: Path) -> bool:
    """Whether the folder, or the first that exists of those that hold it, may be written."""
    existing = next(p for p in (folder, *folder.parents) if p.exists())
    return existing.is_dir() and os.access(existing, os.W_OK | os.X_OK)


# ----------------------------------------------------------------------------------------- the GPU


def _nvrtc() -> Iterator[Check]:
    from minigan.kernels.sim import nvrtc

    try:
        version = ".".join(map(str, nvrtc.version()))
    except nvrtc.CompilerMissing:
        yield Check(
            "sim", "no NVRTC, NVIDIA's compiler: --device sim cannot run", OPTIONAL, nvrtc.ADVICE
        )
        return
    yield _try_kernel(
        "sim", f"NVRTC {version}", "pip install --force-reinstall 'nvidia-cuda-nvrtc-cu12==12.9.*'"
    )


def _cuda() -> Iterator[Check]:
    if importlib.util.find_spec("cupy") is None:
        yield Check(
            "CuPy",
            "not installed: --device cuda cannot run",
            OPTIONAL,
            "with an NVIDIA GPU: pip install 'cupy-cuda12x[ctk]'",
        )
        return
    packages = sorted(set(importlib.metadata.packages_distributions().get("cupy", ["cupy"])))
    name = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    if len(packages) > 1:
        yield Check(
            "CuPy",
            f"installed more than once: {name}",
            TROUBLE,
            f"pip uninstall {' '.join(packages)}, then pip install 'cupy-cuda12x[ctk]'",
        )
        return
    yield Check("CuPy", name)
    yield from _gpu()


def _gpu() -> Iterator[Check]:
    from minigan.array import DeviceError, gpus

    try:
        found = gpus()
    except DeviceError as error:
        seen = shutil.which("nvidia-smi") or Path("/proc/driver/nvidia").exists()
        advice = "with an NVIDIA GPU: install its driver; start a container with --gpus all"
        if seen:
            advice = "there is a driver; see nvidia-smi. CUDA 12 needs its version 525 or newer"
        yield Check("GPU", str(error), OPTIONAL, advice)
        return
    for gpu in found:
        yield Check("GPU", gpu)
    cache = Path(os.environ.get("CUPY_CACHE_DIR") or Path.home() / ".cupy" / "kernel_cache")
    if not _writable(cache):
        yield Check(
            "CuPy cache",
            f"{cache} cannot be written",
            TROUBLE,
            "set CUPY_CACHE_DIR to a folder that can",
        )
    yield _try_kernel("cuda", "kernels", "pip install --upgrade 'cupy-cuda12x[ctk]'")


def _try_kernel(device: str, what: str, advice: str) -> Check:
    """Compile and run one kernel, and compare it with the reference."""
    import numpy as np

    from minigan import kernels
    from minigan.array import to_device, to_numpy
    from minigan.kernels import reference

    x = np.linspace(-2, 2, 24, dtype=np.float32).reshape(2, 3, 4)
    bias = np.array([-0.5, 0, 0.5], np.float32)
    compute: Callable[..., object] = kernels.bias_act
    try:
        with kernels.use("sim" if device == "sim" else "cpu"):
            y = to_numpy(compute(to_device(x, device), to_device(bias, device), "leaky_relu", 0.2))
    except Exception as error:
        text = " ".join(str(error).split())[:300]
        return Check(device, f"{what}: a kernel cannot run: {text}", TROUBLE, advice)
    if not np.allclose(y, reference.bias_act(x, bias, "leaky_relu", 0.2), atol=1e-6):
        return Check(device, f"{what}: a kernel computes wrong numbers", TROUBLE, advice)
    return Check(device, f"{what}: a kernel compiles, runs and agrees with the reference")
