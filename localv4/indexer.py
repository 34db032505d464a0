"""The indexer: which compressed entries a query of a ratio-4 layer attends to.

Follows forward.md section 6.  Knows nothing of the entries themselves.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.compressor import CompressorPass
from localv4.config import ModelConfig
from localv4.kernels.choice import SCORES, record_choose
from localv4.kernels.indexer import (
    KEY_ROWS,
    SCORED_KEYS,
    record_index_queries,
    record_keys,
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

__all__ = ["IndexerPass"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]
_FEW_TOKENS = 8  # up to here every token has its own row of scores
_PARTS = 4  # units a thread for the keys of one token


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
        self._scores = workspace.recorded("scores", _Scores)
        self._keys: Task
        self._scoring: Task
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
        record_index_queries(program, queries, tables, weights, trained)
        program.phase("indexer")
        shapes = score_scratch_shapes(threads, config.index_n_heads, config.index_head_dim)
        inputs, unpacked, sums = (
            workspace.f32(f"scoring {number}", *shape) for number, shape in enumerate(shapes)
        )
        scratch = inputs, unpacked, sums
        keys, scores = np.empty((0, 4), np.uint8), np.empty((0, 0), np.float32)
        if n_tokens > _FEW_TOKENS:
            self._scoring = record_score_and_choose(
                program,
                queries,
                weights,
                keys,
                self._place,
                trained,
                self.chosen,
                self.counts,
                self._best,
                scratch,
                scores,
            )
            return
        parts = _PARTS * threads
        self._scoring = record_scores(
            program, queries, weights, keys, self._place, trained, parts, scratch, scores
        )
        program.phase("indexer")
        self._choice = record_choose(
            program, scores, self._place, 4, self.chosen, self.counts, self._best
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
        workspace = self._workspace
        n_rows = workspace.threads if self._choice is None else workspace.n_tokens
        scores = self._scores.room(n_rows, n_keys)
        last = len(self._scoring.arguments) - 1
        if self._scoring.arguments[last] is not scores:
            self._scoring.put(last, scores)
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
