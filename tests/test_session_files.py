"""Sessions saved by one engine and loaded by another, or refused."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localv4
from localv4.errors import DamagedSession, InvalidInput, LocalV4Error, OutOfBudget
from localv4.fingerprint import fingerprint
from localv4.kept import MOST_KEPT
from localv4.session_state import saved_positions
from localv4.state_file import open_state, read_head, write_state
from localv4.synthetic import synthesise

IDS = np.random.default_rng(0).integers(0, 384, 400).tolist()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sessions") / "flash"
    synthesise(folder, "flash", compress_ratios=(0, 4, 128))
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[localv4.Engine]:
    with localv4.load(folder, draft="mtp") as opened:
        yield opened


@pytest.fixture(scope="module")
def saved(engine: localv4.Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a session of 300 tokens with snapshots at 10 and 130."""
    path = tmp_path_factory.mktemp("saved") / "a.session"
    session = engine.session()
    for first, last in ((0, 10), (10, 130), (130, 300)):
        session.prefill(IDS[first:last])
        if last < 300:
            session.keep()
    n_bytes = session.save(path, {"title": "a", "conversation": ["Grüße"]})
    assert (
        n_bytes
        == path.stat().st_size
        == session.saved_bytes({"title": "a", "conversation": ["Grüße"]})
    )
    return path


def test_everything_comes_back(engine: localv4.Engine, saved: Path) -> None:
    direct = engine.session()
    expected = direct.prefill(IDS[:301]), direct.draft(5)
    session = engine.load_session(saved)
    assert session.ids == IDS[:300]
    assert session.decode(IDS[300]).tobytes() == expected[0].tobytes()
    assert session.draft(5).tobytes() == expected[1].tobytes()
    for place in (130, 10):
        other = [*IDS[:place], *IDS[300:]]
        assert session.rewind(other) == place
        direct = engine.session()
        assert session.prefill(other[place:]).tobytes() == direct.prefill(other).tobytes()


def test_the_head_says_what_it_was_given(saved: Path) -> None:
    head = read_head(saved)
    assert (head["title"], head["conversation"], head["n_tokens"]) == ("a", ["Grüße"], 300)


def test_saving_again_replaces(engine: localv4.Engine, saved: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.session"
    path.write_bytes(saved.read_bytes())
    session = engine.load_session(path)
    session.decode(1)
    session.save(path)
    assert engine.load_session(path).position == 301


def test_an_empty_session_can_be_saved(engine: localv4.Engine, tmp_path: Path) -> None:
    engine.session().save(tmp_path / "empty")
    session = engine.load_session(tmp_path / "empty")
    assert session.prefill(IDS).tobytes() == engine.session().prefill(IDS).tobytes()


def test_another_model_or_setting_is_refused(
    folder: Path, saved: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    synthesise(other, "flash", 1, compress_ratios=(0, 4, 128))
    cases: list[tuple[Path, dict[str, Any], str]] = [
        (other, {"draft": "mtp"}, "another model"),
        (folder, {"draft": "mtp", "numerics": "float32"}, r"another setting \(numerics\)"),
        (folder, {}, r"another setting \(mtp\)"),
    ]
    for path, options, message in cases:
        with localv4.load(path, **options) as engine:
            with pytest.raises(DamagedSession, match=message):
                engine.load_session(saved)
            session = engine.session()
            assert session.prefill(IDS[:5]).size  # it goes on without
    monkeypatch.setattr("localv4.session_state._VERSION", 2)
    with (
        localv4.load(folder, draft="mtp") as engine,
        pytest.raises(DamagedSession, match="another version"),
    ):
        engine.load_session(saved)


def test_weights_and_config_change_the_fingerprint(folder: Path, tmp_path: Path) -> None:
    seen = set()
    for seed in (0, 1):
        synthesise(tmp_path / str(seed), "flash", seed, compress_ratios=(0, 4, 128))
        config = tmp_path / str(seed) / "config.json"
        for eps in (1e-6, 1e-5):
            config.write_text(json.dumps(json.loads(config.read_text()) | {"rms_norm_eps": eps}))
            with localv4.checkpoint.Checkpoint.open(tmp_path / str(seed)) as checkpoint:
                seen.add(fingerprint(checkpoint))
                assert fingerprint(checkpoint) in seen
    assert len(seen) == 4


def test_a_damaged_state_leaves_the_text_and_an_empty_session(
    engine: localv4.Engine, saved: Path, tmp_path: Path
) -> None:
    content = bytearray(saved.read_bytes())
    with open_state(saved) as file:
        place = file.sections["kept.1.fixed"].offset + 1
    content[place] ^= 1
    broken, torn = tmp_path / "broken", tmp_path / "torn"
    broken.write_bytes(content)
    torn.write_bytes(saved.read_bytes()[:-100])
    session = engine.session()
    session.prefill(IDS[:20])
    for path in (broken, torn):
        with pytest.raises(DamagedSession):
            session.load(path)
        assert read_head(path)["conversation"] == ["Grüße"]
    assert session.position in (0, 20)
    session.reset()
    assert session.prefill(IDS).tobytes() == engine.session().prefill(IDS).tobytes()


@pytest.mark.parametrize(
    "change",
    [
        {"n_tokens": -1},
        {"n_tokens": 1.5},
        {"n_tokens": True},
        {"n_tokens": None},
        {"kept": [301]},
        {"kept": [130, 10]},
        {"kept": "10"},
        {"kept": [None]},
        {"kept": list(range(100))},
    ],
)
def test_heads_that_contradict_themselves(saved: Path, change: dict[str, Any]) -> None:
    head = read_head(saved)
    head["state"] |= change
    with pytest.raises(DamagedSession, match="contradicts itself"):
        saved_positions(saved, head)


@pytest.mark.parametrize("n_tokens", [299, 301, 10**9])
def test_arrays_that_contradict_the_head(
    engine: localv4.Engine, saved: Path, tmp_path: Path, n_tokens: int
) -> None:
    with open_state(saved) as file:
        arrays = {name: file.read(name) for name in file.sections}
        head = file.head
    head["state"]["n_tokens"] = n_tokens
    write_state(tmp_path / "forged", head, arrays)
    with pytest.raises((DamagedSession, InvalidInput)):
        engine.load_session(tmp_path / "forged")


@pytest.mark.parametrize("lacking", ["now.fixed", "rows.0", "kept.0.fixed"])
def test_arrays_that_are_not_there(
    engine: localv4.Engine, saved: Path, tmp_path: Path, lacking: str
) -> None:
    with open_state(saved) as file:
        arrays = {name: file.read(name) for name in file.sections if name != lacking}
        write_state(tmp_path / "forged", file.head, arrays)
    with pytest.raises(DamagedSession, match=lacking):
        engine.load_session(tmp_path / "forged")


def test_what_does_not_fit_is_refused(
    engine: localv4.Engine, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InvalidInput, match="300 tokens, more than a context of 299"):
        engine.load_session(saved, context=299)
    session = engine.session()
    monkeypatch.setattr(engine._ledger, "most", engine._ledger.n_bytes)
    with pytest.raises(OutOfBudget, match="more of KV state"):
        session.load(saved)
    assert session.position == 0


def test_a_torn_session_is_not_saved(engine: localv4.Engine, tmp_path: Path) -> None:
    session = engine.session()
    session.prefill(IDS[:10])

    def interrupt(name: str, layer: int, position: int, array: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        session.decode(1, observe=interrupt)
    with pytest.raises(LocalV4Error, match="not whole"):
        session.save(tmp_path / "torn")
    assert not (tmp_path / "torn").exists()


def test_as_many_snapshots_as_are_kept(engine: localv4.Engine, tmp_path: Path) -> None:
    session = engine.session()
    for first in range(0, 10 * (MOST_KEPT + 3), 10):
        session.prefill(IDS[first : first + 10])
        session.keep()
    session.save(tmp_path / "many")
    loaded = engine.load_session(tmp_path / "many")
    assert [mark.ids.size for mark in loaded._history.kept] == [
        mark.ids.size for mark in session._history.kept
    ]
    assert len([*loaded._history.kept]) == MOST_KEPT
