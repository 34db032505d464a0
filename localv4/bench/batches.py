"""Many tokens times weights: share of what the CPU's instructions can multiply.

The roof is the fastest way to add *exact* products of the format: float32 fused multiply-add,
pairs of BF16 (which hold every FP8 and FP4 weight and every activation rounded to FP8), or, for
FP4, byte products, three of which make an exact one; in registers or in the matrix unit.
"""

import statistics
from dataclasses import dataclass

import numpy as np

from localv4.bench.arena import Arena
from localv4.bench.roof import Peak
from localv4.bench.timing import fast, in_turns, median_ratio
from localv4.bench.weight_kernels import CASES, Case, arranged
from localv4.kernels.launch import Program
from localv4.kernels.matmul import multiply

__all__ = ["EXACT", "BatchFigures", "measure_batch", "multiplied_cases"]

_FLOATS = ("f32", "bf16", "matrix_bf16")
EXACT = {
    "fp4": (*_FLOATS, "bytes", "matrix_bytes"),
    "fp8": _FLOATS,
    "fp8_as_bf16": _FLOATS,
    "bf16": _FLOATS,
    "f32": ("f32",),
}
"""Kinds of products that are exact, by format: those of a weight with its activations."""

_FLOP = 2e9  # of a turn, where the arena has so many matrices
_GROUPS = 8
_TURNS = 7


@dataclass(frozen=True)
class BatchFigures:
    """What one kernel reached with a number of tokens.

    Attributes
    ----------
    name, weight_format, rows, columns
        See `Case`.
    n_tokens
        Tokens that meet each matrix.
    gflops
        Median, two operations a product.
    peak
        Kind of the products that the share is of.
    peak_gflops
        Their median, in turns with the kernel.
    share
        Median of the ratios of both, turn by turn.
    fast_share
        Ratio of the speeds that the fastest seventh of the turns reached.
    """

    name: str
    weight_format: str
    rows: int
    columns: int
    n_tokens: int
    gflops: float
    peak: str
    peak_gflops: float
    share: float
    fast_share: float


def multiplied_cases() -> tuple[Case, ...]:
    """Return the cases whose batches are measured."""
    return CASES[:3]


def _programs(
    case: Case, n_tokens: int, arena: Arena, n_threads: int
) -> tuple[list[Program], int, int]:
    """Return programs of about `_FLOP` each, how many matrices each has, and their rows."""
    # about half a byte or a byte a weight, and room for two matrices
    size = case.columns * (1.01 if case.weight_format == "fp8" else 0.54)
    rows = max(1, min(case.rows, int((arena.memory.size - 4096) // size) // 2))
    _, lanes = arranged(case, n_tokens, n_threads)
    matrices = list(arena.matrices(case.weight_format, rows, case.columns, arena.memory.size))
    in_group = min(len(matrices), int(-(-_FLOP // (2 * rows * case.columns * n_tokens))))
    outs = [np.empty((n_tokens, rows), np.float32) for _ in range(in_group)]
    programs = []
    for group in range(min(_GROUPS, len(matrices) // in_group)):
        program = Program()
        program.phase("other")
        for out, matrix in zip(outs, matrices[group * in_group :], strict=False):
            multiply(program, lanes, matrix, out, False)
        programs.append(program)
    return programs, in_group, rows


def measure_batch(
    case: Case, n_tokens: int, arena: Arena, peaks: dict[str, Peak], n_threads: int
) -> BatchFigures:
    """Measure one kernel with one number of tokens."""
    arena.fill(case.weight_format)
    programs, in_group, rows = _programs(case, n_tokens, arena, n_threads)
    n_flop = 2.0 * rows * case.columns * n_tokens * in_group
    kinds = [peaks[kind] for kind in EXACT[case.weight_format] if kind in peaks]
    peak = max(kinds, key=lambda each: each.gflops)
    programs[0].run(n_threads)
    peak_s, kernel_s = in_turns(
        [
            lambda _: peak.program.run(n_threads),
            lambda turn: programs[turn % len(programs)].run(n_threads),
        ],
        _TURNS,
    )
    speeds = [n_flop / seconds / 1e9 for seconds in kernel_s]
    roofs = [peak.n_flop / seconds / 1e9 for seconds in peak_s]
    return BatchFigures(
        case.name,
        case.weight_format,
        rows,
        case.columns,
        n_tokens,
        statistics.median(speeds),
        peak.kind,
        statistics.median(roofs),
        median_ratio(speeds, roofs),
        n_flop / peak.n_flop * fast(peak_s) / fast(kernel_s),
    )
