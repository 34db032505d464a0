"""Sums inside the matrix unit, of weights that have their scales already.

Four tiles of sums are added to at a time, so that none waits for the one before.

Knows nothing of how weights are decoded.
"""

from collections.abc import Sequence
from typing import Any

from llvmlite import ir

from localv4.kernels.amx_rows import TILE_BYTES
from localv4.kernels.amx_unit import TILES, TOKENS, WEIGHTS, Unit
from localv4.kernels.row_dot import integer

__all__ = ["add_folded"]


def add_folded(unit: Unit, index: Any, part: Any, first: Any, count: Any) -> None:
    """Multiply decoded weights, their scales included, with all tokens."""
    emit, builder = unit.emit, unit.builder
    two = integer(2)

    def weights_of(tile: Any) -> list[Any]:
        return [unit.weights(emit.offset(tile, i)) for i in range(TILES)]

    def group(number: Any) -> None:
        here = emit.at(number, part, unit.at_once)
        tile = builder.mul(number, integer(TILES))
        asks_at = emit.at(tile, index, unit.at_once * TILES)

        def pair(block: Any) -> None:
            blocks = [builder.mul(block, two), emit.offset(builder.mul(block, two), 1)]
            _accumulate(
                unit,
                [weights_of(tile)],
                [unit.inputs(b, here, first) for b in blocks],
                [unit.sums(b, here, i) for b in blocks for i in range(TILES)],
                (first, count),
                (asks_at, builder.icmp_unsigned("==", block, integer(0))),
            )

        emit.loop(builder.udiv(unit.n_blocks, two), pair)

    emit.loop(integer(unit.at_once), group)

    def groups_of_the_last(number: Any) -> None:
        """Two groups instead of two blocks: as many sums that do not wait for each other."""
        block = builder.sub(unit.n_blocks, integer(1))
        here = emit.at(builder.mul(number, two), part, unit.at_once)
        tile = builder.mul(number, integer(2 * TILES))
        both = [here, emit.offset(here, 1)]
        _accumulate(
            unit,
            [weights_of(tile), weights_of(emit.offset(tile, TILES))],
            [unit.inputs(block, g, first) for g in both],
            [unit.sums(block, g, i) for g in both for i in range(TILES)],
            (first, count),
            (
                emit.at(tile, index, unit.at_once * TILES),
                builder.icmp_unsigned("==", block, integer(0)),
            ),
        )

    with builder.if_then(builder.trunc(unit.n_blocks, ir.IntType(1))):
        emit.loop(integer(unit.at_once // 2), groups_of_the_last)


def _accumulate(
    unit: Unit,
    weights: Sequence[Sequence[Any]],
    inputs: Sequence[Any],
    sums: Sequence[Any],
    superblocks: tuple[Any, Any],
    asks: tuple[Any, Any],
) -> None:
    """Add some superblocks to four tiles of sums.

    Parameters
    ----------
    weights
        The tiles for both inputs, or for each of them.
    inputs
        Two of them, each for `TILES` of the sums.
    superblocks
        The first one and how many.
    asks
        The tile whose weights are asked for meanwhile, and whether they are.
    """
    emit, builder = unit.emit, unit.builder
    first, count = superblocks
    is_first = builder.icmp_unsigned("==", first, integer(0))
    for number, address in enumerate(sums):
        unit.load_tile(number, builder.select(is_first, unit.zeros, address))
    shared = len(weights) == 1

    def load_weights(number: Any, stream: int) -> None:
        for register, address in zip(WEIGHTS, weights[stream], strict=True):
            unit.load_tile(register, emit.at(address, number, TILE_BYTES))

    def multiply(number: Any, stream: int, half: int) -> None:
        place = emit.at(inputs[stream], number, unit.group_bytes)
        unit.load_tile(TOKENS[stream], emit.offset(place, TILE_BYTES * half))
        for tile, register in enumerate(WEIGHTS):
            unit.tile("tdpbf16ps", TILES * stream + tile, register, TOKENS[stream])

    def superblock(number: Any) -> None:
        if shared:
            load_weights(number, 0)
            for half in range(unit.n_halves):
                for stream in range(2):
                    multiply(number, stream, half)
        else:
            for stream in range(2):
                load_weights(number, stream)
                for half in range(unit.n_halves):
                    multiply(number, stream, half)
        with builder.if_then(asks[1]):
            unit.ask(asks[0], number, len(weights) * TILES)

    emit.loop(count, superblock)
    for number, address in enumerate(sums):
        unit.store_tile(number, address)
