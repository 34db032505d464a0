"""The bar while a prompt is read: when it is there, what it says, and that it goes away."""

import io
import itertools
import os
import re
from types import SimpleNamespace

import pytest

from localv4.cli import prefill_bar
from localv4.cli.output import Output
from localv4.cli.prefill_bar import PrefillBar

CLEAR = "\r\x1b[K"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def fileno(self) -> int:
        return 2

    def lines(self) -> list[str]:
        """Return what stood on the screen's last line, one after the other."""
        shown = re.sub(r"\x1b\[[0-9;]*m", "", self.getvalue())
        return [line for line in shown.split(CLEAR) if line]

    def is_clear(self) -> bool:
        """Return whether nothing stands on that line now."""
        return self.getvalue().endswith(CLEAR)


@pytest.fixture
def clock(monkeypatch) -> SimpleNamespace:
    """A time that tests set."""
    made = SimpleNamespace(now=100.0)
    made.monotonic = lambda: made.now
    monkeypatch.setattr(prefill_bar, "time", made)
    return made


@pytest.fixture
def terminal(monkeypatch) -> Terminal:
    screen = Terminal()
    # not sys.stderr itself, which pytest sets again before a test
    monkeypatch.setattr("localv4.cli.output.sys", SimpleNamespace(stderr=screen, stdout=None))
    resize(monkeypatch, 80)
    return screen


def resize(monkeypatch, columns: int) -> None:
    monkeypatch.setattr(os, "get_terminal_size", lambda _: os.terminal_size((columns, 24)))


class Reading:
    """Stands in for a generation: tokens read at times, then events."""

    def __init__(self, clock, total=10_240, steps=(), error=None) -> None:
        self.pending_ids = range(total)
        self.bar: PrefillBar
        self._clock, self._steps, self._error = clock, steps, error

    def __iter__(self):
        for after_s, done in self._steps:
            self._clock.now += after_s
            self.bar.advance(done, len(self.pending_ids))
        if self._error is not None:
            raise self._error
        yield "prefill"
        yield "text"


def read(output: Output, reading: Reading) -> list[str]:
    reading.bar = PrefillBar(output)
    return list(reading.bar.events(reading))  # type: ignore[arg-type]


STEPS = ((0.4, 100), (0.6, 1024), (5.0, 1536), (5.0, 2048), (0.05, 2050))


def test_a_bar_with_speed_and_time_left(clock, terminal):
    assert read(Output(), Reading(clock, steps=STEPS)) == ["prefill", "text"]
    start, first, second, third = terminal.lines()
    assert start == "reading the prompt: 10,240 tokens ..."
    assert re.fullmatch(r"reading the prompt  ━+╸?  +1,024 of 10,240 tokens", first)
    assert second.split("  ")[-2:] == ["102 tok/s", "1:25 left"]
    assert "━" in third
    # the last is too soon behind it; and nothing of it is left
    assert " 2,048 of 10,240 tokens  102 tok/s  1:20 left" in third
    assert terminal.is_clear()
    assert {len(line) for line in (second, third)} == {77}


@pytest.mark.parametrize("columns", [20, 24, 36, 40, 56, 70, 79, 100, 200])
def test_it_never_fills_a_line(clock, terminal, monkeypatch, columns):
    resize(monkeypatch, columns)
    read(Output(), Reading(clock, 900_000, [(1.0, n * 8999) for n in range(1, 101)]))
    lines = terminal.lines()[1:]
    assert max(map(len, lines)) <= columns - 3  # a Ctrl-C shows as ^C
    assert all("tokens" in line for line in lines) == (columns > 28)
    assert ("left" in lines[-1]) == (columns >= 40)
    assert ("━" in lines[-1]) == (columns >= 70)


def test_a_short_prompt_has_no_bar(clock, terminal):
    read(Output(), Reading(clock, steps=((0.1, 2048), (0.3, 10_240))))
    assert terminal.lines() == ["reading the prompt: 10,240 tokens ..."]
    assert terminal.is_clear()


def test_a_failure_leaves_nothing_on_the_line(clock, terminal):
    with pytest.raises(ZeroDivisionError):
        read(Output(), Reading(clock, steps=STEPS, error=ZeroDivisionError()))
    assert terminal.is_clear()


def test_what_is_said_meanwhile_has_a_line_of_its_own(clock, terminal):
    output = Output()
    reading = Reading(clock, steps=STEPS)
    reading.bar = PrefillBar(output)
    events = reading.bar.events(reading)  # type: ignore[arg-type]
    advance = reading.bar.advance

    def and_warn(done: int, total: int) -> None:
        advance(done, total)
        if done == 1024:
            output.warning("mind this")

    reading.bar.advance = and_warn  # type: ignore[method-assign]
    list(events)
    lines = terminal.lines()
    assert any(line.startswith("localv4: mind this\n") for line in lines)
    assert " 2,048 of 10,240" in lines[-1]


@pytest.mark.parametrize("make", [lambda: Output(-1), lambda: Output(color=False)])
def test_none_for_the_quiet_and_for_plain_terminals(clock, terminal, make):
    read(make(), Reading(clock, steps=STEPS))
    assert terminal.getvalue() == ""


def test_plain_lines_with_v_where_there_is_no_terminal(clock, capsys):
    steps = [(10.0, 1000 * step) for step in range(1, 11)]
    read(Output(), Reading(clock, steps=steps))
    assert capsys.readouterr().err == ""
    read(Output(1), Reading(clock, steps=steps))
    start, *lines = capsys.readouterr().err.splitlines()
    assert start == "reading the prompt: 10,240 tokens ..."
    assert lines == [
        "reading the prompt: 3,000 of 10,240 tokens",
        "reading the prompt: 6,000 of 10,240 tokens, 100 tok/s, 0:43 left",
        "reading the prompt: 9,000 of 10,240 tokens, 100 tok/s, 0:13 left",
    ]


def test_long_and_slow_ones(clock, capsys):
    steps = list(itertools.repeat(40.0, 3))
    reading = Reading(clock, 500_000, zip(steps, (20, 60, 100), strict=True))
    read(Output(1), reading)
    assert "60 of 500,000 tokens, 1 tok/s, 138:52:20 left" in capsys.readouterr().err
