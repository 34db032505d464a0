"""The memory plan: what an engine maps or holds, and whether that fits the budget.

Everything counts.  Where all weights fit beside the rest, they are used where the checkpoint's
map has them: page cache, which the system drops when others need memory.  Where they don't, the
process holds what every token needs and streams routed experts through the slots that are left.
KV state may outgrow what is set aside for it; it takes the room from experts then.  Knows nothing
of sessions' contents.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.errors import OutOfBudget
from localv4.expert_programs import GROUP_ROWS, packing_room
from localv4.expert_records import slot_bytes
from localv4.indexer import scoring_bytes
from localv4.inventory import Inventory, take_inventory
from localv4.kernels._jit import kernels_are_cached
from localv4.kernels.attention import attend_scratch_shapes
from localv4.kv_sizes import kv_bytes
from localv4.limits import available_bytes, resident
from localv4.sizes import format_bytes
from localv4.streaming import fewest_slots
from localv4.tensors import expert_tensors

__all__ = ["MAPPED_CHUNK", "MemoryPlan", "make_plan", "process_bytes", "workspace_bytes"]

MAPPED_CHUNK = 1024
"""Tokens of a chunk where weights are in memory: they are decoded seldom enough then."""

_LATER_BYTES = 160 * 2**20  # recorded programs, compiled code, memory freed and not given back
_COMPILER_BYTES = 192 * 2**20  # in this process, where nobody compiled ahead (`warm_up`)
_SPARED = 0.03  # of what is available, for the system; at most:
_MOST_SPARED_BYTES = 2**30
_KV_TOKENS = 65_536  # whose KV state is set aside from the start
_CHUNKS = (8192, 4096, 2048, 1024, 512, 256, 128)
_CHUNK_SHARE = 0.1  # of the budget, for buffers of a chunk where experts are streamed


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
    chunk_tokens
        Most tokens that pass through the model together.
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
    chunk_tokens: int
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
    heads_of = n_tokens, threads, config.num_attention_heads, config.head_dim
    attention = max(
        sum(map(math.prod, attend_scratch_shapes(*heads_of, trained))) for trained in (False, True)
    )
    scoring = scoring_bytes(config, n_tokens, threads)
    return packed + scoring + 4 * (n_tokens * token + routed + attention)


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
    source: Checkpoint | ModelConfig, budget: int | None, threads: int, trained: bool, mtp: bool
) -> MemoryPlan:
    """Divide a budget.

    Parameters
    ----------
    source
        Says what there is: a checkpoint, or the config of one that is to come.
    budget
        Bytes; None takes what is available now but for a little.
    threads
        Compute threads, each with scratch of its own.
    trained, mtp
        Numerics of the KV state, and whether the MTP block is in use.

    Raises
    ------
    OutOfBudget
        The budget leaves no room for the smallest chunk; names the smallest that does.
    """
    inventory = take_inventory(source)
    config, needs = inventory.config, _needs(inventory, mtp)
    process, available = process_bytes(), available_bytes()
    within = available + process - _later_bytes()
    spared = min(round(_SPARED * within), _MOST_SPARED_BYTES)
    limit = within - spared if budget is None else budget
    chunks = [_chunk(config, n, threads, trained, mtp) for n in _CHUNKS]

    for chunk in chunks:
        if chunk.n_tokens > MAPPED_CHUNK:
            continue
        room = min(limit, within) - process - chunk.workspace - needs.mapped
        if room >= chunk.kv:
            kv = limit - process - chunk.workspace - needs.mapped
            return MemoryPlan(
                needs.dense,
                needs.embedding + needs.head,
                needs.experts,
                kv,
                chunk.workspace,
                process,
                limit,
                limit,
                chunk.n_tokens,
                kv_most=kv,
            )
    return _streaming_plan(config, needs, chunks, limit, within, process, trained, mtp)


@dataclass(frozen=True)
class _Chunk:
    """What passing so many tokens through the model takes: buffers, and KV state for them."""

    n_tokens: int
    workspace: int
    kv: int


def _chunk(config: ModelConfig, n_tokens: int, threads: int, trained: bool, mtp: bool) -> _Chunk:
    n_tokens = min(n_tokens, config.max_position_embeddings)
    # the buffers of one token stay beside those of a chunk
    workspace = sum(workspace_bytes(config, n, threads, mtp) for n in (1, n_tokens))
    return _Chunk(n_tokens, workspace, kv_bytes(config, n_tokens, trained, mtp))


def _streaming_plan(
    config: ModelConfig,
    needs: _Needs,
    chunks: Sequence[_Chunk],
    limit: int,
    within: int,
    process: int,
    trained: bool,
    mtp: bool,
) -> MemoryPlan:
    """Divide a budget that does not hold all weights.

    A long prompt reads nearly all experts once a chunk, so chunks are as large as the budget can
    spare.
    """
    room = limit - process - needs.dense - needs.head
    fewest = min(fewest_slots(config.num_experts_per_tok), needs.n_experts)
    least = chunks[-1]
    chunk = next((c for c in chunks if c.workspace <= _CHUNK_SHARE * limit), least)
    room -= chunk.workspace
    kv_most = room - fewest * needs.slot
    if kv_most < chunk.kv:
        chunk, room = least, room + chunk.workspace - least.workspace
        kv_most = room - fewest * needs.slot
    if kv_most < chunk.kv:
        mapped = process + least.workspace + needs.mapped
        smallest = min(mapped, limit - kv_most) + chunk.kv
        raise OutOfBudget(
            f"a memory budget of {format_bytes(limit)} is too small for this model, which needs "
            f"at least {format_bytes(smallest)}; give it that much"
        )
    kv = max(min(kv_bytes(config, _KV_TOKENS, trained, mtp), kv_most), chunk.kv)
    n_slots = min((room - kv) // needs.slot, needs.n_experts)
    n_layers = config.num_hidden_layers + mtp
    total = needs.dense + needs.head + n_slots * needs.slot + kv + chunk.workspace + process
    return MemoryPlan(
        needs.dense,
        needs.head,
        n_slots * needs.slot,
        kv,
        chunk.workspace,
        process,
        total,
        limit,
        chunk.n_tokens,
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
