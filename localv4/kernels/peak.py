"""The most products a second that the CPU's instructions give: the roof of large batches.

Sums of products in registers, with enough of them in flight that only the units that multiply
are waited for.  Knows nothing of formats.
"""

from collections.abc import Callable
from functools import cache
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils

from localv4.kernels import tiers
from localv4.kernels._jit import intrinsic
from localv4.kernels.launch import Kernel, kernel
from localv4.kernels.simd import BF16, F32, I8, I16, I32, I64, Emitter, vector

__all__ = ["OPERAND_BYTES", "PEAKS", "peak_kernel", "peak_products"]

OPERAND_BYTES = 8192
"""Of operands; they stay in the nearest cache."""

_STEPS = 4  # in the loop's body
_PAIRS = ("amx", "avx512_bf16")  # tiers that multiply pairs of BF16
_BYTE_DOTS = (*_PAIRS, "avx512_vnni")
_TILE_PRODUCTS = {"matrix_bf16": 16 * 16 * 32, "matrix_bytes": 16 * 16 * 64}
_TILES = 4  # of sums

PEAKS = ("f32", "bf16", "bytes", "matrix_bf16", "matrix_bytes")
"""Kinds: float32 fused multiply-add, pairs of BF16, unsigned times signed bytes; and the latter
two in the matrix unit."""


def _lanes() -> int:
    """Return how many float32 lanes a register of the CPU that is compiled for has."""
    if tiers.active() == "avx2":
        return 8
    found = tiers.features()
    return 16 if "avx512f" in found else 8 if "avx2" in found else 4


def _in_flight(kind: str) -> int:
    """Return the number of sums, which must fit the registers beside two operands."""
    if kind == "bytes" and tiers.active() in ("avx512", "avx2"):
        return 8
    return 24 if _lanes() == 16 else 12


def peak_products(kind: str) -> int:
    """Return the products of one round of `peak_kernel`, or 0 if the tier has no such way.

    Parameters
    ----------
    kind
        One of `PEAKS`.
    """
    tier = tiers.active()
    if kind in _TILE_PRODUCTS:
        return _TILE_PRODUCTS[kind] * _TILES * _STEPS if tier == "amx" else 0
    if (kind == "bf16" and tier not in _PAIRS) or (kind == "bytes" and tier == "generic"):
        return 0
    return {"f32": 1, "bf16": 2, "bytes": 4}[kind] * _lanes() * _in_flight(kind) * _STEPS


class _Way:
    """One instruction mix: the type of its sums and operands, and a step."""

    def __init__(self, kind: str) -> None:
        lanes = _lanes()
        self.element = I32 if kind == "bytes" else F32
        self.sums = vector(self.element, lanes)
        self.operand = {
            "f32": self.sums,
            "bf16": vector(BF16, 2 * lanes),
            "bytes": vector(I8, 4 * lanes),
        }[kind]
        self._kind = kind
        self._has_byte_dots = tiers.active() in _BYTE_DOTS
        self._wide = lanes == 16
        self._lanes = lanes

    def step(self, emit: Emitter, left: Any, right: Any, sums: Any) -> Any:
        """Add products to a register of sums."""
        if self._kind == "f32":
            return emit.fma(left, right, sums)
        if self._kind == "bf16":
            return emit.call("llvm.x86.avx512bf16.dpbf16ps.512", self.sums, sums, left, right)
        if self._has_byte_dots:
            words = [emit.builder.bitcast(value, self.sums) for value in (left, right)]
            return emit.call("llvm.x86.avx512.vpdpbusd.512", self.sums, sums, *words)
        # sums of words, as the kernels keep them: they are widened a quarter as often
        words = vector(I16, 2 * self._lanes)
        name = "llvm.x86.avx512.pmaddubs.w.512" if self._wide else "llvm.x86.avx2.pmadd.ub.sw"
        pairs = emit.call(name, words, left, right)
        added = emit.builder.add(emit.builder.bitcast(sums, words), pairs)
        return emit.builder.bitcast(added, self.sums)

    @property
    def loads(self) -> bool:
        """Whether each product needs a load, or the compiler would multiply once for all."""
        return self._kind == "bytes" and not self._has_byte_dots


def _products(kind: str) -> Any:
    """Make the intrinsic that adds products for a number of rounds."""
    way, count = _Way(kind), _in_flight(kind)

    def generate(emit: Emitter, operands: Any, n_rounds: Any) -> Any:
        builder = emit.builder
        left = emit.load(operands, way.operand)
        right = emit.load(emit.offset(operands, 64), way.operand)
        slots = [cgutils.alloca_once(builder, way.sums) for _ in range(count)]
        for number, slot in enumerate(slots):  # different, or they would be one
            builder.store(emit.splat_constant(way.element, number, way.sums.count), slot)

        def body(index: Any) -> None:
            half = builder.and_(index, ir.Constant(I64, 1))
            first = emit.at(operands, half, OPERAND_BYTES // 2)
            for number in range(_STEPS * count):
                slot = slots[number % count]
                value = emit.load(emit.offset(first, 64 * number), way.operand)
                value = value if way.loads else left
                builder.store(way.step(emit, value, right, builder.load(slot)), slot)

        emit.loop(n_rounds, body)
        total = builder.load(slots[0])
        add = builder.fadd if way.element == F32 else builder.add
        for slot in slots[1:]:
            total = add(total, builder.load(slot))
        lane = builder.extract_element(total, ir.Constant(I32, 0))
        return builder.fptosi(lane, I64) if way.element == F32 else builder.sext(lane, I64)

    return _intrinsic(generate)


def _tile_products(kind: str) -> Any:
    """Make the same for the matrix unit: 4 tiles of sums, 2 of each operand."""
    name = {"matrix_bf16": "tdpbf16ps", "matrix_bytes": "tdpbusd"}[kind]
    nothing = ir.VoidType()

    def generate(emit: Emitter, operands: Any, n_rounds: Any) -> Any:
        builder = emit.builder

        def tile(name: str, *arguments: Any) -> None:
            numbers = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
            emit.call(f"llvm.x86.{name}", nothing, *numbers)

        layout = emit.memory(64, 64)
        values = [1] + [0] * 15 + [64, 0] * 8 + [0] * 16 + [16] * 8 + [0] * 8
        emit.store(layout, emit.constant(I8, values), 64)
        tile("ldtilecfg", builder.inttoptr(layout, I8.as_pointer()))
        source = builder.inttoptr(operands, I8.as_pointer())
        for number in range(_TILES):
            tile("tilezero", number)
            tile("tileloadd64", _TILES + number, source, ir.Constant(I64, 64))

        def body(_: Any) -> None:
            for number in range(_STEPS * _TILES):
                sums = number % _TILES
                tile(name, sums, _TILES + sums // 2, _TILES + 2 + sums % 2)

        emit.loop(n_rounds, body)
        emit.call("llvm.x86.tilerelease", nothing)
        return n_rounds

    return _intrinsic(generate)


def _intrinsic(generate: Callable[[Emitter, Any, Any], Any]) -> Any:
    def products(typing: Any, operands: Any, n_rounds: Any) -> Any:
        def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
            return generate(Emitter(builder), *args)

        return types.int64(types.int64, types.int64), code

    return intrinsic(products)


@cache
def peak_kernel(kind: str) -> Kernel:
    """Return the kernel that adds products for a number of rounds a unit.

    Its arguments are the address of `OPERAND_BYTES` of operands, the number of rounds
    (`peak_products` each), and int64 [n_units] for the sums of one lane, so that nothing can be
    left out; the first sums begin at 0, 1, 2 ..., those of the matrix unit are not told.
    """
    products = _tile_products(kind) if kind in _TILE_PRODUCTS else _products(kind)

    @kernel("i64, i64, i64[1]", name=f"peak_{kind}")
    def peak_unit(operands: int, n_rounds: int, results: Any, unit: int) -> None:
        results[unit] = products(operands, n_rounds)

    return peak_unit
