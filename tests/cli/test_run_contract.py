"""Processes of their own: pipes, signals, terminals, and the engine behind the commands.

Each start that computes costs seconds, so most of the contract is tested in one process
(test_run.py) and here only what needs a real one.
"""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import pytest

from localv4.synthetic import synthesise
from tests.conftest import ROOT
from tests.small_checkpoints import never_ending

LOCALV4 = [sys.executable, "-m", "localv4"]
ENDLESS = ["run", "--raw", "Once", "--max-tokens", "1000000", "--seed", "1"]


class Start(Protocol):
    def __call__(self, *arguments: str, **rest: Any) -> subprocess.Popen[bytes]: ...


@pytest.fixture
def start() -> Iterator[Start]:
    """Return a function that starts the program; what still runs at the end is killed."""
    with contextlib.ExitStack() as started:

        def run(*arguments: str, **rest: Any) -> subprocess.Popen[bytes]:
            streams: dict[str, Any] = {
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
            }
            # In the checkout: it works without being installed.
            process = subprocess.Popen([*LOCALV4, *arguments], cwd=ROOT, **{**streams, **rest})
            started.enter_context(process)
            started.callback(process.kill)
            return process

        yield run


def finish(process: subprocess.Popen[bytes]) -> tuple[int, bytes, str]:
    out, err = process.communicate(timeout=60)
    return process.returncode, out or b"", (err or b"").decode()


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Return the flags that name a checkpoint, after a run that has its kernels compiled."""
    checkpoint = tmp_path_factory.mktemp("endless") / "model"
    synthesise(checkpoint, compress_ratios=(0, 4))
    never_ending(checkpoint)
    command = [*LOCALV4, "run", "Hi", "--max-tokens", "2", "-m", str(checkpoint)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=400)
    return ["-m", str(checkpoint)]


def test_one_answer_in_every_form(start, model):
    flags = ["--max-tokens", "12", "--seed", "7", *model]
    code, out, err = finish(start("run", "Hi", *flags))
    assert (code, err) == (0, "")
    code, whole, err = finish(start("run", "Hi", *flags, "--format", "json"))
    assert (code, err) == (0, "")
    report = json.loads(whole)
    assert report["text"].encode() == out
    assert report["finish_reason"] == "length"
    assert report["usage"]["completion_tokens"] == 12
    code, lines, err = finish(start("run", "Hi", *flags, "--format", "jsonl"))
    *parts, last = [json.loads(line) for line in lines.splitlines()]
    prefill, *parts = parts
    assert prefill["usage"]["prompt_tokens"] == report["usage"]["prompt_tokens"]
    assert "".join(part["text"] for part in parts).encode() == out
    assert (last["kind"], last["usage"]) == ("done", report["usage"])
    assert sum(len(part["ids"]) for part in [*parts, last]) == 12


def test_thinking_goes_to_stderr(start, model):
    flags = ["--max-tokens", "12", "--seed", "7", "--think", "high", "--timeout", "300"]
    code, whole, err = finish(start("run", "Hi", *flags, "--format", "json", *model))
    report = json.loads(whole)
    assert (code, err) == (0, "")
    assert report["reasoning"]
    code, out, err = finish(start("run", "Hi", *flags, *model))
    assert (code, out.decode()) == (0, report["text"])
    assert err.startswith(report["reasoning"])


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_keeps_the_partial_text(start, model, number, code):
    process = start(*ENDLESS, *model)
    assert process.stdout is not None
    first = os.read(process.stdout.fileno(), 1)
    process.send_signal(number)
    returned, rest, err = finish(process)
    assert (returned, err) == (code, "")
    # Whole characters, although it was stopped somewhere.
    assert (first + rest).decode()


def test_a_closed_pipe_ends_quietly(start, model):
    process = start(*ENDLESS, *model)
    assert process.stdout is not None
    os.read(process.stdout.fileno(), 1)
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


def test_a_megabyte_of_stdin_is_refused_with_both_numbers(start, model, tmp_path):
    path = tmp_path / "megabyte"
    path.write_bytes(b"0123456789" * 100_000)
    with path.open("rb") as stdin:
        code, out, err = finish(start("run", "--context", "4096", *model, stdin=stdin))
    assert (code, out, err.count("\n")) == (2, b"", 1)
    assert "1,000,004 tokens do not fit a context of 4,096; shorten the input or" in err


def test_stdin_and_stderr_may_be_closed(model):
    # -v would write to standard error
    command = [*LOCALV4, "run", "Hi", "--max-tokens", "2", "-v", *model]
    process = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&- 2>&-', *command],
        timeout=60, check=False, cwd=ROOT, capture_output=True,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, b"")
    assert process.stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_an_answer_finds_no_room(start, model):
    with Path("/dev/full").open("wb") as full:
        code, _, err = finish(start("run", "Hi", "--max-tokens", "2", *model, stdout=full))
    what = "standard output: No space left on device; free some space and try again"
    assert (code, err) == (4, f"localv4: {what}\n")


def lines_of_prompts(*prompts: dict[str, Any]) -> str:
    return "".join(f"{json.dumps(prompt)}\n" for prompt in prompts)


def test_many_prompts_are_stopped_between_lines(start, model, tmp_path):
    path = tmp_path / "prompts.jsonl"
    endless = {"prompt": "b", "max_tokens": 1_000_000}
    path.write_text(lines_of_prompts({"prompt": "a", "max_tokens": 2}, endless))
    process = start("run", "--prompts", str(path), "--raw", *model)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.send_signal(signal.SIGINT)
    code, rest, err = finish(process)
    assert (code, rest, json.loads(first)["index"]) == (130, b"", 0)
    assert err.startswith("localv4: stopped: 1 of 2 prompts are done; with --output FILE")
    assert err.count("\n") == 1


def test_many_prompts_to_a_closed_pipe_end_quietly(start, model, tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines_of_prompts(*[{"prompt": "a", "max_tokens": 2}] * 500))
    process = start("run", "--prompts", str(path), *model)
    assert process.stdout is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.stderr is not None
    assert process.stderr.read() == b""
    assert process.wait(timeout=60) == 0


def test_many_prompts_survive_a_kill(start, model, tmp_path):
    path, results = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    lines = [{"prompt": f"{number}", "max_tokens": 4} for number in range(40)]
    path.write_text(lines_of_prompts(*lines))
    command = ["run", "--prompts", str(path), "--output", str(results), "--seed", "1", *model]
    process = start(*command)
    while process.poll() is None and not (results.exists() and results.stat().st_size > 900):
        time.sleep(0.01)
    process.kill()
    process.wait()
    begun = results.read_bytes()
    assert 0 < begun.count(b"\n") < len(lines)
    assert finish(start(*command)) == (0, b"", "")
    assert results.read_bytes().startswith(begun[: begun.rindex(b"\n") + 1])
    answered = [json.loads(line)["index"] for line in results.read_text().splitlines()]
    assert answered == [*range(len(lines))]


def test_the_time_limit(start, model):
    code, out, err = finish(start(*ENDLESS, *model, "--timeout", "6"))
    assert code == 124
    assert out
    assert err.endswith("localv4: stopped after 6 s (--timeout)\n")


def test_a_pipe_closed_before_the_end(start, checkpoint):
    # The pipe's buffer takes the whole output: only the flush at exit can fail.
    reading, writing = os.pipe()
    os.close(reading)
    process = start("show", str(checkpoint), stdout=writing)
    os.close(writing)
    assert finish(process) == (0, b"", "")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk(start):
    with Path("/dev/full").open("wb") as full:
        code, _, err = finish(start("config", stdout=full))
    assert code == 4
    what = "standard output: No space left on device; free some space and try again"
    assert err == f"localv4: {what}\n"


def test_closed_standard_streams():
    process = subprocess.run(
        ["sh", "-c", 'exec "$0" "$@" <&- >&- 2>&-', *LOCALV4, "config"],
        timeout=60,
        check=False,
        cwd=ROOT,
    )
    assert process.returncode == 0


def test_output_is_utf8_in_every_locale(start, checkpoint):
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    process = start("tokenize", "é日", "--json", "-m", str(checkpoint), env=environment)
    code, out, err = finish(process)
    assert (code, err) == (0, "")
    assert len(json.loads(out)["ids"]) == 5


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Return both ends of a terminal: ours, and the program's."""
    ours, theirs = os.openpty()
    yield ours, theirs
    os.close(ours)
    os.close(theirs)


def test_a_terminal_without_a_prompt_is_not_waited_for(start, terminal):
    code, out, err = finish(start("run", stdin=terminal[1]))
    assert (code, out) == (2, b"")
    assert "localv4 run" in err


class Screen:
    """What a terminal shows, read in order."""

    def __init__(self, ours: int) -> None:
        self._ours = ours
        self._unread = b""

    def expect(self, words: bytes) -> None:
        """Read on until behind the next `words`."""
        while words not in self._unread:
            ready, _, _ = select.select([self._ours], [], [], 60)
            assert ready, f"{words!r} never came; the screen has {self._unread!r}"
            self._unread += os.read(self._ours, 4096)
        self._unread = self._unread.partition(words)[2]

    def type(self, text: bytes) -> None:
        os.write(self._ours, text)


def test_no_arguments_on_a_terminal_is_a_chat(start, model, terminal):
    ours, theirs = terminal
    environment = {**os.environ, "LOCALV4_MODEL": model[1], "TERM": "xterm"}
    process = start(
        stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
    )
    screen = Screen(ours)
    screen.expect(b"/help lists the commands")
    screen.expect(b">")
    screen.type(b"/quit\r")
    assert process.wait(timeout=60) == 0
