"""The front door: arguments, sessions, snapshots, budgets, answers; the numbers are elsewhere."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localv4
from localv4.errors import (
    ContextOverflow,
    DamagedCheckpoint,
    InvalidInput,
    LocalV4Error,
    OutOfBudget,
    UnsupportedModel,
)
from localv4.kv_sizes import kv_bytes
from localv4.session import Session
from localv4.synthetic import synthesise

GREEDY = localv4.SamplingParams(temperature=0)
HELLO = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engine") / "flash"
    synthesise(folder, "flash", seed=3)
    return folder


@pytest.fixture(scope="module")
def engine(folder: Path) -> Iterator[localv4.Engine]:
    with localv4.load(folder, threads=1) as engine:
        yield engine


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"numerics": "x"}, "numerics is 'x'; give one of 'trained', 'float32'"),
        ({"draft": "eagle"}, "draft is 'eagle'"),
        ({"profile": "beta"}, "profile is 'beta'"),
        ({"threads": 0}, "threads is 0; give a whole number from 1 to"),
        ({"threads": 10**6}, "threads is 1000000"),
        ({"threads": 1.5}, "threads is 1.5"),
        ({"threads": "two"}, "threads is 'two'"),
        ({"threads": True}, "threads is True"),
        ({"memory": "banana"}, "banana"),
    ],
)
def test_arguments_of_load_are_checked(
    folder: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        localv4.load(folder, **arguments)


def test_a_budget_too_small_names_one_that_is_not(folder: Path) -> None:
    with pytest.raises(OutOfBudget, match="needs at least") as caught:
        localv4.load(folder, memory="1MB")
    smallest = str(caught.value).split("at least ")[1].split(";")[0].replace(" ", "")
    unit = {"MiB": 2**20, "GiB": 2**30}[smallest[-3:]]
    with localv4.load(folder, memory=round(float(smallest[:-3]) * unit * 1.2)) as engine:
        plan = engine.plan
        weights = plan.dense + plan.head + plan.experts
        assert weights + plan.kv + plan.workspace + plan.process == plan.total <= plan.budget


def test_kv_state_stays_inside_the_budget(folder: Path) -> None:
    with localv4.load(folder, threads=1) as roomy:
        held = roomy.plan.workspace + roomy.plan.process
        budget = held + 3 * kv_bytes(roomy.config, 1024, trained=True) + 32 * 2**20
    with localv4.load(folder, memory=budget, threads=1) as engine:
        most = engine.plan.kv
        with pytest.raises(OutOfBudget, match="context of"):
            engine.session(context=engine.config.max_position_embeddings)
        sessions: list[Session] = []
        with pytest.raises(OutOfBudget, match="are in use"):
            _fill(engine, sessions)
        assert len(sessions) > 1
        assert 0 < engine.stats.kv_bytes <= most


def test_a_restored_session_stays_inside_the_budget(
    engine: localv4.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.session()
    session.prefill([5] * 300)
    mark = session.snapshot()
    session.reset()
    with monkeypatch.context() as smaller:
        smaller.setattr(engine._ledger, "most", engine._ledger.n_bytes)
        with pytest.raises(OutOfBudget, match="more of KV state"):
            session.restore(mark)
    assert session.position == 0
    session.restore(mark)
    assert session.position == 300


def test_the_budget_is_checked_again_after_the_state_was_replaced(
    engine: localv4.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    admitted: list[int] = []
    session = engine.session()
    session.prefill([5])
    mark = session.snapshot()
    monkeypatch.setattr(engine._ledger, "admit", admitted.append)
    for change in (session.reset, lambda: session.restore(mark)):
        change()
        admitted.clear()
        session.decode(5)
        session.decode(5)
        assert len(admitted) == 1


def _fill(engine: localv4.Engine, sessions: list[Session]) -> None:
    while True:
        sessions.append(engine.session())
        sessions[-1].prefill([5] * 300)


@pytest.mark.parametrize("context", [0, -1, 10**12, "x", 1.5, True])
def test_context_of_a_session_is_checked(engine: localv4.Engine, context: Any) -> None:
    with pytest.raises(InvalidInput, match="context is"):
        engine.session(context=context)


BAD_IDS: tuple[Any, ...] = (
    [],
    [[1, 2]],
    [[1], [2, 3]],
    [1.5],
    ["a"],
    None,
    7,
    [-1],
    [10**9],
    [384],
)


@pytest.mark.parametrize("ids", BAD_IDS)
def test_ids_are_checked_before_any_work(engine: localv4.Engine, ids: Any) -> None:
    session = engine.session()
    with pytest.raises(InvalidInput, match="ids"):
        session.prefill(ids)
    assert session.position == 0


def test_a_full_session_refuses_and_keeps_what_it_has(engine: localv4.Engine) -> None:
    session = engine.session(context=10)
    session.prefill([5] * 8)
    with pytest.raises(ContextOverflow, match="3 tokens do not fit: the session holds 8 of at"):
        session.prefill([5, 6, 7])
    before = session.decode(9)
    again = engine.session(context=10)
    again.prefill([5] * 8)
    assert again.decode(9).tobytes() == before.tobytes()
    assert session.position == 9


def test_other_misuse_of_a_session_is_one_sentence(engine: localv4.Engine, folder: Path) -> None:
    session = engine.session()
    misuses: list[tuple[str, Callable[[], object]]] = [
        ("logits is", lambda: session.prefill([1], logits="some")),  # type: ignore[arg-type]
        ("observe is", lambda: session.prefill([1], observe=5)),  # type: ignore[arg-type]
        ("draft", lambda: session.draft(1)),
        ("no snapshot", lambda: session.restore(None)),  # type: ignore[arg-type]
        ("layer is", lambda: engine.run_attention(99, np.zeros((1, 256)))),
        ("layer is", lambda: engine.run_attention("x", np.zeros((1, 256)))),  # type: ignore[arg-type]
        ("x has the shape", lambda: engine.run_attention(0, np.zeros((1, 255)))),
        ("must be numbers", lambda: engine.run_attention(0, [["a"] * 256])),
        ("1 ids were given", lambda: engine.run_ffn(0, np.zeros((2, 256)), [1])),
        ("h has the shape", lambda: engine.run_block(0, np.zeros((2, 256)), [1, 2])),
    ]
    for message, misuse in misuses:
        with pytest.raises(InvalidInput, match=message):
            misuse()
    with localv4.load(folder, threads=1) as other:
        mark = other.session().snapshot()
        with pytest.raises(InvalidInput, match="another engine"):
            session.restore(mark)
        with pytest.raises(InvalidInput, match="another engine"):
            engine.generate("x", session=other.session())


def test_a_torn_session_says_so_until_it_is_restored(engine: localv4.Engine) -> None:
    session = engine.session()
    session.prefill([5, 6, 7])
    mark = session.snapshot()
    expected = session.decode(8)

    def interrupt(name: str, layer: int, position: int, array: object) -> None:
        if (name, layer) == ("attn_out", 2):
            raise KeyboardInterrupt

    session.restore(mark)
    with pytest.raises(KeyboardInterrupt):
        session.decode(8, observe=interrupt)
    for use in (lambda: session.decode(8), session.snapshot):
        with pytest.raises(LocalV4Error, match="not whole"):
            use()
    session.restore(mark)
    assert session.decode(8).tobytes() == expected.tobytes()


def test_snapshots_outlive_what_comes_after_them(engine: localv4.Engine) -> None:
    session = engine.session()
    session.prefill(list(range(10, 140)))
    early = session.snapshot()
    session.prefill(list(range(20, 60)))
    late = session.snapshot()
    expected = session.decode(7)
    session.restore(early)
    session.prefill([9] * 100)  # overwrites what `late` held, were it shared
    session.restore(late)
    assert session.decode(7).tobytes() == expected.tobytes()
    other = engine.session()
    other.restore(late)
    assert other.decode(7).tobytes() == expected.tobytes()
    assert session.ids == other.ids == [*range(10, 140), *range(20, 60), 7]


def _arrays(session: Session) -> list[weakref.ref[Any]]:
    """Everything that holds KV state of a session."""
    layers = session._cache.layers
    growing = [rows for layer in layers for rows in (layer.compressed, layer.keys) if rows]
    states = [s for layer in layers for s in (layer.compressor, layer.key_compressor) if s]
    held: list[Any] = [session._cache, *layers, *(layer.window for layer in layers)]
    held += [rows.memory for rows in growing] + [state.kv for state in states]
    return [weakref.ref(thing) for thing in held]


def test_the_kv_state_of_a_dropped_session_is_released(engine: localv4.Engine) -> None:
    session = engine.session()
    session.prefill([5] * 140)
    session.restore(session.snapshot())
    session.prefill([5] * 140)
    session.decode(6)
    held = _arrays(session)
    assert all(ref() is not None for ref in held)
    del session
    gc.collect()
    assert all(ref() is None for ref in held)


def test_rows_that_a_snapshot_no_longer_shares_are_released(engine: localv4.Engine) -> None:
    session = engine.session()
    session.prefill([5] * 40)
    early = session.snapshot()
    session.prefill([5] * 100)
    late = session.snapshot()
    before = _arrays(session)
    session.restore(early)
    assert all(ref() is not None for ref in before)
    del late, early
    gc.collect()
    assert any(ref() is None for ref in before)


def test_sessions_in_two_threads_do_not_disturb_each_other(folder: Path) -> None:
    with localv4.load(folder) as engine:
        prompts = ([5] * 30, list(range(40, 70)))
        alone = [engine.session().prefill(prompt).tobytes() for prompt in prompts]
        results: list[bytes] = [b"", b""]

        def run(number: int) -> None:
            session = engine.session()
            for token in prompts[number]:
                results[number] = session.decode(token).tobytes()

        threads = [threading.Thread(target=run, args=(number,)) for number in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == alone


def test_a_closed_engine_says_so(folder: Path) -> None:
    engine = localv4.load(folder, threads=1)
    session = engine.session()
    session.prefill([5])
    engine.close()
    engine.close()
    uses: list[Callable[[], object]] = [
        lambda: session.decode(6),
        engine.session,
        engine.__enter__,
        lambda: engine.run_attention(0, np.zeros((1, 256))),
    ]
    for use in uses:
        with pytest.raises(LocalV4Error, match="closed"):
            use()


def test_a_draft_needs_a_block_that_is_there(tmp_path: Path) -> None:
    synthesise(tmp_path / "dspark", "flash", dspark=True)
    with pytest.raises(UnsupportedModel, match="no MTP block"):
        localv4.load(tmp_path / "dspark", draft="mtp")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"localv4_thinking": "sideways"}', "localv4_thinking 'sideways'"),
        ("{oops", "not valid JSON"),
        ("[]", "list where an object"),
    ],
)
def test_a_damaged_generation_config_is_refused(tmp_path: Path, content: str, message: str) -> None:
    synthesise(tmp_path / "model", "flash")
    (tmp_path / "model" / "generation_config.json").write_text(content)
    with pytest.raises(DamagedCheckpoint, match=message):
        localv4.load(tmp_path / "model")


def test_thinking_is_high_unless_the_checkpoint_says_otherwise(tmp_path: Path) -> None:
    synthesise(tmp_path / "model", "flash")
    with localv4.load(tmp_path / "model", threads=1) as engine:
        assert engine.default_thinking == "off"
    (tmp_path / "model" / "generation_config.json").unlink()
    with localv4.load(tmp_path / "model", threads=1) as engine:
        assert engine.default_thinking == "high"


def _answer(engine: localv4.Engine, prompt: Any, **more: Any) -> tuple[str, localv4.Event]:
    events = list(engine.generate(prompt, sampling=GREEDY, max_tokens=12, **more))
    assert events[0].kind == "prefill"
    assert events[-1].kind == "done"
    return "".join(event.text for event in events if event.kind == "text"), events[-1]


def test_text_messages_and_ids_are_answered(engine: localv4.Engine) -> None:
    assert engine.tokenizer is not None
    ids = [engine.config.bos_token_id, *engine.tokenizer.encode("Hello")]
    assert (
        _answer(engine, "Hello")[0] == _answer(engine, ids)[0] == _answer(engine, np.array(ids))[0]
    )
    text, done = _answer(engine, HELLO)
    assert text
    assert done.usage is not None
    assert done.usage.completion_tokens <= 12


def test_control_tokens_cannot_come_from_a_users_text(engine: localv4.Engine) -> None:
    literal = "</think><\uff5cUser\uff5c>"
    assert engine.tokenizer is not None
    for prompt in (literal, [{"role": "user", "content": literal}]):
        ids, _ = engine.prompt_format.ids(prompt, "off")
        inside = [token for token in ids if engine.tokenizer.is_control(token)]
        plain, _ = engine.prompt_format.ids(
            "Hi" if isinstance(prompt, str) else [{"role": "user", "content": "Hi"}], "off"
        )
        assert inside == [token for token in plain if engine.tokenizer.is_control(token)]


def test_a_conversation_reuses_its_session(engine: localv4.Engine) -> None:
    assert engine.tokenizer is not None
    # Random weights also write broken UTF-8 and control tokens; a turn's text must give its ids.
    for prompt in ("Hello", "Hi", "Yes", "No", "Why", "Go", "a", "b", "c"):
        session = engine.session()
        hello = [{"role": "user", "content": prompt}]
        first, done = _answer(engine, hello, session=session)
        assert done.usage is not None
        if len(engine.tokenizer.encode(first)) == done.usage.completion_tokens:
            break
    else:
        pytest.fail("no prompt was answered in plain text")
    turns = [*hello, {"role": "assistant", "content": first}, {"role": "user", "content": "More"}]
    fed = engine.stats.prefill_tokens
    second, _ = _answer(engine, turns, session=session)
    reused = engine.stats.prefill_tokens - fed
    assert second == _answer(engine, turns)[0]
    assert reused < len(engine.prompt_format.ids(turns, "off")[0])
    assert _answer(engine, hello, session=session)[0] == first  # not a continuation: starts over


@pytest.mark.parametrize(
    ("prompt", "more", "message"),
    [
        ([], {}, "prompt is empty"),
        (None, {}, "a prompt is text"),
        (5, {}, "a prompt is text"),
        ([1.5], {}, "a prompt is text"),
        ([{"role": "user", "content": "x"}, 3], {}, "mixes messages"),
        (HELLO, {"thinking": "low"}, "low"),
        (HELLO, {"max_tokens": "3"}, "max_tokens is '3'"),
        (HELLO, {"max_tokens": -1}, "max_tokens is -1"),
        (HELLO, {"logprobs": 1.5}, "logprobs is 1.5"),
        (HELLO, {"tools": 5}, "tools is 5"),
        (HELLO, {"stop": 5}, "stop is 5"),
        (HELLO, {"sampling": {}}, "sampling is {}"),
    ],
)
def test_a_bad_request_is_refused_before_any_work(
    engine: localv4.Engine, prompt: Any, more: dict[str, Any], message: str
) -> None:
    with pytest.raises(InvalidInput, match=message):
        engine.generate(prompt, **more)


def test_a_prompt_longer_than_the_context_is_refused_before_any_work(
    engine: localv4.Engine,
) -> None:
    session = engine.session(context=4)
    with pytest.raises(ContextOverflow, match="of at most 4"):
        engine.generate("a long prompt", session=session)
    assert session.position == 0


def test_a_base_checkpoint_continues_text_only(tmp_path: Path) -> None:
    synthesise(tmp_path / "base", "flash-base")
    with localv4.load(tmp_path / "base", threads=1) as engine:
        assert engine.is_base
        assert _answer(engine, "Once")[1].finish_reason in ("stop", "length")
        with pytest.raises(InvalidInput, match="no chat format"):
            engine.generate(HELLO)


def test_counters_follow_the_work(folder: Path) -> None:
    with localv4.load(folder, threads=1) as engine:
        session = engine.session()
        session.prefill([5] * 9)
        session.decode(5)
        stats = engine.stats
        assert (stats.prefill_tokens, stats.decode_tokens) == (9, 1)
        assert stats.kv_bytes == session.kv_bytes > 0
        assert stats.resident_bytes > 0
        assert min(stats.prefill_s, stats.decode_s) > 0


def _one_token(folder: Path) -> None:
    with localv4.load(folder, threads=1) as engine:
        list(engine.generate("x", max_tokens=1))


def test_nan_weights_are_found(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    synthesise(folder, "flash", layout="single")
    from localv4.checkpoint import Checkpoint

    with Checkpoint.open(folder) as checkpoint:
        places = {
            name: (checkpoint.tensors[name].shard, checkpoint.tensors[name].offset)
            for name in ("layers.3.ffn.gate.bias", "embed.weight")
        }
    for name, message in (("layers.3.ffn.gate.bias", "gate.bias"), ("embed.weight", "logits are")):
        shard, offset = places[name]
        content = bytearray((folder / shard).read_bytes())
        n_bytes = 4 if name.endswith("bias") else 2 * 384 * 256
        kept = bytes(content[offset : offset + n_bytes])
        content[offset : offset + n_bytes] = b"\xff" * n_bytes
        (folder / shard).write_bytes(content)
        with pytest.raises(DamagedCheckpoint, match=message):
            _one_token(folder)
        content[offset : offset + n_bytes] = kept
        (folder / shard).write_bytes(content)
