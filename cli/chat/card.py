"""What a chat says of itself at the start: the model, where it is, and what memory is for."""

import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import localv4
from localv4.cli.dry_run import speed_words
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
    from localv4.expected import expected
    from localv4.kernels.threads import choose_threads

    config, plan = engine.config, engine.plan
    experts = f"{config.n_routed_experts} experts, {config.num_experts_per_tok} a token"
    name = "built-in, random weights"
    if settings.model is not None:
        name = folder.name if folder == Path(settings.model).absolute() else settings.model
    found = expected(config, plan, choose_threads(settings.threads), folder)
    rows = {
        "model": f"{name}; {config.num_hidden_layers} layers, {experts}",
        "files": _at_home(folder.absolute()),
        "memory": _memory(plan),
        "context": f"{session.context:,} tokens",
        "speed": speed_words(found, settings.model),
    }
    lines = [f"localv4 {localv4.__version__}; /help lists the commands"]
    for label, text in rows.items():
        lines += _wrapped(label, one_line(text), output.note_columns - 1)
    output.note("\n".join(lines))
    output.gap()


def _wrapped(label: str, text: str, columns: int) -> list[str]:
    """Return a row as lines; words, and so paths, stay whole."""
    first, next_ = f"{label:<{_WIDTH}} ", " " * (_WIDTH + 1)
    return textwrap.wrap(
        text,
        columns,
        initial_indent=first,
        subsequent_indent=next_,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _memory(plan: "MemoryPlan") -> str:
    """Return what memory is for."""
    dense, kv, budget = map(format_bytes, (plan.dense + plan.head, plan.kv_most, plan.budget))
    if not plan.streams:
        weights = format_bytes(plan.dense + plan.head + plan.experts)
        return f"{weights} of weights, all in memory; limit {budget}, {kv} of it for the context"
    experts = f"{format_bytes(plan.experts)} for {plan.n_slots:,} experts, the others from disk"
    used = f"{dense} for what every token needs, {experts}; up to {kv} for the context"
    return f"limit {budget}: {used}"


def _at_home(folder: Path) -> str:
    """Return a path with ~ for the home folder."""
    try:
        return f"~/{folder.relative_to(Path.home())}"
    except (ValueError, RuntimeError):  # elsewhere, or there is no home folder
        return str(folder)
