"""How a superblock of weights meets a superblock of activations, for every format and tier.

A `Walk` has three steps: `decode` turns stored weights into vector registers, `step` adds the
products of one register, `finish` gives the sums of 16 float32 lanes.  The kernels that are
built from it (row_dot.py for few tokens, row_tile.py for many) only differ in how often they
decode and where decoded weights wait, so they give the same bytes.

The order of sums, the same in all tiers but for one case:

* FP8, BF16 (and FP4 with float32 activations): a superblock has 256 columns.  A lane sums its
  16 products from zero by fused multiply-add, two columns a step, the higher one first.
  Neighbouring lanes share a scale block of columns; their sums are added, then
  ``acc = fma(pair, scale, acc)`` with one accumulator a lane.  BF16 has no scale: the pair is
  added.
* FP4 with FP8-rounded activations: a superblock has 512 columns, a lane has one scale block of
  them: the exact sum of 32 integers, rounded to float32 once; then the same fma.  In the tier
  with a matrix unit two sums are added like that, one after the other: activations are integers
  of three digits of base 64, and the highest ones, multiples of 4096, are summed apart.
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

from localv4.kernels.simd import F32, F32X16, I8, I32, LANES, Emitter, vector

__all__ = ["Walk"]


class Walk:
    """One format with one kind of instructions; subclasses say what is different.

    Attributes
    ----------
    name
        Unique; part of the compiled functions' names.
    layout
        Of the activations: "f32", "bf16" (pairs), "digits" or "digits_apart" (bytes), "integers"
        (as float32) or "halves" (BF16 of highest digits and of the rest, times their scales).
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
    in_flight
        Rows that row_dot.py multiplies at once, because the sums of one wait for each other; 1, 2
        or 4, by measurement, decides no byte.
    few_tokens
        As many are multiplied as fast by row_dot.py, two at a time, as by row_tile.py.
    n_parts
        Runs of a superblock's stored bytes that `tiles` decodes by themselves.
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
    in_flight = 2
    few_tokens = 3
    n_parts = 1
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

    def tiles(self, emit: Emitter, address: Any, lowered: list[Any] | None) -> list[Any]:
        """Return a part's weights as rows of the matrix unit's tiles, by groups.

        `lowered`, one for each group, are taken off the exponents of BF16 weights.
        """
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
