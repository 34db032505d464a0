"""One token through all layers, where experts never move: a native call for several layers.

Between two programs Python takes a tenth to a third of a millisecond, as its data are not in the
caches through which weights pass; at 43 layers that was a tenth of a token.  Here nothing is left
to Python but what a layer's cache needs before the token, and the experts that are chosen for the
first time: the program stops before them and goes on when they are known.

The same kernels in the same order as block by block, and so the same bytes.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from localv4.block import Block, BlockPass
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
        The model's, whose store has tables.
    workspace
        For one token.
    """

    def __init__(self, blocks: Sequence[Block], workspace: Workspace) -> None:
        self._workspace = workspace
        self._program = Program()
        self._unknown = np.zeros(1, np.int64)
        self._program.stop_at(self._unknown)
        self._blocks: list[BlockPass] = []
        self._bounds: list[int] = []
        for layer, block in enumerate(blocks):
            if layer % _LAYERS == 0:
                self._bounds.append(self._program.n_phases)
            self._blocks.append(BlockPass(block, workspace, self._program, self._unknown))
        self._bounds.append(self._program.n_phases)

    def run(self, cache: KVCache, step: Step) -> None:
        """Pass a token through; see `Model.forward`."""
        for block, layer in zip(self._blocks, cache.layers, strict=False):
            block.prepare(layer, step)
        for number, (first, end) in enumerate(pairwise(self._bounds), 1):
            self._run(first, end)
            if step.passed is not None:
                step.passed(min(number * _LAYERS, len(self._blocks)))

    def _run(self, first: int, end: int) -> None:
        self._unknown[0] = 0  # an interrupt may have come before it was answered
        self._workspace.run(self._program, first, end)
        while self._unknown[0]:
            block = self._blocks[int(self._unknown[0]) - 1]
            self._unknown[0] = 0
            block.bind()
            self._workspace.run(self._program, block.binding, end)
