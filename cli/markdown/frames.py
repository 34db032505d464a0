"""What open quotes and list items put in front of lines.

Knows nothing of how they were found.
"""

from localv4.cli.markdown.looks import DIM, Glyphs, painted
from localv4.cli.markdown.structure import Container, Quote

__all__ = ["Frames"]


class _Frame:
    """One container: what its next line begins with, and the others."""

    def __init__(self, container: Container, depth: int, glyphs: Glyphs) -> None:
        self.container = container
        self.is_new = True
        if isinstance(container, Quote):
            self.width = 2
            self.first = self.other = f"{painted(glyphs.bar, DIM)} "
            return
        marker = container.marker
        is_task = container.ticked is not None
        if not marker[0].isdigit():
            marker = "" if is_task else glyphs.bullets[depth % len(glyphs.bullets)]
        if is_task:
            box = glyphs.ticked if container.ticked else glyphs.unticked
            marker = f"{marker} {box}".lstrip()
        self.width = len(marker) + 1
        self.first, self.other = f"{marker} ", " " * self.width


class Frames:
    """The open containers, outermost first."""

    def __init__(self, glyphs: Glyphs) -> None:
        self._glyphs = glyphs
        self._frames: list[_Frame] = []

    @property
    def containers(self) -> list[Container]:
        """What is open."""
        return [frame.container for frame in self._frames]

    def has_unshown(self, n_open: int) -> bool:
        """Return whether behind so many there is a list item of which nothing is shown yet."""
        return any(frame.is_new and frame.first != frame.other for frame in self._frames[n_open:])

    def cut(self, n_open: int) -> None:
        """Leave only so many open."""
        del self._frames[n_open:]

    def open(self, container: Container) -> None:
        """Begin a quote or an item."""
        bullets = sum(1 for frame in self._frames if _is_bulleted(frame.container))
        self._frames.append(_Frame(container, bullets, self._glyphs))

    def prefix(self, columns: int) -> tuple[str, int]:
        """Return what the next line begins with, and its width."""
        shown, width = self._shown(columns), self.width(columns)
        prefix = "".join(frame.first if frame.is_new else frame.other for frame in shown)
        for frame in self._frames:
            frame.is_new = False
        return prefix, width

    def width(self, columns: int) -> int:
        """Return the width of what lines begin with."""
        return sum(frame.width for frame in self._shown(columns))

    def _shown(self, columns: int) -> list[_Frame]:
        """Leave out outer containers where half of the terminal is not enough for all."""
        shown: list[_Frame] = []
        width = 0
        for frame in reversed(self._frames):
            width += frame.width
            if not shown or width <= columns // 2 or frame.is_new:  # markers are never lost
                shown.append(frame)
        return shown[::-1]

    def bars(self) -> str:
        """Return what an empty line begins with."""
        quotes = [n for n, frame in enumerate(self._frames) if isinstance(frame.container, Quote)]
        if not quotes:
            return ""
        frames = self._frames[: quotes[-1] + 1]
        return "".join(frame.other for frame in frames).rstrip(" ")


def _is_bulleted(container: Container) -> bool:
    return not isinstance(container, Quote) and not container.marker[0].isdigit()
