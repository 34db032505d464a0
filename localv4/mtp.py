"""The MTP block: from a token's hidden state and the next token, logits for the one after.

Follows forward.md section 9.  Knows nothing of when a draft is used.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.block import Block, hidden_buffer
from localv4.head import Head
from localv4.kernels.hyper_connections import add_to_copies
from localv4.kernels.launch import Program
from localv4.kernels.matmul import Matrix, arrange, multiply
from localv4.kernels.norm import record_rms_norm
from localv4.kv_cache import LayerCache
from localv4.model import Model
from localv4.step import Step
from localv4.weights import bind_mtp
from localv4.workspace import Workspace

__all__ = ["MtpBlock"]

F32 = NDArray[np.float32]


class MtpBlock:
    """The MTP block of a checkpoint that has one; shares embedding and output matrix.

    Raises
    ------
    DamagedCheckpoint
        A scale is not finite.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.config = model.config
        self.weights = bind_mtp(model.weights)
        layer = model.config.num_hidden_layers
        self.block = Block(model.config, layer, self.weights.block, model.store)
        self.head = Head(model.config, "mtp", self.weights.head)

    def forward(self, hidden: F32, cache: LayerCache, step: Step) -> F32:
        """Pass a chunk through the block.

        Parameters
        ----------
        hidden
            float32 [n_tokens, hc_mult * d]: the model's state at the step's positions, not in
            a buffer of the model's.
        cache
            The block's own attention state; updated.
        step
            Its ids are the NEXT token of each position.

        Returns
        -------
        float32 [n_tokens, hc_mult * d].  A buffer: the next computation with this model
        overwrites it.
        """
        workspace = self.model.workspaces.get(step.n_tokens, step.trained)
        self.model.weights.wait(self.block.layer)
        embedded, states = self._inputs(workspace)
        embedded[:] = self.model.embed(step.ids)
        states[:] = hidden
        workspace.run(workspace.recorded("mtp", lambda: self._record(workspace)))
        self.block.forward(cache, step, workspace)
        return hidden_buffer(self.config, workspace)

    def logits(self, hidden: F32, trained: bool, out: F32) -> None:
        """Write logits [n_rows, vocab_size] for hidden states [n_rows, hc_mult * d]."""
        self.model.weights.wait(-1)
        self.head.logits(hidden, self.model.workspaces, trained, out)

    def _inputs(self, workspace: Workspace) -> tuple[F32, F32]:
        n_tokens, size = workspace.n_tokens, self.config.hidden_size
        embedded = workspace.f32("mtp_embedded", n_tokens, size)
        return embedded, workspace.f32("mtp_states", n_tokens, self.config.hc_mult * size)

    def _record(self, workspace: Workspace) -> Program:
        """Record joining embeddings and states into the block's input."""
        weights, program = self.weights, Program()
        embedded, states = self._inputs(workspace)
        out = hidden_buffer(self.config, workspace)
        size = self.config.hidden_size
        parts: list[tuple[str, F32, F32, Matrix, F32]] = [
            ("mtp_embedded", embedded, weights.enorm, weights.e_proj, embedded),
            (
                "mtp_states",
                states.reshape(-1, size),
                weights.hnorm,
                weights.h_proj,
                out.reshape(-1, size),
            ),
        ]
        trained, eps = workspace.trained, self.config.rms_norm_eps
        program.phase("other")
        for _, x, norm, _, _ in parts:
            record_rms_norm(program, x, norm, eps, trained, x)
        program.phase("other")
        lanes = []
        for name, x, _, matrix, _ in parts:
            lanes.append(workspace.lanes(name, matrix.lanes, trained, size, len(x)))
            arrange(program, x, lanes[-1])
        program.phase("other")
        for arranged, (_, _, _, matrix, result) in zip(lanes, parts, strict=True):
            multiply(program, arranged, matrix, result, trained)
        program.phase("other")
        program.add(add_to_copies, workspace.n_tokens, embedded, int(trained), out)
        return program
