"""One token through all layers at once: the bytes of block by block, whatever came in between."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import localv4
from localv4.errors import DamagedCheckpoint
from localv4.experts import Loan
from localv4.synthetic import synthesise
from localv4.token_pass import TokenPass
from tests.kernels.compare import assert_same_bytes
from tests.streaming_plans import force_streaming, store_of

F32 = NDArray[np.float32]
RATIOS = (0, 4, 128, 4, 128, 4, 128, 4, 128, 4)  # more layers than one call takes


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers") / "model"
    synthesise(folder, "flash", 4, mtp=False, compress_ratios=RATIOS)
    return folder


@pytest.fixture(params=["trained", "float32"])
def engine(request: pytest.FixtureRequest, folder: Path) -> Iterator[localv4.Engine]:
    with localv4.load(folder, numerics=request.param, threads=2) as opened:
        yield opened


def decoded(engine: localv4.Engine, ids: list[int], by_blocks: bool, before: int = 0) -> F32:
    """Feed tokens one by one behind some others; who is watched goes block by block."""
    session = engine.session()
    if before:
        session.prefill([1] * before, logits="none")
    observe = (lambda *_: None) if by_blocks else None
    return np.stack([session.decode(token, observe=observe) for token in ids])


def recorded(engine: localv4.Engine) -> TokenPass:
    model = engine._model
    trained = engine.numerics == "trained"
    found = model.workspaces.get(1, trained).recorded("token", lambda: object())
    assert isinstance(found, TokenPass)
    return found


def test_the_same_bytes_as_block_by_block(engine: localv4.Engine) -> None:
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, 12).tolist()
    for before in (0, 122):  # on the way the window fills, and the first coarse entry is made
        at_once = decoded(engine, ids, False, before)  # finds experts unknown at first
        assert_same_bytes(decoded(engine, ids, True, before), at_once)
        assert_same_bytes(decoded(engine, ids, False, before), at_once)


def test_a_stop_that_nobody_answered_is_forgotten(engine: localv4.Engine) -> None:
    ids = [5, 6, 7]
    expected = decoded(engine, ids, by_blocks=False)
    recorded(engine)._stops[0] = 4  # an interrupt came just behind the call
    assert_same_bytes(decoded(engine, ids, by_blocks=False), expected)


def test_two_sessions_in_turns(engine: localv4.Engine) -> None:
    ids = list(range(3, 9))
    expected = decoded(engine, ids, by_blocks=True)
    sessions = engine.session(), engine.session()
    for number, token in enumerate(ids):
        for session in sessions:
            assert_same_bytes(session.decode(token), expected[number])


def test_an_expert_that_cannot_be_bound_ends_the_token(
    engine: localv4.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    decoded(engine, [1], by_blocks=False)
    store = engine._model.store
    for layer in range(engine.config.num_hidden_layers):
        store.table(layer)[:] = 0

    def refuse(*_: object) -> None:
        raise DamagedCheckpoint("on purpose")

    with monkeypatch.context() as patched:
        patched.setattr(type(store), "get", refuse)
        session = engine.session()
        with pytest.raises(DamagedCheckpoint, match="on purpose"):
            session.decode(3)


def test_only_layers_with_an_expert_that_is_missing_ask(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [5, 6, 7]
    force_streaming(monkeypatch, 100)
    with localv4.load(folder, threads=2) as engine:
        config, store = engine.config, store_of(engine)
        asked: list[tuple[int, list[int]]] = []
        lend = store.lend
        store.begin(8)
        for layer in range(config.num_hidden_layers):
            with lend(layer, range(8), [3] * 8) as loan:
                for index in range(8):
                    loan.get(index)

        def watched(layer: int, experts: list[int], counts: list[int]) -> Loan:
            asked.append((layer, experts))
            return lend(layer, experts, counts)

        monkeypatch.setattr(store, "lend", watched)
        expected = decoded(engine, ids, by_blocks=True)
        assert [layer for layer, _ in asked] == 3 * [*range(config.num_hidden_layers)]
        chosen = dict(asked[-config.num_hidden_layers :])  # by the last token
        hits, n_chosen = store.counters.hits, sum(len(experts) for _, experts in asked)
        asked.clear()
        assert_same_bytes(decoded(engine, ids, by_blocks=False), expected)
        assert not asked
        assert store.counters.hits - hits == n_chosen
        layer, experts = 7, chosen[7]
        store.books.release(store.books.resident[layer * config.n_routed_experts + experts[0]][0])
        assert_same_bytes(decoded(engine, ids, by_blocks=False), expected)
        # the layer itself, and the one before if it foresaw the expert
        assert (layer, experts) in asked or (layer - 1) in dict(asked)
        assert {asking for asking, _ in asked} <= {layer - 1, layer}
