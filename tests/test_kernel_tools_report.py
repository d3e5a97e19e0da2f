"""What minigan kernels report rests on: occupancy, the compiler's log, hot loops, scaled counts."""

import dataclasses
import json

import pytest
from cli_tool import here

from minigan.kernels import cases, machine_code, plan
from minigan.kernels import report as reporting
from minigan.kernels.architectures import ARCHITECTURES, occupancy, resident_blocks
from minigan.kernels.cuda import Kernel
from minigan.kernels.report import predicted_cycles
from minigan.kernels.signatures import signatures
from minigan.kernels.sim import nvrtc
from minigan.kernels.sim.counters import Counts

ARCH = "sm_80"


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        nvrtc.library()
    except nvrtc.CompilerMissing as missing:
        pytest.skip(str(missing))


# ---- Occupancy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arch, threads, registers, shared, blocks",
    [
        ("sm_80", 256, 32, 0, 8),  # warps: 64 / 8
        ("sm_80", 256, 33, 0, 6),  # registers: 40 · 32 a warp, 12 warps a scheduler, 48 / 8
        ("sm_80", 256, 128, 0, 2),
        ("sm_80", 256, 255, 0, 1),
        ("sm_80", 32, 16, 0, 32),  # blocks
        ("sm_86", 256, 32, 0, 6),  # warps: 48 / 8
        ("sm_86", 32, 16, 0, 16),
        ("sm_89", 32, 16, 0, 24),
        ("sm_120", 32, 16, 0, 24),
        ("sm_80", 256, 32, 48 << 10, 3),  # shared: 164 KB / (48 + 1)
        ("sm_90", 256, 32, 48 << 10, 4),  # 228 / 49
        ("sm_70", 256, 32, 48 << 10, 2),  # 96 / 48: nothing is reserved
        ("sm_80", 1024, 65, 0, 0),  # more registers than there are: it cannot run
        ("sm_80", 33, 32, 0, 32),  # two warps
    ],
)
def test_resident_blocks(arch, threads, registers, shared, blocks):
    assert resident_blocks(arch, threads, registers, shared) == blocks


def test_occupancy():
    assert occupancy("sm_80", 256, 128, 0) == 16 / 64
    assert occupancy("sm_86", 256, 32, 0) == 1
    assert occupancy("sm_80", 33, 32, 0) == 1


def test_peaks_are_those_of_the_data_sheets():
    """TFLOP/s in float32, as NVIDIA publishes them."""
    sheets = {"sm_70": 15.7, "sm_80": 19.5, "sm_86": 35.6, "sm_89": 82.6, "sm_90": 66.9,
              "sm_120": 104.8}  # fmt: skip
    for arch, teraflops in sheets.items():
        a = ARCHITECTURES[arch]
        assert a.peak * a.clock / 1000 == pytest.approx(teraflops, rel=0.01), arch


# ---- The compiler -------------------------------------------------------------------------------

LOG = """
ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_80'
ptxas info    : Function properties for one
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 255 registers, used 1 barriers, 33792 bytes smem, 392 bytes cmem[0]
ptxas info    : Compiling entry function 'two' for 'sm_80'
ptxas info    : Function properties for two
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, 380 bytes cmem[0]
"""


def test_the_log_of_ptxas():
    assert machine_code.parse_log(LOG) == {"one": (255, 16, 33792), "two": (12, 0, 0)}


def test_a_log_that_cannot_be_read_is_told():
    with pytest.raises(ValueError, match="one: cannot read what ptxas says"):
        machine_code.parse_log(LOG.replace("Used 255", "Wasted 255"))


@pytest.mark.parametrize("arch, tf32", [("sm_70", False), ("sm_80", True), ("sm_120", True)])
def test_rung_6_is_left_out_where_there_are_no_tensor_cores_for_it(arch, tf32):
    done = here("kernels", "report", "conv2d", "--arch", arch, "--json")
    names = {row["kernel"] for row in json.loads(done.out)["reports"]}
    assert "conv2d" in names and ("conv2d TF32" in names) == tf32


def test_the_hot_loop_is_the_one_with_the_multiply_adds():
    d2 = cases.NETS["mnist-dcgan"][4]
    kernel = Kernel("conv_register", cases.rung("conv_register", d2).kernel.defines)
    loop = machine_code.hot_loop(kernel, ARCH)
    assert loop.instructions["fma.f32"] == 16 * 16  # a step is 16 deep, a thread has 4 × 4 outputs
    assert loop.instructions["bar"] == 2


@pytest.mark.parametrize("tile", plan.TILES, ids=lambda t: f"{t.bm}x{t.bn}-{t.tm}x{t.tn}")
def test_the_plans_shares_of_multiply_adds(tile):
    """plan.py chooses by them."""
    geometry = plan.Geometry.of(
        (64, 64, 14, 14), (128, 64, 4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1
    )
    defines = {"CONV2D": 1, "ALIGNED": 1, **tile.defines, **dataclasses.asdict(geometry)}
    loop = machine_code.hot_loop(Kernel("conv2d", tuple(defines.items())), ARCH)
    assert loop.ffma_share == pytest.approx(tile.share, abs=0.02)


# ---- Counts -------------------------------------------------------------------------------------


def test_there_is_a_case_for_every_kernel():
    assert {case.kernel.name for case in cases.cases()} == signatures().keys()


@pytest.mark.parametrize("op", ["conv2d", "conv2d_dgrad", "conv2d_wgrad"])
def test_scaled_counts_are_those_of_the_whole_launch(op, monkeypatch):
    layer, batch = cases.NETS["mnist-dcgan"][4], 6
    scaled = reporting.counted(cases.convolution(op, layer, batch)).counts
    monkeypatch.setattr(cases, "_small_layer", lambda z, tile, op, batch: (z, batch))
    case = cases.convolution(op, layer, batch)
    assert (case.steps, case.blocks) == (1, 1)
    whole = case.count().total
    for figure in ("instructions", "ffma", "shared_wavefronts", "global_sectors", "barriers"):
        assert getattr(scaled, figure) == pytest.approx(getattr(whole, figure), rel=0.05), figure
    assert scaled.sectors_per_request == pytest.approx(whole.sectors_per_request, rel=0.05)


@pytest.mark.parametrize("rung", ["conv_naive", "conv_tiled", "conv_vectorised"])
def test_scaled_counts_of_a_rung(rung, monkeypatch):
    layer, batch = cases.NETS["mnist-dcgan"][4], 6
    scaled = reporting.counted(cases.rung(rung, layer, batch)).counts
    monkeypatch.setattr(cases, "_small_rung", lambda z: z)
    monkeypatch.setattr(cases, "_images", lambda pixels, unit, enough, batch: batch)
    whole = cases.rung(rung, layer, batch).count().total
    for figure in ("instructions", "ffma", "shared_wavefronts", "global_sectors", "barriers"):
        assert getattr(scaled, figure) == pytest.approx(getattr(whole, figure), rel=0.05), figure


def test_bytes_that_must_move():
    adam = next(c for c in cases.cases() if c.name == "adam")
    assert adam.bytes == 65536 * 28 + 24
    d2 = cases.NETS["mnist-dcgan"][4]
    case = cases.convolution("conv2d", d2)
    assert case.bytes == 4 * (64 * 32 * 14 * 14 + 64 * 32 * 16 + 64 * 64 * 7 * 7)
    assert case.flops == 2 * 64 * 64 * 7 * 7 * 32 * 16


# ---- The bound ----------------------------------------------------------------------------------


def bound(grid, **counts):
    case = dataclasses.replace(
        cases.cases()[0], grid=grid, block=(256,), bytes=counts.pop("bytes", 0)
    )
    cycles = predicted_cycles(case, ARCH, Counts(**counts), resident=2)
    return max(cycles, key=cycles.get), cycles


def test_bounds():
    assert bound((1080,), instructions=10**8)[0] == "issue"
    assert bound((1080,), instructions=10**8, ffma=32 * 10**8)[0] == "fma"
    assert bound((1080,), instructions=10**8, shared_wavefronts=10**8)[0] == "shared"
    assert bound((1080,), global_sectors=10**8)[0] == "l2"
    assert bound((1080,), bytes=10**9)[0] == "memory"
    assert bound((10,), instructions=100)[0] == "launch"
    assert bound((10,), barriers=8 * 10 * 100)[0] == "latency"  # 100 steps of each warp


def test_too_few_blocks_leave_multiprocessors_idle():
    whole, few = bound((108,), instructions=10**8)[1], bound((54,), instructions=10**8)[1]
    tail = bound((109,), instructions=10**8)[1]
    assert few["issue"] == pytest.approx(2 * whole["issue"])
    assert tail["issue"] == pytest.approx(2 * whole["issue"] * 108 / 109)
