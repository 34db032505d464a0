"""The doctor's stop-watch: how fast memory is read and weights are multiplied, in a second or two.

A short form of ``localv4 bench kernels``, which tells more.
"""

import contextlib
import statistics
from dataclasses import dataclass

import numpy as np

from localv4.bench.arena import Arena
from localv4.bench.roof import Reader, best_reader
from localv4.bench.timing import in_turns
from localv4.bench.weight_kernels import CASES, Case, arranged, measure_weights
from localv4.findings import Finding, note, ok
from localv4.kernels.launch import Program
from localv4.kernels.matmul import multiply
from localv4.kernels.threads import computing
from localv4.machine_rates import CpuRates, keep_rates

__all__ = ["ARENA_BYTES", "check_rates"]

ARENA_BYTES = 3 * 2**28
"""Several times the last cache of large machines, which would flatter all rates."""

_PARTS = 8
_BATCH_TOKENS = 24  # of an expert, where 1,024 tokens have 6 of 256 each
_BATCH_MATRICES = 4
_TURNS = 5
_ROUNDS = 3
_STEADY = 0.7  # of the best round: slower ones were disturbed
_BY_NAME = {case.name: case for case in CASES}
_EXPERT, _DENSE, _HEAD = (_BY_NAME[name] for name in ("expert gate, up", "dense", "head"))


def check_rates(n_threads: int, arena_bytes: int = ARENA_BYTES) -> tuple[Finding, CpuRates]:
    """Measure memory and kernels on all compute threads, and keep the result."""
    with computing():
        arena = Arena(arena_bytes)
        arena.fill("fp4")
        reader = best_reader([*arena.memory.reshape(_PARTS, -1)], n_threads)
        flops = _batch_flops(_EXPERT, arena, n_threads)
        speeds = [_speeds(case, arena, reader, n_threads) for case in (_EXPERT, _DENSE, _HEAD)]
    read_gb_s = max(reader.gb_s, *(speed.read_gb_s for speed in speeds))
    fp4, fp8, bf16 = (1e9 * speed.gb_s for speed in speeds)
    rates = CpuRates(1e9 * read_gb_s, fp4, fp8, bf16, flops)
    with contextlib.suppress(OSError):  # the cache folder's own finding says so
        keep_rates(rates, n_threads)
    text = (
        f"memory is read at {read_gb_s:.3g} GB/s; weights are multiplied at "
        f"{rates.fp4 / 1e9:.3g} (FP4), {rates.fp8 / 1e9:.3g} (FP8), {rates.bf16 / 1e9:.3g} GB/s "
        "(BF16)"
    )
    figures = {
        "memory_bytes_per_s": rates.memory,
        "fp4_bytes_per_s": rates.fp4,
        "fp8_bytes_per_s": rates.fp8,
        "bf16_bytes_per_s": rates.bf16,
        "batch_flops": rates.flops,
    }
    slowest = min(speed.worst_gb_s / speed.gb_s for speed in speeds)
    if slowest < _STEADY:
        text += "; it varies: other programs are busy, and so the estimates are rough"
        return note("speed", text, **figures), rates
    return ok("speed", text, **figures), rates


@dataclass(frozen=True)
class _Speeds:
    """The best of a kernel and of reading beside it, and the kernel's worst."""

    gb_s: float
    worst_gb_s: float
    read_gb_s: float


def _speeds(case: Case, arena: Arena, reader: Reader, n_threads: int) -> _Speeds:
    """Measure a kernel some times: the best is what it can do when nothing disturbs it."""
    rounds = [measure_weights(case, arena, reader, n_threads) for _ in range(_ROUNDS)]
    found = [figures.gb_s for figures in rounds]
    return _Speeds(max(found), min(found), max(figures.read_gb_s for figures in rounds))


def _batch_flops(case: Case, arena: Arena, n_threads: int) -> float:
    """Return the operations/s of experts with some tokens each."""
    arena.fill(case.weight_format)
    _, lanes = arranged(case, _BATCH_TOKENS, n_threads)
    rows = min(case.rows, arena.memory.size // (case.columns * _BATCH_MATRICES))
    matrices = [*arena.matrices(case.weight_format, rows, case.columns, arena.memory.size)]
    matrices = matrices[:_BATCH_MATRICES]
    program = Program()
    program.phase("other")
    for matrix in matrices:
        out = np.empty((_BATCH_TOKENS, rows), np.float32)
        multiply(program, lanes, matrix, out, False)
    program.run(n_threads)
    (seconds,) = in_turns([lambda _: program.run(n_threads)], _TURNS)
    n_flop = 2.0 * rows * case.columns * _BATCH_TOKENS * len(matrices)
    return n_flop / statistics.median(seconds)
