"""The rungs of the ladder against reference.py, and every kernel through NVIDIA's compiler."""

import re
from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import WIDE, assert_as_good_as, convolutions, values

from minigan.kernels import cuda, reference
from minigan.kernels.plan import TILES, Geometry
from minigan.kernels.signatures import FOLDER, parse_signatures, signatures, source_of
from minigan.kernels.sim import nvrtc

# kernel -> (columns, rows) of a block
RUNGS = {
    "conv_naive": (256, 1),
    "conv_tiled": (16, 16),
    "conv_register": (64, 64),
    "conv_vectorised": (64, 64),
}
ARCHITECTURES = ["sm_70", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_120"]


def climb(rung, x, w, stride, pad, dilation):
    """y by one rung."""
    z = Geometry.of(x.shape, w.shape, stride, pad, dilation, 1)
    y = np.empty((len(x), z.K, z.P, z.Q), np.float32)
    columns, rows = RUNGS[rung]
    grid = (-(-len(x) * z.P * z.Q // columns), -(-z.K // rows))
    defines = tuple((key, value) for key, value in asdict(z).items() if key != "GROUPS")
    cuda.launch(cuda.Kernel(rung, defines), grid, (256,), (x, w, y, len(x)))
    return y


def check_rung(rung, case, seed):
    shape_x, shape_w, *rest, _ = case
    x, w = values(seed, *shape_x), values(seed + 1, *shape_w)
    plain = reference.conv2d(x, w, *rest, 1)
    exact = reference.conv2d(x.astype(np.float64), w.astype(np.float64), *rest, 1)
    assert_as_good_as(climb(rung, x, w, *rest), plain, exact, rung)


@pytest.mark.parametrize("rung", RUNGS)
def test_rung_on_many_blocks_with_tails(rung):
    check_rung(rung, WIDE, 0)


@pytest.mark.parametrize("rung", RUNGS)
@given(case=convolutions(max_batch=3, groups=False), seed=st.integers(0, 99))
@settings(max_examples=8)
def test_rung_on_any_shape(rung, case, seed):
    check_rung(rung, case, seed)


# ---- Through the compiler -----------------------------------------------------------------------

LAYER = asdict(Geometry.of((64, 64, 14, 14), (128, 64, 4, 4), (2, 2), ((1, 1), (1, 1)), (1, 1), 1))
PRODUCTS = {"matmul": "matmul.cu"} | dict.fromkeys(
    ["conv2d", "conv2d_dgrad", "conv2d_wgrad"], "conv.cu"
)


def spills(file, arch, **defines):
    """Bytes spilled by each kernel of a file, from ptxas."""
    compiled = nvrtc.compile(
        source_of(file), arch=arch, defines=defines, name=file, cubin=True,
        options=["--ptxas-options=-v"],
    )  # fmt: skip
    kernels = re.findall(r"entry function '(\w+)'", compiled.log)
    amounts = re.findall(r"(\d+) bytes spill stores, (\d+) bytes spill loads", compiled.log)
    assert len(kernels) == len(amounts) > 0
    return dict(zip(kernels, [int(a) + int(b) for a, b in amounts], strict=True))


@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_every_kernel_compiles_without_spills(arch):
    compiled = {}
    for path in sorted(FOLDER.glob("*.cu")):
        if path.name not in ("gemm.cu", *PRODUCTS.values()):
            compiled |= spills(path.name, arch)
    for name, file in PRODUCTS.items():
        tile = {"ALIGNED": 1} | TILES[1].defines
        compiled |= spills(file, arch, **{name.upper(): 1}, **LAYER, **tile)
    assert sorted(compiled) == sorted(signatures())
    assert not any(compiled.values()), compiled


def test_products_compile_by_themselves():
    assert spills("conv.cu", "sm_80") == {"conv2d": 0}
    assert spills("matmul.cu", "sm_80") == {"matmul": 0}


def test_tf32_is_refused_where_there_are_no_tensor_cores_for_it():
    with pytest.raises(nvrtc.CompileError, match=r"TF32 needs compute capability 8\.0"):
        spills("matmul.cu", "sm_70", TF32=1)


@pytest.mark.parametrize("name", PRODUCTS)
@pytest.mark.parametrize("tf32", [0, 1])
def test_no_tile_spills(name, tf32):
    for tile in TILES:
        if tf32 and not tile.fits_tensor_cores:
            continue
        for aligned in (0, 1):
            defines = {"TF32": tf32, "ALIGNED": aligned, name.upper(): 1, **LAYER, **tile.defines}
            found = spills(PRODUCTS[name], "sm_80", **defines)
            assert not any(found.values()), (tile, aligned, found)


def test_signatures_are_read_from_the_source():
    source = 'extern "C" __global__ void __launch_bounds__(32)\nf(const float* x,\n  unsigned n) {}'
    (x, n) = parse_signatures("f.cu", source)["f"].parameters
    assert (x.name, x.dtype, x.is_array) == ("x", np.float32, True)
    assert (n.name, n.dtype, n.is_array) == ("n", np.uint32, False)


def test_a_parameter_that_cannot_be_read_is_named():
    with pytest.raises(ValueError, match=r"f.cu: f: cannot read the parameter 'half\* x'"):
        parse_signatures("f.cu", 'extern "C" __global__ void f(half* x) {}')
