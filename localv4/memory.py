"""The memory plan: what an engine maps or holds, and whether that fits the budget.

Everything counts.  Where all weights fit beside the rest, they are used where the checkpoint's
map has them: page cache, which the system drops when others need memory.  Where they don't, the
process holds what every token needs and streams routed experts through the slots that are left.
KV state may outgrow what is set aside for it; it takes the room from experts then.  Knows nothing
of sessions' contents.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.errors import OutOfBudget
from localv4.expert_programs import GROUP_ROWS, packing_room
from localv4.expert_records import slot_bytes
from localv4.inventory import Inventory, take_inventory
from localv4.kernels._jit import kernels_are_cached
from localv4.kv_cache import entry_bytes, key_bytes
from localv4.limits import available_bytes, resident
from localv4.sizes import format_bytes
from localv4.streaming import fewest_slots
from localv4.tensors import expert_tensors

__all__ = ["MemoryPlan", "kv_bytes", "make_plan", "process_bytes", "workspace_bytes"]

_LATER_BYTES = 160 * 2**20  # recorded programs, compiled code, memory freed and not given back
_COMPILER_BYTES = 192 * 2**20  # in this process, where nobody compiled ahead (`warm_up`)
_SPARED = 0.03  # of what is available, for the system; at most:
_MOST_SPARED_BYTES = 2**30
_KV_TOKENS = 65_536  # whose KV state is set aside from the start


@dataclass(frozen=True)
class MemoryPlan:
    """Bytes by purpose.

    Attributes
    ----------
    dense, head
        Attention, shared experts and the MTP block in use; output matrix, and embedding where
        weights are mapped.
    experts
        Routed experts: all of them if they are mapped, else the slots at first.
    kv
        Set aside for the KV state of all sessions.
    workspace
        Buffers of the largest chunk and of a single token.
    process
        Python, libraries and compiled kernels: what was measured, and what is still to come.
    total
        The sum of these.
    budget
        The limit in force: as given, or what was available when the engine was loaded.
    streams
        Routed experts are read into slots when they are needed; else weights are mapped.
    n_slots, slot_bytes
        Experts that may be resident, and the room of each; 0 if weights are mapped.
    kv_most
        What KV state may grow to at the cost of experts.
    notes
        Sentences that whoever chose the budget should read.
    """

    dense: int
    head: int
    experts: int
    kv: int
    workspace: int
    process: int
    total: int
    budget: int
    streams: bool = False
    n_slots: int = 0
    slot_bytes: int = 0
    kv_most: int = 0
    notes: tuple[str, ...] = ()


def process_bytes() -> int:
    """Return what this process holds, and will hold when its kernels and programs are made."""
    held = resident()
    return held.anonymous + held.shared + _later_bytes()


def _later_bytes() -> int:
    return _LATER_BYTES + (0 if kernels_are_cached() else _COMPILER_BYTES)


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


@dataclass(frozen=True)
class _Needs:
    """Bytes of weights: every token's, embedding, output matrix, experts; and a slot's."""

    dense: int
    embedding: int
    head: int
    experts: int
    n_experts: int
    slot: int

    @property
    def mapped(self) -> int:
        return self.dense + self.embedding + self.head + self.experts


def _needs(inventory: Inventory, mtp: bool) -> _Needs:
    config = inventory.config
    sizes = {part.name: part.nbytes for part in inventory.parts}
    of_layer = config.n_routed_experts * inventory.expert_bytes
    experts, dense = sizes["routed experts"], sizes["attention"] + sizes["ffn"]
    if mtp:
        experts, dense = experts + of_layer, dense + sizes["mtp"] - of_layer
    specs = expert_tensors(config, 0, 0, inventory.expert_format, inventory.scale_dtype)
    return _Needs(
        dense,
        sizes["embedding"],
        sizes["head"],
        experts,
        experts // inventory.expert_bytes,
        slot_bytes(spec.nbytes for spec in specs),
    )


def make_plan(
    source: Checkpoint | ModelConfig,
    budget: int | None,
    chunk_tokens: int,
    threads: int,
    trained: bool,
    mtp: bool,
) -> MemoryPlan:
    """Divide a budget.

    Parameters
    ----------
    source
        Says what there is: a checkpoint, or the config of one that is to come.
    budget
        Bytes; None takes what is available now but for a little.
    chunk_tokens
        Tokens of the largest chunk.
    threads
        Compute threads, each with scratch of its own.
    trained, mtp
        Numerics of the KV state, and whether the MTP block is in use.

    Raises
    ------
    OutOfBudget
        The budget leaves no room for one chunk; names the smallest that does.
    """
    inventory = take_inventory(source)
    config, needs = inventory.config, _needs(inventory, mtp)
    process, available = process_bytes(), available_bytes()
    within = available + process - _later_bytes()
    spared = min(round(_SPARED * within), _MOST_SPARED_BYTES)
    limit = within - spared if budget is None else budget
    # the buffers of one token stay beside those of a chunk
    workspace = sum(workspace_bytes(config, n, threads, mtp) for n in (1, chunk_tokens))
    chunk_kv = kv_bytes(config, chunk_tokens, trained, mtp)
    room = limit - process - workspace
    if min(limit, within) - process - workspace - needs.mapped >= chunk_kv:
        kv = room - needs.mapped
        head = needs.embedding + needs.head
        return MemoryPlan(
            needs.dense, head, needs.experts, kv, workspace, process, limit, limit, kv_most=kv
        )
    room -= needs.dense + needs.head
    fewest = min(fewest_slots(config.num_experts_per_tok), needs.n_experts)
    kv_most = room - fewest * needs.slot
    if kv_most < chunk_kv:
        smallest = min(process + workspace + needs.mapped, limit - kv_most) + chunk_kv
        raise OutOfBudget(
            f"a memory budget of {format_bytes(limit)} is too small for this model, which needs "
            f"at least {format_bytes(smallest)}; give it that much"
        )
    kv = max(min(kv_bytes(config, _KV_TOKENS, trained, mtp), kv_most), chunk_kv)
    n_slots = min((room - kv) // needs.slot, needs.n_experts)
    n_layers = config.num_hidden_layers + mtp
    total = needs.dense + needs.head + n_slots * needs.slot + kv + workspace + process
    return MemoryPlan(
        needs.dense,
        needs.head,
        n_slots * needs.slot,
        kv,
        workspace,
        process,
        total,
        limit,
        True,
        n_slots,
        needs.slot,
        kv_most,
        tuple(_notes(n_slots, needs, n_layers * config.num_experts_per_tok, limit, within)),
    )


def _notes(n_slots: int, needs: _Needs, wanted: int, limit: int, within: int) -> Iterator[str]:
    """Yield what to say of a plan that streams; `wanted` experts are what a token takes."""
    yield f"streaming: {n_slots:,} of {needs.n_experts:,} experts fit into memory at a time"
    if n_slots < wanted:
        yield (
            f"one token needs {wanted} experts and {n_slots} fit, so most are read anew for every "
            f"token; {format_bytes((wanted - n_slots) * needs.slot)} more memory would change that"
        )
    if limit > within:
        yield (
            f"the budget of {format_bytes(limit)} is more than the {format_bytes(within)} that "
            "this process could take now; the system may run short of memory"
        )
