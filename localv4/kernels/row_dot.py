"""One row of weights times a few tokens: the generic tier, and the sum order of all tiers.

Every output is summed over 16 float32 lanes in an order that depends on nothing but the
number of columns, so any batch size, thread count or tier gives the same bytes:

* FP4 and FP8 rows are walked in superblocks of 256 columns.  A superblock's products are
  summed from zero, two a lane and step (the column of the high half first), by fused
  multiply-add; then ``acc = fma(sum, scale, acc)`` with one accumulator for each lane.
  Every lane belongs to one scale block, so this is one scaling for 16 products.
* BF16 rows (and FP8 rows whose F32 scales make every weight round to BF16 by itself) add
  their products to the accumulator directly, without a scale.
* F32 rows are walked in steps of 16 columns.
* At the end the lanes are summed as a tree, upper half onto lower half.

A last, partial superblock is padded with zero weights, zero activations and a zero scale.
`ROW_FORMATS` names for every format the columns each step multiplies; the activations are
stored in that order (`lane_columns`), in float32, so a step is one load and one FMA.

Knows nothing of rows' places in a matrix, of threads or of activation rounding.
Twin: tests/reference/row_dot.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numpy.typing import NDArray

from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import F32, F32X16, I8, I16, I32, I64, LANES, Emitter, vector

__all__ = ["ROW_FORMATS", "RowFormat", "lane_columns", "row_dot_1", "row_dot_4"]

# Twice the magnitude of the eight E2M1 codes, four bits each, code 0 in the lowest bits.
_E2M1_DOUBLED = 0xC8643210

# Decoder(emitter, address of the superblock's weights) -> its steps in order, 16 lanes each.
_Decoder = Callable[[Emitter, Any], list[Any]]


def _fp4_columns() -> NDArray[np.int64]:
    """Lane 4q+2i+d holds scale block 4i+q; step 4j+n adds columns 8(2j+d)+4+n, then +n."""
    step, half, lane = np.meshgrid(np.arange(8), np.arange(2), np.arange(16), indexing="ij")
    block = 4 * ((lane >> 1) & 1) + (lane >> 2)
    dword = 2 * (step >> 2) + (lane & 1)
    return np.asarray(32 * block + 8 * dword + 4 * (1 - half) + (step & 3), np.int64).ravel()


def _fp8_columns() -> NDArray[np.int64]:
    """Lane 8q+4e+d holds scale block q; step 2i+h adds columns 32i+16e+8h+2d+1, then +0."""
    step, half, lane = np.meshgrid(np.arange(8), np.arange(2), np.arange(16), indexing="ij")
    first = 128 * (lane >> 3) + 32 * (step >> 1) + 16 * ((lane >> 2) & 1)
    return np.asarray(first + 8 * (step & 1) + 2 * (lane & 3) + 1 - half, np.int64).ravel()


def _pair_columns() -> NDArray[np.int64]:
    """Lane l adds column 2l, then 2l+1, of 32."""
    half, lane = np.meshgrid(np.arange(2), np.arange(16), indexing="ij")
    return np.asarray(2 * lane + half, np.int64).ravel()


def _e2m1_to_f32(emit: Emitter, words: Any, shift: int) -> Any:
    """Decode the nibble at `shift` of every i32 lane: value doubled as an integer, then halved."""
    i32 = vector(I32)
    nibble = emit.builder.lshr(words, emit.splat_constant(I32, shift))
    index = emit.builder.and_(nibble, emit.splat_constant(I32, 7))
    table = emit.splat_constant(I32, _E2M1_DOUBLED - (1 << 32))
    entry = emit.builder.lshr(table, emit.builder.shl(index, emit.splat_constant(I32, 2)))
    doubled = emit.builder.sitofp(emit.builder.and_(entry, emit.splat_constant(I32, 15)), F32X16)
    value = emit.builder.fmul(doubled, emit.splat_constant(F32, 0.5))
    sign = emit.builder.shl(
        emit.builder.and_(nibble, emit.splat_constant(I32, 8)), emit.splat_constant(I32, 28)
    )
    bits = emit.builder.or_(emit.builder.bitcast(value, i32), sign)
    return emit.builder.bitcast(bits, F32X16)


def _decode_fp4(emit: Emitter, address: Any) -> list[Any]:
    """128 bytes of packed E2M1 -> 16 vectors, unscaled."""
    low = emit.load(address, vector(I32))
    high = emit.load(emit.offset(address, 64), vector(I32))
    steps = []
    for j in range(2):
        lanes = [16 * i + 4 * q + 2 * j + d for q in range(4) for i in range(2) for d in range(2)]
        words = emit.shuffle(low, high, lanes)
        for n in range(4):
            steps += [_e2m1_to_f32(emit, words, 4 * (n + half)) for half in (4, 0)]
    return steps


def _e4m3_to_f32(emit: Emitter, code: Any) -> Any:
    """Decode i32 lanes 0..255: exponent moved by bits, subnormals by a subtraction, exact."""
    i32 = vector(I32)
    builder = emit.builder
    magnitude = builder.and_(code, emit.splat_constant(I32, 0x7F))
    shifted = builder.shl(magnitude, emit.splat_constant(I32, 20))
    normal = builder.add(shifted, emit.splat_constant(I32, 120 << 23))
    above = builder.bitcast(builder.add(shifted, emit.splat_constant(I32, 121 << 23)), F32X16)
    subnormal = builder.fsub(above, emit.splat_constant(F32, 2.0**-6))
    is_subnormal = builder.icmp_unsigned("<", magnitude, emit.splat_constant(I32, 8))
    value = builder.select(is_subnormal, builder.bitcast(subnormal, i32), normal)
    is_nan = builder.icmp_unsigned("==", magnitude, emit.splat_constant(I32, 0x7F))
    value = builder.select(is_nan, emit.splat_constant(I32, 0x7FC00000), value)
    sign = builder.shl(
        builder.and_(code, emit.splat_constant(I32, 0x80)), emit.splat_constant(I32, 24)
    )
    return builder.bitcast(builder.or_(value, sign), F32X16)


def _decode_fp8(emit: Emitter, address: Any) -> list[Any]:
    """256 bytes of E4M3 -> 16 vectors, unscaled."""
    steps = []
    for i in range(4):
        low_block = emit.load(emit.offset(address, 32 * i), vector(I16))
        high_block = emit.load(emit.offset(address, 128 + 32 * i), vector(I16))
        for h in range(2):
            lanes = [
                16 * q + 8 * e + 4 * h + d for q in range(2) for e in range(2) for d in range(4)
            ]
            pairs = emit.builder.zext(emit.shuffle(low_block, high_block, lanes), vector(I32))
            high = emit.builder.lshr(pairs, emit.splat_constant(I32, 8))
            low = emit.builder.and_(pairs, emit.splat_constant(I32, 0xFF))
            steps += [_e4m3_to_f32(emit, high), _e4m3_to_f32(emit, low)]
    return steps


def _decode_bf16(emit: Emitter, address: Any) -> list[Any]:
    """64 bytes of BF16 -> 2 vectors."""
    pairs = emit.load(address, vector(I32))
    low = emit.builder.shl(pairs, emit.splat_constant(I32, 16))
    high = emit.builder.and_(pairs, emit.splat_constant(I32, -65536))
    return [emit.builder.bitcast(half, F32X16) for half in (low, high)]


def _decode_f32(emit: Emitter, address: Any) -> list[Any]:
    """64 bytes of float32 -> 1 vector."""
    return [emit.load(address, F32X16)]


@dataclass(frozen=True)
class RowFormat:
    """How a row of one weight format is walked.

    Attributes
    ----------
    columns
        Column numbers inside a superblock in the order they are multiplied, 16 a step.
    n_bytes
        Bytes of weights in a superblock.
    scale_lanes
        For every lane the index of its scale inside a superblock; None without scales.
    scale_bytes
        Bytes of one scale: 1 (UE8M0) or 4 (F32).
    rounds_weights
        Every weight is scaled and rounded to BF16 before it is multiplied (wo_a with F32
        scales: forward.md section 4, step 7).
    """

    decode: _Decoder
    columns: NDArray[np.int64]
    n_bytes: int
    scale_lanes: tuple[int, ...] | None = None
    scale_bytes: int = 4
    rounds_weights: bool = False

    @property
    def n_columns(self) -> int:
        """Columns in a superblock."""
        return self.columns.size

    @property
    def n_scales(self) -> int:
        """Scales of a row in a superblock."""
        return max(self.scale_lanes or (0,)) + 1


_FP8_LANES = tuple(lane >> 3 for lane in range(LANES))
_FP4_LANES = tuple(4 * ((lane >> 1) & 1) + (lane >> 2) for lane in range(LANES))

ROW_FORMATS = {
    "fp4": RowFormat(_decode_fp4, _fp4_columns(), 128, _FP4_LANES, scale_bytes=1),
    "fp8": RowFormat(_decode_fp8, _fp8_columns(), 256, _FP8_LANES),
    "fp8_as_bf16": RowFormat(_decode_fp8, _fp8_columns(), 256, _FP8_LANES, rounds_weights=True),
    "bf16": RowFormat(_decode_bf16, _pair_columns(), 64),
    "f32": RowFormat(_decode_f32, np.arange(16), 64),
}


def lane_columns(name: str, n_columns: int) -> NDArray[np.int64]:
    """Return the column behind every slot of a row of activations in lane order.

    Parameters
    ----------
    name
        A key of `ROW_FORMATS`.
    n_columns
        Columns of the matrix.

    Returns
    -------
    Column numbers, padded to whole superblocks; slots without a column hold `n_columns`.
    """
    columns = ROW_FORMATS[name].columns
    n_superblocks = -(-n_columns // columns.size)
    starts = np.arange(n_superblocks, dtype=np.int64)[:, None] * columns.size
    padded: NDArray[np.int64] = np.minimum((starts + columns).ravel(), n_columns)
    return padded


def _scales(emit: Emitter, row_format: RowFormat, address: Any) -> Any:
    """Load the scales of a superblock into their lanes."""
    assert row_format.scale_lanes is not None
    kind = I8 if row_format.scale_bytes == 1 else I32
    loaded = emit.load(address, vector(kind, row_format.n_scales))
    lanes = emit.shuffle(loaded, loaded, row_format.scale_lanes)
    if row_format.scale_bytes == 1:  # UE8M0 is the exponent field of a float32
        lanes = emit.builder.zext(lanes, vector(I32))
        lanes = emit.builder.shl(lanes, emit.splat_constant(I32, 23))
    return emit.builder.bitcast(lanes, F32X16)


def _superblock(
    emit: Emitter,
    row_format: RowFormat,
    weights: Any,
    scale: Any,
    inputs: list[Any],
    sums: list[Any],
) -> None:
    """Add one superblock's products to the accumulators of every token."""
    steps = row_format.decode(emit, weights)
    if row_format.rounds_weights:
        steps = [emit.round_to_bf16(emit.builder.fmul(step, scale)) for step in steps]
        scale = None
    zero = emit.splat_constant(F32, 0.0)
    partial = [zero if scale is not None else emit.builder.load(slot) for slot in sums]
    for number, weight in enumerate(steps):
        for token, address in enumerate(inputs):
            value = emit.load(emit.offset(address, 64 * number), F32X16)
            partial[token] = emit.fma(weight, value, partial[token])
    for slot, value in zip(sums, partial, strict=True):
        if scale is not None:
            value = emit.fma(value, scale, emit.builder.load(slot))
        emit.builder.store(value, slot)


def _walk(emit: Emitter, row_format: RowFormat, sums: list[Any], args: list[Any]) -> None:
    """Add a whole row; a last, partial superblock is read from padded copies on the stack."""
    weights, scales, n_columns, n_scales, inputs, input_stride = args
    builder = emit.builder
    n_bytes, scale_step = row_format.n_bytes, row_format.n_scales * row_format.scale_bytes
    per_block = ir.Constant(I64, row_format.n_columns)
    n_full, rest = builder.udiv(n_columns, per_block), builder.urem(n_columns, per_block)
    has_rest = builder.icmp_unsigned("!=", rest, ir.Constant(I64, 0))
    padded, padded_scales = emit.memory(n_bytes), emit.memory(64)

    def pad() -> None:
        used = builder.udiv(builder.mul(rest, ir.Constant(I64, n_bytes)), per_block)
        emit.clear(padded, n_bytes)
        emit.copy_bytes(padded, emit.at(weights, n_full, n_bytes), used)
        if row_format.scale_lanes is not None:
            done = builder.mul(n_full, ir.Constant(I64, row_format.n_scales))
            n_left = builder.sub(n_scales, done)
            left = builder.mul(n_left, ir.Constant(I64, row_format.scale_bytes))
            emit.clear(padded_scales, 64)
            emit.copy_bytes(padded_scales, emit.at(scales, n_full, scale_step), left)

    def block(index: Any) -> None:
        is_full = builder.icmp_unsigned("<", index, n_full)
        address = builder.select(is_full, emit.at(weights, index, n_bytes), padded)
        scale = None
        if row_format.scale_lanes is not None:
            first = builder.select(is_full, emit.at(scales, index, scale_step), padded_scales)
            scale = _scales(emit, row_format, first)
        base = emit.at(inputs, index, 4 * row_format.n_columns)
        tokens = [emit.offset(base, input_stride, token) for token in range(len(sums))]
        _superblock(emit, row_format, address, scale, tokens, sums)

    emit.when(has_rest, pad)
    emit.loop(builder.add(n_full, builder.zext(has_rest, I64)), block)


def _row_dot(n_tokens: int) -> Any:
    """Make the intrinsic that multiplies one row with `n_tokens` tokens.

    It takes int64 arguments: the format's code, the addresses of weights and scales, the
    number of columns and of scales in the row, the address and stride of the activations,
    the address and stride of the outputs, and 1 to round the sums to BF16.  Strides are in
    bytes; any alignment.  Writes float32.
    """

    def generate(emit: Emitter, args: list[Any]) -> None:
        code, *row, outputs, output_stride, rounds = args
        builder = emit.builder
        sums = emit.accumulators(n_tokens)
        done = builder.append_basic_block("done")
        switch = builder.switch(code, done)
        for number, row_format in enumerate(ROW_FORMATS.values()):
            block = builder.append_basic_block(f"format_{number}")
            switch.add_case(ir.Constant(I64, number), block)
            builder.position_at_end(block)
            _walk(emit, row_format, sums, row)
            builder.branch(done)
        builder.position_at_end(done)
        for token, slot in enumerate(sums):
            total = emit.lane_sum(builder.load(slot))
            rounded = emit.round_to_bf16(total)
            keep = builder.icmp_unsigned("==", rounds, ir.Constant(I64, 0))
            value = builder.select(keep, total, rounded)
            emit.store(emit.offset(outputs, output_stride, token), value)

    # numba reads the parameters off the function, so they are spelled out
    def dot(
        typing: Any,
        f: Any,
        w: Any,
        s: Any,
        k: Any,
        n: Any,
        x: Any,
        xs: Any,
        y: Any,
        ys: Any,
        r: Any,
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            generate(Emitter(builder), args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 10), code

    return intrinsic(dot)


row_dot_1 = _row_dot(1)
row_dot_4 = _row_dot(4)
