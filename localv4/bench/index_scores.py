"""How fast one layer's index keys are scored and the highest chosen, at Flash's widths.

Measured beside the roof: unsigned times signed bytes in registers, on the same threads, in turns of
a millisecond at least.
"""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from localv4 import quant
from localv4.bench.roof import DIGITS, Peak
from localv4.bench.timing import in_turns, lasting, median_ratio
from localv4.indexer import PARTS, division
from localv4.kernels.arrays import aligned
from localv4.kernels.choice import SETS, record_choose
from localv4.kernels.index_rows import record_index_queries
from localv4.kernels.indexer import (
    packed_query_bytes,
    record_score_and_choose,
    record_scores,
    score_scratch_shapes,
)
from localv4.kernels.launch import Program

__all__ = ["IndexSpeed", "measure_index"]

_HEADS, _WIDTH, _CHOSEN = 64, 128, 512
_KEY_BYTES = _WIDTH // 2 + _WIDTH // 32
_TURNS = 9
_PHASES = 8  # of scores, or of choices, in a program; a step has more


@dataclass(frozen=True)
class IndexSpeed:
    """One layer, some tokens.

    Attributes
    ----------
    n_keys, n_tokens
        Keys that each token is scored against.
    score_s, choose_s
        Medians for all tokens; with many tokens both are one program, and `choose_s` is 0.
    products
        Multiply-adds of the scores.
    key_bytes
        Bytes of packed keys.
    share
        Multiply-adds a second over those of the roof, None in a tier that has no such roof.
    """

    n_keys: int
    n_tokens: int
    score_s: float
    choose_s: float
    products: int
    key_bytes: int
    share: float | None

    @property
    def products_s(self) -> float:
        """Multiply-adds a second."""
        return self.products / self.score_s

    @property
    def gb_s(self) -> float:
        """Packed keys a second, read once for all tokens, in GB."""
        return self.key_bytes / self.score_s / 1e9


def _programs(n_keys: int, n_tokens: int, n_threads: int) -> list[Program]:
    """Return `_PHASES` of scores and of choices for one token; one of both for more tokens."""
    rng = np.random.default_rng(n_keys)
    keys = rng.integers(0, 256, (n_keys, _KEY_BYTES), np.uint8)
    keys[:, _WIDTH // 2 :] = rng.integers(124, 128, (n_keys, _WIDTH // 32), np.uint8)
    queries = quant.bf16.round(rng.standard_normal((n_tokens, _HEADS * _WIDTH)))
    weights = quant.bf16.round(rng.standard_normal((n_tokens, _HEADS)))
    packed = aligned((n_tokens, packed_query_bytes(_HEADS, _WIDTH, True)), np.uint8)
    packed[:] = 0
    tables = np.zeros((n_tokens, 2, 32), np.float32)
    tables[:, 0] = 1
    program = Program()
    program.phase("indexer")
    record_index_queries(program, queries, tables, weights, True, packed)
    program.run(n_threads)

    place = np.array([4 * n_keys + 3 - n_tokens], np.int64)
    chosen = np.empty((n_tokens, _CHOSEN), np.int32)
    counts, best = np.empty(n_tokens, np.int32), np.empty(chosen.shape, np.float32)
    first, second, third = (
        aligned(shape, np.float32)
        for shape in score_scratch_shapes(n_threads, _HEADS, _WIDTH, True)
    )
    scratch = first, second, third
    _, at_once = division(n_tokens, n_threads)
    rows = 1 if n_tokens == 1 else n_threads * at_once
    scores, highest = np.empty((rows, n_keys), np.float32), np.empty((rows, SETS), np.int32)
    together, scoring, choosing = Program(), Program(), Program()
    if n_tokens > 1:
        together.phase("indexer")
        record_score_and_choose(
            together,
            queries,
            weights,
            packed,
            keys,
            place,
            True,
            at_once,
            chosen,
            counts,
            best,
            scratch,
            scores,
            highest,
        )
        return [together]
    for _ in range(_PHASES):
        scoring.phase("indexer")
        record_scores(
            scoring,
            queries,
            weights,
            packed,
            keys,
            place,
            True,
            PARTS * n_threads,
            scratch,
            scores,
            highest,
        )
        choosing.phase("indexer")
        record_choose(choosing, scores, highest, place, 4, chosen, counts, best)
    return [scoring, choosing]


def measure_index(
    n_keys: int, n_tokens: int, n_threads: int, seconds: float, roof: Peak | None
) -> IndexSpeed:
    """Measure one layer's index scores and choice; to be called inside `computing`.

    Parameters
    ----------
    n_keys
        Index keys of the layer, a quarter of the context.
    n_tokens
        1 as in decode, or some of a chunk.
    n_threads
        Compute threads.
    seconds
        For how long at least.
    roof
        Of byte products on the same threads (`measure_peaks`), None if the tier has none.
    """
    programs = _programs(n_keys, n_tokens, n_threads)

    def run(program: Program) -> Callable[[int], None]:
        return lambda _: program.run(n_threads)

    own = [lasting(run(program)) for program in programs]
    others = [] if roof is None else [run(roof.program)]
    measured = in_turns([*(each for each, _ in own), *others], _TURNS, seconds)
    phases = _PHASES if n_tokens == 1 else 1
    times = [
        [time_s / count / phases for time_s in each]
        for each, (_, count) in zip(measured, own, strict=False)
    ]
    products = n_tokens * n_keys * _HEADS * _WIDTH
    share = None
    if roof is not None:
        share = median_ratio(measured[-1], times[0]) * products / (roof.n_flop * DIGITS / 2)
    return IndexSpeed(
        n_keys,
        n_tokens,
        statistics.median(times[0]),
        statistics.median(times[1]) if n_tokens == 1 else 0.0,
        products,
        n_keys * _KEY_BYTES,
        share,
    )
