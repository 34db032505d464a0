"""What a chat says of itself at the start: the model, where it is, and what memory is for."""

from pathlib import Path
from typing import TYPE_CHECKING

import localv4
from localv4.cli.output import Output, one_line
from localv4.settings import Settings
from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.memory import MemoryPlan
    from localv4.session import Session

__all__ = ["show_card"]

_WIDTH = 8


def show_card(
    output: Output, settings: Settings, folder: Path, engine: "Engine", session: "Session"
) -> None:
    """Show the card, unless the user wants quiet."""
    config = engine.config
    experts = f"{config.n_routed_experts} experts, {config.num_experts_per_tok} a token"
    rows = {
        "model": f"{settings.model or 'built-in, random weights'}: "
        f"{config.num_hidden_layers} layers, {experts}",
        "files": _home(folder),
        "memory": _memory(engine.plan),
        "context": f"{session.context:,} tokens",
    }
    lines = [f"localv4 {localv4.__version__}, /help lists the commands"]
    lines += [f"{name:<{_WIDTH}} {one_line(text)}" for name, text in rows.items()]
    output.note("\n".join(lines))


def _memory(plan: "MemoryPlan") -> str:
    """Return what memory is for."""
    parts = {"dense": plan.dense + plan.head, "experts": plan.experts, "KV": plan.kv}
    listed = ", ".join(f"{name} {format_bytes(size)}" for name, size in parts.items())
    how = f", {plan.n_slots:,} experts at a time" if plan.streams else ", all weights in memory"
    return f"{format_bytes(plan.total)} of {format_bytes(plan.budget)}: {listed}{how}"


def _home(folder: Path) -> str:
    """Return a path with ~ for the home folder."""
    home = str(Path.home())
    text = str(folder)
    return f"~{text[len(home) :]}" if text.startswith(f"{home}/") else text
