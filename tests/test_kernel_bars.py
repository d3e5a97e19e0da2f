"""What the products of gemm.cu and thin.cu must reach on every layer of mnist-dcgan and of a 64×64
DCGAN, at batch 64: counted in the compiler's PTX and on sim, for sm_80."""

import pytest

from minigan.kernels import cases, machine_code, report
from minigan.kernels.sim import nvrtc

ARCH = "sm_80"
OPS = ("conv2d", "conv2d_dgrad", "conv2d_wgrad")
LAYERS = [
    pytest.param(layer, op, id=f"{net} {layer.name} {op}")
    for net, layers in cases.NETS.items()
    for layer in layers
    if not layer.transposed or layer.geometry.is_dense  # the others have a discriminator's geometry
    for op in OPS
]


@pytest.fixture(scope="module", autouse=True)
def compiler():
    try:
        nvrtc.library()
    except nvrtc.CompilerMissing as missing:
        pytest.skip(str(missing))


def is_wide(layer):
    z = layer.geometry
    return min(z.C, z.K) >= 64 and not z.is_dense


@pytest.mark.parametrize("layer, op", [p for p in LAYERS if is_wide(p.values[0])])
def test_wide_layers_multiply_most_of_the_time(layer, op):
    case = cases.convolution(op, layer)
    assert machine_code.hot_loop(case.kernel, ARCH).ffma_share >= 0.75
    assert machine_code.code_of(case.kernel, ARCH).spilled == 0


@pytest.mark.parametrize("layer, op", LAYERS)
def test_little_is_multiplied_in_vain(layer, op):
    assert 1 <= cases.convolution(op, layer).executed_over_useful <= 1.3


def widest(layer, op):
    """Sectors for 128 bytes asked; 4: all are in a row.

    Rows of 7 and 14 floats begin anywhere in a sector. A phase of conv2d_dgrad takes every other
    row of the weights' taps, half of each sector."""
    z = layer.geometry
    if op == "conv2d_dgrad" and z.SH == 2:
        return 6.5
    return 5.0 if z.Q % 4 else 4.5


@pytest.mark.parametrize("layer, op", LAYERS)
def test_memory_is_read_in_a_row_and_shared_memory_without_conflicts(layer, op):
    found = report.counted(cases.convolution(op, layer))
    assert found.worst_conflict <= 2
    asked = found.counts.global_bytes / 128
    assert found.counts.global_sectors / asked <= widest(layer, op)


def test_tensor_cores_read_without_conflicts():
    wide = cases.NETS["dcgan-64"][7]
    for op in OPS:
        assert report.counted(cases.convolution(op, wide, tf32=True)).worst_conflict <= 2, op
