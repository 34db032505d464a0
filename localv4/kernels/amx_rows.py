"""Stored rows of weights as tiles of the matrix unit: 16 rows by 32 columns of BF16.

Where all scales of a unit's rows are powers of two of usual size, weights are multiplied with them
when they are decoded, by a subtraction from their exponents, and products need no scale afterwards.
`Rows.gather` says whether that is so; it changes no byte of the sums.

Knows nothing of activations or of how tiles are multiplied.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32X16, I8, I16, I32, I64, Emitter, vector
from localv4.kernels.walk import Walk

__all__ = ["TILE_BYTES", "TILE_ROWS", "UNIT_ROWS", "Rows", "groups"]

TILE_ROWS = 16
TILE_BYTES = TILE_ROWS * 64
UNIT_ROWS = 32
_GROUP_COLUMNS = 32
_ROW_SCALES = 16  # of an FP4 superblock, one for each group
# Fields of the exponents of usual scales: 2**-60 to 1.  With these no product of activations that
# packing.py calls usual is so small that the matrix unit takes it for zero.
_SMALLEST, _LARGEST = 127 - 60, 127


def groups(walk: Walk) -> int:
    """Return into how many blocks of 32 columns a superblock is divided."""
    return walk.n_columns // _GROUP_COLUMNS


class Rows:
    """Emits code for up to `UNIT_ROWS` rows; those that are not there are the last one again."""

    def __init__(
        self,
        emit: Emitter,
        walk: Walk,
        weights: tuple[Any, Any],
        scales: tuple[Any, Any],
        n_rows: Any,
        n_columns: Any,
        n_scales: Any,
    ) -> None:
        self.emit, self.walk, self.builder = emit, walk, emit.builder
        self.weights, self.weight_stride = weights
        self.scales, self.scale_stride = scales
        self.n_rows, self.n_scales = n_rows, n_scales
        self.groups = groups(walk)
        builder, per_block = emit.builder, integer(walk.n_columns)
        self.n_full = builder.udiv(n_columns, per_block)
        self.rest = builder.urem(n_columns, per_block)
        self.has_rest = builder.icmp_unsigned("!=", self.rest, integer(0))
        self.n_superblocks = builder.add(self.n_full, builder.zext(self.has_rest, I64))
        self.addresses = emit.memory(8 * UNIT_ROWS, 64)
        self.kept = emit.memory(max(walk.weight_bytes, 64), 64)
        # bytes from a row's scales to the next one's; FP8 rows share them
        self.factor_row = 64 if walk.scale_bytes == 1 else 0
        self.factor_bytes = max(self.factor_row * UNIT_ROWS, 4 * self.groups)
        self.part_groups = self.groups // walk.n_parts
        self.part_factor_bytes = self.factor_bytes // walk.n_parts
        n_bytes = builder.mul(self.n_superblocks, integer(self.factor_bytes))
        self.factors, self.exponents = emit.scratch(n_bytes), emit.scratch(n_bytes)
        self.unusual = cgutils.alloca_once(builder, vector(I32))

    def gather(self) -> Any:
        """Note rows and scales; return whether the scales can be multiplied with weights."""
        emit, builder = self.emit, self.builder
        emit.loop(integer(UNIT_ROWS), self._find_row)
        builder.store(emit.splat_constant(I32, 0), self.unusual)
        if self.factor_row:
            emit.loop(integer(UNIT_ROWS), self._row_factors)
        elif self.walk.n_scales:
            self._shared_factors()
        found = builder.bitcast(builder.load(self.unusual), ir.IntType(512))
        return builder.icmp_unsigned("==", found, ir.Constant(ir.IntType(512), 0))

    def factor(self, superblock: Any, group: Any) -> Any:
        """Return where the float32 scale of the first row is."""
        place = self.emit.at(self.factors, superblock, self.factor_bytes)
        return self.emit.at(place, group, 4)

    def _exponents(self, part: Any, superblock: Any, row: Any) -> Any:
        """Return where the scales' exponents are: those of a part lie together."""
        place = self.builder.add(self.builder.mul(part, self.n_superblocks), superblock)
        place = self.emit.at(self.exponents, place, self.part_factor_bytes)
        return self.emit.at(place, row, self.factor_row // self.walk.n_parts)

    def decode(
        self,
        row: Any,
        part: Any,
        superblocks: tuple[Any, Any],
        place: Callable[[int, Any], Any],
        scaled: bool,
        asks: Callable[[Any], None],
    ) -> None:
        """Decode a row's part of some superblocks.

        Parameters
        ----------
        superblocks
            The first one and how many.
        place
            Where a group's superblock goes, given the group in the part and the superblock counted
            from the first.
        scaled
            Multiply with the scales.
        asks
            Called with the number of a superblock; may ask for other memory.
        """
        emit, builder, walk = self.emit, self.builder, self.walk
        first, count = superblocks
        offset = emit.at(integer(0), part, walk.weight_bytes // walk.n_parts)
        weights = emit.load(emit.at(self.addresses, row, 8), I64)
        exponents = self._exponents(part, first, row)
        start = builder.add(emit.at(weights, first, walk.weight_bytes), offset)

        def one(number: Any, here: Any) -> None:
            lowered = None
            if scaled:
                at = emit.at(exponents, number, self.part_factor_bytes)
                words = [
                    emit.load(emit.offset(at, 4 * group), I32, 4)
                    for group in range(self.part_groups)
                ]
                lowered = [builder.bitcast(emit.splat(word), vector(I16, 32)) for word in words]
            for group, register in enumerate(walk.tiles(emit, here, lowered)):
                emit.store(place(group, number), register, 64)

        def whole_one(number: Any) -> None:
            asks(number)
            one(number, emit.at(start, number, walk.weight_bytes))

        def any_one(number: Any) -> None:
            here = emit.at(start, number, walk.weight_bytes)
            full = builder.icmp_unsigned("<", builder.add(first, number), self.n_full)
            emit.when(builder.not_(full), lambda: self._keep_rest(weights))
            one(number, builder.select(full, here, builder.add(self.kept, offset)))

        whole = builder.icmp_unsigned("<=", builder.add(first, count), self.n_full)
        with builder.if_else(whole, likely=True) as (then, otherwise):
            with then:
                emit.loop(count, whole_one)
            with otherwise:
                emit.loop(count, any_one)

    def _find_row(self, row: Any) -> None:
        """Note where a row begins."""
        place = self.builder.mul(self._row(row), self.weight_stride)
        target = self.emit.at(self.addresses, row, 8)
        self.emit.store(target, self.builder.add(self.weights, place))

    def _row(self, row: Any) -> Any:
        last = self.builder.sub(self.n_rows, integer(1))
        there = self.builder.icmp_unsigned("<", row, last)
        return self.builder.select(there, row, last)

    def _keep_rest(self, weights: Any) -> None:
        """Copy what is no whole superblock of a row, with zeros behind."""
        emit, builder, size = self.emit, self.builder, self.walk.weight_bytes
        bits = builder.mul(self.rest, integer(size))
        n_bytes = builder.udiv(bits, integer(self.walk.n_columns))
        emit.clear(self.kept, max(size, 64))
        emit.copy_bytes(self.kept, emit.at(weights, self.n_full, size), n_bytes)

    def _row_factors(self, row: Any) -> None:
        """Note a row's scales, UE8M0: those of a superblock side by side."""
        emit, builder = self.emit, self.builder
        scales = builder.add(self.scales, builder.mul(self._row(row), self.scale_stride))
        kept = emit.memory(_ROW_SCALES)
        left = builder.sub(self.n_scales, builder.mul(self.n_full, integer(_ROW_SCALES)))

        def copy() -> None:
            emit.store(kept, emit.splat_constant(I8, 127, _ROW_SCALES))  # one, of usual size
            emit.copy_bytes(kept, emit.at(scales, self.n_full, _ROW_SCALES), left)

        emit.when(self.has_rest, copy)

        def superblock(index: Any) -> None:
            full = builder.icmp_unsigned("<", index, self.n_full)
            place = builder.select(full, emit.at(scales, index, _ROW_SCALES), kept)
            # UE8M0 is the exponent field of a float32
            bits = builder.zext(emit.load(place, vector(I8)), vector(I32))
            bits = builder.shl(bits, emit.splat_constant(I32, 23))
            self._note(index, row, bits)

        emit.loop(self.n_superblocks, superblock)

    def _shared_factors(self) -> None:
        """Note the scale of every group, one for all rows."""
        emit, builder, walk = self.emit, self.builder, self.walk
        size = walk.n_scales * walk.scale_bytes
        kept = emit.memory(64, 64)
        left = builder.sub(self.n_scales, builder.mul(self.n_full, integer(walk.n_scales)))

        def copy() -> None:
            emit.store(kept, emit.splat_constant(F32X16.element, 1.0))
            n_bytes = builder.mul(left, integer(walk.scale_bytes))
            emit.copy_bytes(kept, emit.at(self.scales, self.n_full, size), n_bytes)

        emit.when(self.has_rest, copy)

        def superblock(index: Any) -> None:
            full = builder.icmp_unsigned("<", index, self.n_full)
            place = builder.select(full, emit.at(self.scales, index, size), kept)
            # a group is a pair of lanes
            lanes = walk.scale(emit, place)
            lanes = emit.shuffle(lanes, lanes, [2 * (lane % self.groups) for lane in range(16)])
            bits = builder.bitcast(lanes, vector(I32))
            self._note(index, integer(0), bits)

        emit.loop(self.n_superblocks, superblock)

    def _note(self, superblock: Any, row: Any, bits: Any) -> None:
        """Keep the scales of a superblock as they are, and as what is taken off BF16 exponents."""
        emit, builder = self.emit, self.builder
        mantissa = builder.and_(bits, emit.splat_constant(I32, 0x7FFFFF))
        above = builder.sub(bits, emit.splat_constant(I32, _SMALLEST << 23))
        limit = emit.splat_constant(I32, (_LARGEST - _SMALLEST) << 23)
        outside = builder.sext(builder.icmp_unsigned(">", above, limit), vector(I32))
        unusual = builder.or_(builder.load(self.unusual), builder.or_(mantissa, outside))
        builder.store(unusual, self.unusual)
        place = emit.at(self.factor(superblock, integer(0)), row, self.factor_row)
        emit.store(place, emit.shuffle(bits, bits, range(self.groups)))
        # as a field of a BF16 number, in both halves of a word
        upper = builder.sub(emit.splat_constant(I32, _LARGEST << 23), bits)
        both = builder.or_(upper, builder.lshr(upper, emit.splat_constant(I32, 16)))
        for part in range(self.walk.n_parts):
            first = part * self.part_groups
            words = emit.shuffle(both, both, range(first, first + self.part_groups))
            emit.store(self._exponents(integer(part), superblock, row), words)
