"""The compressor: every 4 or 128 tokens become one entry.

Serves both the main KV (attention.py) and the index keys (indexer.py).  Knows nothing of
how entries are packed or chosen.  Follows forward.md section 5.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels.compressor import KV_STATE, SCORE_STATE, record_compress
from localv4.kernels.launch import Program, Task
from localv4.kernels.matmul import Lanes, multiply
from localv4.kv_cache import CompressorState
from localv4.weights import CompressorWeights
from localv4.workspace import Workspace

__all__ = ["CompressorPass"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class CompressorPass:
    """One compressor over chunks of one size; its phases are recorded by its owner.

    Parameters
    ----------
    name
        For its buffers: compressors of one layer run at the same time.
    weights
        Of the compressor.
    workspace
        For the chunk's number of tokens.

    Attributes
    ----------
    values
        float32 [n, width] with room for the entries of a chunk, as they leave the softmax.
    """

    def __init__(self, name: str, weights: CompressorWeights, workspace: Workspace) -> None:
        self.weights = weights
        ratio, columns = weights.ape.shape
        n_tokens = workspace.n_tokens
        self._overlap = ratio == 4
        width = columns // 2 if self._overlap else columns
        self._kv = workspace.f32(f"{name} kv", n_tokens, columns)
        self._score = workspace.f32(f"{name} score", n_tokens, columns)
        self.values = workspace.f32(f"{name} values", -(-n_tokens // ratio), width)
        self._task: Task | None = None

    def record_projections(self, program: Program, x: Lanes) -> None:
        """Record the projections of the attention's input, in the order of the weights."""
        multiply(program, x, self.weights.wkv, self._kv, rounds=False)
        multiply(program, x, self.weights.wgate, self._score, rounds=False)

    def record_compress(self, program: Program, place: I64) -> None:
        """Record feeding the projections to the state; completed entries go to `values`."""
        nobody = np.empty((0, self._kv.shape[1]), np.float32)
        self._task = record_compress(
            program,
            self._kv,
            self._score,
            self.weights.ape,
            place,
            self._overlap,
            nobody,
            nobody,
            self.values,
        )

    def use(self, state: CompressorState) -> None:
        """Let the next runs update this state, which the caller keeps alive."""
        assert self._task is not None
        self._task.lend(KV_STATE, state.kv)
        self._task.lend(SCORE_STATE, state.score)
