"""Rows of weights times blocks of sixteen tokens in the CPU's matrix unit (AMX).

A tile of weights (16 rows by 32 columns, as BF16) times a tile of activations adds 32 products to
each of 16 x 16 sums: those of the even places in one chain of fused multiply-adds, those of the odd
places in another, and then both.  So the bytes are those of row_dot.py (walks.py describes the
order):

* FP8 and BF16: the even and the odd places are the products of two neighbouring lanes.
* FP4: the products of a lane's scale block are whole numbers.  Activations come as two halves, one
  with the numbers below 2**15 and one with the others, zeros in the places between: the sums of
  each are exact, and adding the second to the first rounds once.

A part of a superblock (a few groups of 32 columns) is decoded at a time, and the sums of these
groups run through all superblocks before the next part's turn, so that decoded weights and sums
stay in the first cache.  A *step* multiplies one group's tiles with one block of tokens.  While the
matrix unit is at it, the products of the step before are scaled and added, and a share of the next
part is decoded.  Activations lie as packing.py puts them.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
"""

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from localv4.kernels._jit import intrinsic
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32, F32X16, I8, I32, I64, Emitter, vector
from localv4.kernels.walk import Walk

__all__ = ["BLOCK_TOKENS", "UNIT_ROWS", "UNIT_TOKENS", "amx_tile", "group_bytes", "groups"]

BLOCK_TOKENS = 16
UNIT_ROWS = 32
UNIT_TOKENS = 64
"""Activations of more would not stay in the second cache."""

_VOID = ir.VoidType()
_TILE = 16 * 64
_TILES = UNIT_ROWS // 16
_GROUP = _TILES * _TILE  # bytes of a group's decoded weights, or of its sums
_BLOCKS = UNIT_TOKENS // BLOCK_TOKENS
_ROW_SCALES = 16  # of an FP4 superblock, one for each group
_WEIGHTS, _TOKENS = (4, 5), (6, 7)  # tiles; 0 to 3 are sums of one step and of the next


def groups(walk: Walk) -> int:
    """Return into how many blocks of 32 columns a superblock is divided."""
    return walk.n_columns // 32


def group_bytes(walk: Walk) -> int:
    """Return the bytes of a block of tokens in a group: tiles, and FP4's scales."""
    return 2 * _TILE + 64 if walk.layout == "halves" else _TILE


class _Amx:
    """Emits the code of one unit; holds what its parts share."""

    def __init__(self, emit: Emitter, walk: Walk, args: list[Any]) -> None:
        self.emit, self.walk, self.builder = emit, walk, emit.builder
        (
            self.weights,
            self.weight_stride,
            self.scales,
            self.scale_stride,
            self.n_rows,
            self.n_columns,
            self.n_scales,
            self.inputs,
            self.n_tokens,
            self.outputs,
            self.output_stride,
            self.rounds,
            self.ahead,
        ) = args
        self.groups, self.group_bytes = groups(walk), group_bytes(walk)
        self.at_once = self.groups // walk.n_parts  # groups of a part
        self.halves = walk.layout == "halves"
        per_block = integer(walk.n_columns)
        self.n_full = self.builder.udiv(self.n_columns, per_block)
        self.rest = self.builder.urem(self.n_columns, per_block)
        self.has_rest = self.builder.icmp_unsigned("!=", self.rest, integer(0))
        self.n_superblocks = self.builder.add(self.n_full, self.builder.zext(self.has_rest, I64))
        self.n_blocks = self._up(self.n_tokens, BLOCK_TOKENS)
        self.rows = emit.memory(8 * UNIT_ROWS, 64)
        self.decoded = emit.memory(2 * self.at_once * _GROUP, 64)
        self.kept = emit.memory(max(walk.weight_bytes, 64), 64)
        self.factor_bytes = 64 * _TILES if self.halves else 4
        self.factors = self._scratch(self.groups * self.factor_bytes)
        self.products = emit.memory(_GROUP, 64)
        self.zeros = emit.memory(_GROUP, 64)
        # one group more takes what the first step finds of a step before it
        self.sums = emit.memory((_BLOCKS * self.groups + 1) * _GROUP, 64)
        self.pending = [cgutils.alloca_once(self.builder, I64) for _ in range(4)]
        self.turned = emit.memory(_TILE, 64)

    def _scratch(self, n_bytes: int) -> Any:
        """Return stack memory for so many bytes a superblock, aligned to 64."""
        size = self.builder.add(self.builder.mul(self.n_superblocks, integer(n_bytes)), integer(64))
        memory = self.builder.ptrtoint(self.builder.alloca(I8, size=size), I64)
        return self.builder.and_(self.builder.add(memory, integer(63)), integer(-64))

    def _up(self, value: Any, size: int) -> Any:
        return self.builder.udiv(self.builder.add(value, integer(size - 1)), integer(size))

    def _tile(self, name: str, *arguments: Any) -> None:
        numbers = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
        self.emit.call(f"llvm.x86.{name}", _VOID, *numbers)

    def _load_tile(self, number: int, address: Any) -> None:
        self._tile("tileloadd64", number, self._pointer(address), integer(64))

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, I8.as_pointer())

    def generate(self) -> None:
        """Emit the whole unit."""
        emit, builder = self.emit, self.builder
        self._configure()
        emit.loop(integer(UNIT_ROWS), self._find_row)
        self._gather_factors()
        emit.clear(self.zeros, _GROUP)
        nowhere = emit.offset(self.sums, _BLOCKS * self.groups * _GROUP)
        self._wait(nowhere, self.zeros, self.factors, self.inputs)
        self._decode(integer(0), 0, UNIT_ROWS)
        n_steps = builder.mul(self.n_superblocks, integer(self.walk.n_parts))
        emit.loop(n_steps, lambda step: self._part(step, n_steps))
        self._finish()
        emit.loop(self.n_blocks, self._store_block)
        self.emit.call("llvm.x86.tilerelease", _VOID)

    def _configure(self) -> None:
        """Eight tiles of 16 rows of 64 bytes."""
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        memory = self.emit.memory(64, 64)
        self.emit.store(memory, self.emit.constant(I8, values), 64)
        self._tile("ldtilecfg", self._pointer(memory))

    def _find_row(self, row: Any) -> None:
        """Note where a row begins."""
        place = self.builder.mul(self._row(row), self.weight_stride)
        self.emit.store(self.emit.at(self.rows, row, 8), self.builder.add(self.weights, place))

    def _row(self, row: Any) -> Any:
        """Return the number of a row; those that are not there are the last one again."""
        last = self.builder.sub(self.n_rows, integer(1))
        there = self.builder.icmp_unsigned("<", row, last)
        return self.builder.select(there, row, last)

    def _place(self, group: Any, superblock: Any) -> Any:
        """Return the number of a group's superblock: they lie together, as they are walked."""
        return self.builder.add(self.builder.mul(group, self.n_superblocks), superblock)

    def _weights(self, parity: Any, group: int) -> Any:
        """Return the address of a group's decoded weights."""
        return self.emit.offset(
            self.emit.at(self.decoded, parity, self.at_once * _GROUP), group * _GROUP
        )

    def _decode(self, index: Any, first: int, count: int) -> None:
        """Decode a part, given by its place in the walk, of some rows."""
        emit, builder, walk = self.emit, self.builder, self.walk
        part, superblock, parity = self._split(index)
        part_bytes = walk.weight_bytes // walk.n_parts
        full = builder.icmp_unsigned("<", superblock, self.n_full)
        start = emit.at(emit.at(integer(0), superblock, walk.weight_bytes), part, part_bytes)
        kept = emit.at(self.kept, part, part_bytes)
        ahead = emit.at(self.ahead, index, UNIT_ROWS * part_bytes)

        def one(number: Any) -> None:
            row = builder.add(number, integer(first))
            weights = emit.load(emit.at(self.rows, row, 8), I64)
            emit.when(builder.not_(full), lambda: self._keep_rest(weights))
            here = builder.select(full, builder.add(weights, start), kept)
            for line in range(0, part_bytes, 64):
                emit.prefetch(emit.offset(emit.at(ahead, row, part_bytes), line), 2)
            for group, register in enumerate(walk.tiles(emit, here)):
                emit.store(emit.at(self._weights(parity, group), row, 64), register, 64)

        emit.loop(integer(count), one)

    def _split(self, index: Any) -> tuple[Any, Any, Any]:
        """Return the part and the superblock at a place in the walk, and which room is theirs."""
        builder = self.builder
        part = builder.udiv(index, self.n_superblocks)
        superblock = builder.sub(index, builder.mul(part, self.n_superblocks))
        return part, superblock, builder.and_(index, integer(1))

    def _keep_rest(self, weights: Any) -> None:
        """Copy what is no whole superblock of a row, with zeros behind."""
        emit, builder, size = self.emit, self.builder, self.walk.weight_bytes
        bits = builder.mul(self.rest, integer(size))
        n_bytes = builder.udiv(bits, integer(self.walk.n_columns))
        emit.clear(self.kept, max(size, 64))
        emit.copy_bytes(self.kept, emit.at(weights, self.n_full, size), n_bytes)

    def _gather_factors(self) -> None:
        """Gather the scales of all rows."""
        if self.walk.n_scales and self.walk.scale_bytes == 4:
            self._shared_factors()
        elif self.walk.n_scales:
            for tile in range(_TILES):
                self.emit.loop(self.n_superblocks, partial(self._factors, tile))

    def _shared_factors(self) -> None:
        """Note the scale of every group, one for all rows."""
        emit, builder, walk = self.emit, self.builder, self.walk
        size = walk.n_scales * walk.scale_bytes
        kept = emit.memory(64, 64)
        left = builder.sub(self.n_scales, builder.mul(self.n_full, integer(walk.n_scales)))

        def copy() -> None:
            emit.clear(kept, 64)
            n_bytes = builder.mul(left, integer(walk.scale_bytes))
            emit.copy_bytes(kept, emit.at(self.scales, self.n_full, size), n_bytes)

        emit.when(self.has_rest, copy)

        def superblock(index: Any) -> None:
            full = builder.icmp_unsigned("<", index, self.n_full)
            place = builder.select(full, emit.at(self.scales, index, size), kept)
            lanes = walk.scale(emit, place)
            for group in range(self.groups):
                factor = builder.extract_element(lanes, ir.Constant(I32, 2 * group))
                emit.store(emit.at(self.factors, self._place(integer(group), index), 4), factor, 4)

        emit.loop(self.n_superblocks, superblock)

    def _factors(self, tile: int, index: Any) -> None:
        """Turn the 16 scale bytes of 16 rows into 16 float32 for each group."""
        emit, builder = self.emit, self.builder
        full = builder.icmp_unsigned("<", index, self.n_full)
        kept = emit.memory(_ROW_SCALES * 16, 64)
        left = builder.sub(self.n_scales, builder.mul(self.n_full, integer(_ROW_SCALES)))
        places = []
        for number in range(16):
            row = self._row(integer(16 * tile + number))
            scales = builder.add(self.scales, builder.mul(row, self.scale_stride))
            places.append(emit.at(scales, index, _ROW_SCALES))

        def copy() -> None:
            for number, place in enumerate(places):
                target = emit.offset(kept, _ROW_SCALES * number)
                emit.store(target, emit.splat_constant(I8, 0, _ROW_SCALES))
                emit.copy_bytes(target, place, left)

        emit.when(builder.not_(full), copy)
        rows = [
            emit.load(
                builder.select(full, place, emit.offset(kept, _ROW_SCALES * number)), vector(I8, 16)
            )
            for number, place in enumerate(places)
        ]
        for group, scales in enumerate(emit.transposed(rows)):
            # UE8M0 is the exponent field of a float32
            bits = builder.zext(scales, vector(I32))
            bits = builder.shl(bits, emit.splat_constant(I32, 23))
            target = emit.at(self.factors, self._place(integer(group), index), self.factor_bytes)
            emit.store(emit.offset(target, 64 * tile), bits, 64)

    def _part(self, index: Any, n_steps: Any) -> None:
        """Multiply a part of a superblock with all tokens, and decode the one that comes next."""
        emit, builder = self.emit, self.builder
        part, superblock, parity = self._split(index)
        after = builder.add(index, integer(1))
        is_first = builder.icmp_unsigned("==", superblock, integer(0))
        is_last = builder.icmp_unsigned("==", after, n_steps)
        size = builder.mul(self.n_superblocks, integer(self.groups * self.group_bytes))
        share = UNIT_ROWS // self.at_once

        def block(number: Any) -> None:
            inputs = builder.add(self.inputs, builder.mul(number, size))
            decodes = builder.and_(
                builder.icmp_unsigned("==", number, integer(0)), builder.not_(is_last)
            )

            for group in range(self.at_once):
                here = emit.offset(emit.at(integer(0), part, self.at_once), group)
                place = self._place(here, superblock)
                tokens = emit.at(inputs, place, self.group_bytes)
                self._multiply(self._weights(parity, group), tokens, group % 2)
                self._finish()
                with builder.if_then(decodes):
                    self._decode(after, share * group, share)
                self._keep_products(group % 2)
                sums = emit.at(integer(0), number, self.groups)
                sums = emit.at(self.sums, builder.add(sums, here), _GROUP)
                before = builder.select(is_first, self.zeros, sums)
                self._wait(sums, before, emit.at(self.factors, place, self.factor_bytes), tokens)

        emit.loop(self.n_blocks, block)

    def _multiply(self, weights: Any, tokens: Any, parity: int) -> None:
        """Multiply a group's tiles with a block of tokens."""
        emit = self.emit
        for tile in range(_TILES):
            self._load_tile(_WEIGHTS[tile], emit.offset(weights, _TILE * tile))
        for half in range(2 if self.halves else 1):
            self._load_tile(_TOKENS[half], emit.offset(tokens, _TILE * half))
            for tile in range(_TILES):
                total = _TILES * parity + tile
                if half == 0:
                    self._tile("tilezero", total)
                self._tile("tdpbf16ps", total, _WEIGHTS[tile], _TOKENS[half])

    def _keep_products(self, parity: int) -> None:
        """Write a step's products to memory."""
        for tile in range(_TILES):
            total = _TILES * parity + tile
            where = self._pointer(self.emit.offset(self.products, _TILE * tile))
            self._tile("tilestored64", total, where, integer(64))

    def _wait(self, *addresses: Any) -> None:
        """Note of a step its sums and what they were, and its factors and tokens."""
        for slot, address in zip(self.pending, addresses, strict=True):
            self.builder.store(address, slot)

    def _finish(self) -> None:
        """Add the products of the step before, scaled, to its sums."""
        emit, builder = self.emit, self.builder
        sums, before, factors, tokens = (builder.load(slot) for slot in self.pending)
        scale = emit.load(emit.offset(tokens, 2 * _TILE), F32X16, 64) if self.halves else None
        for row in range(UNIT_ROWS):
            value = emit.load(emit.offset(self.products, 64 * row), F32X16, 64)
            total = emit.load(emit.offset(before, 64 * row), F32X16, 64)
            if self.walk.n_scales:
                own = 4 * row if self.halves else 0
                factor = emit.splat(emit.load(emit.offset(factors, own), F32, 4))
                if scale is not None:
                    factor = builder.fmul(factor, scale)
                total = emit.fma(value, factor, total)
            else:
                total = builder.fadd(value, total)
            emit.store(emit.offset(sums, 64 * row), total, 64)

    def _store_block(self, number: Any) -> None:
        """Store the outputs of a block of tokens."""
        for tile in range(_TILES):
            self._store(number, tile)

    def _store(self, number: Any, tile: int) -> None:
        """Add the groups as a tree and write the outputs, a token's rows side by side."""
        emit, builder = self.emit, self.builder
        block = emit.at(self.sums, number, self.groups * _GROUP)
        rows = []
        for row in range(16):
            at = _TILE * tile + 64 * row
            sums = [
                emit.load(emit.offset(block, _GROUP * group + at), F32X16, 64)
                for group in self._in_lane_order()
            ]
            while len(sums) > 1:
                half = len(sums) // 2
                sums = [builder.fadd(sums[i], sums[half + i]) for i in range(half)]
            keep = builder.icmp_unsigned("==", self.rounds, integer(0))
            rows.append(builder.select(keep, sums[0], emit.round_to_bf16(sums[0])))
        for row, turned in enumerate(emit.transposed(rows)):
            emit.store(emit.offset(self.turned, 64 * row), turned, 64)
        token = builder.mul(number, integer(BLOCK_TOKENS))
        left = builder.sub(self.n_tokens, token)
        few = builder.icmp_unsigned("<", left, integer(BLOCK_TOKENS))
        count = builder.select(few, left, integer(BLOCK_TOKENS))
        first = integer(16 * tile)
        more = builder.icmp_unsigned(">", self.n_rows, first)
        n_rows = builder.select(more, builder.sub(self.n_rows, first), integer(0))
        whole = builder.icmp_unsigned(">=", n_rows, integer(16))
        n_bytes = builder.mul(n_rows, integer(4))

        def output(index: Any) -> None:
            at = builder.mul(builder.add(token, index), self.output_stride)
            target = emit.offset(builder.add(self.outputs, at), 64 * tile)
            source = emit.at(self.turned, index, 64)
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    emit.store(target, emit.load(source, F32X16, 64))
                with otherwise:
                    emit.copy_bytes(target, source, n_bytes)

        emit.loop(count, output)

    def _in_lane_order(self) -> list[int]:
        """Return the groups in the order of the lanes that row_dot.py has for them."""
        if not self.halves:
            return list(range(self.groups))
        return list(self.walk.scale_lanes)


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
            _Amx(Emitter(builder), walk, args).generate()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 13), code

    return intrinsic(tile)
