"""Sixteen rows of weights times many tokens: weights are decoded once for all of them.

A superblock of the rows is decoded into a small scratch, which stays in the first cache, and
multiplied with every token; the accumulators of all outputs wait in memory meanwhile.  Inside,
several rows meet several tokens at a time, so that a loaded register is used several times.
Every output is summed in the order of row_dot.py (walks.py describes it): equal bytes.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
"""

from collections.abc import Sequence
from typing import Any

from numba import types

from localv4.kernels._jit import intrinsic
from localv4.kernels.row_dot import Padding, integer, store_total
from localv4.kernels.simd import F32X16, I32, I64, Emitter
from localv4.kernels.walk import Walk

__all__ = ["TILE_ROWS", "TILE_TOKENS", "row_tile"]

TILE_ROWS = 16
TILE_TOKENS = 64


class _Tile:
    """Emits the code of one tile; holds what its parts share."""

    def __init__(
        self, emit: Emitter, walk: Walk, at_once: tuple[int, int], args: list[Any]
    ) -> None:
        self.emit, self.walk, self.at_once = emit, walk, at_once
        (
            self.weights,
            self.weight_stride,
            self.scales,
            self.scale_stride,
            self.n_rows,
            self.n_columns,
            self.n_scales,
            self.inputs,
            self.input_stride,
            self.tokens,
            self.n_tokens,
            self.outputs,
            self.output_stride,
            self.rounds,
        ) = args
        self.row_bytes = 64 * walk.n_registers
        self.output_bytes = 64 * walk.n_accumulators
        self.decoded = emit.memory(TILE_ROWS * self.row_bytes, 64)
        self.decoded_scales = emit.memory(TILE_ROWS * 64, 64)
        self.sums = emit.memory(TILE_TOKENS * TILE_ROWS * self.output_bytes, 64)
        self.addresses = emit.memory(8 * TILE_TOKENS, 64)
        self.padding = Padding(emit, walk)

    def generate(self) -> None:
        """Emit the whole tile."""
        emit, walk, builder = self.emit, self.walk, self.emit.builder
        n_full = builder.udiv(self.n_columns, integer(walk.n_columns))
        rest = builder.urem(self.n_columns, integer(walk.n_columns))
        has_rest = builder.icmp_unsigned("!=", rest, integer(0))
        emit.loop(self.n_tokens, self._find_token)
        zero = emit.splat_constant(F32X16.element, 0.0)
        n_sums = builder.mul(self.n_tokens, integer(TILE_ROWS * walk.n_accumulators))
        emit.loop(n_sums, lambda i: emit.store(emit.at(self.sums, i, 64), zero))
        # rows that are not there must not hold what a multiplication is slow with
        n_registers = integer(TILE_ROWS * walk.n_registers)
        emit.loop(n_registers, lambda i: emit.store(emit.at(self.decoded, i, 64), zero))

        def superblock(index: Any) -> None:
            full = builder.icmp_unsigned("<", index, n_full)
            emit.loop(self.n_rows, lambda row: self._decode(row, index, full, n_full, rest))
            offset = builder.mul(index, integer(walk.lane_bytes))
            tokens_at_once = self.at_once[1]
            groups = builder.udiv(self.n_tokens, integer(tokens_at_once))

            def group(number: Any) -> None:
                self._rows(builder.mul(number, integer(tokens_at_once)), tokens_at_once, offset)

            emit.loop(groups, group)
            done = builder.mul(groups, integer(tokens_at_once))
            left = builder.sub(self.n_tokens, done)
            emit.loop(left, lambda token: self._rows(builder.add(done, token), 1, offset))

        emit.loop(builder.add(n_full, builder.zext(has_rest, I64)), superblock)
        emit.loop(self.n_tokens, self._store)

    def _find_token(self, index: Any) -> None:
        """Note where a token's activations begin; `tokens` is 0 or an int32 array."""
        emit, builder = self.emit, self.emit.builder
        listed = builder.icmp_unsigned("!=", self.tokens, integer(0))
        place = builder.select(listed, emit.at(self.tokens, index, 4), self.addresses)
        number = builder.sext(emit.load(place, I32), I64)
        number = builder.select(listed, number, index)
        address = builder.add(self.inputs, builder.mul(number, self.input_stride))
        emit.store(emit.at(self.addresses, index, 8), address)

    def _decode(self, row: Any, index: Any, full: Any, n_full: Any, rest: Any) -> None:
        """Decode one row's superblock into the scratch."""
        emit, walk, builder = self.emit, self.walk, self.emit.builder
        weights = builder.add(self.weights, builder.mul(row, self.weight_stride))
        scales = builder.add(self.scales, builder.mul(row, self.scale_stride))
        partial = builder.not_(full)
        emit.when(
            partial,
            lambda: self.padding.fill(weights, scales, n_full, rest, self.n_scales),
        )
        here = emit.at(weights, index, walk.weight_bytes)
        here = builder.select(full, here, self.padding.weights)
        scale = None
        if walk.n_scales:
            place = emit.at(scales, index, walk.n_scales * walk.scale_bytes)
            place = builder.select(full, place, self.padding.scales)
            scale = walk.scale(emit, place)
            emit.store(emit.at(self.decoded_scales, row, 64), scale)
        target = emit.at(self.decoded, row, self.row_bytes)
        for number, register in enumerate(walk.decode(emit, here, scale)):
            emit.store(emit.offset(target, 64 * number), register)

    def _rows(self, first: Any, n_tokens: int, offset: Any) -> None:
        """Multiply all rows with some tokens."""
        emit, builder = self.emit, self.emit.builder
        addresses = [
            builder.add(
                emit.load(emit.at(self.addresses, builder.add(first, integer(i)), 8), I64), offset
            )
            for i in range(n_tokens)
        ]
        rows_at_once = self.at_once[0]

        def some(number: Any) -> None:
            if n_tokens > 1:
                self._prefetch(builder.add(first, integer(n_tokens)), number, offset)
            self._outputs(builder.mul(number, integer(rows_at_once)), first, addresses)

        emit.loop(integer(TILE_ROWS // rows_at_once), some)

    def _prefetch(self, first: Any, number: Any, offset: Any) -> None:
        """Ask for a part of the tokens that come next, while some rows meet these.

        There are so many tokens that their activations wait in the second cache.
        """
        emit, builder = self.emit, self.emit.builder
        rows_at_once, tokens_at_once = self.at_once
        parts = TILE_ROWS // rows_at_once // tokens_at_once  # of a token
        token = builder.add(first, builder.udiv(number, integer(parts)))
        last = builder.sub(self.n_tokens, integer(1))
        token = builder.select(builder.icmp_unsigned("<", token, last), token, last)
        n_lines = -(-self.walk.lane_bytes // 64 // parts)
        place = builder.add(emit.load(emit.at(self.addresses, token, 8), I64), offset)
        place = emit.at(place, builder.urem(number, integer(parts)), 64 * n_lines)
        for line in range(n_lines):
            emit.prefetch(emit.offset(place, 64 * line))

    def _outputs(self, row: Any, token: Any, addresses: Sequence[Any]) -> None:
        """Add a superblock to the outputs of some rows and tokens."""
        emit, walk, builder = self.emit, self.walk, self.emit.builder
        rows = range(self.at_once[0])
        pairs = [(r, t) for t in range(len(addresses)) for r in rows]
        weights = emit.at(self.decoded, row, self.row_bytes)
        base = emit.at(self.sums, builder.mul(token, integer(TILE_ROWS)), self.output_bytes)
        base = builder.add(base, builder.mul(row, integer(self.output_bytes)))

        def place(r: int, t: int, k: int) -> Any:
            return emit.offset(base, (t * TILE_ROWS + r) * self.output_bytes + 64 * k)

        def load(r: int, t: int) -> list[Any]:
            return [emit.load(place(r, t, k), F32X16, 64) for k in range(walk.n_accumulators)]

        direct = walk.n_accumulators > 1
        before = {pair: load(*pair) if direct else [] for pair in pairs}
        sums = {pair: walk.begin(emit, before[pair]) for pair in pairs}
        for step in range(walk.n_steps):
            registers = [
                emit.load(
                    emit.offset(weights, r * self.row_bytes + 64 * walk.register_of(step)),
                    walk.kind,
                    64,
                )
                for r in rows
            ]
            for r, t in pairs:
                sums[r, t] = walk.step(emit, step, sums[r, t], registers[r], addresses[t])
        for r, t in pairs:
            scale = None
            if walk.n_scales:
                scale = emit.load(
                    emit.offset(emit.at(self.decoded_scales, row, 64), 64 * r), F32X16, 64
                )
            accumulators = before[r, t] if direct else load(r, t)
            after = walk.finish(emit, sums[r, t], accumulators, scale, addresses[t])
            for k, value in enumerate(after):
                emit.store(place(r, t, k), value, 64)

    def _store(self, token: Any) -> None:
        """Write the outputs of a token."""
        emit, walk, builder = self.emit, self.walk, self.emit.builder
        sums = emit.at(self.sums, token, TILE_ROWS * self.output_bytes)
        outputs = builder.add(self.outputs, builder.mul(token, self.output_stride))

        def one(row: Any) -> None:
            base = emit.at(sums, row, self.output_bytes)
            values = [
                emit.load(emit.offset(base, 64 * k), F32X16, 64) for k in range(walk.n_accumulators)
            ]
            store_total(emit, walk, values, emit.at(outputs, row, 4), self.rounds)

        emit.loop(self.n_rows, one)


def row_tile(walk: Walk, at_once: tuple[int, int]) -> Any:
    """Make the intrinsic that multiplies up to 16 rows with up to 64 tokens.

    It takes int64 arguments: the addresses and strides of weights and of scales, the numbers
    of rows, columns and scales in a row, the address and stride of the activations, the
    address of an int32 list of tokens or 0, the number of tokens, the address and stride of
    the float32 outputs, and 1 to round them to BF16.

    Parameters
    ----------
    walk
        The format.
    at_once
        How many rows meet how many tokens at a time; decides no byte.
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
        xs: Any,
        t: Any,
        m: Any,
        y: Any,
        ys: Any,
        r: Any,
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            _Tile(Emitter(builder), walk, at_once, args).generate()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 14), code

    return intrinsic(tile)
