"""Number formats in NumPy, exact to the bit: E4M3, E2M1, UE8M0, BF16, blocks and their linear.

Everything here is the plain statement of a format or of a rounding point of the spec (forward
pass, sections 1, 6 and 10); speed is the business of `localv4.kernels`. Imports nothing of
localv4's but its errors.

::

    bf16, e4m3, e2m1, e8m0    encode and decode one format; e2m1 also packs two codes to a byte
    activations               rows in blocks with power-of-two scales: act_quant, fp8_sim, fp4_sim
    weights                   stored weights with their scales: dequantise
    hadamard                  the rotation before FP4
    linear                    a quantised linear, the twin of the kernels
"""

from localv4.quant import bf16, e2m1, e4m3, e8m0
from localv4.quant.activations import (
    act_quant,
    fp4_dequant,
    fp4_quant,
    fp4_sim,
    fp8_dequant,
    fp8_quant,
    fp8_sim,
    pow2_scale,
)
from localv4.quant.hadamard import hadamard
from localv4.quant.linear import linear
from localv4.quant.weights import WeightFormat, dequantise, scale_shape, weight_format

__all__ = [
    "WeightFormat",
    "act_quant",
    "bf16",
    "dequantise",
    "e2m1",
    "e4m3",
    "e8m0",
    "fp4_dequant",
    "fp4_quant",
    "fp4_sim",
    "fp8_dequant",
    "fp8_quant",
    "fp8_sim",
    "hadamard",
    "linear",
    "pow2_scale",
    "scale_shape",
    "weight_format",
]
