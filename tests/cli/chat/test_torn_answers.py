"""An answer of the real engine that is torn off, and goes on as if it had not been."""

import os
import signal
from typing import Any

import pytest

from localv4.cli.chat.turns import Request, Turn
from localv4.cli.output import Output
from localv4.cli.writers import Answer
from tests.small_checkpoints import never_ending

MESSAGES = [{"role": "user", "content": "why?"}]


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    import localv4
    from localv4.synthetic import synthesise

    folder = tmp_path_factory.mktemp("torn") / "model"
    synthesise(folder, compress_ratios=(0, 4))
    never_ending(folder)
    with localv4.load(folder) as opened:
        yield opened


def turn(
    engine: Any, session: Any, max_tokens: int, begun: tuple[int, ...], answer: Answer
) -> Turn:
    import localv4

    taken = Turn(engine, session, Output(-1), "hide", answer)
    sampling = localv4.SamplingParams(seed=5)
    taken.stream(Request(MESSAGES, "off", sampling, max_tokens, begun))
    return taken


@pytest.mark.parametrize("n_tokens", [2, 7, 12])
@pytest.mark.usefixtures("capsys")
def test_a_second_ctrl_c_tears_an_answer_that_more_mends(engine, n_tokens, monkeypatch):
    whole = turn(engine, engine.session(), 30, (), Answer())
    session = engine.session()
    decode, calls = session.decode, []

    def torn(token_id):
        calls.append(token_id)
        if len(calls) == n_tokens:
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
        return decode(token_id)

    monkeypatch.setattr(session, "decode", torn)
    first = turn(engine, session, 30, (), Answer())
    assert first.answer.finish_reason == "interrupted"
    assert first.ids == whole.ids[:n_tokens]
    # half a character, as if the answer had ended there
    assert whole.answer.text.startswith(first.answer.text.removesuffix("\ufffd"))
    monkeypatch.setattr(session, "decode", decode)
    begun = Answer(first.answer.text.removesuffix("\ufffd"))
    rest = turn(engine, session, 30 - n_tokens, first.ids, begun)
    assert rest.ids == whole.ids
    assert rest.answer.text == whole.answer.text
