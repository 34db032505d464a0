"""The engine, opened on the settings' model, with a word first on what takes long."""

import contextlib
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import localv4
from localv4.cli.output import Output
from localv4.errors import DamagedCheckpoint, InvalidInput, ModelNotFound, OutOfBudget
from localv4.models import locate, resolve
from localv4.settings import Settings
from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.memory import MemoryPlan
    from localv4.session import Session

__all__ = ["no_tokenizer", "open_engine", "refuse_base", "warn_of_short_context"]

_MAX_THINKING_CONTEXT = 384 * 1024
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@contextlib.contextmanager
def open_engine(
    settings: Settings, output: Output, waited: Callable[[], None] = lambda: None
) -> "Iterator[Engine]":
    """Open the engine on the settings' model and close it at the end.

    Parameters
    ----------
    settings, output
        Of the command.
    waited
        Called now and then while kernels are compiled; what it raises ends that.

    Raises
    ------
    LocalV4Error
        If there is no such model, or it cannot be run.
    """
    folder = resolve(settings.model, say=output.warning)
    # Imported first: it warns where compiled kernels can't be kept.
    from localv4.kernels import tiers
    from localv4.kernels._jit import cache_dir

    compiled = localv4.kernels_are_cached()
    try:
        with localv4.load(
            folder,
            memory=settings.memory,
            threads=settings.threads,
            numerics=settings.numerics,
            profile=settings.profile,
        ) as engine:
            if engine.tokenizer is None:
                raise no_tokenizer(folder)
            output.note(
                f"model {folder}, {engine.profile} profile\n{_plan_words(engine.plan)}\n"
                f"tier {tiers.active()}, threads {engine.threads}",
                level=1,
                log=True,
            )
            for note in engine.plan.notes:
                output.warning(note)
            if not compiled:
                _compile(output, waited, kept=cache_dir is not None)
            yield engine
    except DamagedCheckpoint as error:
        raise DamagedCheckpoint(_with_remedy(str(error), settings.model)) from error
    except OSError as error:
        # The compiler's cache names no file when it finds no room.
        if error.errno not in _NO_SPACE or error.filename:
            raise
        raise OutOfBudget(
            f"there is no room for compiled kernels in {settings.cache_dir}; free some space, or "
            "let LOCALV4_CACHE_DIR name another folder"
        ) from None


def _with_remedy(sentence: str, name: str | None) -> str:
    """Say of a damaged model of the hub's how to get only what is damaged."""
    located = locate(name)
    if located.repo_id is None:
        return sentence
    what = sentence.rpartition("; ")[0] or sentence
    return (
        f"{what}; {located.next_step} fetches what is missing or cut short, and "
        f"localv4 verify {located.name} finds other damage"
    )


def _plan_words(plan: "MemoryPlan") -> str:
    """Return what memory is for, in a line."""
    parts = "dense", "head", "experts", "kv", "workspace", "process", "total", "budget"
    sizes = ", ".join(f"{name} {format_bytes(getattr(plan, name))}" for name in parts)
    how = f"experts streamed through {plan.n_slots:,} slots" if plan.streams else "weights mapped"
    return f"plan: {sizes}; {how}"


def _compile(output: Output, waited: Callable[[], None], kept: bool) -> None:
    """Compile the kernels before they are needed, with a line that shows how far it is."""
    if not kept:
        output.warning("compiling for this CPU; it takes about a minute")
        return
    output.warning("compiling for this CPU, once; it takes about a minute")

    def progress(begun: int, count: int) -> None:
        waited()
        output.progress(f"compiling: {begun} of {count}")

    localv4.warm_up(progress)
    output.clear_progress()


def no_tokenizer(folder: Path | str) -> ModelNotFound:
    """Return the error of a checkpoint that cannot read or write text."""
    return ModelNotFound(f"{folder} has no tokenizer.json; put the release's file there")


def warn_of_short_context(level: str, session: "Session", engine: "Engine", output: Output) -> None:
    """Warn where thinking max has less context than it was trained to fill."""
    if level != "max" or session.context >= _MAX_THINKING_CONTEXT:
        return
    most = engine.config.max_position_embeddings
    advice = "raise --context, or use --think high"
    if most < _MAX_THINKING_CONTEXT:
        advice = f"the model has at most {most:,}, so use --think high"
    output.warning(
        f"thinking max wants a context of {_MAX_THINKING_CONTEXT:,} tokens or more, and this one "
        f"has {session.context:,}; {advice}"
    )


def refuse_base(engine: "Engine") -> None:
    """Refuse a chat with a Base checkpoint.

    Raises
    ------
    InvalidInput
        If the checkpoint only continues text.
    """
    if engine.is_base:
        raise InvalidInput(
            "this is a Base checkpoint, which has no chat format; let it continue a text: "
            'localv4 run --raw "Once upon a time"'
        )
