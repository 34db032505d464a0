"""What all ways to score index keys share: units of keys, tokens, and what follows the products.

Emits code; knows nothing of how products are made.
"""

from functools import partial
from typing import Any

from localv4.kernels import tiers
from localv4.kernels.index_keys import (
    BLOCKS,
    BYTE_REGISTERS,
    group_rows,
    key_bytes_of_group,
    key_scales_of_group,
    store_group,
)
from localv4.kernels.index_queries import ROWS, QueryLayout
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32, F32X16, I32, LANES, Emitter, vector

__all__ = ["RATIO", "Scoring"]

RATIO = 4
"""Tokens of a key."""


class Scoring:
    """Emits the scores of keys for some tokens; a subclass multiplies."""

    groups = 2
    """Of sixteen keys that are unpacked together."""

    registers = BYTE_REGISTERS

    def __init__(self, emit: Emitter, args: list[Any]) -> None:
        self.emit, self.builder = emit, emit.builder
        (
            self.queries,
            self.query_bytes,
            self.n_tokens,
            self.n_heads,
            self.keys,
            self.key_bytes,
            self.position,
            self.first,
            self.last,
            self.scores,
            self.score_bytes,
        ) = args
        self.n_rows = self.builder.and_(
            self.builder.add(self.n_heads, integer(ROWS - 1)), integer(-ROWS)
        )
        self.n_blocks = self.builder.udiv(self.key_bytes, integer(17))
        self.unpacked = emit.memory(64 * BLOCKS * self.groups * self.registers, 64)
        self.scales = emit.memory(64 * BLOCKS * self.groups, 64)
        self.sums = emit.accumulators(self.groups)
        self.rest = emit.memory(64 * self.groups, 64)

    def generate(self) -> None:
        """Emit everything."""
        builder, size = self.builder, LANES * self.groups
        count = builder.sub(self.last, self.first)
        n_units = builder.sdiv(builder.add(count, integer(size - 1)), integer(size))

        def unit(number: Any) -> None:
            first = builder.add(self.first, builder.mul(number, integer(size)))
            for group in range(self.groups):
                self._unpack(builder.add(first, integer(LANES * group)), group)
            self.emit.loop(self.n_tokens, partial(self._token, first))

        self.emit.loop(n_units, unit)

    def multiply(self, query: Any) -> None:
        """Add up all heads of a token's query for the unit's keys in `sums`."""
        raise NotImplementedError

    def unpack(self, emit: Emitter, rows: list[Any], block: int) -> list[Any]:
        """Return the registers of a block of sixteen keys whose scales are stored."""
        return key_bytes_of_group(emit, rows, block)

    def compare_scales(self, group: int) -> None:
        """Do what the scales of sixteen keys call for before their blocks are unpacked."""

    def prepare(self, group: int) -> None:
        """Do what else sixteen keys need once they are unpacked."""

    def key_register(self, block: int, group: int, number: int) -> Any:
        """Return where a register of unpacked keys lies; those of a block and group together."""
        place = (block * self.groups + group) * self.registers + number
        return self.emit.offset(self.unpacked, 64 * place)

    def key_scale(self, block: int, group: int) -> Any:
        """Load the scales of a block of sixteen keys."""
        return self.emit.load(self.scale_place(block, group), F32X16, 64)

    def fused(self, left: Any, right: Any, addend: Any) -> Any:
        """Add an exact product, in one step where the CPU can."""
        if tiers.active() != "generic":
            return self.emit.fma(left, right, addend)
        return self.builder.fadd(self.builder.fmul(left, right), addend)

    def add_head(self, group: int, product: Any, weight: Any) -> None:
        """Round, cut off below zero, weigh, round and add to the sums."""
        builder, slot = self.builder, self.sums[group]
        zero = self.emit.splat_constant(F32, 0.0)
        # a NaN passes
        product = builder.select(builder.fcmp_ordered(">", zero, product), zero, product)
        weighted = builder.fmul(self._rounded(product), weight)
        builder.store(builder.fadd(builder.load(slot), self._rounded(weighted)), slot)

    def weight(self, query: Any, row: Any) -> Any:
        """Load a head's weight into all lanes."""
        place = self._section(query, QueryLayout.weights)
        return self.splat(self.emit.at(place, row, 4))

    def splat(self, address: Any, kind: Any = F32) -> Any:
        """Load a number into all lanes."""
        return self.emit.splat(self.emit.load(address, kind))

    def _section(self, query: Any, bytes_before: int) -> Any:
        """Return where a part of a packed query begins."""
        return self.emit.at(query, self.n_rows, bytes_before)

    def _rounded(self, value: Any) -> Any:
        """Round to BF16, ties to even.

        Added to 2**16 times its own power of two, a number keeps seven binary places.
        """
        builder = self.builder
        bits = builder.bitcast(value, vector(I32))
        power = builder.and_(bits, self.emit.splat_constant(I32, -(1 << 23)))
        power = builder.bitcast(power, F32X16)
        up, down = (self.emit.splat_constant(F32, sign * 65536.0) for sign in (1, -1))
        return self.fused(power, down, self.fused(power, up, value))

    def scale_place(self, block: int, group: int) -> Any:
        """Return where the scales of a block of sixteen keys lie."""
        return self.emit.offset(self.scales, 64 * (block * self.groups + group))

    def _unpack(self, first: Any, group: int) -> None:
        rows = group_rows(self.emit, self.keys, self.key_bytes, first, self.last)
        room = self.scale_place(0, group)
        for block, scales in enumerate(key_scales_of_group(self.emit, rows, self.n_blocks, room)):
            self.emit.store(self.scale_place(block, group), scales, 64)
        self.compare_scales(group)
        store_group(
            self.emit,
            rows,
            self.n_blocks,
            self.unpack,
            self.registers,
            lambda block, number: self.key_register(block, group, number),
        )
        self.prepare(group)

    def _token(self, first: Any, token: Any) -> None:
        """Score the unit's keys that a token sees."""
        builder, emit, size = self.builder, self.emit, LANES * self.groups
        position = builder.add(builder.add(self.position, token), integer(1))
        seen = builder.sdiv(position, integer(RATIO))
        seen = builder.select(builder.icmp_signed("<", seen, self.last), seen, self.last)
        count = builder.sub(seen, first)
        with builder.if_then(builder.icmp_signed(">", count, integer(0))):
            for slot in self.sums:
                builder.store(emit.splat_constant(F32, 0.0), slot)
            self.multiply(builder.add(self.queries, builder.mul(token, self.query_bytes)))
            target = builder.add(self.scores, builder.mul(token, self.score_bytes))
            target = emit.at(target, first, 4)
            totals = [self._rounded(builder.load(slot)) for slot in self.sums]
            whole = builder.icmp_signed(">=", count, integer(size))
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    for group, total in enumerate(totals):
                        emit.store(emit.offset(target, 64 * group), total)
                with otherwise:
                    for group, total in enumerate(totals):
                        emit.store(emit.offset(self.rest, 64 * group), total, 64)
                    emit.copy_bytes(target, self.rest, builder.mul(count, integer(4)))
