"""Every policy against an obvious twin or by hand; none is better than the clairvoyant one."""

import itertools

import numpy as np
import pytest

from localv4.bench.policies import Cache, replay
from localv4.bench.policies_ordered import Lru, Pinned, S3Fifo, TwoQueues
from localv4.bench.policies_scored import Clairvoyant, Popular
from localv4.bench.policies_study import default_traces, study
from localv4.bench.traces import Trace
from localv4.bench.traces_made import SKEWED, Shape, make
from localv4.errors import InvalidInput
from localv4.residency import Popularity

SHAPE = Shape(n_layers=4, n_experts=24, n_chosen=3, n_hash_layers=1, expert_bytes=1000)
DECODED = make(SHAPE, SKEWED, [1] * 120, seed=1)
MIXED = make(SHAPE, SKEWED, ([9] + [1] * 8) * 6, seed=2)


def _single(keys):
    """Return a trace of one layer, and one expert a token."""
    chosen = np.array(keys, np.uint16).reshape(-1, 1, 1)
    return Trace(chosen, np.ones(len(keys), np.int64), 16, 0, 1)


def _caches(trace, n_slots, n_ring=0):
    return {
        "lru": Lru(n_slots, n_ring),
        "2q": TwoQueues(n_slots, n_ring),
        "s3": S3Fifo(n_slots, n_ring),
        "pinned": Pinned(n_slots, n_ring, trace, trace.n_tokens // 2),
        "popular": Popular(n_slots, n_ring, trace.n_keys),
        "short": Popular(n_slots, n_ring, trace.n_keys, 4.0),
        "sparing": Popular(n_slots, n_ring, trace.n_keys, spares=True),
        "clairvoyant": Clairvoyant(n_slots, n_ring, trace),
    }


@pytest.mark.parametrize("n_slots", [9, 20, 50])
@pytest.mark.parametrize("trace", [DECODED, MIXED], ids=["decoded", "mixed"])
def test_none_beats_the_clairvoyant(trace, n_slots):
    n_ring = 4
    outcomes = {
        name: replay(trace, cache, 0) for name, cache in _caches(trace, n_slots, n_ring).items()
    }
    # what is pinned is there before it is read, and the rest takes no slot
    del outcomes["pinned"]
    missed = {name: each.missing + each.swept for name, each in outcomes.items()}
    assert min(missed, key=missed.__getitem__) == "clairvoyant"
    assert len({each.wanted for each in outcomes.values()}) == 1


def test_the_clairvoyant_is_the_optimum():
    rng = np.random.default_rng(5)
    for _ in range(20):
        keys = rng.integers(0, 5, 9).tolist()
        trace = _single(keys)
        assert replay(trace, Clairvoyant(2, 0, trace), 0).missing == _fewest(keys, 2)


def _fewest(keys, n_slots):
    """Return the fewest misses, by trying everything."""
    states: dict[frozenset[int], int] = {frozenset(): 0}
    for key in keys:
        following: dict[frozenset[int], int] = {}
        for held, missing in states.items():
            if key in held:
                choices = [held]
            elif len(held) < n_slots:
                choices = [held | {key}]
            else:
                choices = [held - {other} | {key} for other in held]
            for choice in choices:
                cost = missing + (key not in held)
                following[choice] = min(cost, following.get(choice, cost))
        states = following
    return min(states.values())


@pytest.mark.parametrize(
    ("new", "missed"),
    [
        # 3 slots; a key missed is in capitals
        (lambda trace: Lru(3), "ABCaDaBCE"),
        (lambda trace: TwoQueues(3, protected=0.34), "ABCaDaBCE"),
        (lambda trace: Pinned(3, 0, trace, 4), "abcaDabcE"),
        (lambda trace: Popular(3, 0, trace.n_keys, 2.0), "ABCaDaBCE"),
        (lambda trace: Clairvoyant(3, 0, trace), "ABCaDabCE"),
    ],
)
def test_by_hand(new, missed):
    keys = [ord(letter) - ord("a") for letter in missed.lower()]
    trace, resident = _single(keys), []
    cache = new(trace)
    written = ""
    for (_, layers), letter in zip(trace.steps(), missed.lower(), strict=True):
        cache.begin(1)
        written += letter.upper() if cache.use(layers[0, 0]) else letter
        resident.append(len(cache))
    assert written == missed
    assert max(resident) == 3


def test_lru_is_its_twin():
    order: list[int] = []
    missing = 0
    for _, layers in DECODED.steps():
        for choices in layers[:, 0].tolist():
            missing += sum(key not in order for key in choices)
            order = [key for key in order if key not in choices] + choices
            order = order[-20:]
    assert replay(DECODED, Lru(20), 0).missing == missing


def test_popular_is_its_twin():
    scores = Popularity(DECODED.n_keys, 7.0)
    held: set[int] = set()
    missing = 0
    for _, layers in DECODED.steps():
        scores.begin(1)
        for choices in layers[:, 0]:
            scores.count(choices)
            for key in choices.tolist():
                if key not in held:
                    missing += 1
                    others = [k for k in sorted(held) if k not in choices]
                    if len(held) == 20:
                        held.remove(min(others, key=lambda k: scores.scores[k]))
                    held.add(key)
    assert replay(DECODED, Popular(20, 0, DECODED.n_keys, 7.0), 0).missing == missing


def test_s3_fifo_keeps_what_is_used_again():
    cache = S3Fifo(10)
    keys = np.arange(16)
    cache.use(keys[:1])
    cache.use(keys[:1])  # used again before it leaves the small queue: moves to the main one
    for key in range(1, 11):
        cache.use(keys[key : key + 1])
    assert 0 in cache
    assert 1 not in cache
    cache.use(keys[1:2])  # came back while its ghost was known: goes to the main queue
    for key in range(11, 16):
        cache.use(keys[key : key + 1])
    assert 1 in cache
    assert len(cache) == 10


@pytest.mark.parametrize("trace", [DECODED, MIXED], ids=["decoded", "mixed"])
@pytest.mark.parametrize("half_life", [3.0, 32.0])
@pytest.mark.parametrize("spares", [False, True])
def test_a_larger_cache_holds_what_a_smaller_one_does(trace, half_life, spares):
    """The production policy is a stack: never worse with more slots."""
    shown: list[list[frozenset[int]]] = []
    missed = []
    for n_slots in (9, 10, 14, 30, 31, 90):
        states: list[frozenset[int]] = []

        def seen(cache: Cache, states: list[frozenset[int]] = states) -> None:
            assert isinstance(cache, Popular)
            states.append(cache.keys)

        outcome = replay(trace, Popular(n_slots, 4, trace.n_keys, half_life, spares), 0, seen=seen)
        missed.append(outcome.missing + outcome.swept)
        shown.append(states)
    for smaller, larger in itertools.pairwise(shown):
        assert all(a <= b for a, b in zip(smaller, larger, strict=True))
    assert missed == sorted(missed, reverse=True)


def test_a_sweep_leaves_hits_and_admits_by_score():
    cache = Popular(3, 0, 8)
    for key in (0, 0, 1, 1, 2):
        cache.begin(1)
        cache.use(np.array([key]))
    cache.begin(4)
    # 3 is chosen twice and 4 once: only 3 is worth more than 2, which counts once
    assert cache.sweep(np.array([0, 3, 3, 4]), 4, ring=True) == 2
    assert cache.keys == {0, 1, 3}
    through = Lru(3)
    for key in (0, 1, 2):
        through.use(np.array([key]))
    assert through.sweep(np.array([0, 3, 4]), 3, ring=False) == 2
    assert [key in through for key in range(5)] == [True, False, False, True, True]
    ring = Lru(3, n_ring=1)
    for key in (0, 1, 2):
        ring.use(np.array([key]))
    ring.begin(3)
    assert ring.sweep(np.array([1, 3, 4]), 3, ring=True) == 2
    assert [key in ring for key in range(5)] == [False, True, True, False, False]


def test_a_sweep_may_spare_the_layers_to_come():
    for spares, evicted in ((False, 6), (True, 0)):
        cache = Popular(2, 0, 8, spares=spares)
        for _ in range(2):
            cache.begin(1)
            cache.use(np.array([0]))
        cache.begin(1)
        cache.use(np.array([6]))
        cache.begin(4)
        cache.sweep(np.array([3, 3, 3, 3]), 4, ring=True)
        assert cache.keys == {0, 3, 6} - {evicted}


def test_what_a_token_uses_together_stays():
    for name, cache in _caches(DECODED, 4).items():
        if name in ("pinned", "clairvoyant"):
            continue
        cache.begin(1)
        cache.use(np.array([0, 1, 2]))
        cache.use(np.array([2, 3, 4]))
        assert all(key in cache for key in (2, 3, 4)), name


def test_too_small():
    with pytest.raises(InvalidInput, match="larger share"):
        replay(DECODED, Lru(2), 0)
    with pytest.raises(InvalidInput, match="decoded tokens"):
        study("x", make(SHAPE, SKEWED, [5]), [50], [], lambda words: None)


def test_a_table_that_names_an_expert_twice():
    trace = Trace(np.array([[[3, 3, 5]]], np.uint16), np.array([1]), 8, 0, 1)
    for cache in (Lru(4), Popular(4, 0, 8), Clairvoyant(4, 0, trace)):
        outcome = replay(trace, cache, 0)
        assert (outcome.wanted, outcome.missing) == (2, 2)


def test_the_made_traces():
    names = dict(default_traces(2))
    assert list(names) == ["skewed", "uniform", "skewed, prompts"]
    assert names["skewed, prompts"].chunks[0] == 512
