"""Attention of one layer over a chunk: window, compressed entries, grouped output.

Follows forward.md section 4.  Knows nothing of mHC, experts or other layers.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.compressor import compress_chunk
from localv4.config import ModelConfig
from localv4.indexer import choose_entries
from localv4.kernels.attention import attend
from localv4.kernels.kv_rows import decode_entries, encode_entries
from localv4.kernels.matmul import Lanes, arrange, matmul
from localv4.kernels.norm import head_norm, rms_norm
from localv4.kernels.rope import rotate
from localv4.kv_cache import LayerCache
from localv4.step import Step
from localv4.weights import AttentionWeights

__all__ = ["Attention"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


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

    def forward(self, x: F32, cache: LayerCache, step: Step) -> F32:
        """Attend from every token of a chunk and remember the chunk in the cache.

        Parameters
        ----------
        x
            float32 [n_tokens, d], the normalised input of the sublayer.
        cache
            The layer's state after the tokens before the chunk; updated.
        step
            The chunk.

        Returns
        -------
        float32 [n_tokens, d].
        """
        config, weights = self.config, self.weights
        quantised = arrange(x, weights.wq_a.lanes, step.trained)
        latent = matmul(quantised, weights.wq_a, rounds=step.trained)
        latent = rms_norm(latent, weights.q_norm, config.rms_norm_eps, step.trained)
        latent_lanes = arrange(latent, weights.wq_b.lanes, step.trained)
        table = step.rope.table(step.positions, self.ratio)
        queries = self._queries(latent_lanes, table, step)
        window = self._window(quantised, table, cache, step)
        chosen, n_chosen = self._compressed(x, latent_lanes, cache, step)
        out = np.empty_like(queries)
        attend(
            queries,
            window,
            cache.window if cache.compressed is None else cache.compressed.used,
            chosen,
            n_chosen,
            weights.attn_sink,
            step.position,
            config.qk_rope_head_dim,
            np.float32(config.head_dim**-0.5),
            step.trained,
            1 if step.n_tokens >= 8 else min(8, config.num_attention_heads),
            out,
        )
        rotate(out, table, step.trained, inverse=True)
        return self._output(out, step)

    def _queries(self, latent: Lanes, table: F32, step: Step) -> F32:
        """Return normalised, rotated queries [n_tokens, n_heads, head_dim]."""
        config = self.config
        queries = matmul(latent, self.weights.wq_b, rounds=step.trained)
        head_norm(queries.reshape(-1, config.head_dim), config.rms_norm_eps, step.trained)
        queries = queries.reshape(step.n_tokens, config.num_attention_heads, config.head_dim)
        rotate(queries, table, step.trained)
        return queries

    def _window(self, x: Lanes, table: F32, cache: LayerCache, step: Step) -> F32:
        """Make the chunk's KV entries; return them behind those of the window before it.

        The entries pass through their packed form, so a chunk reads the same values from
        itself as a later chunk reads from the cache.
        """
        config, weights = self.config, self.weights
        entries = matmul(x, weights.wkv, rounds=step.trained)
        entries = rms_norm(entries, weights.kv_norm, config.rms_norm_eps, step.trained)
        rotate(entries[:, None, :], table, step.trained)
        ring = cache.window
        size = len(ring)
        rows = np.empty((size - 1 + step.n_tokens, ring.shape[1]), np.uint8)
        rows[: size - 1] = ring[np.arange(step.position - size + 1, step.position) % size]
        encode_entries(entries, config.qk_rope_head_dim, step.trained, rows[size - 1 :])
        window = np.empty((len(rows), config.head_dim), np.float32)
        decode_entries(rows, config.qk_rope_head_dim, step.trained, window)
        step.note("window_kv", self.layer, window[size - 1 :])
        kept = min(step.n_tokens, size)
        ring[np.arange(step.end - kept, step.end) % size] = rows[len(rows) - kept :]
        return window

    def _compressed(self, x: F32, latent: Lanes, cache: LayerCache, step: Step) -> tuple[I32, I32]:
        """Append compressed entries; return those each token attends to and how many."""
        if cache.compressed is None or self.weights.compressor is None:
            return np.empty((step.n_tokens, 0), np.int32), np.zeros(step.n_tokens, np.int32)
        assert cache.compressor is not None
        config = self.config
        lanes = arrange(x, "bf16", quantised=False)
        entries = compress_chunk(
            lanes, self.weights.compressor, cache.compressor, step, config.rms_norm_eps
        )
        rows = cache.compressed.extend(len(entries))
        encode_entries(entries, config.qk_rope_head_dim, step.trained, rows)
        if step.observe:
            decode_entries(rows, config.qk_rope_head_dim, step.trained, entries)
            step.note("compressed_kv", self.layer, entries)
        if self.weights.indexer is None:
            visible = (step.positions + 1) // self.ratio
            return np.empty((step.n_tokens, 0), np.int32), visible.astype(np.int32)
        chosen = choose_entries(
            lanes, latent, self.weights.indexer, cache, step, config, self.layer
        )
        return chosen, np.count_nonzero(chosen >= 0, axis=1).astype(np.int32)

    def _output(self, heads: F32, step: Step) -> F32:
        """Project the heads' results: a low-rank map for each group of heads, then wo_b."""
        config, groups = self.config, self.weights.wo_a
        grouped = heads.reshape(step.n_tokens * len(groups), -1)
        lanes = arrange(grouped, groups[0].lanes, quantised=False)
        by_group = lanes.values.reshape(step.n_tokens, len(groups), -1)
        rank = config.o_lora_rank
        joined = np.empty((step.n_tokens, len(groups) * rank), np.float32)
        for group, matrix in enumerate(groups):
            part = Lanes(lanes.order, lanes.n_columns, by_group[:, group])
            columns = slice(group * rank, (group + 1) * rank)
            matmul(part, matrix, rounds=step.trained, out=joined[:, columns])
        wo_b = self.weights.wo_b
        return matmul(arrange(joined, wo_b.lanes, step.trained), wo_b, rounds=step.trained)
