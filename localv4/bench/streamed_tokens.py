"""What tokens of a streamed model took, beside what the disk and the CPU could do meanwhile.

Disks change pace within seconds, so tokens come in rounds, and those of a round are compared with
what the disk gave just before it and just after it, when it was asked for experts without end.
Reads and compute threads share the memory's bandwidth, so the same is measured once more while all
of them compute: what a token's reads can reach lies between the two, as they go on both while it
computes and while it waits for them.
"""

import statistics
from dataclasses import dataclass
from typing import Any

__all__ = ["Round", "Token", "summary"]


@dataclass(frozen=True)
class Token:
    """What one token took.

    Attributes
    ----------
    seconds, wait_s, busy_s
        In all, waiting for experts, and with reads outstanding.
    n_bytes
        Read.
    hits, misses
        Experts that were in memory when their layer asked, and that were not.
    asked_bytes
        Of each layer: what the disk was asked for.
    parts
        Seconds of each part of the model, if it was timed part by part.
    """

    seconds: float
    wait_s: float
    busy_s: float
    n_bytes: int
    hits: int
    misses: int
    asked_bytes: list[int]
    parts: dict[str, float] | None

    @property
    def experts_s(self) -> float:
        """Computing with routed experts, and the shared one's end."""
        return (self.parts or {}).get("experts", 0.0)

    @property
    def dense_s(self) -> float:
        """All other computing."""
        return sum((self.parts or {}).values()) - self.experts_s

    def bound_s(self, dense_s: float, experts_s: float, bytes_s: float) -> float:
        """Return the sum over layers of dense and the longer of reads and experts."""
        layer_s = experts_s / len(self.asked_bytes)
        return dense_s + sum(max(n / bytes_s, layer_s) for n in self.asked_bytes)


@dataclass(frozen=True)
class Round:
    """Tokens, the disk's best around them, and beside computing."""

    tokens: list[Token]
    bytes_s: float
    beside_bytes_s: float

    def reachable_bytes(self, token: Token) -> float:
        """Return what the disk could have given while a token's reads were outstanding."""
        waited_s = min(token.wait_s, token.busy_s)
        return waited_s * self.bytes_s + (token.busy_s - waited_s) * self.beside_bytes_s


def summary(rounds: list[Round]) -> dict[str, Any]:
    """Sum rounds up.

    Parameters
    ----------
    rounds
        With at least one token that was timed part by part, and one that was not.

    Returns
    -------
    token_s (median), tokens_s (of all), hit_share, misses and read_bytes (a token), bound_s (mean),
    bound_ratio (all tokens over all their bounds), dense_s and experts_s (computing, median of the
    tokens that were timed), wait_s (a token), disk_gb_s (the best, for what was read when it was),
    beside_gb_s (while all threads compute), read_gb_s (while reads were outstanding), disk_share,
    and reachable_share, of what the times of waiting and of computing allow; the last three None if
    nothing was read.
    """
    timed = [token for part in rounds for token in part.tokens if token.parts is not None]
    counted = [(part, token) for part in rounds for token in part.tokens if token.parts is None]
    tokens = [token for _, token in counted]
    dense_s = statistics.median(token.dense_s for token in timed)
    experts_s = statistics.median(token.experts_s for token in timed)
    bounds = [token.bound_s(dense_s, experts_s, part.bytes_s) for part, token in counted]
    total_s, busy_s = sum(t.seconds for t in tokens), sum(t.busy_s for t in tokens)
    hits, misses = sum(t.hits for t in tokens), sum(t.misses for t in tokens)
    n_bytes = sum(t.n_bytes for t in tokens)
    best_s = sum(token.n_bytes / part.bytes_s for part, token in counted)
    best = n_bytes / best_s if n_bytes else statistics.mean(r.bytes_s for r in rounds)
    reachable = sum(part.reachable_bytes(token) for part, token in counted)
    return {
        "token_s": statistics.median(t.seconds for t in tokens),
        "tokens_s": len(tokens) / total_s,
        "hit_share": hits / (hits + misses),
        "misses": misses / len(tokens),
        "read_bytes": n_bytes / len(tokens),
        "bound_s": statistics.mean(bounds),
        "bound_ratio": total_s / sum(bounds),
        "dense_s": dense_s,
        "experts_s": experts_s,
        "wait_s": sum(t.wait_s for t in tokens) / len(tokens),
        "disk_gb_s": best / 1e9,
        "beside_gb_s": statistics.mean(r.beside_bytes_s for r in rounds) / 1e9,
        "read_gb_s": n_bytes / busy_s / 1e9 if busy_s else None,
        "disk_share": best_s / busy_s if busy_s else None,
        "reachable_share": n_bytes / reachable if reachable else None,
    }
