"""Engines that stream through a chosen number of slots, whatever memory there is."""

import dataclasses
from typing import Any

import pytest

import localv4.bench.streaming
import localv4.engine
from localv4.checkpoint import Checkpoint
from localv4.expert_records import ExpertRecords
from localv4.memory import MemoryPlan, make_plan
from localv4.streaming import StreamedExperts, fewest_slots

__all__ = ["force_streaming", "n_experts", "store_of"]


def n_experts(checkpoint: Checkpoint, mtp: bool = True) -> int:
    """Return how many routed experts there are."""
    config = checkpoint.config
    return (config.num_hidden_layers + mtp) * config.n_routed_experts


def force_streaming(
    monkeypatch: pytest.MonkeyPatch, n_slots: int | None = None, **changes: Any
) -> None:
    """Let engines loaded from now on, and the benchmark, stream; None for the fewest slots."""

    def plan(checkpoint: Checkpoint, *rest: Any) -> MemoryPlan:
        made = make_plan(checkpoint, *rest)
        slots = fewest_slots(checkpoint.config.num_experts_per_tok) if n_slots is None else n_slots
        slot_bytes = ExpertRecords(checkpoint).slot_bytes
        changed: dict[str, Any] = {
            "streams": True,
            "n_slots": slots,
            "slot_bytes": slot_bytes,
            "experts": slots * slot_bytes,
            "kv_most": made.kv,
        }
        return dataclasses.replace(made, **(changed | changes))

    for module in (localv4.engine, localv4.bench.streaming):
        monkeypatch.setattr(module, "make_plan", plan)


def store_of(engine: localv4.Engine) -> StreamedExperts:
    """Return where a streaming engine keeps experts."""
    assert engine._streams is not None
    return engine._streams.store
