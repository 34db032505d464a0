"""What a longer context costs one layer of each kind in decode: index scores, choice, attention.

State is random and as large as a context makes it; widths are those of Flash.
"""

from collections.abc import Callable, Sequence
from typing import Any

from localv4.bench.attention_rates import measure_attention
from localv4.bench.index_scores import measure_index
from localv4.bench.roof import measure_peaks
from localv4.kernels import tiers
from localv4.kernels.threads import choose_threads, computing

__all__ = ["measure_context"]

_CHOSEN = 512
_RATIOS = {"csa": 4, "hca": 128}
_LAYERS = {"csa": 21, "hca": 20}
_Say = Callable[[str], None]


def measure_context(
    contexts: Sequence[int], threads: int | None, seconds: float, say: _Say
) -> dict[str, Any]:
    """Measure one token's scores, choice and attention at some contexts.

    Parameters
    ----------
    contexts
        Tokens, multiples of 128.
    threads
        Compute threads, or None for all.
    seconds
        Of each measurement, about.
    say
        Told what is done.

    Returns
    -------
    For JSON: tier, threads, and "contexts" with, for each, "index" (keys, score_s, choose_s,
    g_products_s, gb_s of packed keys, share of byte products in registers), "csa" and "hca"
    (entries, seconds, g_products_s, gb_s of packed entries, share of BF16 pairs in registers,
    None where the tier has no such products), and "layers_s": all layers of Flash.
    """
    n_threads = choose_threads(threads)
    rows = []
    with computing():
        roof = measure_peaks(n_threads).get("bytes")
        for context in contexts:
            say(f"measuring at {context:,} tokens ...")
            keys = context // _RATIOS["csa"]
            index = measure_index(keys, 1, n_threads, seconds, roof)
            row: dict[str, Any] = {
                "context": context,
                "index": {
                    "keys": keys,
                    "score_s": index.score_s,
                    "choose_s": index.choose_s,
                    "g_products_s": index.products_s / 1e9,
                    "gb_s": index.gb_s,
                    "share": index.share,
                },
            }
            for kind, ratio in _RATIOS.items():
                entries = context // ratio
                chosen = min(_CHOSEN, entries) if kind == "csa" else 0
                found = measure_attention(entries, n_threads, seconds, chosen)
                row[kind] = {
                    "entries": chosen or entries,
                    "seconds": found["seconds"],
                    "g_products_s": found["g_products"],
                    "gb_s": found["gb_s"],
                    "share": found.get("share of bf16"),
                }
            layers_s = sum(_LAYERS[kind] * row[kind]["seconds"] for kind in _LAYERS)
            index_s = index.score_s + index.choose_s
            rows.append(row | {"layers_s": layers_s + _LAYERS["csa"] * index_s})
    return {"tier": tiers.active(), "threads": n_threads, "contexts": rows}
