from pathlib import Path

import numpy as np
import pytest

from localv4 import quant
from localv4.errors import InvalidInput
from localv4.quant import bf16, e2m1, e4m3, e8m0
from tests.quant.bits import assert_same_bits
from tests.reference import raw_safetensors

MODELS = ["tiny-flash", "tiny-edge", "tiny-base"]
NAMES = ["attn.wkv", "attn.wq_a", "attn.wo_a.bf16", "ffn.experts.1.w1"]


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("name", NAMES)
def test_matches_the_golden_checkpoints(kernels, shared: Path, model: str, name: str):
    folder = shared / "golden" / model / "model"
    if not folder.is_dir():
        pytest.skip(f"no goldens: {folder} is not there")
    tensor = f"layers.0.{name.removesuffix('.bf16')}"
    weight = raw_safetensors.read_folder_tensor(folder, f"{tensor}.weight")
    scale = raw_safetensors.read_folder_tensor(folder, f"{tensor}.scale").array
    fmt = "fp4" if weight.dtype == "I8" else "fp8"
    assert quant.weight_format(weight.array.shape, scale.shape) == fmt
    values = quant.dequantise(weight.array, scale, fmt)[:16]
    if name.endswith(".bf16"):
        values = bf16.round(values)
    assert_same_bits(values, kernels[f"dequant.{model}.layers.0.{name}"])


@pytest.mark.parametrize("byte_scales", [True, False])
def test_fp8_tiles_are_partial_at_the_edges(byte_scales: bool):
    rng = np.random.default_rng(7)
    codes = rng.integers(0, 0x7F, (130, 300), dtype=np.uint8)
    scale = rng.integers(120, 130, (2, 3), dtype=np.uint8)
    factors = e8m0.decode(scale) * np.float32(1 if byte_scales else 1.1)
    values = quant.dequantise(codes, scale if byte_scales else factors, "fp8")
    assert values.shape == (130, 300)
    for row, column in [(0, 0), (127, 127), (127, 128), (128, 127), (129, 256), (129, 299)]:
        factor = factors[row // 128, column // 128]
        assert values[row, column] == e4m3.TABLE[codes[row, column]] * factor


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_fp4_scales_cover_32_columns_of_one_row(dtype: type[np.integer]):
    rng = np.random.default_rng(8)
    codes = rng.integers(0, 16, (3, 96), dtype=np.uint8)
    scale = rng.integers(120, 130, (3, 3), dtype=np.uint8)
    packed = e2m1.pack(codes).view(dtype)
    packed.flags.writeable = False
    wanted = [
        [e2m1.TABLE[codes[r, c]] * e8m0.TABLE[scale[r, c // 32]] for c in range(96)]
        for r in range(3)
    ]
    assert_same_bits(quant.dequantise(packed, scale, "fp4"), np.array(wanted, np.float32))


def test_unaligned_memory_is_fine():
    buffer = np.zeros(1 + 4 + 128 * 128, np.uint8)
    buffer[1:5] = np.array([3.0], np.float32).view(np.uint8)
    buffer[5:] = 0x38
    scale = buffer[1:5].view(np.float32).reshape(1, 1)
    assert not scale.flags.aligned
    assert (quant.dequantise(buffer[5:].reshape(128, 128), scale, "fp8") == 3).all()


def test_nan_codes_and_scales_give_nan_without_a_warning():
    codes = np.full((2, 256), 0x38, np.uint8)
    codes[0, 3] = 0xFF
    values = quant.dequantise(codes, np.array([[127, 255]], np.uint8), "fp8")
    assert np.isnan(values[:, 128:]).all()
    assert np.isnan(values[:, :128]).sum() == 1


@pytest.mark.parametrize(
    ("weight", "scale", "fmt"),
    [
        ((128, 128), (1, 1), "fp8"),
        ((1, 128), (1, 1), "fp8"),
        ((129, 1), (2, 1), "fp8"),
        ((128, 64), (128, 4), "fp4"),
        ((1, 64), (1, 4), "fp4"),
    ],
)
def test_the_shapes_tell_the_format(weight, scale, fmt):
    assert quant.weight_format(weight, scale) == fmt
    assert quant.scale_shape(weight, fmt) == scale


@pytest.mark.parametrize(
    ("weight", "scale"),
    [((128, 128), (1, 2)), ((128, 64), (128, 2)), ((128, 60), (128, 4)), ((128,), (1,)), ((), ())],
)
def test_shapes_of_neither_format_are_refused(weight, scale):
    with pytest.raises(InvalidInput, match=r"\(.*\)"):
        quant.weight_format(weight, scale)


def test_a_wrong_pair_is_refused_with_its_shapes():
    codes = np.zeros((128, 128), np.uint8)
    scale = np.zeros((1, 1), np.uint8)
    with pytest.raises(InvalidInput, match=r"\(1, 1\).*\(128, 128\) needs \(128, 8\)"):
        quant.dequantise(codes, scale, "fp4")
    with pytest.raises(InvalidInput, match=r"60 columns.*32"):
        quant.dequantise(codes[:, :30], scale, "fp4")
    with pytest.raises(InvalidInput, match="int32"):
        quant.dequantise(codes, scale.astype(np.int32), "fp8")
    with pytest.raises(InvalidInput, match="'fp6'"):
        quant.dequantise(codes, scale, "fp6")  # type: ignore[arg-type]
