"""What `bench streaming` makes of its measurements, and a run of it on a tiny model."""

from pathlib import Path

import pytest

from localv4.bench import streaming
from localv4.bench.streamed_tokens import Round, Token, summary
from localv4.bench.streaming import measure_streaming
from tests.small_checkpoints import make_small
from tests.streaming_plans import force_streaming


def token(
    read_s: float, n_bytes: int, wait_s: float, parts: dict[str, float] | None = None
) -> Token:
    return Token(0.1 + wait_s, wait_s, read_s, n_bytes, 5, 1, [n_bytes, 0], parts)


def test_tokens_are_compared_with_the_disk_of_their_round():
    fast, slow = 2_000_000, 1_000_000
    parts = {"attention": 0.06, "experts": 0.02}
    rounds = [
        Round([token(0.5, 900_000, 0.0, parts), token(0.5, 900_000, 0.5)], fast, fast),
        Round([token(0.5, 450_000, 0.5)], slow, slow),
    ]
    made = summary(rounds)
    # nine tenths of each, though more than the slow one's best in all
    assert made["disk_share"] == pytest.approx(0.9)
    assert made["reachable_share"] == pytest.approx(0.9)
    assert made["read_gb_s"] == pytest.approx(1.35e6 / 1e9)
    assert made["read_gb_s"] == pytest.approx(made["disk_share"] * made["disk_gb_s"])
    # dense, one layer's experts, and the other layer's reads, in both rounds
    assert made["bound_s"] == pytest.approx(0.06 + 0.01 + 0.45)
    assert made["bound_ratio"] == pytest.approx(0.6 / 0.52)


def test_what_is_read_beside_computing_is_compared_with_the_disk_beside_computing():
    timed = token(0.0, 0, 0.0, {"experts": 0.01})
    # half of the time nobody waits: the disk could give 0.5 s of 1 MB/s and 0.5 s of half of it
    made = summary([Round([timed, token(1.0, 600_000, 0.5)], 1e6, 0.5e6)])
    assert made["reachable_share"] == pytest.approx(0.8)


def test_where_nothing_is_read_there_is_no_share():
    timed, other = token(0.0, 0, 0.0, {"experts": 0.01}), token(0.0, 0, 0.0)
    made = summary([Round([timed, other], 1e9, 1e9)])
    assert made["read_gb_s"] is made["disk_share"] is made["reachable_share"] is None
    assert made["disk_gb_s"] == 1


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    force_streaming(monkeypatch)
    monkeypatch.setattr(streaming, "_DISK_S", 0.01)
    kept: list[int] = []
    monkeypatch.setattr("localv4.streams.keep_disk_in_use", lambda _, n, *__: kept.append(n))
    said: list[str] = []
    folder = make_small(tmp_path / "model")
    report = measure_streaming(folder, None, 5, 2, 7, 2, True, said.append)
    assert report["tokens"] == 7
    assert report["misses"] > 0
    assert report["verified"] > 0
    assert report["peak_bytes"] > 0
    assert report["disk_share"] == pytest.approx(report["read_gb_s"] / report["disk_gb_s"])
    assert min(report["beside_gb_s"], report["reachable_share"], report["token_s"]) > 0
    assert [prompt["tokens"] for prompt in report["prompts"]] == [5, 5]
    # nothing but what tokens read: two to warm up, seven that count, three that were timed
    assert 0 < kept[0] < report["misses"] * 12 * 2 * report["plan"]["slot_bytes"]
    assert said[-1].startswith("decoding and measuring 7")
