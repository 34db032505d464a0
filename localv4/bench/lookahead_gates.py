"""What the next layer's gate says before that layer has begun.

A layer's gate is asked with a state of the layer before, in plain NumPy and float32, rounding
left out: a prediction need not be exact.  Three states are tried, `STATES`.  Follows forward.md
sections 3 and 7; knows nothing of traces or caches.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import Checkpoint
from localv4.quant import bf16
from localv4.tensors import block_prefix

__all__ = ["STATES", "Gates", "Seen"]

F32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Seen:
    """What a layer showed of some tokens.

    Attributes
    ----------
    copies
        float32 [n, hc_mult, d]: the state before the layer.
    attn_out
        float32 [n, d]: its attention's output.
    ffn_in
        float32 [n, d]: what its own gate was given.
    after
        float32 [n, hc_mult, d]: the state after the layer.
    """

    copies: F32
    attn_out: F32
    ffn_in: F32
    after: F32


class Gates:
    """The gates of a checkpoint, and the mixing of copies before them.

    Parameters
    ----------
    checkpoint
        Open; its tensors are read as they are asked for.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        self._config = checkpoint.config

    def likely(self, layer: int, x: F32, width: int) -> NDArray[np.uint16]:
        """Return the experts that a layer's gate prefers, best first.

        Parameters
        ----------
        layer
            A layer with a gate, not one with a table.
        x
            float32 [n, d].
        width
            How many.

        Returns
        -------
        uint16 [n, width].
        """
        logits = x @ self._tensor(layer, "ffn.gate.weight").T
        keys = np.sqrt(np.logaddexp(np.float32(0), logits)) + self._tensor(layer, "ffn.gate.bias")
        return np.argsort(-keys, axis=1, kind="stable")[:, :width].astype(np.uint16)

    def ffn_in(self, layer: int, copies: F32) -> F32:
        """Return float32 [n, d], what a layer's gate is given for a state [n, hc_mult, d]."""
        pre = self._weights(layer, "ffn", copies)[0]
        x = np.einsum("nj,njd->nd", pre, copies)
        mean = np.mean(x * x, axis=1, keepdims=True)
        x /= np.sqrt(mean + self._config.rms_norm_eps)
        return np.asarray(x * self._tensor(layer, "ffn_norm.weight"), np.float32)

    def after_attention(self, layer: int, copies: F32, attn_out: F32) -> F32:
        """Return the state between a layer's attention and its experts."""
        _, post, residual = self._weights(layer, "attn", copies)
        kept = np.einsum("njk,njd->nkd", residual, copies)
        return np.asarray(post[:, :, None] * attn_out[:, None] + kept, np.float32)

    def _weights(self, layer: int, sublayer: str, copies: F32) -> tuple[F32, F32, F32]:
        """Return the weights pre [n, j], post [n, j] and residual [n, j, k] of the copies."""
        config, count = self._config, self._config.hc_mult
        name = f"hc_{sublayer}"
        flat = copies.reshape(len(copies), -1)
        mean = np.mean(flat * flat, axis=1, keepdims=True)
        mix = flat @ self._tensor(layer, f"{name}_fn").T / np.sqrt(mean + config.rms_norm_eps)
        scale, base = self._tensor(layer, f"{name}_scale"), self._tensor(layer, f"{name}_base")
        mix = mix * np.repeat(scale, [count, count, count**2]) + base
        pre = _sigmoid(mix[:, :count]) + config.hc_eps
        residual = mix[:, 2 * count :].reshape(-1, count, count)
        return pre, 2 * _sigmoid(mix[:, count : 2 * count]), self._doubly_stochastic(residual)

    def _doubly_stochastic(self, logits: F32) -> F32:
        eps = self._config.hc_eps
        matrix: F32 = np.exp(logits - logits.max(axis=2, keepdims=True))
        matrix = matrix / matrix.sum(axis=2, keepdims=True) + eps
        for step in range(1, 2 * self._config.hc_sinkhorn_iters):
            matrix = matrix / (matrix.sum(axis=1 if step % 2 else 2, keepdims=True) + eps)
        return matrix

    def _tensor(self, layer: int, name: str) -> F32:
        view = self._checkpoint.view(f"{block_prefix(self._config, layer)}{name}")
        return bf16.decode(view) if view.dtype == np.uint16 else np.asarray(view, np.float32)


def _sigmoid(x: F32) -> F32:
    return np.asarray(1 / (1 + np.exp(-x)), np.float32)


STATES: Mapping[str, Callable[[Gates, int, Seen], F32]] = {
    "own": lambda gates, layer, seen: seen.ffn_in,
    "attention": lambda gates, layer, seen: gates.ffn_in(
        layer + 1, gates.after_attention(layer, seen.copies, seen.attn_out)
    ),
    "experts": lambda gates, layer, seen: gates.ffn_in(layer + 1, seen.after),
}
"""Given to the gate of the layer after `layer`: what the layer's own gate is given, as it is; the
state after its attention, mixed and normalised as the next layer would; the state after its
experts, likewise, which comes later and knows more."""
