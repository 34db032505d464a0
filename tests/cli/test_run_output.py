"""``run --prompts --output``: a file that a later start goes on with, in one process."""

import os
import signal
import stat
from pathlib import Path

import pytest

from localv4.errors import FormatError
from tests.cli.conftest import TOO_LONG, Result, done, event, parsed, wait


@pytest.fixture
def output(tmp_path) -> tuple[Path, tuple[str, str]]:
    """Return a path for results and the arguments that name it."""
    path = tmp_path / "results.jsonl"
    return path, ("--output", str(path))


def test_results_go_to_a_file_that_is_gone_on_with(engine, answers, output):
    path, arguments = output
    result = answers("a", "b", arguments=arguments)
    assert (result.code, result.out, result.err) == (0, "", "")
    first = path.read_bytes()
    assert [line["index"] for line in parsed(path.read_text())] == [0, 1]
    engine.loaded.clear()
    again = answers("a", "b", arguments=(*arguments, "-v"))
    assert (again.code, again.err) == (0, "2 of 2 prompts are done: nothing is left to do\n")
    assert not engine.loaded
    # more prompts at the end are more work
    assert answers("a", "b", "c", arguments=arguments).code == 0
    assert len(engine.asked) == 3
    assert path.read_bytes().startswith(first)
    assert [line["index"] for line in parsed(path.read_text())] == [0, 1, 2]


def test_what_stdout_carried_can_be_gone_on_with(engine, answers, output):
    path, arguments = output
    path.write_text(answers("a", "b").out)
    assert answers("a", "b", "c", arguments=arguments).code == 0
    assert len(engine.asked) == 3


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGINT, 130, "stopped"),
        (signal.SIGTERM, 143, "stopped"),
        (signal.SIGALRM, 124, "stopped after 900 s (--timeout)"),
    ],
)
def test_what_is_complete_stays_when_it_is_stopped(engine, answers, output, number, code, said):
    path, arguments = output
    steps = [event("text", "half"), lambda: os.kill(os.getpid(), number), wait]
    for target in (arguments, ()):
        engine.later = [[event("text", "1"), done()], steps]
        result = answers("a", "b", "c", arguments=(*target, "--timeout", "900"))
        written = path.read_text() if target else result.out
        assert [line["text"] for line in parsed(written)] == ["1"]
        how = "the same command goes on from there" if target else "with --output FILE a later"
        assert result.code == code
        assert result.err.startswith(f"localv4: {said}: 1 of 3 prompts are done; {how}")
        assert result.err.count("\n") == 1
    engine.later = [[event("text", "2"), done()], [event("text", "3"), done()]]
    assert answers("a", "b", "c", arguments=arguments).code == 0
    assert [line["text"] for line in parsed(path.read_text())] == ["1", "2", "3"]


def test_failed_prompts_are_tried_again_in_their_places(engine, answers, output):
    path, arguments = output
    prompts = ("a", TOO_LONG, "b", "c")
    engine.later = [[done()], [FormatError("oops")], [done()]]
    result = answers(*prompts, arguments=(*arguments, "--context", "9"))
    assert result.code == 1
    assert result.err.endswith('as "error"; the same command tries them again\n')
    path.chmod(0o640)
    before = path.read_bytes().splitlines()
    assert answers(*prompts, arguments=(*arguments, "--context", "99")).code == 0
    after = path.read_bytes().splitlines()
    assert [line["index"] for line in parsed(path.read_text())] == [0, 1, 2, 3]
    assert (before[0], before[3]) == (after[0], after[3])
    assert b"error" not in path.read_bytes()
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert [*path.parent.glob(".*")] == []


def test_one_that_fails_again_the_same_way_is_left_alone(engine, answers, output):
    path, arguments = output
    flags = (*arguments, "--context", "9")
    assert answers(TOO_LONG, "b", arguments=flags).code == 1
    before = path.stat().st_ino, path.read_bytes()
    assert answers(TOO_LONG, "b", arguments=flags).code == 1
    assert (path.stat().st_ino, path.read_bytes()) == before


@pytest.mark.parametrize(
    ("flags", "prompts"),
    [
        (("--seed", "2"), ["a", "b"]),
        (("--temperature", "0.5"), ["a", "b"]),
        (("--max-tokens", "3"), ["a", "b"]),
        (("--think", "off"), ["a", "b"]),
        (("--system", "S"), ["a", "b"]),
        (("--numerics", "float32"), ["a", "b"]),
        (("-m", "builtin"), ["a", "b"]),
        (("--logprobs", "1"), ["a", "b"]),
        (("--raw",), ["a", "b"]),
        ((), ["b", "a"]),
        ((), ["a"]),
        ((), [{"prompt": "a", "id": 1}, "b"]),
    ],
)
def test_a_file_of_something_else_is_refused(engine, answers, output, flags, prompts):
    path, arguments = output
    answers("a", "b", arguments=arguments)
    before = path.read_bytes()
    engine.loaded.clear()
    result = answers(*prompts, arguments=(*arguments, *flags))
    assert (result.code, result.out, result.err.count("\n")) == (2, "", 1)
    assert "; name another --output, or remove it to start anew" in result.err
    assert path.read_bytes() == before
    assert not engine.loaded


def test_what_only_costs_more_or_less_is_no_other_question(engine, answers, output):
    _, arguments = output
    answers("a", arguments=arguments)
    flags = ("--memory", "2GiB", "--threads", "1", "--context", "99", "--temperature", "1")
    assert answers("a", arguments=(*arguments, *flags)).code == 0
    assert len(engine.asked) == 1


@pytest.mark.parametrize("content", [b"my diary", b"my diary\n", b"\x00" * 9, b'{"index": 0}\n'])
def test_a_file_of_somebody_elses_is_left_alone(engine, answers, output, content):
    path, arguments = output
    path.write_bytes(content)
    result = answers("a", arguments=arguments)
    assert (result.code, "line 1 of" in result.err) == (2, True)
    assert path.read_bytes() == content


def test_a_line_that_was_damaged_is_refused(engine, answers, output):
    path, arguments = output
    answers("a", "b", arguments=arguments)
    content = path.read_bytes()
    path.write_bytes(content[:60] + b"\x00" + content[61:])
    assert "line 1 of" in answers("a", "b", arguments=arguments).err


def test_the_file_of_prompts_is_not_written_over(engine, command, tmp_path):
    path = tmp_path / "prompts.jsonl"
    for content in (b'"a"\n"b"\n', b'"a"', b'{"prompt": "a"}'):
        path.write_bytes(content)
        assert command("run", "--prompts", str(path), "--output", str(path)).code == 2
        assert path.read_bytes() == content


@pytest.mark.parametrize("name", ["/dev/null", "no/such/folder", "."])
def test_only_regular_files_are_gone_on_with(engine, answers, name):
    result = answers("a", arguments=("--output", name))
    assert (result.code, result.err.count("\n")) == (2, 1)
    assert not engine.asked


def test_two_processes_do_not_share_a_file(engine, answers, output):
    _, arguments = output
    codes: list[Result] = []
    engine.later = [[lambda: codes.append(answers("a", arguments=arguments)), done()]]
    assert answers("a", arguments=arguments).code == 0
    assert codes[0].code == 2
    assert "another process writes" in codes[0].err


@pytest.mark.parametrize("n_written", [0, 40])
def test_a_full_disk_leaves_whole_lines(engine, answers, output, monkeypatch, n_written):
    path, arguments = output
    write, room = os.write, [n_written]

    def full(descriptor: int, content: bytes) -> int:
        if content.startswith(b'{"index": 0'):
            return write(descriptor, content)
        if not (room and room[0]):
            raise OSError(28, "No space left on device")
        return write(descriptor, content[: room.pop()])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", full)
        result = answers("a", "b", arguments=arguments)
    assert result.code == 4
    assert f"{path}: No space left on device; free some space" in result.err
    assert [line["index"] for line in parsed(path.read_text())] == [0]
    assert answers("a", "b", arguments=arguments).code == 0
    assert [line["index"] for line in parsed(path.read_text())] == [0, 1]
