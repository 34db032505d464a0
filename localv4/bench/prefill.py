"""Prefill of one prompt: its speed, beside the CPU's peak and the kernels alone at its shapes.

Operations are counted twice a product of a weight with a token; those of attention and of the
small arithmetic are not counted.
"""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from localv4.bench.alone import Alone
from localv4.bench.batches import EXACT
from localv4.bench.opened import Opened, open_model
from localv4.bench.roof import measure_peaks
from localv4.bench.timing import in_turns, median_ratio
from localv4.errors import ContextOverflow
from localv4.kernels import tiers
from localv4.kv_cache import KVCache, KVMark
from localv4.memory import MAPPED_CHUNK

__all__ = ["measure_prefill"]

_TURNS = 3
_Say = Callable[[str], None]


def measure_prefill(
    folder: Path, n_tokens: int, context: int, threads: int | None, say: _Say
) -> dict[str, Any]:
    """Measure the prefill of random tokens.

    Parameters
    ----------
    folder
        The checkpoint.
    n_tokens
        Tokens of the prompt.
    context
        Tokens before it; see `Opened.cache_at`.
    threads
        Compute threads, or None for all.
    say
        Told what is done.

    Returns
    -------
    For JSON, medians: prefill_s, tokens_s, gflops; peaks (GFLOP/s by kind) and peak_share (of the
    time that the products would take at the fastest exact kind of each format); kernels_s,
    kernels_gflops and kernels_share (of the kernels alone on the same matrices, every expert with
    the average number of tokens); parts_s and overhead_s of the fastest prefill, which add up.

    Raises
    ------
    LocalV4Error
        The checkpoint cannot be run, or takes no such prompt.
    """
    with open_model(folder, threads, say) as opened:
        most = opened.model.config.max_position_embeddings
        if n_tokens + context > most:
            raise ContextOverflow(
                f"--tokens is {n_tokens} behind {context} and the model ends at {most}; give less"
            )
        return _measure(opened, n_tokens, context, say)


def _chunks(n_tokens: int) -> list[int]:
    """Return the sizes of the chunks that a session makes of a prompt."""
    whole, rest = divmod(n_tokens, MAPPED_CHUNK)
    return [MAPPED_CHUNK] * whole + [rest] * bool(rest)


@dataclass
class _Prefill:
    """Prefills of the same size from the same state; `whole_s` and `parts_s` of each."""

    opened: Opened
    n_tokens: int
    cache: KVCache
    begun: int
    mark: KVMark
    whole_s: list[float] = field(default_factory=list)
    parts_s: list[dict[str, float]] = field(default_factory=list)

    def run(self, _turn: int = 0) -> None:
        """Prefill as a session does."""
        model = self.opened.model
        logits = np.empty((1, model.config.vocab_size), np.float32)
        self.cache.go_to(self.mark)
        seconds: dict[str, float] = {}
        model.workspaces.seconds = seconds
        began_s = time.perf_counter()
        position = self.begun
        for count in _chunks(self.n_tokens):
            hidden = model.forward(self.cache, self.opened.step(count, position))
            position += count
        model.logits(hidden[-1:], True, logits)
        self.whole_s.append(time.perf_counter() - began_s)
        model.workspaces.seconds = None
        self.parts_s.append(seconds)


def _measure(opened: Opened, n_tokens: int, context: int, say: _Say) -> dict[str, Any]:
    say("compiling ...")
    peaks = measure_peaks(opened.threads)
    cache, begun = opened.cache_at(context, n_tokens)
    prefill = _Prefill(opened, n_tokens, cache, begun, cache.mark())
    alone = Alone(opened, _chunks(n_tokens))
    prefill.run()
    alone.run()
    say(f"measuring {n_tokens:,} tokens ...")
    prefill_s, alone_s = in_turns([prefill.run, alone.run], _TURNS)
    n_flop = 2 * sum(alone.products.values())
    ideal_s = 0.0
    for weight_format, products in alone.products.items():
        fastest = max(peaks[kind].gflops for kind in EXACT[weight_format] if kind in peaks)
        ideal_s += 2 * products / fastest / 1e9
    whole_s, kernels_s = statistics.median(prefill_s), statistics.median(alone_s)
    best = min(range(1, len(prefill.whole_s)), key=prefill.whole_s.__getitem__)
    parts_s = prefill.parts_s[best]
    return {
        "tier": tiers.active(),
        "threads": opened.threads,
        "layers": len(opened.model.blocks),
        "weights_bytes": opened.n_bytes,
        "in_memory": opened.in_memory,
        "map_gb_s": opened.map_gb_s,
        "tokens": n_tokens,
        "context": begun,
        "prefill_s": whole_s,
        "tokens_s": n_tokens / whole_s,
        "gflops": n_flop / whole_s / 1e9,
        "peaks": {kind: peak.gflops for kind, peak in peaks.items()},
        "peak_share": ideal_s / whole_s,
        "kernels_s": kernels_s,
        "kernels_gflops": n_flop / kernels_s / 1e9,
        "kernels_share": median_ratio(alone_s, prefill_s),
        "parts_s": parts_s,
        "overhead_s": prefill.whole_s[best] - sum(parts_s.values()),
    }
