"""Rows of weights times a few tokens: weights are decoded in registers, once for one or two.

Some rows are walked side by side, far apart from each other, and rows follow one another, so a
thread reads several linear streams: hardware prefetchers follow each of them by itself, and between
them they keep more of memory's lines on the way than one does.  Weights far ahead are asked for
into the second cache, which waits for many lines at once, and near ones into the first, which
waits for few: if they were asked for into the first alone, lines that memory has yet to send would
take all its places.  The order of sums is described in walks.py.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
Twin: tests/reference/row_dot.py.
"""

from typing import Any

from llvmlite import ir
from numba import types

from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import F32X16, I32, I64, Emitter
from localv4.kernels.walk import Walk

__all__ = ["MOST_STREAMS", "Padding", "ask_for", "integer", "read_i32", "rows_dot", "store_total"]

MOST_STREAMS = 4
"""Rows that can be walked side by side."""

_FAR_BYTES = 1664  # ahead of the weights that are being multiplied, into the second cache
_NEAR_BYTES = 1024  # the same, into the first cache
_SCALES_BYTES = 256  # ahead of a row's own scales: hardware loses sight of what is read so rarely


def integer(value: int) -> Any:
    """Return a 64-bit constant."""
    return ir.Constant(I64, value)


@intrinsic
def read_i32(typing: Any, address: Any, index: Any) -> Any:
    """Load an entry of an int32 array given by its address."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], I32.as_pointer())
        return builder.sext(builder.load(builder.gep(pointer, [args[1]])), I64)

    return types.int64(types.int64, types.int64), code


@intrinsic
def ask_for(typing: Any, address: Any) -> Any:
    """Ask for a cache line, into the second cache."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        Emitter(builder).prefetch(args[0], 2)
        return context.get_dummy_value()

    return types.void(types.int64), code


class Padding:
    """Copies of a row's last, partial superblock, with zeros behind; on the stack."""

    def __init__(self, emit: Emitter, walk: Walk) -> None:
        self.emit, self.walk = emit, walk
        self.weights = emit.memory(walk.weight_bytes)
        self.scales = emit.memory(64)

    def fill(self, weights: Any, scales: Any, n_full: Any, rest: Any, n_scales: Any) -> None:
        """Copy the `rest` columns and the scales behind `n_full` superblocks of a row."""
        emit, walk = self.emit, self.walk
        n_bytes = emit.builder.udiv(
            emit.builder.mul(rest, integer(walk.weight_bytes)), integer(walk.n_columns)
        )
        emit.clear(self.weights, walk.weight_bytes)
        emit.copy_bytes(self.weights, emit.at(weights, n_full, walk.weight_bytes), n_bytes)
        if walk.n_scales:
            done = emit.builder.mul(n_full, integer(walk.n_scales))
            left = emit.builder.sub(n_scales, done)
            emit.clear(self.scales, 64)
            emit.copy_bytes(
                self.scales,
                emit.at(scales, n_full, walk.n_scales * walk.scale_bytes),
                emit.builder.mul(left, integer(walk.scale_bytes)),
            )


def store_total(emit: Emitter, walk: Walk, sums: list[Any], address: Any, rounds: Any) -> None:
    """Add the lanes of an output and store it, rounded to BF16 if asked."""
    total = walk.total(emit, sums)
    keep = emit.builder.icmp_unsigned("==", rounds, integer(0))
    emit.store(address, emit.builder.select(keep, total, emit.round_to_bf16(total)))


class _Row:
    """One of the rows that are walked: where it lies and its sums so far, on the stack.

    Parameters
    ----------
    record
        Address of `size(walk, n_tokens)` bytes, aligned to 64.
    """

    def __init__(self, emit: Emitter, walk: Walk, n_tokens: int, record: Any) -> None:
        self.emit, self.walk, self.n_tokens, self.record = emit, walk, n_tokens, record

    @staticmethod
    def size(walk: Walk, n_tokens: int) -> int:
        """Return the bytes of a record."""
        return 64 * (1 + n_tokens * walk.n_accumulators)

    def begin(self, weights: Any, scales: Any, output: Any) -> None:
        """Note the addresses of a row, and that nothing is summed."""
        for word, address in enumerate((weights, scales, output)):
            self.emit.store(self.emit.offset(self.record, 8 * word), address, 8)
        zero = self.emit.splat_constant(F32X16.element, 0.0)
        for token in range(self.n_tokens):
            self.store(token, [zero] * self.walk.n_accumulators)

    def address(self, word: int) -> Any:
        """Load the address of the row's weights (0), scales (1) or output (2)."""
        return self.emit.load(self.emit.offset(self.record, 8 * word), I64, 8)

    def accumulators(self, token: int) -> list[Any]:
        """Load a token's sums so far."""
        return [self.emit.load(place, F32X16, 64) for place in self._places(token)]

    def store(self, token: int, accumulators: list[Any]) -> None:
        """Store a token's sums so far."""
        for place, value in zip(self._places(token), accumulators, strict=True):
            self.emit.store(place, value, 64)

    def _places(self, token: int) -> list[Any]:
        first, count = 1 + token * self.walk.n_accumulators, self.walk.n_accumulators
        return [self.emit.offset(self.record, 64 * i) for i in range(first, first + count)]

    def stored(self, index: Any) -> tuple[Any, Any]:
        """Return where a superblock's weights and scales are."""
        emit, walk = self.emit, self.walk
        return (
            emit.at(self.address(0), index, walk.weight_bytes),
            emit.at(self.address(1), index, walk.n_scales * walk.scale_bytes),
        )


def _add(
    emit: Emitter, walk: Walk, rows: list[_Row], stored: list[tuple[Any, Any]], inputs: list[Any]
) -> None:
    """Add a superblock of some rows, given by their weights and scales, times each token's."""
    pairs = [(i, token) for i in range(len(rows)) for token in range(len(inputs))]
    scales = [walk.scale(emit, scale) if walk.n_scales else None for _, scale in stored]
    registers = [
        walk.decode(emit, weights, scale)
        for (weights, _), scale in zip(stored, scales, strict=True)
    ]
    before = {(i, token): rows[i].accumulators(token) for i, token in pairs}
    sums = {pair: walk.begin(emit, accumulators) for pair, accumulators in before.items()}
    for step in range(walk.n_steps):
        for i, token in pairs:
            weight = registers[i][walk.register_of(step)]
            sums[i, token] = walk.step(emit, step, sums[i, token], weight, inputs[token])
    for i, token in pairs:
        pair = i, token
        after = walk.finish(emit, sums[pair], before[pair], scales[i], inputs[token])
        rows[i].store(token, after)


class _Rows:
    """Emits the code of one group of rows; holds what its parts share."""

    def __init__(self, emit: Emitter, walk: Walk, n_tokens: int, args: list[Any]) -> None:
        self.emit, self.walk, self.n_tokens = emit, walk, n_tokens
        self.in_flight = max(1, walk.in_flight // n_tokens)
        (
            self.weights,
            self.weight_stride,
            self.scales,
            self.scale_stride,
            _,
            self.n_scales,
            self.n_columns,
            self.first_row,
            self.n_rows,
            self.part,
            self.row,
            *inputs,
            self.outputs,
            self.output_stride,
            self.rounds,
            self.streams,
        ) = args
        self.inputs = inputs[:n_tokens]
        self.row_bytes = _Row.size(walk, n_tokens)
        self.records = emit.memory(MOST_STREAMS * self.row_bytes, 64)
        self.padding = Padding(emit, walk)

    def generate(self) -> None:
        """Emit the whole walk."""
        emit, walk, builder = self.emit, self.walk, self.emit.builder
        n_full = builder.udiv(self.n_columns, integer(walk.n_columns))
        rest = builder.urem(self.n_columns, integer(walk.n_columns))
        emit.loop(self.streams, self._begin)

        def superblock(index: Any) -> None:
            n_groups = builder.udiv(self.streams, integer(self.in_flight))
            emit.loop(n_groups, lambda group: self._some(group, index))

        emit.loop(n_full, superblock)
        emit.when(
            builder.icmp_unsigned("!=", rest, integer(0)),
            lambda: emit.loop(self.streams, lambda i: self._last(i, n_full, rest)),
        )
        emit.loop(self.streams, self._store)

    def _row(self, i: Any) -> _Row:
        record = self.emit.at(self.records, i, self.row_bytes)
        return _Row(self.emit, self.walk, self.n_tokens, record)

    def _inputs(self, index: Any) -> list[Any]:
        """Return where each token's activations of a superblock are."""
        return [self.emit.at(inputs, index, self.walk.lane_bytes) for inputs in self.inputs]

    def _begin(self, i: Any) -> None:
        """Find a row: the one of this number in its part of the matrix."""
        emit, builder = self.emit, self.emit.builder
        number = builder.add(self.row, builder.mul(i, self.part))
        # the last part may be shorter: then the first row is walked once more
        there = builder.icmp_unsigned("<", number, self.n_rows)
        number = builder.select(there, number, self.row)
        place = builder.add(self.first_row, number)
        weights = builder.add(self.weights, builder.mul(place, self.weight_stride))
        # a band of rows shares scales; by a constant, as real divisions cost 1-2% of all
        band = builder.udiv(place, integer(1 if self.walk.scale_bytes == 1 else 128))
        scales = builder.add(self.scales, builder.mul(band, self.scale_stride))
        self._row(i).begin(weights, scales, emit.at(self.outputs, number, 4))

    def _some(self, group: Any, index: Any) -> None:
        """Add a superblock of the rows that are in flight together, and ask for later ones."""
        emit, walk, builder = self.emit, self.walk, self.emit.builder
        first = builder.mul(group, integer(self.in_flight))
        rows = [self._row(builder.add(first, integer(i))) for i in range(self.in_flight)]
        stored = [row.stored(index) for row in rows]
        for weights, scales in stored:
            if walk.scale_bytes == 1:
                emit.prefetch(emit.offset(scales, _SCALES_BYTES), 2)
            for line in range(0, walk.weight_bytes, 64):
                emit.prefetch(emit.offset(weights, _FAR_BYTES + line), 2)
                emit.prefetch(emit.offset(weights, _NEAR_BYTES + line))
        _add(emit, walk, rows, stored, self._inputs(index))

    def _last(self, i: Any, n_full: Any, rest: Any) -> None:
        """Add a row's last, partial superblock."""
        emit, walk, row, padding = self.emit, self.walk, self._row(i), self.padding
        padding.fill(row.address(0), row.address(1), n_full, rest, self.n_scales)
        _add(emit, walk, [row], [(padding.weights, padding.scales)], self._inputs(n_full))

    def _store(self, i: Any) -> None:
        """Write a row's outputs."""
        emit, row = self.emit, self._row(i)
        for token in range(self.n_tokens):
            output = emit.offset(row.address(2), self.output_stride, token)
            store_total(emit, self.walk, row.accumulators(token), output, self.rounds)


def rows_dot(walk: Walk) -> Any:
    """Make the intrinsic that multiplies some rows with one token or two.

    It takes int64 arguments: the words of a matrix (`matmul.Matrix.words`), the rows of a part of
    it, the first of the rows, the addresses of both tokens' activations, the address of the first
    one's float32 outputs for the matrix and the distance to the other's, or 0 if there is one
    token, 1 to round the sums to BF16, and how many rows there are: a multiple of `Walk.in_flight`,
    up to `MOST_STREAMS`.  The first row is one of the first part, the others are as far into
    theirs.
    Any alignment.
    """
    walk = walk.for_rows

    # numba reads the parameters off the function, so they are spelled out
    def dot(
        typing: Any,
        w: Any,
        ws: Any,
        s: Any,
        ss: Any,
        b: Any,
        ks: Any,
        k: Any,
        f: Any,
        n: Any,
        part: Any,
        row: Any,
        x: Any,
        other: Any,
        y: Any,
        ys: Any,
        r: Any,
        streams: Any,
    ) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            emit, output_stride = Emitter(builder), args[14]
            alone = builder.icmp_unsigned("==", output_stride, integer(0))
            with builder.if_else(alone) as (then, otherwise):
                with then:
                    _Rows(emit, walk, 1, args).generate()
                with otherwise:
                    _Rows(emit, walk, 2, args).generate()
            return context.get_dummy_value()

        return types.void(*[types.int64] * 17), code

    return intrinsic(dot)
