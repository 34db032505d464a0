"""Products of small matrices of 32-bit words: a float32 number each, or two BF16 numbers.

A word with two BF16 numbers times another such word is the sum of both products: one
instruction where the CPU has it, and in the matrix unit (AMX) 16 x 16 sums of 16 of them.  The
order of a sum depends on its length alone.

Both functions are plain Python, their statement; compiled code gets vector code in their place.
Knows nothing of heads or entries.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import overload
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels._jit import intrinsic
from localv4.kernels.simd import BF16, F32X16, I8, I32, I64, LANES, Emitter, vector
from localv4.kernels.simd import F32 as F32_ELEMENT

__all__ = ["GRAIN", "LANES", "PAIRS", "add_products", "turn"]

F32 = NDArray[np.float32]
Words = NDArray[np.float32] | NDArray[np.int32]

PAIRS = tiers.active() in ("amx", "avx512_bf16")
"""Whether words of two BF16 numbers are faster than float32."""

_MATRIX_UNIT = tiers.active() == "amx"
GRAIN = 32 if _MATRIX_UNIT else 8
"""`add_products` wants a multiple of rows and, for pairs, of half as many words."""

_VECTOR = 4 * LANES  # bytes
# what fits the registers: 32 of sixteen lanes, or 16 of eight or fewer
_WIDE = "avx512f" in tiers.features()
_ROWS = 8 if _WIDE else 4  # of sums in registers
_VOID = ir.VoidType()


def _floats(words: Words) -> list[F32]:
    """Return the float32 numbers of words: one array, or those of the even and odd places."""
    if words.dtype == np.float32:
        return [words.view(np.float32)]
    bits = np.ascontiguousarray(words).view(np.uint32)
    return [(bits << np.uint32(16)).view(np.float32), (bits & np.uint32(0xFFFF0000)).view("f4")]


def add_products(left: Words, right: Words, n_words: int, adds: int, out: F32) -> None:
    """Multiply rows with columns: out = left right, or out + left right.

    Parameters
    ----------
    left
        float32 [n, at least n_words], or int32 where a word is two BF16 numbers, the first in
        the lower bits.  n is a multiple of `GRAIN`, or of 16 with `GRAIN` 32.
    right
        The same type, [at least n_words, m], or [m / 16, at least n_words, 16]; m is a multiple
        of 16.
    n_words
        For int32 a multiple of `GRAIN` / 2.
    adds
        Whether to add to `out`; 0 overwrites it.
    out
        Updated: float32 [n, at least m].
    """
    if right.ndim == 3:
        right = np.concatenate(list(right), axis=1)
    target = out[: len(left), : right.shape[1]]
    if not adds:
        target[:] = 0
    parts = zip(_floats(left[:, :n_words]), _floats(right[:n_words]), strict=True)
    for rows, columns in parts:
        for word in range(n_words):
            target += rows[:, word, None] * columns[word]


def turn(source: Words, target: Words) -> None:
    """Exchange rows and columns: target[j, i] = source[i, j].

    Parameters
    ----------
    source
        float32 or int32 [n, m]; both are multiples of 16.
    target
        Written: the same type, [at least m, at least n].
    """
    target[: source.shape[1], : source.shape[0]] = source.T


class _Matrix:
    """An array argument inside an intrinsic: address, sizes, bytes of a row."""

    def __init__(self, emit: Emitter, context: Any, kind: Any, value: Any) -> None:
        array = context.make_array(kind)(context, emit.builder, value)
        extract = emit.builder.extract_value
        self.emit = emit
        self.address = emit.builder.ptrtoint(array.data, I64)
        self.n_rows = extract(array.shape, 0)
        self.row_bytes = extract(array.strides, kind.ndim - 2)
        if kind.ndim == 3:
            self.vectors, self.vector_bytes = self.n_rows, extract(array.strides, 0)
        else:
            columns = extract(array.shape, 1)
            self.vectors = emit.builder.udiv(columns, ir.Constant(I64, LANES))
            self.vector_bytes = ir.Constant(I64, _VECTOR)

    def place(self, row: Any, vector: Any) -> Any:
        """Return the address of sixteen columns of a row."""
        builder = self.emit.builder
        across = builder.add(self.address, builder.mul(vector, self.vector_bytes))
        return builder.add(across, builder.mul(row, self.row_bytes))


class _Vectors:
    """Sums of some rows and sixteen columns in registers; a word at a time."""

    def __init__(self, emit: Emitter, pairs: bool, args: list[Any]) -> None:
        self.emit, self.builder, self.pairs = emit, emit.builder, pairs
        self.left, self.right, self.n_words, self.adds, self.out = args
        self.slots = [cgutils.alloca_once(self.builder, F32X16) for _ in range(2 * _ROWS)]

    def generate(self) -> None:
        """Emit all sums: columns outside, as those of `right` stay in a cache meanwhile."""
        builder = self.builder
        rows = builder.udiv(self.left.n_rows, ir.Constant(I64, _ROWS))
        width = 2 if _WIDE else 1
        groups = builder.udiv(self.right.vectors, ir.Constant(I64, width))

        def several(first: Any, count: int) -> None:
            self.emit.loop(
                rows,
                lambda row: self._tile(builder.mul(row, ir.Constant(I64, _ROWS)), first, count),
            )

        self.emit.loop(
            groups, lambda group: several(builder.mul(group, ir.Constant(I64, width)), width)
        )
        if width == 2:
            odd = builder.trunc(self.right.vectors, ir.IntType(1))
            with builder.if_then(odd):
                several(builder.sub(self.right.vectors, ir.Constant(I64, 1)), 1)

    def _tile(self, row: Any, first: Any, count: int) -> None:
        emit, builder = self.emit, self.builder
        vectors = [builder.add(first, ir.Constant(I64, i)) for i in range(count)]
        rows = [builder.add(row, ir.Constant(I64, i)) for i in range(_ROWS)]
        targets = [self.out.place(r, v) for r in rows for v in vectors]
        keeps = builder.icmp_unsigned("!=", self.adds, ir.Constant(I64, 0))
        for slot in self.slots[: len(targets)]:
            builder.store(emit.splat_constant(F32_ELEMENT, 0.0), slot)
        with builder.if_then(keeps):
            for slot, target in zip(self.slots, targets, strict=False):
                builder.store(emit.load(target, F32X16), slot)
        zero = ir.Constant(I64, 0)
        starts = [self.left.place(r, zero) for r in rows]
        sources = [self.right.place(zero, v) for v in vectors]

        def step(word: Any) -> None:
            at = builder.mul(word, self.right.row_bytes)
            columns = [emit.load(builder.add(source, at), vector(I32)) for source in sources]
            for number, start in enumerate(starts):
                single = emit.splat(emit.load(emit.at(start, word, 4), I32))
                for i, column in enumerate(columns):
                    slot = self.slots[number * count + i]
                    builder.store(self._product(single, column, builder.load(slot)), slot)

        emit.loop(self.n_words, step)
        for slot, target in zip(self.slots, targets, strict=False):
            emit.store(target, builder.load(slot))

    def _product(self, left: Any, right: Any, sums: Any) -> Any:
        emit, cast = self.emit, self.builder.bitcast
        if not self.pairs:
            return emit.fma(cast(left, F32X16), cast(right, F32X16), sums)
        if PAIRS:
            words = [cast(word, vector(BF16, 2 * LANES)) for word in (left, right)]
            return emit.call("llvm.x86.avx512bf16.dpbf16ps.512", F32X16, sums, *words)
        for half in (self._lower, self._upper):
            sums = emit.fma(cast(half(left), F32X16), cast(half(right), F32X16), sums)
        return sums

    def _lower(self, words: Any) -> Any:
        return self.builder.shl(words, self.emit.splat_constant(I32, 16))

    def _upper(self, words: Any) -> Any:
        return self.builder.and_(words, self.emit.splat_constant(I32, -65536))


class _Tiles:
    """Sums of 32 rows (or 16) and 32 columns (or 16) in four tiles of the matrix unit."""

    def __init__(self, emit: Emitter, args: list[Any]) -> None:
        self.emit, self.builder = emit, emit.builder
        self.left, self.right, self.n_words, self.adds, self.out = args

    def generate(self) -> None:
        """Emit all sums: columns outside, as those of `right` stay in a cache meanwhile."""
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        memory = self.emit.memory(64, 64)
        self.emit.store(memory, self.emit.constant(I8, values), 64)
        self._tile("ldtilecfg", self._pointer(memory))
        rows = self.builder.udiv(self.left.n_rows, ir.Constant(I64, LANES))
        self._halved(
            self.right.vectors,
            lambda column, across: self._halved(
                rows, lambda row, down: self._sums(row, down, column, across)
            ),
        )
        self.emit.call("llvm.x86.tilerelease", _VOID)

    def _halved(self, count: Any, body: Callable[[Any, int], None]) -> None:
        """Emit body(number, 2) for two at a time, and body(number, 1) for an odd last one."""
        builder = self.builder
        pairs = builder.udiv(count, ir.Constant(I64, 2))
        self.emit.loop(pairs, lambda pair: body(builder.mul(pair, ir.Constant(I64, 2)), 2))
        with builder.if_then(builder.trunc(count, ir.IntType(1))):
            body(builder.sub(count, ir.Constant(I64, 1)), 1)

    def _tile(self, name: str, *arguments: Any) -> None:
        numbers = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
        self.emit.call(f"llvm.x86.{name}", _VOID, *numbers)

    def _pointer(self, address: Any) -> Any:
        return self.builder.inttoptr(address, I8.as_pointer())

    def _sums(self, row: Any, down: int, column: Any, across: int) -> None:
        builder, zero = self.builder, ir.Constant(I64, 0)
        firsts = [
            builder.mul(builder.add(row, ir.Constant(I64, i)), ir.Constant(I64, LANES))
            for i in range(down)
        ]
        columns = [builder.add(column, ir.Constant(I64, i)) for i in range(across)]
        targets = {
            2 * i + j: self._pointer(self.out.place(first, number))
            for i, first in enumerate(firsts)
            for j, number in enumerate(columns)
        }
        keeps = builder.icmp_unsigned("!=", self.adds, zero)
        with builder.if_else(keeps) as (then, otherwise):
            with then:
                for number, target in targets.items():
                    self._tile("tileloadd64", number, target, self.out.row_bytes)
            with otherwise:
                for number in targets:
                    self._tile("tilezero", number)
        lefts = [self.left.place(first, zero) for first in firsts]
        rights = [self.right.place(zero, number) for number in columns]

        def step(index: Any) -> None:
            words = builder.mul(index, ir.Constant(I64, LANES))
            there = builder.mul(words, self.right.row_bytes)
            for i, start in enumerate(lefts):
                here = self._pointer(self.emit.at(start, words, 4))
                self._tile("tileloadd64", 4 + i, here, self.left.row_bytes)
            for j, start in enumerate(rights):
                here = self._pointer(builder.add(start, there))
                self._tile("tileloadd64", 6 + j, here, self.right.row_bytes)
            for i in range(down):
                for j in range(across):
                    self._tile("tdpbf16ps", 2 * i + j, 4 + i, 6 + j)

        self.emit.loop(builder.udiv(self.n_words, ir.Constant(I64, LANES)), step)
        for number, target in targets.items():
            self._tile("tilestored64", number, target, self.out.row_bytes)


@intrinsic
def _add_products(typing: Any, left: Any, right: Any, n_words: Any, adds: Any, out: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        emit, kinds = Emitter(builder), signature.args
        one, other, result = (_Matrix(emit, context, kinds[i], args[i]) for i in (0, 1, 4))
        given = [one, other, args[2], args[3], result]
        pairs = kinds[0].dtype == types.int32
        made = _Tiles(emit, given) if pairs and _MATRIX_UNIT else _Vectors(emit, pairs, given)
        made.generate()
        return context.get_dummy_value()

    return types.void(left, right, types.int64, types.int64, out), code


@intrinsic
def _turn(typing: Any, source: Any, target: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        emit = Emitter(builder)
        one, other = (_Matrix(emit, context, signature.args[i], args[i]) for i in (0, 1))
        lanes = ir.Constant(I64, LANES)

        def square(down: Any, across: Any) -> None:
            first = builder.mul(down, lanes)
            place = one.place(first, across)
            rows = [
                emit.load(emit.offset(place, one.row_bytes, i), vector(I32)) for i in range(LANES)
            ]
            place = other.place(builder.mul(across, lanes), down)
            for i, row in enumerate(emit.transposed(rows)):
                emit.store(emit.offset(place, other.row_bytes, i), row)

        emit.loop(
            builder.udiv(one.n_rows, lanes),
            lambda down: emit.loop(one.vectors, lambda across: square(down, across)),
        )
        return context.get_dummy_value()

    return types.void(source, target), code


@overload(add_products)  # type: ignore[untyped-decorator]
def _compiled_add_products(left: Any, right: Any, n_words: Any, adds: Any, out: Any) -> Any:
    def implementation(left: Any, right: Any, n_words: Any, adds: Any, out: Any) -> None:
        _add_products(left, right, n_words, adds, out)

    return implementation


@overload(turn)  # type: ignore[untyped-decorator]
def _compiled_turn(source: Any, target: Any) -> Any:
    def implementation(source: Any, target: Any) -> None:
        _turn(source, target)

    return implementation
