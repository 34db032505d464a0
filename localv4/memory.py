"""The memory plan: what an engine maps, what it holds, and whether that fits the budget.

Weights are used where the checkpoint's read-only map has them, so they are page cache: the
operating system drops them when others need memory, and they are counted apart.  What the
process holds is KV state, the workspace of a chunk and itself; that is what the budget
bounds.  Knows nothing of sessions' contents.
"""

from dataclasses import dataclass
from pathlib import Path

import psutil

from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.errors import OutOfBudget
from localv4.inventory import take_inventory
from localv4.kv_cache import entry_bytes, key_bytes
from localv4.sizes import format_bytes

__all__ = ["MemoryPlan", "available_bytes", "kv_bytes", "make_plan"]


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose.

    Attributes
    ----------
    dense, head, experts
        Weights in the map: attention, shared experts and the MTP block in use; embedding and
        head; routed experts.  Page cache, not counted in total.
    kv
        What is left for the KV state of all sessions.
    workspace
        Intermediate results of the largest chunk.
    process
        Python, libraries and compiled kernels, as measured.
    total
        kv, workspace and process: what the process may hold.
    budget
        The limit in force: as given, or what was available when the engine was loaded.
    """

    dense: int
    head: int
    experts: int
    kv: int
    workspace: int
    process: int
    total: int
    budget: int


def available_bytes() -> int:
    """Return the memory this process could take now: free, and within its cgroup's limit."""
    available = int(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = (group / "memory.max").read_text().strip()
        current = (group / "memory.current").read_text().strip()
    except OSError:
        return available
    if limit.isdigit() and current.isdigit():
        available = min(available, max(int(limit) - int(current), 0))
    return available


def kv_bytes(config: ModelConfig, n_tokens: int, trained: bool, mtp: bool = False) -> int:
    """Return the bytes of KV state of a sequence, without room for growth."""
    entry, key = entry_bytes(config, trained), key_bytes(config, trained)
    total = 0
    for ratio in (*config.compress_ratios, 0) if mtp else config.compress_ratios:
        total += config.sliding_window * entry
        if ratio:
            coff = 2 if ratio == 4 else 1
            widths = config.head_dim + (config.index_head_dim if ratio == 4 else 0)
            total += 2 * 4 * coff * ratio * coff * widths
            total += n_tokens // ratio * (entry + (key if ratio == 4 else 0))
    return total


def workspace_bytes(config: ModelConfig, n_tokens: int) -> int:
    """Return the bytes of intermediate results while a chunk passes: its largest moment.

    Inside attention, three hidden states live beside the queries, the heads' results and
    their rearranged copy; inside the experts, the hidden states beside inputs and outputs.
    """
    hidden = 3 * config.hc_mult * config.hidden_size
    heads = 3 * config.num_attention_heads * config.head_dim
    experts = 5 * config.hidden_size + 4 * config.moe_intermediate_size
    return 4 * n_tokens * (hidden + max(heads + 2 * config.head_dim, experts))


def make_plan(
    checkpoint: Checkpoint, budget: int | None, chunk_tokens: int, trained: bool, mtp: bool
) -> MemoryPlan:
    """Divide a budget.

    Parameters
    ----------
    checkpoint
        Says what is mapped.
    budget
        Bytes; None takes what is available now.
    chunk_tokens
        Tokens of the largest chunk.
    trained, mtp
        Numerics of the KV state, and whether the MTP block keeps some as well.

    Raises
    ------
    OutOfBudget
        The budget leaves no room for the KV state of one chunk; names the smallest that does.
    """
    config = checkpoint.config
    memory = psutil.Process().memory_info()
    # mapped pages of files count as shared where the system tells them apart
    process = memory.rss - getattr(memory, "shared", 0)
    limit = available_bytes() + process if budget is None else budget
    workspace = workspace_bytes(config, chunk_tokens)
    room = limit - workspace - process
    needed = kv_bytes(config, chunk_tokens, trained, mtp)
    if room < needed:
        smallest = format_bytes(workspace + process + needed)
        raise OutOfBudget(
            f"a memory budget of {format_bytes(limit)} is too small for this model, which needs "
            f"at least {smallest} beside its mapped weights; give it that much"
        )
    parts = {part.name: part.nbytes for part in take_inventory(checkpoint).parts}
    if not mtp:
        parts.pop("mtp", None)
    experts = parts.pop("routed experts")
    head = parts.pop("embedding") + parts.pop("head")
    dense = sum(parts.values())
    return MemoryPlan(dense, head, experts, room, workspace, process, limit, limit)
