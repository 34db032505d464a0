"""Every weight format times tokens, against the sum order written out lane by lane: equal bytes.

A single token goes through `row_dot_1`, four through `row_dot_4`; both are reached by `matmul`.
"""

import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localv4.kernels.matmul import Lanes, Matrix, arrange, matmul
from localv4.kernels.row_dot import ROW_FORMATS
from localv4.kernels.threads import computing
from localv4.quant import bf16, e2m1, e4m3
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler
from tests.quant import scalar
from tests.reference import row_dot

pytestmark = needs_compiler

LENGTHS = {
    "fp4": range(32, 513, 32),
    "fp8": [1, 7, 64, 128, 192, 200, 256, 320, 384, 449, 512],
    "fp8_as_bf16": [1, 128, 192, 256, 384, 449, 512],
    "bf16": [1, 2, 31, 32, 33, 40, 64, 128],
    "f32": [1, 7, 15, 16, 17, 33, 64],
}
EVERY_LENGTH = [
    pytest.param(name, n_columns, id=f"{name}-{n_columns}")
    for name, lengths in LENGTHS.items()
    for n_columns in lengths
]
NOT_NAN = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)


class Product(NamedTuple):
    """A stored matrix and activations."""

    name: str
    weights: NDArray[Any]
    scales: NDArray[Any] | None
    x: F32

    def ours(self, rounds: bool = False) -> F32:
        matrix = self.matrix()
        return matmul(arrange(self.x, matrix.lanes, quantised=False), matrix, rounds)

    def twin(self) -> F32:
        return row_dot.multiply(self.name, self.weights, self.scales, self.x)

    def matrix(self) -> Matrix:
        return Matrix(self.name, self.weights, self.scales, self.x.shape[1])


def spread_floats(rng: np.random.Generator, *shape: int) -> F32:
    """Return float32 of very different magnitudes, so that every rounding shows."""
    x: F32 = rng.standard_normal(shape, np.float32) * np.exp2(rng.integers(-12, 12, shape)).astype(
        np.float32
    )
    return x


def random_product(
    name: str, n_rows: int, n_columns: int, n_tokens: int = 1, seed: int = 0
) -> Product:
    rng = np.random.default_rng([seed, n_rows, n_columns])
    x = spread_floats(rng, n_tokens, n_columns)
    scales: NDArray[Any] | None = None
    weights: NDArray[Any]
    if name == "fp4":
        weights = rng.integers(0, 256, (n_rows, n_columns // 2), np.uint8)
        scales = rng.integers(100, 150, (n_rows, n_columns // 32), np.uint8)
    elif name in ("fp8", "fp8_as_bf16"):
        weights = rng.choice(NOT_NAN, (n_rows, n_columns))
        scales = spread_floats(rng, -(-n_rows // 128), -(-n_columns // 128))
    else:
        weights = spread_floats(rng, n_rows, n_columns)
        if name == "bf16":
            weights = bf16.encode(weights)
    return Product(name, weights, scales, x)


def test_every_format_has_a_twin_that_walks_each_column_once():
    assert set(row_dot.ORDERS) == set(ROW_FORMATS) == set(LENGTHS)
    for name, order in row_dot.ORDERS.items():
        assert sorted(order.columns.ravel()) == list(range(order.columns.size))
        if order.scale_blocks is not None:
            block = order.columns.size // (order.scale_blocks.max() + 1)
            assert (order.columns // block == order.scale_blocks).all(), name


FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=300)
@given(FLOATS | st.floats(-4, 4, width=32), FLOATS | st.floats(-4, 4, width=32), FLOATS)
def test_the_twins_fused_multiply_add_rounds_once(left: float, right: float, addend: float):
    exact = Fraction(left) * Fraction(right) + Fraction(addend)
    wanted = scalar.to_float32(exact)
    arrays = [np.array([value], np.float32) for value in (left, right, addend)]
    result = float(row_dot.fma(*arrays)[0])
    if abs(wanted) > scalar.FLOAT32_MAX:
        assert result == (np.inf if wanted > 0 else -np.inf)
    else:
        assert Fraction(result) == wanted


@pytest.mark.parametrize(("name", "n_columns"), EVERY_LENGTH)
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_every_length(name: str, n_columns: int, n_tokens: int):
    product = random_product(name, 5, n_columns, n_tokens)
    assert_same_bytes(product.ours(), product.twin())


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("n_tokens", [1, 4])
def test_sums_rounded_to_bf16(name: str, n_tokens: int):
    product = random_product(name, 131, 128, n_tokens, seed=1)
    assert_same_bytes(product.ours(rounds=True), bf16.round(product.twin()))


@pytest.mark.parametrize("n_tokens", [1, 4])
def test_sums_halfway_between_bf16_numbers_go_to_the_even_one(n_tokens: int):
    halfway = np.array([1 + n * 2.0**-8 for n in range(-31, 32, 2)], np.float32)
    values = np.concatenate([halfway, -halfway, [np.nextafter(v, v + 1) for v in halfway]])
    x = np.ones((n_tokens, 1), np.float32)
    product = Product("f32", values[:, None].astype(np.float32), None, x)
    assert_same_bytes(product.ours(rounds=True), bf16.round(product.twin()))


def test_weights_halfway_between_bf16_numbers_go_to_the_even_one():
    scales = (1 + np.arange(1, 64, 2, dtype=np.float32) * np.float32(2.0**-8))[:, None]
    weights = np.full((128 * 32, 1), e4m3.encode(1.0), np.uint8)
    product = Product("fp8_as_bf16", weights, scales, np.ones((1, 1), np.float32))
    assert_same_bytes(product.ours()[0, ::128], bf16.round(scales[:, 0]))
    assert_same_bytes(product.ours(), product.twin())


@pytest.mark.parametrize("name", ["fp8", "fp8_as_bf16"])
def test_every_fp8_code(name: str):
    codes = np.arange(256, dtype=np.uint8)
    weights = np.repeat(codes[:, None], 256, axis=1)
    scales = np.array([[1, 0.3], [3, 1e-3]], np.float32)
    rng = np.random.default_rng(2)
    for x in (spread_floats(rng, 5, 256), np.eye(4, 256, 126, np.float32)):
        product = Product(name, weights, scales, x)
        ours = product.ours()
        assert_same_bytes(ours, product.twin())
        assert (np.isnan(ours).all(axis=0) == np.isnan(e4m3.decode(codes))).all()
    # every code in every column, each once alone with a one
    rotated = NOT_NAN[(np.arange(254)[:, None] + np.arange(256)) % 254]
    ones = Product("fp8", rotated, np.ones((2, 2), np.float32), np.eye(256, dtype=np.float32))
    np.testing.assert_array_equal(ones.ours(), e4m3.decode(rotated).T)


def test_every_fp4_byte():
    octets = np.arange(256, dtype=np.uint8)
    weights = np.repeat(octets[:, None], 128, axis=1)
    scales = np.random.default_rng(3).integers(120, 135, (256, 8), np.uint8)
    product = Product("fp4", weights, scales, spread_floats(np.random.default_rng(4), 5, 256))
    assert_same_bytes(product.ours(), product.twin())
    # every byte in every place, each nibble once alone with a one
    rotated = octets[:, None] + octets[:128]
    one = np.full((256, 8), 127, np.uint8)
    ones = Product("fp4", rotated, one, np.eye(256, dtype=np.float32))
    np.testing.assert_array_equal(ones.ours(), e2m1.decode(e2m1.unpack(rotated)).T)


@pytest.mark.parametrize("n_columns", [256, 160])
@pytest.mark.parametrize("n_tokens", [1, 4])
def test_every_fp4_scale(n_columns: int, n_tokens: int):
    """Byte 0 is a scale of zero and byte 255 infinity; the others are powers of two."""
    octets = np.arange(256, dtype=np.uint8)
    product = random_product("fp4", 256, n_columns, n_tokens, seed=5)
    for other in (octets, np.full(256, 127, np.uint8)):
        scales = np.repeat(other[:, None], n_columns // 32, axis=1)
        for block in range(n_columns // 32):
            scales[:, block] = octets
        product = product._replace(scales=scales)
        assert_same_bytes(product.ours(), product.twin())
    assert (product.ours()[:, 0] == 0).all()
    assert not np.isfinite(product.ours()[:, 255]).any()


@pytest.mark.parametrize("block", range(8))
def test_a_scale_reaches_its_block_alone(block: int):
    x = spread_floats(np.random.default_rng(6), 1, 256)
    scales = np.full((2, 8), 127, np.uint8)
    scales[1, block] = 128
    doubled = x.copy()
    doubled[:, 32 * block : 32 * block + 32] *= 2
    weights = np.repeat(random_product("fp4", 1, 256).weights, 2, axis=0)
    ours = Product("fp4", weights, scales, x).ours()
    assert_same_bytes(ours[:, 1], Product("fp4", weights, scales, doubled).ours()[:, 0])


@pytest.mark.parametrize("name", ["fp8", "fp8_as_bf16"])
def test_any_fp8_scale(name: str):
    """Rows 0..383 lie in three bands of 128 rows, columns in three blocks of 128, one partial."""
    product = random_product(name, 384, 320, 2, seed=7)
    scales = np.array(
        [[1e-30, -3.7, 0.0], [1e-45, 3.4e38, 1 / 3], [np.inf, 2.0**-126, np.nan]], np.float32
    )
    product = product._replace(scales=scales)
    assert_same_bytes(product.ours(), product.twin())


@settings(deadline=None, max_examples=50)
@given(st.sampled_from(sorted(LENGTHS)), st.integers(1, 24), st.integers(1, 9), st.integers(0, 99))
def test_random_products(name: str, length: int, n_tokens: int, seed: int):
    n_columns = 32 * length if name == "fp4" else 37 * length
    product = random_product(name, 3, n_columns, n_tokens, seed)
    assert_same_bytes(product.ours(), product.twin())


@pytest.mark.parametrize("name", ["bf16", "f32"])
def test_no_number_stays_none(name: str):
    product = random_product(name, 6, 40, 4, seed=8)
    weights = row_dot.stored_weights(name, product.weights, None)[0].copy()
    weights[1, 3], weights[2, 39], weights[3, 38] = np.nan, np.inf, -np.inf
    stored = bf16.encode(weights) if name == "bf16" else weights
    product.x[2, 5] = np.nan
    product = product._replace(weights=stored)
    for rounds in (False, True):
        ours = product.ours(rounds)
        assert_same_bytes(np.isnan(ours), np.isnan(product.twin()))
        assert np.isinf(ours[:2, 2:4]).all()
        assert np.isnan(ours[:, 1]).all()
        assert np.isnan(ours[2]).all()


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("n_rows", [1, 3, 67])
def test_every_number_of_tokens_gives_the_bytes_of_one(name: str, n_rows: int):
    product = random_product(name, n_rows, 288, 70, seed=9)
    matrix = product.matrix()
    lanes = arrange(product.x, matrix.lanes, quantised=False)
    alone = [matmul(lanes.take(np.array([token])), matrix, False) for token in range(70)]
    expected = np.concatenate(alone)
    assert_same_bytes(expected[:3], product._replace(x=product.x[:3]).twin())
    for n_tokens in (*range(1, 10), *range(63, 71)):
        first = (70 - n_tokens) // 2
        part = Lanes(lanes.order, lanes.n_columns, lanes.values[first : first + n_tokens])
        assert_same_bytes(matmul(part, matrix, False), expected[first : first + n_tokens])


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine runs one thread")
@pytest.mark.parametrize("name", LENGTHS)
def test_one_thread_and_two(name: str):
    product = random_product(name, 200, 288, 70, seed=10)
    results = []
    for n_threads in (1, 2):
        with computing(n_threads):
            results.append(product.ours())
    assert_same_bytes(results[0], results[1])


def moved(array: NDArray[Any], offset: int, gap: int) -> NDArray[Any]:
    """Return a read-only copy `offset` bytes off a cache line, with `gap` items after each row."""
    stride = (array.shape[1] + gap) * array.itemsize
    buffer = np.full(stride * len(array) + 128, 0xFF, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    copy = np.ndarray(array.shape, array.dtype, buffer.data, start, (stride, array.itemsize))
    copy[:] = array
    copy.flags.writeable = False
    return copy


@pytest.mark.parametrize("name", LENGTHS)
@pytest.mark.parametrize("n_columns", [288, 512])
@pytest.mark.parametrize(("offset", "gap"), [(1, 0), (3, 5), (2, 1), (61, 0)])
def test_any_address(name: str, n_columns: int, offset: int, gap: int):
    product = random_product(name, 5, n_columns, 5, seed=11)
    scales = None if product.scales is None else moved(product.scales, offset, gap)
    other = product._replace(weights=moved(product.weights, offset, gap), scales=scales)
    assert_same_bytes(other.ours(), product.ours())


BEFORE_FORBIDDEN_MEMORY = """
    import ctypes, mmap
    import numpy as np
    from localv4.kernels.matmul import Lanes, Matrix, arrange, matmul
    from tests.kernels.test_row_dot import LENGTHS, random_product

    def last(array):
        # the array's end is the end of what may be read
        if array is None:
            return None
        pages = -(-array.nbytes // mmap.PAGESIZE) * mmap.PAGESIZE
        memory = mmap.mmap(-1, pages + mmap.PAGESIZE)
        address = ctypes.addressof(ctypes.c_char.from_buffer(memory)) + pages
        forbid = ctypes.CDLL(None).mprotect
        assert forbid(ctypes.c_void_p(address), ctypes.c_size_t(mmap.PAGESIZE), 0) == 0
        copy = np.ndarray(array.shape, array.dtype, memory, pages - array.nbytes)
        copy[:] = array
        return copy

    for name, lengths in LENGTHS.items():
        for n_columns in lengths:
            product = random_product(name, 3, n_columns, 5)
            matrix = Matrix(name, last(product.weights), last(product.scales), n_columns)
            lanes = arrange(product.x, matrix.lanes, quantised=False)
            lanes = Lanes(lanes.order, n_columns, last(lanes.values))
            out = last(np.empty((5, 3), np.float32))
            assert matmul(lanes, matrix, False, out).tobytes() == product.ours().tobytes()
    print("never past the end")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux to forbid a page")
def test_nothing_behind_the_arrays_is_read():
    """Weights lie in maps of files, where a read behind the last page ends the process."""
    script = textwrap.dedent(BEFORE_FORBIDDEN_MEMORY)
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=root, capture_output=True, text=True, check=False
    )
    assert done.stdout == "never past the end\n", (done.returncode, done.stderr[-2000:])
