"""E4M3 codes in blocks of 64 with a power-of-two scale each to float32, in vector registers.

`decode_e4m3` is a plain Python function, its statement; compiled code for a CPU that converts
half precision gets vector code in its place: an E4M3 code's bits are those of a half whose
exponent is 8 lower, subnormals included.

Knows nothing of rows.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import F16, F32X16, I8, I16, I32, I64, Emitter, vector
from localv4.kernels.simd import F32 as F32_ELEMENT

__all__ = ["BLOCK", "decode_e4m3"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]

BLOCK = 64
_LANES = 16
_NAN = np.float32(np.nan)


def decode_e4m3(codes: U8, exponents: U8, out: F32) -> None:
    """Decode blocks of codes times their scales, without denormal numbers and branches.

    Parameters
    ----------
    codes
        uint8 [n], n a multiple of 64.
    exponents
        uint8 [at least n / 64]: UE8M0, 255 for NaN.
    out
        Written: float32 [n].
    """
    for i in range(codes.size):
        byte = exponents[i // BLOCK]
        scale = np.uint32(np.uint32(byte) << np.uint32(23)).view(np.float32)
        scale = _NAN if byte == np.uint8(255) else scale
        code = np.uint32(codes[i])
        magnitude = code & np.uint32(0x7F)
        bits = np.uint32(magnitude << np.uint32(20))
        size = np.uint32(bits + np.uint32(120 << 23)).view(np.float32)
        # below 8 the exponent field is 0: steps of 2^-9, got as 2^-6 + steps - 2^-6
        small = np.uint32(bits + np.uint32(121 << 23)).view(np.float32) - np.float32(2.0**-6)
        size = small if magnitude < np.uint32(8) else size
        size = _NAN if magnitude == np.uint32(0x7F) else size
        sign = np.uint32((code & np.uint32(0x80)) << np.uint32(24))
        out[i] = np.uint32(np.float32(size).view(np.uint32) | sign).view(np.float32) * scale


def _scales(emitter: Emitter, address: Any) -> Any:
    """Load a UE8M0 byte: sixteen lanes of its power of two."""
    builder = emitter.builder
    byte = builder.zext(emitter.load(address, I8), I32)
    bits = builder.shl(byte, ir.Constant(I32, 23))
    lost = builder.icmp_unsigned("==", byte, ir.Constant(I32, 255))
    bits = builder.select(lost, ir.Constant(I32, 0x7FC00000), bits)
    lanes = builder.insert_element(
        ir.Constant(F32X16, ir.Undefined), builder.bitcast(bits, F32_ELEMENT), ir.Constant(I64, 0)
    )
    return emitter.shuffle(lanes, lanes, [0] * _LANES)


def _values(emitter: Emitter, address: Any) -> Any:
    """Decode sixteen codes."""
    builder = emitter.builder

    def splat(value: int) -> Any:
        return emitter.splat_constant(I16, value)

    bits = builder.zext(emitter.load(address, vector(I8)), vector(I16))
    magnitude = builder.and_(bits, splat(0x7F))
    lost = builder.icmp_unsigned("==", magnitude, splat(0x7F))
    half = builder.select(lost, splat(0x7E00), builder.shl(magnitude, splat(7)))
    half = builder.or_(half, builder.shl(builder.and_(bits, splat(0x80)), splat(8)))
    value = builder.fpext(builder.bitcast(half, vector(F16)), F32X16)
    return builder.fmul(value, emitter.splat_constant(F32_ELEMENT, 256.0))


@intrinsic
def _through_halves(typing: Any, codes: Any, exponents: Any, out: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        emitter = Emitter(builder)
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, args, strict=True)
        ]
        source, scale, target = (builder.ptrtoint(array.data, I64) for array in arrays)

        def block(index: Any) -> None:
            scales = _scales(emitter, builder.add(scale, index))
            start = emitter.at(source, index, BLOCK)
            stop = emitter.at(target, index, 4 * BLOCK)
            for first in range(0, BLOCK, _LANES):
                values = _values(emitter, emitter.offset(start, first))
                emitter.store(emitter.offset(stop, 4 * first), builder.fmul(values, scales))

        size = builder.extract_value(arrays[0].shape, 0)
        emitter.loop(builder.udiv(size, ir.Constant(I64, BLOCK)), block)
        return context.get_dummy_value()

    return types.void(codes, exponents, out), code


@overload(decode_e4m3, strict=False)  # type: ignore[untyped-decorator]
def _compiled_decode_e4m3(codes: Any, exponents: Any, out: Any) -> Any:
    if tiers.active() == "generic":
        return decode_e4m3

    def implementation(codes: Any, exponents: Any, out: Any) -> None:
        _through_halves(codes, exponents, out)

    return implementation
