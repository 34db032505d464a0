"""One block: attention, then experts, each inside hyper-connections.

Follows forward.md section 2.  What does not depend on the tokens is recorded once for a number
of tokens: one program up to the choice of experts, one or more after it.  One token's blocks are
parts of one program (token_pass.py).
"""

import numpy as np
from numpy.typing import NDArray

from localv4.attention import Attention
from localv4.config import ModelConfig
from localv4.experts import ExpertStore
from localv4.hyper_connections import record_combine, record_spread
from localv4.kernels.launch import Program
from localv4.kv_cache import LayerCache
from localv4.moe import MixtureOfExperts
from localv4.step import Step
from localv4.weights import BlockWeights
from localv4.workspace import Workspace

__all__ = ["Block", "BlockPass", "hidden_buffer"]

F32 = NDArray[np.float32]


def hidden_buffer(config: ModelConfig, workspace: Workspace) -> F32:
    """Return the buffer that blocks read and write: float32 [n_tokens, hc_mult * d]."""
    return workspace.f32("hidden", workspace.n_tokens, config.hc_mult * config.hidden_size)


class Block:
    """One block.

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

    def forward(self, cache: LayerCache, step: Step, workspace: Workspace) -> None:
        """Pass a chunk, which lies in `hidden_buffer`, through the block.

        Parameters
        ----------
        cache
            The layer's; updated.
        step
            The chunk.
        workspace
            For its number of tokens.
        """
        recorded = workspace.recorded(f"block {self.layer}", lambda: BlockPass(self, workspace))
        recorded.run(cache, step)


class BlockPass:
    """A block's programs for the workspace's number of tokens.

    Parameters
    ----------
    block
        The block.
    workspace
        Buffers.
    program, stops, bound
        Records into this program, to the block's end, as `ExpertsPass.go_on` does; else into
        programs of its own.

    Attributes
    ----------
    first, binding
        With a program given: the block's first phase, and the one from which to go on if `answer`
        says so.
    """

    def __init__(
        self,
        block: Block,
        workspace: Workspace,
        program: Program | None = None,
        stops: NDArray[np.int64] | None = None,
        bound: NDArray[np.int32] | None = None,
    ) -> None:
        config, weights = block.config, block.weights
        self._block = block
        self._workspace = workspace
        self._hidden = hidden_buffer(config, workspace)
        between = workspace.f32("hidden_between", *self._hidden.shape)
        shape = workspace.n_tokens, config.hidden_size
        names = "attn_in", "attn_out", "ffn_in", "ffn_out"
        self._seen = {name: workspace.f32(name, *shape) for name in names}
        attn_in, attn_out, ffn_in, ffn_out = self._seen.values()
        self._program = Program() if program is None else program
        program = self._program
        self.first = program.n_phases
        record_combine(
            program, self._hidden, weights.hc_attn, weights.attn_norm, config, workspace, attn_in
        )
        self._attention = block.attention.record(program, attn_in, attn_out, workspace)
        record_spread(program, self._hidden, attn_out, config, workspace, between)
        record_combine(
            program, between, weights.hc_ffn, weights.ffn_norm, config, workspace, ffn_in
        )

        hidden = self._hidden  # not self, which would keep itself alive

        def then(last: Program) -> None:
            record_spread(last, between, ffn_out, config, workspace, hidden)

        self._experts = block.experts.record(program, ffn_in, ffn_out, workspace, then)
        self.binding = program.n_phases
        if stops is not None and bound is not None:
            self._experts.go_on(program, stops, bound)

    def prepare(self, cache: LayerCache, step: Step) -> None:
        """Let the programs use a cache, with room for a chunk."""
        self._attention.prepare(cache, step)
        self._experts.prepare(step)

    def answer(self) -> bool:
        """Ask for the chosen experts; see `ExpertsPass.answer`."""
        return self._experts.answer()

    def run(self, cache: LayerCache, step: Step) -> None:
        """Pass a chunk through; see `Block.forward`."""
        self.prepare(cache, step)
        self._workspace.run(self._program)
        self._attention.finish(cache, step)
        self._experts.run(step)
        if step.observe is not None:
            for name, array in self._seen.items():
                step.note(name, self._block.layer, array)
