"""Counters of an engine, for statistics lines and scripts."""

from dataclasses import dataclass, replace

__all__ = ["Stats"]


@dataclass
class Stats:
    """What an engine has done so far.

    Attributes
    ----------
    expert_hits, expert_misses
        Experts of a layer's chunk that were in memory when they were asked for, or were not.
    bytes_read, read_s
        Bytes of experts read, and seconds in which at least one read was outstanding.
    wait_s
        Seconds in which the computation waited for the disk.  All five stay 0 while weights are
        mapped: what the operating system reads for a map is not known to the process.
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

    def since(self, before: "Stats") -> "Stats":
        """Return what was done after `before`, with what is held now."""
        return replace(
            self,
            expert_hits=self.expert_hits - before.expert_hits,
            expert_misses=self.expert_misses - before.expert_misses,
            bytes_read=self.bytes_read - before.bytes_read,
            read_s=self.read_s - before.read_s,
            wait_s=self.wait_s - before.wait_s,
            prefill_tokens=self.prefill_tokens - before.prefill_tokens,
            prefill_s=self.prefill_s - before.prefill_s,
            decode_tokens=self.decode_tokens - before.decode_tokens,
            decode_s=self.decode_s - before.decode_s,
        )
