"""How far a download or a check is, with its rate and the time left.

On a terminal one line that is redrawn, else a plain line now and then. `Output` shows it, and takes
it away before anything else is written.
"""

import time
from collections import deque

from localv4.cli.bar import bar_text, left_text
from localv4.cli.output import Output
from localv4.files_state import FilesState
from localv4.sizes import format_bytes

__all__ = ["FileBar"]

_REDRAW_S = 0.2
_PLAIN_S = 30.0
_WINDOW_S = 10.0  # what the rate is taken from
_LEAST_BAR, _MOST_BAR = 8, 30
_BETWEEN = "  "


class FileBar:
    """Shows one of them.

    Parameters
    ----------
    output
        Where to.

    Attributes
    ----------
    here_bytes
        Bytes that are done.
    """

    def __init__(self, output: Output) -> None:
        self._output = output
        self._every_s = _REDRAW_S if output.redraws else _PLAIN_S
        self._next_s = time.monotonic() + self._every_s
        self._received: deque[tuple[float, int]] = deque()
        self._told_of_others = False
        self.here_bytes = 0

    def advance(self, state: FilesState) -> None:
        """Take how far it is."""
        self.here_bytes = state.here_bytes
        if state.n_elsewhere and not self._told_of_others:
            self._told_of_others = True
            self._output.note(
                f"waiting: another process fetches {state.n_elsewhere} of the files; "
                "if it ends, this one goes on"
            )
        now = time.monotonic()
        rate = self._rate(now, state.received_bytes)
        if now < self._next_s:
            return
        self._next_s = now + self._every_s
        parts = _parts(state, rate)
        if self._output.redraws:
            self._output.progress(_bar_line(parts, state, self._output.progress_columns))
        else:
            self._output.note(", ".join(part for part in parts.values() if part))

    def _rate(self, now: float, received_bytes: int) -> float:
        """Return bytes a second, over the last while."""
        self._received.append((now, received_bytes))
        while self._received[0][0] < now - _WINDOW_S:
            self._received.popleft()
        began, bytes_then = self._received[0]
        return (received_bytes - bytes_then) / (now - began) if now > began else 0.0


def _parts(state: FilesState, rate: float) -> dict[str, str]:
    """Return what there is to say."""
    parts = {
        "files": f"{state.n_done} of {state.n_files} files",
        "count": f"{format_bytes(state.here_bytes)} of {format_bytes(state.n_bytes)}",
        "rate": f"{format_bytes(int(rate))}/s" if rate >= 1 else "",
        "left": left_text((state.n_bytes - state.here_bytes) / rate) if rate >= 1 else "",
    }
    if state.n_checking and state.here_bytes == state.n_bytes:
        parts |= {"rate": f"checking {state.n_checking}", "left": ""}
    return parts


def _bar_line(parts: dict[str, str], state: FilesState, columns: int) -> str:
    """Return the line; where it is too long, what tells least is left out first."""
    # padded, for a line that stands still
    parts = parts | {"count": parts["count"].rjust(20), "rate": parts["rate"].rjust(12)}
    room = columns - len(_BETWEEN.join(parts.values())) - len(_BETWEEN)
    if room >= _LEAST_BAR:
        parts = {
            "bar": bar_text(state.here_bytes, max(state.n_bytes, 1), min(room, _MOST_BAR)),
            **parts,
        }
    for name in ("files", "rate", "left"):
        if len(_BETWEEN.join(parts.values())) > columns:
            del parts[name]
    return _BETWEEN.join(parts.values()).strip()
