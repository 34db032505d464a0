"""Whole products: activation rounding, parts of a matrix, outputs of any stride.

The bytes of the sums are the business of test_row_dot.py.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4 import quant
from localv4.kernels.matmul import Lanes, Matrix, arrange, matmul
from localv4.kernels.row_dot import lane_columns
from localv4.quant import bf16, e2m1, e4m3, e8m0
from tests.kernels.compare import (
    F32,
    assert_bf16_close,
    assert_same_bytes,
    assert_same_numbers,
    needs_compiler,
)
from tests.kernels.test_row_dot import LENGTHS, random_product, spread_floats

pytestmark = needs_compiler


def quantised_linear(x: F32, weight: NDArray[Any], scale: NDArray[Any]) -> F32:
    """Multiply as the engine does: UE8M0 scales of FP8 weights are widened when it loads."""
    if 2 * weight.shape[1] == x.shape[1]:
        matrix = Matrix("fp4", weight.view(np.uint8), scale, x.shape[1])
    else:
        widened = e8m0.decode(scale) if scale.dtype == np.uint8 else scale
        matrix = Matrix("fp8", weight, widened, x.shape[1])
    return matmul(arrange(x, matrix.lanes, quantised=True), matrix, rounds=True)


@pytest.mark.parametrize("name", ["linear_fp8", "linear_fp8_f32scale", "linear_fp4"])
def test_matches_the_golden(fixtures, name: str):
    stored = "linear_fp4" if name == "linear_fp4" else "linear_fp8"
    x, weight = fixtures[f"{stored}.x"], fixtures[f"{stored}.weight"]
    assert_bf16_close(quantised_linear(x, weight, fixtures[f"{name}.scale"]), fixtures[f"{name}.y"])


@pytest.mark.parametrize("columns", [128, 384, 1024])
@pytest.mark.parametrize("kind", ["fp8", "fp8-f32", "fp4"])
def test_quantised_linear(kind: str, columns: int):
    rng = np.random.default_rng(columns)
    x = bf16.round(rng.standard_normal((7, columns)) * np.exp(rng.standard_normal((7, 1)) * 3))
    values = rng.standard_normal((200, columns)) * 2
    weight = e2m1.pack(e2m1.encode(values)) if kind == "fp4" else e4m3.encode(values)
    shape = quant.scale_shape(weight.shape, "fp4" if kind == "fp4" else "fp8")
    scale: NDArray[Any] = rng.integers(118, 130, shape).astype(np.uint8)
    if kind == "fp8-f32":
        scale = e8m0.decode(scale) * np.float32(1.37)
    assert_bf16_close(quantised_linear(x, weight, scale), quant.linear(x, weight, scale))


@pytest.mark.parametrize("name", ["bf16", "f32", "fp8_as_bf16"])
def test_dense_linear(name: str):
    product = random_product(name, 40, 320, 5)
    scales = np.empty(0, np.float32) if product.scales is None else product.scales
    values = {
        "bf16": lambda: bf16.decode(product.weights),
        "f32": lambda: product.weights,
        "fp8_as_bf16": lambda: bf16.round(quant.dequantise(product.weights, scales, "fp8")),
    }[name]()
    exact = product.x.astype(np.float64) @ values.T.astype(np.float64)
    error = np.abs(product.ours() - exact)
    assert (error <= 3e-7 * (np.abs(product.x) @ np.abs(values).T)).all()


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("n_columns", [1, 40, 256, 300])
def test_arrange_moves_columns_and_pads_with_zeros(name: str, n_columns: int):
    x = spread_floats(np.random.default_rng(1), 3, n_columns)
    before = x.copy()
    lanes = arrange(x, name, quantised=False)
    slots = lane_columns(name, n_columns)
    padded = np.concatenate([x, np.zeros((3, 1), np.float32)], axis=1)
    assert_same_bytes(lanes.values, padded[:, slots])
    assert sorted(slots[slots < n_columns].tolist()) == list(range(n_columns))
    assert (lanes.order, lanes.n_columns) == (name, n_columns)
    assert_same_bytes(x, before)


@pytest.mark.parametrize("order", ["fp4", "fp8"])
def test_arrange_quantises_in_blocks_of_128(order: str):
    x = spread_floats(np.random.default_rng(2), 4, 512)
    lanes = arrange(x[:, ::-1], order, quantised=True)
    expected = quant.fp8_sim(x[:, ::-1], 128)[:, lane_columns(order, 512)]
    assert_same_numbers(lanes.values, expected)


@pytest.mark.parametrize("name", LENGTHS)
def test_parts_of_the_rows(name: str):
    product = random_product(name, 300, 256, 5)
    matrix, whole = product.matrix(), product.ours()
    lanes = arrange(product.x, matrix.lanes, quantised=False)
    for first, count in ((0, 300), (0, 1), (127, 2), (100, 177), (299, 1)):
        part = matrix.rows(first, count)
        ours = matmul(lanes, part, rounds=False)
        assert_same_bytes(ours, whole[:, first : first + count])
    ours = matmul(lanes, matrix.rows(100, 150).rows(28, 101), rounds=False)
    assert_same_bytes(ours, whole[:, 128:229])


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("n_tokens", [1, 4, 67])
def test_outputs_and_inputs_of_any_stride(name: str, n_tokens: int):
    product = random_product(name, 70, 256, n_tokens)
    matrix = product.matrix()
    lanes = arrange(product.x, matrix.lanes, quantised=False)
    expected = matmul(lanes, matrix, rounds=True)
    wide = np.full((n_tokens, 3, lanes.values.shape[1]), np.nan, np.float32)
    wide[:, 1] = lanes.values
    joined = np.full((n_tokens, 90), -7, np.float32)
    inside = joined[:, 11:81]
    strided = Lanes(lanes.order, lanes.n_columns, wide[:, 1])
    assert matmul(strided, matrix, rounds=True, out=inside) is inside
    assert_same_bytes(np.ascontiguousarray(inside), expected)
    assert (joined[:, :11] == -7).all()
    assert (joined[:, 81:] == -7).all()


def test_taken_tokens():
    product = random_product("fp4", 20, 256, 9)
    matrix = product.matrix()
    lanes = arrange(product.x, matrix.lanes, quantised=True)
    rows = np.array([7, 0, 3, 3, 8])
    ours = matmul(lanes.take(rows), matrix, rounds=False)
    assert_same_bytes(ours, matmul(lanes, matrix, rounds=False)[rows])


def test_the_columns_of_both_sides_must_agree():
    product = random_product("f32", 3, 16)
    for wrong in (arrange(product.x, "bf16", False), arrange(product.x[:, :8], "f32", False)):
        with pytest.raises(AssertionError):
            matmul(wrong, product.matrix(), rounds=False)
