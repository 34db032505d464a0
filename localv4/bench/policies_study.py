"""Which policy and which look-ahead suit a trace: hit rates and times by size of the cache.

Runs the replays and simulations of its neighbours and puts them into rows.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from localv4.bench.lookahead import LookAhead, Machine, simulate
from localv4.bench.policies import Cache, replay
from localv4.bench.policies_ordered import Lru, Pinned, S3Fifo, TwoQueues
from localv4.bench.policies_scored import Clairvoyant, Popular
from localv4.bench.traces import Trace
from localv4.bench.traces_made import FLASH, SKEWED, UNIFORM, add_predictions, make
from localv4.errors import InvalidInput
from localv4.residency import HALF_LIFE

__all__ = ["default_traces", "study"]

_HALF_LIVES = (HALF_LIFE / 2, HALF_LIFE, 4 * HALF_LIFE)
_RING = 64  # slots
_PROMPT = 512
_ANSWER = 64
_RECALLS = (0.46, 0.70)  # published for other engines and models
_LATE = "experts"  # predictions that come after a layer's experts
_Say = Callable[[str], None]
_NewCache = Callable[[int], Cache]


def default_traces(n_tokens: int) -> Iterator[tuple[str, Trace]]:
    """Yield traces of Flash's shape: skewed, uniform, and skewed with prompts in between."""
    decoded = [1] * n_tokens
    yield "skewed", add_predictions(make(FLASH, SKEWED, decoded), _RECALLS)
    yield "uniform", add_predictions(make(FLASH, UNIFORM, decoded), _RECALLS)
    turns = max(2, n_tokens // (2 * _ANSWER))
    yield "skewed, prompts", make(FLASH, SKEWED, ([_PROMPT] + [1] * _ANSWER) * turns)


def study(
    name: str, trace: Trace, shares: Sequence[int], machines: Sequence[Machine], say: _Say
) -> dict[str, Any]:
    """Replay one trace; its first half warms the caches and is not counted.

    Parameters
    ----------
    name
        For the report.
    trace
        The choices.
    shares
        Sizes of the cache, in percent of all experts.
    machines
        For the simulations in time.
    say
        Told what is done.

    Returns
    -------
    For JSON: sizes of the trace; policies, rows with hit_rates by share and, if the trace has
    chunks, reads_a_sweep; if it has predictions, look_ahead: rows by machine with token_ms,
    recall and waste by share.

    Raises
    ------
    InvalidInput
        A cache is smaller than one layer needs, or nothing would be counted.
    """
    slots = [trace.n_keys * share // 100 for share in shares]
    warm_tokens = trace.n_tokens // 2
    if int(trace.chunks[-1]) != 1:
        raise InvalidInput(f"{name} does not end with decoded tokens; record some: --tokens 500")
    has_chunks = bool((trace.chunks > 1).any())
    policies = []
    for label, ring, new in _caches(trace, has_chunks, warm_tokens):
        say(f"{name}: {label}")
        outcomes = [replay(trace, new(n_slots), warm_tokens, ring) for n_slots in slots]
        row: dict[str, Any] = {"policy": label, "hit_rates": [each.hit_rate for each in outcomes]}
        if all(each.n_sweeps for each in outcomes):
            row["reads_a_sweep"] = [each.swept / each.n_sweeps for each in outcomes]
        policies.append(row)
    return {
        "trace": name,
        "tokens": trace.n_tokens,
        "decoded": int((trace.chunks == 1).sum()),
        "layers": trace.n_layers,
        "experts": trace.n_experts,
        "hash_layers": trace.n_hash_layers,
        "bytes": trace.n_keys * trace.expert_bytes,
        "shares": list(shares),
        "policies": policies,
        "look_ahead": list(
            _look_ahead(name, trace, slots, machines if trace.predicted else (), say)
        ),
    }


def _caches(
    trace: Trace, has_chunks: bool, warm_tokens: int
) -> Iterator[tuple[str, bool, _NewCache]]:
    """Yield every policy's name, whether chunks pass through a ring, and how it is made."""

    def ring_of(n_slots: int) -> int:
        return min(_RING, n_slots // 8) if has_chunks else 0

    if has_chunks:
        yield "LRU, chunks through it", False, Lru
        yield "frequency, chunks through it", False, lambda n: Popular(n, 0, trace.n_keys)
        new = partial(_popular, trace.n_keys, ring_of, HALF_LIFE, True)
        yield "frequency, sparing layers to come", True, new
    yield "LRU", True, lambda n: Lru(n, ring_of(n))
    yield "2Q", True, lambda n: TwoQueues(n, ring_of(n))
    yield "S3-FIFO", True, lambda n: S3Fifo(n, ring_of(n))
    yield "pinned by the first half", True, lambda n: Pinned(n, ring_of(n), trace, warm_tokens)
    for half_life in _HALF_LIVES:
        new = partial(_popular, trace.n_keys, ring_of, half_life, False)
        yield f"frequency, half-life {half_life:g}", True, new
    yield "clairvoyant", True, lambda n: Clairvoyant(n, ring_of(n), trace)


def _popular(
    n_keys: int,
    ring_of: Callable[[int], int],
    half_life: float,
    spares: bool,
    n_slots: int,
) -> Popular:
    return Popular(n_slots, ring_of(n_slots), n_keys, half_life, spares)


def _ways(trace: Trace) -> list[LookAhead]:
    """Return what may be known or expected, from nothing to everything."""
    k = trace.chosen.shape[2]
    widths = sorted({max(1, 2 * k // 3), k})
    asked = [
        LookAhead(f"{name}, first {width}", "hash", name, width, name == _LATE)
        for name in trace.predicted
        for width in widths
    ]
    return [
        LookAhead("nothing", "nothing"),
        LookAhead("hash layers"),
        *asked,
        LookAhead("next layer known", "next"),
        LookAhead("token known", "token"),
    ]


def _look_ahead(
    name: str, trace: Trace, slots: list[int], machines: Sequence[Machine], say: _Say
) -> Iterator[dict[str, Any]]:
    for machine in machines:
        for ahead in _ways(trace):
            say(f"{name}: {machine.name}, {ahead.name}")
            timings = [simulate(trace, n, machine, ahead, trace.n_tokens // 2) for n in slots]
            yield {
                "machine": machine.name,
                "ahead": ahead.name,
                "token_ms": [each.token_ms for each in timings],
                "recall": [each.recall for each in timings],
                "waste": [each.waste for each in timings],
            }
