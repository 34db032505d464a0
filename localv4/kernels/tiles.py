"""Small dense products in float32 with the operands held in registers: four rows by four.

`products` multiplies rows with rows.  It is a plain Python function, its statement; compiled
code gets vector code in its place.  The order of a sum depends on its length alone.

Knows nothing of heads or entries.
"""

from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import F32 as F32_ELEMENT
from localv4.kernels.simd import F32X16, I64, Emitter

__all__ = ["LANES", "TILE", "products"]

F32 = NDArray[np.float32]

TILE = 4  # rows of each operand in registers
LANES = 16
_VECTOR = 4 * LANES  # bytes


def products(left: F32, right: F32, first: int, n_columns: int, out: F32) -> None:
    """Multiply rows with rows over some of their columns: out = left right^T.

    Parameters
    ----------
    left, right
        float32 [n, columns] and [m, columns]; n and m are multiples of 4.
    first, n_columns
        Which columns; n_columns is a multiple of 16.
    out
        Written: float32 [n, at least m].
    """
    columns = slice(first, first + n_columns)
    for row, column in np.ndindex(len(left), len(right)):
        out[row, column] = np.sum(left[row, columns] * right[column, columns])


class _Matrix:
    """An array argument inside an intrinsic: address, rows, bytes of a row."""

    def __init__(self, emitter: Emitter, context: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, emitter.builder, value)
        shape = emitter.builder.extract_value
        self.emitter = emitter
        self.address = emitter.builder.ptrtoint(array.data, I64)
        self.n_rows = shape(array.shape, 0)
        self.row_bytes = shape(array.strides, 0)

    def rows(self, first: Any) -> list[Any]:
        """Return the addresses of four rows."""
        builder = self.emitter.builder
        start = builder.add(self.address, builder.mul(first, self.row_bytes))
        return [self.emitter.offset(start, self.row_bytes, count) for count in range(TILE)]


def _merged(emitter: Emitter, vectors: list[Any]) -> Any:
    """Sum the lanes of sixteen vectors into the lanes of one, each as a tree."""
    size = LANES
    while size > 1:
        size //= 2
        lanes = range(LANES)
        # runs of `size` lanes belong together; the first of each two runs and the second
        low = [2 * size * (lane // size) + lane % size for lane in lanes]
        pairs = zip(vectors[::2], vectors[1::2], strict=True)
        vectors = [
            emitter.builder.fadd(
                emitter.shuffle(first, second, low),
                emitter.shuffle(first, second, [lane + size for lane in low]),
            )
            for first, second in pairs
        ]
    return vectors[0]


def _step(emitter: Emitter, left: list[Any], right: list[Any], sums: list[Any]) -> None:
    """Add the products of every left vector with every right one to sixteen sums."""
    builder = emitter.builder
    for row, one in enumerate(left):
        for column, other in enumerate(right):
            slot = sums[TILE * row + column]
            builder.store(emitter.fma(one, other, builder.load(slot)), slot)


def _clear(emitter: Emitter, slots: list[Any]) -> None:
    for slot in slots:
        emitter.builder.store(emitter.splat_constant(F32_ELEMENT, 0.0), slot)


@intrinsic
def _products(typing: Any, left: Any, right: Any, first: Any, n_columns: Any, out: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        emitter = Emitter(builder)
        one, other, result = (
            _Matrix(emitter, context, signature.args[i], args[i]) for i in (0, 1, 4)
        )
        sums = emitter.accumulators(TILE * TILE)
        start = builder.mul(args[2], ir.Constant(I64, 4))
        n_vectors = builder.udiv(args[3], ir.Constant(I64, LANES))
        tile = ir.Constant(I64, TILE)

        def tile_of(left_first: Any, right_first: Any) -> None:
            _clear(emitter, sums)
            addresses = [
                [builder.add(address, start) for address in matrix.rows(number)]
                for matrix, number in ((one, left_first), (other, right_first))
            ]

            def step(index: Any) -> None:
                loaded = [
                    [emitter.load(emitter.at(a, index, _VECTOR), F32X16) for a in four]
                    for four in addresses
                ]
                _step(emitter, loaded[0], loaded[1], sums)

            emitter.loop(n_vectors, step)
            merged = _merged(emitter, [builder.load(slot) for slot in sums])
            for row, address in enumerate(result.rows(left_first)):
                part = emitter.shuffle(merged, merged, range(TILE * row, TILE * row + TILE))
                emitter.store(emitter.at(address, right_first, 4), part)

        def column(index: Any) -> None:
            emitter.loop(
                builder.udiv(one.n_rows, tile),
                lambda row: tile_of(builder.mul(row, tile), builder.mul(index, tile)),
            )

        emitter.loop(builder.udiv(other.n_rows, tile), column)
        return context.get_dummy_value()

    return types.void(left, right, types.int64, types.int64, out), code


@overload(products)  # type: ignore[untyped-decorator]
def _compiled_products(left: Any, right: Any, first: Any, n_columns: Any, out: Any) -> Any:
    def implementation(left: Any, right: Any, first: Any, n_columns: Any, out: Any) -> None:
        _products(left, right, first, n_columns, out)

    return implementation
