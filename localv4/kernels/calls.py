"""What threads share: argument lists, counters in memory, calls by address.

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
    "READ",
    "WRITE",
    "add",
    "call",
    "claim",
    "count",
    "finish",
    "give_way_by",
    "load",
    "move_bytes_by",
    "pointer",
    "put_word",
    "real",
    "replace",
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
def put_word(typing: Any, address: Any, index: Any, value: Any) -> Any:
    """Store a 64-bit integer at a place of a list."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.store(args[2], builder.gep(pointer, [args[1]]))
        return context.get_dummy_value()

    return types.void(types.int64, types.int64, types.int64), code


@intrinsic
def add(typing: Any, address: Any, number: Any) -> Any:
    """Add to a shared word; everything before is done for all threads, nothing after is begun."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        builder.atomic_rmw("add", pointer, args[1], "seq_cst")
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), code


@intrinsic
def load(typing: Any, address: Any) -> Any:
    """Load a shared word, in one order with every `add` and `replace`."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        return builder.load_atomic(pointer, "seq_cst", 8)

    return types.int64(types.int64), code


@intrinsic
def replace(typing: Any, address: Any, known: Any, number: Any) -> Any:
    """Put a number into a shared word if it still holds the known one; return whether it did."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        pointer = builder.inttoptr(args[0], ir.IntType(64).as_pointer())
        result = builder.cmpxchg(pointer, args[1], args[2], "seq_cst", "seq_cst")
        return builder.extract_value(result, 1)

    return types.boolean(types.int64, types.int64, types.int64), code


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


@intrinsic
def move_bytes_by(typing: Any, function: Any, end: Any, memory: Any, n_bytes: Any) -> Any:
    """Call the operating system's read or write, given by its address, with an end of a pipe."""

    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        whole, half = ir.IntType(64), ir.IntType(32)
        kind = ir.FunctionType(whole, [half, whole, whole])
        end = builder.trunc(args[1], half)
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [end, *args[2:]])
        return context.get_dummy_value()

    return types.void(*[types.int64] * 4), code


def _system_function(posix: str, windows_library: str, windows: str) -> int:
    """Return the address of a function of the operating system, or 0."""
    on_windows = sys.platform == "win32"
    try:
        library = ctypes.CDLL(windows_library if on_windows else None)
        function = getattr(library, windows if on_windows else posix)
        return ctypes.cast(function, ctypes.c_void_p).value or 0
    except (AttributeError, OSError):
        return 0


GIVE_WAY = _system_function("sched_yield", "kernel32", "SwitchToThread")
"""The function that `give_way_by` calls; 0 for none."""

READ = _system_function("read", "ucrtbase", "_read")
WRITE = _system_function("write", "ucrtbase", "_write")
"""What `move_bytes_by` calls."""


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
