"""One token through all layers: a native call for several of them.

Between two programs Python takes a tenth to a third of a millisecond, as its data are not in the
caches through which weights pass; at 43 layers that was a tenth of a token.  Here nothing is left
to Python but what a layer's cache needs before the token, and the layers whose experts are not all
known to be in memory: the program stops before these, and goes on when the store has answered.

The same kernels in the same order as block by block, and so the same bytes.
"""

from collections.abc import Sequence

import numpy as np

from localv4.block import Block, BlockPass
from localv4.experts import ExpertStore
from localv4.kernels.launch import Program
from localv4.kv_cache import KVCache
from localv4.step import Step
from localv4.workspace import Workspace

__all__ = ["TokenPass"]

_LAYERS = 8  # of a call: an interrupt is noticed behind it


class TokenPass:
    """The programs of all blocks for one token, one behind the other.

    Parameters
    ----------
    blocks
        The model's.
    store
        Where their experts come from.
    workspace
        For one token.
    """

    def __init__(self, blocks: Sequence[Block], store: ExpertStore, workspace: Workspace) -> None:
        self._workspace = workspace
        self._store = store
        self._program = Program()
        # the layer that stops the program, and the one that was answered, both counted from 1
        self._stops = np.zeros(2, np.int64)
        self._program.stop_at(self._stops[:1])
        n_chosen = blocks[0].config.num_experts_per_tok
        self._bound = np.zeros((len(blocks), n_chosen), np.int32)  # experts found in the tables
        self._blocks = [
            BlockPass(block, workspace, self._program, self._stops, bound)
            for block, bound in zip(blocks, self._bound, strict=True)
        ]
        self._firsts = [*(block.first for block in self._blocks), self._program.n_phases]

    def run(self, cache: KVCache, step: Step) -> None:
        """Pass a token through; see `Model.forward`."""
        for block, layer in zip(self._blocks, cache.layers, strict=False):
            block.prepare(layer, step)
        for first in range(0, len(self._blocks), _LAYERS):
            end = min(first + _LAYERS, len(self._blocks))
            self._run(first, end)
            if step.passed is not None:
                step.passed(end)

    def _run(self, layer: int, end: int) -> None:
        """Run the layers from one to another."""
        self._stops[:] = 0  # an interrupt may have come before it was answered
        self._workspace.run(self._program, self._firsts[layer], self._firsts[end])
        while self._stops[0]:
            stopped = int(self._stops[0]) - 1
            self._stops[:] = 0, stopped + 1
            self._store.passed(layer, self._bound[layer:stopped])
            block = self._blocks[stopped]
            can_go_on = block.answer()
            layer = stopped + 1
            first = block.binding if can_go_on else self._firsts[layer]
            self._workspace.run(self._program, first, self._firsts[end])
        self._store.passed(layer, self._bound[layer:end])
