"""The next token from the model's logits: temperature, top-k, top-p and min-p, with a seed.

Order: temperature, then top-k, then top-p, then min-p, each on what the one before left. All
probabilities are float64, ties go to the lowest id, and every drawn token takes exactly one
number from the generator, so a seed gives the same ids wherever the logits are the same. Knows
nothing of models or text.
"""

import math
import secrets
from dataclasses import dataclass
from numbers import Real
from typing import Final

import numpy as np
from numpy.typing import NDArray

from localv4.errors import DamagedCheckpoint, InvalidInput

__all__ = ["Sampler", "SamplingParams", "TokenLogprob", "token_logprob", "top_logprobs"]

_SEED_LIMIT: Final = 2**64
_ONE_BITS: Final = int(np.float64(1.0).view(np.int64))
_BIN_SHIFT: Final = 46  # leaves the exponent and 6 bits of the fraction
_NOT_NEGATIVE: Final = "a finite number, 0 or more"
_COUNT: Final = "a whole number, 0 or more (0 keeps every token)"


@dataclass(frozen=True)
class SamplingParams:
    """How to choose the next token; the defaults are those of the DeepSeek-V4 model card.

    Attributes
    ----------
    temperature
        Divides the logits; 0 always takes the most likely token.
    top_p
        Keep the most likely tokens that together reach this probability; 1 keeps all.
    top_k
        Keep this many of the most likely tokens; 0 keeps all.
    min_p
        Keep tokens at least this fraction as likely as the most likely one; 0 keeps all.
    seed
        Start of the random sequence; None draws one, which `Sampler.seed` tells.

    Raises
    ------
    InvalidInput
        If a value is out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None

    def __post_init__(self) -> None:
        """Check every range."""
        temperature_is_good = 0.0 <= _number(self.temperature) < math.inf
        _require(self.temperature, temperature_is_good, "temperature", _NOT_NEGATIVE)
        _require(self.top_p, 0.0 < _number(self.top_p) <= 1.0, "top_p", "above 0 and at most 1")
        _require(self.min_p, 0.0 <= _number(self.min_p) <= 1.0, "min_p", "between 0 and 1")
        _require(self.top_k, _is_int(self.top_k) and self.top_k >= 0, "top_k", _COUNT)
        seed_is_good = self.seed is None or (_is_int(self.seed) and 0 <= self.seed < _SEED_LIMIT)
        _require(self.seed, seed_is_good, "seed", "a whole number from 0 to 2**64 - 1")


def _number(value: object) -> float:
    """Return a real number as a float; anything else becomes NaN, which every range refuses."""
    if isinstance(value, bool) or not isinstance(value, Real):
        return math.nan
    try:
        return float(value)
    except OverflowError:
        return math.nan


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _require(value: object, good: bool, name: str, expected: str) -> None:
    if not good:
        raise InvalidInput(f"{name} is {value!r}; it must be {expected}")


@dataclass(frozen=True)
class TokenLogprob:
    """How likely one sampled token was, and what else could have come.

    Attributes
    ----------
    id
        The token.
    logprob
        Natural logarithm of its probability under the model: temperature 1, nothing cut off.
    top
        ``(id, logprob)`` of the most likely tokens, best first.
    """

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...]


class Sampler:
    """Chooses tokens by `params`; holds the random sequence, so one sampler serves one answer."""

    def __init__(self, params: SamplingParams) -> None:
        if not isinstance(params, SamplingParams):
            raise InvalidInput(f"sampling is {params!r}; give SamplingParams(...)")
        self._params = params
        # 53 bits: a number of this size survives JSON readers that use doubles.
        self._seed = secrets.randbits(53) if params.seed is None else params.seed
        self._bits = np.random.PCG64(self._seed)

    @property
    def params(self) -> SamplingParams:
        """The parameters in force."""
        return self._params

    @property
    def seed(self) -> int:
        """The seed in use: the one given, or the one drawn."""
        return self._seed

    def skip(self, n_tokens: int) -> None:
        """Go on in the random sequence behind this many tokens."""
        if self._params.temperature > 0:
            self._bits.advance(n_tokens)

    def sample(self, logits: NDArray[np.float32]) -> int:
        """Choose the next token.

        Parameters
        ----------
        logits
            float32 (vocab,); only read.

        Returns
        -------
        int
            The token's id. Temperature 0 draws nothing from the random sequence.

        Raises
        ------
        DamagedCheckpoint
            If a logit is NaN or infinite.
        """
        _check_logits(logits)
        params = self._params
        if params.temperature == 0.0:
            return int(np.argmax(logits))
        ids = None
        if 0 < params.top_k < logits.size:
            ids = _largest(logits, params.top_k)
        kept = logits if ids is None else logits[ids]
        weights = _weights(kept, params.temperature)
        if params.top_p < 1.0:
            weights = np.where(_nucleus(weights, params.top_p), weights, 0.0)
        if params.min_p > 0.0:
            weights = np.where(weights >= params.min_p * weights.max(), weights, 0.0)
        choice = self._draw(weights)
        return choice if ids is None else int(ids[choice])

    def _draw(self, weights: NDArray[np.float64]) -> int:
        """Return an index with probability proportional to its weight."""
        # The raw bits are stable between releases of NumPy; Generator's methods need not be.
        uniform = (self._bits.random_raw() >> 11) * 2.0**-53
        cumulative = np.cumsum(weights)
        # uniform < 1, but the product may round up to the total: then the last weight above 0.
        target = min(uniform * cumulative[-1], np.nextafter(cumulative[-1], 0.0))
        return int(np.searchsorted(cumulative, target, side="right"))


def top_logprobs(logits: NDArray[np.float32], n: int) -> tuple[tuple[int, float], ...]:
    """Return the `n` most likely tokens as ``(id, logprob)``, best first, ties by lowest id.

    Parameters
    ----------
    logits
        float32 (vocab,); only read.
    n
        How many, 0 or more; never more than the vocabulary.

    Raises
    ------
    DamagedCheckpoint
        If a logit is NaN or infinite.
    """
    _check_logits(logits)
    ids = _largest(logits, min(n, logits.size))
    ids = ids[np.argsort(-logits[ids], kind="stable")]
    values = logits[ids].astype(np.float64) - _log_total(logits)
    return tuple(zip(ids.tolist(), values.tolist(), strict=True))


def token_logprob(logits: NDArray[np.float32], token_id: int, n: int) -> TokenLogprob:
    """Return the logprob of a sampled token beside the `n` most likely ones."""
    top = top_logprobs(logits, n)
    return TokenLogprob(token_id, float(logits[token_id]) - _log_total(logits), top)


def _check_logits(logits: NDArray[np.float32]) -> None:
    if logits.ndim != 1 or logits.size == 0:
        raise InvalidInput(f"logits have the shape {logits.shape}; sampling needs (vocab,)")
    finite = np.isfinite(logits)
    if not finite.all():
        bad = logits.size - int(np.count_nonzero(finite))
        raise DamagedCheckpoint(
            f"{bad:,} of {logits.size:,} logits are NaN or infinite, so no token can be chosen; "
            "the checkpoint's weights are damaged: download it again"
        )


def _log_total(logits: NDArray[np.float32]) -> float:
    """Return log(sum(exp(logits))) in float64."""
    highest = float(logits.max())
    return highest + math.log(float(_weights(logits, 1.0).sum()))


def _weights(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float64]:
    """Return unnormalised probabilities, the most likely token at 1."""
    shifted = logits.astype(np.float64)
    shifted -= shifted.max()
    with np.errstate(over="ignore", under="ignore"):  # a tiny temperature: -inf, weight 0
        shifted /= temperature
        return np.exp(shifted, out=shifted)


def _largest(values: NDArray[np.floating], count: int) -> NDArray[np.intp]:
    """Return the indices of the `count` largest values, ascending; ties go to the lowest."""
    if count >= values.size:
        return np.arange(values.size)
    if count == 0:
        return np.empty(0, dtype=np.intp)
    threshold = np.partition(values, values.size - count)[values.size - count]
    indices = np.flatnonzero(values >= threshold)
    surplus = indices.size - count
    if surplus:
        equal = np.flatnonzero(values[indices] == threshold)
        indices = np.delete(indices, equal[equal.size - surplus :])
    return indices


def _nucleus(weights: NDArray[np.float64], top_p: float) -> NDArray[np.bool_]:
    """Return a mask of the fewest most likely indices that reach `top_p` of the total.

    Ties go to the lowest index; the largest weight must be 1.
    """
    # Binned by the leading bits of the float, likeliest first, so only the bin where the sum
    # crosses needs sorting: sorting a whole flat vocabulary would cost 25 ms a token.
    bins = (_ONE_BITS - weights.view(np.int64)) >> _BIN_SHIFT
    mass = np.cumsum(np.bincount(bins, weights=weights))
    target = top_p * mass[-1]
    crossing = int(np.searchsorted(mass, target, side="left"))
    before = mass[crossing - 1] if crossing else 0.0
    candidates = np.flatnonzero(bins == crossing)
    order = candidates[np.argsort(-weights[candidates], kind="stable")]
    reached = int(np.searchsorted(before + np.cumsum(weights[order]), target, side="left"))
    mask = bins < crossing
    mask[order[: reached + 1]] = True
    return mask
