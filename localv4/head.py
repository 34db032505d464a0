"""From hidden states to logits; the MTP block has a head of its own.

Follows forward.md section 8.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.hyper_connections import record_before_head
from localv4.kernels.launch import Program
from localv4.kernels.matmul import arrange, multiply
from localv4.weights import HeadWeights
from localv4.workspace import Workspace, Workspaces

__all__ = ["Head"]

F32 = NDArray[np.float32]


class Head:
    """One head.

    Parameters
    ----------
    config
        The model.
    name
        Tells it from the other heads that use the same workspaces.
    weights
        Its weights.
    """

    def __init__(self, config: ModelConfig, name: str, weights: HeadWeights) -> None:
        self.config = config
        self.name = name
        self.weights = weights

    def logits(self, hidden: F32, workspaces: Workspaces, trained: bool, out: F32) -> None:
        """Write logits, one row for each hidden state.

        Parameters
        ----------
        hidden
            float32 [n_rows, hc_mult * d].
        workspaces, trained
            Buffers and numerics.
        out
            Written: float32 [n_rows, vocab_size].
        """
        if len(hidden) > 1:
            workspace = workspaces.make(len(hidden), trained)
            workspace.run(self._record(hidden, workspace, out))
            return
        workspace = workspaces.get(1, trained)
        state = workspace.f32("head_in", *hidden.shape)
        row = workspace.f32("logits", *out.shape)
        state[:] = hidden
        program = workspace.recorded(
            f"{self.name} head", lambda: self._record(state, workspace, row)
        )
        workspace.run(program)
        out[:] = row

    def _record(self, hidden: F32, workspace: Workspace, out: F32) -> Program:
        program, weights = Program(), self.weights
        x = workspace.f32("head_x", len(hidden), self.config.hidden_size)
        record_before_head(
            program, hidden, weights.hc_head, weights.norm, self.config, workspace, x
        )
        lanes = workspace.lanes("head_x", weights.head.lanes, False, x.shape[1])
        program.phase("head")
        arrange(program, x, lanes)
        program.phase("head")
        multiply(program, lanes, weights.head, out, rounds=False)
        return program
