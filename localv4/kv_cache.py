"""The KV state of one sequence: what the layers remember of the tokens so far.

Every layer has a ring of window entries; layers that compress have entries that grow with
the context (one for 4 or 128 tokens), the compressor's FP32 state and, for ratio 4, the
index keys with a compressor state of their own.  Entries are packed at the precision the
model was trained with, float32 under float32 numerics (kernels/kv_rows.py has the layout).

Knows nothing of tokens or attention.  Follows forward.md section 5 (decode state).
"""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig

__all__ = ["CompressorState", "KVCache", "LayerCache", "Rows", "entry_bytes", "key_bytes"]

F32 = NDArray[np.float32]
U8 = NDArray[np.uint8]


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


class Rows:
    """Rows of bytes that grow at the end."""

    def __init__(self, row_bytes: int) -> None:
        self._memory: U8 = np.empty((0, row_bytes), np.uint8)
        self._count = 0

    @property
    def used(self) -> U8:
        """All rows, uint8 [n, row bytes]."""
        return self._memory[: self._count]

    @property
    def memory(self) -> U8:
        """The rows and the room for more: the same array until it is too small."""
        return self._memory

    def __len__(self) -> int:
        """Return the number of rows."""
        return self._count

    def _room_for(self, needed: int) -> int:
        """Return how many rows are allocated once `needed` are in use."""
        if needed <= len(self._memory):
            return len(self._memory)
        # an eighth more than needed: growing costs a copy, room costs memory
        return max(needed + needed // 8, 16)

    def n_bytes_with(self, count: int) -> int:
        """Return the bytes held after `extend` with this count."""
        return self._room_for(self._count + count) * int(self._memory.shape[1])

    def extend(self, count: int) -> U8:
        """Make room for `count` more rows and return them for writing."""
        needed = self._count + count
        if needed > len(self._memory):
            grown = np.empty((self._room_for(needed), self._memory.shape[1]), np.uint8)
            grown[: self._count] = self.used
            self._memory = grown
        rows = self._memory[self._count : needed]
        self._count = needed
        return rows

    def copy(self) -> "Rows":
        """Return a copy without room for growth."""
        twin = Rows(self._memory.shape[1])
        twin._memory = self.used.copy()
        twin._count = self._count
        return twin


@dataclass(frozen=True, eq=False)
class CompressorState:
    """The compressor's slots: float32 [coff * ratio, coff * width] each."""

    kv: F32
    score: F32

    @classmethod
    def empty(cls, ratio: int, width: int) -> Self:
        """Return the state of an empty sequence; ratio 4 overlaps, so it has twice the slots."""
        coff = 2 if ratio == 4 else 1
        shape = (coff * ratio, coff * width)
        return cls(np.zeros(shape, np.float32), np.full(shape, -np.inf, np.float32))

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self.kv.nbytes + self.score.nbytes

    def copy(self) -> "CompressorState":
        """Return a copy."""
        return CompressorState(self.kv.copy(), self.score.copy())


@dataclass(frozen=True, eq=False)
class LayerCache:
    """What one layer remembers.

    Attributes
    ----------
    ratio
        0, 4 or 128 tokens an entry.
    window
        uint8 [sliding_window, entry bytes]; position p lies in row p % sliding_window.
    compressed, compressor
        Entries and compressor state, for ratios 4 and 128.
    keys, key_compressor
        Index keys and their compressor state, for ratio 4.
    """

    ratio: int
    window: U8
    compressed: Rows | None = None
    compressor: CompressorState | None = None
    keys: Rows | None = None
    key_compressor: CompressorState | None = None

    @classmethod
    def empty(cls, config: ModelConfig, ratio: int, trained: bool) -> Self:
        """Return the cache of a layer of this ratio before the first token."""
        size = entry_bytes(config, trained)
        window = np.zeros((config.sliding_window, size), np.uint8)
        if ratio == 0:
            return cls(ratio, window)
        compressor = CompressorState.empty(ratio, config.head_dim)
        if ratio != 4:
            return cls(ratio, window, Rows(size), compressor)
        key_compressor = CompressorState.empty(ratio, config.index_head_dim)
        keys = Rows(key_bytes(config, trained))
        return cls(ratio, window, Rows(size), compressor, keys, key_compressor)

    @property
    def _growing(self) -> list[Rows]:
        return [rows for rows in (self.compressed, self.keys) if rows is not None]

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self.n_bytes_at(0)

    def n_bytes_at(self, n_tokens: int) -> int:
        """Return the bytes held once the sequence has grown to this many tokens."""
        states = [s for s in (self.compressor, self.key_compressor) if s is not None]
        total = self.window.nbytes + sum(state.n_bytes for state in states)
        for rows in self._growing:
            total += rows.n_bytes_with(max(n_tokens // self.ratio - len(rows), 0))
        return total

    def copy(self) -> "LayerCache":
        """Return a copy that shares nothing."""
        return LayerCache(
            self.ratio,
            self.window.copy(),
            None if self.compressed is None else self.compressed.copy(),
            None if self.compressor is None else self.compressor.copy(),
            None if self.keys is None else self.keys.copy(),
            None if self.key_compressor is None else self.key_compressor.copy(),
        )


@dataclass(frozen=True, eq=False)
class KVCache:
    """The caches of all layers; with a draft, the MTP block's is the last."""

    layers: tuple[LayerCache, ...]

    @classmethod
    def empty(cls, config: ModelConfig, trained: bool, mtp: bool) -> Self:
        """Return the state of an empty sequence."""
        ratios = (*config.compress_ratios, 0) if mtp else config.compress_ratios
        return cls(tuple(LayerCache.empty(config, ratio, trained) for ratio in ratios))

    @property
    def n_bytes(self) -> int:
        """Bytes held by all layers."""
        return sum(layer.n_bytes for layer in self.layers)

    def n_bytes_at(self, n_tokens: int) -> int:
        """Return the bytes held once the sequence has grown to this many tokens."""
        return sum(layer.n_bytes_at(n_tokens) for layer in self.layers)

    def copy(self) -> "KVCache":
        """Return a copy that shares nothing."""
        return KVCache(tuple(layer.copy() for layer in self.layers))
