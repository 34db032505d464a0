"""How a superblock of weights meets a superblock of activations, for every format and tier.

A `Walk` has three steps: `decode` turns stored weights into vector registers, `step` adds the
products of one register, `finish` gives the sums of 16 float32 lanes.  The kernels that are
built from it (row_dot.py for few tokens, tile.py for many) only differ in how often they
decode and where decoded weights wait, so they give the same bytes.

The order of sums, whatever the tier:

* FP8, BF16 (and FP4 with float32 activations): a superblock has 256 columns.  A lane sums its
  16 products from zero by fused multiply-add, two columns a step, the higher one first.
  Neighbouring lanes share a scale block of columns; their sums are added, then
  ``acc = fma(pair, scale, acc)`` with one accumulator a lane.  BF16 has no scale: the pair is
  added.
* FP4 with FP8-rounded activations: a superblock has 512 columns, a lane has one scale block of
  them: the exact sum of 32 integers, rounded to float32 once; then the same fma.
* F32 rows: every product is added to an accumulator by fused multiply-add; there are two
  accumulators a lane, for blocks of 16 columns in turn.
* FP8 rows whose F32 scales make every weight round to BF16 by itself are scaled and rounded
  first and then added to two accumulators like those, the higher column of a pair to one and
  the lower to the other.

The lanes, or the pairs of lanes, are added as a tree at the end (`Walk.total`).
Twin: tests/reference/row_dot.py.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.kernels import decode, tiers
from localv4.kernels.simd import BF16, F32, F32X16, I8, I16, I32, LANES, Emitter, vector

__all__ = ["Walk", "walk_for", "walk_for_many"]

_FP8_SCALES = tuple(lane >> 3 for lane in range(LANES))
_FP4_SCALES = tuple(4 * ((lane >> 1) & 1) + (lane >> 2) for lane in range(LANES))
_FP4_INTEGER_SCALES = tuple(4 * (lane & 3) + (lane >> 2) for lane in range(LANES))
_DIGIT_STEPS = 8  # products of bytes for a digit
_DIGIT_BYTES = 64 * _DIGIT_STEPS


class Walk:
    """One format with one kind of instructions; subclasses say what is different.

    Attributes
    ----------
    name
        Unique; part of the compiled functions' names.
    layout
        Of the activations: "f32", "bf16" (pairs), "digits" (bytes), "integers" or "halves"
        (BF16 of whole numbers, small and large ones apart).
    columns
        Column of a superblock behind every place of the activations.
    weight_bytes, lane_bytes
        Bytes of stored weights and of arranged activations in a superblock.
    n_registers
        Registers of 64 bytes that hold a superblock's decoded weights.
    n_steps
        Additions of products.
    scale_lanes
        For every lane the index of its scale inside a superblock; empty without scales.
    scale_bytes
        Bytes of one scale: 1 (UE8M0) or 4 (F32).
    scale_factor
        What the scales are multiplied with because decoded weights are off by it.
    n_accumulators
        Accumulators of 16 lanes for each output.
    kind
        LLVM type of a register of decoded weights.
    """

    name: str
    layout = "f32"
    columns: NDArray[np.int64]
    weight_bytes: int
    lane_bytes = 1024
    n_registers = 16
    n_steps = 16
    scale_lanes: tuple[int, ...] = ()
    scale_bytes = 4
    scale_factor = 1.0
    n_accumulators = 1
    kind: Any = F32X16

    @property
    def n_columns(self) -> int:
        """Columns in a superblock."""
        return int(self.columns.max()) + 1

    @property
    def n_scales(self) -> int:
        """Scales of a row in a superblock."""
        return max(self.scale_lanes) + 1 if self.scale_lanes else 0

    @property
    def for_rows(self) -> "Walk":
        """The walk that row_dot.py takes: the same sums with more of them at once."""
        return self

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        """Return a superblock's weights, a register for each step that differs."""
        raise NotImplementedError

    def tiles(self, emit: Emitter, address: Any) -> list[Any]:
        """Return a superblock's weights as rows of the matrix unit's tiles, by groups."""
        raise NotImplementedError

    def scale(self, emit: Emitter, address: Any) -> Any:
        """Load a row's scales of a superblock into their lanes."""
        kind = I8 if self.scale_bytes == 1 else I32
        loaded = emit.load(address, vector(kind, self.n_scales))
        lanes = emit.shuffle(loaded, loaded, self.scale_lanes)
        if self.scale_bytes == 1:  # UE8M0 is the exponent field of a float32
            lanes = emit.builder.zext(lanes, vector(I32))
            lanes = emit.builder.shl(lanes, emit.splat_constant(I32, 23))
        scale = emit.builder.bitcast(lanes, F32X16)
        if self.scale_factor != 1.0:
            scale = emit.builder.fmul(scale, emit.splat_constant(F32, self.scale_factor))
        return scale

    def register_of(self, step: int) -> int:
        """Return which register a step multiplies."""
        return step

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        """Return the sums before a superblock's first step."""
        return emit.splat_constant(F32, 0.0)

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        """Add the products of a register with activations; `address` is the superblock's."""
        return emit.fma(weight, emit.load(emit.offset(address, 64 * number), F32X16), sums)

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        """Return the accumulators after a superblock's last step."""
        pairs = emit.builder.fadd(sums, emit.neighbours(sums))
        return [emit.fma(pairs, scale, accumulators[0])]

    def total(self, emit: Emitter, accumulators: list[Any]) -> Any:
        """Add the lanes: neighbours hold the same sum, so every second one counts."""
        value = accumulators[0]
        return emit.lane_sum(emit.shuffle(value, value, range(0, LANES, 2)))


class _Fp4(Walk):
    """FP4 by fused multiply-add on float32 activations: any CPU, any activations."""

    name = "fp4"
    columns = decode.FP4_COLUMNS
    weight_bytes = 128
    scale_lanes = _FP4_SCALES
    scale_bytes = 1

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp4_to_f32(emit, address)


class _Fp4Integers(Walk):
    """FP4 times FP8-rounded activations by exact integers, in portable vector code."""

    name = "fp4_integers"
    layout = "integers"
    columns = decode.FP4_INTEGER_COLUMNS
    weight_bytes = 256
    lane_bytes = 2048 + 64
    n_registers = 32
    n_steps = 32
    scale_lanes = _FP4_INTEGER_SCALES
    scale_bytes = 1
    kind = vector(I32)

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp4_to_integers(emit, address)

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return emit.splat_constant(I32, 0)

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        value = emit.load(emit.offset(address, 64 * number), vector(I32))
        return emit.builder.add(sums, emit.builder.mul(weight, value))

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        # the activations' own scales come last in their superblock
        factor = emit.load(emit.offset(address, self.lane_bytes - 64), F32X16)
        value = emit.builder.sitofp(sums, F32X16)
        return [emit.fma(value, emit.builder.fmul(scale, factor), accumulators[0])]

    def total(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return emit.lane_sum(accumulators[0])


class _Fp4Vnni(_Fp4Integers):
    """The same integers by bytes times bytes: activations are three digits of base 64.

    The weights are unsigned, 12 more than twice the value; what that adds is taken off by a
    correction that comes with the activations.
    """

    name = "fp4_vnni"
    layout = "digits"
    columns = decode.FP4_BYTE_COLUMNS
    lane_bytes = 3 * _DIGIT_BYTES + 64 + 64
    n_registers = _DIGIT_STEPS
    n_steps = 3 * _DIGIT_STEPS
    kind = vector(I8, 64)
    wide, permutes = True, False

    @property
    def for_rows(self) -> Walk:
        return _Fp4VnniRows()

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp4_to_bytes(emit, address, self.wide, self.permutes)

    def register_of(self, step: int) -> int:
        return step % _DIGIT_STEPS

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        if number in (_DIGIT_STEPS, 2 * _DIGIT_STEPS):
            sums = emit.builder.shl(sums, emit.splat_constant(I32, 6))
        value = emit.load(emit.offset(address, 64 * number), vector(I32))
        weight = emit.builder.bitcast(weight, vector(I32))
        return emit.call("llvm.x86.avx512.vpdpbusd.512", vector(I32), sums, weight, value)

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        correction = emit.load(emit.offset(address, 3 * _DIGIT_BYTES), vector(I32))
        sums = emit.builder.add(sums, correction)
        return super().finish(emit, sums, accumulators, scale, address)


class _Fp4VnniPermuted(_Fp4Vnni):
    name = "fp4_vnni_vbmi"
    permutes = True

    @property
    def for_rows(self) -> Walk:
        return _Fp4VnniPermutedRows()


class _Fp4VnniRows(_Fp4Vnni):
    """The digits in sums of their own: shorter chains, but too many registers for a tile."""

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        correction = None  # loaded by the first step, which knows where
        return [emit.splat_constant(I32, 0), emit.splat_constant(I32, 0), correction]

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        digit = number // _DIGIT_STEPS
        if number == 2 * _DIGIT_STEPS:
            sums = [*sums[:2], emit.load(emit.offset(address, 3 * _DIGIT_BYTES), vector(I32))]
        value = emit.load(emit.offset(address, 64 * number), vector(I32))
        weight = emit.builder.bitcast(weight, vector(I32))
        name, kind = "llvm.x86.avx512.vpdpbusd.512", vector(I32)
        added = emit.call(name, kind, sums[digit], weight, value)
        return [added if i == digit else total for i, total in enumerate(sums)]

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        high = emit.builder.shl(sums[0], emit.splat_constant(I32, 12))
        middle = emit.builder.shl(sums[1], emit.splat_constant(I32, 6))
        total = emit.builder.add(emit.builder.add(high, middle), sums[2])
        return _Fp4Integers.finish(self, emit, total, accumulators, scale, address)


class _Fp4VnniPermutedRows(_Fp4VnniRows):
    permutes = True


class _Fp4Maddubs(_Fp4Vnni):
    """The same bytes without VNNI: pairs of products in 16 bits, which a digit cannot overflow."""

    name = "fp4_maddubs_512"

    @property
    def for_rows(self) -> Walk:
        return self

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return None, None

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        total, words = sums
        value = emit.load(emit.offset(address, 64 * number), vector(I8, 64))
        products = self._pairs(emit, weight, value)
        words = products if words is None else emit.builder.add(words, products)
        if number % _DIGIT_STEPS < _DIGIT_STEPS - 1:
            return total, words
        digit = self._widened(emit, words)
        if total is not None:
            shifted = emit.builder.shl(total, emit.splat_constant(I32, 6))
            digit = emit.builder.add(shifted, digit)
        return digit, None

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        return super().finish(emit, sums[0], accumulators, scale, address)

    def _pairs(self, emit: Emitter, weight: Any, value: Any) -> Any:
        return emit.call("llvm.x86.avx512.pmaddubs.w.512", vector(I16, 32), weight, value)

    def _widened(self, emit: Emitter, words: Any) -> Any:
        ones = emit.splat_constant(I16, 1, 32)
        return emit.call("llvm.x86.avx512.pmaddw.d.512", vector(I32), words, ones)


class _Fp4MaddubsHalves(_Fp4Maddubs):
    """The same with registers of 256 bits."""

    name = "fp4_maddubs_256"
    wide = False

    def _pairs(self, emit: Emitter, weight: Any, value: Any) -> Any:
        parts = zip(emit.halves(weight), emit.halves(value), strict=True)
        name, kind = "llvm.x86.avx2.pmadd.ub.sw", vector(I16, 16)
        return emit.join(*(emit.call(name, kind, *part) for part in parts))

    def _widened(self, emit: Emitter, words: Any) -> Any:
        name, kind = "llvm.x86.avx2.pmadd.wd", vector(I32, 8)
        ones = emit.splat_constant(I16, 1, 16)
        return emit.join(*(emit.call(name, kind, part, ones) for part in emit.halves(words)))


class _Fp4Halves(_Fp4Integers):
    """The same integers as BF16 in the matrix unit (amx_tile.py), for many tokens only."""

    name = "fp4_halves"
    layout = "halves"
    columns = decode.FP4_TILE_COLUMNS
    lane_bytes = 16 * 2 * 64 + 64

    def tiles(self, emit: Emitter, address: Any) -> list[Any]:
        return decode.fp4_to_tiles(emit, address)


class _Fp8(Walk):
    """FP8 by fused multiply-add on float32 activations, on any CPU."""

    name = "fp8"
    columns = decode.FP8_COLUMNS
    weight_bytes = 256
    scale_lanes = _FP8_SCALES

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp8_to_f32(emit, address)


class _Fp8Half(_Fp8):
    """The same where the CPU converts half precision."""

    name = "fp8_half"
    scale_factor = 256.0

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp8_through_f16(emit, address)


class _Fp8Bf16(_Fp8):
    """FP8 as BF16 from tables times BF16 activations, two products a lane and instruction."""

    name = "fp8_bf16"
    layout = "bf16"
    lane_bytes = 512
    n_registers = 8
    n_steps = 8
    kind = vector(I16, 32)

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp8_to_bf16(emit, address)

    def tiles(self, emit: Emitter, address: Any) -> list[Any]:
        return decode.fp8_to_tiles(emit, address)

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        value = emit.load(emit.offset(address, 64 * number), vector(I16, 32))
        pairs = [emit.builder.bitcast(operand, vector(BF16, 32)) for operand in (weight, value)]
        return emit.call("llvm.x86.avx512bf16.dpbf16ps.512", F32X16, sums, *pairs)


class _Direct(Walk):
    """Rows without scales after the products: two accumulators, taken in turn."""

    n_accumulators = 2

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return accumulators

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        added = super().step(emit, number, sums[number % 2], weight, address)
        return [added, sums[1]] if number % 2 == 0 else [sums[0], added]

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        return list(sums)

    def total(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return emit.lane_sum(emit.builder.fadd(*accumulators))


class _Fp8Rounded(_Direct):
    """FP8 whose scaled weights are rounded to BF16 (wo_a with F32 scales)."""

    name = "fp8_as_bf16"
    columns = decode.FP8_COLUMNS
    weight_bytes = 256
    scale_lanes = _FP8_SCALES

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        weights = decode.fp8_to_f32(emit, address)
        return [emit.round_to_bf16(emit.builder.fmul(weight, scale)) for weight in weights]


class _Bf16(Walk):
    """BF16 weights times any float32 activations."""

    name = "bf16"
    columns = decode.BF16_COLUMNS
    weight_bytes = 512

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.bf16_to_f32(emit, address)

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        pairs = emit.builder.fadd(sums, emit.neighbours(sums))
        return [emit.builder.fadd(pairs, accumulators[0])]


class _Bf16Pairs(_Bf16):
    """BF16 weights times BF16 activations, two products a lane and instruction."""

    name = "bf16_pairs"
    layout = "bf16"
    lane_bytes = 512
    n_registers = 8
    n_steps = 8
    kind = vector(I16, 32)

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return [emit.load(emit.offset(address, 64 * i), vector(I16, 32)) for i in range(8)]

    def tiles(self, emit: Emitter, address: Any) -> list[Any]:
        return decode.bf16_to_tiles(emit, address)

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        return _FP8_BF16.step(emit, number, sums, weight, address)


class _F32(_Direct):
    name = "f32"
    columns = np.arange(128)
    weight_bytes = 512
    lane_bytes = 512
    n_registers = 8
    n_steps = 8

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return [emit.load(emit.offset(address, 64 * i), F32X16) for i in range(8)]


_ANY = {"fp4": _Fp4(), "fp8": _Fp8(), "fp8_as_bf16": _Fp8Rounded(), "bf16": _Bf16(), "f32": _F32()}
_FP4_ROUNDED: dict[str, Walk] = {
    "amx": _Fp4VnniPermuted(),
    "avx512_bf16": _Fp4VnniPermuted(),
    "avx512_vnni": _Fp4Vnni(),
    "avx512": _Fp4Maddubs(),
    "avx2": _Fp4MaddubsHalves(),
    "generic": _Fp4Integers(),
}
_FP8_BF16, _FP8_HALF, _BF16_PAIRS = _Fp8Bf16(), _Fp8Half(), _Bf16Pairs()


_FP4_HALVES = _Fp4Halves()


def walk_for_many(walk: Walk) -> Walk:
    """Return how the matrix unit, if it is in force, multiplies many tokens: the same bytes."""
    return _FP4_HALVES if tiers.active() == "amx" and walk.layout == "digits" else walk


def walk_for(weight_format: str, activations: str, tier: str | None = None) -> Walk:
    """Return how to multiply a format with activations on this CPU.

    Parameters
    ----------
    weight_format
        "fp4", "fp8", "fp8_as_bf16", "bf16" or "f32".
    activations
        "fp8": rounded to FP8 in blocks of 128 columns.  "bf16": every one is a BF16 number.
        "f32": any float32.
    tier
        A key of `tiers.TIERS` that the CPU can run; None for the one in force.
    """
    tier = tiers.active() if tier is None else tier
    if weight_format == "fp4" and activations == "fp8":
        return _FP4_ROUNDED[tier]
    if weight_format == "fp8" and activations != "f32" and tier in ("amx", "avx512_bf16"):
        return _FP8_BF16
    if weight_format == "bf16" and activations == "bf16" and tier in ("amx", "avx512_bf16"):
        return _BF16_PAIRS
    if weight_format == "fp8" and tier != "generic":
        return _FP8_HALF
    return _ANY[weight_format]
