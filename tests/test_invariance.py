"""The same bytes of logits, however a prompt is split, whoever computes and whatever came before.

Nothing here knows the right logits; tests/test_goldens.py does.
"""

from collections.abc import Iterator
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import localv4
from tests.golden_models import GoldenModel, golden_models

Numerics = Literal["float32", "trained"]
CASES = [
    pytest.param((model, numerics), id=f"{model.name}-{numerics}")
    for model in golden_models()
    for numerics in ("float32", "trained")
]


@pytest.fixture(scope="module", params=CASES)
def case(request: pytest.FixtureRequest) -> tuple[GoldenModel, Numerics]:
    found: tuple[GoldenModel, Numerics] = request.param
    return found


@pytest.fixture(scope="module")
def engine(case: tuple[GoldenModel, Numerics]) -> Iterator[localv4.Engine]:
    model, numerics = case
    with localv4.load(model.checkpoint, numerics=numerics, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def ids(case: tuple[GoldenModel, Numerics]) -> list[int]:
    # Two full compressed entries of 128 and a window that wrapped twice, then a rest.
    tokens: list[int] = case[0].goldens(case[1])["ids"][:300].tolist()
    return tokens


@pytest.fixture(scope="module")
def whole(engine: localv4.Engine, ids: list[int]) -> NDArray[np.float32]:
    """Logits of one prefill of all tokens."""
    return engine.session().prefill(ids, logits="all")


def assert_same_bytes(ours: NDArray[np.float32], expected: NDArray[np.float32]) -> None:
    """Compare bytes; on a difference say where it starts, since that names the culprit."""
    assert ours.dtype == expected.dtype == np.float32
    assert ours.shape == expected.shape
    if ours.tobytes() != expected.tobytes():
        rows = np.flatnonzero((ours != expected).reshape(len(ours), -1).any(axis=1))
        worst = np.abs(ours - expected).max()
        pytest.fail(f"{len(rows)} rows differ, the first is {rows[:1]}, by {worst:.3g} at most")


@pytest.mark.parametrize("piece", [1, 7, 64, 129])
def test_prefill_in_pieces(
    engine: localv4.Engine, ids: list[int], whole: NDArray[np.float32], piece: int
) -> None:
    n_tokens = 140 if piece == 1 else len(ids)
    session = engine.session()
    logits = [
        session.prefill(ids[start : min(start + piece, n_tokens)], logits="all")
        for start in range(0, n_tokens, piece)
    ]
    assert_same_bytes(np.concatenate(logits), whole[:n_tokens])


def test_prefill_in_uneven_pieces(
    engine: localv4.Engine, ids: list[int], whole: NDArray[np.float32]
) -> None:
    session, start = engine.session(), 0
    for end in (3, 4, 9, 127, 128, 130, 255, 257, 300):
        last = session.prefill(ids[start:end])
        assert last.shape == (engine.config.vocab_size,)
        assert_same_bytes(last[None], whole[end - 1 : end])
        start = end


@pytest.mark.parametrize("start", [1, 126])
def test_decode_is_prefill(
    engine: localv4.Engine, ids: list[int], whole: NDArray[np.float32], start: int
) -> None:
    session = engine.session()
    session.prefill(ids[:start])
    logits = np.stack([session.decode(token) for token in ids[start : start + 12]])
    assert_same_bytes(logits, whole[start : start + 12])


def test_one_thread(
    case: tuple[GoldenModel, Numerics], ids: list[int], whole: NDArray[np.float32]
) -> None:
    model, numerics = case
    with localv4.load(model.checkpoint, numerics=numerics, threads=1) as engine:
        session = engine.session()
        prompt = session.prefill(ids[:260], logits="all")
        decoded = [session.decode(token) for token in ids[260:264]]
        assert_same_bytes(np.concatenate([prompt, decoded]), whole[:264])


@pytest.mark.parametrize("position", [3, 130, 257])
def test_snapshot_and_restore(
    engine: localv4.Engine, ids: list[int], whole: NDArray[np.float32], position: int
) -> None:
    session = engine.session()
    session.prefill(ids[:position])
    mark = session.snapshot()
    # Another continuation, long enough to overwrite window rows and to close compressed windows.
    session.prefill(ids[:140])
    for _ in range(2):
        session.restore(mark)
        assert session.position == position
        continued = session.prefill(ids[position : position + 20], logits="all")
        session.decode(ids[0])
        assert_same_bytes(continued, whole[position : position + 20])


def test_sessions_do_not_disturb_each_other(
    engine: localv4.Engine, ids: list[int], whole: NDArray[np.float32]
) -> None:
    first, second = engine.session(), engine.session()
    first.prefill(ids[:130])
    second.prefill(ids[100:240])
    continued = [first.decode(ids[130])]
    second.decode(ids[0])
    continued.append(first.decode(ids[131]))
    assert_same_bytes(np.stack(continued), whole[130:132])
