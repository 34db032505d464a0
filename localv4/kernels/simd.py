"""A thin layer over llvmlite for vector code: sixteen float32 lanes, any target.

Knows nothing of formats or layouts.  Only portable vector instructions are emitted
(shuffles, shifts, fused multiply-add), so LLVM lowers them to AVX-512, AVX2, NEON or
whatever the CPU has, with the same result in every bit.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import ir
from numba.core import cgutils

__all__ = ["BF16", "F16", "F32", "F32X16", "I8", "I16", "I32", "I64", "LANES", "Emitter", "vector"]

LANES = 16
I8, I16, I32, I64 = (ir.IntType(bits) for bits in (8, 16, 32, 64))
F16, F32 = ir.HalfType(), ir.FloatType()


class _Bf16(ir.Type):  # type: ignore[misc]
    """LLVM's bfloat, which llvmlite does not name."""

    def _to_string(self) -> str:
        return "bfloat"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Bf16)

    def __hash__(self) -> int:
        return hash("bfloat")


BF16 = _Bf16()


def vector(element: Any, lanes: int = LANES) -> Any:
    """Return the LLVM type of `lanes` elements."""
    return ir.VectorType(element, lanes)


F32X16 = vector(F32)


class Emitter:
    """Emits vector instructions at the builder's position."""

    def __init__(self, builder: Any) -> None:
        self.builder = builder

    def constant(self, element: Any, values: Sequence[float]) -> Any:
        """Return a vector constant."""
        return ir.Constant(vector(element, len(values)), list(values))

    def splat_constant(self, element: Any, value: float, lanes: int = LANES) -> Any:
        """Return a vector constant with one value in every lane."""
        return self.constant(element, [value] * lanes)

    def splat(self, value: Any) -> Any:
        """Return 16 lanes of a scalar."""
        single = self.builder.insert_element(
            ir.Constant(vector(value.type), ir.Undefined), value, ir.Constant(I32, 0)
        )
        return self.shuffle(single, single, [0] * LANES)

    def shuffle(self, first: Any, second: Any, lanes: Iterable[int]) -> Any:
        """Pick lanes of the concatenation of two vectors."""
        return self.builder.shuffle_vector(first, second, self.constant(I32, list(lanes)))

    def offset(self, address: Any, step: Any, count: int = 1) -> Any:
        """Return address + step * count; step is a value or a number of bytes."""
        if isinstance(step, int):
            return self.builder.add(address, ir.Constant(I64, step * count))
        return self.builder.add(address, self.builder.mul(step, ir.Constant(I64, count)))

    def up(self, value: Any, size: Any) -> Any:
        """Return value / size rounded up."""
        return self.builder.udiv(self.builder.add(value, self.offset(size, -1)), size)

    def at(self, address: Any, index: Any, n_bytes: int) -> Any:
        """Return the address of record `index` in an array of records."""
        return self.builder.add(address, self.builder.mul(index, ir.Constant(I64, n_bytes)))

    def load(self, address: Any, kind: Any, alignment: int = 1) -> Any:
        """Load from an address of any alignment, or of the one promised."""
        value = self.builder.load(self.builder.inttoptr(address, kind.as_pointer()))
        value.align = alignment
        return value

    def store(self, address: Any, value: Any, alignment: int = 1) -> None:
        """Store to an address of any alignment, or of the one promised."""
        pointer = self.builder.inttoptr(address, value.type.as_pointer())
        self.builder.store(value, pointer).align = alignment

    def fma(self, left: Any, right: Any, addend: Any) -> Any:
        """Return left * right + addend, rounded once, lane by lane."""
        kind = left.type
        function = cgutils.get_or_insert_function(
            self.builder.module,
            ir.FunctionType(kind, [kind] * 3),
            f"llvm.fma.v{kind.count}f32",
        )
        return self.builder.call(function, [left, right, addend])

    def call(self, name: str, kind: Any, *arguments: Any) -> Any:
        """Call an LLVM intrinsic that returns `kind`."""
        signature = ir.FunctionType(kind, [argument.type for argument in arguments])
        function = cgutils.get_or_insert_function(self.builder.module, signature, name)
        return self.builder.call(function, arguments)

    def prefetch(self, address: Any, locality: int = 3) -> None:
        """Ask for the cache line at an address, which may lie outside the array.

        `locality` is 3 for all caches, 2 for all but the nearest.
        """
        pointer = self.builder.inttoptr(address, I8.as_pointer())
        flags = [ir.Constant(I32, value) for value in (0, locality, 1)]  # read, data
        self.call("llvm.prefetch.p0", ir.VoidType(), pointer, *flags)

    def halves(self, value: Any) -> list[Any]:
        """Split a vector into its lower and its upper half."""
        half = value.type.count // 2
        return [self.shuffle(value, value, range(i * half, (i + 1) * half)) for i in (0, 1)]

    def join(self, lower: Any, upper: Any) -> Any:
        """Put two vectors side by side."""
        return self.shuffle(lower, upper, range(2 * lower.type.count))

    def transposed(self, rows: Sequence[Any]) -> list[Any]:
        """Exchange rows and columns of a square of registers."""
        rows, count, step = list(rows), len(rows), 1
        while step < count:
            turned = list(rows)
            for i in range(count):
                if i & step:
                    continue
                first, second = rows[i], rows[i | step]
                low = [c if not c & step else count + (c ^ step) for c in range(count)]
                high = [(c | step) if not c & step else count + c for c in range(count)]
                turned[i] = self.shuffle(first, second, low)
                turned[i | step] = self.shuffle(first, second, high)
            rows = turned
            step *= 2
        return rows

    def neighbours(self, value: Any) -> Any:
        """Exchange lanes 0 and 1, 2 and 3, and so on."""
        return self.shuffle(value, value, [lane ^ 1 for lane in range(value.type.count)])

    def round_to_bf16(self, value: Any) -> Any:
        """Round finite float32 (a scalar or lanes) to BF16, ties to even, kept as float32."""
        builder = self.builder
        scalar = value.type == F32
        bits_kind = I32 if scalar else vector(I32)

        def constant(number: int) -> Any:
            return ir.Constant(I32, number) if scalar else self.splat_constant(I32, number)

        bits = builder.bitcast(value, bits_kind)
        odd = builder.and_(builder.lshr(bits, constant(16)), constant(1))
        bits = builder.add(builder.add(bits, constant(0x7FFF)), odd)
        return builder.bitcast(builder.and_(bits, constant(-65536)), value.type)

    def lane_sum(self, value: Any) -> Any:
        """Sum the lanes as a tree: upper half onto lower half until one is left."""
        count = value.type.count
        while count > 1:
            count //= 2
            lower = self.shuffle(value, value, range(count))
            upper = self.shuffle(value, value, range(count, 2 * count))
            value = self.builder.fadd(lower, upper)
        return self.builder.extract_element(value, ir.Constant(I32, 0))

    def copy_bytes(self, target: Any, source: Any, count: Any) -> None:
        """Copy a number of bytes known at run time, one at a time."""
        with cgutils.for_range(self.builder, count) as loop:
            byte = self.load(self.builder.add(source, loop.index), I8)
            self.store(self.builder.add(target, loop.index), byte)

    def memory(self, n_bytes: int, alignment: int = 1) -> Any:
        """Return the address of uninitialised stack memory."""
        memory = cgutils.alloca_once(self.builder, I8, size=ir.Constant(I32, n_bytes))
        memory.align = alignment
        return self.builder.ptrtoint(memory, I64)

    def scratch(self, n_bytes: Any) -> Any:
        """Return the address of stack memory of a size known at run time, aligned to 64 bytes."""
        size = self.builder.add(n_bytes, ir.Constant(I64, 64))
        memory = self.builder.ptrtoint(self.builder.alloca(I8, size=size), I64)
        return self.builder.and_(self.offset(memory, 63), ir.Constant(I64, -64))

    def clear(self, address: Any, n_bytes: int) -> None:
        """Set a multiple of 64 bytes to zero."""
        for start in range(0, n_bytes, 64):
            self.store(self.offset(address, start), self.splat_constant(I8, 0, 64))

    def accumulators(self, count: int) -> list[Any]:
        """Return stack slots for `count` vectors of float32 zeros (registers after mem2reg)."""
        slots = [cgutils.alloca_once(self.builder, F32X16) for _ in range(count)]
        for slot in slots:
            self.builder.store(self.splat_constant(F32, 0.0), slot)
        return slots

    def loop(self, count: Any, body: Callable[[Any], None]) -> None:
        """Emit body(index) for index in 0..count-1."""
        with cgutils.for_range(self.builder, count) as loop:
            body(loop.index)

    def when(self, condition: Any, body: Callable[[], None]) -> None:
        """Emit body under an unlikely condition."""
        with self.builder.if_then(condition, likely=False):
            body()
