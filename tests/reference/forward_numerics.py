"""The two numerics of the reference, in float64: every rounding of the specification or none.

Sums, exponentials and norms run in float64 in both numerics. "float32" rounds nowhere, so it is
more exact than any float32 pipeline; "trained" rounds at the points of spec/forward.md section 10
and wherever a tensor crosses an operator boundary in BF16, and nowhere else.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


def round_to(x: Floats, mantissa_bits: int, least_exponent: int) -> Floats:
    """Round to nearest, ties to even, keeping ``mantissa_bits`` behind the leading bit."""
    _, exponent = np.frexp(x)
    step = np.ldexp(1.0, np.maximum(exponent - 1, least_exponent) - mantissa_bits)
    rounded: Floats = np.rint(x / step) * step
    return rounded


def round_bf16(x: Floats) -> Floats:
    return round_to(x, mantissa_bits=7, least_exponent=-126)


def round_e4m3(x: Floats) -> Floats:
    return round_to(np.clip(x, -448, 448), mantissa_bits=3, least_exponent=-6)


def round_e2m1(x: Floats) -> Floats:
    return round_to(np.clip(x, -6, 6), mantissa_bits=1, least_exponent=0)


def power_of_two_scale(largest: Floats, inverse: float) -> Floats:
    """2^ceil(log2 t) for the float32 product t = largest * inverse, as pow2scale of section 1."""
    fraction, exponent = np.frexp(largest.astype(np.float32) * np.float32(inverse))
    scale: Floats = np.ldexp(1.0, np.where(fraction == 0.5, exponent - 1, exponent))
    return scale


def fp8_rounded(x: Floats, block: int) -> Floats:
    """AQ128 and SIM8: E4M3 codes times their block's scale."""
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // block, block)
    largest = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True), np.float32(1e-4))
    scale = power_of_two_scale(largest, 1 / 448)
    return (round_e4m3(blocks / scale) * scale).reshape(x.shape)


def fp4_rounded(x: Floats) -> Floats:
    """SIM4: E2M1 codes times their 32-column block's scale."""
    blocks = x.reshape(*x.shape[:-1], x.shape[-1] // 32, 32)
    largest = np.maximum(np.abs(blocks).max(axis=-1, keepdims=True), 6 * 2.0**-126)
    scale = power_of_two_scale(largest, 1 / 6)
    return (round_e2m1(blocks / scale) * scale).reshape(x.shape)


def hadamard_matrix(size: int) -> Floats:
    """Sylvester's order: entry (i, j) is (-1)^popcount(i & j); ``size`` is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    return matrix


def sigmoid(x: Floats) -> Floats:
    return 0.5 * (1 + np.tanh(x / 2))  # no overflow at either end


def softmax(x: Floats, axis: int) -> Floats:
    weights = np.exp(x - x.max(axis=axis, keepdims=True))
    result: Floats = weights / weights.sum(axis=axis, keepdims=True)
    return result


@dataclass(frozen=True)
class Numerics:
    """Operators whose result depends on the numerics; each names its symbol in the spec."""

    name: Literal["float32", "trained"]

    @property
    def trained(self) -> bool:
        return self.name == "trained"

    def bf(self, x: Floats) -> Floats:
        return round_bf16(x) if self.trained else x

    def sim8(self, x: Floats) -> Floats:
        return fp8_rounded(x, 64) if self.trained else x

    def sim4(self, x: Floats) -> Floats:
        return fp4_rounded(x) if self.trained else x

    def dense(self, x: Floats, weight: Floats) -> Floats:
        """LD, and LF of BF16 results: no activation quantisation."""
        return self.bf(x @ weight.T)

    def quantised(self, x: Floats, weight: Floats) -> Floats:
        """LQ. Codes times scales are exact in float64, so their order does not matter here."""
        return self.bf((fp8_rounded(x, 128) if self.trained else x) @ weight.T)

    def rms_norm(self, x: Floats, weight: Floats, eps: float) -> Floats:
        return self.bf(weight * x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps))

    def head_norm(self, q: Floats, eps: float) -> Floats:
        """Weightless norm of every query head, rounded after each of its four steps."""
        variance = self.bf(np.mean(self.bf(q * q), axis=-1, keepdims=True))
        return self.bf(q * self.bf(1 / np.sqrt(self.bf(variance + eps))))

    def hadamard(self, x: Floats) -> Floats:
        size = x.shape[-1]
        return self.bf(x @ hadamard_matrix(size) * size**-0.5)
