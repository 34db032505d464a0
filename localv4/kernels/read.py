"""Reading memory as fast as it goes: what every figure of a kernel's speed is compared with.

The bytes are summed as 64-bit integers, so that no load can be left out.  Knows nothing of what
they mean.
"""

from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numpy.typing import NDArray

from localv4.kernels._jit import intrinsic
from localv4.kernels.launch import Kernel, kernel
from localv4.kernels.simd import I64, Emitter, vector

__all__ = ["READ_BYTES", "read_kernel"]

READ_BYTES = 1024
"""A unit is a multiple of this."""

_LINE = 64
_ACCUMULATORS = 4


def _sum(prefetches: bool) -> Any:
    """Make the intrinsic that sums the 64-bit integers of whole records of `READ_BYTES`."""
    kind = vector(I64, 8)

    def generate(emit: Emitter, address: Any, n_records: Any, ahead: Any) -> Any:
        builder = emit.builder
        slots = [cgutils.alloca_once(builder, kind) for _ in range(_ACCUMULATORS)]
        for slot in slots:
            builder.store(emit.splat_constant(I64, 0, 8), slot)

        def record(index: Any) -> None:
            first = emit.at(address, index, READ_BYTES)
            for line in range(READ_BYTES // _LINE):
                place = emit.offset(first, _LINE * line)
                if prefetches:
                    emit.prefetch(builder.add(place, ahead))
                slot = slots[line % _ACCUMULATORS]
                builder.store(builder.add(builder.load(slot), emit.load(place, kind)), slot)

        emit.loop(n_records, record)
        total = builder.load(slots[0])
        for slot in slots[1:]:
            total = builder.add(total, builder.load(slot))
        lanes = [builder.extract_element(total, ir.Constant(ir.IntType(32), i)) for i in range(8)]
        result = lanes[0]
        for lane in lanes[1:]:
            result = builder.add(result, lane)
        return result

    def read(typing: Any, address: Any, n_records: Any, ahead: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            return generate(Emitter(builder), *args)

        return types.int64(types.int64, types.int64, types.int64), code

    return intrinsic(read)


@cache
def read_kernel(prefetches: bool) -> Kernel:
    """Return the kernel that reads one linear stream a unit.

    Its arguments are the address and size of the memory, the bytes of a unit (a multiple of
    `READ_BYTES`; what is left at the end of the memory is read by the last unit, but for less
    than `READ_BYTES`), how many bytes ahead to prefetch, and int64 [n_units] for the sums.
    """
    read = _sum(prefetches)

    @kernel("i64, i64, i64, i64, i64[1]", name=f"read_{'ahead' if prefetches else 'plain'}")
    def read_unit(
        address: int, n_bytes: int, unit_bytes: int, ahead: int, sums: NDArray[Any], unit: int
    ) -> None:
        first = unit * unit_bytes
        last = min(first + unit_bytes, n_bytes)
        sums[unit] = read(address + first, (last - first) // READ_BYTES, ahead)

    return read_unit
