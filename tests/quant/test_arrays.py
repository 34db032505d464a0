import numpy as np
import pytest

from localv4.errors import InvalidInput
from localv4.quant import arrays


@pytest.mark.parametrize(
    "values", [[1, 2], [1.0, 2.0], np.array([1, 2], ">f4"), np.array([1, 2], np.float16)]
)
def test_numbers_become_native_float32(values):
    array = arrays.as_float32(values)
    assert array.dtype == np.dtype(np.float32)
    assert array.dtype.isnative
    assert array.tolist() == [1, 2]


def test_float32_is_not_copied():
    x = np.ones(3, np.float32)
    assert arrays.as_float32(x) is x


def test_a_double_beyond_float32_is_infinite_without_a_warning():
    assert arrays.as_float32([1e300, -1e300]).tolist() == [np.inf, -np.inf]


@pytest.mark.parametrize(
    "values", [np.ones(2, np.uint8), [True], ["1"], [1j], [None], [[1], [1, 2]], b"12"]
)
def test_what_is_no_number_is_refused(values):
    with pytest.raises(InvalidInput, match="weights_of_x"):
        arrays.as_float32(values, "weights_of_x")


@pytest.mark.parametrize("values", [[0.5], [True], ["a"], [-1], [256], np.array([1 << 63])])
def test_what_is_no_byte_is_refused(values):
    with pytest.raises(InvalidInput, match="bytes_of_x"):
        arrays.as_codes(values, 256, "bytes_of_x")


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16, np.int32, np.uint64])
def test_wider_integers_of_the_right_range_are_codes(dtype):
    assert arrays.as_codes(np.array([0, 255], dtype), 256).tolist() == [0, 255]


def test_int8_is_read_as_bits():
    assert arrays.as_codes(np.array([-1, 127], np.int8), 256).tolist() == [255, 127]


def test_blocks():
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    assert arrays.into_blocks(x, 3)[1].tolist() == [[6, 7, 8], [9, 10, 11]]
    assert arrays.into_blocks(np.empty((0, 6), np.float32), 3).shape == (0, 2, 3)
    assert arrays.into_blocks(np.empty((2, 0), np.float32), 3).shape == (2, 0, 3)


@pytest.mark.parametrize(
    ("shape", "block", "message"),
    [((2, 6), 4, "6 columns.*block of 4"), ((), 4, "scalar"), ((6,), 0, "block of 0")],
)
def test_what_is_no_whole_block_is_refused(shape, block, message):
    with pytest.raises(InvalidInput, match=message):
        arrays.into_blocks(np.ones(shape, np.float32), block)
