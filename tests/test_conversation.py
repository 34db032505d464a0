"""A chat reads what is new, and nothing twice."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import localv4
from localv4.encoding.literals import ASSISTANT, ENDTHINK
from localv4.errors import ContextOverflow, InvalidInput
from tests.conversations import converse, model


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[localv4.Engine]:
    with localv4.load(model(tmp_path_factory.mktemp("chat") / "model")) as opened:
        yield opened


def test_with_thinking_each_turn_reads_what_is_new(engine: localv4.Engine) -> None:
    turns = converse(engine, engine.session(), ["high"] * 10)
    assert [turn.read for turn in turns] == [turn.new for turn in turns]
    assert turns[-1].read < turns[-1].prompt / 4


def test_without_thinking_too(engine: localv4.Engine) -> None:
    turns = converse(engine, engine.session(), ["off"] * 10)
    assert all(turn.read == turn.new for turn in turns if turn.goes_on)
    assert sum(turn.goes_on for turn in turns) >= 2
    # an answer that is another one by its text is read again, behind the last snapshot
    assert all(turn.new <= turn.read <= turn.new + 250 for turn in turns)
    assert turns[-1].read < turns[-1].prompt / 4


def ask(engine: localv4.Engine, session: localv4.session.Session, *texts: str) -> int:
    """Ask the last of some questions, all others answered with "x"; return the tokens read."""
    messages = [{"role": "system", "content": "You are terse. " * 10}]
    for text in texts[:-1]:
        messages += [{"role": "user", "content": text}, {"role": "assistant", "content": "x"}]
    messages.append({"role": "user", "content": texts[-1]})
    before = engine.stats.prefill_tokens
    for _ in engine.generate(messages, max_tokens=3, session=session, thinking="high"):
        pass
    return engine.stats.prefill_tokens - before


def test_another_try_reads_one_token(engine: localv4.Engine) -> None:
    session = engine.session()
    question = "why? " * 40
    assert ask(engine, session, question) > 200
    assert ask(engine, session, question) == 1


def test_another_conversation_keeps_the_system_prompt(engine: localv4.Engine) -> None:
    session = engine.session()
    whole = ask(engine, session, "why? " * 40)
    ask(engine, session, "why? " * 40, "how?")
    anew = ask(engine, session, "when? " * 40)
    assert anew < whole
    fresh = engine.session()
    assert ask(engine, fresh, "when? " * 40) == anew + len("You are terse. " * 10) + 1


def test_an_interrupted_prompt_goes_on_where_it_was(
    engine: localv4.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.session()
    monkeypatch.setattr(session, "chunk_tokens", 100)
    messages = [{"role": "user", "content": "why? " * 80}]
    seen: list[tuple[int, int]] = []

    def progress(done: int, total: int) -> None:
        seen.append((done, total))
        if done >= 150:
            generation.interrupt()

    generation = engine.generate(messages, max_tokens=3, session=session, progress=progress)
    events = list(generation)
    assert [event.kind for event in events] == ["done"]
    assert events[0].finish_reason == "interrupted"
    assert session.position == 200
    assert seen == sorted(seen)
    assert seen[-1][0] == 200
    n_prompt = seen[0][1]
    assert session.position + len(generation.pending_ids) == n_prompt
    before = engine.stats.prefill_tokens
    for _ in engine.generate(messages, max_tokens=3, session=session):
        pass
    assert engine.stats.prefill_tokens - before == n_prompt - 200


def test_a_failed_chunk_is_taken_back(engine: localv4.Engine) -> None:
    session, direct = engine.session(), engine.session()
    expected = direct.prefill([5] * 300, logits="all")

    def fail(name: str, layer: int, position: int, array: object) -> None:
        if (name, layer, position) == ("ffn_in", 1, 150):
            raise KeyboardInterrupt

    ours = [session.prefill([5] * 150, logits="all")]
    with pytest.raises(KeyboardInterrupt):
        session.prefill([5] * 150, observe=fail)
    assert session.position == 150
    ours.append(session.prefill([5] * 150, logits="all"))
    assert b"".join(part.tobytes() for part in ours) == expected.tobytes()


def test_what_is_kept_gives_way_to_a_longer_context(
    engine: localv4.Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = engine.session()
    for _ in range(5):
        session.prefill([5] * 20)
        session.keep()
    assert len([*session._history.kept]) == 5
    monkeypatch.setattr(engine._ledger, "most", engine._ledger.n_bytes)
    session.prefill([5] * 600)
    assert len([*session._history.kept]) < 5
    session.keep()  # there is room for one that was dropped, or for none: never an error
    assert session.position == 700


def test_a_conversation_that_is_too_long_is_refused_before_anything_is_lost(
    engine: localv4.Engine,
) -> None:
    session = engine.session(context=300)
    assert ask(engine, session, "why?") > 0
    held = session.ids
    with pytest.raises(ContextOverflow, match=r"\d+ tokens do not fit a context of 300"):
        ask(engine, session, "why? " * 100)
    assert session.ids == held


def test_branches_of_a_conversation(engine: localv4.Engine) -> None:
    assert engine.tokenizer is not None
    assistant = engine.tokenizer.control_id(ASSISTANT)
    messages = [{"role": "user", "content": "hello"}]
    for level, expected in (("high", 1), ("off", 0)):
        ids, mode = engine.prompt_format.ids(messages, level)
        assert mode is not None
        places = engine.prompt_format.branches(ids, mode)
        assert len(places) == expected
        assert all(ids[place - 1] == assistant for place in places)
    assert engine.prompt_format.branches([5, 6], "thinking") == ()


def test_an_answer_goes_on_where_it_was_stopped(engine: localv4.Engine, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "why? " * 40}]

    def answer(
        session: localv4.Session, max_tokens: int, begun: tuple[int, ...] = ()
    ) -> tuple[tuple[int, ...], int]:
        before = engine.stats.prefill_tokens
        generation = engine.generate(
            messages,
            localv4.SamplingParams(seed=7),
            max_tokens=max_tokens,
            session=session,
            thinking="high",
            begun=begun,
        )
        for _ in generation:
            pass
        return generation.ids, engine.stats.prefill_tokens - before

    whole, _ = answer(engine.session(), 20)
    session = engine.session()
    first, n_read = answer(session, 8)
    assert n_read > 200
    session.save(tmp_path / "stopped")
    assert answer(session, 12, first) == (whole[8:], 1)
    loaded = engine.load_session(tmp_path / "stopped")
    assert answer(loaded, 12, first) == (whole[8:], 1)
    # without its state it is read again, and goes on all the same
    assert answer(engine.session(), 12, first) == (whole[8:], n_read + 8)


def test_only_an_answer_to_messages_goes_on(engine: localv4.Engine) -> None:
    with pytest.raises(InvalidInput, match="only an answer to messages"):
        engine.generate("Once", begun=[5])


def test_what_an_answer_says_can_be_read_from_its_tokens(engine: localv4.Engine) -> None:
    generation = engine.generate(
        [{"role": "user", "content": "why?"}],
        localv4.SamplingParams(seed=3),
        max_tokens=30,
        thinking="high",
    )
    said = "".join(event.text for event in generation if event.kind == "reasoning")
    ids = generation.ids
    assert engine.prompt_format.answer(ids, "high") == (said, "")
    assert engine.prompt_format.answer(ids, "off") == ("", said)
    assert engine.tokenizer is not None
    end = engine.tokenizer.control_id(ENDTHINK)
    assert end is not None
    assert engine.prompt_format.answer([*ids[:9], end, *ids[9:]], "high")[1] != ""
