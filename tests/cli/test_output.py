import io
import sys
from pathlib import Path

import pytest

from localv4.cli.output import Output, OutputClosed, flush, one_line, silence


def test_a_sentence_is_one_line():
    assert (
        one_line("no folder a\nb\x1b[2J\udcff\u2028é") == "no folder a\\nb\\x1b[2J\\udcff\\u2028é"
    )
    flood = one_line("x" * 10_000 + "; the end")
    assert len(flood) < 1100
    assert flood.endswith("; the end")


def test_failures_and_warnings_are_one_line(capsys):
    Output().failure("a\nb")
    Output().warning("c\rd")
    assert capsys.readouterr().err == "localv4: a\\nb\nlocalv4: c\\rd\n"


@pytest.mark.parametrize(
    ("columns", "lines"),
    [
        (None, ["name  some words /and/a/long/path"]),
        (20, ["name  some words", "      /and/a/long/path"]),
        (3, ["name  some", "      words", "      /and/a/long/path"]),
    ],
)
def test_a_row_goes_on_below_itself_where_the_terminal_is_narrow(
    monkeypatch, capsys, columns, lines
):
    monkeypatch.setattr(Output, "answer_columns", columns)
    Output().row("name", "some words /and/a/long/path", 5)
    assert capsys.readouterr().out.splitlines() == lines


def test_progress_is_a_note_with_v_where_there_is_no_terminal(capsys):
    Output().progress("reading")
    Output(1).progress("reading on")
    assert capsys.readouterr().err == "reading on\n"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_behind_stderr_is_ignored_and_behind_stdout_named(monkeypatch):
    with Path("/dev/full").open("w") as errors, Path("/dev/full").open("w") as answers:
        monkeypatch.setattr(sys, "stderr", errors)
        Output().failure("lost")
        errors.write("what the interpreter would flush at exit")
        flush()
        monkeypatch.setattr(sys, "stdout", answers)
        with pytest.raises(OSError, match="standard output"):
            Output().line("lost")
        silence(answers)  # else closing the file would fail


def test_a_pipe_without_a_reader(monkeypatch):
    class Broken(io.StringIO):
        def flush(self) -> None:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Broken())
    with pytest.raises(OutputClosed):
        Output().line("lost")
    with pytest.raises(OutputClosed):
        flush()
