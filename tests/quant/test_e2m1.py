import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.errors import InvalidInput
from localv4.quant import e2m1
from tests.quant import scalar
from tests.quant.bits import AWKWARD_NAN_BITS, around, assert_same_bits

MAGNITUDES = np.array([float(m) for m in scalar.E2M1_MAGNITUDES], np.float32)


def test_table_matches_the_golden_and_the_definition(kernels):
    assert_same_bits(e2m1.TABLE, kernels["table.e2m1"])
    assert_same_bits(e2m1.TABLE, np.concatenate([MAGNITUDES, -MAGNITUDES]))
    assert not e2m1.TABLE.flags.writeable


def test_rounding_matches_the_golden(kernels):
    assert_same_bits(e2m1.decode(e2m1.encode(kernels["round_e2m1.x"])), kernels["round_e2m1.y"])


def test_every_code_survives():
    codes = np.arange(16, dtype=np.uint8)
    assert_same_bits(e2m1.encode(e2m1.decode(codes)), codes)


def test_ties_as_the_spec_lists_them():
    ties = np.array([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5], np.float32)
    rounded = np.array([0, 1, 1, 2, 2, 4, 4], np.float32)
    below, above = around(ties)
    for sign in (np.float32(1), np.float32(-1)):
        assert_same_bits(e2m1.decode(e2m1.encode(sign * ties)), sign * rounded)
        assert_same_bits(e2m1.decode(e2m1.encode(sign * below)), sign * MAGNITUDES[:-1])
        assert_same_bits(e2m1.decode(e2m1.encode(sign * above)), sign * MAGNITUDES[1:])


@pytest.mark.parametrize("value", [6.5, 7.0, 8.0, 1e30, np.inf])
def test_saturates_at_6(value: float):
    assert e2m1.encode([value, -value]).tolist() == [7, 15]


def test_nan_is_plus_6_and_zero_keeps_its_sign():
    assert (e2m1.encode(AWKWARD_NAN_BITS.view(np.float32)) == 7).all()
    assert e2m1.encode([0.0, -0.0, 1e-45, -1e-45]).tolist() == [0, 8, 0, 8]


@settings(deadline=None, max_examples=200)
@given(st.floats(-8, 8, width=32))
def test_encode_is_the_nearest_code(value: float):
    assert e2m1.encode(value) == scalar.nearest_code(value, scalar.E2M1_MAGNITUDES)


def test_the_low_nibble_is_the_even_column():
    packed = e2m1.pack([[1, 2, 15, 0]])
    assert packed.tolist() == [[0x21, 0x0F]]
    assert e2m1.unpack(packed).tolist() == [[1, 2, 15, 0]]


@pytest.mark.parametrize("dtype", [np.uint8, np.int8])
def test_every_byte_survives_unpacking_and_packing(dtype: type):
    packed = np.arange(256, dtype=np.uint8)
    assert_same_bits(e2m1.pack(e2m1.unpack(packed.view(dtype))), packed)


def test_packing_any_shape_and_layout():
    codes = np.arange(96).reshape(2, 3, 16) % 16
    codes.flags.writeable = False
    assert e2m1.pack(codes).shape == (2, 3, 8)
    assert_same_bits(e2m1.pack(codes[::-1, ::2, ::-1]), e2m1.pack(codes[::-1, ::2, ::-1].copy()))
    assert_same_bits(e2m1.unpack(e2m1.pack(codes)), codes.astype(np.uint8))
    assert e2m1.unpack(np.empty((4, 0), np.uint8)).shape == (4, 0)


@pytest.mark.parametrize(
    ("codes", "number"), [([16, 0], "16"), ([-1, 0], "-1"), ([1, 2, 3], "3 columns"), (5, "scalar")]
)
def test_bad_codes_are_refused(codes, number):
    with pytest.raises(InvalidInput, match=number):
        e2m1.pack(codes)


def test_packed_bytes_are_not_taken_for_codes():
    with pytest.raises(InvalidInput, match="holds 33"):
        e2m1.decode(np.array([0x21], np.uint8))
