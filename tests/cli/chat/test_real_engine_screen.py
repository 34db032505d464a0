"""The real engine in a terminal: an answer that goes on, and a session that costs no prefill."""

import json
import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from localv4.state_file import read_head
from tests.conftest import ROOT
from tests.screens import Screen

QUESTION = "How much water does basil want? " * 20
PROMPT = re.compile(r"\S+ of \S+ >")


@pytest.fixture
def chat(tmp_path, checkpoint):
    """Return a function that types lines into a chat, one after the other, and leaves."""

    def run(*lines: str, session: str) -> Screen:
        command: list[str | Path] = [sys.executable, "-m", "localv4", "chat", "-m", checkpoint]
        command += ["--session", session, "--seed", "7", "--think", "off", "--max-tokens", "4"]
        places = {"HOME": str(tmp_path), "PYTHONPATH": str(ROOT), "TERM": "xterm-256color"}
        places["LOCALV4_SESSIONS_DIR"] = str(tmp_path)
        with Screen(command, {**os.environ, **places}, tmp_path, 200) as screen:
            until_prompt(screen)
            for line in lines:
                screen.type(line)
                screen.until(lambda: not is_prompt(screen))
                screen.idle(0.2)
                screen.type("\r")
                until_prompt(screen)
            screen.type("/quit\r")
            assert screen.wait() == 0
            return screen

    return run


def is_prompt(screen: Screen) -> bool:
    last = next((line for line in reversed(screen.lines) if line), "")
    return PROMPT.fullmatch(last) is not None


def until_prompt(screen: Screen) -> None:
    screen.until(lambda: is_prompt(screen), "there is no prompt")


def saved(folder: Path, name: str) -> dict[str, Any]:
    conversation: dict[str, Any] = read_head(folder / f"{name}.session")["conversation"]
    return conversation


def test_more_goes_on_with_the_tokens_that_would_have_come(chat, tmp_path):
    chat(QUESTION, "/more", "/more", session="parts")
    chat("/set max_tokens 12", QUESTION, session="whole")
    parts, whole = (saved(tmp_path, name) for name in ("parts", "whole"))
    assert len(whole["unfinished"]["ids"]) == 12
    assert parts["unfinished"] == whole["unfinished"]
    assert json.dumps(parts["messages"]) == json.dumps(whole["messages"])


def test_a_session_of_another_process_costs_no_prefill(chat):
    first = chat(QUESTION, session="garden").history
    second = chat("And now?", session="garden").history
    (n_read,), (n_more,) = (re.findall(r"prompt (\d+) at", shown) for shown in (first, second))
    assert int(n_read) > len(QUESTION) // 2
    assert f"loaded 'garden': 1 turn, {int(n_read) + 3:,} tokens from its state" in second
    assert int(n_more) < 30
