import numpy as np
import pytest

from localv4.errors import InvalidInput
from localv4.quant import e8m0
from tests.quant.bits import AWKWARD_NAN_BITS, assert_same_bits

ALL = np.arange(256, dtype=np.uint8)


def test_table_matches_the_golden_and_the_definition(kernels):
    np.testing.assert_array_equal(e8m0.decode(ALL), kernels["table.e8m0"])
    powers = np.ldexp(1.0, np.arange(255) - 127)
    np.testing.assert_array_equal(e8m0.decode(ALL)[:255].astype(np.float64), powers)
    assert np.isnan(e8m0.decode(255))


def test_every_byte_survives():
    assert_same_bits(e8m0.encode(e8m0.decode(ALL)), ALL)
    assert_same_bits(e8m0.encode(e8m0.decode(ALL.reshape(16, 16).T)), ALL.reshape(16, 16).T)


def test_every_nan_is_255():
    assert (e8m0.encode(AWKWARD_NAN_BITS.view(np.float32)) == 255).all()


@pytest.mark.parametrize(
    "value",
    [0.0, -0.0, -1.0, 3.0, np.nextafter(np.float32(1), np.float32(2)), 2.0**-128, 2.0**-149,
     np.inf, -np.inf],
)  # fmt: skip
def test_what_is_no_power_of_two_is_refused_with_its_value(value: float):
    with pytest.raises(InvalidInput, match=f"^{float(value)!r} cannot be"):
        e8m0.encode(np.array([[1.0, value]], np.float32))
    with pytest.raises(InvalidInput, match="cannot be"):
        e8m0.encode(np.float32(value))


def test_empty_is_fine():
    assert e8m0.encode(np.empty((2, 0), np.float32)).shape == (2, 0)
