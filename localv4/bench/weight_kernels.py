"""One token times weights of every format: share of the speed at which memory is read.

Each kernel walks through all of the arena, a slice at a time; between two of its slices the
fastest reader and a plain one read others, so that all meet the same disturbances and no slice is
still in a cache when its turn comes again.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localv4 import quant
from localv4.bench.arena import Arena, stored_bytes
from localv4.bench.roof import PLAIN, Reader
from localv4.bench.timing import fast, in_turns, median_ratio
from localv4.kernels._jit import cache_dir
from localv4.kernels.launch import Program
from localv4.kernels.matmul import Lanes, Matrix, arrange, multiply
from localv4.quant import bf16

__all__ = ["CASES", "SLICES", "Case", "WeightFigures", "activations", "arranged", "measure_weights"]

F32 = NDArray[np.float32]
SLICES = 16
"""Parts of the arena that are read in one go."""

_PASSES = 3
_SAMPLE = 64


@dataclass(frozen=True)
class Case:
    """A weight format with a kind of activations, at the widths of Flash.

    Attributes
    ----------
    name
        What it is in the model.
    weight_format
        See `Matrix.format`.
    activations
        "fp8": rounded to FP8; "bf16": BF16 numbers; "f32".
    rows, columns
        Of a matrix; a small arena takes fewer rows.
    """

    name: str
    weight_format: str
    activations: str
    rows: int
    columns: int

    def lanes(self, n_tokens: int) -> Lanes:
        """Return room for its activations."""
        return Lanes.room(
            self.weight_format,
            self.activations == "fp8",
            n_tokens,
            self.columns,
            are_bf16=self.activations == "bf16",
        )


CASES = (
    Case("expert gate, up", "fp4", "fp8", 2048, 4096),
    Case("expert down", "fp4", "fp8", 4096, 2048),
    Case("dense", "fp8", "fp8", 4096, 4096),
    Case("wo_a", "fp8", "bf16", 1024, 4096),
    Case("head", "bf16", "bf16", 4096, 4096),
    Case("mhc", "f32", "f32", 1024, 4096),
)


@dataclass(frozen=True)
class WeightFigures:
    """What one kernel reached.

    Attributes
    ----------
    name, weight_format, activations, rows, columns
        See `Case`.
    n_bytes
        Distinct weights with scales that were walked through.
    gb_s, read_gb_s
        Medians of the kernel and, in turns with it, of the reader.
    share
        Median of the ratios of both, turn by turn.
    fast_share
        Ratio of the speeds that the fastest seventh of the turns reached.
    plain_share
        As `share`, of reading without prefetches: what a plain loop gets, and what the study of
        kernels and most published figures compare with; None if that was not asked for.
    error
        Largest error against float64, as a share of the sum of the products' magnitudes.
    compile_s
        Seconds to compile it; None if the compiled kernel was there.
    """

    name: str
    weight_format: str
    activations: str
    rows: int
    columns: int
    n_bytes: int
    gb_s: float
    read_gb_s: float
    share: float
    fast_share: float
    plain_share: float | None
    error: float
    compile_s: float | None


def activations(n_tokens: int, n_columns: int) -> F32:
    """Return random BF16 numbers of many sizes, float32 [n_tokens, n_columns]."""
    rng = np.random.default_rng(1)
    shape = n_tokens, n_columns
    sizes = np.exp(rng.standard_normal(shape, np.float32))
    return bf16.round(sizes * rng.standard_normal(shape, np.float32))


def _values(matrix: Matrix, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return some rows of a matrix as numbers."""
    if matrix.format == "bf16":
        return bf16.decode(matrix.weights[rows]).astype(np.float64)
    if matrix.scales is None:
        return matrix.weights[rows].astype(np.float64)
    if matrix.format == "fp4":
        values = quant.dequantise(matrix.weights[rows], matrix.scales[rows], "fp4")
    else:
        values = quant.dequantise(matrix.weights, matrix.scales, "fp8")[rows]
    return values.astype(np.float64)


def _error(case: Case, matrix: Matrix, x: F32, y: F32) -> float:
    """Return the largest error of a sample of rows."""
    rows = np.unique(np.linspace(0, matrix.n_rows - 1, _SAMPLE).astype(np.int64))
    values = _values(matrix, rows)
    rounded = quant.fp8_sim(x, 128) if case.activations == "fp8" else x
    exact = values @ rounded[0].astype(np.float64)
    size = np.abs(values) @ np.abs(rounded[0].astype(np.float64))
    return float(np.max(np.abs(y[0, rows] - exact) / size))


def _n_compiled() -> int:
    return 0 if cache_dir is None else sum(1 for _ in cache_dir.rglob("*.nbc"))


def arranged(case: Case, n_tokens: int, n_threads: int) -> tuple[F32, Lanes]:
    """Return activations and the same in the case's lanes."""
    x, lanes = activations(n_tokens, case.columns), case.lanes(n_tokens)
    program = Program()
    program.phase("other")
    arrange(program, x, lanes)
    program.run(n_threads)
    return x, lanes


class _Slices:
    """The arena's slices with a program for each that multiplies, and one for each reader."""

    def __init__(self, case: Case, arena: Arena, readers: list[Reader], lanes: Lanes) -> None:
        self.size = arena.memory.size // SLICES // 64 * 64
        row_bytes = -(-stored_bytes(case.weight_format, 128, case.columns) // 128)
        self.rows = min(case.rows, (self.size - 64) // row_bytes)
        self.matrices: list[Matrix] = []
        self.outs: list[F32] = []
        self.kernels: list[Program] = []
        self.reads: list[list[Program]] = [[] for _ in readers]
        for first in range(0, SLICES * self.size, self.size):
            for reader, reads in zip(readers, self.reads, strict=True):
                reads.append(reader.program(arena.memory[first : first + self.size]))
            program = Program()
            program.phase("other")
            for matrix in arena.matrices(
                case.weight_format, self.rows, case.columns, self.size, first
            ):
                self.matrices.append(matrix)
                self.outs.append(np.empty((1, self.rows), np.float32))
                self.task = multiply(program, lanes, matrix, self.outs[-1], False)
            self.kernels.append(program)

    def compile_s(self) -> float | None:
        """Return the seconds it takes to compile the kernel; None if that is done."""
        before, started_s = _n_compiled(), time.perf_counter()
        _ = self.task.kernel.address
        return time.perf_counter() - started_s if _n_compiled() > before else None

    def in_turns(self, n_threads: int) -> list[list[float]]:
        """Return seconds of the kernel and of each reader, for a slice each."""
        programs = [self.kernels, *self.reads]

        def runs(number: int, slices: list[Program]) -> Callable[[int], None]:
            slices[0].run(n_threads)  # compiles
            apart = number * SLICES // len(programs)
            return lambda turn: slices[(turn + apart) % SLICES].run(n_threads)

        return in_turns([runs(*each) for each in enumerate(programs)], _PASSES * SLICES)


def measure_weights(
    case: Case, arena: Arena, reader: Reader, n_threads: int, plain: bool = False
) -> WeightFigures:
    """Measure one kernel; with `plain` beside plain reading too."""
    arena.fill(case.weight_format)
    x, lanes = arranged(case, 1, n_threads)
    slices = _Slices(case, arena, [reader, PLAIN] if plain else [reader], lanes)
    compile_s = slices.compile_s()
    kernel_s, read_s, *plain_s = slices.in_turns(n_threads)
    n_bytes = len(slices.matrices) * stored_bytes(case.weight_format, slices.rows, case.columns)
    speeds = [n_bytes / SLICES / seconds / 1e9 for seconds in kernel_s]
    roofs, *plain_roofs = ([slices.size / s / 1e9 for s in each] for each in (read_s, *plain_s))
    return WeightFigures(
        case.name,
        case.weight_format,
        case.activations,
        slices.rows,
        case.columns,
        n_bytes,
        statistics.median(speeds),
        statistics.median(roofs),
        median_ratio(speeds, roofs),
        n_bytes / SLICES / slices.size * fast(read_s) / fast(kernel_s),
        median_ratio(speeds, plain_roofs[0]) if plain else None,
        _error(case, slices.matrices[0], x, slices.outs[0]),
        compile_s,
    )
