"""The vector code against the plain function that states what it does, for every code."""

import numpy as np

from localv4.kernels import fp8_values
from localv4.kernels._jit import leaf
from tests.kernels.compare import F32, U8, assert_same_bytes, needs_compiler

pytestmark = needs_compiler


@leaf
def decode(codes: U8, exponents: U8, out: F32) -> None:
    fp8_values.decode_e4m3(codes, exponents, out)


@np.errstate(all="ignore")
def test_every_code_with_every_scale():
    codes = np.arange(256, dtype=np.uint8)
    for exponent in range(1, 256):
        exponents = np.array([exponent, 127, 1, exponent], np.uint8)
        ours, expected = np.zeros((2, 256), np.float32)
        decode(codes, exponents, ours)
        fp8_values.decode_e4m3(codes, exponents, expected)
        assert_same_bytes(ours, expected)
