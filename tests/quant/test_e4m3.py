import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.quant import e4m3
from tests.quant import scalar
from tests.quant.bits import AWKWARD_NAN_BITS, around, assert_same_bits

FINITE = np.arange(127, dtype=np.uint8)
MAGNITUDES = np.array([float(m) for m in scalar.E4M3_MAGNITUDES], np.float32)


def test_table_matches_the_golden_and_the_definition(kernels):
    np.testing.assert_array_equal(e4m3.TABLE, kernels["table.e4m3"])
    assert_same_bits(e4m3.TABLE[:127], MAGNITUDES)
    assert_same_bits(e4m3.TABLE[128:255], -MAGNITUDES)
    assert np.isnan(e4m3.TABLE[[0x7F, 0xFF]]).all()
    assert not e4m3.TABLE.flags.writeable


def test_rounding_matches_the_golden(kernels):
    assert_same_bits(e4m3.encode(kernels["round_e4m3.x"]), kernels["round_e4m3.bytes"])


def test_every_code_survives():
    codes = np.arange(256, dtype=np.uint8)
    assert_same_bits(e4m3.encode(e4m3.decode(codes)), np.where(codes == 0xFF, 0x7F, codes))


@pytest.mark.parametrize("sign", [1, -1])
def test_ties_go_to_even_and_their_neighbours_to_the_nearer(sign: int):
    lower, upper = FINITE[:-1], FINITE[1:]
    tie = (MAGNITUDES[:-1] + MAGNITUDES[1:]) / np.float32(2)
    below, above = around(tie)
    sign_bit = np.uint8(0x80 if sign < 0 else 0)
    assert_same_bits(e4m3.encode(sign * tie), (lower + lower % 2) | sign_bit)
    assert_same_bits(e4m3.encode(sign * below), lower | sign_bit)
    assert_same_bits(e4m3.encode(sign * above), upper | sign_bit)


@pytest.mark.parametrize("value", [449.0, 464.0, 480.0, 1e30, np.inf])
def test_saturates_at_448(value: float):
    assert e4m3.encode([value, -value]).tolist() == [0x7E, 0xFE]


def test_nan_is_7f_and_zero_keeps_its_sign():
    assert (e4m3.encode(AWKWARD_NAN_BITS.view(np.float32)) == 0x7F).all()
    assert e4m3.encode([0.0, -0.0, 1e-45, -1e-45]).tolist() == [0, 0x80, 0, 0x80]


@settings(deadline=None, max_examples=200)
@given(
    st.one_of(
        st.floats(-500, 500, width=32),
        st.floats(-(2.0**-5), 2.0**-5, width=32),
        st.floats(width=32, allow_nan=False, allow_infinity=False),
    )
)
def test_encode_is_the_nearest_code(value: float):
    assert e4m3.encode(value) == scalar.nearest_code(value, scalar.E4M3_MAGNITUDES)


def test_any_shape_and_layout_and_the_input_stays():
    x = np.linspace(-3, 3, 24, dtype=np.float32).reshape(4, 6)
    x.flags.writeable = False
    codes = e4m3.encode(x)
    assert_same_bits(e4m3.encode(x[::-2, 1::2]), codes[::-2, 1::2])
    assert_same_bits(e4m3.encode(np.asfortranarray(x)), codes)
    assert_same_bits(e4m3.decode(codes.T), e4m3.decode(codes).T)
    assert e4m3.decode(e4m3.encode(1.0)).shape == ()
    assert e4m3.decode(np.empty((0, 3), np.uint8)).shape == (0, 3)
