"""The engine, opened on the settings' model, with a word first on what takes long."""

import contextlib
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING

import localv4
from localv4.cli.output import Output
from localv4.errors import InvalidInput
from localv4.models import resolve
from localv4.settings import Settings
from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.engine import Engine

__all__ = ["open_engine", "refuse_base"]


@contextlib.contextmanager
def open_engine(settings: Settings, output: Output) -> "Iterator[Engine]":
    """Open the engine on the settings' model and close it at the end.

    Raises
    ------
    LocalV4Error
        If there is no such model, or it cannot be run.
    """
    folder = resolve(settings.model, say=output.warning)
    if not localv4.kernels_are_cached():
        output.warning("compiling for this CPU, once; it takes about a minute")
    with localv4.load(
        folder,
        memory=settings.memory,
        threads=settings.threads,
        numerics=settings.numerics,
        profile=settings.profile,
    ) as engine:
        plan = ", ".join(f"{name} {format_bytes(n)}" for name, n in asdict(engine.plan).items())
        output.note(f"model {folder}, {engine.profile} profile\nplan: {plan}", level=1)
        yield engine


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
