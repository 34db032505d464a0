"""How FP8, BF16 and F32 weights meet activations, and which walk serves a format on this CPU.

Knows nothing of the loops that walks are built into.
"""

from typing import Any

import numpy as np

from localv4.kernels import decode, tiers
from localv4.kernels.simd import BF16, F32X16, I16, LANES, Emitter, vector
from localv4.kernels.walk import Walk
from localv4.kernels.walks_fp4 import FP4, FP4_HALVES, FP4_ROUNDED

__all__ = ["walk_for", "walk_for_many"]

_FP8_SCALES = tuple(lane >> 3 for lane in range(LANES))


class _Fp8(Walk):
    """FP8 by fused multiply-add on float32 activations, on any CPU."""

    name = "fp8"
    columns = decode.FP8_COLUMNS
    weight_bytes = 256
    scale_lanes = _FP8_SCALES
    in_flight = 4

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp8_to_f32(emit, address)


class _Fp8Half(_Fp8):
    """The same where the CPU converts half precision."""

    name = "fp8_half"
    scale_factor = 256.0
    in_flight = 2

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp8_through_f16(emit, address)


class _Fp8Bf16(_Fp8):
    """FP8 as BF16 from tables times BF16 activations, two products a lane and instruction."""

    name = "fp8_bf16"
    layout = "bf16"
    lane_bytes = 512
    n_registers = 8
    n_steps = 8
    in_flight = 2
    few_tokens = 4
    n_parts = 2
    kind = vector(I16, 32)

    def decode(self, emit: Emitter, address: Any, scale: Any) -> list[Any]:
        return decode.fp8_to_bf16(emit, address)

    def tiles(self, emit: Emitter, address: Any, lowered: list[Any] | None) -> list[Any]:
        return decode.fp8_to_tiles(emit, address, lowered)

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

    def tiles(self, emit: Emitter, address: Any, lowered: list[Any] | None) -> list[Any]:
        assert lowered is None  # there are no scales
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


_ANY = {"fp4": FP4, "fp8": _Fp8(), "fp8_as_bf16": _Fp8Rounded(), "bf16": _Bf16(), "f32": _F32()}
_FP8_BF16, _FP8_HALF, _BF16_PAIRS = _Fp8Bf16(), _Fp8Half(), _Bf16Pairs()


def walk_for_many(walk: Walk) -> Walk:
    """Return how the matrix unit, if it is in force, multiplies many tokens: the same bytes."""
    return FP4_HALVES if tiers.active() == "amx" and walk.layout == "digits_apart" else walk


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
        return FP4_ROUNDED[tier]
    if weight_format == "fp8" and activations != "f32" and tier in ("amx", "avx512_bf16"):
        return _FP8_BF16
    if weight_format == "bf16" and activations == "bf16" and tier in ("amx", "avx512_bf16"):
        return _BF16_PAIRS
    if weight_format == "fp8" and tier != "generic":
        return _FP8_HALF
    return _ANY[weight_format]
