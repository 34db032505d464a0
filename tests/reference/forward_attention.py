"""Attention of one whole prefill from position 0: spec/forward.md sections 4 to 6, no caches."""

import math
from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from tests.reference.forward_numerics import Floats, Numerics, softmax
from tests.reference.forward_weights import Weights

Observe = Callable[[str, int, int, npt.NDArray[np.generic]], None]
Indices = npt.NDArray[np.int64]
Angles = npt.NDArray[np.float32]


def frequencies(weights: Weights, ratio: int) -> Angles:
    """Angle per position of every pair, [R/2]; float32 because large positions show one ulp."""
    config = weights.config
    size = config.qk_rope_head_dim
    base = config.rope_theta if ratio == 0 else config.compress_rope_theta
    pairs = np.arange(size // 2)
    theta: Angles = np.float32(1) / (float(base) ** (2.0 * pairs / size)).astype(np.float32)
    yarn = config.rope_scaling
    if ratio == 0 or yarn is None:
        return theta

    def dimension(rotations: float) -> float:
        original = yarn["original_max_position_embeddings"]
        return float(size * math.log(original / (rotations * 2 * math.pi)) / (2 * math.log(base)))

    low = max(math.floor(dimension(yarn["beta_fast"])), 0)
    high: float = min(math.ceil(dimension(yarn["beta_slow"])), size - 1)
    if low == high:
        high += 0.001
    ramp = np.clip((pairs - np.float32(low)) / np.float32(high - low), 0, 1).astype(np.float32)
    blended: Angles = theta / np.float32(yarn["factor"]) * ramp + theta * (1 - ramp)
    return blended


def rope(num: Numerics, x: Floats, positions: Indices, theta: Angles, sign: int = 1) -> Floats:
    """Turn adjacent pairs of x [S, ..., columns] in its last R columns; ``sign`` -1 inverts."""
    angle = positions.astype(np.float32)[:, None] * theta
    angle = angle.reshape(len(x), *[1] * (x.ndim - 2), len(theta))
    cos, sin = np.cos(angle.astype(np.float64)), sign * np.sin(angle.astype(np.float64))
    columns = 2 * len(theta)
    even, odd = x[..., -columns::2], x[..., -columns + 1 :: 2]
    turned = np.stack([even * cos - odd * sin, even * sin + odd * cos], axis=-1)
    turned = num.bf(turned.reshape(*x.shape[:-1], columns))
    return np.concatenate([x[..., :-columns], turned], axis=-1)


def compress(
    weights: Weights, num: Numerics, prefix: str, ratio: int, x: Floats, width: int
) -> Floats:
    """Section 5 with norm and RoPE: x [S, d] -> one entry for every full window, [E, width]."""
    if len(x) < ratio:
        return np.zeros((0, width))
    n_entries = len(x) // ratio
    x = x[: n_entries * ratio]
    values = (x @ weights(prefix + "wkv.weight").T).reshape(n_entries, ratio, -1)
    scores = (x @ weights(prefix + "wgate.weight").T).reshape(n_entries, ratio, -1)
    scores = scores + weights(prefix + "ape")
    if ratio == 4:
        values = overlapped(values, width, 0.0)
        scores = overlapped(scores, width, -np.inf)
    entries = (softmax(scores, axis=1) * values).sum(axis=1)
    eps = weights.config.rms_norm_eps
    entries = num.rms_norm(num.bf(entries), weights(prefix + "norm.weight"), eps)
    return rope(num, entries, np.arange(n_entries) * ratio, frequencies(weights, ratio))


def overlapped(windows: Floats, width: int, absent: float) -> Floats:
    """[E, 4, 2*width] -> [E, 8, width]: the previous window's a columns, then this one's b."""
    before = np.concatenate([np.full_like(windows[:1], absent), windows[:-1]])
    return np.concatenate([before[..., :width], windows[..., width:]], axis=1)


def index_choice(
    weights: Weights, num: Numerics, layer: int, x: Floats, qr: Floats, observe: Observe
) -> Indices:
    """Section 6: the entries each query attends to, [S, index_topk], best first, -1 for none."""
    config = weights.config
    heads, width = config.index_n_heads, config.index_head_dim
    prefix = weights.block_prefix(layer) + "attn.indexer."
    positions = np.arange(len(x))

    queries = num.quantised(qr, weights(prefix + "wq_b.weight")).reshape(len(x), heads, width)
    queries = rope(num, queries, positions, frequencies(weights, 4))
    queries = num.sim4(num.hadamard(queries))
    keys = compress(weights, num, prefix + "compressor.", 4, x, width)
    keys = num.sim4(num.hadamard(keys))
    observe("indexer_kv", layer, 0, keys)

    head_weights = num.dense(x, weights(prefix + "weights_proj.weight"))
    head_weights = num.bf(head_weights * (width**-0.5 * heads**-0.5))
    products = np.maximum(num.bf(queries @ keys.T), 0)  # [S, heads, E]
    scores = num.bf(num.bf(products * head_weights[:, :, None]).sum(axis=1))
    visible = np.arange(len(keys)) < (positions[:, None] + 1) // 4
    scores = np.where(visible, scores, -np.inf)

    chosen = np.full((len(x), config.index_topk), -1)
    best = np.argsort(-scores, axis=1, kind="stable")[:, : config.index_topk]
    chosen[:, : best.shape[1]] = np.where(np.take_along_axis(visible, best, 1), best, -1)
    observe("indexer_topk", layer, 0, chosen)
    return chosen


def candidate_blocks(
    position: int, window: int, kv: Floats, entries: Floats, chosen: Indices
) -> Iterator[Floats]:
    """Keys of one query in blocks of 64: its window, oldest first, then its entries."""
    keys = np.concatenate([kv[max(0, position - window + 1) : position + 1], entries[chosen]])
    for start in range(0, len(keys), 64):
        yield keys[start : start + 64]


def attend(num: Numerics, q: Floats, blocks: Iterator[Floats], sink: Floats) -> Floats:
    """One query's heads [H, c] over its blocks of keys [*, c], which are the values too."""
    top = np.full((len(q), 1), -np.inf)
    total = np.zeros((len(q), 1))
    weighted = np.zeros_like(q)
    for keys in blocks:
        scores = q @ keys.T * q.shape[1] ** -0.5
        new_top = np.maximum(top, scores.max(axis=1, keepdims=True))
        shares = np.exp(scores - new_top)
        shrink = np.exp(top - new_top)
        total = total * shrink + shares.sum(axis=1, keepdims=True)
        weighted = weighted * shrink + num.bf(shares) @ keys
        top = new_top
    return num.bf(weighted / (total + np.exp(sink[:, None] - top)))


def attention(weights: Weights, num: Numerics, layer: int, x: Floats, observe: Observe) -> Floats:
    """Section 4: the sublayer's output [S, d] for its normalised input x [S, d]."""
    config = weights.config
    heads, width, turned = config.num_attention_heads, config.head_dim, config.qk_rope_head_dim
    prefix = weights.block_prefix(layer) + "attn."
    ratio = weights.compress_ratio(layer)
    theta = frequencies(weights, ratio)
    positions = np.arange(len(x))
    eps = config.rms_norm_eps

    qr = num.quantised(x, weights(prefix + "wq_a.weight"))
    qr = num.rms_norm(qr, weights(prefix + "q_norm.weight"), eps)
    q = num.quantised(qr, weights(prefix + "wq_b.weight")).reshape(len(x), heads, width)
    q = rope(num, num.head_norm(q, eps), positions, theta)

    kv = num.quantised(x, weights(prefix + "wkv.weight"))
    kv = rope(num, num.rms_norm(kv, weights(prefix + "kv_norm.weight"), eps), positions, theta)
    kv[:, :-turned] = num.sim8(kv[:, :-turned])
    observe("window_kv", layer, 0, kv)

    entries = np.zeros((0, width))
    chosen = [np.arange(0)] * len(x)
    if ratio:
        entries = compress(weights, num, prefix + "compressor.", ratio, x, width)
        entries[:, :-turned] = num.sim8(entries[:, :-turned])
        observe("compressed_kv", layer, 0, entries)
        chosen = [np.arange((position + 1) // ratio) for position in positions]
    if ratio == 4:
        choice = index_choice(weights, num, layer, x, qr, observe)
        chosen = [row[row >= 0] for row in choice]

    sink = weights(prefix + "attn_sink")
    window = config.sliding_window
    out = np.stack(
        [
            attend(num, q[p], candidate_blocks(p, window, kv, entries, chosen[p]), sink)
            for p in range(len(x))
        ]
    )
    out = rope(num, out, positions, theta, sign=-1)

    groups = config.o_groups
    wo_a = weights(prefix + "wo_a.weight").reshape(groups, config.o_lora_rank, -1)
    grouped = out.reshape(len(x), groups, -1)
    low_rank = num.bf(np.einsum("sgi,gri->sgr", grouped, wo_a, optimize=True))
    return num.quantised(low_rank.reshape(len(x), -1), weights(prefix + "wo_b.weight"))
