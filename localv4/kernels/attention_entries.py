"""Packed KV entries as words of two BF16 numbers each, in both orders that products want.

An entry of the trained precision holds BF16 numbers exactly: FP8 codes times a power of two, and
BF16 rope columns.  `decode_words` is plain Python, its statement; compiled code for a CPU that
multiplies BF16 gets vector code in its place.  Follows forward.md section 4.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from localv4.kernels._jit import intrinsic, leaf
from localv4.kernels.attention_products import PAIRS
from localv4.kernels.decode import e4m3_to_bf16
from localv4.kernels.fp8_values import BLOCK, decode_e4m3
from localv4.kernels.simd import I8, I16, I32, I64, Emitter, vector

__all__ = ["decode_words", "entry_words", "pair_rows"]

I32_WORDS = NDArray[np.int32]
U8 = NDArray[np.uint8]

_LOWER = np.int32(0xFFFF)
_UPPER = np.int32(-65536)
_SIXTEEN = np.int32(16)


def decode_words(codes: U8, exponents: U8, out: I32_WORDS) -> None:
    """Decode blocks of E4M3 codes times their scales to BF16 numbers, two a word.

    Parameters
    ----------
    codes
        uint8 [n], n a multiple of 64, none of them NaN.
    exponents
        uint8 [at least n / 64]: UE8M0 from 2^-100 to 2^100, 255 for NaN.
    out
        Written: int32 [n / 2], the first column in the lower bits.
    """
    values = np.empty(codes.size, np.float32)
    decode_e4m3(codes, exponents, values)
    out[:] = (values.view(np.uint32) >> np.uint32(16)).astype(np.uint16).view(np.int32)


@leaf
def entry_words(row: U8, head_dim: int, rope_dim: int, out: I32_WORDS) -> None:
    """Unpack one entry of the trained precision, two columns a word, zeros behind.

    Parameters
    ----------
    row
        uint8 [entry bytes], see kv_rows.py.
    head_dim, rope_dim
        Columns, and how many of them are BF16; even numbers.
    out
        Written: int32 [at least head_dim / 2].
    """
    plain = head_dim - rope_dim
    decode_words(row[:plain], row[plain + 2 * rope_dim :], out[: plain // 2])
    rotated = row[plain : plain + 2 * rope_dim].view(np.int32)
    for i in range(rotated.size):
        out[plain // 2 + i] = rotated[i]
    for i in range(head_dim // 2, out.size):
        out[i] = 0


@leaf
def pair_rows(first: I32_WORDS, second: I32_WORDS, out: I32_WORDS) -> None:
    """Put the numbers of two rows side by side: out[2 i + j] has number 2 i + j of both.

    Parameters
    ----------
    first, second
        int32 [n], two BF16 numbers each.
    out
        Written: int32 [2 n], that of `first` in the lower bits.
    """
    for i in range(first.size):
        one, other = first[i], second[i]
        out[2 * i] = (one & _LOWER) | np.int32(other << _SIXTEEN)
        out[2 * i + 1] = np.int32((one >> _SIXTEEN) & _LOWER) | (other & _UPPER)


def _scaled(emit: Emitter, words: Any, exponent: Any, lost: Any) -> Any:
    """Multiply BF16 numbers by a power of two; zeros stay zeros."""
    builder, kind = emit.builder, vector(I16, 32)
    size = builder.and_(words, emit.splat_constant(I16, 0x7FFF, 32))
    there = builder.icmp_unsigned("!=", size, ir.Constant(kind, None))
    words = builder.select(there, builder.add(words, exponent), words)
    return builder.or_(words, lost)


@intrinsic
def _decode_words(typing: Any, codes: Any, exponents: Any, out: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        emit = Emitter(builder)
        arrays = [
            context.make_array(kind)(context, builder, value)
            for kind, value in zip(signature.args, args, strict=True)
        ]
        source, scale, target = (builder.ptrtoint(array.data, I64) for array in arrays)

        def splat(value: Any) -> Any:
            single = builder.insert_element(
                ir.Constant(vector(I16, 32), ir.Undefined), value, ir.Constant(I32, 0)
            )
            return emit.shuffle(single, single, [0] * 32)

        def block(index: Any) -> None:
            byte = builder.zext(emit.load(builder.add(scale, index), I8), I16)
            moved = builder.shl(builder.sub(byte, ir.Constant(I16, 127)), ir.Constant(I16, 7))
            is_nan = builder.icmp_unsigned("==", byte, ir.Constant(I16, 255))
            none = ir.Constant(I16, 0)
            lost = builder.select(is_nan, ir.Constant(I16, 0x7FFF), none)
            moved = builder.select(is_nan, none, moved)
            # eight codes of the first half beside eight of the second, as the decoder parts them
            codes = emit.load(emit.at(source, index, BLOCK), vector(I64, 8))
            codes = emit.shuffle(codes, codes, [half + i for i in range(4) for half in (0, 4)])
            registers = e4m3_to_bf16(emit, builder.bitcast(codes, vector(I8, 64)))
            for number, words in enumerate(registers):
                place = emit.offset(emit.at(target, index, 2 * BLOCK), 64 * number)
                emit.store(place, _scaled(emit, words, splat(moved), splat(lost)))

        size = builder.extract_value(arrays[0].shape, 0)
        emit.loop(builder.udiv(size, ir.Constant(I64, BLOCK)), block)
        return context.get_dummy_value()

    return types.void(codes, exponents, out), code


@overload(decode_words, strict=False)  # type: ignore[untyped-decorator]
def _compiled_decode_words(codes: Any, exponents: Any, out: Any) -> Any:
    if not PAIRS:  # without these instructions no kernel wants words
        return decode_words

    def implementation(codes: Any, exponents: Any, out: Any) -> None:
        _decode_words(codes, exponents, out)

    return implementation
