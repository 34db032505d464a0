"""How many bytes the KV state takes, and in which shapes: by layer, by token, in all.

Follows forward.md section 5 (decode state) and the layout of kernels/kv_rows.py. Knows nothing of
memory that is really taken.
"""

import math

from localv4.config import ModelConfig
from localv4.rows import rows_bytes
from localv4.sizes import up

__all__ = [
    "ALIGNMENT",
    "ID_BYTES",
    "entry_bytes",
    "fixed_layer_bytes",
    "key_bytes",
    "kv_bytes",
    "ratios",
    "row_sizes",
    "state_shapes",
]

ALIGNMENT = 64
"""Of every array in the fixed state."""
ID_BYTES = 4


def entry_bytes(config: ModelConfig, trained: bool) -> int:
    """Return the bytes of one window or compressed entry."""
    if not trained:
        return 4 * config.head_dim
    plain = config.head_dim - config.qk_rope_head_dim
    scales = -(-(plain // 64) // 8) * 8
    return plain + 2 * config.qk_rope_head_dim + scales


def key_bytes(config: ModelConfig, trained: bool) -> int:
    """Return the bytes of one index key."""
    if not trained:
        return 4 * config.index_head_dim
    return config.index_head_dim // 2 + config.index_head_dim // 32


def ratios(config: ModelConfig, mtp: bool) -> tuple[int, ...]:
    """Return the ratios of all layers; the MTP block's is the last."""
    return (*config.compress_ratios, 0) if mtp else tuple(config.compress_ratios)


def row_sizes(config: ModelConfig, ratio: int, trained: bool) -> list[int]:
    """Return the bytes of a row of what grows in a layer of this ratio."""
    sizes = [entry_bytes(config, trained)] if ratio else []
    return [*sizes, key_bytes(config, trained)] if ratio == 4 else sizes


def state_shapes(config: ModelConfig, ratio: int) -> list[tuple[int, int]]:
    """Return the shapes of the compressor states; ratio 4 overlaps, so it has twice the slots."""
    coff = 2 if ratio == 4 else 1
    widths = [config.head_dim, config.index_head_dim] if ratio == 4 else [config.head_dim]
    return [(coff * ratio, coff * width) for width in widths] if ratio else []


def fixed_layer_bytes(config: ModelConfig, ratio: int, trained: bool) -> int:
    """Return the bytes of a layer's fixed state."""
    total = up(config.sliding_window * entry_bytes(config, trained), ALIGNMENT)
    return total + sum(2 * up(4 * math.prod(s), ALIGNMENT) for s in state_shapes(config, ratio))


def kv_bytes(config: ModelConfig, n_tokens: int, trained: bool, mtp: bool = False) -> int:
    """Return the bytes that the KV state of a sequence takes.

    The fixed state counts twice: a chunk that fails is taken back to what was before it.
    """
    total = rows_bytes(n_tokens, ID_BYTES)
    for ratio in ratios(config, mtp):
        total += 2 * fixed_layer_bytes(config, ratio, trained)
        for size in row_sizes(config, ratio, trained):
            total += rows_bytes(n_tokens // ratio, size)
    return total
