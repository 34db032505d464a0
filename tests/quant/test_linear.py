from fractions import Fraction

import numpy as np
import pytest

from localv4 import quant
from localv4.errors import InvalidInput
from localv4.quant import bf16, e2m1, e4m3, e8m0
from tests.quant import scalar
from tests.quant.bits import assert_same_bits


def random_linear(fmt: quant.WeightFormat, n_outputs: int, columns: int, seed: int = 0):
    """Return x (3, columns) and a stored weight with scales that vary by block."""
    rng = np.random.default_rng(seed)
    x = bf16.round(rng.standard_normal((3, columns)) * np.exp(rng.standard_normal((3, 1))))
    values = rng.standard_normal((n_outputs, columns)) * 2
    weight = e4m3.encode(values) if fmt == "fp8" else e2m1.pack(e2m1.encode(values))
    scale = rng.integers(118, 130, quant.scale_shape(weight.shape, fmt)).astype(np.uint8)
    return x, weight, scale


@pytest.mark.parametrize("name", ["linear_fp8", "linear_fp8_f32scale"])
def test_fp8_matches_the_golden(kernels, name: str):
    x, weight = kernels["linear_fp8.x"], kernels["linear_fp8.weight"]
    assert_same_bits(quant.linear(x, weight, kernels[f"{name}.scale"]), kernels[f"{name}.y"])


def test_fp4_matches_the_golden(kernels):
    result = quant.linear(*(kernels[f"linear_fp4.{part}"] for part in ("x", "weight", "scale")))
    assert_same_bits(result, kernels["linear_fp4.y"])


@pytest.mark.parametrize("fmt", ["fp8", "fp4"])
@pytest.mark.parametrize("byte_scales", [True, False])
def test_matches_rational_arithmetic(fmt: quant.WeightFormat, byte_scales: bool):
    x, weight, scale = random_linear(fmt, 5, 256)
    factors = e8m0.decode(scale)
    if not byte_scales:
        scale = factors = factors * np.float32(1.37)
    codes, input_scales = quant.act_quant(x)
    inputs = e4m3.decode(codes)
    weights = e4m3.decode(weight) if fmt == "fp8" else e2m1.decode(e2m1.unpack(weight))
    block = 128 if fmt == "fp8" else 32
    y = quant.linear(x, weight, scale)
    for row, output in np.ndindex(y.shape):
        total = Fraction(0)
        for start in range(0, 256, block):
            products = (
                Fraction(float(inputs[row, c])) * Fraction(float(weights[output, c]))
                for c in range(start, start + block)
            )
            factor = factors[output // 128 if fmt == "fp8" else output, start // block]
            both = Fraction(float(input_scales[row, start // 128])) * Fraction(float(factor))
            partial = scalar.to_float32(sum(products, Fraction(0)))
            total = scalar.to_float32(total + scalar.to_float32(partial * both))
        assert y[row, output] == bf16.round(float(total))


@pytest.mark.parametrize("fmt", ["fp8", "fp4"])
def test_close_to_the_dequantised_product(fmt: quant.WeightFormat):
    x, weight, scale = random_linear(fmt, 140, 384)
    wanted = quant.fp8_sim(x, 128).astype(np.float64) @ quant.dequantise(weight, scale, fmt).T
    # Half a BF16 step is at most 2^-8 of a value; float32 sums show where terms cancel.
    np.testing.assert_allclose(
        quant.linear(x, weight, scale), wanted, rtol=2.0**-8, atol=1e-6 * np.abs(wanted).max()
    )


def test_blocks_are_added_in_float32_one_after_the_other():
    x = np.zeros((1, 640), np.float32)
    x[0, [0, 1, 128, 256, 384, 512]] = [1, 2.0**-8, 1, 1, 1, 1]
    one = np.full((1, 640), 0x38, np.uint8)
    small = 2.0**-25
    # 1 + 2^-8 is a BF16 tie that goes to 1. In float32 it swallows each small block alone, but not
    # their sum, which would tip the tie.
    scale = np.array([[1, small, small, small, small]], np.float32)
    assert quant.linear(x, one, scale).tolist() == [[1.0]]
    backwards = quant.linear(x.reshape(5, 128)[::-1].reshape(1, 640), one, scale[:, ::-1])
    assert backwards.tolist() == [[1 + 2.0**-7]]


@pytest.mark.parametrize("fmt", ["fp8", "fp4"])
def test_a_row_does_not_depend_on_its_batch_or_layout(fmt: quant.WeightFormat):
    x, weight, scale = random_linear(fmt, 33, 256)
    for array in (x, weight, scale):
        array.flags.writeable = False
    whole = quant.linear(x, weight, scale)
    assert_same_bits(whole[1], quant.linear(x[1], weight, scale))
    assert_same_bits(whole.reshape(3, 1, 33), quant.linear(x.reshape(3, 1, 256), weight, scale))
    strided = quant.linear(np.asfortranarray(x), np.asfortranarray(weight), scale)
    assert_same_bits(strided, whole)
    assert quant.linear(x[:0], weight, scale).shape == (0, 33)


def test_packed_int8_is_read_as_bits():
    x, weight, scale = random_linear("fp4", 8, 128)
    assert_same_bits(quant.linear(x, weight.view(np.int8), scale), quant.linear(x, weight, scale))


def test_no_number_stays_in_its_row_or_column():
    x, weight, scale = random_linear("fp8", 4, 128)
    x[1, 5] = np.inf
    weight[2, 7] = 0x7F
    is_nan = np.isnan(quant.linear(x, weight, scale))
    assert is_nan.tolist() == [[r == 1 or c == 2 for c in range(4)] for r in range(3)]


@pytest.mark.parametrize(
    ("columns", "weight_shape", "scale_shape", "message"),
    [
        (100, (8, 100), (1, 1), "x has 100 columns.*128"),
        (256, (8, 128), (1, 1), "x has 256 columns.*fp8 weight has 128"),
        (128, (8, 128), (8, 8), "x has 128 columns.*fp4 weight has 256"),
        (128, (8, 128), (8, 4), r"\(8, 4\).*\(8, 128\)"),
        (128, (128,), (1,), r"\(128,\)"),
        (0, (8, 128), (1, 1), "x has 0 columns"),
    ],
)
def test_shapes_that_do_not_fit_are_refused(columns, weight_shape, scale_shape, message):
    weight = np.zeros(weight_shape, np.uint8)
    scale = np.full(scale_shape, 127, np.uint8)
    with pytest.raises(InvalidInput, match=message):
        quant.linear(np.ones((2, columns), np.float32), weight, scale)


def test_rows_without_columns_give_zeros():
    y = quant.linear(np.ones((2, 0)), np.ones((8, 0), np.uint8), np.ones((1, 0), np.uint8))
    assert y.tolist() == [[0.0] * 8] * 2


def test_decoded_weights_are_refused():
    with pytest.raises(InvalidInput, match="weight has dtype float32"):
        quant.linear(np.ones((2, 128)), np.ones((8, 128), np.float32), np.ones((1, 1), np.uint8))
