"""The indexer: which compressed entries a query of a ratio-4 layer attends to.

Follows forward.md section 6.  Knows nothing of the entries themselves.
"""

import math

import numpy as np
from numpy.typing import NDArray

from localv4.compressor import CompressorPass
from localv4.config import ModelConfig
from localv4.kernels.choice import SCORES, SETS, record_choose
from localv4.kernels.index_rows import KEY_ROWS, record_index_queries, record_keys
from localv4.kernels.indexer import (
    SCORED_KEYS,
    packed_query_bytes,
    record_score_and_choose,
    record_scores,
    score_scratch_shapes,
)
from localv4.kernels.kv_rows import decode_key
from localv4.kernels.launch import Program, Task
from localv4.kernels.matmul import Lanes, multiply
from localv4.kv_cache import LayerCache
from localv4.step import Step
from localv4.weights import IndexerWeights
from localv4.workspace import Workspace

__all__ = ["PARTS", "IndexerPass", "division", "scoring_bytes"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_FEW_TOKENS = 8  # up to here every token has its own row of scores
PARTS = 4
"""Units a thread for the keys of few tokens."""

_AT_ONCE = 4  # tokens of a unit of many


def division(n_tokens: int, threads: int) -> tuple[int, int]:
    """Return the rows of scores, and how many tokens of many a unit takes at once."""
    if n_tokens <= _FEW_TOKENS:
        return n_tokens, 1
    at_once = max(1, min(_AT_ONCE, n_tokens // (2 * threads)))
    return threads * at_once, at_once


def scoring_bytes(config: ModelConfig, n_tokens: int, threads: int) -> int:
    """Return the most bytes of what scoring a chunk takes beside its queries, at any context."""
    rows, _ = division(n_tokens, threads)
    of_row = 4 * (SETS + config.max_position_embeddings // 4)
    heads, width = config.index_n_heads, config.index_head_dim
    packed = n_tokens * packed_query_bytes(heads, width, trained=True)
    shapes = score_scratch_shapes(threads, heads, width, trained=False)
    return rows * of_row + max(packed, 4 * sum(map(math.prod, shapes)))


class _Scores:
    """Room for scores that grows with the context; all layers use the same."""

    def __init__(self) -> None:
        self._memory: F32 = np.empty((0, 0), np.float32)

    def room(self, n_rows: int, n_columns: int) -> F32:
        """Return float32 [n_rows, at least n_columns], the same array until it is too small."""
        if len(self._memory) != n_rows or self._memory.shape[1] < n_columns:
            self._memory = np.empty((n_rows, n_columns), np.float32)
        return self._memory


class IndexerPass:
    """The indexer of one layer over chunks of one size; its owner records its phases in order.

    Attributes
    ----------
    chosen
        int32 [n_tokens, index_topk]: entry numbers ascending, then -1.
    counts
        int32 [n_tokens]: how many were chosen.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        weights: IndexerWeights,
        workspace: Workspace,
        place: I64,
    ) -> None:
        n_tokens, n_heads = workspace.n_tokens, config.index_n_heads
        self._config = config
        self._layer = layer
        self._weights = weights
        self._workspace = workspace
        self._place = place
        self._compressor = CompressorPass("indexer", weights.compressor, workspace)
        self._queries = workspace.f32("index queries", n_tokens, n_heads * config.index_head_dim)
        self._head_weights = workspace.f32("index weights", n_tokens, n_heads)
        self.chosen = workspace.i32("chosen", n_tokens, config.index_topk)
        self.counts = workspace.i32("chosen counts", n_tokens)
        self._best = workspace.f32("chosen scores", n_tokens, config.index_topk)
        n_bytes = packed_query_bytes(n_heads, config.index_head_dim, workspace.trained)
        self._packed = workspace.u8("index queries packed", n_tokens, n_bytes)
        self._packed[:] = 0  # its padding stays so
        self._scores = workspace.recorded("scores", _Scores)
        self._keys: Task
        self._scoring: Task
        self._score_rows: int
        self._choice: Task | None = None

    def record_projections(self, program: Program, x: Lanes) -> None:
        """Record everything that is projected from the attention's input."""
        trained = self._workspace.trained
        self._compressor.record_projections(program, x)
        multiply(program, x, self._weights.weights_proj, self._head_weights, rounds=trained)

    def record_compress(self, program: Program) -> None:
        """Record the compressor's state machine."""
        self._compressor.record_compress(program, self._place)

    def record_keys(self, program: Program) -> None:
        """Record making keys of what the compressor completed."""
        config, workspace = self._config, self._workspace
        self._keys = record_keys(
            program,
            self._compressor.values,
            self._compressor.weights.norm,
            config.rms_norm_eps,
            self._place,
            workspace.n_tokens,
            workspace.rope.frequencies(4),
            workspace.trained,
            np.empty((0, 4), np.uint8),
        )

    def record_queries(self, program: Program, latent: Lanes) -> None:
        """Record projecting the index queries from the normalised latent."""
        trained = self._workspace.trained
        multiply(program, latent, self._weights.wq_b, self._queries, rounds=trained)

    def record_choice(self, program: Program, tables: F32) -> None:
        """Record rotating and rounding the queries, scores and the choice, in their phases."""
        config, workspace = self._config, self._workspace
        n_tokens, threads, trained = workspace.n_tokens, workspace.threads, workspace.trained
        queries, weights = self._queries, self._head_weights
        program.phase("indexer")
        packed = self._packed
        record_index_queries(program, queries, tables, weights, trained, packed)
        program.phase("indexer")
        n_heads, width = config.index_n_heads, config.index_head_dim
        shapes = score_scratch_shapes(threads, n_heads, width, trained)
        inputs, unpacked, sums = (
            workspace.f32(f"scoring {number}", *shape) for number, shape in enumerate(shapes)
        )
        scratch = inputs, unpacked, sums
        keys, scores = np.empty((0, 17), np.uint8), np.empty((0, 0), np.float32)
        self._score_rows, at_once = division(n_tokens, threads)
        highest = workspace.i32("highest scores", self._score_rows, SETS)
        if n_tokens > _FEW_TOKENS:
            self._scoring = record_score_and_choose(
                program,
                queries,
                weights,
                packed,
                keys,
                self._place,
                trained,
                at_once,
                self.chosen,
                self.counts,
                self._best,
                scratch,
                scores,
                highest,
            )
            return
        parts = PARTS * threads
        self._scoring = record_scores(
            program,
            queries,
            weights,
            packed,
            keys,
            self._place,
            trained,
            parts,
            scratch,
            scores,
            highest,
        )
        program.phase("indexer")
        self._choice = record_choose(
            program, scores, highest, self._place, 4, self.chosen, self.counts, self._best
        )

    def use(self, cache: LayerCache) -> None:
        """Let the next runs use this cache, kept by the caller; its memory may have moved."""
        assert cache.keys is not None
        assert cache.key_compressor is not None
        self._compressor.use(cache.key_compressor)
        memory = cache.keys.memory
        self._keys.lend(KEY_ROWS, memory)
        self._scoring.lend(SCORED_KEYS, memory)

    def make_room(self, n_keys: int) -> None:
        """Make room for the scores of so many keys."""
        scores = self._scores.room(self._score_rows, n_keys)
        place = len(self._scoring.arguments) - 2
        if self._scoring.arguments[place] is not scores:
            self._scoring.put(place, scores)
            if self._choice is not None:
                self._choice.put(SCORES, scores)

    def note(self, cache: LayerCache, step: Step) -> None:
        """Show the observer the keys that the chunk completed and the chosen entries."""
        assert cache.keys is not None
        first, last = step.position // 4, step.end // 4
        keys = np.empty((last - first, self._config.index_head_dim), np.float32)
        for key, row in zip(keys, cache.keys.used[first:last], strict=True):
            decode_key(row, int(step.trained), key)
        step.note("indexer_kv", self._layer, keys)
        taken = np.where(self.chosen < 0, -np.inf, self._best)
        # by descending score, equal ones from the lowest entry up; -1 stays last
        order = np.argsort(-taken, axis=1, kind="stable")
        step.note("indexer_topk", self._layer, np.take_along_axis(self.chosen, order, 1))
