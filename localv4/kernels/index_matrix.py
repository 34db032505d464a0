"""Index scores in the CPU's matrix unit: a block of sixteen heads and keys is one operation.

Emits code; what surrounds the products is index_scoring.py's.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir

from localv4.kernels.index_keys import BLOCKS, PAIR_REGISTERS, key_pairs_of_group
from localv4.kernels.index_queries import ROWS
from localv4.kernels.index_scoring import Scoring
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32X16, I8, Emitter

__all__ = ["Tiles"]

_TILE = 16 * 64
_SUMS, _QUERIES, _KEYS = (0, 1, 2), 3, (4, 5, 6, 7)  # tiles; a key tile for each block


class Tiles(Scoring):
    """Products in the matrix unit; while it multiplies sixteen heads, those before are summed."""

    groups = 1  # all of whose blocks stay in tiles
    registers = PAIR_REGISTERS
    unpack = staticmethod(key_pairs_of_group)

    def __init__(self, emit: Emitter, args: list[Any]) -> None:
        super().__init__(emit, args)
        self.product_bytes = _TILE * BLOCKS * self.groups
        self.products = emit.memory(2 * self.product_bytes, 64)

    def generate(self) -> None:
        """Emit everything, between taking and releasing the unit."""
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        memory = self.emit.memory(64, 64)
        self.emit.store(memory, self.emit.constant(I8, values), 64)
        self._tile("ldtilecfg", self._pointer(memory))
        super().generate()
        self.emit.call("llvm.x86.tilerelease", ir.VoidType())

    def multiply(self, query: Any) -> None:
        """Add up all heads, sixteen at a time."""
        builder = self.builder
        n_tiles = builder.udiv(self.n_rows, integer(ROWS))
        for block, number in enumerate(_KEYS):
            self._load(number, self.key_register(block, 0, 0), 64)
        self._tiles(query, integer(0), lambda _: None)

        def tile(number: Any) -> None:
            self._tiles(query, builder.add(number, integer(1)), partial(self._heads, query, number))

        last = builder.sub(n_tiles, integer(1))
        self.emit.loop(last, tile)
        for part in range(BLOCKS):
            self._heads(query, last, part)

    def _place(self, tile: Any, block: int) -> Any:
        """Return where the products of sixteen heads lie; there is room for two such."""
        odd = self.builder.and_(tile, integer(1))
        start = self.emit.at(self.products, odd, self.product_bytes)
        return self.emit.offset(start, _TILE * block)

    def _tiles(self, query: Any, tile: Any, then: Callable[[int], None]) -> None:
        """Multiply sixteen heads; after each block do a part of something else."""
        row_bytes = 64 * BLOCKS
        rows = self.emit.at(query, tile, ROWS * row_bytes)
        for block in range(BLOCKS):
            total = _SUMS[block % len(_SUMS)]
            self._load(_QUERIES, self.emit.offset(rows, 64 * block), row_bytes)
            self._tile("tilezero", total)
            self._tile("tdpbf16ps", total, _QUERIES, _KEYS[block])
            then(block)
            where = self._pointer(self._place(tile, block))
            self._tile("tilestored64", total, where, integer(64))

    def _heads(self, query: Any, tile: Any, part: int) -> None:
        """Add a part of sixteen heads to the sums."""
        builder = self.builder
        for i in range(ROWS // BLOCKS):
            row = ROWS // BLOCKS * part + i
            head = builder.add(builder.mul(tile, integer(ROWS)), integer(row))
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
