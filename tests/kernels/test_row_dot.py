"""Every weight format times tokens, against the sum order written out lane by lane: equal bytes.

A few tokens are multiplied by some rows at a time, more by tiles, and where there is a
matrix unit it takes them from a few tokens on. The walks of lower tiers are the business of
test_walks.py.
"""

import subprocess
import sys
import textwrap
from fractions import Fraction
from pathlib import Path
from typing import Any

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from localv4.quant import bf16, e2m1, e4m3
from tests.kernels.compare import assert_same_bytes, needs_compiler
from tests.kernels.products import (
    KINDS,
    LENGTHS,
    NOT_NAN,
    Product,
    arranged,
    random_product,
    run_product,
    spread_floats,
    taken,
)
from tests.quant import scalar
from tests.reference import row_dot

pytestmark = needs_compiler

EVERY_LENGTH = [
    pytest.param(name, activations, n_columns, id=f"{name}-{activations}-{n_columns}")
    for name, activations in KINDS
    for n_columns in LENGTHS[name]
]
every_kind = pytest.mark.parametrize(("name", "activations"), KINDS)


def test_every_format_has_a_twin_that_walks_each_column_once():
    assert set(row_dot.ORDERS) == set(LENGTHS)
    for name, order in row_dot.ORDERS.items():
        assert sorted(order.columns.ravel()) == list(range(order.columns.size))
        if order.scale_blocks is not None:
            block = order.columns.size // (order.scale_blocks.max() + 1)
            assert (order.columns // block == order.scale_blocks).all(), name
            assert (order.scale_blocks[::2] == order.scale_blocks[1::2]).all(), name


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


@pytest.mark.parametrize(("name", "activations", "n_columns"), EVERY_LENGTH)
def test_every_length(name: str, activations: str, n_columns: int):
    for n_tokens in (1, 5, 6):
        product = random_product(name, 5, n_columns, n_tokens, activations=activations)
        assert_same_bytes(product.ours(), product.twin())


@every_kind
@pytest.mark.parametrize("n_tokens", [1, 4, 9])
def test_sums_rounded_to_bf16(name: str, activations: str, n_tokens: int):
    product = random_product(name, 131, 128, n_tokens, 1, activations)
    assert_same_bytes(product.ours(rounds=True), bf16.round(product.twin()))


@pytest.mark.parametrize(("name", "activations"), [("f32", "f32"), ("bf16", "bf16")])
@pytest.mark.parametrize("n_tokens", [1, 4, 9])
def test_sums_halfway_between_bf16_numbers_go_to_the_even_one(
    name: str, activations: str, n_tokens: int
):
    """Each row is a BF16 number, half a step from it, and a bit that tips the scale or none."""
    numbers = np.array([sign * (1 + n * 2.0**-7) for n in range(16) for sign in (1, -1)])
    rows = [(number, half, tip) for number in numbers for half in (2.0**-8, -(2.0**-8))
            for tip in (0, 2.0**-20, -(2.0**-20))]  # fmt: skip
    weights = np.array(rows, np.float32)
    stored = bf16.encode(weights) if name == "bf16" else weights
    product = Product(name, stored, None, np.ones((n_tokens, 3), np.float32), activations)
    exact = np.repeat(weights.sum(axis=1, dtype=np.float32)[None], n_tokens, axis=0)
    assert_same_bytes(product.ours(), exact)
    assert_same_bytes(product.ours(rounds=True), bf16.round(exact))


def test_weights_halfway_between_bf16_numbers_go_to_the_even_one():
    scales = (1 + np.arange(1, 64, 2, dtype=np.float32) * np.float32(2.0**-8))[:, None]
    weights = np.full((128 * 32, 1), e4m3.encode(1.0), np.uint8)
    product = Product("fp8_as_bf16", weights, scales, np.ones((1, 1), np.float32))
    assert_same_bytes(product.ours()[0, ::128], bf16.round(scales[:, 0]))
    assert_same_bytes(product.ours(), product.twin())


@pytest.mark.parametrize("activations", ["f32", "bf16"])
def test_every_fp8_code_in_every_column(activations: str):
    rotated = NOT_NAN[(np.arange(254)[:, None] + np.arange(256)) % 254]
    x = np.eye(256, dtype=np.float32)
    ones = Product("fp8", rotated, np.ones((2, 2), np.float32), x, activations)
    np.testing.assert_array_equal(ones.ours(), e4m3.decode(rotated).T)


def test_a_nan_code_stays_none_where_weights_are_rounded():
    codes = np.arange(256, dtype=np.uint8)
    weights = np.repeat(codes[:, None], 256, axis=1)
    scales = np.array([[1, 0.3], [3, 1e-3]], np.float32)
    x = spread_floats(np.random.default_rng(2), 5, 256)
    product = Product("fp8_as_bf16", weights, scales, x)
    ours = product.ours()
    assert_same_bytes(ours, product.twin())
    assert (np.isnan(ours).all(axis=0) == np.isnan(e4m3.decode(codes))).all()


@pytest.mark.parametrize("activations", ["f32", "fp8"])
def test_every_fp4_byte(activations: str):
    octets = np.arange(256, dtype=np.uint8)
    weights = np.repeat(octets[:, None], 128, axis=1)
    scales = np.random.default_rng(3).integers(120, 135, (256, 8), np.uint8)
    x = spread_floats(np.random.default_rng(4), 5, 256)
    product = Product("fp4", weights, scales, x, activations)
    assert_same_bytes(product.ours(), product.twin())
    # every byte in every place, each nibble once alone with a one
    rotated = octets[:, None] + octets[:128]
    one = np.full((256, 8), 127, np.uint8)
    ones = Product("fp4", rotated, one, np.eye(256, dtype=np.float32), activations)
    np.testing.assert_array_equal(ones.ours(), e2m1.decode(e2m1.unpack(rotated)).T)


@pytest.mark.parametrize("activations", ["f32", "fp8"])
@pytest.mark.parametrize("n_columns", [256, 160])
@pytest.mark.parametrize("n_tokens", [1, 4, 7])
def test_every_fp4_scale(activations: str, n_columns: int, n_tokens: int):
    """Byte 0 is a scale of zero and byte 255 infinity; the others are powers of two."""
    octets = np.arange(256, dtype=np.uint8)
    product = random_product("fp4", 256, n_columns, n_tokens, 5, activations)
    for other in (octets, np.full(256, 127, np.uint8)):
        scales = np.repeat(other[:, None], n_columns // 32, axis=1)
        for block in range(n_columns // 32):
            scales[:, block] = octets
        product = product._replace(scales=scales)
        assert_same_bytes(product.ours(), product.twin())
    assert (product.ours()[:, 0] == 0).all()
    assert not np.isfinite(product.ours()[:, 255]).any()


@pytest.mark.parametrize("activations", ["f32", "fp8"])
@pytest.mark.parametrize("block", range(8))
def test_a_scale_reaches_its_block_alone(activations: str, block: int):
    x = spread_floats(np.random.default_rng(6), 1, 256)
    ones, scales = np.full((1, 8), 127, np.uint8), np.full((1, 8), 127, np.uint8)
    scales[0, block] = 128
    weights = random_product("fp4", 1, 256).weights
    doubled = weights.copy()
    doubled[:, : 16 * block] = doubled[:, 16 * block + 16 :] = 0
    plain = Product("fp4", weights, ones, x, activations)
    alone = plain._replace(weights=doubled)
    added = plain.twin().astype(np.float64) + alone.twin()
    ours = plain._replace(scales=scales).ours()
    np.testing.assert_allclose(ours, added, rtol=1e-5, atol=1e-5 * np.abs(x).max())
    assert_same_bytes(ours, plain._replace(scales=scales).twin())


@pytest.mark.parametrize("name", ["fp8", "fp8_as_bf16"])
@pytest.mark.parametrize("n_tokens", [2, 5])
def test_any_fp8_scale(name: str, n_tokens: int):
    """Rows 0..383 lie in three bands of 128 rows, columns in three blocks of 128, one partial."""
    product = random_product(name, 384, 320, n_tokens, seed=7)
    scales = np.array(
        [[1e-30, -3.7, 0.0], [1e-45, 3.4e38, 1 / 3], [np.inf, 2.0**-126, np.nan]], np.float32
    )
    product = product._replace(scales=scales)
    assert_same_bytes(product.ours(), product.twin())


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(KINDS),
    st.integers(1, 24),
    st.integers(1, 9),
    st.integers(1, 20),
    st.integers(0, 99),
)
def test_random_products(kind: tuple[str, str], length: int, n_tokens: int, n_rows: int, seed: int):
    name, activations = kind
    n_columns = 32 * length if name == "fp4" else 37 * length
    product = random_product(name, n_rows, n_columns, n_tokens, seed, activations)
    assert_same_bytes(product.ours(), product.twin())


@pytest.mark.parametrize(
    ("name", "activations"), [("bf16", "f32"), ("bf16", "bf16"), ("f32", "f32")]
)
@pytest.mark.parametrize("n_tokens", [3, 4, 7])
def test_no_number_stays_none(name: str, activations: str, n_tokens: int):
    product = random_product(name, 6, 40, n_tokens, 8, activations)
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


@every_kind
@pytest.mark.parametrize("n_rows", [1, 2, 3, 5, 67])
def test_every_number_of_tokens_gives_the_bytes_of_one(name: str, activations: str, n_rows: int):
    product = random_product(name, n_rows, 288, 70, 9, activations)
    matrix, lanes = product.matrix(), product.lanes()
    alone = [run_product(taken(lanes, [token]), matrix) for token in range(70)]
    expected = np.concatenate(alone)
    assert_same_bytes(expected[:3], product._replace(x=product.x[:3]).twin())
    for n_tokens in (1, 2, 3, 4, 5, 6, 15, 16, 17, 63, 64, 65, 70):
        first = (70 - n_tokens) // 2
        part = arranged(product.x[first : first + n_tokens], name, activations)
        assert_same_bytes(run_product(part, matrix), expected[first : first + n_tokens])


@pytest.mark.skipif(numba.config.NUMBA_NUM_THREADS < 2, reason="this machine runs one thread")
@every_kind
def test_one_thread_and_two(name: str, activations: str):
    for n_tokens in (1, 70):
        product = random_product(name, 200, 288, n_tokens, 10, activations)
        assert_same_bytes(product.ours(n_workers=1), product.ours(n_workers=2))


def moved(array: NDArray[Any], offset: int, gap: int) -> NDArray[Any]:
    """Return a read-only copy `offset` bytes off a cache line, with `gap` items after each row."""
    stride = (array.shape[1] + gap) * array.itemsize
    buffer = np.full(stride * len(array) + 128, 0xFF, np.uint8)
    start = -buffer.ctypes.data % 64 + offset
    copy = np.ndarray(array.shape, array.dtype, buffer.data, start, (stride, array.itemsize))
    copy[:] = array
    copy.flags.writeable = False
    return copy


@every_kind
@pytest.mark.parametrize("n_tokens", [1, 5, 9])
@pytest.mark.parametrize(("offset", "gap"), [(1, 0), (3, 5), (2, 1), (61, 0)])
def test_any_address(name: str, activations: str, n_tokens: int, offset: int, gap: int):
    for n_columns in (288, 512):
        product = random_product(name, 5, n_columns, n_tokens, 11, activations)
        scales = None if product.scales is None else moved(product.scales, offset, gap)
        other = product._replace(weights=moved(product.weights, offset, gap), scales=scales)
        assert_same_bytes(other.ours(), product.ours())


BEFORE_FORBIDDEN_MEMORY = """
    import ctypes, mmap
    from dataclasses import replace
    import numpy as np
    from localv4.kernels.matmul import Matrix
    from tests.kernels.products import KINDS, LENGTHS, random_product, run_product

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

    for name, activations in KINDS:
        for n_columns in LENGTHS[name]:
            for n_tokens in (1, 5, 9):
                product = random_product(name, 3, n_columns, n_tokens, activations=activations)
                matrix = Matrix(name, last(product.weights), last(product.scales), n_columns)
                lanes = product.lanes()
                lanes = replace(lanes, memory=last(lanes.memory), blocks=last(lanes.blocks))
                out = last(np.empty((n_tokens, 3), np.float32))
                run_product(lanes, matrix, out=out)
                assert out.tobytes() == product.ours().tobytes()
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
