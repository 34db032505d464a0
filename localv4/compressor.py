"""The compressor: every 4 or 128 tokens become one entry.

Serves both the main KV (attention.py) and the index keys (indexer.py).  Knows nothing of
how entries are packed or chosen.  Follows forward.md section 5.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels.compressor import compress
from localv4.kernels.matmul import Lanes, matmul
from localv4.kernels.norm import rms_norm
from localv4.kernels.rope import rotate
from localv4.kv_cache import CompressorState
from localv4.quant import bf16
from localv4.step import Step
from localv4.weights import CompressorWeights

__all__ = ["compress_chunk"]

F32 = NDArray[np.float32]


def compress_chunk(
    x: Lanes, weights: CompressorWeights, state: CompressorState, step: Step, eps: float
) -> F32:
    """Feed a chunk to a compressor; return the entries it completes.

    Parameters
    ----------
    x
        The attention's input in BF16 lane order, [n_tokens, d].
    weights, state
        The compressor's; the state is updated in place.
    step
        The chunk.
    eps
        rms_norm_eps.

    Returns
    -------
    float32 [n_entries, width], normalised and rotated to each entry's first token.
    """
    ratio, columns = weights.ape.shape
    overlap = state.kv.shape[0] == 2 * ratio
    width = columns // 2 if overlap else columns
    first, last = step.position // ratio, step.end // ratio
    values = np.empty((last - first, width), np.float32)
    kv = matmul(x, weights.wkv, rounds=False)
    score = matmul(x, weights.wgate, rounds=False)
    compress(kv, score, weights.ape, step.position, overlap, state.kv, state.score, values)
    # values leave the softmax in float32 and are rounded before the norm
    if step.trained:
        values = bf16.round(values)
    entries = rms_norm(values, weights.norm, eps, step.trained)
    table = step.rope.table(np.arange(first, last, dtype=np.int64) * ratio, ratio)
    rotate(entries[:, None, :], table, step.trained)
    return entries
