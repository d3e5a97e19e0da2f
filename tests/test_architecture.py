"""Who may import whom, and what `import minigan` costs."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom up: a module may import its own layer and those before it, never those after.
LAYERS = [
    ["array", "files", "system"],
    ["autograd", "kernels"],
    ["rules"],
    ["primitive"],
    ["ops"],
    ["flat", "nn", "optim", "losses", "schedules"],
    ["models", "gan", "data", "checkpoint", "metrics"],
    ["captured", "loop", "recipes", "runs", "sample", "train"],
    ["cli"],
]
LEVEL = {name: level for level, names in enumerate(LAYERS) for name in names}


def sources():
    """{dotted name: syntax tree} of every module of the package, wherever the tree keeps it."""
    homes = {"minigan": "minigan", "kernels": "minigan.kernels", "cli": "minigan.cli"}
    found = {}
    for folder, package in homes.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            name = ".".join([package, *(p for p in parts if p != "__init__")])
            found[name] = ast.parse(path.read_text(encoding="utf-8"), str(path))
            if path.name == "__init__.py":
                PACKAGES.add(name)
    return found


PACKAGES: set[str] = set()
SOURCES = sources()


def imports(name):
    """(absolute dotted name, line) of all that a module imports, in functions too."""
    package = name.split(".") if name in PACKAGES else name.split(".")[:-1]
    for node in ast.walk(SOURCES[name]):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            up = package[: len(package) - node.level + 1] if node.level else []
            for alias in node.names:
                yield ".".join([*up, *filter(None, [node.module]), alias.name]), node.lineno


def layer_of(dotted):
    """The part of minigan that a dotted name belongs to; None for the package itself."""
    parts = dotted.split(".")
    return parts[1] if len(parts) > 1 and ".".join(parts[:2]) in SOURCES else None


def test_the_modules_were_found():
    assert {"minigan.autograd", "minigan.ops.conv", "minigan.kernels.reference"} <= SOURCES.keys()


@pytest.mark.parametrize("name", SOURCES)
def test_imports_go_down_only(name):
    layer = layer_of(name)
    if layer is None:
        return  # minigan/__init__.py is the front door: it shows what it likes
    assert layer in LEVEL, f"{name}: give {layer} its place in LAYERS"
    for target, line in imports(name):
        if target.split(".")[0] != "minigan":
            continue
        other = layer_of(target)
        if other is None:  # a name from the front door, which imports ops
            assert LEVEL[layer] > LEVEL["ops"], f"{name}:{line} imports {target}"
        else:
            assert LEVEL[other] <= LEVEL[layer], f"{name}:{line} imports {target}, which is above"


@pytest.mark.parametrize("name", SOURCES)
def test_who_may_import_what_from_outside(name):
    owners = {"cupy": {"minigan.array", "minigan.kernels.cuda"}, "kernels": set(), "cli": set()}
    for target, line in imports(name):
        package = target.split(".")[0]
        assert name in owners.get(package, {name}), f"{name}:{line} imports {package}"


def python(code, *options):
    done = subprocess.run(
        [sys.executable, *options, "-c", code], capture_output=True, text=True, check=True
    )
    return done.stdout


def test_importing_minigan_imports_nothing_heavy():
    loaded = python("import sys, minigan; print(*sys.modules)").split()
    heavy = {"cupy", "numba", "PIL", "click", "rich", "matplotlib", "scipy", "safetensors"}
    assert "minigan.ops" in loaded
    assert heavy & set(loaded) == set()


def test_importing_minigan_takes_under_300_ms():
    """In CPU time, the best of up to ten tries: a busy machine must not fail it."""
    clock = "time.process_time()"
    code = f"import time; start = {clock}; import minigan; print({clock} - start)"
    times = []
    while len(times) < 10 and (not times or min(times) >= 0.3):
        times.append(float(python(code)))
    assert min(times) < 0.3, times
