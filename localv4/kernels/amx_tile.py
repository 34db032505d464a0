"""Thirty-two rows of weights times blocks of sixteen tokens in the CPU's matrix unit (AMX).

The rows are decoded once into tiles of 16 rows by 32 columns, which wait in a scratch on the
stack.  A tile of weights times a tile of activations adds 32 products to each of 16 x 16 sums:
those of the even places in one chain of fused multiply-adds, those of the odd places in another,
and then both.  So the bytes are those of row_dot.py (walks.py describes the order):

* FP8 and BF16: the even and the odd places are the products of two neighbouring lanes.
* FP4: the products of a lane's scale block are whole numbers.  Activations come as two halves, one
  with the numbers below 2**15 and one with the others, zeros in the places between: the sums of
  each are exact, and adding the second to the first rounds once.

Two tiles of weights meet two of activations at a time, so that each is loaded once for two
products.  Activations lie as packing.py puts them.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types

from localv4.kernels._jit import intrinsic
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32, F32X16, I8, I32, I64, Emitter, vector
from localv4.kernels.walk import Walk

__all__ = ["BLOCK_TOKENS", "UNIT_ROWS", "amx_tile", "group_bytes", "groups"]

BLOCK_TOKENS = 16
UNIT_ROWS = 32

_VOID = ir.VoidType()
_TILE = 16 * 64
_TILES = UNIT_ROWS // 16
_ROW_SCALES = 16  # of an FP4 superblock, one for each group
_GAP = 192  # between groups, so that a row's do not meet in the same set of a cache
_WEIGHTS, _TOKENS = (4, 5), (6, 7)  # tiles; 0 to 3 are sums


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
        ) = args
        self.groups, self.group_bytes = groups(walk), group_bytes(walk)
        self.halves = walk.layout == "halves"
        per_block = integer(walk.n_columns)
        self.n_full = self.builder.udiv(self.n_columns, per_block)
        self.rest = self.builder.urem(self.n_columns, per_block)
        self.has_rest = self.builder.icmp_unsigned("!=", self.rest, integer(0))
        self.n_superblocks = self.builder.add(self.n_full, self.builder.zext(self.has_rest, I64))
        self.decoded = self._scratch(self.groups * (_TILES * _TILE + _GAP))
        self.factor_bytes = 64 * _TILES if self.halves else 4
        self.factors = self._scratch(self.groups * self.factor_bytes)
        self.products = emit.memory(2 * 4 * _TILE, 64)
        self.sums = emit.memory(2 * self.groups * _TILES * _TILE, 64)
        self.turned = emit.memory(_TILE, 64)

    def _scratch(self, n_bytes: int) -> Any:
        """Return stack memory for so many bytes a superblock, aligned to 64."""
        size = self.builder.add(self.builder.mul(self.n_superblocks, integer(n_bytes)), integer(64))
        memory = self.builder.ptrtoint(self.builder.alloca(I8, size=size), I64)
        return self.builder.and_(self.builder.add(memory, integer(63)), integer(-64))

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
        self._decode()
        n_blocks = builder.udiv(
            builder.add(self.n_tokens, integer(BLOCK_TOKENS - 1)), integer(BLOCK_TOKENS)
        )
        pairs = builder.udiv(n_blocks, integer(2))
        emit.loop(pairs, lambda pair: self._blocks(builder.mul(pair, integer(2)), 2))
        odd = builder.trunc(builder.and_(n_blocks, integer(1)), ir.IntType(1))
        with builder.if_then(odd):
            self._blocks(builder.sub(n_blocks, integer(1)), 1)
        self.emit.call("llvm.x86.tilerelease", _VOID)

    def _configure(self) -> None:
        """Eight tiles of 16 rows of 64 bytes."""
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        memory = self.emit.memory(64, 64)
        self.emit.store(memory, self.emit.constant(I8, values), 64)
        self._tile("ldtilecfg", self._pointer(memory))

    def _row(self, row: Any) -> Any:
        """Return the number of a row; those that are not there are the last one again."""
        last = self.builder.sub(self.n_rows, integer(1))
        there = self.builder.icmp_unsigned("<", row, last)
        return self.builder.select(there, row, last)

    def _tiles(self, group: Any, superblock: Any) -> Any:
        """Return the address of decoded weights."""
        tiles = self.emit.at(self.decoded, self._place(group, superblock), _TILES * _TILE)
        return self.emit.at(tiles, group, _GAP)

    def _place(self, group: Any, superblock: Any) -> Any:
        """Return the number of a group's superblock: they lie together, as they are walked."""
        return self.builder.add(self.builder.mul(group, self.n_superblocks), superblock)

    def _decode(self) -> None:
        """Decode all rows and gather their scales."""
        emit, builder, walk = self.emit, self.builder, self.walk
        kept = emit.memory(max(walk.weight_bytes, 64), 64)

        def one(row: Any) -> None:
            stored = builder.mul(self._row(row), self.weight_stride)
            weights = builder.add(self.weights, stored)
            self._keep_rest(weights, kept, walk.weight_bytes, self.rest)

            def superblock(index: Any) -> None:
                full = builder.icmp_unsigned("<", index, self.n_full)
                here = builder.select(full, emit.at(weights, index, walk.weight_bytes), kept)
                for group, part in enumerate(walk.tiles(emit, here)):
                    emit.store(emit.at(self._tiles(integer(group), index), row, 64), part, 64)

            emit.loop(self.n_superblocks, superblock)

        emit.loop(integer(UNIT_ROWS), one)
        if walk.n_scales and walk.scale_bytes == 4:
            self._shared_factors()
        elif walk.n_scales:
            for tile in range(_TILES):
                emit.loop(self.n_superblocks, partial(self._factors, tile))

    def _keep_rest(self, source: Any, target: Any, size: int, rest: Any) -> None:
        """Copy what is no whole superblock of a row, with zeros behind."""
        emit, builder = self.emit, self.builder

        def copy() -> None:
            n_bytes = builder.udiv(builder.mul(rest, integer(size)), integer(self.walk.n_columns))
            emit.clear(target, max(size, 64))
            emit.copy_bytes(target, emit.at(source, self.n_full, size), n_bytes)

        emit.when(self.has_rest, copy)

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

    def _blocks(self, first: Any, count: int) -> None:
        """Multiply all rows with one or two blocks of tokens and store the sums."""
        emit, builder = self.emit, self.builder
        per_block = builder.mul(self.n_superblocks, integer(self.groups * self.group_bytes))
        inputs = [
            builder.add(self.inputs, builder.mul(builder.add(first, integer(i)), per_block))
            for i in range(count)
        ]

        def one(group: Any) -> None:
            emit.when(builder.icmp_unsigned("==", first, integer(0)), lambda: self._prefetch(group))
            self._group(group, inputs)

        emit.loop(integer(self.groups), one)
        for number in range(count):
            token = builder.mul(builder.add(first, integer(number)), integer(BLOCK_TOKENS))
            for tile in range(_TILES):
                self._store(token, tile, number)

    def _prefetch(self, group: Any) -> None:
        """Ask for a part of the rows that come next, while the unit multiplies these."""
        emit, builder = self.emit, self.builder
        size = builder.mul(self.weight_stride, integer(UNIT_ROWS))
        lines = builder.udiv(size, integer(64 * self.groups))
        start = builder.add(
            builder.add(self.weights, size), builder.mul(group, builder.mul(lines, integer(64)))
        )
        emit.loop(lines, lambda line: emit.prefetch(emit.at(start, line, 64), 2))

    def _group(self, group: Any, inputs: list[Any]) -> None:
        """Sum one group over all superblocks."""
        emit, builder = self.emit, self.builder
        sums = emit.at(self.sums, group, 2 * _TILES * _TILE)
        zero = emit.splat_constant(F32, 0.0)
        emit.loop(integer(2 * _TILES * 16), lambda i: emit.store(emit.at(sums, i, 64), zero, 64))

        def superblock(index: Any) -> None:
            number = builder.add(index, integer(1))
            finished = self._finished(sums, group, index, inputs)
            self._multiply(group, number, inputs, finished)

        self._multiply(group, integer(0), inputs, [])
        last = builder.sub(self.n_superblocks, integer(1))
        emit.loop(last, superblock)
        for finish in self._finished(sums, group, last, inputs):
            finish()

    def _finished(
        self, sums: Any, group: Any, superblock: Any, inputs: list[Any]
    ) -> list[Callable[[], None]]:
        """Return what is to be done with a superblock's products."""
        emit, builder = self.emit, self.builder
        place = self._place(group, superblock)
        factors = emit.at(self.factors, place, self.factor_bytes)
        odd = builder.and_(superblock, integer(1))
        products = emit.at(self.products, odd, 4 * _TILE)

        def finish(number: int, tile: int) -> None:
            tokens = emit.at(inputs[number], place, self.group_bytes)
            total = _TILE * (_TILES * number + tile)
            self._accumulate(
                emit.offset(sums, total), emit.offset(products, total), factors, tokens, tile
            )

        return [
            partial(finish, number, tile) for number in range(len(inputs)) for tile in range(_TILES)
        ]

    def _multiply(
        self, group: Any, superblock: Any, inputs: list[Any], others: list[Callable[[], None]]
    ) -> None:
        """Multiply tiles and write the products to memory; do other things while that takes."""
        emit, builder = self.emit, self.builder
        weights = self._tiles(group, superblock)
        place = self._place(group, superblock)
        tokens = [emit.at(start, place, self.group_bytes) for start in inputs]
        odd = builder.and_(superblock, integer(1))
        products = emit.at(self.products, odd, 4 * _TILE)
        sums = [(tile, number) for number in range(len(tokens)) for tile in range(_TILES)]
        waiting = list(others)
        n_halves = 2 if self.halves else 1
        for tile in range(_TILES):
            self._load_tile(_WEIGHTS[tile], emit.offset(weights, _TILE * tile))
        for half in range(n_halves):
            for number, start in enumerate(tokens):
                self._load_tile(_TOKENS[number], emit.offset(start, _TILE * half))
            for tile, number in sums:
                total = _TILES * number + tile
                if half == 0:
                    self._tile("tilezero", total)
                self._tile("tdpbf16ps", total, _WEIGHTS[tile], _TOKENS[number])
            for finish in waiting[: len(others) // n_halves]:
                finish()
            waiting = waiting[len(others) // n_halves :]
        for tile, number in sums:
            total = _TILES * number + tile
            where = self._pointer(emit.offset(products, _TILE * total))
            self._tile("tilestored64", total, where, integer(64))

    def _accumulate(self, sums: Any, products: Any, factors: Any, tokens: Any, tile: int) -> None:
        """Add the products of a tile, scaled, to the sums of its rows."""
        emit, builder = self.emit, self.builder
        scale = emit.load(emit.offset(tokens, 2 * _TILE), F32X16, 64) if self.halves else None
        for row in range(16):
            place = emit.offset(sums, 64 * row)
            value = emit.load(emit.offset(products, 64 * row), F32X16, 64)
            before = emit.load(place, F32X16, 64)
            if not self.walk.n_scales:
                emit.store(place, builder.fadd(value, before), 64)
                continue
            own = 64 * tile + 4 * row if self.halves else 0
            factor = emit.splat(emit.load(emit.offset(factors, own), F32, 4))
            if scale is not None:
                factor = builder.fmul(factor, scale)
            emit.store(place, emit.fma(value, factor, before), 64)

    def _store(self, token: Any, tile: int, number: int) -> None:
        """Add the groups as a tree and write the outputs, a token's rows side by side."""
        emit, builder = self.emit, self.builder
        rows = []
        for row in range(16):
            at = _TILE * (_TILES * number + tile) + 64 * row
            sums = [
                emit.load(emit.offset(self.sums, 2 * _TILES * _TILE * group + at), F32X16, 64)
                for group in self._in_lane_order()
            ]
            while len(sums) > 1:
                half = len(sums) // 2
                sums = [builder.fadd(sums[i], sums[half + i]) for i in range(half)]
            keep = builder.icmp_unsigned("==", self.rounds, integer(0))
            rows.append(builder.select(keep, sums[0], emit.round_to_bf16(sums[0])))
        for row, turned in enumerate(emit.transposed(rows)):
            emit.store(emit.offset(self.turned, 64 * row), turned, 64)
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
    """Make the intrinsic that multiplies up to 32 rows with any number of packed tokens.

    It takes int64 arguments: the addresses and strides of weights and of scales, the numbers
    of rows, columns and scales in a row, the address of the packed activations, the number of
    tokens, the address and stride of the float32 outputs, and 1 to round them to BF16.
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
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            _Amx(Emitter(builder), walk, args).generate()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 12), code

    return intrinsic(tile)
