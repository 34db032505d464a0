"""The whole model, slow and obvious: one prefill from position 0 by whole-sequence formulas.

Written from spec/forward.md alone and independent of the engine, which it judges. It knows no
cache, chunk, thread or quantised kernel: matrices are dequantised up front, arithmetic is float64.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from tests.reference.forward_attention import Indices, Observe, attention
from tests.reference.forward_moe import feed_forward
from tests.reference.forward_numerics import Floats, Numerics, sigmoid, softmax
from tests.reference.forward_weights import Weights


def unobserved(name: str, layer: int, position: int, array: npt.NDArray[np.generic]) -> None:
    """Take no notice."""


class Reference:
    """A checkpoint's forward pass in one of the two numerics.

    ``observe(name, layer, position, array)`` receives the intermediates under the engine's names:
    attn_in attn_out ffn_in ffn_out h router_indices router_weights indexer_topk window_kv
    compressed_kv indexer_kv. Position is always 0.
    """

    def __init__(self, folder: Path, numerics: Literal["float32", "trained"] = "float32") -> None:
        self.weights = Weights(folder)
        self.config = self.weights.config
        self.num = Numerics(numerics)

    def prefill(self, ids: Sequence[int] | Indices, observe: Observe = unobserved) -> Floats:
        """Logits [S, vocab] after each of the S tokens."""
        return self._head("", self._body(np.asarray(ids), observe))

    def draft(self, ids: Sequence[int] | Indices, next_ids: Sequence[int] | Indices) -> Floats:
        """Section 9: row p predicts token p+2, given next_ids[p], the token that follows ids[p]."""
        num, weights, eps = self.num, self.weights, self.config.rms_norm_eps
        ids, next_ids = np.asarray(ids), np.asarray(next_ids)
        hidden = self._body(ids, unobserved)
        embedded = num.rms_norm(
            weights("embed.weight")[next_ids], weights("mtp.0.enorm.weight"), eps
        )
        embedded = num.quantised(embedded, weights("mtp.0.e_proj.weight"))
        copies = num.rms_norm(hidden, weights("mtp.0.hnorm.weight"), eps)
        copies = num.quantised(copies, weights("mtp.0.h_proj.weight"))
        joined = num.bf(embedded[:, None] + copies)
        block = self.run_block(self.config.num_hidden_layers, joined, next_ids)
        return self._head("mtp.0.", block)

    def run_attention(self, layer: int, x: Floats, observe: Observe = unobserved) -> Floats:
        """The attention sublayer from an empty state on its normalised input [S, d]."""
        return attention(self.weights, self.num, layer, x, observe)

    def run_ffn(self, layer: int, x: Floats, ids: Indices, observe: Observe = unobserved) -> Floats:
        """The FFN sublayer on its normalised input [S, d]."""
        return feed_forward(self.weights, self.num, layer, x, ids, observe)

    def run_block(
        self, layer: int, h: Floats, ids: Indices, observe: Observe = unobserved
    ) -> Floats:
        """One block from an empty state: h [S, hc_mult, d] -> the same shape."""

        def attend(x: Floats) -> Floats:
            return self.run_attention(layer, x, observe)

        def feed(x: Floats) -> Floats:
            return self.run_ffn(layer, x, ids, observe)

        h = self._hyper_connected("attn", layer, h, attend, observe)
        return self._hyper_connected("ffn", layer, h, feed, observe)

    def _body(self, ids: Indices, observe: Observe) -> Floats:
        """Hidden state after the last block [S, hc_mult, d]."""
        h = np.repeat(self.weights("embed.weight")[ids][:, None], self.config.hc_mult, axis=1)
        observe("h", 0, 0, h)
        for layer in range(self.config.num_hidden_layers):
            h = self.run_block(layer, h, ids, observe)
            observe("h", layer + 1, 0, h)
        return h

    def _mix(self, h: Floats, fn: str) -> Floats:
        """One linear map of the normalised copies, flattened copy by copy."""
        flat = h.reshape(len(h), -1)
        rms = np.sqrt(np.mean(flat * flat, axis=1, keepdims=True) + self.config.rms_norm_eps)
        mixed: Floats = flat @ self.weights(fn).T / rms
        return mixed

    def _hyper_connected(
        self,
        kind: Literal["attn", "ffn"],
        layer: int,
        h: Floats,
        sublayer: Callable[[Floats], Floats],
        observe: Observe,
    ) -> Floats:
        """Section 3: gather one stream from the copies, run the sublayer, spread its result."""
        config, weights, n = self.config, self.weights, self.config.hc_mult
        prefix = weights.block_prefix(layer)
        mix = self._mix(h, f"{prefix}hc_{kind}_fn")
        scale, base = weights(f"{prefix}hc_{kind}_scale"), weights(f"{prefix}hc_{kind}_base")
        pre = sigmoid(mix[:, :n] * scale[0] + base[:n]) + config.hc_eps
        post = 2 * sigmoid(mix[:, n : 2 * n] * scale[1] + base[n : 2 * n])
        carry = self._doubly_stochastic(mix[:, 2 * n :] * scale[2] + base[2 * n :])

        x = self.num.bf(np.einsum("sj,sjd->sd", pre, h))
        norm = weights(f"{prefix}{kind}_norm.weight")
        x = self.num.rms_norm(x, norm, config.rms_norm_eps)
        observe(f"{kind}_in", layer, 0, x)
        out = sublayer(x)
        observe(f"{kind}_out", layer, 0, out)
        kept = np.einsum("sjk,sjd->skd", carry, h)
        return self.num.bf(post[:, :, None] * out[:, None, :] + kept)

    def _doubly_stochastic(self, logits: Floats) -> Floats:
        """Sinkhorn's alternation on [S, n, n]; it ends with the columns (the first index)."""
        config = self.config
        logits = logits.reshape(-1, config.hc_mult, config.hc_mult)
        matrix: Floats = softmax(logits, axis=2) + config.hc_eps
        matrix = matrix / (matrix.sum(axis=1, keepdims=True) + config.hc_eps)
        for _ in range(config.hc_sinkhorn_iters - 1):
            matrix = matrix / (matrix.sum(axis=2, keepdims=True) + config.hc_eps)
            matrix = matrix / (matrix.sum(axis=1, keepdims=True) + config.hc_eps)
        return matrix

    def _head(self, prefix: Literal["", "mtp.0."], h: Floats) -> Floats:
        """Section 8; the MTP block has its own gathering and norm and shares head.weight."""
        weights, config = self.weights, self.config
        mix = self._mix(h, prefix + "hc_head_fn")
        scale, base = weights(prefix + "hc_head_scale"), weights(prefix + "hc_head_base")
        pre = sigmoid(mix * scale + base) + config.hc_eps
        x = self.num.bf(np.einsum("sj,sjd->sd", pre, h))
        x = self.num.rms_norm(x, weights(prefix + "norm.weight"), config.rms_norm_eps)
        logits: Floats = x @ weights("head.weight").T
        return logits
