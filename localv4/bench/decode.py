"""Decode, token by token: its speed, its share of the roof, and where the time goes.

The roof of a token is the time in which memory gives the weights that it needs: dense weights,
chosen experts and head.  Three kinds of steps take turns with reading and with the products alone:
plain ones, which give the speed, ones that time every part of the model, and ones that go block by
block and time each.
"""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from localv4.bench.alone import Alone
from localv4.bench.arena import Arena
from localv4.bench.footprint import Footprint, block_footprint, head_footprint
from localv4.bench.opened import Opened, open_model
from localv4.bench.released import released_kinds
from localv4.bench.roof import best_reader
from localv4.bench.timing import fast, in_turns, median_ratio
from localv4.block import hidden_buffer
from localv4.config import LayerKind
from localv4.kernels import tiers
from localv4.kernels.launch import Program
from localv4.kv_cache import KVCache

__all__ = ["measure_decode"]

_READ_BYTES = 2**29
_SLICES = 8
_WARM_UP = 3  # tokens
_Say = Callable[[str], None]


def measure_decode(
    folder: Path, contexts: Sequence[int], n_tokens: int, threads: int | None, say: _Say
) -> dict[str, Any]:
    """Measure decode at some contexts.

    Parameters
    ----------
    folder
        The checkpoint.
    contexts
        Tokens before the first measured one; see `Opened.cache_at`.
    n_tokens
        Tokens to measure at each.
    threads
        Compute threads, or None for all.
    say
        Told what is done.

    Returns
    -------
    For JSON; see `_at_context` for the entries of "contexts".

    Raises
    ------
    LocalV4Error
        The checkpoint cannot be run, or takes no such context.
    """
    with open_model(folder, threads, say) as opened:
        arena = Arena(_READ_BYTES)
        arena.fill("fp4")
        parts = [*arena.memory.reshape(_SLICES, -1)]
        reader = best_reader(parts, opened.threads)
        reads = [reader.program(part) for part in parts]
        token, alone = _token_footprint(opened), Alone(opened, [1])
        alone.run()
        measured = []
        for context in contexts:
            say(f"measuring at {context:,} tokens ...")
            measured.append(_at_context(opened, context, n_tokens, token.n_bytes, reads, alone))
        return {
            "tier": tiers.active(),
            "threads": opened.threads,
            "layers": len(opened.model.blocks),
            "weights_bytes": opened.n_bytes,
            "in_memory": opened.in_memory,
            "map_gb_s": opened.map_gb_s,
            "token_bytes": token.n_bytes,
            "token_products": token.n_products,
            "tokens": n_tokens,
            "contexts": measured,
        }


def _token_footprint(opened: Opened) -> Footprint:
    blocks = map(block_footprint, opened.model.blocks)
    return sum(blocks, head_footprint(opened.model))


@dataclass
class _Walk:
    """A sequence that goes on by a random token at each call of a step.

    Attributes
    ----------
    parts_s, whole_s
        Of every timed step: seconds by part, and in all.
    blocks_s, heads_s
        Of every step block by block: seconds of each block, and of the head.
    """

    opened: Opened
    cache: KVCache
    position: int

    def __post_init__(self) -> None:
        self.parts_s: list[dict[str, float]] = []
        self.blocks_s: list[list[float]] = []
        self.heads_s: list[float] = []
        self.whole_s: list[float] = []
        self._logits = np.empty((1, self.opened.model.config.vocab_size), np.float32)

    def plain(self, _turn: int = 0) -> None:
        """Decode a token as a session does."""
        model = self.opened.model
        hidden = model.forward(self.cache, self.opened.step(1, self.position))
        model.logits(hidden, True, self._logits)
        self.position += 1

    def timed(self, _turn: int = 0) -> None:
        """Decode a token and time its parts."""
        workspaces, seconds = self.opened.model.workspaces, dict[str, float]()
        workspaces.seconds = seconds
        began_s = time.perf_counter()
        self.plain()
        self.whole_s.append(time.perf_counter() - began_s)
        workspaces.seconds = None
        self.parts_s.append(seconds)

    def by_blocks(self, _turn: int = 0) -> None:
        """Decode a token block by block and time each."""
        model, step = self.opened.model, self.opened.step(1, self.position)
        workspace = model.workspaces.get(1, True)
        hidden = hidden_buffer(model.config, workspace)
        hidden.reshape(1, model.config.hc_mult, -1)[:] = model.embed(step.ids)[:, None]
        times = [time.perf_counter()]
        for block in model.blocks:
            block.forward(self.cache.layers[block.layer], step, workspace)
            times.append(time.perf_counter())
        model.logits(hidden, True, self._logits)
        self.heads_s.append(time.perf_counter() - times[-1])
        self.position += 1
        self.blocks_s.append([b - a for a, b in pairwise(times)])


def _at_context(
    opened: Opened,
    context: int,
    n_tokens: int,
    token_bytes: int,
    reads: list[Program],
    alone: Alone,
) -> dict[str, Any]:
    """Measure at one context.

    Returns
    -------
    For JSON, medians: context, fed (tokens that were really fed), token_ms, tokens_s, read_gb_s,
    roof_ms, share (of the roof, turn by turn), fast_share (of the fastest seventh of the turns),
    kernels_ms, kernels_share (of the products with weights alone, turn by turn), head_ms,
    kinds_ms (a layer of each kind; what blocks take by themselves, made to add up to a token
    with the head), all_layers (see `_all_layers`); and means over the faster half
    of the timed steps, which add up: timed_ms, parts_ms and overhead_ms, the rest.
    """
    cache, begun = opened.cache_at(context)
    walk = _Walk(opened, cache, begun)
    for _ in range(_WARM_UP):
        walk.plain()
    walk.timed()
    walk.by_blocks()
    first = len(walk.whole_s)
    read_s, plain_s, _, _, alone_s = in_turns(
        [
            lambda turn: reads[turn % len(reads)].run(opened.threads),
            walk.plain,
            walk.timed,
            walk.by_blocks,
            alone.run,
        ],
        n_tokens,
    )
    slice_bytes = _READ_BYTES / len(reads)
    roofs_s = [token_bytes / slice_bytes * s for s in read_s]
    timed_s, parts_s = _parts(walk.whole_s[first:], walk.parts_s[first:])
    token_s, head_s = statistics.median(plain_s), statistics.median(walk.heads_s[first:])
    kinds_s = _by_kind(opened, walk.blocks_s[first:], token_s - head_s)
    return {
        "context": begun,
        "fed": min(begun, context, 128),
        "token_ms": 1e3 * token_s,
        "tokens_s": 1 / token_s,
        "read_gb_s": slice_bytes / statistics.median(read_s) / 1e9,
        "roof_ms": 1e3 * statistics.median(roofs_s),
        "share": statistics.median(a / b for a, b in zip(roofs_s, plain_s, strict=True)),
        "fast_share": fast(roofs_s) / fast(plain_s),
        "kernels_ms": 1e3 * statistics.median(alone_s),
        "kernels_share": median_ratio(alone_s, plain_s),
        "timed_ms": 1e3 * timed_s,
        "parts_ms": {name: 1e3 * s for name, s in parts_s.items()},
        "overhead_ms": 1e3 * (timed_s - sum(parts_s.values())),
        "head_ms": 1e3 * head_s,
        "kinds_ms": {kind: 1e3 * s for kind, s in kinds_s.items()},
        "all_layers": _all_layers(opened, kinds_s, head_s),
    }


def _parts(whole_s: list[float], parts_s: list[dict[str, float]]) -> tuple[float, dict[str, float]]:
    """Return means over the faster half of the steps: in all, and by part."""
    fastest = sorted(range(len(whole_s)), key=whole_s.__getitem__)[: (len(whole_s) + 1) // 2]
    names = sorted({name for index in fastest for name in parts_s[index]})
    means = {
        name: statistics.mean(parts_s[index].get(name, 0.0) for index in fastest) for name in names
    }
    return statistics.mean(whole_s[index] for index in fastest), means


def _by_kind(opened: Opened, blocks_s: list[list[float]], all_s: float) -> dict[LayerKind, float]:
    """Return the mean over a kind's layers of their medians, made to add up to all blocks' time."""
    alone = [statistics.median(times) for times in zip(*blocks_s, strict=True)]
    medians = [all_s / sum(alone) * seconds for seconds in alone]
    found: dict[LayerKind, list[float]] = {}
    for layer, seconds in enumerate(medians):
        found.setdefault(opened.model.config.layer_kind(layer), []).append(seconds)
    return {kind: statistics.mean(times) for kind, times in found.items()}


def _all_layers(
    opened: Opened, kinds_s: dict[LayerKind, float], head_s: float
) -> dict[str, Any] | None:
    """Return what the released model would take: its layers by kind, and the head.

    Returns
    -------
    release, layers, token_ms, tokens_s; None if no release has these widths or a kind is missing.
    """
    release, kinds = released_kinds(opened.model.config)
    if release is None or not set(kinds) <= set(kinds_s):
        return None
    seconds = head_s + sum(kinds_s[kind] for kind in kinds)
    return {
        "release": release,
        "layers": len(kinds),
        "token_ms": 1e3 * seconds,
        "tokens_s": 1 / seconds,
    }
