"""Every flag of `run` and `chat` does something: a flag that does nothing would be found here."""

import json
import re
import signal
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import pytest
from typer.main import get_command

from localv4.cli.app import command_table
from localv4.events import Usage
from localv4.sampling import TokenLogprob
from tests.cli.conftest import FakeEngine, Letters, Result, done, event

COMMANDS = get_command(command_table()).commands  # type: ignore[attr-defined]  # it is a table


@dataclass(frozen=True)
class Use:
    """What a flag is given, and what else stands on the line with and without it."""

    flag: tuple[str, ...]
    beside: tuple[str, ...] = ("Hi",)


def use(flag: str, beside: str = "Hi") -> Use:
    return Use(tuple(flag.split()), tuple(beside.split()))


# What both have; {folder} holds letter.txt, tools.json and prompts.jsonl.
SHARED = {
    "--model": "--model {folder}/other",
    "--system": "--system S",
    "--max-tokens": "--max-tokens 7",
    "--temperature": "--temperature 0.5",
    "--top-p": "--top-p 0.5",
    "--top-k": "--top-k 5",
    "--min-p": "--min-p 0.5",
    "--seed": "--seed 8",
    "--think": "--think low",
    "--profile": "--profile official",
    "--numerics": "--numerics float32",
    "--memory": "--memory 2GiB",
    "--threads": "--threads 3",
    "--context": "--context 99",
    "--verbose": "--verbose",
    "--quiet": "--quiet",
    "--log-file": "--log-file {folder}/log",
}
RUN = {flag: use(given) for flag, given in SHARED.items()} | {
    "PROMPT": use("Hi", ""),
    "--prompt-file": use("--prompt-file {folder}/letter.txt", ""),
    "--prompts": use("--prompts {folder}/prompts.jsonl", ""),
    "--output": use("--output {folder}/results.jsonl", "--prompts {folder}/prompts.jsonl"),
    "--tools": use("--tools {folder}/tools.json"),
    "--raw": use("--raw"),
    "--format": use("--format json"),
    "--logprobs": use("--logprobs 1", "Hi --format json"),
    "--stop": use("--stop A"),
    "--timeout": use("--timeout 900"),
    "--dry-run": use("--dry-run"),
}
CHAT = {flag: use(given, "") for flag, given in SHARED.items()} | {
    "--session": use("--session garden", ""),
    "--thoughts": use("--thoughts hide", ""),
}
# Of these there is nothing to see without a terminal: tests/cli/chat has what they do.
NEEDS_A_TERMINAL = {"--no-history"}


@pytest.fixture
def seen(engine, command, monkeypatch, tmp_path) -> Callable[..., Any]:
    """Return a function that runs a command line and returns all that can be observed of it."""
    (tmp_path / "letter.txt").write_text("Dear")
    (tmp_path / "tools.json").write_text('[{"name": "f"}]')
    (tmp_path / "prompts.jsonl").write_text('"One"\n')
    (tmp_path / "other").mkdir()
    monkeypatch.setenv("LOCALV4_SESSIONS_DIR", str(tmp_path / "sessions"))
    monkeypatch.setattr("localv4.cli.dry_run.show_dry_run", lambda output, *_: output.line("dry"))
    limits: list[bool] = []
    logprob = TokenLogprob(97, -0.5, ())
    engine.tokenizer = Letters()
    engine.events = [
        lambda: limits.append(signal.getitimer(signal.ITIMER_REAL)[0] > 0),
        event("prefill", usage=Usage(5, 0, 0)),
        event("reasoning", "Hm. ", ids=(104,), logprobs=(logprob,)),
        event("text", "Hello", ids=(97,), logprobs=(logprob,)),
        done(),
    ]

    def observe(name: str, words: tuple[str, ...]) -> Any:
        forget(engine)
        limits.clear()
        before = {*tmp_path.rglob("*")}
        # of several seeds the last counts
        arguments = ["--seed=1", *(word.format(folder=tmp_path) for word in words)]
        result: Result = command(name, *arguments, stdin=b"Question\n")
        made = {path for path in tmp_path.rglob("*") if path not in before}
        for path in made:
            if path.is_file():
                path.unlink()
        assert "internal error" not in result.err
        asked = [json.dumps(rest, default=_plain) for rest in engine.asked]
        loaded, contexts = {**engine.loaded}, [*engine.contexts]
        said = result.code, _still(result.out), _still(result.err)
        return *said, loaded, contexts, asked, [*limits], made

    return observe


def forget(engine: FakeEngine) -> None:
    engine.loaded.clear()
    engine.asked.clear()
    engine.contexts.clear()


def _plain(value: Any) -> Any:
    return asdict(value) if hasattr(value, "temperature") else type(value).__name__


def _still(text: str) -> str:
    """Take from an output what is never the same."""
    text = re.sub(r'"timings": {.*?}|"logprobs": \[\], ', "", text)
    return re.sub(r"[\d.]+ s\b", "", text)


def parameters(name: str) -> set[str]:
    return {
        max(parameter.opts, key=len)
        if parameter.param_type_name == "option"
        else str(parameter.metavar)
        for parameter in COMMANDS[name].params
    }


@pytest.mark.parametrize(("name", "uses"), [("run", RUN), ("chat", CHAT)])
def test_every_flag_is_tried(name, uses):
    assert parameters(name) - {"--help"} - NEEDS_A_TERMINAL == {*uses}


@pytest.mark.parametrize("flag", RUN)
def test_a_flag_of_run_does_something(seen, flag):
    given = RUN[flag]
    without = seen("run", given.beside)
    assert seen("run", given.beside) == without, "what is observed has noise in it"
    assert seen("run", (*given.beside, *given.flag)) != without


@pytest.mark.parametrize("flag", CHAT)
def test_a_flag_of_chat_does_something(seen, flag):
    given = CHAT[flag]
    without = seen("chat", given.beside)
    assert seen("chat", given.beside) == without, "what is observed has noise in it"
    assert seen("chat", (*given.beside, *given.flag)) != without
