import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.errors import InvalidInput
from localv4.quant import bf16
from tests.quant.bits import AWKWARD_NAN_BITS, around, assert_same_bits

ALL = np.arange(1 << 16, dtype=np.uint16)


def test_every_code_survives_except_that_nan_is_quieted():
    is_nan = (ALL & 0x7FFF) > 0x7F80
    assert_same_bits(bf16.encode(bf16.decode(ALL)), np.where(is_nan, ALL | 0x40, ALL))


def test_decode_puts_the_bits_into_the_upper_half():
    assert_same_bits(bf16.decode(ALL).view(np.uint32), ALL.astype(np.uint32) << 16)


@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_even_and_their_neighbours_to_the_nearer(sign: int):
    lower = np.arange(0x7F7F, dtype=np.uint16)  # every finite pair of neighbours
    tie = ((lower.astype(np.uint32) << 16) + 0x8000).view(np.float32)
    below, above = around(tie)
    sign_bit = np.uint16(0x8000 if sign < 0 else 0)
    assert_same_bits(bf16.encode(sign * tie), (lower + lower % 2) | sign_bit)
    assert_same_bits(bf16.encode(sign * below), lower | sign_bit)
    assert_same_bits(bf16.encode(sign * above), (lower + 1).astype(np.uint16) | sign_bit)


def test_overflow_is_infinite_from_half_a_step_above_the_largest():
    tie = np.array([0x7F7F8000], np.uint32).view(np.float32)
    below, _ = around(tie)
    assert bf16.encode(tie) == 0x7F80
    assert bf16.encode(below) == 0x7F7F
    assert bf16.round([np.inf, -np.inf]).tolist() == [np.inf, -np.inf]


def test_no_nan_becomes_infinite():
    nans = AWKWARD_NAN_BITS.view(np.float32)
    rounded = bf16.round(nans)
    assert np.isnan(rounded).all()
    np.testing.assert_array_equal(np.signbit(rounded), np.signbit(nans))


@settings(deadline=None, max_examples=100)
@given(st.floats(width=32, allow_nan=False, min_value=-(2.0**127), max_value=2.0**127))
def test_round_is_within_half_a_step(value: float):
    rounded = float(bf16.round(value))
    step = max(2.0 ** (np.frexp(value)[1] - 8), 2.0**-133)
    assert abs(rounded - value) <= step / 2
    assert_same_bits(bf16.round(rounded), np.asarray(np.float32(rounded)))


def test_any_shape_and_layout_and_the_input_stays():
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    x.flags.writeable = False
    assert_same_bits(bf16.round(x[::2, ::-3]), bf16.round(x)[::2, ::-3])
    assert bf16.round(np.float32(1.00390625)).shape == ()
    assert bf16.encode(np.empty((0, 5), np.float32)).shape == (0, 5)
    assert bf16.round(x) is not x


def test_bits_are_not_taken_for_numbers():
    with pytest.raises(InvalidInput, match="uint16"):
        bf16.round(ALL)
    with pytest.raises(InvalidInput, match="float32"):
        bf16.decode(np.ones(3, np.float32))
    with pytest.raises(InvalidInput, match="65536"):
        bf16.decode(np.array([65536]))
