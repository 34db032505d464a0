"""Sixteen rows of weights times blocks of sixteen tokens in the CPU's matrix unit (AMX).

The rows are decoded once into tiles of 32 columns, which wait in a scratch on the stack; a
tile of weights times a tile of activations gives 16 x 16 sums of a pair of lanes, in the
order that walks.py describes: tiles add the even places of 32 in one chain and the odd ones in
another, and then both, which are the two neighbouring lanes.  So the bytes are those of
row_dot.py.  Activations lie as packing.py puts them.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from localv4.kernels._jit import intrinsic
from localv4.kernels.row_dot import Padding, integer
from localv4.kernels.simd import F32, F32X16, I8, I32, I64, Emitter, vector
from localv4.kernels.walks import Walk

__all__ = ["BLOCK_TOKENS", "GROUPS", "amx_tile"]

BLOCK_TOKENS = 16
ROWS = 16
GROUPS = 8  # pairs of lanes of a superblock, each a tile of 32 columns

_VOID = ir.VoidType()
_ROW = 64
_TILE = 16 * _ROW
_AT_ONCE = 2  # superblocks in flight, with tiles of their own


class _Amx:
    """Emits the code of one tile; holds what its parts share."""

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
        per_block = integer(walk.n_columns)
        self.n_full = self.builder.udiv(self.n_columns, per_block)
        self.rest = self.builder.urem(self.n_columns, per_block)
        has_rest = self.builder.icmp_unsigned("!=", self.rest, integer(0))
        self.n_superblocks = self.builder.add(self.n_full, self.builder.zext(has_rest, I64))
        self.padding = Padding(emit, walk)
        self.decoded = self._scratch(GROUPS * _TILE)
        self.factors = self._scratch(GROUPS * ROWS * 4)
        self.products = emit.memory(_AT_ONCE * _TILE, 64)
        self.sums = emit.memory(GROUPS * _TILE, 64)
        self.turned = emit.memory(_TILE, 64)

    def _scratch(self, n_bytes: int) -> Any:
        """Return stack memory for so many bytes a superblock, aligned to 64."""
        size = self.builder.add(self.builder.mul(self.n_superblocks, integer(n_bytes)), integer(64))
        memory = self.builder.ptrtoint(self.builder.alloca(I8, size=size), I64)
        return self.builder.and_(self.builder.add(memory, integer(63)), integer(-64))

    def _tile(self, name: str, *arguments: Any) -> None:
        numbers = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
        self.emit.call(f"llvm.x86.{name}", _VOID, *numbers)

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, I8.as_pointer())

    def generate(self) -> None:
        """Emit the whole tile."""
        self._configure()
        self.emit.loop(self.n_rows, self._decode_row)
        blocks = self.builder.udiv(
            self.builder.add(self.n_tokens, integer(BLOCK_TOKENS - 1)), integer(BLOCK_TOKENS)
        )
        self.emit.loop(blocks, self._block)
        self.emit.call("llvm.x86.tilerelease", _VOID)

    def _configure(self) -> None:
        """Eight tiles of 16 rows of 64 bytes."""
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        memory = self.emit.memory(64, 64)
        self.emit.store(memory, self.emit.constant(I8, values), 64)
        self._tile("ldtilecfg", self._pointer(memory))

    def _decode_row(self, row: Any) -> None:
        emit, builder, walk = self.emit, self.builder, self.walk
        weights = builder.add(self.weights, builder.mul(row, self.weight_stride))
        scales = builder.add(self.scales, builder.mul(row, self.scale_stride))
        partial = builder.icmp_unsigned("!=", self.rest, integer(0))
        emit.when(
            partial,
            lambda: self.padding.fill(weights, scales, self.n_full, self.rest, self.n_scales),
        )

        def superblock(index: Any) -> None:
            full = builder.icmp_unsigned("<", index, self.n_full)
            here = builder.select(
                full, emit.at(weights, index, walk.weight_bytes), self.padding.weights
            )
            place = emit.at(scales, index, walk.n_scales * walk.scale_bytes)
            place = builder.select(full, place, self.padding.scales)
            if walk.n_scales:
                self._keep_factors(walk.scale(emit, place), index, row)
            target = emit.at(self.decoded, index, GROUPS * _TILE)
            target = emit.at(target, row, _ROW)
            registers = walk.decode(emit, here, None)
            for group, part in enumerate(self._turn_pairs(registers)):
                emit.store(emit.offset(target, group * _TILE), part, 64)

        emit.loop(self.n_superblocks, superblock)

    def _keep_factors(self, lanes: Any, superblock: Any, row: Any) -> None:
        """Store a row's scale of every pair of lanes."""
        emit, builder = self.emit, self.builder
        first = emit.at(self.factors, superblock, GROUPS * ROWS * 4)
        for group in range(GROUPS):
            factor = builder.extract_element(lanes, ir.Constant(I32, 2 * group))
            place = emit.at(emit.offset(first, group * ROWS * 4), row, 4)
            emit.store(place, factor, 4)

    def _turn_pairs(self, registers: list[Any]) -> list[Any]:
        """8 steps of 16 lanes of BF16 pairs -> a row of 32 for each pair of lanes."""
        emit, builder = self.emit, self.builder
        order = [4 * quad + word for quad in range(8) for word in (1, 3, 0, 2)]
        kind = vector(I64, 8)
        steps = [builder.bitcast(emit.shuffle(r, r, order), kind) for r in registers]
        return self._transposed(steps)

    def _transposed(self, rows: list[Any]) -> list[Any]:
        """Exchange rows and columns of a square of registers."""
        count = len(rows)
        step = 1
        while step < count:
            turned = list(rows)
            for i in range(count):
                if i & step:
                    continue
                first, second = rows[i], rows[i | step]
                low = [c if not c & step else count + (c ^ step) for c in range(count)]
                high = [(c | step) if not c & step else count + c for c in range(count)]
                turned[i] = self.emit.shuffle(first, second, low)
                turned[i | step] = self.emit.shuffle(first, second, high)
            rows = turned
            step *= 2
        return rows

    def _block(self, block: Any) -> None:
        """Multiply all rows with the 16 tokens of a block and store the sums."""
        emit, builder = self.emit, self.builder
        per_block = builder.mul(self.n_superblocks, integer(GROUPS * _TILE))
        inputs = builder.add(self.inputs, builder.mul(block, per_block))
        emit.loop(integer(GROUPS), lambda group: self._group(group, inputs))
        token = builder.mul(block, integer(BLOCK_TOKENS))
        self._store(token)

    def _group(self, group: Any, inputs: Any) -> None:
        """Sum one group over all superblocks into 16 rows of 16 tokens."""
        emit, builder = self.emit, self.builder
        slots = [cgutils.alloca_once(builder, F32X16) for _ in range(ROWS)]
        for slot in slots:
            builder.store(emit.splat_constant(F32, 0.0), slot)
        rounds = builder.udiv(self.n_superblocks, integer(_AT_ONCE))

        def several(number: Any) -> None:
            first = builder.mul(number, integer(_AT_ONCE))
            places = [
                self._place(builder.add(first, integer(i)), group, inputs) for i in range(_AT_ONCE)
            ]
            for i, place in enumerate(places):
                self._multiply(i, *place)
            for i, place in enumerate(places):
                self._accumulate(i, slots, *place)

        emit.loop(rounds, several)
        done = builder.mul(rounds, integer(_AT_ONCE))

        def one(offset: Any) -> None:
            place = self._place(builder.add(done, offset), group, inputs)
            self._multiply(0, *place)
            self._accumulate(0, slots, *place)

        emit.loop(builder.sub(self.n_superblocks, done), one)
        target = emit.at(self.sums, group, _TILE)
        for row, slot in enumerate(slots):
            emit.store(emit.offset(target, 64 * row), builder.load(slot), 64)

    def _place(self, superblock: Any, group: Any, inputs: Any) -> tuple[Any, Any, Any]:
        """Return the addresses of weights, factors and activations."""
        emit, builder = self.emit, self.builder
        index = builder.add(builder.mul(superblock, integer(GROUPS)), group)
        return (
            emit.at(self.decoded, index, _TILE),
            emit.at(self.factors, index, ROWS * 4),
            emit.at(inputs, index, _TILE),
        )

    def _multiply(self, number: int, weights: Any, factors: Any, inputs: Any) -> None:
        """Multiply tiles and write the products to memory."""
        emit, line = self.emit, integer(64)
        products = emit.offset(self.products, _TILE * number)
        sums, left, right = ((0, 3, 4), (1, 6, 7))[number]
        self._tile("tilezero", sums)
        self._tile("tileloadd64", left, self._pointer(weights), line)
        self._tile("tileloadd64", right, self._pointer(inputs), line)
        self._tile("tdpbf16ps", sums, left, right)
        self._tile("tilestored64", sums, self._pointer(products), line)

    def _accumulate(
        self, number: int, slots: list[Any], weights: Any, factors: Any, inputs: Any
    ) -> None:
        """Add the products, scaled, to the sums of every row."""
        emit, builder = self.emit, self.builder
        products = emit.offset(self.products, _TILE * number)
        for row, slot in enumerate(slots):
            value = emit.load(emit.offset(products, 64 * row), F32X16, 64)
            if self.walk.n_scales:
                factor = emit.splat(emit.load(emit.offset(factors, 4 * row), F32, 4))
                builder.store(emit.fma(value, factor, builder.load(slot)), slot)
            else:
                builder.store(builder.fadd(value, builder.load(slot)), slot)

    def _store(self, token: Any) -> None:
        """Add the groups as a tree and write the outputs, a token's rows side by side."""
        emit, builder = self.emit, self.builder
        rows = []
        for row in range(ROWS):
            sums = [
                emit.load(emit.offset(self.sums, group * _TILE + 64 * row), F32X16, 64)
                for group in range(GROUPS)
            ]
            while len(sums) > 1:
                half = len(sums) // 2
                sums = [builder.fadd(sums[i], sums[half + i]) for i in range(half)]
            keep = builder.icmp_unsigned("==", self.rounds, integer(0))
            rows.append(builder.select(keep, sums[0], emit.round_to_bf16(sums[0])))
        for number, turned in enumerate(self._transposed(rows)):
            emit.store(emit.offset(self.turned, 64 * number), turned, 64)
        left = builder.sub(self.n_tokens, token)
        few = builder.icmp_unsigned("<", left, integer(BLOCK_TOKENS))
        count = builder.select(few, left, integer(BLOCK_TOKENS))
        n_bytes = builder.mul(self.n_rows, integer(4))
        whole = builder.icmp_unsigned("==", self.n_rows, integer(ROWS))

        def output(number: Any) -> None:
            at = builder.mul(builder.add(token, number), self.output_stride)
            target = builder.add(self.outputs, at)
            source = emit.at(self.turned, number, 64)
            with builder.if_else(whole) as (then, otherwise):
                with then:
                    emit.store(target, emit.load(source, F32X16, 64))
                with otherwise:
                    emit.copy_bytes(target, source, n_bytes)

        emit.loop(count, output)


def amx_tile(walk: Walk) -> Any:
    """Make the intrinsic that multiplies up to 16 rows with packed activations.

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
