"""Rows of weights times blocks of sixteen tokens in the CPU's matrix unit (AMX).

A tile of weights (16 rows by 32 columns, as BF16) times a tile of activations adds 32 products to
each of 16 x 16 sums: those of the even places in one chain of fused multiply-adds, those of the odd
places in another, and then both.  So the bytes are those of row_dot.py (walks.py describes the
order):

* FP8 and BF16: the even and the odd places are the products of two neighbouring lanes.
* FP4: the products of a lane's scale block are whole numbers.  Activations come as two parts, the
  upper and the lower digits of each, whose sums are exact.

Weights that are multiplied with their scales when they are decoded (amx_rows.py) are summed inside
the unit: *folded*.  Where scales or activations are unusual, and for BF16, each product is scaled
and added by itself.

A part of some superblocks (a few groups of 32 columns, some superblocks of each) is decoded at a
time and then multiplied with all tokens, one group after the other.  So decoded weights stay in the
first cache; what would not is slow to write.  Meanwhile the weights that come next are asked for, a
few lines with each product, since a core has few places for lines on their way, and in several
streams, since hardware follows each by itself.  Activations lie as packing.py puts them.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
"""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from localv4.kernels._jit import intrinsic
from localv4.kernels.amx_rows import GROUP_COLUMNS, TILE_BYTES, TILE_ROWS, UNIT_ROWS, Rows
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import F32, F32X16, I8, I32, Emitter
from localv4.kernels.walk import Walk

__all__ = [
    "BLOCK_TAIL",
    "BLOCK_TOKENS",
    "LARGEST_SCALE",
    "UNIT_ROWS",
    "UNIT_TOKENS",
    "amx_tile",
    "group_bytes",
    "groups",
]

BLOCK_TOKENS = 16
BLOCK_TAIL = 64
"""Bytes behind a block: its first word is not zero if one of the activations is unusual."""
LARGEST_SCALE = 2.0**22
"""FP4's activations are multiplied with their scales, or with this where those are larger."""
UNIT_TOKENS = 64
"""Activations of more would not stay in the second cache."""

_VOID = ir.VoidType()
_TILES = UNIT_ROWS // TILE_ROWS
_GROUP = _TILES * TILE_BYTES  # bytes of a group's sums
_BLOCKS = UNIT_TOKENS // BLOCK_TOKENS
# Superblocks of a part that are decoded at a time: for few tokens, whose sums are soon back in
# registers, so many that they stay in the first cache; for more tokens the sums' ways count.
_SHORT_RUN, _LONG_RUN = 2, 8
_MANY_BLOCKS = 3
_STREAMS = 4  # in which weights are asked for
_WEIGHTS, _TOKENS = (4, 5), (6, 7)  # tiles; 0 to 3 are sums


def groups(walk: Walk) -> int:
    """Return into how many blocks of 32 columns a superblock is divided."""
    return walk.n_columns // GROUP_COLUMNS


def group_bytes(walk: Walk) -> int:
    """Return the bytes of a block of tokens in a group: tiles, and FP4's scales."""
    return 2 * TILE_BYTES + 64 if walk.layout == "halves" else TILE_BYTES


class _Amx:
    """Emits the code of one unit; holds what its parts share."""

    def __init__(self, emit: Emitter, walk: Walk, args: list[Any]) -> None:
        self.emit, self.walk, self.builder = emit, walk, emit.builder
        weights, weight_stride, scales, scale_stride, n_rows, n_columns, n_scales = args[:7]
        (
            self.inputs,
            self.n_tokens,
            self.outputs,
            self.output_stride,
            self.rounds,
            self.ahead,
        ) = args[7:]
        self.n_rows = n_rows
        self.stored = Rows(
            emit,
            walk,
            (weights, weight_stride),
            (scales, scale_stride),
            n_rows,
            n_columns,
            n_scales,
        )
        self.n_superblocks = self.stored.n_superblocks
        self.groups, self.group_bytes = groups(walk), group_bytes(walk)
        self.at_once = self.groups // walk.n_parts  # groups of a part
        self.n_halves = 2 if walk.layout == "halves" else 1
        block_groups = self.builder.mul(self.n_superblocks, integer(self.groups))
        self.block_bytes = emit.at(integer(BLOCK_TAIL), block_groups, self.group_bytes)
        self.n_blocks = emit.up(self.n_tokens, BLOCK_TOKENS)
        many = self.builder.icmp_unsigned(">=", self.n_blocks, integer(_MANY_BLOCKS))
        self.run = self.builder.select(many, integer(_LONG_RUN), integer(_SHORT_RUN))
        up = self.builder.add(self.n_superblocks, emit.offset(self.run, -1))
        self.n_runs = self.builder.udiv(up, self.run)
        self.n_lines = 16 * walk.weight_bytes // (64 * self.groups)  # of a group's tile
        row_bytes = self.builder.mul(self.n_superblocks, integer(walk.weight_bytes))
        self.stream_bytes = self.builder.mul(row_bytes, integer(UNIT_ROWS // _STREAMS))
        self.decoded = emit.memory(_LONG_RUN * self.at_once * _GROUP, 64)
        self.products = emit.memory(2 * TILE_BYTES, 64)
        self.zeros = emit.memory(TILE_BYTES, 64)
        self.sums = emit.memory(_BLOCKS * self.groups * _GROUP, 64)
        self.turned = emit.memory(TILE_BYTES, 64)

    def _tile(self, name: str, *arguments: Any) -> None:
        numbers = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
        self.emit.call(f"llvm.x86.{name}", _VOID, *numbers)

    def _load_tile(self, number: int, address: Any) -> None:
        self._tile("tileloadd64", number, self._pointer(address), integer(64))

    def _store_tile(self, number: int, address: Any) -> None:
        self._tile("tilestored64", number, self._pointer(address), integer(64))

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, I8.as_pointer())

    def generate(self) -> None:
        """Emit the whole unit."""
        emit, builder = self.emit, self.builder
        self._configure()
        emit.clear(self.zeros, TILE_BYTES)
        n_steps = builder.mul(self.n_runs, integer(self.walk.n_parts))
        usual = self.stored.gather()
        if self.walk.n_scales:
            with builder.if_else(builder.and_(usual, self._usual_tokens())) as (then, otherwise):
                with then:
                    emit.loop(n_steps, partial(self._run, self._folded, True))
                with otherwise:
                    emit.loop(n_steps, partial(self._run, self._one_by_one, False))
        else:
            emit.loop(n_steps, partial(self._run, self._one_by_one, False))
        emit.loop(self.n_blocks, self._store_block)
        self.emit.call("llvm.x86.tilerelease", _VOID)

    def _configure(self) -> None:
        """Eight tiles of 16 rows of 64 bytes."""
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        memory = self.emit.memory(64, 64)
        self.emit.store(memory, self.emit.constant(I8, values), 64)
        self._tile("ldtilecfg", self._pointer(memory))

    def _usual_tokens(self) -> Any:
        """Return whether no block of tokens has an unusual activation."""
        emit, builder = self.emit, self.builder
        found = cgutils.alloca_once(builder, I32)
        builder.store(ir.Constant(I32, 0), found)

        def block(number: Any) -> None:
            end = emit.offset(self.inputs, builder.mul(self.block_bytes, number))
            tail = emit.offset(emit.offset(end, self.block_bytes), -BLOCK_TAIL)
            builder.store(builder.or_(builder.load(found), emit.load(tail, I32, 4)), found)

        emit.loop(self.n_blocks, block)
        return builder.icmp_unsigned("==", builder.load(found), ir.Constant(I32, 0))

    def _run(self, multiply: Callable[..., None], scaled: bool, index: Any) -> None:
        """Decode a part of some superblocks and multiply it with all tokens."""
        emit, builder = self.emit, self.builder
        part = builder.udiv(index, self.n_runs)
        first = builder.mul(builder.urem(index, self.n_runs), self.run)
        left = builder.sub(self.n_superblocks, first)
        few = builder.icmp_unsigned("<", left, self.run)
        count = builder.select(few, left, self.run)

        def row(number: Any) -> None:
            tile, inside = builder.lshr(number, integer(4)), builder.and_(number, integer(15))

            def place(group: int, superblock: Any) -> Any:
                target = self._weights(emit.offset(tile, _TILES * group))
                return emit.at(emit.at(target, superblock, TILE_BYTES), inside, 64)

            def asks(superblock: Any) -> None:
                row_lines = self.at_once * self.n_lines // TILE_ROWS
                done = emit.at(number, index, UNIT_ROWS)
                done = builder.add(builder.mul(done, self.run), superblock)
                half = builder.lshr(builder.mul(done, integer(row_lines)), integer(1))
                for line in range(-(-row_lines // 2)):  # FP4's one line of two rows: twice
                    at = emit.offset(half, line)
                    self._prefetch(builder.and_(at, integer(1)), builder.lshr(at, integer(1)))

            self.stored.decode(number, part, (first, count), place, scaled, asks)

        emit.loop(integer(UNIT_ROWS), row)
        multiply(index, part, first, count)

    def _weights(self, number: Any) -> Any:
        """Return the address of a group's decoded tile, counted from the part's first one."""
        return self.emit.at(self.decoded, self.builder.mul(number, self.run), TILE_BYTES)

    def _inputs(self, block: Any, group: Any, superblock: Any) -> Any:
        """Return the address of a block's activations: a group's superblocks lie together."""
        place = self.builder.add(self.builder.mul(group, self.n_superblocks), superblock)
        start = self.emit.offset(self.inputs, self.builder.mul(block, self.block_bytes))
        return self.emit.at(start, place, self.group_bytes)

    def _sums(self, block: Any, group: Any, tile: int) -> Any:
        """Return the address of the sums of 16 rows and a block of tokens."""
        place = self.emit.at(group, block, self.groups)
        return self.emit.offset(self.emit.at(self.sums, place, _GROUP), TILE_BYTES * tile)

    def _prefetch(self, stream: Any, line: Any) -> None:
        """Ask for a line of the next weights."""
        start = self.builder.add(self.ahead, self.builder.mul(stream, self.stream_bytes))
        self.emit.prefetch(self.emit.at(start, line, 64), 2)

    def _ask(self, tile: Any, superblock: Any, n_tiles: int) -> None:
        """Ask for the share of the next weights that belongs to a superblock of some tiles.

        That is a half; decoding asks for the other one.
        """
        emit, builder = self.emit, self.builder
        n_lines = n_tiles * self.n_lines // _STREAMS
        first = emit.at(builder.mul(tile, self.run), superblock, n_tiles)
        for stream in range(_STREAMS // 2, _STREAMS):
            for line in range(n_lines):
                at = emit.at(integer(line), first, self.n_lines // _STREAMS)
                self._prefetch(integer(stream), at)

    def _folded(self, index: Any, part: Any, first: Any, count: Any) -> None:
        """Multiply decoded weights, their scales included, with all tokens."""
        emit, builder = self.emit, self.builder
        two = integer(2)

        def group(number: Any) -> None:
            here = emit.at(number, part, self.at_once)
            tile = builder.mul(number, integer(_TILES))
            weights = [self._weights(emit.offset(tile, i)) for i in range(_TILES)]
            asks_at = emit.at(tile, index, self.at_once * _TILES)

            def pair(block: Any) -> None:
                blocks = [builder.mul(block, two), emit.offset(builder.mul(block, two), 1)]
                self._accumulate(
                    [weights],
                    [self._inputs(b, here, first) for b in blocks],
                    [self._sums(b, here, i) for b in blocks for i in range(_TILES)],
                    (first, count),
                    (asks_at, builder.icmp_unsigned("==", block, integer(0))),
                )

            emit.loop(builder.udiv(self.n_blocks, two), pair)

        emit.loop(integer(self.at_once), group)

        def groups_of_the_last(number: Any) -> None:
            """Two groups instead of two blocks: as many sums that do not wait for each other."""
            block = builder.sub(self.n_blocks, integer(1))
            here = emit.at(builder.mul(number, two), part, self.at_once)
            tile = builder.mul(number, integer(2 * _TILES))
            both = [here, emit.offset(here, 1)]
            tiles = [[self._weights(emit.offset(tile, _TILES * g + i)) for i in range(_TILES)]
                     for g in range(2)]  # fmt: skip
            self._accumulate(
                tiles,
                [self._inputs(block, g, first) for g in both],
                [self._sums(block, g, i) for g in both for i in range(_TILES)],
                (first, count),
                (
                    emit.at(tile, index, self.at_once * _TILES),
                    builder.icmp_unsigned("==", block, integer(0)),
                ),
            )

        with builder.if_then(builder.trunc(self.n_blocks, ir.IntType(1))):
            emit.loop(integer(self.at_once // 2), groups_of_the_last)

    def _accumulate(
        self,
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
            Two of them, each for `_TILES` of the sums.
        superblocks
            The first one and how many.
        asks
            The tile whose weights are asked for meanwhile, and whether they are.
        """
        emit, builder = self.emit, self.builder
        first, count = superblocks
        is_first = builder.icmp_unsigned("==", first, integer(0))
        for number, address in enumerate(sums):
            self._load_tile(number, builder.select(is_first, self.zeros, address))
        shared = len(weights) == 1

        def load_weights(number: Any, stream: int) -> None:
            for register, address in zip(_WEIGHTS, weights[stream], strict=True):
                self._load_tile(register, emit.at(address, number, TILE_BYTES))

        def multiply(number: Any, stream: int, half: int) -> None:
            place = emit.at(inputs[stream], number, self.group_bytes)
            self._load_tile(_TOKENS[stream], emit.offset(place, TILE_BYTES * half))
            for tile, register in enumerate(_WEIGHTS):
                self._tile("tdpbf16ps", _TILES * stream + tile, register, _TOKENS[stream])

        def superblock(number: Any) -> None:
            if shared:
                load_weights(number, 0)
                for half in range(self.n_halves):
                    for stream in range(2):
                        multiply(number, stream, half)
            else:
                for stream in range(2):
                    load_weights(number, stream)
                    for half in range(self.n_halves):
                        multiply(number, stream, half)
            with builder.if_then(asks[1]):
                self._ask(asks[0], number, len(weights) * _TILES)

        emit.loop(count, superblock)
        for number, address in enumerate(sums):
            self._store_tile(number, address)

    def _one_by_one(self, index: Any, part: Any, first: Any, count: Any) -> None:
        """Multiply decoded weights with all tokens, and scale each product by itself."""
        emit, builder = self.emit, self.builder
        is_first = builder.icmp_unsigned("==", first, integer(0))

        def group(number: Any) -> None:
            here = emit.at(number, part, self.at_once)

            def block(token: Any) -> None:
                asks = builder.icmp_unsigned("==", token, integer(0))
                for tile in range(_TILES):
                    place = emit.at(integer(tile), number, _TILES)
                    sums = self._sums(token, here, tile)
                    before = builder.select(is_first, self.zeros, sums)
                    slots = [cgutils.alloca_once(builder, F32X16) for _ in range(TILE_ROWS)]
                    for row, slot in enumerate(slots):
                        builder.store(emit.load(emit.offset(before, 64 * row), F32X16, 64), slot)
                    weights, inputs = self._weights(place), self._inputs(token, here, first)
                    factors = self.stored.factor(first, here)
                    factors = emit.offset(factors, TILE_ROWS * tile * self.stored.factor_row)

                    def superblock(
                        at: Any,
                        place: Any = place,
                        slots: list[Any] = slots,
                        weights: Any = weights,
                        inputs: Any = inputs,
                        factors: Any = factors,
                    ) -> None:
                        tokens = emit.at(inputs, at, self.group_bytes)
                        self._multiply(emit.at(weights, at, TILE_BYTES), tokens)
                        with builder.if_then(asks):
                            done = emit.at(place, index, self.at_once * _TILES)
                            self._ask(done, at, 1)
                        self._add(slots, emit.at(factors, at, self.stored.factor_bytes), tokens)

                    emit.loop(count, superblock)
                    for row, slot in enumerate(slots):
                        emit.store(emit.offset(sums, 64 * row), builder.load(slot), 64)

            emit.loop(self.n_blocks, block)

        emit.loop(integer(self.at_once), group)

    def _multiply(self, weights: Any, tokens: Any) -> None:
        """Multiply a group's tile with a block of tokens; the products go to memory."""
        self._load_tile(_WEIGHTS[0], weights)
        for half in range(self.n_halves):
            self._load_tile(_TOKENS[half], self.emit.offset(tokens, TILE_BYTES * half))
            self._tile("tilezero", half)
            self._tile("tdpbf16ps", half, _WEIGHTS[0], _TOKENS[half])
            self._store_tile(half, self.emit.offset(self.products, TILE_BYTES * half))

    def _add(self, slots: list[Any], factors: Any, tokens: Any) -> None:
        """Add the products, scaled, to sums in registers."""
        emit, builder = self.emit, self.builder
        own = inverse = None
        if self.n_halves == 2:
            # take off what packed activations were multiplied with: row_dot.py multiplies both
            # scales first
            own = emit.load(emit.offset(tokens, 2 * TILE_BYTES), F32X16, 64)
            most = emit.splat_constant(F32, LARGEST_SCALE)
            packed = builder.select(builder.fcmp_ordered("<", own, most), own, most)
            inverse = builder.fdiv(emit.splat_constant(F32, 1.0), packed)
        for row, slot in enumerate(slots):
            total = builder.load(slot)
            factor = emit.splat(
                emit.load(emit.offset(factors, self.stored.factor_row * row), F32, 4)
            )
            if own is not None:
                factor = builder.fmul(factor, own)
            for half in range(self.n_halves):
                place = emit.offset(self.products, TILE_BYTES * half + 64 * row)
                value = emit.load(place, F32X16, 64)
                if not self.walk.n_scales:
                    total = builder.fadd(value, total)
                    continue
                if inverse is not None:
                    value = builder.fmul(value, inverse)
                total = emit.fma(value, factor, total)
            builder.store(total, slot)

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
            at = TILE_BYTES * tile + 64 * row
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
        if self.n_halves == 1:
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
