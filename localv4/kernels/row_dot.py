"""Rows of weights times a few tokens: weights are decoded in registers, once a token.

Two rows are walked side by side, far apart from each other, and rows follow one another, so a
thread reads two linear streams: hardware prefetchers follow each of them by itself, and between
them they keep more of memory's lines on the way than one does.  Weights far ahead are asked for
into the second cache, which waits for many lines at once, and near ones into the first, which
waits for few: if they were asked for into the first alone, lines that memory has yet to send would
take all its places.  The order of sums is described in walks.py.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
Twin: tests/reference/row_dot.py.
"""

from functools import partial
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import F32X16, I32, I64, Emitter
from localv4.kernels.walk import Walk

__all__ = ["Padding", "integer", "read_i32", "store_total", "two_rows_dot"]

_NEAR_BYTES = 1024  # the same, into the first cache


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


def _superblocks(
    emit: Emitter, walk: Walk, places: list[tuple[Any, Any, Any]], slots: list[Any], ahead: Any
) -> None:
    """Add some superblocks, given by their weights, scales and activations, in order."""
    scales = [walk.scale(emit, scale) if walk.n_scales else None for _, scale, _ in places]
    for weights, _, _ in places:
        if ahead is not None:
            base = emit.builder.add(weights, ahead)
            for line in range(0, walk.weight_bytes, 64):
                emit.prefetch(emit.offset(base, line), 2)
                emit.prefetch(emit.offset(weights, _NEAR_BYTES + line))
    registers = [
        walk.decode(emit, weights, scale)
        for (weights, _, _), scale in zip(places, scales, strict=True)
    ]
    if walk.n_accumulators > 1:  # every product depends on the one before: one after the other
        groups = [[number] for number in range(len(places))]
    else:
        groups = [list(range(len(places)))]
    for group in groups:
        accumulators = [emit.builder.load(slot) for slot in slots]
        sums = {number: walk.begin(emit, accumulators) for number in group}
        for step in range(walk.n_steps):
            for number in group:
                weight = registers[number][walk.register_of(step)]
                sums[number] = walk.step(emit, step, sums[number], weight, places[number][2])
        for number in group:
            accumulators = walk.finish(
                emit, sums[number], accumulators, scales[number], places[number][2]
            )
        for slot, value in zip(slots, accumulators, strict=True):
            emit.builder.store(value, slot)


class _Row:
    """One of the rows that are walked side by side, and its sums so far."""

    def __init__(self, emit: Emitter, walk: Walk, weights: Any, scales: Any, output: Any) -> None:
        self.emit, self.walk = emit, walk
        self.weights, self.scales, self.output = weights, scales, output
        self.slots = [cgutils.alloca_once(emit.builder, F32X16) for _ in range(walk.n_accumulators)]
        for slot in self.slots:
            emit.builder.store(emit.splat_constant(F32X16.element, 0.0), slot)

    def place(self, inputs: Any, index: Any) -> tuple[Any, Any, Any]:
        """Return where a superblock's weights, scales and activations are."""
        emit, walk = self.emit, self.walk
        return (
            emit.at(self.weights, index, walk.weight_bytes),
            emit.at(self.scales, index, walk.n_scales * walk.scale_bytes),
            emit.at(inputs, index, walk.lane_bytes),
        )


def two_rows_dot(walk: Walk) -> Any:
    """Make the intrinsic that multiplies two rows with one token.

    It takes int64 arguments: the addresses of weights and scales of one row and of the other, the
    numbers of columns and of scales in a row, the address of the activations and those of both
    float32 outputs, 1 to round the sums to BF16, and how many bytes ahead of the weights to ask
    for.  Any alignment; both rows may be the same.
    """
    walk = walk.for_rows

    def generate(emit: Emitter, args: list[Any]) -> None:
        w1, s1, w2, s2, n_columns, n_scales, inputs, y1, y2, rounds, ahead = args
        builder = emit.builder
        rows = [_Row(emit, walk, w1, s1, y1), _Row(emit, walk, w2, s2, y2)]
        n_full = builder.udiv(n_columns, integer(walk.n_columns))
        rest = builder.urem(n_columns, integer(walk.n_columns))
        n_groups = builder.udiv(n_full, integer(walk.in_flight))

        def several(group: Any) -> None:
            first = builder.mul(group, integer(walk.in_flight))
            for row in rows:
                indices = [builder.add(first, integer(i)) for i in range(walk.in_flight)]
                places = [row.place(inputs, index) for index in indices]
                _superblocks(emit, walk, places, row.slots, ahead)

        emit.loop(n_groups, several)
        done = builder.mul(n_groups, integer(walk.in_flight))
        has_rest = builder.icmp_unsigned("!=", rest, integer(0))
        n_left = builder.add(builder.sub(n_full, done), builder.zext(has_rest, I64))
        padding = Padding(emit, walk)

        def one(row: _Row, offset: Any) -> None:
            index = builder.add(done, offset)
            full = builder.icmp_unsigned("<", index, n_full)
            w, s, x = row.place(inputs, index)
            w, s = builder.select(full, w, padding.weights), builder.select(full, s, padding.scales)
            _superblocks(emit, walk, [(w, s, x)], row.slots, None)

        for row in rows:
            fill = partial(padding.fill, row.weights, row.scales, n_full, rest, n_scales)
            emit.when(has_rest, fill)
            emit.loop(n_left, partial(one, row))
            store_total(emit, walk, [builder.load(slot) for slot in row.slots], row.output, rounds)

    # numba reads the parameters off the function, so they are spelled out
    def dot(
        typing: Any, w1: Any, s1: Any, w2: Any, s2: Any, k: Any, n: Any, x: Any, y1: Any, y2: Any,
        r: Any, ahead: Any,
    ) -> Any:  # fmt: skip
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            generate(Emitter(builder), args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 11), code

    return intrinsic(dot)
