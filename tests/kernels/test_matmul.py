"""Whole products: activation rounding, parts of a matrix, choices of tokens, outputs of any stride.

The bytes of the sums are the business of test_row_dot.py.
"""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from localv4 import quant
from localv4.kernels import matmul
from localv4.kernels.arrays import address
from localv4.kernels.launch import Program
from localv4.kernels.matmul import Lanes, Matrix, multiply, retarget
from localv4.quant import bf16, e2m1, e4m3, e8m0
from tests.kernels.compare import (
    F32,
    assert_bf16_close,
    assert_same_bytes,
    needs_compiler,
)
from tests.kernels.products import KINDS, Product, arranged, random_product, run_product, taken

pytestmark = needs_compiler

every_kind = pytest.mark.parametrize(("name", "activations"), KINDS)


def quantised_linear(x: F32, weight: NDArray[Any], scale: NDArray[Any]) -> F32:
    """Multiply as the engine does: UE8M0 scales of FP8 weights are widened when it loads."""
    if 2 * weight.shape[1] == x.shape[1]:
        product = Product("fp4", weight.view(np.uint8), scale, x, "fp8")
    else:
        widened = e8m0.decode(scale) if scale.dtype == np.uint8 else scale
        product = Product("fp8", weight, widened, x, "fp8")
    return product.ours(rounds=True)


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


@every_kind
@pytest.mark.parametrize("n_tokens", [1, 5, 9])
def test_parts_of_the_rows(name: str, activations: str, n_tokens: int):
    product = random_product(name, 300, 256, n_tokens, 0, activations)
    matrix, lanes = product.matrix(), product.lanes()
    whole = run_product(lanes, matrix)
    for first, count in ((0, 300), (0, 1), (127, 2), (100, 177), (299, 1)):
        ours = run_product(lanes, matrix.rows(first, count))
        assert_same_bytes(ours, whole[:, first : first + count])
    ours = run_product(lanes, matrix.rows(100, 150).rows(28, 101))
    assert_same_bytes(ours, whole[:, 128:229])


@every_kind
@pytest.mark.parametrize("n_tokens", [1, 4, 67])
def test_outputs_of_any_stride(name: str, activations: str, n_tokens: int):
    product = random_product(name, 70, 256, n_tokens, 0, activations)
    matrix, lanes = product.matrix(), product.lanes()
    expected = run_product(lanes, matrix, rounds=True)
    joined = np.full((n_tokens, 90), -7, np.float32)
    inside = joined[:, 11:81]
    run_product(lanes, matrix, rounds=True, out=inside)
    assert_same_bytes(np.ascontiguousarray(inside), expected)
    assert (joined[:, :11] == -7).all()
    assert (joined[:, 81:] == -7).all()


TAKEN = [[3], [7, 0, 3, 3, 8], [8, 8], list(range(8, -1, -1)), [n % 9 for n in range(70)]]


@every_kind
@pytest.mark.parametrize("tokens", TAKEN, ids=len)
def test_chosen_tokens(name: str, activations: str, tokens: list[int]):
    product = random_product(name, 20, 256, 9, 0, activations)
    matrix, lanes = product.matrix(), product.lanes()
    assert_same_bytes(run_product(taken(lanes, tokens), matrix), run_product(lanes, matrix)[tokens])


@every_kind
@pytest.mark.parametrize("n_tokens", [1, 5, 9])
def test_a_recorded_product_takes_another_matrix(name: str, activations: str, n_tokens: int):
    product = random_product(name, 20, 256, n_tokens, 0, activations)
    other = random_product(name, 20, 256, n_tokens, 1, activations).matrix()
    lanes, out = product.lanes(), np.empty((n_tokens, 20), np.float32)
    program = Program()
    program.phase("other")
    task = multiply(program, lanes, product.matrix(), out, rounds=False)
    program.run(1)
    assert_same_bytes(out, run_product(lanes, product.matrix()))
    retarget(task, other)
    program.run(1)
    assert_same_bytes(out, run_product(lanes, other))


def test_the_columns_of_both_sides_must_agree():
    product = random_product("f32", 3, 16)
    for wrong in (arranged(product.x, "bf16"), arranged(product.x[:, :8], "f32")):
        with pytest.raises(AssertionError):
            run_product(wrong, product.matrix())


def test_the_output_must_have_the_shape_of_the_product():
    product = random_product("f32", 3, 16, 2)
    for wrong in (np.empty((2, 4)), np.empty((3, 3)), np.empty((3, 2)).T):
        with pytest.raises(AssertionError):
            run_product(product.lanes(), product.matrix(), out=wrong.astype(np.float32))


def test_a_matrix_has_the_rows_of_its_weights():
    product = random_product("fp8", 130, 16)
    matrix = Matrix("fp8", product.weights, product.scales, 16)
    assert (matrix.n_rows, matrix.lanes) == (130, "fp8")
    assert (matrix.rows(2, 5).rows(1, 3).first_row, matrix.rows(2, 5).n_rows) == (3, 5)


@pytest.mark.parametrize("first_row", [0, 300])
def test_a_unit_that_waits_asks_for_each_of_its_lines_once(first_row: int, monkeypatch):
    program = Program()
    program.phase("other")
    whole = Matrix("f32", np.zeros((1000, 128), np.float32), None, 128)
    matrix = whole.rows(first_row, 512)
    lanes = Lanes.as_they_lie("f32", np.zeros((1, 128), np.float32))
    task = multiply(program, lanes, matrix, np.empty((1, 512), np.float32), False)
    assert task.ahead is not None
    asked: list[int] = []
    monkeypatch.setattr(matmul, "ask_for", asked.append)
    monkeypatch.setattr(matmul, "_MOST_ASKED_BYTES", 2**30)
    for unit in range(task.units):
        for call in range(1000):
            task.ahead.function(*task.arguments, unit, call)
    begin = address(whole.weights) + 512 * first_row
    assert sorted(asked) == list(range(begin, begin + 512 * 512, 64))
    lines_of_a_unit = len(asked) // task.units
    asked.clear()
    monkeypatch.setattr(matmul, "_MOST_ASKED_BYTES", 128)
    for call in range(1000):
        task.ahead.function(*task.arguments, 0, call)
    streams = len(asked) // 2  # two lines of each
    assert streams in (2, 4)
    assert len(set(asked)) == len(asked) == 2 * streams <= lines_of_a_unit


@given(st.integers(1, 400), st.integers(1, 100), st.integers(1, 4))
def test_units_cover_a_part_of_the_rows_once(part: int, unit_rows: int, finer: int):
    end_rows = -(-unit_rows // finer)
    matrix = Matrix("f32", np.zeros((part, 1), np.float32), None, 1)
    covered: list[int] = []
    for unit in range(matmul._n_units(matrix, 1, unit_rows, end_rows)):
        first, last = matmul._rows_of(unit, unit_rows, end_rows, part)
        assert 0 < last - first <= unit_rows
        covered += range(first, last)
    assert covered == list(range(part))


@every_kind
@pytest.mark.parametrize("n_rows", [9, 130, 257])
def test_no_cut_of_the_rows_changes_a_byte(
    monkeypatch: pytest.MonkeyPatch, name: str, activations: str, n_rows: int
):
    """As on few CPUs, as on many, and in units of a row or two."""
    product = random_product(name, n_rows, 512, 2, 0, activations)
    results = []
    for units, unit_bytes, finer in ((4, 2**20, 1), (16, 2**19, 4), (64, 2**10, 4)):
        monkeypatch.setattr(matmul, "_UNITS", units)
        monkeypatch.setattr(matmul, "_UNIT_BYTES", unit_bytes)
        monkeypatch.setattr(matmul, "_FINER", finer)
        results.append(product.ours())
    for other in results[1:]:
        assert_same_bytes(other, results[0])
