"""Single layers on given inputs from an empty state, to verify each one by itself.

End to end, rounding to FP8 amplifies the smallest difference; a layer fed with recorded
inputs shows whether every rounding is in its place.  Knows nothing of sessions.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.block import Block, hidden_buffer
from localv4.checks import float_array, integer_array, whole_number
from localv4.errors import InvalidInput
from localv4.kernels.launch import Program
from localv4.kv_cache import LayerCache
from localv4.model import Model
from localv4.step import Step

__all__ = ["TeacherForced"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


class TeacherForced:
    """A model's layers, one at a time.

    Parameters
    ----------
    model
        The model.
    trained
        Trained or float32 numerics.
    """

    def __init__(self, model: Model, trained: bool) -> None:
        self._model = model
        self._config = model.config
        self._trained = trained

    def attention(self, layer: int, x: ArrayLike) -> F32:
        """Map "attn_in" float32 [n_tokens, d] to "attn_out" of the same shape.

        Raises
        ------
        InvalidInput
            No such layer, or another shape.
        """
        block = self._block(layer)
        inputs = float_array("x", x, (self._config.hidden_size,))
        step = self._begin(layer, np.zeros(len(inputs), np.int64))
        workspace = self._model.workspaces.make(len(inputs), self._trained)
        program, cache, out = Program(), self._empty(layer, len(inputs)), np.empty_like(inputs)
        recorded = block.attention.record(program, inputs, out, workspace)
        recorded.prepare(cache, step)
        workspace.run(program)
        recorded.finish(cache, step)
        return out

    def ffn(self, layer: int, x: ArrayLike, ids: ArrayLike) -> F32:
        """Map "ffn_in" float32 [n_tokens, d] and ids [n_tokens] to "ffn_out".

        Raises
        ------
        InvalidInput
            No such layer, another shape, or ids outside the vocabulary.
        """
        block = self._block(layer)
        inputs = float_array("x", x, (self._config.hidden_size,))
        step = self._begin(layer, self._ids(ids, len(inputs)))
        workspace = self._model.workspaces.make(len(inputs), self._trained)
        program, out = Program(), np.empty_like(inputs)
        recorded = block.experts.record(program, inputs, out, workspace, lambda last: None)
        recorded.prepare(step)
        workspace.run(program)
        recorded.run(step)
        return out

    def block(self, layer: int, hidden: ArrayLike, ids: ArrayLike) -> F32:
        """Map the state before a block, float32 [n_tokens, hc_mult, d], to that after it.

        Raises
        ------
        InvalidInput
            No such layer, another shape, or ids outside the vocabulary.
        """
        block = self._block(layer)
        states = float_array("h", hidden, (self._config.hc_mult, self._config.hidden_size))
        step = self._begin(layer, self._ids(ids, len(states)))
        workspace = self._model.workspaces.make(len(states), self._trained)
        hidden = hidden_buffer(self._config, workspace)
        hidden[:] = states.reshape(hidden.shape)
        block.forward(self._empty(layer, len(states)), step, workspace)
        return hidden.reshape(states.shape)

    def _block(self, layer: int) -> Block:
        last = self._config.num_hidden_layers - 1
        return self._model.blocks[whole_number("layer", layer, 0, last)]

    def _ids(self, ids: ArrayLike, count: int) -> I64:
        tokens = integer_array("ids", ids, self._config.vocab_size)
        if tokens.size != count:
            raise InvalidInput(f"{tokens.size} ids were given for {count} tokens")
        return tokens

    def _begin(self, layer: int, ids: I64) -> Step:
        """Begin a chunk of one layer, whose weights are there then."""
        self._model.store.begin(len(ids))
        self._model.weights.wait(layer)
        return Step(ids, 0, self._trained, self._model.rope)

    def _empty(self, layer: int, n_tokens: int) -> LayerCache:
        ratio = self._config.compress_ratios[layer]
        return LayerCache.empty(self._config, ratio, self._trained, n_tokens)
