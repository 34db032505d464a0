"""Rows of weights times a few tokens: weights are decoded in registers, once a token.

Rows lie one after the other, so the weights are one linear stream, which is what hardware
prefetchers like.  Weights far ahead are asked for into the second cache, which waits for many
lines of memory at once, and near ones into the first, which waits for few: if they were asked for
into the first alone, lines that memory has yet to send would take all its places.  The order of
sums is described in walks.py.

Knows nothing of a row's place in a matrix, of threads or of activation rounding.
Twin: tests/reference/row_dot.py.
"""

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import F32X16, I32, I64, Emitter
from localv4.kernels.walk import Walk

__all__ = ["Padding", "integer", "read_i32", "row_dot", "store_total"]

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


def row_dot(walk: Walk) -> Any:
    """Make the intrinsic that multiplies one row with one token.

    It takes int64 arguments: the addresses of weights and scales, the numbers of columns and
    of scales in the row, the address of the activations and of the float32 output, 1 to round
    the sum to BF16, and how many bytes ahead of the weights to ask for.  Any alignment.
    """
    walk = walk.for_rows

    def generate(emit: Emitter, args: list[Any]) -> None:
        weights, scales, n_columns, n_scales, inputs, output, rounds, ahead = args
        builder = emit.builder
        slots = [cgutils.alloca_once(builder, F32X16) for _ in range(walk.n_accumulators)]
        for slot in slots:
            builder.store(emit.splat_constant(F32X16.element, 0.0), slot)
        n_full = builder.udiv(n_columns, integer(walk.n_columns))
        rest = builder.urem(n_columns, integer(walk.n_columns))

        def place(index: Any) -> tuple[Any, Any, Any]:
            return (
                emit.at(weights, index, walk.weight_bytes),
                emit.at(scales, index, walk.n_scales * walk.scale_bytes),
                emit.at(inputs, index, walk.lane_bytes),
            )

        n_groups = builder.udiv(n_full, integer(walk.in_flight))

        def several(group: Any) -> None:
            first = builder.mul(group, integer(walk.in_flight))
            places = [place(builder.add(first, integer(i))) for i in range(walk.in_flight)]
            _superblocks(emit, walk, places, slots, ahead)

        emit.loop(n_groups, several)
        done = builder.mul(n_groups, integer(walk.in_flight))
        padding = Padding(emit, walk)
        has_rest = builder.icmp_unsigned("!=", rest, integer(0))
        emit.when(has_rest, lambda: padding.fill(weights, scales, n_full, rest, n_scales))

        def one(offset: Any) -> None:
            index = builder.add(done, offset)
            full = builder.icmp_unsigned("<", index, n_full)
            w, s, x = place(index)
            w, s = builder.select(full, w, padding.weights), builder.select(full, s, padding.scales)
            _superblocks(emit, walk, [(w, s, x)], slots, None)

        emit.loop(builder.add(builder.sub(n_full, done), builder.zext(has_rest, I64)), one)
        store_total(emit, walk, [builder.load(slot) for slot in slots], output, rounds)

    # numba reads the parameters off the function, so they are spelled out
    def dot(typing: Any, w: Any, s: Any, k: Any, n: Any, x: Any, y: Any, r: Any, ahead: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            generate(Emitter(builder), args)
            return context.get_dummy_value()

        return types.void(*[types.int64] * 8), code

    return intrinsic(dot)
