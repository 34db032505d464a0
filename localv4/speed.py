"""How fast a model would run on a machine: arithmetic on bytes and rates.

A layer's dense part goes first.  Then its experts' reads run beside what can be computed already:
the end of the shared expert and the experts that are in memory; each expert that was missing
follows as it lands.  Hash layers' experts are known from the token, so that their reads begin with
it.  What is read passes through the memory that the products are waiting for.  Knows nothing of
how the figures came about.
"""

import math
from bisect import bisect_right
from dataclasses import dataclass, replace
from typing import Literal

__all__ = [
    "LAYER_S",
    "MORE_MEMORY_BYTES",
    "OVERHEAD",
    "STOP_S",
    "Estimate",
    "Gain",
    "Rates",
    "Routing",
    "Work",
    "disk_share",
    "estimate",
    "expected_hits",
    "gains",
    "prefill_s",
]

Routing = Literal["skewed", "uniform"]

OVERHEAD = 0.06
"""What a token costs beside its products and reads, as a share of them.

Small arithmetic between the products took 5 to 8% of a step on two cores (benchmarks/README.md,
decode: "of the products with weights alone"), and a reader reaches 93 to 97% of the disk's best.
"""

LAYER_S = 0.0002
"""Seconds that a layer costs besides, on any machine: what does not spread over more cores.

On 16 vCPUs 15 layers take 5 ms more than their products alone (benchmarks/README.md).
"""

STOP_S = 0.0004
"""Seconds that asking for a layer's experts costs, where not all are known to be in memory.

0.3 ms on 2 vCPUs, most of it Python whose data are not in the caches.
"""

MORE_MEMORY_BYTES = 16 * 2**30
"""Of the memory that `gains` adds."""

# Share of all experts that are in memory, and of the choices that find theirs there: traces in
# which 9, 25 and 46% of a layer's experts get 50, 80 and 95% of the choices, the favourites change
# every 100 tokens and three of 43 layers choose evenly; decayed frequency with a half-life of 32
# tokens, 1,000 tokens of which the second half counts.  With fewer experts than one token takes
# (2.3% of Flash's) the most frequent ones still stay, where LRU would find none.
_SKEWED_HITS = (
    (0.0, 0.0),
    (0.0029, 0.071),
    (0.0058, 0.122),
    (0.0116, 0.198),
    (0.0234, 0.299),
    (0.0391, 0.391),
    (0.068, 0.506),
    (0.12, 0.628),
    (0.1631, 0.696),
    (0.2271, 0.769),
    (0.3261, 0.852),
    (0.436, 0.908),
    (0.5, 0.931),
    (0.6794, 0.970),
    (0.8176, 0.986),
    (1.0, 1.0),
)
_HASH_SHARE = 3 / 43
# An expert of a hash layer is chosen as often as one of the others at 30% of their ranks if all
# tokens are as frequent: with fewer slots it is evicted before it is chosen again, with more it
# stays.  Texts repeat tokens: 21% were found with 16% in memory, 51% with 28%.
_HASH_FROM, _HASH_ALL = 0.1, 0.42
_USEFUL = 0.8  # of what is read ahead; the rest was named in vain
_FORESEEN = 4  # experts of the next layer that are looked for as well as the chosen ones
_STEP = 1.01  # of a rate, for its derivative


@dataclass(frozen=True)
class Work:
    """What one token makes of a model.

    Attributes
    ----------
    layers, hash_layers
        All, and the first of them whose experts are known from the token.
    experts, experts_per_token
        Of a layer.
    expert_bytes
        One expert with its scales.
    expert_is_fp8
        Of -Base checkpoints; else it is FP4.
    dense_fp8_bytes, dense_bf16_bytes
        What all layers together multiply before their experts are read; F32 counts as BF16.
    beside_bytes
        What they compute while that happens: the last matrices of the shared experts, FP8.
    head_bytes
        From the last layer to logits, BF16.
    n_products
        Weights that a token is multiplied with, without the head.
    foreseen
        Share of missing experts that the next layer's gate names a layer ahead: 46% are published
        for the trained model and its first four.
    """

    layers: int
    hash_layers: int
    experts: int
    experts_per_token: int
    expert_bytes: int
    expert_is_fp8: bool
    dense_fp8_bytes: int
    dense_bf16_bytes: int
    beside_bytes: int
    head_bytes: int
    n_products: int
    foreseen: float = 0.46

    @property
    def hash_share(self) -> float:
        """Hash layers as a share of all layers."""
        return self.hash_layers / self.layers

    @property
    def all_experts(self) -> int:
        """Experts of all layers."""
        return self.layers * self.experts


@dataclass(frozen=True)
class Rates:
    """How fast a machine is.

    Attributes
    ----------
    fp4, fp8, bf16
        Bytes/s of stored weights, with their scales, that one token is multiplied with.
    disk
        Bytes/s of experts read at random.
    flops
        Operations/s with many tokens at once, two a product.
    """

    fp4: float
    fp8: float
    bf16: float
    disk: float
    flops: float

    def faster_cpu(self, factor: float) -> "Rates":
        """Return the rates with everything but the disk faster."""
        return Rates(
            self.fp4 * factor, self.fp8 * factor, self.bf16 * factor, self.disk, self.flops * factor
        )

    def faster_disk(self, factor: float) -> "Rates":
        """Return the rates with a faster disk."""
        return replace(self, disk=self.disk * factor)


@dataclass(frozen=True)
class Estimate:
    """What a token is expected to take.

    Attributes
    ----------
    hit_rate
        Share of the chosen experts that are in memory.
    token_s
        Seconds.
    """

    hit_rate: float
    token_s: float

    @property
    def tokens_s(self) -> float:
        """Tokens a second."""
        return 1 / self.token_s


@dataclass(frozen=True)
class Gain:
    """What a better machine would give.

    Attributes
    ----------
    what
        "memory" (16 GiB more), "disk" (twice as fast), "cpu" (twice as fast, cores and memory).
    tokens_s
        What would be likely then.
    """

    what: Literal["memory", "disk", "cpu"]
    tokens_s: float


def expected_hits(share: float, routing: Routing, hash_share: float = _HASH_SHARE) -> float:
    """Return the share of choices that find their expert in memory, long after the start.

    Evenly spread choices find the share of the experts that are there, whatever the policy; skewed
    ones more, and those of hash layers too, as texts repeat their tokens.  Rough: traces of real
    prompts differ among themselves by ten points.

    Parameters
    ----------
    share
        Slots of the cache as a share of all experts; grows with it, and 1 finds all.
    routing
        "skewed" as published for the trained model, or "uniform".
    hash_share
        Hash layers as a share of all layers.
    """
    share = min(max(share, 0.0), 1.0)
    hashed = min(max((share - _HASH_FROM) / (_HASH_ALL - _HASH_FROM), 0.0), 1.0)
    if routing == "uniform":
        return hash_share * max(hashed, share) + (1 - hash_share) * share
    whole = _interpolated(share)
    gated = min((whole - _HASH_SHARE * hashed) / (1 - _HASH_SHARE), 1.0)
    return hash_share * hashed + (1 - hash_share) * gated


def _interpolated(share: float) -> float:
    index = min(
        bisect_right(_SKEWED_HITS, share, key=lambda point: point[0]), len(_SKEWED_HITS) - 1
    )
    (x0, y0), (x1, y1) = _SKEWED_HITS[index - 1], _SKEWED_HITS[index]
    return y0 + (y1 - y0) * (share - x0) / (x1 - x0)


def estimate(work: Work, rates: Rates, hit_rate: float) -> Estimate:
    """Return what a token takes if so many of its experts are in memory.

    Parameters
    ----------
    work, rates
        The model and the machine.
    hit_rate
        From 0 to 1.
    """
    hashed_s = _hash_layers_s(work, rates, hit_rate)
    others_s = (work.layers - work.hash_layers) * _layer_s(work, rates, hit_rate)
    products_s = hashed_s + others_s + work.head_bytes / rates.bf16
    besides_s = work.layers * (LAYER_S + _stop_s(work, hit_rate))
    return Estimate(hit_rate, (1 + OVERHEAD) * products_s + besides_s)


def _stop_s(work: Work, hit_rate: float) -> float:
    """Return what asking costs a layer in the mean."""
    return STOP_S * (1 - hit_rate ** (work.experts_per_token + _FORESEEN))


def _dense_s(work: Work, rates: Rates) -> float:
    """Return what a layer computes before its experts are known."""
    return (work.dense_fp8_bytes / rates.fp8 + work.dense_bf16_bytes / rates.bf16) / work.layers


def _beside_s(work: Work, rates: Rates) -> float:
    return work.beside_bytes / rates.fp8 / work.layers


def _expert_s(work: Work, rates: Rates) -> float:
    return work.expert_bytes / (rates.fp8 if work.expert_is_fp8 else rates.fp4)


def _arrival_s(work: Work, rates: Rates) -> float:
    """Return the time for which a read takes memory from whoever computes meanwhile."""
    return work.expert_bytes / rates.bf16


def _layer_s(work: Work, rates: Rates, hit_rate: float) -> float:
    """Return a layer's mean over all numbers of misses, each expert missing by itself."""
    count, miss_rate = work.experts_per_token, 1 - hit_rate
    total_s = _dense_s(work, rates)
    for misses in range(count + 1):
        chance = math.comb(count, misses) * miss_rate**misses * hit_rate ** (count - misses)
        total_s += chance * _experts_s(work, rates, misses)
    return total_s


def _experts_s(work: Work, rates: Rates, misses: int) -> float:
    """Return what a layer's experts take after its dense part.

    Either the CPU is busy all the time, or it waits for the first read, or for the last one and
    computes that expert then; between these no wait is longer, as reads land at even intervals.
    Some are foreseen by the layer before: they are read during the dense part, as many as fit.
    """
    beside_s, expert_s = _beside_s(work, rates), _expert_s(work, rates)
    busy_s = beside_s + work.experts_per_token * expert_s + misses * _arrival_s(work, rates)
    if not misses:
        return busy_s
    read_s = work.expert_bytes / rates.disk
    ahead = min(work.foreseen * misses, _USEFUL * _dense_s(work, rates) / read_s)
    left = misses - ahead
    return max(busy_s, min(left, 1.0) * read_s + misses * expert_s, left * read_s + expert_s)


def _hash_layers_s(work: Work, rates: Rates, hit_rate: float) -> float:
    """Return what the hash layers take, with the mean number of misses in each."""
    misses = work.experts_per_token * (1 - hit_rate)
    expert_s, read_s = _expert_s(work, rates), work.expert_bytes / rates.disk
    own_s = _dense_s(work, rates) + _beside_s(work, rates) + work.experts_per_token * expert_s
    own_s += misses * _arrival_s(work, rates)
    now_s = 0.0
    for layer in range(work.hash_layers):
        landed_s = (layer + 1) * misses * read_s
        now_s = max(now_s + own_s, landed_s + min(misses, 1.0) * expert_s)
    return now_s


def prefill_s(work: Work, rates: Rates, n_tokens: int, share: float, chunk_tokens: int) -> float:
    """Return the seconds to read a prompt; rough.

    For each chunk the longer of both: reading the experts that any of its tokens chooses and that
    are not in memory, and computing.

    Parameters
    ----------
    work, rates
        The model and the machine.
    n_tokens
        Of the prompt.
    share
        Slots of the cache as a share of all experts.
    chunk_tokens
        Most tokens that go through the layers at a time.
    """
    full, rest = divmod(n_tokens, chunk_tokens)
    seconds = full * _chunk_s(work, rates, chunk_tokens, share)
    if rest:
        seconds += _chunk_s(work, rates, rest, share)
    return (1 + OVERHEAD) * (seconds + work.head_bytes / rates.bf16)


def _chunk_s(work: Work, rates: Rates, n_tokens: int, share: float) -> float:
    chosen = 1 - (1 - work.experts_per_token / work.experts) ** n_tokens
    union = work.all_experts * chosen
    reads_s = union * (1 - min(share, 1.0)) * work.expert_bytes / rates.disk
    # few tokens take as long as their weights take to come from memory
    weights_s = work.layers * (_dense_s(work, rates) + _beside_s(work, rates))
    weights_s += union * _expert_s(work, rates)
    return max(reads_s, weights_s, 2 * work.n_products * n_tokens / rates.flops)


def disk_share(work: Work, rates: Rates, hit_rate: float) -> float:
    """Return the share of a token's time that shrinks as the disk gets faster."""
    before_s = estimate(work, rates, hit_rate).token_s
    after_s = estimate(work, rates.faster_disk(_STEP), hit_rate).token_s
    return max(0.0, math.log(before_s / after_s) / math.log(_STEP))


def gains(work: Work, rates: Rates, slots: int, routing: Routing) -> list[Gain]:
    """Return what each improvement would make likely, the best first.

    Parameters
    ----------
    work, rates
        The model and the machine.
    slots
        Experts that the cache holds.
    routing
        See `expected_hits`.
    """

    def likely(more: int, faster: Rates) -> float:
        hit_rate = expected_hits((slots + more) / work.all_experts, routing, work.hash_share)
        return estimate(work, faster, hit_rate).tokens_s

    found = [
        Gain("memory", likely(MORE_MEMORY_BYTES // work.expert_bytes, rates)),
        Gain("disk", likely(0, rates.faster_disk(2))),
        Gain("cpu", likely(0, rates.faster_cpu(2))),
    ]
    return sorted(found, key=lambda gain: -gain.tokens_s)
