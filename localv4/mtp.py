"""The MTP block: from a token's hidden state and the next token, logits for the one after.

Follows forward.md section 9.  Knows nothing of when a draft is used.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import Checkpoint
from localv4.kernels.matmul import arrange, matmul
from localv4.kernels.norm import rms_norm
from localv4.kv_cache import LayerCache
from localv4.model import Block, Head, Model
from localv4.quant import bf16
from localv4.step import Step
from localv4.weights import bind_mtp

__all__ = ["MtpBlock"]

F32 = NDArray[np.float32]


class MtpBlock:
    """The MTP block of a checkpoint that has one; shares embedding and output matrix.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """

    def __init__(self, checkpoint: Checkpoint, model: Model) -> None:
        self.model = model
        self.config = model.config
        self.weights = bind_mtp(checkpoint)
        layer = model.config.num_hidden_layers
        self.block = Block(model.config, layer, self.weights.block, model.store)
        self.head = Head(model.config, self.weights.head)

    def forward(self, hidden: F32, cache: LayerCache, step: Step) -> F32:
        """Pass a chunk through the block.

        Parameters
        ----------
        hidden
            float32 [n_tokens, hc_mult, d]: the model's state at the step's positions.
        cache
            The block's own attention state; updated.
        step
            Its ids are the NEXT token of each position.

        Returns
        -------
        float32 [n_tokens, hc_mult, d].
        """
        weights, eps, trained = self.weights, self.config.rms_norm_eps, step.trained
        n_tokens, n, size = hidden.shape
        embedded = rms_norm(self.model.embed(step.ids), weights.enorm, eps, trained)
        embedded = matmul(
            arrange(embedded, weights.e_proj.lanes, trained), weights.e_proj, rounds=trained
        )
        copies = rms_norm(hidden.reshape(-1, size), weights.hnorm, eps, trained)
        copies = matmul(
            arrange(copies, weights.h_proj.lanes, trained), weights.h_proj, rounds=trained
        )
        joined = embedded[:, None, :] + copies.reshape(n_tokens, n, size)
        if trained:
            joined = bf16.round(joined)
        return self.block.forward(joined, cache, step)
