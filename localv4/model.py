"""The model: embedding, blocks, head, for a chunk of tokens at any position.

Prefill in one piece, in pieces and token by token are all `forward`.  Follows forward.md
sections 2, 3 and 8.  Knows nothing of sessions, sampling or files.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.attention import Attention
from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.experts import ExpertStore
from localv4.hyper_connections import around, before_head
from localv4.kernels.matmul import arrange, matmul
from localv4.kernels.norm import rms_norm
from localv4.kv_cache import KVCache, LayerCache
from localv4.moe import MixtureOfExperts
from localv4.quant import bf16
from localv4.step import Step
from localv4.weights import BlockWeights, HeadWeights, bind_block, bind_head

__all__ = ["Block", "Head", "Model"]

F32 = NDArray[np.float32]


class Block:
    """One block: attention, then experts, each inside hyper-connections.

    Parameters
    ----------
    config
        The model.
    layer
        Its number; num_hidden_layers is the MTP block.
    weights
        Its weights.
    store
        Where its routed experts come from.
    """

    def __init__(
        self, config: ModelConfig, layer: int, weights: BlockWeights, store: ExpertStore
    ) -> None:
        self.config = config
        self.layer = layer
        self.weights = weights
        self.attention = Attention(config, layer, weights.attn)
        self.experts = MixtureOfExperts(config, layer, weights.gate, weights.shared, store)

    def forward(self, hidden: F32, cache: LayerCache, step: Step) -> F32:
        """Pass a chunk through the block.

        Parameters
        ----------
        hidden
            float32 [n_tokens, hc_mult, d].
        cache
            The layer's; updated.
        step
            The chunk.

        Returns
        -------
        float32 [n_tokens, hc_mult, d].
        """
        config, weights, trained = self.config, self.weights, step.trained

        def attend(x: F32) -> F32:
            x = rms_norm(x, weights.attn_norm, config.rms_norm_eps, trained)
            step.note("attn_in", self.layer, x)
            update = self.attention.forward(x, cache, step)
            step.note("attn_out", self.layer, update)
            return update

        def feed_forward(x: F32) -> F32:
            x = rms_norm(x, weights.ffn_norm, config.rms_norm_eps, trained)
            step.note("ffn_in", self.layer, x)
            update = self.experts.forward(x, step)
            step.note("ffn_out", self.layer, update)
            return update

        hidden = around(hidden, weights.hc_attn, config, trained, attend)
        return around(hidden, weights.hc_ffn, config, trained, feed_forward)


class Head:
    """From hidden states to logits; the MTP block has one of its own."""

    def __init__(self, config: ModelConfig, weights: HeadWeights) -> None:
        self.config = config
        self.weights = weights

    def logits(self, hidden: F32, trained: bool) -> F32:
        """Return float32 [n_tokens, vocab_size] for hidden states [n_tokens, hc_mult, d]."""
        weights = self.weights
        x = before_head(hidden, weights.hc_head, self.config, trained)
        x = rms_norm(x, weights.norm, self.config.rms_norm_eps, trained)
        return matmul(arrange(x, weights.head.lanes, quantised=False), weights.head, rounds=False)


class Model:
    """Embedding, blocks and head of an open checkpoint.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        config = checkpoint.config
        self.config = config
        self.store = ExpertStore(checkpoint)
        self.embedding: NDArray[np.uint16] = checkpoint.view("embed.weight")
        self.blocks = [
            Block(config, layer, bind_block(checkpoint, layer), self.store)
            for layer in range(config.num_hidden_layers)
        ]
        self.head = Head(config, bind_head(checkpoint))

    def embed(self, ids: NDArray[np.int64]) -> F32:
        """Return embeddings, float32 [n_tokens, d]; every id is below vocab_size."""
        return bf16.decode(self.embedding[ids])

    def forward(self, cache: KVCache, step: Step) -> F32:
        """Pass a chunk through all blocks.

        Parameters
        ----------
        cache
            State after the tokens before the chunk; updated.
        step
            The chunk.

        Returns
        -------
        float32 [n_tokens, hc_mult, d], the hidden state before the head.
        """
        hidden = np.repeat(self.embed(step.ids)[:, None, :], self.config.hc_mult, axis=1)
        step.note("h", 0, hidden)
        for block in self.blocks:
            hidden = block.forward(hidden, cache.layers[block.layer], step)
            step.note("h", block.layer + 1, hidden)
        return hidden
