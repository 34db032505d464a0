"""The doctor's look at a memory budget: what a model takes of it, and how many experts fit."""

from dataclasses import dataclass

from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.errors import OutOfBudget
from localv4.findings import Finding, note, ok, problem
from localv4.memory import MemoryPlan, make_plan
from localv4.sizes import format_bytes
from localv4.speed import Work

__all__ = ["Fit", "check_plan"]

_STREAMING = "streaming:"  # begins a note of the plan that says what the finding says


@dataclass(frozen=True)
class Fit:
    """How a model fits a budget: the engine's plan, and how many experts are in memory."""

    plan: MemoryPlan
    slots: int


def check_plan(
    source: Checkpoint | ModelConfig, work: Work, budget: int | None, n_threads: int
) -> tuple[list[Finding], Fit | None]:
    """Divide a budget; None if it is too small.

    Parameters
    ----------
    source
        The checkpoint, or the config of one that is not here.
    work
        What a token makes of it.
    budget
        Bytes; None for what is available now.
    n_threads
        Compute threads.
    """
    try:
        plan = make_plan(source, budget, n_threads, trained=True, mtp=False)
    except OutOfBudget as error:
        return [problem("budget", str(error))], None
    fit = Fit(plan, plan.n_slots if plan.streams else work.all_experts)
    found = [ok("budget", _words(fit, work), **_figures(fit, work))]
    found += [note("budget", text) for text in plan.notes if not text.startswith(_STREAMING)]
    return found, fit


def _words(fit: Fit, work: Work) -> str:
    parts = {
        "dense": fit.plan.dense,
        "head": fit.plan.head,
        "KV": fit.plan.kv,
        "workspace": fit.plan.workspace,
        "process": fit.plan.process,
    }
    listed = ", ".join(f"{name} {format_bytes(n_bytes)}" for name, n_bytes in parts.items())
    if not fit.plan.streams:
        return f"{format_bytes(fit.plan.budget)}: everything fits; {listed}"
    share = fit.slots / work.all_experts
    return (
        f"{format_bytes(fit.plan.budget)}: {fit.slots:,} of {work.all_experts:,} experts fit "
        f"({share:.0%}), the others are streamed (reads do not wear an SSD); {listed}"
    )


def _figures(fit: Fit, work: Work) -> dict[str, int | bool]:
    return {
        "budget_bytes": fit.plan.budget,
        "dense_bytes": fit.plan.dense,
        "head_bytes": fit.plan.head,
        "kv_bytes": fit.plan.kv,
        "workspace_bytes": fit.plan.workspace,
        "process_bytes": fit.plan.process,
        "streams": fit.plan.streams,
        "slots": fit.slots,
        "experts": work.all_experts,
        "expert_bytes": work.expert_bytes,
    }
