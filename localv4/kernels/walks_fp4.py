"""FP4 weights meet activations: the walks of every tier.

Knows nothing of the loops that they are built into.
"""

from typing import Any

from localv4.kernels import decode
from localv4.kernels.simd import F32, F32X16, I8, I16, I32, LANES, Emitter, vector
from localv4.kernels.walk import Walk

__all__ = ["FP4", "FP4_HALVES", "FP4_ROUNDED"]

_FP4_SCALES = tuple(4 * ((lane >> 1) & 1) + (lane >> 2) for lane in range(LANES))
_FP4_INTEGER_SCALES = tuple(4 * (lane & 3) + (lane >> 2) for lane in range(LANES))
_DIGIT_STEPS = 8  # products of bytes for a digit
_DIGIT_BYTES = 64 * _DIGIT_STEPS


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
    """FP4 times FP8-rounded activations by exact sums of whole numbers, in portable vector code.

    Activations are a multiple of 4096 and a rest, so that float32 holds the sums of each.
    """

    name = "fp4_integers"
    layout = "integers"
    columns = decode.FP4_INTEGER_COLUMNS
    weight_bytes = 256
    lane_bytes = 2 * 2048 + 64
    n_registers = 32
    n_steps = 32
    in_flight = 4
    few_tokens = 4
    scale_lanes = _FP4_INTEGER_SCALES
    scale_bytes = 1

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp4_to_integers(emit, address)

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return [emit.splat_constant(F32, 0.0)] * 2

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        places = [emit.offset(address, 64 * number + 2048 * part) for part in range(2)]
        values = [emit.load(place, F32X16) for place in places]
        return [emit.fma(weight, value, total) for total, value in zip(sums, values, strict=True)]

    def finish(
        self, emit: Emitter, sums: Any, accumulators: list[Any], scale: Any, address: Any
    ) -> list[Any]:
        # the activations' own scales come last in their superblock
        factor = emit.load(emit.offset(address, self.lane_bytes - 64), F32X16)
        factor = emit.builder.fmul(scale, factor)
        total = accumulators[0]
        for part in self._parts(emit, sums, address):
            total = emit.fma(emit.builder.sitofp(part, F32X16), factor, total)
        return [total]

    def _parts(self, emit: Emitter, sums: Any, address: Any) -> list[Any]:
        """Return the integers that are added one after the other."""
        upper, lower = (emit.builder.fptosi(part, vector(I32)) for part in sums)
        return [emit.builder.add(upper, lower)]

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
    few_tokens = 8
    kind = vector(I8, 64)
    wide, permutes = True, False

    @property
    def for_rows(self) -> Walk:
        return _Fp4VnniRows()

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp4_to_bytes(emit, address, self.wide, self.permutes)

    def register_of(self, step: int) -> int:
        return step % _DIGIT_STEPS

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return emit.splat_constant(I32, 0)

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        if number in (_DIGIT_STEPS, 2 * _DIGIT_STEPS):
            sums = emit.builder.shl(sums, emit.splat_constant(I32, 6))
        return self._added(emit, number, sums, weight, address)

    def _added(self, emit: Emitter, number: int, total: Any, weight: Any, address: Any) -> Any:
        value = emit.load(emit.offset(address, 64 * number), vector(I32))
        weight = emit.builder.bitcast(weight, vector(I32))
        return emit.call("llvm.x86.avx512.vpdpbusd.512", vector(I32), total, weight, value)

    def _correction(self, emit: Emitter, address: Any, part: int = 0) -> Any:
        return emit.load(emit.offset(address, 3 * _DIGIT_BYTES + 64 * part), vector(I32))

    def _parts(self, emit: Emitter, sums: Any, address: Any) -> list[Any]:
        return [emit.builder.add(sums, self._correction(emit, address))]


class _Fp4VnniPermuted(_Fp4Vnni):
    name = "fp4_vnni_vbmi"
    permutes = True

    @property
    def for_rows(self) -> Walk:
        return _Fp4VnniPermutedRows()


class _ByDigit(_Fp4Vnni):
    """The digits in sums of their own: shorter chains, but too many registers for a tile."""

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return [emit.splat_constant(I32, 0)] * 3

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        digit = number // _DIGIT_STEPS
        added = self._added(emit, number, sums[digit], weight, address)
        return [added if i == digit else total for i, total in enumerate(sums)]


class _Fp4VnniRows(_ByDigit):
    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        if number == 2 * _DIGIT_STEPS:
            sums = [*sums[:2], self._correction(emit, address)]
        return super().step(emit, number, sums, weight, address)

    def _parts(self, emit: Emitter, sums: Any, address: Any) -> list[Any]:
        high = emit.builder.shl(sums[0], emit.splat_constant(I32, 12))
        middle = emit.builder.shl(sums[1], emit.splat_constant(I32, 6))
        return [emit.builder.add(emit.builder.add(high, middle), sums[2])]


class _Fp4VnniPermutedRows(_Fp4VnniRows):
    permutes = True


class _Fp4Apart(_Fp4VnniPermuted):
    """The highest digits are summed apart from the others, as the matrix unit does it."""

    name = "fp4_apart"
    layout = "digits_apart"
    lane_bytes = 3 * _DIGIT_BYTES + 2 * 64 + 64

    @property
    def for_rows(self) -> Walk:
        return _Fp4ApartRows()

    def begin(self, emit: Emitter, accumulators: list[Any]) -> Any:
        return [emit.splat_constant(I32, 0)] * 2

    def step(self, emit: Emitter, number: int, sums: Any, weight: Any, address: Any) -> Any:
        upper, lower = sums
        if number < _DIGIT_STEPS:
            return [self._added(emit, number, upper, weight, address), lower]
        if number == 2 * _DIGIT_STEPS:
            lower = emit.builder.shl(lower, emit.splat_constant(I32, 6))
        return [upper, self._added(emit, number, lower, weight, address)]

    def _parts(self, emit: Emitter, sums: Any, address: Any) -> list[Any]:
        upper, lower = (
            emit.builder.add(total, self._correction(emit, address, part))
            for part, total in enumerate(sums)
        )
        return [emit.builder.shl(upper, emit.splat_constant(I32, 12)), lower]


class _Fp4ApartRows(_ByDigit, _Fp4Apart):
    def _parts(self, emit: Emitter, sums: Any, address: Any) -> list[Any]:
        middle = emit.builder.shl(sums[1], emit.splat_constant(I32, 6))
        return super()._parts(emit, [sums[0], emit.builder.add(middle, sums[2])], address)


class _Fp4Maddubs(_Fp4Vnni):
    """The same bytes without VNNI: pairs of products in 16 bits, which a digit cannot overflow."""

    name = "fp4_maddubs_512"
    in_flight = 2

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

    def _parts(self, emit: Emitter, sums: Any, address: Any) -> list[Any]:
        return super()._parts(emit, sums[0], address)

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
    """The same sums as `_Fp4Apart` in the matrix unit (amx_tile.py), for many tokens only."""

    name = "fp4_halves"
    layout = "halves"
    columns = decode.FP4_TILE_COLUMNS
    n_parts = 4
    lane_bytes = 16 * 2 * 64 + 64

    def tiles(self, emit: Emitter, address: Any, lowered: list[Any] | None) -> list[Any]:
        return decode.fp4_to_tiles(emit, address, lowered)


FP4 = _Fp4()
"""Times any activations."""
FP4_ROUNDED: dict[str, Walk] = {
    "amx": _Fp4Apart(),
    "avx512_bf16": _Fp4VnniPermuted(),
    "avx512_vnni": _Fp4Vnni(),
    "avx512": _Fp4Maddubs(),
    "avx2": _Fp4MaddubsHalves(),
    "generic": _Fp4Integers(),
}
"""Times FP8-rounded activations, by tier: the same bytes but for "amx"."""
FP4_HALVES = _Fp4Halves()
"""Times FP8-rounded activations in the matrix unit, for many tokens."""
