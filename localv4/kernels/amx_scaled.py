"""Products of the matrix unit that are scaled and added one by one, outside of it.

For weights without scales, and for scales and activations that amx_folded.py cannot take.

Knows nothing of how weights are decoded.
"""

from functools import partial
from typing import Any

from numba.core import cgutils

from localv4.kernels.amx_rows import TILE_BYTES, TILE_ROWS
from localv4.kernels.amx_unit import LARGEST_SCALE, TILES, TOKENS, WEIGHTS, Unit
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32, F32X16

__all__ = ["add_one_by_one"]


def add_one_by_one(unit: Unit, index: Any, part: Any, first: Any, count: Any) -> None:
    """Multiply decoded weights with all tokens, and scale each product by itself."""
    emit, builder, stored = unit.emit, unit.builder, unit.stored
    is_first = builder.icmp_unsigned("==", first, integer(0))

    def add(number: Any, block: Any, tile: int) -> None:
        """Add the superblocks of a tile of a group to the sums of a block of tokens."""
        group = emit.at(number, part, unit.at_once)
        place = emit.at(integer(tile), number, TILES)
        weights, inputs = unit.weights(place), unit.inputs(block, group, first)
        factors = emit.offset(stored.factor(first, group), TILE_ROWS * tile * stored.factor_row)
        asks = builder.icmp_unsigned("==", block, integer(0))
        sums = unit.sums(block, group, tile)
        before = builder.select(is_first, unit.zeros, sums)
        slots = [cgutils.alloca_once(builder, F32X16) for _ in range(TILE_ROWS)]
        for row, slot in enumerate(slots):
            builder.store(emit.load(emit.offset(before, 64 * row), F32X16, 64), slot)

        def superblock(at: Any) -> None:
            tokens = emit.at(inputs, at, unit.group_bytes)
            _multiply(unit, emit.at(weights, at, TILE_BYTES), tokens)
            with builder.if_then(asks):
                unit.ask(emit.at(place, index, unit.at_once * TILES), at, 1)
            _add(unit, slots, emit.at(factors, at, stored.factor_bytes), tokens)

        emit.loop(count, superblock)
        for row, slot in enumerate(slots):
            emit.store(emit.offset(sums, 64 * row), builder.load(slot), 64)

    def block(number: Any, at: Any) -> None:
        for tile in range(TILES):
            add(number, at, tile)

    emit.loop(integer(unit.at_once), lambda group: emit.loop(unit.n_blocks, partial(block, group)))


def _multiply(unit: Unit, weights: Any, tokens: Any) -> None:
    """Multiply a group's tile with a block of tokens; the products go to memory."""
    unit.load_tile(WEIGHTS[0], weights)
    for half in range(unit.n_halves):
        unit.load_tile(TOKENS[half], unit.emit.offset(tokens, TILE_BYTES * half))
        unit.tile("tilezero", half)
        unit.tile("tdpbf16ps", half, WEIGHTS[0], TOKENS[half])
        unit.store_tile(half, unit.emit.offset(unit.products, TILE_BYTES * half))


def _add(unit: Unit, slots: list[Any], factors: Any, tokens: Any) -> None:
    """Add the products, scaled, to sums in registers."""
    emit, builder = unit.emit, unit.builder
    own = inverse = None
    if unit.n_halves == 2:
        # take off what packed activations were multiplied with: row_dot.py multiplies both
        # scales first
        own = emit.load(emit.offset(tokens, 2 * TILE_BYTES), F32X16, 64)
        most = emit.splat_constant(F32, LARGEST_SCALE)
        packed = builder.select(builder.fcmp_ordered("<", own, most), own, most)
        inverse = builder.fdiv(emit.splat_constant(F32, 1.0), packed)
    for row, slot in enumerate(slots):
        total = builder.load(slot)
        factor = emit.splat(emit.load(emit.offset(factors, unit.stored.factor_row * row), F32, 4))
        if own is not None:
            factor = builder.fmul(factor, own)
        for half in range(unit.n_halves):
            place = emit.offset(unit.products, TILE_BYTES * half + 64 * row)
            value = emit.load(place, F32X16, 64)
            if not unit.walk.n_scales:
                total = builder.fadd(value, total)
                continue
            if inverse is not None:
                value = builder.fmul(value, inverse)
            total = emit.fma(value, factor, total)
        builder.store(total, slot)
