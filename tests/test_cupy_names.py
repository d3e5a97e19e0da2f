"""Every name, argument and keyword of CuPy that the code uses, against the installed CuPy.

CuPy imports without a GPU; what it would do on one is not seen here. Looked at are `cupy.…`, what
is taken from `xp = xp_of(…)`, and attributes that arrays have.
"""

import ast
import inspect
from pathlib import Path

import numpy as np
import pytest

cupy = pytest.importorskip("cupy", reason="CuPy is not installed: pip install 'cupy-cuda12x[ctk]'")

ROOT = Path(__file__).parent.parent
KERNELS = "__init__ catalogue channels check cuda flat launcher operands signatures".split()
FILES = [
    *[ROOT / "kernels" / f"{name}.py" for name in KERNELS],
    ROOT / "benchmarks" / "kernels.py",
    *[
        p for p in sorted((ROOT / "minigan").rglob("*.py")) if p.parent.name != "data"
    ],  # on the host
]


def chain(node):
    """["cuda", "Device"] of cupy.cuda.Device; None for what is not CuPy's."""
    names = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    if isinstance(node, ast.Name) and node.id in ("cupy", "xp"):
        return names[::-1]
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "xp_of":
        return names[::-1]
    return None


def resolve(names):
    """What cupy.a.b.c is.   Raises: AttributeError."""
    found = cupy
    for i, name in enumerate(names):
        if not hasattr(found, name) and inspect.ismodule(found):
            raise AttributeError(f"cupy.{'.'.join(names[: i + 1])}: CuPy has no such name")
        found = getattr(found, name)
    return found


def bind(function, call):
    """Check the arguments of a call.   Raises: TypeError."""
    starred = any(isinstance(a, ast.Starred) for a in call.args)
    keywords = {k.arg: None for k in call.keywords if k.arg}
    if isinstance(function, cupy.ufunc):
        function = cupy.ufunc.__call__
    if function is cupy.RawModule:  # compiled, but it does nothing until it is called
        function(**{name: "" if name == "code" else () for name in keywords})
        return
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # compiled, and silent about its arguments
    positional = [] if starred else [None] * len(call.args)
    if starred or any(k.arg is None for k in call.keywords):
        signature.bind_partial(*positional, **keywords)
    else:
        signature.bind(*positional, **keywords)


def on_the_gpu(tree):
    """All nodes, but for what is only reached if `xp_of(...) is np`."""
    host = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.If, ast.IfExp)) and ast.unparse(node.test).endswith(" is np"):
            body = node.body if isinstance(node, ast.If) else [node.body]
            host |= {inner for part in body for inner in ast.walk(part)}
    return [node for node in ast.walk(tree) if node not in host]


def faults(source):
    """A line for each use of CuPy that the installed one would refuse; and how many were seen."""
    found, seen, tree = [], 0, ast.parse(source)
    imported = {a.asname or a.name for node in ast.walk(tree)
                if isinstance(node, (ast.Import, ast.ImportFrom)) for a in node.names}  # fmt: skip
    for node in on_the_gpu(tree):
        if isinstance(node, ast.Attribute) and (names := chain(node)):
            seen += 1
            try:
                resolve(names)
            except AttributeError as error:
                found.append(f"line {node.lineno}: {error}")
        elif isinstance(node, ast.Attribute) and hasattr(np.ndarray, node.attr):
            if isinstance(node.value, ast.Name) and node.value.id in imported:
                continue  # a function of a module that is called like a method of arrays
            seen += 1
            if not hasattr(cupy.ndarray, node.attr):
                found.append(f"line {node.lineno}: cupy.ndarray has no {node.attr}")
        if isinstance(node, ast.Call) and (names := chain(node.func)):
            try:
                bind(resolve(names), node)
            except TypeError as error:
                found.append(f"line {node.lineno}: cupy.{'.'.join(names)}: {error}")
            except AttributeError:
                pass  # told above
    return found, seen


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_cupy_has_what_the_code_uses(path):
    found, _ = faults(path.read_text(encoding="utf-8"))
    assert not found, "\n".join(found)


def test_the_names_are_found():
    uses = {path.name: faults(path.read_text(encoding="utf-8"))[1] for path in FILES}
    assert uses["cuda.py"] > 20 and uses["array.py"] > 10


def test_what_is_for_numpy_alone_is_left_out():
    assert faults("n = a.ctypes.data if xp_of(a) is np else a.data.ptr")[0] == []
    assert faults("n = a.data.ptr if xp_of(a) is np else a.ctypes.data")[0] != []


@pytest.mark.parametrize(
    "source, words",
    [
        ("cupy.asaray(x)", "cupy.asaray: CuPy has no such name"),
        ("cupy.cuda.Devise(0)", "cupy.cuda.Devise: CuPy has no such name"),
        ("xp = xp_of(x)\nxp.empty((2,), np.float32, shape=3)", "line 2: cupy.empty: multiple"),
        ("xp_of(x).empty((2,), kind=1)", "cupy.empty: got an unexpected keyword argument 'kind'"),
        ("cupy.RawModule(code=s, option=())", "unexpected keyword argument 'option'"),
        ("cupy.asarray()", "cupy.asarray: missing a required argument"),
        ("x = 1\na.setflags(write=False)", "line 2: cupy.ndarray has no setflags"),
    ],
)
def test_what_cupy_lacks_is_named(source, words):
    found, _ = faults(source)
    assert any(words in line for line in found), found
