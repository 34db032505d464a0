"""The line of statistics after an answer: speeds, and what streaming had to do."""

from typing import TYPE_CHECKING

from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.stats import Stats

__all__ = ["answer_line", "statistics_line", "stream_timings"]


_BETWEEN = ", "


def statistics_line(done: "Stats", total_s: float | None = None) -> str:
    """Say what an answer took.

    Parameters
    ----------
    done
        Since the answer began (`Stats.since`).
    total_s
        Seconds in all, if they are worth saying.
    """
    parts = []
    for tokens, seconds, word in (
        (done.prefill_tokens, done.prefill_s, "prompt"),
        (done.decode_tokens, done.decode_s, "answer"),
    ):
        if tokens and seconds:
            parts.append(f"{word} {tokens:,} tokens at {_rate(tokens, seconds)}")
    experts = done.expert_hits + done.expert_misses
    if experts:
        parts.append(f"{done.expert_hits / experts:.0%} of experts in memory")
    if done.bytes_read and done.read_s:
        parts.append(
            f"{format_bytes(done.bytes_read)} read at {done.bytes_read / done.read_s / 1e9:.2f} "
            f"GB/s, {done.wait_s:.1f} s waited"
        )
    if done.resident_bytes:
        parts.append(
            f"memory {format_bytes(done.resident_bytes)}, KV {format_bytes(done.kv_bytes)}"
        )
    if total_s is not None:
        parts.append(f"{total_s:.1f} s in all")
    return _BETWEEN.join(parts)


def answer_line(done: "Stats", n_tokens: int, total_s: float, columns: int) -> str:
    """Say what an answer took, in a line of so many columns: what tells least is left out.

    Parameters
    ----------
    done
        Since the answer began (`Stats.since`).
    n_tokens
        Of the answer; the first of them took no step of its own.
    total_s
        Seconds in all.
    columns
        Of the terminal.
    """
    parts = []
    if done.decode_tokens and done.decode_s:
        parts.append(f"{n_tokens:,} tokens at {_rate(done.decode_tokens, done.decode_s)}")
    if done.prefill_tokens and done.prefill_s:
        rate = _rate(done.prefill_tokens, done.prefill_s)
        parts.append(f"prompt {done.prefill_tokens:,} at {rate}")
    parts.append(f"{total_s:.1f} s")
    experts = done.expert_hits + done.expert_misses
    if experts:
        parts.append(f"{done.expert_hits / experts:.0%} of experts in memory")
    if done.bytes_read and done.read_s:
        rate = f"{done.bytes_read / done.read_s / 1e9:.2f} GB/s"
        parts.append(f"{format_bytes(done.bytes_read)} read at {rate}")
    while len(parts) > 1 and len(_BETWEEN.join(parts)) > columns:
        parts.pop()
    return _BETWEEN.join(parts)


def stream_timings(done: "Stats") -> dict[str, float]:
    """Return what streaming did, for JSON; nothing where weights are mapped."""
    if not done.expert_hits + done.expert_misses:
        return {}
    return {
        "expert_hits": done.expert_hits,
        "expert_misses": done.expert_misses,
        "bytes_read": done.bytes_read,
        "read_s": round(done.read_s, 6),
        "wait_s": round(done.wait_s, 6),
    }


def _rate(tokens: int, seconds: float) -> str:
    rate = tokens / seconds
    return f"{rate:,.0f} tok/s" if rate >= 100 else f"{rate:.3g} tok/s"
