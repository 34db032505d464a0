"""Index scores by products of bytes: unsigned ones of keys times signed ones of queries.

Emits code for every instruction set; what surrounds the products is index_scoring.py's.
"""

from typing import Any

from localv4.kernels.index_keys import BLOCKS, BYTE_REGISTERS
from localv4.kernels.index_queries import MAGIC, QueryLayout
from localv4.kernels.index_scoring import Scoring
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32, F32X16, I8, I16, I32, Emitter, vector

__all__ = ["AnyPairs", "Bytes", "HalfPairs", "Pairs"]


class Bytes(Scoring):
    """Products of bytes, four a lane and instruction (VNNI).

    Sums begin at the bits of a float32 in whose last places they count, so that one fused step
    takes off that number and scales by the key's scale.
    """

    groups, heads = 3, 4  # sums for all of which there are registers

    def __init__(self, emit: Emitter, args: list[Any]) -> None:
        super().__init__(emit, args)
        self.magic = emit.memory(64 * BLOCKS * self.groups, 64)  # times minus the scales

    def prepare(self, group: int) -> None:
        """Note the number to be taken off, scaled."""
        for block in range(BLOCKS):
            scale = self.key_scale(block, group)
            magic = self.emit.splat_constant(F32, -MAGIC)
            self.emit.store(self._magic_place(block, group), self.builder.fmul(scale, magic), 64)

    def _magic_place(self, block: int, group: int) -> Any:
        return self.emit.offset(self.magic, 64 * (block * self.groups + group))

    def multiply(self, query: Any) -> None:
        """Add up all heads, four at a time."""
        builder, heads = self.builder, self.heads
        codes = query
        offsets = self._section(query, QueryLayout.offsets)
        factors = self._section(query, QueryLayout.factors)
        pairs = [(h, g) for h in range(heads) for g in range(self.groups)]

        def tile(number: Any) -> None:
            row = builder.mul(number, integer(heads))
            products: dict[tuple[int, int], Any] = {}
            for block in range(BLOCKS):
                place = self.emit.at(codes, row, 32 * BLOCKS)
                place = self.emit.offset(place, 32 * block)
                sums = self._block(place, block, self.emit.at(offsets, row, 4 * BLOCKS))
                for h, g in pairs:
                    factor = self.emit.at(factors, row, 4 * BLOCKS)
                    factor = self.splat(self.emit.offset(factor, 4 * (BLOCKS * h + block)))
                    value = builder.bitcast(sums[h, g], F32X16)
                    magic = self.emit.load(self._magic_place(block, g), F32X16, 64)
                    value = self.without_magic(value, self.key_scale(block, g), magic)
                    products[h, g] = (
                        self.fused(value, factor, products[h, g])
                        if block
                        else builder.fmul(value, factor)
                    )
            for h, g in pairs:
                weight = self.weight(query, builder.add(row, integer(h)))
                self.add_head(g, products[h, g], weight)

        self.emit.loop(builder.udiv(self.n_rows, integer(heads)), tile)

    def _block(self, codes: Any, block: int, offsets: Any) -> dict[tuple[int, int], Any]:
        """Return the sums of a block for some heads and all groups, int32."""
        emit = self.emit
        before = [
            self.splat(emit.offset(offsets, 4 * (BLOCKS * h + block)), I32)
            for h in range(self.heads)
        ]
        sums = {
            (h, g): self.begin(before[h]) for h in range(self.heads) for g in range(self.groups)
        }
        for number in range(BYTE_REGISTERS):
            keys = [
                emit.load(self.key_register(block, g, number), vector(I8, 64), 64)
                for g in range(self.groups)
            ]
            for h in range(self.heads):
                query = self.splat(emit.offset(codes, 32 * BLOCKS * h + 4 * number), I32)
                for g in range(self.groups):
                    sums[h, g] = self.step(sums[h, g], keys[g], query)
        return {(h, g): self.finish(value, before[h]) for (h, g), value in sums.items()}

    def without_magic(self, value: Any, scale: Any, magic: Any) -> Any:
        """Return the scaled sum."""
        return self.emit.fma(value, scale, magic)

    def begin(self, offset: Any) -> Any:
        """Return the state of a sum before the first step."""
        return offset

    def step(self, sums: Any, keys: Any, query: Any) -> Any:
        """Add the products of four columns."""
        kind = vector(I32)
        words = self.builder.bitcast(keys, kind)
        return self.emit.call("llvm.x86.avx512.vpdpbusd.512", kind, sums, words, query)

    def finish(self, sums: Any, offset: Any) -> Any:
        """Return the sum, int32."""
        return sums


class Pairs(Bytes):
    """The same without VNNI: sums of pairs in 16 bits."""

    def begin(self, offset: Any) -> Any:
        """Leave the offset for later."""
        return None

    def step(self, sums: Any, keys: Any, query: Any) -> Any:
        """Add the products of four columns, pairs of them."""
        products = self.pairs(keys, self.builder.bitcast(query, vector(I8, 64)))
        return products if sums is None else self.builder.add(sums, products)

    def pairs(self, keys: Any, query: Any) -> Any:
        """Multiply 64 unsigned with 64 signed bytes and add neighbours."""
        return self.emit.call("llvm.x86.avx512.pmaddubs.w.512", vector(I16, 32), keys, query)

    def finish(self, sums: Any, offset: Any) -> Any:
        """Add the pairs and the offset."""
        builder, sixteen = self.builder, self.emit.splat_constant(I32, 16)
        words = builder.bitcast(sums, vector(I32))
        low = builder.ashr(builder.shl(words, sixteen), sixteen)
        return builder.add(builder.add(low, builder.ashr(words, sixteen)), offset)


class HalfPairs(Pairs):
    """The same with registers of 256 bits."""

    groups = 1

    def pairs(self, keys: Any, query: Any) -> Any:
        """Multiply a half at a time."""
        parts = zip(self.emit.halves(keys), self.emit.halves(query), strict=True)
        name, kind = "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16)
        return self.emit.join(*(self.emit.call(name, kind, *part) for part in parts))


class AnyPairs(HalfPairs):
    """The same on any CPU."""

    def without_magic(self, value: Any, scale: Any, magic: Any) -> Any:
        """Do the same in two steps."""
        value = self.builder.fsub(value, self.emit.splat_constant(F32, MAGIC))
        return self.builder.fmul(value, scale)

    def pairs(self, keys: Any, query: Any) -> Any:
        """Multiply even and odd bytes apart."""
        builder, kind = self.builder, vector(I16, 32)
        eight = self.emit.splat_constant(I16, 8, 32)
        keys, query = builder.bitcast(keys, kind), builder.bitcast(query, kind)
        low = builder.and_(keys, self.emit.splat_constant(I16, 255, 32))
        query_low = builder.ashr(builder.shl(query, eight), eight)
        high = builder.mul(builder.lshr(keys, eight), builder.ashr(query, eight))
        return builder.add(builder.mul(low, query_low), high)
