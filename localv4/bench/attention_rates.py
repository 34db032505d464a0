"""Attention over random packed entries at Flash's widths, against products in registers.

Knows nothing of a model: what a layer does before and after is not measured.
"""

import statistics
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from localv4.bench.roof import measure_peaks
from localv4.bench.timing import fast, in_turns, lasting, median_ratio
from localv4.kernels.arrays import aligned
from localv4.kernels.attention import attend_scratch_shapes, record_attend
from localv4.kernels.launch import Program

__all__ = ["measure_attention"]

U8 = NDArray[np.uint8]

_HEADS, _HEAD_DIM, _ROPE_DIM, _WINDOW, _RATIO = 64, 512, 64, 128, 128
_PLAIN = _HEAD_DIM - _ROPE_DIM
_ENTRY_BYTES = _PLAIN + 2 * _ROPE_DIM + -(-(_PLAIN // 64) // 8) * 8
_EPS = 1e-6
_LEAST_TURNS = 5


def _entries(n: int) -> U8:
    """Return packed entries without NaN, values near one."""
    rng = np.random.default_rng(n)
    rows = rng.integers(0, 256, (n, _ENTRY_BYTES), np.uint8)
    codes, scales = rows[:, :_PLAIN], rows[:, _PLAIN + 2 * _ROPE_DIM :]
    codes[codes & 0x7F == 0x7F] ^= 1
    scales[:] = 117 + scales % 4
    words = np.ascontiguousarray(rows[:, _PLAIN : _PLAIN + 2 * _ROPE_DIM]).view(np.uint16)
    words[:] = (words & 0x87FF) | 0x3800  # of either sign, from 2**-15 to 2
    rows[:, _PLAIN : _PLAIN + 2 * _ROPE_DIM] = words.view(np.uint8)
    return rows


def _program(n_entries: int, n_chosen: int, n_tokens: int, threads: int) -> Program:
    rng = np.random.default_rng(0)
    angles = rng.uniform(0, 6, (n_tokens, _ROPE_DIM // 2)).astype(np.float32)
    choice = [rng.choice(n_entries, n_chosen, replace=False) for _ in range(n_tokens)]
    chosen = np.sort(np.reshape(choice, (n_tokens, n_chosen)).astype(np.int32), axis=1)
    shapes = attend_scratch_shapes(n_tokens, threads, _HEADS, _HEAD_DIM, True)
    queries = rng.standard_normal((n_tokens, _HEADS * _HEAD_DIM), np.float32)
    program = Program()
    program.phase("attention")
    record_attend(
        program,
        queries,
        _EPS,
        np.stack([np.cos(angles), np.sin(angles)], axis=1),
        np.array([_RATIO * n_entries], np.int64),
        _RATIO,
        _WINDOW,
        _entries(_WINDOW),
        _entries(n_tokens),
        _entries(n_entries),
        chosen,
        np.full(n_tokens, n_chosen, np.int32),
        np.zeros(_HEADS, np.float32),
        _HEAD_DIM**-0.5,
        True,
        threads,
        [aligned(shape, np.float32) for shape in shapes],
        np.empty_like(queries),
    )
    return program


def measure_attention(
    n_entries: int, threads: int, seconds: float, n_chosen: int = 0, n_tokens: int = 1
) -> dict[str, float]:
    """Measure attending from tokens at the end of a context, all kinds of products in turns.

    Parameters
    ----------
    n_entries
        Compressed entries, more than tokens.
    threads
        Compute threads.
    seconds
        To measure for, about.
    n_chosen
        Entries that each token attends to, in random places; 0 for all of them (HCA).
    n_tokens
        In a chunk.

    Returns
    -------
    "seconds" of a run (the median); "g_products" a second, in 10**9 multiply-adds, which are
    2 * heads * head_dim a candidate; "gb_s" of packed candidates, each counted once a token.  For
    every kind of product in `localv4.kernels.peak.PEAKS` that the tier has, "share of KIND": the
    median of the ratios to its rate in registers on the same threads, turn by turn; and "fast
    share of KIND": the ratio of the speeds that the fastest seventh of the turns reached.
    """
    program = _program(n_entries, n_chosen, n_tokens, threads)
    peaks = measure_peaks(threads)

    def run(other: Program) -> Callable[[int], None]:
        return lambda _: other.run(threads)

    several, count = lasting(run(program))
    rates = [run(peak.program) for peak in peaks.values()]
    together, *others = in_turns([several, *rates], _LEAST_TURNS, seconds)
    own = [time_s / count for time_s in together]
    candidates = n_tokens * (_WINDOW + (n_chosen or n_entries))
    products = 2.0 * _HEADS * _HEAD_DIM * candidates
    median_s = statistics.median(own)
    shares = {
        f"share of {kind}": median_ratio(times, own) * products / (peak.n_flop / 2)
        for (kind, peak), times in zip(peaks.items(), others, strict=True)
    }
    fast_shares = {
        f"fast share of {kind}": fast(times) / fast(own) * products / (peak.n_flop / 2)
        for (kind, peak), times in zip(peaks.items(), others, strict=True)
    }
    return {
        "seconds": median_s,
        "g_products": products / median_s / 1e9,
        "gb_s": candidates * _ENTRY_BYTES / median_s / 1e9,
        **shares,
        **fast_shares,
    }
