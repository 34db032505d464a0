"""What a run would take, said without running it: tokens, memory, and time as far as it is known.

Nothing is read ahead and no prompt is prefilled. Knows nothing of how speeds are estimated.
"""

import json
from typing import TYPE_CHECKING, Any

import localv4
from localv4.cli.output import Output
from localv4.errors import ContextOverflow
from localv4.models import resolve
from localv4.settings import Settings
from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.expected import Expectation
    from localv4.memory import MemoryPlan
    from localv4.session import Session

__all__ = ["about", "measure_machine", "show_dry_run", "speed_words"]

_SHORTEST_S = 0.1  # what is shorter is a matter of other things than the model
_PARTS = "dense", "head", "experts", "kv", "workspace", "process"


def measure_machine(settings: Settings, output: Output) -> None:
    """Measure how fast this machine is, unless that was done, or there is no memory for it.

    To be called before an engine holds its budget.
    """
    # Imported here: they import the compiler.
    from localv4.doctor_rates import ARENA_BYTES, check_rates
    from localv4.kernels.threads import choose_threads
    from localv4.limits import available_bytes
    from localv4.machine_rates import kept_rates

    threads = choose_threads(settings.threads)
    needed = 2 * ARENA_BYTES
    room = available_bytes() if settings.memory is None else settings.memory
    if kept_rates(threads) is None and min(room, available_bytes()) > needed:
        output.progress("measuring this machine, once ...")
        check_rates(threads)
        output.clear_progress()


def show_dry_run(
    output: Output,
    settings: Settings,
    engine: "Engine",
    session: "Session",
    n_prompt_tokens: int,
    max_tokens: int | None,
    output_format: str = "text",
) -> None:
    """Show what an answer would take.

    Parameters
    ----------
    output, settings
        Of the command.
    engine, session
        Open, and the session empty: neither computes anything.
    n_prompt_tokens
        Of the rendered prompt.
    max_tokens
        Most tokens of the answer; None for what the context has left.
    output_format
        "text", or "json" or "jsonl" for one object.

    Raises
    ------
    ContextOverflow
        The prompt alone is longer than the context.
    """
    left = session.context - n_prompt_tokens
    if left < 0:
        raise ContextOverflow(
            f"{n_prompt_tokens:,} tokens do not fit a context of {session.context:,}; give a "
            "shorter prompt, or a larger --context"
        )
    report = _report(settings, engine, session, n_prompt_tokens, left, max_tokens)
    if output_format != "text":
        output.line(json.dumps(report, indent=2 if output_format == "json" else None))
        return
    for name, text in _rows(report, engine.plan).items():
        output.row(name, text)


def _report(
    settings: Settings,
    engine: "Engine",
    session: "Session",
    n_prompt: int,
    left: int,
    max_tokens: int | None,
) -> dict[str, Any]:
    # Imported here, as NumPy is not for --help.
    from localv4.expected import expected
    from localv4.kernels.threads import choose_threads
    from localv4.kv_sizes import kv_bytes

    folder, plan = resolve(settings.model), engine.plan
    found = expected(engine.config, plan, choose_threads(settings.threads), folder)
    n_answer = left if max_tokens is None else min(left, max_tokens)
    n_held = n_prompt + (0 if max_tokens is None else n_answer)
    return {
        "model": settings.model or "built-in",
        "path": str(folder),
        "prompt_tokens": n_prompt,
        "answer_tokens": n_answer,
        "max_tokens": max_tokens,
        "context": session.context,
        "memory": {name: getattr(plan, name) for name in (*_PARTS, "total", "budget")},
        "streams": plan.streams,
        "kv_state_bytes": kv_bytes(engine.config, n_held, settings.numerics == "trained"),
        "kv_most_bytes": plan.kv_most,
        "expected": None if found is None else _times(found, n_prompt, n_answer, max_tokens),
        "speed": speed_words(found, settings.model),
        "version": localv4.__version__,
    }


def _times(
    found: "Expectation", n_prompt: int, n_answer: int, max_tokens: int | None
) -> dict[str, float | None]:
    """Return what is expected; None for what was never measured, or has no end."""
    first_s = found.prefill_s(n_prompt)
    answer_s = None if max_tokens is None else found.decode_s(n_answer)
    return {
        "first_token_s": first_s,
        "tokens_s": None if found.likely is None else found.likely.tokens_s,
        "tokens_s_floor": None if found.floor is None else found.floor.tokens_s,
        "tokens_s_warm": found.warm.tokens_s,
        "total_s": None if first_s is None or answer_s is None else first_s + answer_s,
    }


def _rows(report: dict[str, Any], plan: "MemoryPlan") -> dict[str, str]:
    n_answer = report["answer_tokens"]
    rest = "" if n_answer == report["max_tokens"] else ", all that the context has left"
    of_what = "the prompt" if report["max_tokens"] is None else "prompt and answer"
    rows = {
        "model": ", ".join(dict.fromkeys((report["model"], report["path"]))),
        "prompt": f"{report['prompt_tokens']:,} tokens",
        "answer": f"at most {n_answer:,} tokens{rest}",
        "context": f"{report['context']:,} tokens",
        "memory": _memory(plan),
        "KV state": f"{format_bytes(report['kv_state_bytes'])} for {of_what}, of at most "
        f"{format_bytes(plan.kv_most)}",
        "speed": report["speed"],
    }
    if report["kv_state_bytes"] > plan.kv_most:
        rows["KV state"] += ": too much; give more memory, or fewer tokens"
    times = report["expected"] or {}
    if times.get("first_token_s") is not None:
        rows["first token"] = f"after about {about(max(_SHORTEST_S, times['first_token_s']))}"
    if times.get("total_s") is not None:
        rows["in all"] = f"about {about(times['total_s'])} for {n_answer:,} tokens"
    return rows


def _memory(plan: "MemoryPlan") -> str:
    """Return what memory is for."""
    listed = ", ".join(
        f"{'KV' if name == 'kv' else name} {format_bytes(getattr(plan, name))}" for name in _PARTS
    )
    how = f"{plan.n_slots:,} experts at a time" if plan.streams else "all weights in memory"
    return f"{format_bytes(plan.total)} of {format_bytes(plan.budget)}: {listed}; {how}"


def speed_words(found: "Expectation | None", model: str | None) -> str:
    """Return how fast answers come, or which command finds that out."""
    doctor = f"localv4 doctor{'' if model is None else f' -m {model}'}"
    if found is None:
        return f"not measured yet: {doctor}"
    warm = f"{found.warm.tokens_s:.3g} tok/s with all experts in memory"
    if found.likely is None:
        return f"the disk is not measured yet: {doctor}; {warm}"
    if found.floor is None or found.likely == found.warm:
        return f"about {found.likely.tokens_s:.3g} tok/s"
    floor = f"{found.floor.tokens_s:.3g} at the start"
    return f"about {found.likely.tokens_s:.3g} tok/s; {floor}, {warm}"


def about(seconds: float) -> str:
    """Return a time as it may be said of an estimate."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    if minutes < 100:
        return f"{minutes:.1f} minutes" if minutes < 10 else f"{minutes:.0f} minutes"
    return f"{minutes / 60:.1f} hours"
