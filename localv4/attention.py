"""Attention of one layer over a chunk: window, compressed entries, grouped output.

Everything is recorded once for a number of tokens; what changes with the step is the position,
which kernels read, and the cache's memory.  Follows forward.md section 4.  Knows nothing of
mHC, experts or other layers.
"""

import weakref
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from localv4.compressor import CompressorPass
from localv4.config import ModelConfig
from localv4.indexer import IndexerPass
from localv4.kernels.attention import COMPRESSED, RING, attend_scratch_shapes, record_attend
from localv4.kernels.entries import ENTRY_ROWS, record_entries, record_remember
from localv4.kernels.entries import RING as REMEMBERED_RING
from localv4.kernels.kv_rows import decode_entry
from localv4.kernels.launch import Program, Task
from localv4.kernels.matmul import Lanes, Matrix, arrange, multiply
from localv4.kernels.norm import record_rms_norm
from localv4.kv_cache import LayerCache
from localv4.kv_sizes import entry_bytes
from localv4.step import Step
from localv4.weights import AttentionWeights
from localv4.workspace import Workspace

__all__ = ["Attention", "AttentionPass"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


def _memory(cache: LayerCache) -> U8:
    """Return the array that is another one for every cache, and whenever its memory moves."""
    return cache.window if cache.compressed is None else cache.compressed.memory


class Attention:
    """Attention of one layer.

    Parameters
    ----------
    config
        The model.
    layer
        Its number; num_hidden_layers is the MTP block.
    weights
        Its weights.
    """

    def __init__(self, config: ModelConfig, layer: int, weights: AttentionWeights) -> None:
        self.config = config
        self.layer = layer
        self.weights = weights
        self.ratio = {"sliding": 0, "csa": 4, "hca": 128}[config.layer_kind(layer)]

    def record(self, program: Program, x: F32, out: F32, workspace: Workspace) -> "AttentionPass":
        """Record attending from every token of a chunk.

        Parameters
        ----------
        program
            Gets the phases.
        x
            float32 [n_tokens, d], the normalised input of the sublayer.
        out
            Written: float32 [n_tokens, d].
        workspace
            For the chunk's number of tokens.

        Returns
        -------
        What prepares every run of the program.
        """
        return AttentionPass(self, program, x, out, workspace)


class AttentionPass:
    """Attention of one layer over chunks of one size; made by `Attention.record`."""

    def __init__(
        self, attention: Attention, program: Program, x: F32, out: F32, workspace: Workspace
    ) -> None:
        config, weights = attention.config, attention.weights
        self._attention = attention
        self._config = config
        self._weights = weights
        self._program = program
        self._workspace = workspace
        self._place = workspace.i64("position", 1)
        self._fresh = self._u8("window rows", workspace.n_tokens)
        n_tokens, pairs = workspace.n_tokens, config.qk_rope_head_dim // 2
        self._tables = workspace.f32("rope tables", n_tokens, 2, pairs)
        self._compressor: CompressorPass | None = None
        self._indexer: IndexerPass | None = None
        if weights.compressor is not None:
            self._compressor = CompressorPass("entries", weights.compressor, workspace)
        if weights.indexer is not None:
            layer = attention.layer
            self._indexer = IndexerPass(config, layer, weights.indexer, workspace, self._place)
        self._entries: Task | None = None
        self._attend: Task
        self._remember: Task
        # a weak reference: a recorded pass outlives sessions, whose memory must not stay with it
        self._lent: Callable[[], U8 | None] = lambda: None
        self._record(x, out)

    def prepare(self, cache: LayerCache, step: Step) -> None:
        """Make room for the chunk in the cache and let the next run use it.

        Parameters
        ----------
        cache
            The layer's state after the tokens before the chunk; the run updates it, and the
            caller keeps it alive until then.
        step
            The chunk.
        """
        self._place[0] = step.position
        ratio = cache.ratio
        if ratio:
            assert cache.compressed is not None
            completed = step.end // ratio - step.position // ratio
            if completed:
                cache.compressed.extend(completed)
                if cache.keys is not None:
                    cache.keys.extend(completed)
        if self._lent() is not _memory(cache):
            self._use(cache)
        if self._indexer is not None:
            assert cache.keys is not None
            self._indexer.make_room(len(cache.keys.memory))

    def finish(self, cache: LayerCache, step: Step) -> None:
        """Show the observer, if there is one, what the run left behind."""
        if step.observe is None:
            return
        layer = self._attention.layer
        step.note("window_kv", layer, self._unpacked(self._fresh))
        if cache.compressed is not None:
            first, last = step.position // cache.ratio, step.end // cache.ratio
            rows = cache.compressed.used[first:last]
            step.note("compressed_kv", layer, self._unpacked(rows))
        if self._indexer is not None:
            self._indexer.note(cache, step)

    def _use(self, cache: LayerCache) -> None:
        """Let all tasks read and write this cache, whose memory may have moved."""
        memory = _memory(cache)
        self._lent = weakref.ref(memory)
        self._attend.lend(RING, cache.window)
        self._remember.lend(REMEMBERED_RING, cache.window)
        if cache.compressed is None:
            return
        assert self._compressor is not None
        assert self._entries is not None
        assert cache.compressor is not None
        self._attend.lend(COMPRESSED, memory)
        self._entries.lend(ENTRY_ROWS, memory)
        self._compressor.use(cache.compressor)
        if self._indexer is not None:
            self._indexer.use(cache)

    def _unpacked(self, rows: U8) -> F32:
        config = self._config
        values = np.empty((len(rows), config.head_dim), np.float32)
        for row, entry in zip(rows, values, strict=True):
            decode_entry(row, config.qk_rope_head_dim, int(self._workspace.trained), entry)
        return values

    def _u8(self, name: str, n_rows: int) -> U8:
        """Return a buffer of packed entries."""
        return self._workspace.u8(name, n_rows, entry_bytes(self._config, self._workspace.trained))

    def _arranged(self, name: str, x: F32, matrices: list[tuple[Matrix, bool]]) -> list[Lanes]:
        """Record arranging x for matrices, once for those that want the same; return lanes.

        A matrix comes with whether its activations are quantised.
        """
        workspace = self._workspace
        made: dict[tuple[str, bool], Lanes] = {}
        for matrix, quantised in matrices:
            key = matrix.lanes, quantised
            if key not in made:
                made[key] = workspace.lanes(name, *key, x.shape[1], len(x))
                arrange(self._program, x, made[key])
        return [made[matrix.lanes, quantised] for matrix, quantised in matrices]

    def _record(self, x: F32, out: F32) -> None:
        config, weights, workspace = self._config, self._weights, self._workspace
        program, trained, n_tokens = self._program, workspace.trained, workspace.n_tokens
        latent = workspace.f32("latent", n_tokens, config.q_lora_rank)
        window = workspace.f32("window values", n_tokens, config.head_dim)
        self._record_inputs(x, latent, window)

        program.phase("other")
        record_rms_norm(program, latent, weights.q_norm, config.rms_norm_eps, trained, latent)
        # the chunk's own entries, and the cosines and sines that its queries will need
        self._record_entries(window, weights.kv_norm, 1, False, self._tables, self._fresh)
        if self._compressor is not None:
            self._compressor.record_compress(program, self._place)
        if self._indexer is not None:
            self._indexer.record_compress(program)

        program.phase("other")
        matrices = [(weights.wq_b, trained)]
        if weights.indexer is not None:
            matrices.append((weights.indexer.wq_b, trained))
        lanes = self._arranged("latent", latent, matrices)
        if self._compressor is not None:
            tables = workspace.f32("entry tables", n_tokens, 2, self._tables.shape[2])
            values, norm = self._compressor.values, self._compressor.weights.norm
            self._entries = self._record_entries(
                values, norm, self._attention.ratio, True, tables, self._u8("no rows", 0)
            )
        if self._indexer is not None:
            self._indexer.record_keys(program)

        program.phase("projections")
        n_heads = config.num_attention_heads
        queries = workspace.f32("queries", n_tokens, n_heads * config.head_dim)
        multiply(program, lanes[0], weights.wq_b, queries, rounds=trained)
        if self._indexer is not None:
            self._indexer.record_queries(program, lanes[-1])
            self._indexer.record_choice(program, self._tables)
        self._record_attend(queries)
        self._record_output(queries, out)

    def _record_inputs(self, x: F32, latent: F32, window: F32) -> None:
        """Record all projections of the sublayer's input."""
        weights, program, trained = self._weights, self._program, self._workspace.trained
        matrices = [(weights.wq_a, trained), (weights.wkv, trained)]
        if weights.compressor is not None:
            matrices.append((weights.compressor.wkv, False))
        program.phase("other")
        lanes = self._arranged("x", x, matrices)
        program.phase("projections")
        multiply(program, lanes[0], weights.wq_a, latent, rounds=trained)
        multiply(program, lanes[1], weights.wkv, window, rounds=trained)
        if self._compressor is not None:
            self._compressor.record_projections(program, lanes[2])
        if self._indexer is not None:
            self._indexer.record_projections(program, lanes[2])

    def _record_entries(
        self, values: F32, norm: F32, ratio: int, append: bool, tables: F32, rows: U8
    ) -> Task:
        workspace = self._workspace
        return record_entries(
            self._program,
            values,
            norm,
            self._config.rms_norm_eps,
            self._place,
            workspace.n_tokens,
            ratio,
            workspace.rope.frequencies(self._attention.ratio),
            workspace.trained,
            append,
            tables,
            rows,
        )

    def _record_attend(self, queries: F32) -> None:
        """Record attention; its result takes the queries' place."""
        config, workspace = self._config, self._workspace
        n_tokens, n_heads = workspace.n_tokens, config.num_attention_heads
        shapes = attend_scratch_shapes(
            n_tokens, workspace.threads, n_heads, config.head_dim, workspace.trained
        )
        scratch = [
            workspace.f32(f"attention {number}", *shape) for number, shape in enumerate(shapes)
        ]
        self._program.phase("attention")
        self._attend = record_attend(
            self._program,
            queries,
            config.rms_norm_eps,
            self._tables,
            self._place,
            self._attention.ratio,
            config.sliding_window,
            self._u8("no rows", 0),
            self._fresh,
            self._u8("no rows", 0),
            workspace.i32("all entries", n_tokens, 0)
            if self._indexer is None
            else self._indexer.chosen,
            workspace.i32("chosen counts", n_tokens),
            self._weights.attn_sink,
            config.head_dim**-0.5,
            workspace.trained,
            workspace.threads,
            scratch,
            queries,
        )

    def _record_output(self, heads: F32, out: F32) -> None:
        """Record the output: a low-rank map for each group of heads, then wo_b."""
        config, workspace, program = self._config, self._workspace, self._program
        groups, wo_b = self._weights.wo_a, self._weights.wo_b
        n_tokens, rank, trained = workspace.n_tokens, config.o_lora_rank, workspace.trained
        program.phase("other")
        grouped = heads.reshape(n_tokens * len(groups), -1)
        lanes = workspace.lanes(
            "heads", groups[0].lanes, False, grouped.shape[1], len(grouped), parts_of=n_tokens
        )
        arrange(program, grouped, lanes)
        self._remember = record_remember(
            program, self._place, self._fresh, self._u8("window", config.sliding_window)
        )
        program.phase("other")
        numbers = np.arange(len(grouped), dtype=np.int32).reshape(n_tokens, -1)
        packed = workspace.u8("heads packed", len(groups), lanes.packed_bytes(n_tokens))
        parts = [
            lanes.take(program, numbers[:, group].copy(), packed[group])
            for group in range(len(groups))
        ]
        program.phase("projections")
        joined = workspace.f32("joined", n_tokens, len(groups) * rank)
        for group, (part, matrix) in enumerate(zip(parts, groups, strict=True)):
            columns = slice(group * rank, (group + 1) * rank)
            multiply(program, part, matrix, joined[:, columns], trained)
        program.phase("other")
        lanes = self._arranged("joined", joined, [(wo_b, trained)])[0]
        program.phase("projections")
        multiply(program, lanes, wo_b, out, rounds=trained)
