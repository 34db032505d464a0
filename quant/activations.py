"""Activations in blocks that share a power-of-two scale (spec, forward pass, section 1).

AQ128 before every quantised linear (`act_quant`), SIM8 on the attention's KV (`fp8_sim`) and SIM4
on the indexer's queries and keys (`fp4_sim`), each also in the packed form that a cache keeps
(`fp8_quant`, `fp4_quant`) with its way back. Knows nothing of weights.

For finite input every step is exact except the one rounding to a code. A block with a NaN or an
infinity in it has no scale: its scale is NaN (UE8M0 byte 255), so the whole block reads back as
NaN, and other blocks are untouched. No warning is raised.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput
from localv4.quant import e2m1, e4m3, e8m0
from localv4.quant.arrays import as_float32, into_blocks

FP8_SMALLEST_AMAX = np.float32(1e-4)
FP4_SMALLEST_AMAX = np.float32(6 * 2.0**-126)
_INFINITY = np.uint32(0x7F800000)


def pow2_scale(amax: ArrayLike, largest: float) -> NDArray[np.float32]:
    """Return the smallest power of two not below `amax` / `largest`, decided by bits.

    The quotient is float32(`amax` * float32(1 / `largest`)), as in the kernels of the training; for
    448 and for 6 the power is the same as after a division, at every mantissa.

    Parameters
    ----------
    amax
        float32 of any shape, positive, with a normal quotient (the callers have a floor).
    largest
        The largest code of the format: 448 or 6.

    Returns
    -------
    ndarray of float32, the shape of `amax`; NaN where `amax` is infinite or NaN

    Raises
    ------
    InvalidInput
        If `amax` does not hold numbers.
    """
    with np.errstate(all="ignore"):
        bits = np.asarray(as_float32(amax, "amax") * np.float32(1 / largest)).view(np.uint32)
    exponent = (bits >> np.uint32(23)) + ((bits & np.uint32(0x007FFFFF)) != 0)
    scale_bits = np.where(bits >= _INFINITY, np.uint32(0x7FC00000), exponent << np.uint32(23))
    return scale_bits.astype(np.uint32, copy=False).view(np.float32)


def act_quant(x: ArrayLike, block: int = 128) -> tuple[NDArray[np.uint8], NDArray[np.float32]]:
    """Quantise rows to E4M3 with a power-of-two scale for every `block` columns: AQ128.

    Parameters
    ----------
    x
        (..., columns) float32; read-only and non-contiguous are fine.
    block
        Columns that share a scale; `columns` is a multiple of it.

    Returns
    -------
    codes : ndarray of uint8, (..., columns)
    scales : ndarray of float32, (..., columns // block)
        x is about e4m3.decode(codes) * scale.

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers, or its columns are not whole blocks.
    """
    values = as_float32(x)
    blocks = into_blocks(values, block)
    scales = pow2_scale(_amax(blocks, FP8_SMALLEST_AMAX), e4m3.LARGEST)
    return e4m3.encode(_scaled(blocks, scales)).reshape(values.shape), scales


def fp8_quant(x: ArrayLike, block: int = 64) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantise as `act_quant` does, with the scales as UE8M0 bytes: what an FP8 cache keeps.

    Parameters
    ----------
    x
        (..., columns) float32.
    block
        Columns that share a scale.

    Returns
    -------
    codes : ndarray of uint8, (..., columns)
    scale_codes : ndarray of uint8, (..., columns // block)

    Raises
    ------
    InvalidInput
        As `act_quant`.
    """
    codes, scales = act_quant(x, block)
    return codes, e8m0.encode(scales)


def fp8_dequant(codes: ArrayLike, scale_codes: ArrayLike, block: int = 64) -> NDArray[np.float32]:
    """Return what `fp8_quant` kept, as float32 values that are BF16 numbers.

    Parameters
    ----------
    codes
        (..., columns) uint8 E4M3.
    scale_codes
        (..., columns // block) uint8 UE8M0.
    block
        Columns that share a scale.

    Returns
    -------
    ndarray of float32, (..., columns)

    Raises
    ------
    InvalidInput
        If the shapes do not fit each other.
    """
    return _rescaled(e4m3.decode(codes), e8m0.decode(scale_codes), block)


def fp8_sim(x: ArrayLike, block: int = 64) -> NDArray[np.float32]:
    """Return `x` as it reads back from FP8 blocks: SIM8.

    The product of code and scale has at most four significant bits, so the BF16 rounding that
    follows it in the spec changes nothing. A block whose largest magnitude is within a rounding
    of 2^128 can read back as infinite.

    Parameters
    ----------
    x
        (..., columns) float32; read-only and non-contiguous are fine.
    block
        Columns that share a scale.

    Returns
    -------
    ndarray of float32, the shape of `x`; a new array

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers, or its columns are not whole blocks.
    """
    codes, scales = act_quant(x, block)
    return _rescaled(e4m3.decode(codes), scales, block)


def fp4_quant(x: ArrayLike, block: int = 32) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Quantise rows to E2M1 with a UE8M0 scale for every `block` columns.

    Parameters
    ----------
    x
        (..., columns) float32; read-only and non-contiguous are fine.
    block
        Columns that share a scale.

    Returns
    -------
    codes : ndarray of uint8, (..., columns)
        One code to a byte; `e2m1.pack` halves them.
    scale_codes : ndarray of uint8, (..., columns // block)

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers, or its columns are not whole blocks.
    """
    values = as_float32(x)
    blocks = into_blocks(values, block)
    scales = pow2_scale(_amax(blocks, FP4_SMALLEST_AMAX), e2m1.LARGEST)
    return e2m1.encode(_scaled(blocks, scales)).reshape(values.shape), e8m0.encode(scales)


def fp4_dequant(codes: ArrayLike, scale_codes: ArrayLike, block: int = 32) -> NDArray[np.float32]:
    """Return what `fp4_quant` kept, as float32 values that are BF16 numbers.

    Parameters
    ----------
    codes
        (..., columns) integers of 0..15 (packed bytes go through `e2m1.unpack` first).
    scale_codes
        (..., columns // block) uint8 UE8M0.
    block
        Columns that share a scale.

    Returns
    -------
    ndarray of float32, (..., columns)

    Raises
    ------
    InvalidInput
        If the shapes do not fit each other.
    """
    return _rescaled(e2m1.decode(codes), e8m0.decode(scale_codes), block)


def fp4_sim(x: ArrayLike, block: int = 32) -> NDArray[np.float32]:
    """Return `x` as it reads back from FP4 blocks: SIM4.

    As in `fp8_sim` the BF16 rounding after the product changes nothing.

    Parameters
    ----------
    x
        (..., columns) float32; read-only and non-contiguous are fine.
    block
        Columns that share a scale.

    Returns
    -------
    ndarray of float32, the shape of `x`; a new array

    Raises
    ------
    InvalidInput
        If `x` does not hold numbers, or its columns are not whole blocks.
    """
    return fp4_dequant(*fp4_quant(x, block), block)


def _amax(blocks: NDArray[np.float32], smallest: np.float32) -> NDArray[np.float32]:
    """Return the largest magnitude of each block, at least `smallest`, or a non-finite value.

    Magnitudes compare as their bits do, and infinities and NaN are the largest bits: no value is
    lost and no floating-point flag is raised.
    """
    bits = blocks.view(np.uint32) & np.uint32(0x7FFFFFFF)
    largest = np.max(bits, axis=-1, initial=smallest.view(np.uint32))
    return np.asarray(largest, dtype=np.uint32).view(np.float32)


def _scaled(blocks: NDArray[np.float32], scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return blocks / scales; exact, because a scale is a power of two."""
    with np.errstate(all="ignore"):
        return blocks / scales[..., np.newaxis]


def _rescaled(
    values: NDArray[np.float32], scales: NDArray[np.float32], block: int
) -> NDArray[np.float32]:
    blocks = into_blocks(values, block, "codes")
    if blocks.shape[:-1] != scales.shape:
        raise InvalidInput(
            f"scales have shape {scales.shape}, but codes of shape {values.shape} in blocks of "
            f"{block} need {blocks.shape[:-1]}; pass the pair that belongs together"
        )
    with np.errstate(all="ignore"):
        return (blocks * scales[..., np.newaxis]).reshape(values.shape)
