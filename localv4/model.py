"""The model: embedding, blocks, head, for a chunk of tokens at any position.

Prefill in one piece, in pieces and token by token are all `forward`.  Follows forward.md
sections 2, 3 and 8.  Knows nothing of sessions, sampling or files.
"""

from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from localv4.block import Block, hidden_buffer
from localv4.checkpoint import Checkpoint
from localv4.dense import MappedWeights, ModelWeights
from localv4.experts import ExpertStore, MappedExperts
from localv4.head import Head
from localv4.kv_cache import KVCache
from localv4.quant import bf16
from localv4.rope import Rope
from localv4.step import Step
from localv4.token_pass import TokenPass
from localv4.weights import bind_block, bind_head
from localv4.workspace import Workspace, Workspaces

__all__ = ["Model"]

F32 = NDArray[np.float32]


class Model:
    """Embedding, blocks and head of an open checkpoint.

    Its buffers serve one caller at a time: everything that computes holds the engine's lock.

    Parameters
    ----------
    weights
        Where the weights lie that every token needs.
    store
        Where routed experts come from.
    threads
        Compute threads.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """

    def __init__(self, weights: ModelWeights, store: ExpertStore, threads: int) -> None:
        config = weights.config
        self.config = config
        self.rope = Rope(config)
        self.workspaces = Workspaces(threads, self.rope)
        self.weights = weights
        self.store = store
        self.blocks = [
            Block(config, layer, bind_block(weights, layer), store)
            for layer in range(config.num_hidden_layers)
        ]
        for block, following in pairwise(self.blocks):
            block.experts.following = following.experts
        self.head = Head(config, "model", bind_head(weights))

    @classmethod
    def mapped(cls, checkpoint: Checkpoint, threads: int) -> "Model":
        """Return a model whose weights stay where the checkpoint's map has them."""
        return cls(MappedWeights(checkpoint), MappedExperts(checkpoint), threads)

    def embed(self, ids: NDArray[np.int64]) -> F32:
        """Return embeddings, float32 [n_tokens, d]; every id is below vocab_size."""
        return bf16.decode(self.weights.rows("embed.weight", ids))

    def begin(self, step: Step) -> None:
        """Let a chunk begin: its first layers' experts are known from its tokens."""
        self.store.begin(step.n_tokens)
        for block in self.blocks[: self.config.num_hash_layers]:
            block.experts.expect(step)

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
        float32 [n_tokens, hc_mult * d], the hidden state before the head.  A buffer: the next
        computation with this model overwrites it.
        """
        workspace = self.workspaces.get(step.n_tokens, step.trained)
        embedded = self.embed(step.ids)  # its small reads go before those of experts
        fast = step.n_tokens == 1 and step.observe is None
        self.begin(step)
        hidden = hidden_buffer(self.config, workspace)
        copies = hidden.reshape(step.n_tokens, self.config.hc_mult, -1)
        copies[:] = embedded[:, None]
        if fast:
            passes = workspace.recorded("token", lambda: self._token_pass(workspace))
            passes.run(cache, step)
            return hidden
        step.note("h", 0, copies)
        for block in self.blocks:
            self.weights.wait(block.layer)
            block.forward(cache.layers[block.layer], step, workspace)
            step.note("h", block.layer + 1, copies)
            if step.passed is not None:
                step.passed(block.layer + 1)
        return hidden

    def _token_pass(self, workspace: Workspace) -> TokenPass:
        """Record one token's pass, once all weights are there: they stay."""
        for block in self.blocks:
            self.weights.wait(block.layer)
        return TokenPass(self.blocks, self.store, workspace)

    def logits(self, hidden: F32, trained: bool, out: F32) -> None:
        """Write logits [n_rows, vocab_size] for hidden states [n_rows, hc_mult * d]."""
        self.weights.wait(-1)
        self.head.logits(hidden, self.workspaces, trained, out)
