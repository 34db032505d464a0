"""Rows of weights times blocks of sixteen tokens in the CPU's matrix unit (AMX).

A tile of weights (16 rows by 32 columns, as BF16) times a tile of activations adds 32 products to
each of 16 x 16 sums: those of the even places in one chain of fused multiply-adds, those of the odd
places in another, and then both.  So the bytes are those of row_dot.py (walks.py describes the
order):

* FP8 and BF16: the even and the odd places are the products of two neighbouring lanes.
* FP4: the products of a lane's scale block are whole numbers.  Activations come as two parts, the
  upper and the lower digits of each, whose sums are exact.

Weights that are multiplied with their scales when they are decoded (amx_rows.py) are summed inside
the unit (amx_folded.py).  Where scales or activations are unusual, and for BF16, each product is
scaled and added by itself (amx_scaled.py).

A part of some superblocks (a few groups of 32 columns, some superblocks of each) is decoded at a
time and then multiplied with all tokens, one group after the other.  So decoded weights stay in the
first cache; what would not is slow to write.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from numba import types

from localv4.kernels._jit import intrinsic
from localv4.kernels.amx_folded import add_folded
from localv4.kernels.amx_rows import TILE_BYTES, UNIT_ROWS
from localv4.kernels.amx_scaled import add_one_by_one
from localv4.kernels.amx_unit import BLOCK_TOKENS, GROUP_BYTES, TILES, Unit
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32X16, I8, Emitter
from localv4.kernels.walk import Walk

__all__ = ["amx_tile"]


def _generate(unit: Unit) -> None:
    """Emit the whole unit."""
    emit, builder = unit.emit, unit.builder
    _configure(unit)
    emit.clear(unit.zeros, TILE_BYTES)
    n_steps = builder.mul(unit.n_runs, integer(unit.walk.n_parts))
    usual = unit.stored.gather()
    if unit.walk.n_scales:
        with builder.if_else(builder.and_(usual, unit.usual_tokens())) as (then, otherwise):
            with then:
                emit.loop(n_steps, partial(_run, unit, add_folded, True))
            with otherwise:
                emit.loop(n_steps, partial(_run, unit, add_one_by_one, False))
    else:
        emit.loop(n_steps, partial(_run, unit, add_one_by_one, False))
    emit.loop(unit.n_blocks, partial(_store_block, unit))
    unit.tile("tilerelease")


def _configure(unit: Unit) -> None:
    """Eight tiles of 16 rows of 64 bytes."""
    values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
    memory = unit.emit.memory(64, 64)
    unit.emit.store(memory, unit.emit.constant(I8, values), 64)
    unit.tile("ldtilecfg", unit.pointer(memory))


def _run(unit: Unit, multiply: Callable[..., None], scaled: bool, index: Any) -> None:
    """Decode a part of some superblocks and multiply it with all tokens."""
    emit, builder = unit.emit, unit.builder
    part = builder.udiv(index, unit.n_runs)
    first = builder.mul(builder.urem(index, unit.n_runs), unit.run)
    left = builder.sub(unit.n_superblocks, first)
    few = builder.icmp_unsigned("<", left, unit.run)
    count = builder.select(few, left, unit.run)

    def row(number: Any) -> None:
        tile, inside = builder.lshr(number, integer(4)), builder.and_(number, integer(15))

        def place(group: int, superblock: Any) -> Any:
            target = unit.weights(emit.offset(tile, TILES * group))
            return emit.at(emit.at(target, superblock, TILE_BYTES), inside, 64)

        def asks(superblock: Any) -> None:
            unit.ask_in_decoding(index, number, superblock)

        unit.stored.decode(number, part, (first, count), place, scaled, asks)

    emit.loop(integer(UNIT_ROWS), row)
    multiply(unit, index, part, first, count)


def _store_block(unit: Unit, number: Any) -> None:
    """Store the outputs of a block of tokens."""
    for tile in range(TILES):
        _store(unit, number, tile)


def _store(unit: Unit, number: Any, tile: int) -> None:
    """Add the groups as a tree and write the outputs, a token's rows side by side."""
    emit, builder = unit.emit, unit.builder
    block = emit.at(unit.sum_memory, number, unit.groups * GROUP_BYTES)
    rows = []
    for row in range(16):
        at = TILE_BYTES * tile + 64 * row
        sums = [
            emit.load(emit.offset(block, GROUP_BYTES * group + at), F32X16, 64)
            for group in _in_lane_order(unit)
        ]
        while len(sums) > 1:
            half = len(sums) // 2
            sums = [builder.fadd(sums[i], sums[half + i]) for i in range(half)]
        keep = builder.icmp_unsigned("==", unit.rounds, integer(0))
        rows.append(builder.select(keep, sums[0], emit.round_to_bf16(sums[0])))
    for row, turned in enumerate(emit.transposed(rows)):
        emit.store(emit.offset(unit.turned, 64 * row), turned, 64)
    token = builder.mul(number, integer(BLOCK_TOKENS))
    left = builder.sub(unit.n_tokens, token)
    few = builder.icmp_unsigned("<", left, integer(BLOCK_TOKENS))
    count = builder.select(few, left, integer(BLOCK_TOKENS))
    first = integer(16 * tile)
    more = builder.icmp_unsigned(">", unit.n_rows, first)
    n_rows = builder.select(more, builder.sub(unit.n_rows, first), integer(0))
    whole = builder.icmp_unsigned(">=", n_rows, integer(16))
    n_bytes = builder.mul(n_rows, integer(4))

    def output(index: Any) -> None:
        at = builder.mul(builder.add(token, index), unit.output_stride)
        target = emit.offset(builder.add(unit.outputs, at), 64 * tile)
        source = emit.at(unit.turned, index, 64)
        with builder.if_else(whole) as (then, otherwise):
            with then:
                emit.store(target, emit.load(source, F32X16, 64))
            with otherwise:
                emit.copy_bytes(target, source, n_bytes)

    emit.loop(count, output)


def _in_lane_order(unit: Unit) -> list[int]:
    """Return the groups in the order of the lanes that row_dot.py has for them."""
    if unit.n_halves == 1:
        return list(range(unit.groups))
    return list(unit.walk.scale_lanes)


def amx_tile(walk: Walk) -> Any:
    """Make the intrinsic that multiplies up to `UNIT_ROWS` rows with `UNIT_TOKENS` packed tokens.

    It takes int64 arguments: the addresses and strides of weights and of scales, the numbers
    of rows, columns and scales in a row, the address of the packed activations, the number of
    tokens, the address and stride of the float32 outputs, 1 to round them to BF16, and the
    address of as many weights to ask for meanwhile.
    """

    # numba reads the parameters off the function, so they are spelled out
    def tile(
        typing: Any,
        w: Any,
        ws: Any,
        s: Any,
        ss: Any,
        n: Any,
        k: Any,
        ks: Any,
        x: Any,
        m: Any,
        y: Any,
        ys: Any,
        r: Any,
        a: Any,
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            _generate(Unit(Emitter(builder), walk, args))
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), code

    return intrinsic(tile)
