"""The KV state of one sequence: what the layers remember of the tokens so far.

Every layer has a ring of window entries; layers that compress have entries that grow with
the context (one for 4 or 128 tokens), the compressor's FP32 state and, for ratio 4, the
index keys with a compressor state of their own.  Entries are packed at the precision the
model was trained with, float32 under float32 numerics (kernels/kv_rows.py has the layout).

What does not grow lies in one piece of memory, the fixed state, and is what a mark copies; what
grows (rows.py) is shared between a cache and its marks.  So are the ids of the tokens.

Knows nothing of attention or of what the tokens mean.  Follows forward.md section 5 (decode state).
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.kernels.arrays import aligned
from localv4.kv_sizes import (
    ALIGNMENT,
    ID_BYTES,
    entry_bytes,
    fixed_layer_bytes,
    ratios,
    row_sizes,
    state_shapes,
)
from localv4.rows import Block, Rows, RowsMark
from localv4.sizes import up

__all__ = [
    "CompressorState",
    "KVCache",
    "KVMark",
    "LayerCache",
]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
U8 = NDArray[np.uint8]


class _Carver:
    """Divides memory into arrays that begin at a multiple of 64 bytes."""

    def __init__(self, memory: U8) -> None:
        self._memory = memory

    def take(self, n_bytes: int) -> U8:
        """Return the next bytes, uint8 [n_bytes]."""
        taken, self._memory = self._memory[:n_bytes], self._memory[up(n_bytes, ALIGNMENT) :]
        return taken


@dataclass(frozen=True, eq=False)
class CompressorState:
    """The compressor's slots: float32 [coff * ratio, coff * width] each."""

    kv: F32
    score: F32

    @classmethod
    def carved(cls, memory: _Carver, shape: tuple[int, int]) -> Self:
        """Return a state in the next of some memory; not cleared."""
        kv, score = (
            memory.take(4 * math.prod(shape)).view(np.float32).reshape(shape) for _ in range(2)
        )
        return cls(kv, score)

    def clear(self) -> None:
        """Make it that of an empty sequence."""
        self.kv[:], self.score[:] = 0, -np.inf


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
    def empty(cls, config: ModelConfig, ratio: int, trained: bool, context: int) -> Self:
        """Return the cache of one layer before the first token, with memory of its own.

        Parameters
        ----------
        config, trained
            What decides the sizes.
        ratio
            Of the layer.
        context
            Most tokens.
        """
        memory = np.zeros(fixed_layer_bytes(config, ratio, trained), np.uint8)
        cache = cls.carved(config, ratio, trained, context, _Carver(memory))
        cache.clear()
        return cache

    @classmethod
    def carved(
        cls, config: ModelConfig, ratio: int, trained: bool, context: int, memory: _Carver
    ) -> Self:
        """Return the same in the next of some memory; not cleared."""
        size = entry_bytes(config, trained)
        window = memory.take(config.sliding_window * size).reshape(-1, size)
        states = [CompressorState.carved(memory, s) for s in state_shapes(config, ratio)]
        rows = [Rows(size, context // ratio) for size in row_sizes(config, ratio, trained)]
        entries, keys = (*rows, None, None)[:2]
        compressor, key_compressor = (*states, None, None)[:2]
        return cls(ratio, window, entries, compressor, keys, key_compressor)

    @property
    def growing(self) -> tuple[Rows, ...]:
        """What grows with the context: entries, then keys."""
        return tuple(rows for rows in (self.compressed, self.keys) if rows is not None)

    def clear(self) -> None:
        """Make it that of an empty sequence."""
        self.window[:] = 0
        for rows in self.growing:
            rows.clear()
        for state in (self.compressor, self.key_compressor):
            if state is not None:
                state.clear()

    def without_rows(self) -> "LayerCache":
        """Return a copy of a layer that does not compress."""
        assert not self.ratio
        return LayerCache(0, self.window.copy())


@dataclass(frozen=True, eq=False)
class KVMark:
    """The state of a `KVCache` at some moment; shares its rows.

    Attributes
    ----------
    fixed
        uint8: a copy of the fixed state.
    rows
        Of every `KVCache.growing`.
    last_hidden
        As `KVCache.last_hidden`.
    """

    fixed: U8
    rows: tuple[RowsMark, ...]
    last_hidden: F32 | None

    @property
    def ids(self) -> I32:
        """The tokens, int32 [n]."""
        mark = self.rows[0]
        return mark.block.rows[: mark.count].view(np.int32)[:, 0]

    @property
    def blocks(self) -> Iterator[Block]:
        """The memory of the rows."""
        return (mark.block for mark in self.rows)

    @property
    def fixed_bytes(self) -> int:
        """Bytes held beside the rows."""
        return self.fixed.nbytes


class KVCache:
    """The caches of all layers; with a draft, the MTP block's is the last.

    Parameters
    ----------
    config, trained, mtp
        What decides the sizes.
    context
        Most tokens it may hold: addresses are reserved for them, memory is taken as it fills.

    Attributes
    ----------
    layers
        One for each layer.
    fixed
        uint8: what does not grow, of all layers.
    growing
        What grows: the tokens' ids, then entries and keys layer by layer.
    ratios
        Tokens of a row of each of these.
    hidden_columns
        Of `last_hidden`.
    last_hidden
        float32 [1, hc_mult * hidden_size]: the last token's state behind the last layer, which the
        MTP block has not seen yet; None without one or before the first token.

    Raises
    ------
    OutOfBudget
        The system refuses to reserve the addresses.
    """

    def __init__(self, config: ModelConfig, trained: bool, mtp: bool, context: int) -> None:
        layer_ratios = ratios(config, mtp)
        size = sum(fixed_layer_bytes(config, ratio, trained) for ratio in layer_ratios)
        self.fixed, self._before = (aligned((size,), np.uint8) for _ in range(2))
        memory = _Carver(self.fixed)
        self.layers = tuple(
            LayerCache.carved(config, ratio, trained, context, memory) for ratio in layer_ratios
        )
        self._ids = Rows(ID_BYTES, context)
        self.growing = (self._ids, *(rows for layer in self.layers for rows in layer.growing))
        self.ratios = (1, *(layer.ratio for layer in self.layers for _ in layer.growing))
        self.hidden_columns = config.hc_mult * config.hidden_size
        self._counts = [0] * len(self.growing)
        self.last_hidden: F32 | None = None
        self._hidden_before: F32 | None = None
        self.clear()

    @property
    def ids(self) -> I32:
        """The tokens held, int32 [n]."""
        return self._ids.used.view(np.int32)[:, 0]

    def append_ids(self, ids: NDArray[np.int64]) -> None:
        """Note tokens that all layers have seen."""
        self._ids.extend(ids.size).view(np.int32)[:, 0] = ids

    @property
    def blocks(self) -> Iterator[Block]:
        """The memory of the rows."""
        return (rows.block for rows in self.growing)

    @property
    def fixed_bytes(self) -> int:
        """Bytes held beside the rows, with those to take a chunk back."""
        return self.fixed.nbytes + self._before.nbytes

    @property
    def n_bytes(self) -> int:
        """Bytes held."""
        return self.fixed_bytes + sum(block.n_bytes for block in self.blocks)

    def n_bytes_at(self, n_tokens: int) -> int:
        """Return the bytes held once the sequence has grown to this many tokens."""
        pairs = zip(self.growing, self.ratios, strict=True)
        return self.fixed_bytes + sum(rows.n_bytes_with(n_tokens // r) for rows, r in pairs)

    def clear(self) -> None:
        """Forget all tokens."""
        self._ids.clear()
        for layer in self.layers:
            layer.clear()
        self.last_hidden = None

    def mark(self) -> KVMark:
        """Return what `go_to` returns to; costs a copy of the fixed state."""
        rows = tuple(rows.mark() for rows in self.growing)
        return KVMark(self.fixed.copy(), rows, self.last_hidden)

    def marks_at(self, n_tokens: int) -> tuple[RowsMark, ...]:
        """Return marks of the rows that the first tokens have."""
        pairs = zip(self.growing, self.ratios, strict=True)
        return tuple(rows.mark_at(n_tokens // ratio) for rows, ratio in pairs)

    def cost_of(self, mark: KVMark) -> int:
        """Return the bytes that `go_to` would take, for rows that cannot be shared."""
        pairs = zip(self.growing, mark.rows, strict=True)
        return sum(rows.cost_of(place) for rows, place in pairs)

    def go_to(self, mark: KVMark) -> None:
        """Return to a mark of this cache, or of another one of the same sizes.

        If interrupted, the cache is neither here nor there until it goes to a mark again.
        """
        for rows, place in zip(self.growing, mark.rows, strict=True):
            rows.go_to(place)
        self.fixed[:] = mark.fixed
        self.last_hidden = mark.last_hidden

    def remember(self) -> None:
        """Note the present state, for `take_back`."""
        self._before[:] = self.fixed
        self._counts = [len(rows) for rows in self.growing]
        self._hidden_before = self.last_hidden

    def take_back(self) -> None:
        """Return to what was last remembered; no mark was made since."""
        for rows, count in zip(self.growing, self._counts, strict=True):
            rows.cut(count)
        self.fixed[:] = self._before
        self.last_hidden = self._hidden_before
