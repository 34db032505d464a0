"""A chat with somebody at a terminal, whose lines are known in advance."""

from collections.abc import Callable
from typing import Any

import pytest

from localv4.cli.chat import command as chat_command


class TypedLines:
    """Gives some lines and then the end; an exception is raised, a function is called."""

    def __init__(self, steps: tuple[Any, ...]) -> None:
        self._steps = iter(steps)
        self.meters: list[str] = []
        self.defaults: list[str] = []

    def read(self, meter: Callable[[], str], default: str = "") -> str | None:
        self.meters.append(meter())
        self.defaults.append(default)
        step = next(self._steps, None)
        if isinstance(step, BaseException):
            raise step
        if callable(step):
            step = step()
        return step

    def stop(self, error: BaseException) -> None:
        raise error

    def refresh(self) -> None:
        pass


@pytest.fixture
def type_lines(monkeypatch, command):
    """Return a function that runs a chat at a terminal, and gives its result and the lines."""

    def run(*steps: Any, arguments: tuple[str, ...] = ()):
        lines = TypedLines(steps)
        monkeypatch.setattr(chat_command, "_is_terminal", lambda stream: True)
        monkeypatch.setattr(chat_command, "terminal_is_dumb", lambda: False)
        monkeypatch.setattr(chat_command, "_edited", lambda *_: lines)
        # the played-back engine has no model to estimate
        monkeypatch.setattr("localv4.expected.expected", lambda *_: None)
        return command("chat", *arguments, terminal=True), lines

    return run
