"""Index scores in the CPU's matrix unit: a block of sixteen heads and keys is one operation.

The operation sums the products of its 32 columns from zero, which is exact, and then adds the sum
to the tile, rounded once: four operations on one tile add four blocks in order.  Keys are
multiplied with their scales before.  Where BF16 might not hold that, or a scale is missing, every
block has a tile, and what follows multiplies.

Emits code; what surrounds the products is index_scoring.py's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba.core.cgutils import alloca_once

from localv4.kernels.index_keys import BLOCKS, PAIR_REGISTERS, key_pairs_of_group
from localv4.kernels.index_queries import TILE_ROWS as _HEADS
from localv4.kernels.index_scoring import Scoring
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32X16, I8, I16, I32, Emitter, vector

__all__ = ["Tiles"]

_TILE = _HEADS * 64
_SUMS, _QUERIES, _KEYS = (0, 1), (2, 3), (4, 5, 6, 7)  # tiles; a key tile for each block
_LOWEST, _ONE, _HIGHEST = ((127 + power) << 23 for power in (-30, 0, 30))  # scales of keys
_LAST = BLOCKS - len(_SUMS)


class Tiles(Scoring):
    """Products in the matrix unit; while it multiplies sixteen heads, those before are summed."""

    groups = 1  # all of whose blocks stay in tiles
    registers = PAIR_REGISTERS

    def __init__(self, emit: Emitter, args: list[Any]) -> None:
        super().__init__(emit, args)
        self.product_bytes = _TILE * BLOCKS * self.groups
        self.products = emit.memory(3 * self.product_bytes, 64)
        self.powers = emit.memory(64 * BLOCKS, 64)
        self.near = alloca_once(self.builder, ir.IntType(1))

    def generate(self) -> None:
        """Emit everything, between taking and releasing the unit."""
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        memory = self.emit.memory(64, 64)
        self.emit.store(memory, self.emit.constant(I8, values), 64)
        self._tile("ldtilecfg", self._pointer(memory))
        super().generate()
        self.emit.call("llvm.x86.tilerelease", ir.VoidType())

    def unpack(self, emit: Emitter, rows: list[Any], block: int) -> list[Any]:
        """Return the pairs of a block, times the scales if these are near one."""
        powers = emit.load(emit.offset(self.powers, 64 * block), vector(I16, 32), 64)
        return key_pairs_of_group(emit, rows, block, powers)

    def compare_scales(self, group: int) -> None:
        """Move the scales of sixteen keys to their pairs, if no scale is far from one."""
        emit, builder = self.emit, self.builder

        def constant(value: int) -> Any:
            return emit.splat_constant(I32, value)

        scales = [
            builder.bitcast(self.key_scale(block, group), vector(I32)) for block in range(BLOCKS)
        ]
        far = emit.splat_constant(ir.IntType(1), 0)
        for block, scale in enumerate(scales):
            there = builder.icmp_signed(">", self.n_blocks, integer(block))
            beyond = builder.icmp_unsigned(
                ">", builder.sub(scale, constant(_LOWEST)), constant(_HIGHEST - _LOWEST)
            )
            far = builder.or_(far, builder.and_(beyond, emit.splat(there)))
        near = builder.icmp_unsigned("==", builder.bitcast(far, I16), ir.Constant(I16, 0))
        builder.store(near, self.near)
        for block, scale in enumerate(scales):
            # a BF16 number's exponent begins at bit 7, and there are two numbers in a lane
            power = builder.sub(builder.lshr(scale, constant(23)), constant(127))
            power = builder.and_(builder.shl(power, constant(7)), constant(0xFFFF))
            power = builder.or_(power, builder.shl(power, constant(16)))
            power = builder.select(near, power, constant(0))
            emit.store(emit.offset(self.powers, 64 * block), power, 64)
            scale = builder.select(near, constant(_ONE), scale)
            emit.store(self.scale_place(block, group), scale, 64)

    def multiply(self, query: Any) -> None:
        """Add up all heads, sixteen at a time."""
        self.query = query
        for block, number in enumerate(_KEYS):
            self._load(number, self.key_register(block, 0, 0), 64)
        with self.builder.if_else(self.builder.load(self.near)) as (then, otherwise):
            with then:
                self._pairs_of_tiles(query)
            with otherwise:
                self._blocks_in_order(query)

    def _pairs_of_tiles(self, query: Any) -> None:
        """Add blocks up in tiles, two tiles of heads at a time that need not wait."""
        builder = self.builder
        self._two_tiles(query, integer(0), lambda _: None)

        def pair(number: Any) -> None:
            after = builder.add(number, integer(1))
            self._two_tiles(query, after, partial(self._few_heads, query, number))

        last = builder.sub(builder.udiv(self.n_rows, integer(2 * _HEADS)), integer(1))
        self.emit.loop(last, pair)
        for part in range(2 * BLOCKS):
            self._few_heads(query, last, part)

    def _two_tiles(self, query: Any, pair: Any, then: Callable[[int], None]) -> None:
        """Multiply 32 heads; after each operation do a part of something else."""
        tiles = self.emit.at(query, pair, 2 * BLOCKS * _TILE)
        for total in _SUMS:
            self._tile("tilezero", total)
        for block in range(BLOCKS):
            for half, (total, queries) in enumerate(zip(_SUMS, _QUERIES, strict=True)):
                place = self.emit.offset(tiles, _TILE * (BLOCKS * half + block))
                self._load(queries, place, 64)
                self._tile("tdpbf16ps", total, queries, _KEYS[block])
                then(2 * block + half)
        for half, total in enumerate(_SUMS):
            where = self._pointer(self._place(pair, _LAST + half))
            self._tile("tilestored64", total, where, integer(64))

    def _few_heads(self, query: Any, pair: Any, part: int) -> None:
        """Add an eighth of 32 heads to the sums."""
        builder, count = self.builder, 2 * _HEADS // (2 * BLOCKS)
        first = builder.mul(pair, integer(2 * _HEADS))
        for row in range(count * part, count * (part + 1)):
            place = self.emit.offset(self._place(pair, _LAST), 64 * row)
            product = self.emit.load(place, F32X16, 64)
            self.add_head(0, product, self.weight(query, builder.add(first, integer(row))))

    def _blocks_in_order(self, query: Any) -> None:
        """Store every block's sums; while these are made, those of the heads before are added."""
        builder = self.builder
        self._tiles(query, integer(0), lambda _: None)

        def tile(number: Any) -> None:
            self._tiles(query, builder.add(number, integer(1)), partial(self._heads, query, number))

        last = builder.sub(builder.udiv(self.n_rows, integer(_HEADS)), integer(1))
        self.emit.loop(last, tile)
        for part in range(BLOCKS):
            self._heads(query, last, part)

    def _place(self, tile: Any, block: int) -> Any:
        """Return where the products of sixteen heads lie; there is room for two such."""
        odd = self.builder.and_(tile, integer(1))
        # loads wait for stores that are a multiple of 4096 bytes away: these lie where the last
        # blocks of queries do
        ahead = self.builder.and_(self.builder.sub(self.query, self.products), integer(4095 & -64))
        start = self.emit.at(self.builder.add(self.products, ahead), odd, self.product_bytes)
        return self.emit.offset(start, _TILE * block)

    def _tiles(self, query: Any, tile: Any, then: Callable[[int], None]) -> None:
        """Multiply sixteen heads; after each block do a part of something else."""
        tiles = self.emit.at(query, tile, BLOCKS * _TILE)
        for block in range(BLOCKS):
            total = _SUMS[block % len(_SUMS)]
            queries = _QUERIES[block % len(_QUERIES)]
            self._load(queries, self.emit.offset(tiles, _TILE * block), 64)
            self._tile("tilezero", total)
            self._tile("tdpbf16ps", total, queries, _KEYS[block])
            then(block)
            where = self._pointer(self._place(tile, block))
            self._tile("tilestored64", total, where, integer(64))

    def _heads(self, query: Any, tile: Any, part: int) -> None:
        """Add a part of sixteen heads to the sums."""
        builder = self.builder
        for i in range(_HEADS // BLOCKS):
            row = _HEADS // BLOCKS * part + i
            head = builder.add(builder.mul(tile, integer(_HEADS)), integer(row))
            product = None
            for block in range(BLOCKS):
                place = self.emit.offset(self._place(tile, block), 64 * row)
                value, scale = self.emit.load(place, F32X16, 64), self.key_scale(block, 0)
                product = self.fused(value, scale, product) if block else builder.fmul(value, scale)
            self.add_head(0, product, self.weight(query, head))

    def _tile(self, name: str, *arguments: Any) -> None:
        numbers = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
        self.emit.call(f"llvm.x86.{name}", ir.VoidType(), *numbers)

    def _load(self, number: int, address: Any, stride: int) -> None:
        self._tile("tileloadd64", number, self._pointer(address), integer(stride))

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, I8.as_pointer())
