"""Random weights of the released widths, about as fast as a disk takes them.

Drawing every number of a layer of 3.4 GB would take minutes. Here the codes of large matrices are
slices of a few pools of random codes, at a place that the tensor's name decides; small tensors are
those of :mod:`localv4.synthetic_weights`, and all have its distributions, so that the logits are
worth looking at too. Knows nothing of files.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.quant import bf16, e2m1, e4m3
from localv4.synthetic_config import Routing
from localv4.synthetic_draws import direction, generator, normal, uint16, uneven
from localv4.synthetic_routing import COMMON, OWN, PREFERENCE_FACTOR, Topics
from localv4.synthetic_weights import (
    CODE_SPREAD,
    NOVELTY,
    SHARED_DIRECTION,
    gain,
    lowest_exponent,
    random_tensor,
)
from localv4.tensors import TensorSpec

__all__ = ["PooledWeights"]

Draw = Callable[[np.random.PCG64, tuple[int, ...]], NDArray[Any]]

_PERIOD = 4_194_301  # a prime, so that no two rows of a matrix are the same slice
_PIECE = 2**20  # most elements given at once
_DRAWN = 2**20  # BF16 matrices of that many elements are drawn and not sliced
_SIGN = np.uint16(0x8000)

# Larger than in a tiny vocabulary: there are a hundred tokens to one that is favoured.
_PREFERENCE = 30.0


class _Pool:
    """Random numbers that begin again after `_PERIOD`; a slice is never a copy."""

    def __init__(self, numbers: NDArray[Any]) -> None:
        self._numbers = np.concatenate((numbers[:_PERIOD], numbers[:_PIECE]))

    def at(self, place: int, count: int) -> NDArray[Any]:
        place %= _PERIOD
        return self._numbers[place : place + count]


class PooledWeights:
    """The tensors of one checkpoint, piece by piece.

    Holds about 60 MB while it is in use.

    Parameters
    ----------
    config
        The model's sizes.
    seed
        Not negative. The same seed, sizes and favoured tokens give the same bytes.
    favoured
        Ids of the tokens that the head likes best, which are what the model will say; ascending.
    routing
        Which experts tokens shall choose; see `synthesise`.
    """

    def __init__(
        self,
        config: ModelConfig,
        seed: int,
        favoured: NDArray[np.int64],
        routing: Routing = "random",
    ) -> None:
        self._config = config
        self._seed = seed
        self._favoured = favoured
        self._routing = routing
        self._topics: Topics | None = None
        self._own, self._common, self._preference = 1.0, SHARED_DIRECTION, _PREFERENCE
        if routing == "skewed":
            self._topics = Topics(len(favoured), config.hidden_size, seed)
        if routing != "random":
            self._own, self._common = OWN, COMMON
            self._preference *= PREFERENCE_FACTOR
        self._pools: dict[tuple[object, ...], _Pool] = {}

    def pieces(self, spec: TensorSpec) -> Iterator[NDArray[Any]]:
        """Yield a tensor's values in order.

        Parameters
        ----------
        spec
            A tensor of the contract.

        Yields
        ------
        ndarray
            Up to a million elements or the whole of a smaller tensor, as stored; not to be changed.
        """
        dtype = spec.dtypes[0]
        if spec.name.endswith("tid2eid"):
            yield self._routing_table(spec)
        elif spec.name in ("embed.weight", "head.weight"):
            yield from self._token_rows(spec)
        elif dtype == "I8":
            yield from self._sliced(spec, self._fp4_codes())
        elif dtype == "F8_E4M3":
            yield from self._sliced(spec, self._fp8_codes())
        elif dtype == "F8_E8M0" and ".experts." in spec.name:
            yield from self._sliced(spec, self._scales(lowest_exponent(spec, self._config)))
        elif dtype == "BF16" and math.prod(spec.shape) > _DRAWN:
            spread = gain(spec.name) / math.sqrt(spec.shape[1])
            yield from self._sliced(spec, self._bf16_codes(0.0, spread))
        else:
            yield random_tensor(spec, self._config, self._seed, self._routing)

    def _place(self, name: str) -> int:
        return int(generator(name, self._seed).random_raw()) % _PERIOD

    def _pool(self, draw_some: Draw, kind: str, *variant: float) -> _Pool:
        key = (kind, *variant)
        if key not in self._pools:
            # In parts: drawing takes many times the memory of what is kept.
            draw = generator(f"pool.{kind}", self._seed)
            n_parts = math.ceil(_PERIOD / _PIECE)
            parts = [draw_some(draw, (1, _PIECE)).reshape(-1) for _ in range(n_parts)]
            self._pools[key] = _Pool(np.concatenate(parts))
        return self._pools[key]

    def _fp4_codes(self) -> _Pool:
        spread = np.float32(CODE_SPREAD["I8"])
        return self._pool(
            lambda draw, shape: e2m1.pack(e2m1.encode(normal(draw, (2, *shape[1:])) * spread)),
            "fp4",
        )

    def _fp8_codes(self) -> _Pool:
        spread = np.float32(CODE_SPREAD["F8_E4M3"])
        return self._pool(
            lambda draw, shape: e4m3.encode(normal(draw, shape) * uneven(draw, shape) * spread),
            "fp8",
        )

    def _bf16_codes(self, mean: float, spread: float) -> _Pool:
        return self._pool(
            lambda draw, shape: bf16.encode(
                normal(draw, shape) * np.float32(spread) + np.float32(mean)
            ),
            "bf16",
            mean,
            spread,
        )

    def _scales(self, lowest: int) -> _Pool:
        return self._pool(
            lambda draw, shape: (uint16(draw, math.prod(shape)) % 2 + lowest).astype(np.uint8),
            "scales",
            lowest,
        )

    def _sliced(self, spec: TensorSpec, pool: _Pool) -> Iterator[NDArray[Any]]:
        place, count = self._place(spec.name), math.prod(spec.shape)
        for begin in range(0, count, _PIECE):
            yield pool.at(place + begin, min(_PIECE, count - begin))

    def _token_rows(self, spec: TensorSpec) -> Iterator[NDArray[np.uint16]]:
        """Yield embedding or head some rows at a time; see `random_tensor` for their parts."""
        n_rows, columns = spec.shape
        n_together = _PIECE // columns
        for first in range(0, n_rows, n_together):
            codes = self._along_direction(spec, first, min(n_together, n_rows - first))
            begin, end = np.searchsorted(self._favoured, (first, first + len(codes)))
            if begin < end:
                words = np.arange(begin, end)
                rows = self._favoured[begin:end] - first
                change = self._liked if spec.name == "head.weight" else self._on_topic
                codes[rows] = change(codes[rows], words)
            yield codes

    def _along_direction(self, spec: TensorSpec, first: int, n_rows: int) -> NDArray[np.uint16]:
        """Return noise with the shared direction in it; against it in the head, for all tokens."""
        columns = spec.shape[1]
        if spec.name == "embed.weight":
            pool = self._bf16_codes(self._common, self._own)
        else:
            pool = self._bf16_codes(
                -self._preference / columns, gain(spec.name) / math.sqrt(columns)
            )
        codes = pool.at(self._place(spec.name) + first * columns, n_rows * columns)
        # A direction of -1 is a changed sign: a bit, and all the arithmetic that a gigabyte needs.
        signs = np.where(direction(self._seed, columns) < 0, _SIGN, np.uint16(0))
        return np.asarray(codes.reshape(n_rows, columns) ^ signs)

    def _on_topic(self, codes: NDArray[np.uint16], words: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return embeddings of favoured tokens with what their topics have in common."""
        if self._topics is None:
            return codes
        return bf16.encode(bf16.decode(codes) + self._topics.embeddings(words))

    def _liked(self, codes: NDArray[np.uint16], words: NDArray[np.int64]) -> NDArray[np.uint16]:
        """Return rows of the head for favoured tokens: along the direction, against repetition."""
        columns = codes.shape[1]
        embedding = TensorSpec("embed.weight", (self._config.vocab_size, columns), ("BF16",))
        values = bf16.decode(codes)
        values += np.float32(2 * self._preference / columns) * direction(self._seed, columns)
        for row, token_id in zip(values, self._favoured[words], strict=True):
            own = bf16.decode(self._along_direction(embedding, int(token_id), 1))[0]
            row -= np.float32(NOVELTY / self._own / columns) * own
        if self._topics is not None:
            values += self._topics.head_rows(words)
        return bf16.encode(values)

    def _routing_table(self, spec: TensorSpec) -> NDArray[np.int64]:
        """Choose distinct experts for every token id: a first one, and steps that never wrap."""
        n_tokens, n_chosen = spec.shape
        n_experts = self._config.n_routed_experts
        draw = generator(spec.name, self._seed)
        first = uint16(draw, n_tokens).astype("<i8")[:, None]
        longest = max(1, (n_experts - 1) // max(1, n_chosen - 1))
        step = 1 + uint16(draw, n_tokens).astype("<i8")[:, None] % longest
        return np.asarray((first + step * np.arange(n_chosen)) % n_experts, dtype="<i8")
