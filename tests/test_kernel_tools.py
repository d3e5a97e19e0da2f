"""minigan kernels, as a user runs it: list, show, check, run, report."""

import json
import re
import sys

import numpy as np
import pytest
from cli_tool import here, installed, refused

from minigan.kernels import check, cuda, flat, operands
from minigan.kernels.catalogue import KERNELS
from minigan.kernels.explain import LESSONS
from minigan.kernels.signatures import FOLDER, signatures
from minigan.kernels.sim import nvrtc


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        nvrtc.library()
    except nvrtc.CompilerMissing as missing:
        pytest.skip(str(missing))


# ---- list and show ------------------------------------------------------------------------------


def test_list():
    done = installed("kernels", "list")
    assert done.code == 0
    rows = [line.split()[:2] for line in done.out.splitlines()[1:]]
    assert rows == [[name, KERNELS[name].file] for name in KERNELS]


def test_list_as_json_names_every_kernel():
    rows = json.loads(here("kernels", "list", "--json").out)
    assert {row["name"]: row["file"] for row in rows} == {
        name: signature.file for name, signature in signatures().items()
    }
    assert all(row["rung"] and row["computes"] for row in rows)


def test_show_puts_counts_beside_lines():
    done = here("kernels", "show", "conv_tiled")
    source = (FOLDER / "ladder.cu").read_text().splitlines()
    (row,) = [line for line in done.out.splitlines() if "tile_w[ty][tx] = weight" in line]
    number = next(i for i, line in enumerate(source, 1) if "tile_w[ty][tx] = weight" in line)
    assert row.split()[1:4] == ["100%", "2.0", str(number)]  # rows of 17 floats: two-way conflicts
    assert "no GPU timing" in done.out


@pytest.mark.parametrize("name", ["matmul", "conv2d"])
def test_lines_are_numbered_as_in_their_files(name):
    """Though gemm.cu and another are compiled as one."""
    found = json.loads(here("kernels", "show", name, "--json").out)
    files = ["gemm.cu", KERNELS[name].file]
    texts = {file: (FOLDER / file).read_text() for file in files}
    fma = [row for row in found["lines"] if row["ffma"]]
    assert {row["file"] for row in found["lines"]} == set(files)
    for row in fma:
        assert "acc[i][j] +=" in texts[row["file"]].splitlines()[row["line"] - 1]
    assert (
        len(fma) == 1
        and sum(row["instructions"] for row in found["lines"]) == (found["total"]["instructions"])
    )
    assert here("kernels", "show", name, "--plain").out == "".join(texts.values())
    assert all(f"line  {file}\n" in here("kernels", "show", name).out for file in files)


def test_show_as_json_and_plain():
    found = json.loads(here("kernels", "show", "adam", "--json").out)
    assert found["total"]["global_bytes"] == 65536 * 28 + 65536 * 24  # 7 floats, and hyper's 6
    assert here("kernels", "show", "adam", "--plain").out == (FOLDER / "adam.cu").read_text()


def test_an_unknown_kernel_is_refused():
    assert refused(here("kernels", "show", "conv3d"), "conv3d: no such kernel", "conv2d_dgrad")
    assert refused(here("kernels", "check", "conv3d"), "conv3d: no such kernel")
    assert refused(here("kernels", "report", "conv3d"), "conv3d: no such kernel")


# ---- check --------------------------------------------------------------------------------------


def test_check():
    done = installed("kernels", "check", "adam", "philox_uniform", "--device", "sim", "--json")
    assert done.code == 0
    found = json.loads(done.out)
    assert found["device"] == "sim"
    adam, uniform = found["checks"]
    assert adam["launched"] == ["adam"] and 0 < adam["error"] <= adam["tolerance"]
    assert uniform["error"] == uniform["tolerance"] == 0


def test_check_covers_every_kernel():
    covered = {name for c in check.checks() for name in c.kernels}
    assert covered == signatures().keys()


def test_a_kernel_that_errs_is_told(monkeypatch):
    right = flat.adam_hyper
    monkeypatch.setattr(flat, "adam_hyper", lambda *a: right(*a) * np.float32(1.001))
    done = here("kernels", "check", "adam", "--device", "sim")
    assert done.code == 1
    assert re.search(r"^!! +adam", done.out, re.M) and "0 of 1 agree" in done.out
    assert re.search(r"adam, step 7.*: error \S+ is above the tolerance", done.err)


def test_one_wrong_bit_where_none_may_differ(monkeypatch):
    right = cuda.philox_uniform

    def wrong(out, key):
        right(out, key)
        out[7] = np.nextafter(out[7], np.float32(2))

    monkeypatch.setattr(cuda, "philox_uniform", wrong)
    assert here("kernels", "check", "philox_uniform", "--device", "sim").code == 1


def test_a_kernel_that_cannot_run_is_told(monkeypatch):
    monkeypatch.setitem(operands.ACTIVATIONS, "relu", ("undeclared", "1.0f"))
    done = here("kernels", "check", "bias_act", "--device", "sim", "--json")
    outcomes = {c["what"]: c for c in json.loads(done.out)["checks"]}
    assert done.code == 1
    assert "CompileError" in outcomes["relu"]["failure"] and outcomes["relu"]["error"] is None


def test_check_on_a_gpu_without_one():
    cupy = sys.modules.get("cupy")
    if cupy is not None and cupy.cuda.is_available():
        pytest.skip("there is a GPU")
    assert refused(here("kernels", "check", "--device", "cuda"), "device cuda")


# ---- run ----------------------------------------------------------------------------------------

REVERSE = """\
// Reverse each block's 256 numbers.
__global__ void reverse(const float* x, float* y) {
    __shared__ float tile[256];
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    tile[threadIdx.x] = x[i];
    y[i] = tile[blockDim.x - 1 - threadIdx.x];
}
"""
ADD = """\
__global__ void add(const float* x, const float* y, float* z, int n, float scale) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < n) z[i] = x[i] + scale * y[i];
}
"""
ADD_ARGS = ["--arg", "n=1000", "--arg", "scale=0.5", "--arg", "x=arange(n)", "--arg", "y=ones(n)",
            "--arg", "z=empty(n)", "--grid", "4", "--block", "256"]  # fmt: skip


@pytest.fixture
def write(tmp_path):
    def to(source):
        path = tmp_path / "mine.cu"
        path.write_text(source)
        return path

    return to


def test_a_race_is_explained(write):
    """As someone writes it who learns CUDA: no extern "C", no barrier."""
    done = installed("kernels", "run", write(REVERSE), "--grid", "4", "--block", "256",
                     "--arg", "x=randn(1024)", "--arg", "y=zeros(1024)")  # fmt: skip
    assert done.code == 1 and done.err == ""
    assert done.out.startswith("race: kernel reverse, line 6, block 0, thread 0\n")
    assert ">    5      tile[threadIdx.x] = x[i];" in done.out
    assert ">    6      y[i] = tile[blockDim.x - 1 - threadIdx.x];" in done.out
    told = " ".join(done.out.split())
    assert "which thread (255, 0, 0) wrote in line 5" in told
    assert "Why it is a bug The threads of a block do not run in step" in told
    assert "What to do Put a __syncthreads() between the two lines" in told


def test_a_barrier_mends_it(write):
    mended = REVERSE.replace("x[i];\n", "x[i];\n    __syncthreads();\n")
    done = here("kernels", "run", write(mended), "--grid", "4", "--block", "256", "--json",
                "--arg", "x=arange(1024)", "--arg", "y=zeros(1024)")  # fmt: skip
    y = json.loads(done.out)["arguments"]["y"]
    assert done.code == 0
    assert y == np.arange(1024).reshape(4, 256)[:, ::-1].reshape(-1).tolist()


BUGS = {
    "out of bounds": ("y[i + 1] = x[i];", "guard them with `if (i >= n) return;`"),
    "race between blocks": ("y[threadIdx.x] = i;", "__syncthreads() is for the threads of one"),
    "misaligned access": (
        "if (i == 0) *(float2*)(y + 1) = make_float2(x[0], x[1]);",
        "(float2: of 8)",
    ),
    "read of unwritten memory": ("__shared__ float t[256]; y[i] = t[threadIdx.x];", "Write it"),
    "race": ("y[blockIdx.x] += x[i];", "Use atomicAdd"),
    "barrier not reached by all": ("if (i % 2) __syncthreads();", "Move the barrier out"),
}


@pytest.mark.parametrize("kind", BUGS)
def test_each_fault_is_explained(kind, write):
    line, advice = BUGS[kind]
    source = f"""__global__ void mine(const float* x, float* y) {{
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    {line}
}}
"""
    done = here("kernels", "run", write(source), "--grid", "2", "--block", "64", "--json",
                "--arg", "x=randn(128)", "--arg", "y=zeros(128)")  # fmt: skip
    fault = json.loads(done.out)["fault"]
    assert (done.code, fault["kind"], fault["line"]) == (1, kind, 3)
    assert advice in fault["why"] + fault["mend"]


def test_dynamic_shared_memory_must_be_given(write):
    source = """__global__ void mine(float* y) {
    extern __shared__ float part[];
    part[threadIdx.x] = 1;
    y[threadIdx.x] = part[threadIdx.x];
}
"""
    args = ("--grid", "1", "--block", "32", "--arg", "y=empty(32)")
    done = here("kernels", "run", write(source), *args)
    assert done.code == 1 and "Give the bytes with --shared" in done.out
    assert here("kernels", "run", write(source), *args, "--shared", "128").code == 0


def test_every_kind_of_fault_has_a_lesson():
    kinds = set()
    for path in (FOLDER / "sim").glob("*.py"):
        for call in re.findall(r"fault(?:_at)?\((?:[^()]|\n){0,99}", path.read_text()):
            first = (
                call.split(",")[0] if '"' in call.split(",")[0] else ",".join(call.split(",")[:3])
            )
            kinds |= set(re.findall(r'"([a-z][a-z -]+)"', first))
    assert {"race", "race between blocks", "out of bounds", "unknown opcode"} <= kinds
    assert kinds <= LESSONS.keys(), kinds - LESSONS.keys()


def test_run_shows_results_and_counts(write, tmp_path):
    path, saved = write(ADD), tmp_path / "out.npz"
    done = installed("kernels", "run", path, "add", *ADD_ARGS, "--save", saved)
    assert done.code == 0, done.err
    assert re.search(r"^z +float32 1000 +0\.5 1\.5 2\.5 3\.5", done.out, re.M)
    assert re.search(r"^x +float32 1000 +0 1 2 .*\(unchanged\)", done.out, re.M)
    assert "no fault found. Counted on sim" in done.out
    with np.load(saved, allow_pickle=False) as arrays:
        assert np.array_equal(arrays["z"], np.arange(1000, dtype=np.float32) + np.float32(0.5))


def test_run_as_json_counts_by_line(write):
    found = json.loads(here("kernels", "run", write(ADD), *ADD_ARGS, "--json").out)
    (line,) = [row for row in found["lines"] if row["line"] == 3]
    assert line["global_bytes"] == 1000 * 12 and line["ffma"] == 1000


@pytest.mark.parametrize(
    "change, words",
    [
        ({"y=ones(n)": None}, ["add takes (", "give y too, like --arg y='randn(1024)'"]),
        ({"y=ones(n)": "y=ones(m)"}, ["m is no scalar given before it (those are n, scale)"]),
        ({"y=ones(n)": "y=__import__('os')"}, ["arrays are made by randn"]),
        ({"y=ones(n)": "y=ones(-1)"}, ["whole numbers"]),
        ({"y=ones(n)": "y=ones(10**12)"}, ["at most"]),
        ({"y=ones(n)": "y=(("}, ["cannot read '(('"]),
        ({"y=ones(n)": "y=3.0"}, ["y is a pointer and takes a NumPy array"]),
        ({"y=ones(n)": "w=ones(n)"}, ["--arg w: add has no such parameter"]),
        ({"scale=0.5": "n=5"}, ["--arg n: given twice"]),
        ({"scale=0.5": "scale"}, ["give it as NAME=VALUE"]),
        ({"n=1000": "n=1/0"}, ["division by zero"]),
        ({"4": "0"}, ["--grid 0"]),
        ({"256": "2048"}, ["2048 threads"]),
    ],
)
def test_run_refuses_in_words(change, words, write):
    args = [change.get(a, a) for a in ADD_ARGS]
    while None in args:
        del args[args.index(None) - 1 : args.index(None) + 1]
    assert refused(here("kernels", "run", write(ADD), *args), *words)


def test_run_refuses_files_in_words(write, tmp_path):
    blocks = ["--grid", "1", "--block", "32"]
    missing = here("kernels", "run", tmp_path / "nope.cu", *blocks)
    assert refused(missing, "nope.cu: No such file")
    two = write(ADD + REVERSE)
    assert refused(here("kernels", "run", two, *blocks), "which kernel? It has add, reverse")
    assert refused(here("kernels", "run", two, "sub", *blocks), "no kernel sub; it has add")
    wrong = write(ADD.replace("int i =", "itn i ="))
    done = here("kernels", "run", wrong, *ADD_ARGS)
    assert refused(done, "mine.cu does not compile", "mine.cu(2): error", "itn")
    program = write("#include <cstdio>\n" + ADD)
    assert refused(here("kernels", "run", program, *ADD_ARGS), "give the kernels alone")
    template = write(ADD.replace("__global__", "template <class T> __global__"))
    assert refused(here("kernels", "run", template, *ADD_ARGS), "add is a template")


# ---- report -------------------------------------------------------------------------------------


def test_report():
    done = installed("kernels", "report", "adam", "--arch", "sm_90", "--json")
    found = json.loads(done.out)
    (adam,) = found["reports"]
    assert (found["arch"], adam["arch"], adam["kernel"]) == ("sm_90", "sm_90", "adam")
    assert adam["spilled"] == 0 and 16 <= adam["registers"] <= 32 and adam["occupancy"] == 1
    assert adam["bank_conflict"] == 1 and adam["bound"] in adam["cycles"]
    assert set(found["sources"]) == {"compiled", "counted", "predicted"}


def test_report_as_a_table_says_what_is_predicted():
    done = here("kernels", "report", "col2im", "reduce_slices")
    assert re.search(r"^col2im +\d+ +0 100% +- ", done.out, re.M)
    assert "counted: " in done.out and "no GPU timing" in done.out


def test_report_refuses_in_words(tmp_path):
    assert refused(here("kernels", "report", "--arch", "sm_20"), "--arch sm_20", "sm_80")
    assert refused(here("kernels", "report", "--html", tmp_path), "is a folder")
    assert refused(here("kernels", "report", "adam", "--update-budget"), "takes all kernels")


def test_report_as_a_page(tmp_path):
    pytest.importorskip("matplotlib", reason="the page needs matplotlib")
    file = tmp_path / "report.html"
    done = here("kernels", "report", "adam", "conv_tiled", "--html", file)
    text = file.read_text(encoding="utf-8")
    assert done.code == 0 and "wrote" in done.out
    assert text.count("<svg") == 2 and "No GPU made any of these figures" in text
    assert not re.search(
        r'(?:src|href)="(?!#|data:)|@import|url\((?!#)', text
    )  # nothing from elsewhere


# ---- What is missing ----------------------------------------------------------------------------


@pytest.fixture
def without(tmp_path):
    """An environment where `import NAME` fails."""

    def hide(*names):
        for name in names:
            folder = tmp_path / name
            folder.mkdir()
            broken = "" if name == "nvidia" else f"raise ImportError('no {name} here')"
            (folder / "__init__.py").write_text(broken)
        return {"PYTHONPATH": str(tmp_path), "CUDA_PATH": "", "CUDA_HOME": ""}

    return hide


@pytest.mark.skipif(bool(nvrtc.ctypes.util.find_library("nvrtc")), reason="the system has NVRTC")
def test_without_nvrtc_one_line_installs_it(without, write):
    environment = without("nvidia")
    line = 'pip install "nvidia-cuda-nvrtc-cu12==12.9.*"'
    commands = (
        ["check", "--device", "sim"],
        ["run", write(ADD), *ADD_ARGS],
        ["report", "adam"],
        ["show", "adam"],
    )
    for command in commands:
        assert refused(installed("kernels", *command, **environment), line), command
    assert installed("kernels", "list", **environment).code == 0
    assert installed("kernels", "show", "adam", "--plain", **environment).code == 0


def test_without_cupy_and_matplotlib(without):
    environment = without("cupy", "matplotlib")
    done = installed("kernels", "check", "adam", **environment)
    assert done.code == 0 and "on sim" in done.out
    done = installed("kernels", "report", "adam", "--html", "page.html", **environment)
    assert refused(done, "pip install matplotlib")
