"""The contract of `run`, line by line, in one process."""

import json
import logging
import os
import signal
import sys

import pytest

from localv4.encoding.literals import EOS
from localv4.errors import (
    ContextOverflow,
    DamagedCheckpoint,
    FormatError,
    InvalidInput,
    LocalV4Error,
    ModelNotFound,
    OutOfBudget,
    UnsupportedModel,
)
from localv4.events import Usage
from tests.cli.conftest import THOUGHT, FakeSession, done, event, wait


def test_stdout_carries_the_answer_and_nothing_else(engine, command):
    engine.events = THOUGHT
    result = command("run", "2+2?")
    assert (result.code, result.out) == (0, "4")
    assert result.err == "Hm. \n"
    assert engine.closed


def test_flags_reach_the_engine(engine, command, tmp_path):
    flags = "--memory 2GiB --threads 3 --numerics float32 --profile official --context 99"
    flags += " --max-tokens 7 --temperature 0.5 --top-p 0.9 --top-k 4 --min-p 0.1 --seed 11"
    flags += " --stop A --stop B --think max --system S"
    assert command("run", "Hi", *flags.split()).code == 0
    assert engine.loaded == {
        "path": tmp_path,
        "memory": 2 * 2**30,
        "threads": 3,
        "numerics": "float32",
        "profile": "official",
    }
    assert engine.contexts == [99]
    (asked,) = engine.asked
    sampling = asked.pop("sampling")
    assert isinstance(asked.pop("session"), FakeSession)
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (0.5, 0.9, 4)
    assert (sampling.min_p, sampling.seed) == (0.1, 11)
    assert asked == {
        "prompt": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}],
        "max_tokens": 7,
        "stop": ["A", "B"],
        "thinking": "max",
        "tools": None,
        "logprobs": None,
    }


def test_thinking_is_the_checkpoints_unless_set(engine, command, monkeypatch):
    command("run", "Hi")
    monkeypatch.setenv("LOCALV4_THINK", "off")
    command("run", "Hi")
    command("run", "Hi", "--think", "low")
    assert [asked["thinking"] for asked in engine.asked] == ["high", "off", "low"]


def test_raw_sends_the_text_as_it_is(engine, command):
    engine.is_base = True
    assert command("run", "--raw", "Once upon").code == 0
    assert engine.asked[0]["prompt"] == "Once upon"
    assert engine.asked[0]["thinking"] == "off"


@pytest.mark.parametrize("flag", ["--system=S", "--think=high", "--profile=preview"])
def test_raw_refuses_what_only_a_template_has(engine, command, flag):
    result = command("run", "--raw", "x", flag)
    assert result.code == 2
    assert not engine.asked


def test_a_base_checkpoint_is_sent_to_raw(engine, command):
    engine.is_base = True
    for arguments in (["run", "Hi"], ["chat"]):
        result = command(*arguments)
        assert (result.code, result.out) == (2, "")
        assert "run --raw" in result.err


def test_quiet_and_verbose(engine, command):
    engine.events = THOUGHT
    assert command("run", "x", "-q").err == ""
    verbose = command("run", "x", "-v").err
    assert "budget 1.00 GiB" in verbose
    assert "2 tokens at 2 tok/s" in verbose
    assert command("run", "x", "-q", "-v").code == 2


def test_the_length_of_the_prompt_is_said_before_it_is_read(engine, command, monkeypatch):
    monkeypatch.setattr("localv4.cli.prefill_bar._SHORT", 4)
    engine.events = [lambda: sys.stderr.write("first event\n"), done()]
    assert "reading the prompt: 5 tokens ...\nfirst event\n" in command("run", "x", "-v").err
    assert "reading" not in command("run", "x").err


def test_an_answer_that_is_all_thinking_is_explained(engine, command):
    engine.events = [event("reasoning", "Hm"), done("length")]
    result = command("run", "x")
    assert result.out == ""
    assert "no answer yet" in result.err


def test_the_first_compile_is_announced(engine, command, monkeypatch):
    monkeypatch.setattr("localv4.kernels_are_cached", lambda: False)
    assert "compiling for this CPU, once;" in command("run", "x").err
    monkeypatch.setattr("localv4.kernels._jit.cache_dir", None)
    assert "compiling for this CPU;" in command("run", "x").err


def test_what_the_library_logs_is_a_warning_of_the_command(engine, command):
    engine.events = [lambda: logging.getLogger("localv4.some.part").warning("mind %s", "this")]
    assert command("run", "x").err == "localv4: mind this\n"
    assert command("run", "x", "-q").err == ""
    assert logging.getLogger("localv4").handlers == []


def test_a_full_disk_names_the_cache_unless_it_is_another_file(engine, command):
    engine.events = [OSError(28, "No space left on device")]
    assert "LOCALV4_CACHE_DIR" in command("run", "x").err
    engine.events = [OSError(28, "No space left on device", "/some/file")]
    assert "localv4: /some/file: No space" in command("run", "x").err


@pytest.mark.parametrize(
    ("arguments", "stdin", "prompt"),
    [
        (["Hello"], b"", "Hello"),
        (["Hello"], b"\n", "Hello"),
        (["Hello"], b"file\n", "Hello\n\nfile"),
        ([], b"from stdin\r\n", "from stdin"),
        (["-"], b"\xef\xbb\xbfbom", "bom"),
        (["-"], b"two ends\n\n", "two ends\n"),
        (["-"], b"no end", "no end"),
        (["-"], b"a\r\nb\r\n", "a\r\nb"),
        (["-"], b"a\0b\x1b[2J", "a\0b\x1b[2J"),
        ([], "日本語 é".encode(), "日本語 é"),
    ],
)
def test_prompt_sources(engine, command, arguments, stdin, prompt):
    assert command("run", *arguments, stdin=stdin).code == 0
    assert engine.asked[0]["prompt"][0]["content"] == prompt


def test_a_prompt_of_any_characters_is_answered(command, checkpoint):
    flags = ["--max-tokens", "2", "-m", str(checkpoint)]
    for content in ("\0\x1b[2J\u2028", EOS, "\r\n\r\n\t"):
        for raw in ((), ("--raw",)):
            result = command("run", "-", *flags, *raw, stdin=content.encode())
            assert (result.code, result.err) == (0, "")


def test_a_prompt_that_never_ends_is_not_read_for_ever(engine, command, monkeypatch, tmp_path):
    monkeypatch.setattr("localv4.cli.input_files._MOST_BYTES", 99)
    result = command("run", stdin=b"x" * 1000)
    said = "standard input is larger than 99 B, more than is read; shorten it"
    assert (result.code, result.err) == (2, f"localv4: {said}\n")
    result = command("run", "--prompt-file", "/dev/zero")
    assert (result.code, "/dev/zero is larger than 99 B" in result.err) == (2, True)


def test_prompt_file_leaves_stdin_alone(engine, command, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("from a file\n")
    assert command("run", "--prompt-file", str(path), stdin=b"unread").code == 0
    assert engine.asked[0]["prompt"][0]["content"] == "from a file"


def test_a_dash_reads_even_a_terminal(engine, command):
    assert command("run", "-", stdin=b"typed\n", terminal=True).code == 0
    assert engine.asked[0]["prompt"][0]["content"] == "typed"


def test_a_terminal_is_not_read_beside_an_argument(engine, command):
    assert command("run", "Hello", stdin=b"unread", terminal=True).code == 0
    assert engine.asked[0]["prompt"][0]["content"] == "Hello"


@pytest.mark.parametrize(
    ("arguments", "stdin", "words"),
    [
        (["run"], b"", "text is empty"),
        (["run", ""], b"", "text is empty"),
        (["run", "-"], b"\n", "text is empty"),
        (["run"], b"ok \xff\xfe", "byte 0xff at 3"),
        (["run", "a\udcff"], b"", "argument is not UTF-8 text: byte 0xff at 1"),
        (["run", "a", "--prompt-file", "b"], b"", "two prompts"),
        (["run", "--prompt-file", "no/such"], b"", "cannot be read"),
        (["run", "a", "b"], b"", "unexpected extra argument(s) (b); put the prompt in quotes"),
        (["run", "a", "--frobnicate"], b"", "no such option"),
        (["run", "a", "--think", "hard"], b"", "'off', 'low', 'high', 'max'"),
        (["run", "a", "--max-tokens", "0"], b"", "'--max-tokens': give at least 1;"),
        (["run", "a", "--max-tokens", "x"], b"", "'--max-tokens': give a whole number;"),
        (["run", "a", "--temperature", "hot"], b"", "'--temperature': give a number;"),
        (["run", "a", "--temperature", "-1"], b"", "temperature"),
        (["run", "a", "--top-p", "0"], b"", "top_p"),
        (["run", "a", "--memory", "lots"], b"", "--memory"),
        (["run", "a", "--memory", "24"], b"", "24GiB"),
        (["run", "a", "--threads", "0"], b"", "--threads"),
        (["run", "a", "--logprobs", "2"], b"", "add --format json"),
        (["run", "a", "--logprobs", "2", "--format", "text"], b"", "add --format json"),
        (["run", "a", "--logprobs", "21", "--format", "json"], b"", "give at most 20;"),
        (["run", "a", "--logprobs", "-1", "--format", "json"], b"", "give at least 0;"),
        (["run", "a", "--stop", ""], b"", "--stop is empty"),
        (["run", "a", "--tools", "no/such"], b"", "no/such cannot be read: No such file"),
        (["run", "a", "--output", "x"], b"", "--output belongs to --prompts"),
        (["run", "a", "--timeout", "nan"], b"", "--timeout"),
        (["run", "a", "--timeout", "-1"], b"", "--timeout"),
        (["run", "a", "--timeout", "inf"], b"", "leave it out"),
        (["run", "a", "-m", ""], b"", "the name of the model is empty"),
        (["frobnicate"], b"", "no such command"),
        (["--frobnicate"], b"", "no such option"),
    ],
)
def test_usage_errors_are_one_sentence_and_code_2(engine, command, arguments, stdin, words):
    result = command(*arguments, stdin=stdin)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.startswith("localv4: ")
    assert result.err.count("\n") == 1
    assert not engine.loaded


def test_a_terminal_without_a_prompt_is_a_usage_error(engine, command):
    result = command("run", stdin=b"never read", terminal=True)
    assert result.code == 2
    assert "localv4 run" in result.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (LocalV4Error("what happened"), 1),
        (FormatError("what happened"), 1),
        (InvalidInput("what happened"), 2),
        (ContextOverflow("what happened"), 2),
        (ModelNotFound("what happened"), 3),
        (DamagedCheckpoint("what happened"), 3),
        (UnsupportedModel("what happened"), 3),
        (OutOfBudget("what happened"), 4),
        (MemoryError(), 4),
        (OSError(28, "No space left on device"), 4),
        (PermissionError(13, "Permission denied", "file"), 1),
        (ZeroDivisionError("oops"), 1),
        (KeyboardInterrupt(), 130),
    ],
)
def test_exit_codes(engine, command, error, code):
    engine.events = [event("text", "part"), error]
    result = command("run", "x")
    assert (result.code, result.out) == (code, "part")
    assert "Traceback" not in result.err
    assert engine.closed


def test_two_vs_show_the_traceback(engine, command):
    engine.events = [ZeroDivisionError("oops")]
    assert "Traceback" in command("run", "x", "-vv").err


def test_a_missing_model_is_code_3(command):
    for name in ("./no/such", "deepseek-ai/DeepSeek-V4-Flash", __file__, "a\nb", "x" * 9999):
        result = command("run", "x", "-m", name)
        assert (result.code, result.out) == (3, "")
        assert result.err.count("\n") == 1


@pytest.mark.parametrize(
    ("number", "code", "reason"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_signals_keep_the_partial_text(engine, command, number, code, reason):
    before = signal.getsignal(signal.SIGINT)
    engine.events = [event("text", "par"), lambda: os.kill(os.getpid(), number), wait]
    result = command("run", "x")
    assert (result.code, result.out, result.err) == (code, "par", "")
    engine.events = [
        event("prefill", usage=Usage(5, 0, 0)),
        event("text", "par", ids=(7, 8)),
        *engine.events[1:],
    ]
    report = json.loads(command("run", "x", "--format", "json").out)
    assert (report["text"], report["finish_reason"]) == ("par", reason)
    assert (report["usage"]["prompt_tokens"], report["usage"]["completion_tokens"]) == (5, 2)
    assert signal.getsignal(signal.SIGINT) is before


def test_timeout_keeps_the_partial_text(engine, command):
    engine.events = [event("text", "par"), wait]
    result = command("run", "x", "--timeout", "0.05")
    assert (result.code, result.out) == (124, "par")
    assert "0.05 s" in result.err
    report = json.loads(command("run", "x", "--timeout", "0.05", "--format", "json").out)
    assert (report["text"], report["finish_reason"]) == ("par", "timeout")


def test_a_dry_run_says_what_an_answer_would_take(command, checkpoint):
    flags = ["--dry-run", "--max-tokens", "9", "--context", "500", "-m", str(checkpoint)]
    result = command("run", "Hi", *flags)
    assert (result.code, result.err) == (0, "")
    rows = dict(line.split(maxsplit=1) for line in result.out.splitlines())
    assert rows["answer"] == "at most 9 tokens"
    assert rows["context"] == "500 tokens"
    report = json.loads(command("run", "Hi", *flags, "--format", "json").out)
    assert rows["prompt"] == f"{report['prompt_tokens']} tokens"
    taken = json.loads(command("run", "Hi", *flags[1:], "--format", "json").out)
    assert taken["usage"]["prompt_tokens"] == report["prompt_tokens"]
    result = command("run", "Hi " * 300, *flags)
    assert (result.code, result.out) == (2, "")
    assert "tokens do not fit a context of 500" in result.err
    assert command("run", "Hi", *flags, "--prompts", "x").code == 2
