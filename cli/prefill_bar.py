"""How far the reading of a prompt is, with its speed and the time left.

On a terminal a bar on a line that is redrawn, else with -v a plain line now and then. The bar and
the estimates are rich's; the line is shown by `Output`, which takes it away before anything else is
written, so that rich's own display (its thread, its hidden cursor) is not needed.
"""

import io
import math
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from localv4.cli.bar import bar_text, left_text
from localv4.cli.output import Output

if TYPE_CHECKING:
    from rich.progress import Progress, Task

    from localv4.events import Event
    from localv4.generate import Generation

__all__ = ["PrefillBar"]

_PATIENCE_S = 0.5  # what is read sooner needs no bar
_SHORT = 64  # tokens: nearly always read within that
_REDRAW_S = 0.1
_PLAIN_S = 30.0
_WINDOW_S = 60.0  # what the speed is taken from: attention slows down behind a long prompt
_LEAST_BAR, _MOST_BAR = 8, 40
_BETWEEN = "  "
_TITLE = "reading the prompt"


class PrefillBar:
    """Shows the reading of one prompt.

    Parameters
    ----------
    output
        Where to.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._every_s = _REDRAW_S if output.redraws else _PLAIN_S
        self._next_s = math.inf
        self._progress: Progress | None = None

    def advance(self, done: int, total: int) -> None:
        """Take the number of tokens read, of all; `Engine.generate` calls it."""
        now = time.monotonic()
        if now < self._next_s:
            return
        self._next_s = now + self._every_s
        task = self._task(done, total)
        if self._output.redraws:
            self._output.progress(_bar_line(task, self._output.progress_columns))
        else:
            self._output.note(_words(task), level=0 if self._output.on_terminal else 1)

    def events(self, generation: "Generation") -> "Iterator[Event]":
        """Pass on an answer's events; the prompt is read before the first."""
        now = time.monotonic()
        self._next_s = now + (_PATIENCE_S if self._output.redraws else _PLAIN_S)
        # a sign of life: the first part of a prompt may take its time
        if (n_tokens := len(generation.pending_ids)) > _SHORT:
            self._output.progress(f"{_TITLE}: {n_tokens:,} tokens ...")
        try:
            for event in generation:
                self._output.clear_progress()
                yield event
        finally:
            self._output.clear_progress()

    def _task(self, done: int, total: int) -> "Task":
        if self._progress is None:
            # Imported here: most prompts are read before a bar is due.
            from rich.console import Console
            from rich.progress import Progress

            # never started: rich counts and estimates, and writes nothing
            console = Console(file=io.StringIO())
            self._progress = Progress(
                console=console,
                auto_refresh=False,
                speed_estimate_period=_WINDOW_S,
                get_time=time.monotonic,
            )
            self._progress.add_task(_TITLE, total=total)
        (task,) = self._progress.tasks
        self._progress.update(task.id, completed=done)
        return task


def _count(task: "Task") -> str:
    return f"{int(task.completed):,} of {int(task.total or 0):,} tokens"


def _speed(task: "Task") -> str:
    if not task.speed:
        return ""
    return f"{task.speed:,.0f} tok/s" if task.speed >= 100 else f"{task.speed:.3g} tok/s"


def _left(task: "Task") -> str:
    if not task.speed or task.time_remaining is None:
        return ""
    return left_text(task.time_remaining)


def _words(task: "Task") -> str:
    """Return the line where there is no bar."""
    parts = _count(task), _speed(task), _left(task)
    return f"{_TITLE}: {', '.join(part for part in parts if part)}"


def _bar_line(task: "Task", columns: int) -> str:
    """Return the line; where it is too long, what tells least is left out first."""
    # padded to about their final lengths, for a line that stands still
    longest = len(_count(task)) - len(f"{int(task.completed):,}") + len(f"{int(task.total or 0):,}")
    parts = {"title": _TITLE, "bar": " " * _LEAST_BAR, "count": _count(task).rjust(longest)}
    parts |= {"speed": _speed(task).ljust(9), "left": _left(task).ljust(9)}
    for name in ("speed", "bar", "title", "left"):
        if len(_BETWEEN.join(parts.values())) > columns:
            del parts[name]
    if "bar" in parts:
        room = columns - len(_BETWEEN.join(parts.values())) + _LEAST_BAR
        parts["bar"] = bar_text(task.completed, task.total, min(room, _MOST_BAR))
    return _BETWEEN.join(parts.values()).strip()
