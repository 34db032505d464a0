"""The indexer: which compressed entries a query of a ratio-4 layer attends to.

Follows forward.md section 6.  Knows nothing of the entries themselves.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.compressor import compress_chunk
from localv4.config import ModelConfig
from localv4.kernels.indexer import choose, hadamard_fp4, score_entries
from localv4.kernels.kv_rows import encode_keys
from localv4.kernels.matmul import Lanes, matmul
from localv4.kernels.rope import rotate
from localv4.kv_cache import LayerCache
from localv4.quant import bf16
from localv4.step import Step
from localv4.weights import IndexerWeights

__all__ = ["choose_entries"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
_SCORE_BYTES = 64 * 2**20  # scores held at once; long contexts are scored a few tokens at a time


def _remember_keys(
    x: Lanes,
    weights: IndexerWeights,
    cache: LayerCache,
    step: Step,
    config: ModelConfig,
    layer: int,
) -> None:
    """Append the index keys that the chunk completes."""
    assert cache.keys is not None
    assert cache.key_compressor is not None
    entries = compress_chunk(x, weights.compressor, cache.key_compressor, step, config.rms_norm_eps)
    hadamard_fp4(entries, step.trained)
    step.note("indexer_kv", layer, entries)
    encode_keys(entries, step.trained, cache.keys.extend(len(entries)))


def _descending(chosen: I32, scores: F32) -> I32:
    """Order each row's entries by score, equal ones from the lowest entry up; -1 stays last."""
    taken = np.where(chosen < 0, -np.inf, np.take_along_axis(scores, np.maximum(chosen, 0), 1))
    order = np.argsort(-taken, axis=1, kind="stable")
    return np.take_along_axis(chosen, order, 1)


def choose_entries(
    x: Lanes,
    latent: Lanes,
    weights: IndexerWeights,
    cache: LayerCache,
    step: Step,
    config: ModelConfig,
    layer: int,
) -> I32:
    """Choose the compressed entries for every token of a chunk.

    Parameters
    ----------
    x
        The attention's input in BF16 lane order, [n_tokens, d].
    latent
        The normalised query latent, quantised, in the lane order of wq_b: [n_tokens, q_lora_rank].
    weights, cache
        The layer's; keys that the chunk completes are appended to the cache.
    step, config, layer
        The chunk, the model, the layer's number for the observer.

    Returns
    -------
    int32 [n_tokens, index_topk]: entry numbers ascending, then -1.
    """
    _remember_keys(x, weights, cache, step, config, layer)
    assert cache.keys is not None
    heads, width = config.index_n_heads, config.index_head_dim
    queries = matmul(latent, weights.wq_b, rounds=step.trained).reshape(-1, heads, width)
    rotate(queries, step.rope.table(step.positions, 4), step.trained)
    hadamard_fp4(queries.reshape(-1, width), step.trained)
    head_weights = matmul(x, weights.weights_proj, rounds=step.trained)
    head_weights *= np.float32(width**-0.5 * heads**-0.5)
    if step.trained:
        head_weights = bf16.round(head_weights)

    chosen = np.full((step.n_tokens, config.index_topk), -1, np.int32)
    ordered = chosen.copy() if step.observe else chosen
    n_entries = len(cache.keys)
    at_once = max(1, _SCORE_BYTES // (4 * max(n_entries, 1)))
    for first in range(0, step.n_tokens if n_entries else 0, at_once):
        part = slice(first, first + at_once)
        scores = np.empty((len(queries[part]), n_entries), np.float32)
        score_entries(
            queries[part],
            head_weights[part],
            cache.keys.used,
            step.position + first,
            4,
            step.trained,
            scores,
        )
        choose(scores, chosen[part])
        if step.observe:
            ordered[part] = _descending(chosen[part], scores)
    step.note("indexer_topk", layer, ordered)
    return chosen
