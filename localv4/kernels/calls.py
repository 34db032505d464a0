"""What the loop of programs is made of: argument lists, shared counters, calls by address.

Knows nothing of programs or kernels.
"""

import ctypes
import platform
import sys
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils

from localv4.kernels._jit import intrinsic

__all__ = [
    "DTYPES",
    "GIVE_WAY",
    "address_of",
    "call",
    "claim",
    "count",
    "finish",
    "give_way_by",
    "pointer",
    "real",
    "word",
]

DTYPES = {
    "f32": np.float32,
    "u8": np.uint8,
    "u16": np.uint16,
    "i32": np.int32,
    "i64": np.int64,
}
"""Of a kernel's arrays."""


@intrinsic
def word(typing: Any, address: Any, index: Any) -> Any:
    """Load the 64-bit integer at a place of an argument list."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return types.int64(types.int64, types.int64), code


@intrinsic
def real(typing: Any, address: Any, index: Any) -> Any:
    """Load the float64 at a place of an argument list."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.DoubleType().as_pointer())
        return builder.load(builder.gep(pointer, [args[1]]))

    return types.float64(types.int64, types.int64), code


@intrinsic
def claim(typing: Any, address: Any) -> Any:
    """Take the next number of a shared counter."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "monotonic")

    return types.int64(types.int64), code


@intrinsic
def finish(typing: Any, address: Any) -> Any:
    """Count a unit that is done, after all that it wrote."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.atomic_rmw("add", pointer, ir.Constant(ir.IntType(64), 1), "release")
        return context.get_dummy_value()

    return types.void(types.int64), code


@intrinsic
def count(typing: Any, address: Any) -> Any:
    """Load how many units are done, before all that is read later; pause for a moment first."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        if platform.machine().lower() in ("x86_64", "amd64"):
            kind = ir.FunctionType(ir.VoidType(), [])
            name = "llvm.x86.sse2.pause"
            builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [])
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "acquire", 8)

    return types.int64(types.int64), code


@intrinsic
def give_way_by(typing: Any, function: Any) -> Any:
    """Call the operating system's function, given by its address, that lets other threads run."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        kind = ir.FunctionType(ir.IntType(32), [])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [])
        return context.get_dummy_value()

    return types.void(types.int64), code


def _find_give_way() -> int:
    """Return the address of what `give_way_by` calls, or 0."""
    try:
        windows = sys.platform == "win32"
        library = ctypes.CDLL("kernel32" if windows else None)
        function = library.SwitchToThread if windows else library.sched_yield
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


GIVE_WAY = _find_give_way()
"""The function that `give_way_by` calls; 0 for none."""


@intrinsic
def call(typing: Any, function: Any, arguments: Any, unit: Any, worker: Any) -> Any:
    """Call a kernel by its address."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * 3)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), args[1:])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


def pointer(dtype: str) -> Any:
    """Make the intrinsic that turns an address into a typed pointer."""
    kind = types.CPointer(numba.from_dtype(np.dtype(DTYPES[dtype])))

    def typed(typing: Any, address: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            return builder.inttoptr(args[0], context.get_value_type(kind))

        return kind(types.int64), code

    return intrinsic(typed)


@intrinsic
def address_of(typing: Any, array: Any) -> Any:
    """Return the address of an array's first element."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        data = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(data, ir.IntType(64))

    return types.int64(array), code
