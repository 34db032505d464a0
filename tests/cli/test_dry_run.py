"""What a dry run says, and that it computes nothing."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

import localv4
from localv4.cli.dry_run import about, show_dry_run, speed_words
from localv4.cli.output import Output
from localv4.errors import ContextOverflow
from localv4.expected import Expectation, expect
from localv4.inventory import take_inventory
from localv4.machine_rates import CpuRates, keep_rates
from localv4.memory import MemoryPlan
from localv4.settings import load_settings
from localv4.token_work import token_work
from tests.cli.conftest import FakeEngine, FakeSession
from tests.kernels.compare import needs_compiler
from tests.released import released_config

GIB = 2**30
FLASH = released_config("flash")
RATES = CpuRates(20e9, 17e9, 16e9, 18e9, 2e11)
STREAMED = MemoryPlan(
    *(7 * GIB, GIB, 12 * GIB, 2 * GIB, GIB, GIB, 24 * GIB, 24 * GIB, 1024),
    streams=True, n_slots=960, slot_bytes=13_422_592, kv_most=10 * GIB,
)  # fmt: skip
MAPPED = dataclasses.replace(STREAMED, streams=False, n_slots=0)


def flash_expected(plan: MemoryPlan, disk: float | None) -> Expectation:
    return expect(token_work(take_inventory(FLASH)), plan, RATES, disk, "skewed")


@pytest.fixture
def shown(monkeypatch, tmp_path, capsys):
    """Return a function that shows the dry run of a fake engine, and gives what was printed."""
    monkeypatch.setenv("LOCALV4_MODEL", str(tmp_path))
    (tmp_path / "config.json").touch()

    def show(
        plan: MemoryPlan = STREAMED,
        found: Expectation | None = None,
        n_prompt: int = 1000,
        max_tokens: int | None = None,
        output_format: str = "text",
        context: int = 2**20,
    ) -> str:
        engine: Any = FakeEngine(plan=plan, config=FLASH)
        session: Any = FakeSession(context)
        monkeypatch.setattr("localv4.expected.expected", lambda *_: found)
        settings = load_settings()
        show_dry_run(Output(), settings, engine, session, n_prompt, max_tokens, output_format)
        assert engine.asked == []
        captured = capsys.readouterr()
        assert captured.err == ""
        return str(captured.out)

    return show


def rows(text: str) -> dict[str, str]:
    return {line[:12].strip(): line[13:] for line in text.splitlines()}


def test_everything_that_is_known(shown, tmp_path):
    found = flash_expected(STREAMED, 3e9)
    said = rows(shown(found=found, max_tokens=400))
    assert said["model"] == str(tmp_path)
    assert said["prompt"] == "1,000 tokens"
    assert said["answer"] == "at most 400 tokens"
    assert said["context"] == "1,048,576 tokens"
    assert said["memory"].startswith("24.0 GiB of 24.0 GiB: dense 7.00 GiB, head 1.00 GiB, ")
    assert said["memory"].endswith("; 960 experts at a time")
    assert said["KV state"].endswith("for prompt and answer, of at most 10.0 GiB")
    assert found.likely is not None
    assert said["speed"] == speed_words(found, None)
    assert f"{found.likely.tokens_s:.3g}" in said["speed"]
    assert said["first token"] == f"after about {about(found.prefill_s(1000) or 0)}"
    total_s = (found.prefill_s(1000) or 0) + 400 * found.likely.token_s
    assert said["in all"] == f"about {about(total_s)} for 400 tokens"


def test_an_answer_without_a_limit_has_no_end_either(shown):
    said = rows(shown(found=flash_expected(MAPPED, 3e9), plan=MAPPED))
    assert said["answer"] == "at most 1,047,576 tokens, all that the context has left"
    assert said["memory"].endswith("; all weights in memory")
    assert "for the prompt, of" in said["KV state"]
    assert "in all" not in said
    assert "first token" in said


def test_a_limit_beyond_the_context(shown):
    said = rows(shown(context=1100, max_tokens=400))
    assert said["answer"] == "at most 100 tokens, all that the context has left"


def test_a_prompt_that_does_not_fit(shown):
    assert rows(shown(n_prompt=1000, context=1000))["answer"].startswith("at most 0 tokens")
    with pytest.raises(ContextOverflow, match="1,001 tokens do not fit a context of 1,000; "):
        shown(n_prompt=1001, context=1000)


def test_kv_state_that_does_not_fit(shown):
    plan = dataclasses.replace(STREAMED, kv_most=2**20)
    assert ": too much; give more memory" in rows(shown(plan=plan))["KV state"]


def test_nothing_is_guessed(shown, tmp_path):
    said = rows(shown(max_tokens=400))
    assert said["speed"] == f"not measured yet: localv4 doctor -m {tmp_path}"
    assert {"first token", "in all"}.isdisjoint(said)
    said = rows(shown(found=flash_expected(STREAMED, None), max_tokens=400))
    assert said["speed"].startswith("the disk is not measured yet: localv4 doctor -m ")
    assert said["speed"].endswith("tok/s with all experts in memory")
    assert {"first token", "in all"}.isdisjoint(said)


def test_json(shown, tmp_path):
    found = flash_expected(STREAMED, 3e9)
    report = json.loads(shown(found=found, max_tokens=400, output_format="json"))
    assert report["model"] == report["path"] == str(tmp_path)
    assert (report["prompt_tokens"], report["answer_tokens"], report["max_tokens"]) == (
        1000, 400, 400,
    )  # fmt: skip
    assert report["memory"] == {
        name: getattr(STREAMED, name)
        for name in ("dense", "head", "experts", "kv", "workspace", "process", "total", "budget")
    }
    assert (report["streams"], report["kv_most_bytes"]) == (True, 10 * GIB)
    times = report["expected"]
    assert times["first_token_s"] == found.prefill_s(1000)
    assert times["tokens_s_floor"] < times["tokens_s"] < times["tokens_s_warm"]
    assert times["total_s"] == pytest.approx(times["first_token_s"] + 400 / times["tokens_s"])
    lines = shown(output_format="jsonl").splitlines()
    assert len(lines) == 1
    assert json.loads(lines[0])["expected"] is None
    partly = json.loads(shown(found=flash_expected(STREAMED, None), output_format="json"))
    assert partly["expected"] == {
        "first_token_s": None, "tokens_s": None, "tokens_s_floor": None,
        "tokens_s_warm": found.warm.tokens_s, "total_s": None,
    }  # fmt: skip


def test_speeds_in_words():
    found = flash_expected(STREAMED, 3e9)
    assert found.likely is not None
    assert speed_words(None, None) == "not measured yet: localv4 doctor"
    words = speed_words(found, "flash")
    assert words.startswith(f"about {found.likely.tokens_s:.3g} tok/s; ")
    assert "at the start" in words
    mapped = flash_expected(MAPPED, None)
    assert speed_words(mapped, None) == f"about {mapped.warm.tokens_s:.3g} tok/s"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.123, "0.12 s"), (99, "99 s"), (100, "1.7 minutes"), (1500, "25 minutes"),
     (7200, "2.0 hours")],
)  # fmt: skip
def test_times_in_words(seconds, words):
    assert about(seconds) == words


@needs_compiler
def test_a_real_engine_computes_nothing(checkpoint: Path, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("LOCALV4_MODEL", str(checkpoint))
    monkeypatch.setenv("LOCALV4_THREADS", "1")
    with localv4.load(checkpoint, threads=1, memory="2GiB") as engine:
        session = engine.session(context=500)
        ids, _ = engine.prompt_format.ids([{"role": "user", "content": "Hello"}], "off")
        monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "cache"))
        keep_rates(RATES, 1)
        show_dry_run(Output(), load_settings(), engine, session, len(ids), 20, "json")
        report = json.loads(capsys.readouterr().out)
        assert (report["prompt_tokens"], report["answer_tokens"]) == (len(ids), 20)
        assert report["expected"]["total_s"] > 0
        assert report["memory"]["total"] <= report["memory"]["budget"] == 2 * GIB
        assert (session.position, engine.stats.prefill_tokens) == (0, 0)
