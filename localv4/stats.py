"""Counters of an engine, for statistics lines and scripts."""

from dataclasses import dataclass

__all__ = ["Stats"]


@dataclass
class Stats:
    """What an engine has done so far.

    Attributes
    ----------
    expert_hits, expert_misses, bytes_read, read_s, wait_s
        Counters of expert reads.  They stay 0 while experts are used where the map has them:
        what the operating system reads for a map is not known to the process.
    resident_bytes
        Memory of the process, mapped pages in use included, when it was last asked for.
    kv_bytes
        KV state of all open sessions.
    prefill_tokens, prefill_s, decode_tokens, decode_s
        Tokens fed and seconds spent.
    """

    expert_hits: int = 0
    expert_misses: int = 0
    bytes_read: int = 0
    read_s: float = 0.0
    wait_s: float = 0.0
    resident_bytes: int = 0
    kv_bytes: int = 0
    prefill_tokens: int = 0
    prefill_s: float = 0.0
    decode_tokens: int = 0
    decode_s: float = 0.0
