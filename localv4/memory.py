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
from localv4.moe import GROUP_ROWS, packing_room
from localv4.sizes import format_bytes

__all__ = ["MemoryPlan", "available_bytes", "kv_bytes", "make_plan", "workspace_bytes"]


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
        Buffers of the largest chunk and of a single token.
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


def workspace_bytes(config: ModelConfig, n_tokens: int, threads: int, mtp: bool = False) -> int:
    """Return the most bytes of the buffers that a chunk passes through (`Workspace`).

    Arranged activations count as what they take in the kernels that want most; logits for all
    tokens are apart, as the caller gets them.
    """
    size, inner = config.hidden_size, config.moe_intermediate_size
    hidden = (3 if mtp else 2) * config.hc_mult * size
    sublayers = 4 * size + 5 * size  # inputs and outputs; arranged in every format
    heads = 2 * config.num_attention_heads * config.head_dim + 2 * config.q_lora_rank
    heads += 2 * config.o_groups * config.o_lora_rank + 4 * config.qk_rope_head_dim
    entries = 10 * config.head_dim
    index = config.index_n_heads * (config.index_head_dim + 1) + 2 * config.index_topk
    index += 5 * config.index_head_dim
    routing = config.n_routed_experts + 4 * config.num_experts_per_tok
    shared = 4 * inner + size
    drafted = (config.hc_mult + 2) * size if mtp else 0
    token = hidden + sublayers + heads + entries + index + routing + shared + drafted
    rows = min(n_tokens * config.num_experts_per_tok, max(GROUP_ROWS, n_tokens))
    routed = rows * (4 * inner + 2 * size)
    packed = packing_room(config, "fp4" if config.expert_dtype == "fp4" else "fp8", n_tokens)
    attention = (2 * config.num_attention_heads + 80) * (config.head_dim + 128)
    scoring = 2 * (config.index_n_heads + 64) * (config.index_head_dim + 64)
    return packed + 4 * (n_tokens * token + routed + threads * (attention + scoring))


def make_plan(
    checkpoint: Checkpoint,
    budget: int | None,
    chunk_tokens: int,
    threads: int,
    trained: bool,
    mtp: bool,
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
    threads
        Compute threads, each with scratch of its own.
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
    # the buffers of one token stay beside those of a chunk
    workspace = sum(workspace_bytes(config, n, threads, mtp) for n in (1, chunk_tokens))
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
