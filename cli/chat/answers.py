"""Questions put to the engine, and what becomes of their answers in the conversation.

A failed turn leaves everything as it was, a stopped one is kept.
"""

import secrets
from typing import TYPE_CHECKING

from localv4.cli.chat.conversations import Unfinished
from localv4.cli.chat.turns import Request, Turn
from localv4.cli.writers import Answer
from localv4.errors import ContextOverflow, InvalidInput

if TYPE_CHECKING:
    from localv4.cli.chat.talk import Talk

__all__ = ["ask", "more", "retry"]

_FULL = 0.9  # of the context, from which on it is said


def ask(talk: "Talk", text: str) -> bool:
    """Answer one message; return whether there is an answer now."""
    files = [f"{name}:\n\n{content}" for name, content in talk.attached]
    said = {"role": "user", "content": "\n\n".join([*files, text])}
    talk.draft = text
    conversation, knobs, think = talk.conversation, talk.knobs, talk.think
    conversation.think = think
    seed = secrets.randbits(53) if knobs.seed is None else knobs.seed
    messages = [*conversation.prompt, said]
    request = Request(messages, think, knobs.sampling(seed), knobs.max_tokens)
    turn = Turn(talk.engine, talk.session, talk.output, talk.thoughts, Answer())
    is_answered = False
    try:
        _stream(talk, turn, request)
    finally:
        answer = turn.answer
        if answer.text or answer.reasoning or answer.finish_reason == "stop":
            is_answered = True
            conversation.add(said, _reply(answer), unfinished=_unfinished(turn, seed, think))
            talk.attached.clear()
            talk.draft = ""
            talk.answered_with = knobs, think
    if is_answered:
        _say_how_it_ended(talk, turn)
    return is_answered


def more(talk: "Talk") -> None:
    """Go on with an answer that ended early.

    Raises
    ------
    InvalidInput
        There is none.
    """
    conversation = talk.conversation
    before = conversation.unfinished
    if before is None:
        raise InvalidInput("there is no answer that ended early; /retry asks again")
    *prompt, last = conversation.prompt
    # A character that was cut in two comes whole now.
    text, reasoning = last["content"], last.get("reasoning_content", "")
    answer = Answer(text.removesuffix("\ufffd"), reasoning.removesuffix("\ufffd"))
    sampling, max_tokens = talk.knobs.sampling(before.seed), talk.knobs.max_tokens
    turn = Turn(talk.engine, talk.session, talk.output, talk.thoughts, answer)
    try:
        _stream(talk, turn, Request(prompt, before.think, sampling, max_tokens, before.ids))
    finally:
        if turn.n_new:
            conversation.messages[-1] = _reply(answer)
            conversation.unfinished = _unfinished(turn, before.seed, before.think)
            conversation.unsaved = True
    _say_how_it_ended(talk, turn)


def retry(talk: "Talk", text: str | None = None) -> None:
    """Ask the last question again, or another one in its place; the old answer stays if none comes.

    Raises
    ------
    InvalidInput
        There is none, or the same answer would come again.
    """
    conversation = talk.conversation
    if not conversation.messages:
        raise InvalidInput("nothing was asked that could be asked again; say something first")
    if text is None and talk.knobs.is_fixed and talk.answered_with == (talk.knobs, talk.think):
        go_on = "" if conversation.unfinished is None else "/more goes on with it, "
        raise InvalidInput(
            f"the same answer would come again; {go_on}/set seed none or /set temperature 1 "
            "changes that"
        )
    before = [*conversation.messages], conversation.unfinished, conversation.unsaved
    question = conversation.messages[-2]["content"]
    conversation.take_back(1)
    try:
        ask(talk, question if text is None else text)
    finally:
        if len(conversation.messages) < len(before[0]):
            conversation.messages, conversation.unfinished, conversation.unsaved = before
            talk.draft = "" if text is None else text


def _stream(talk: "Talk", turn: Turn, request: Request) -> None:
    try:
        turn.stream(request)
    except ContextOverflow as error:
        if not talk.conversation.messages:
            raise
        words = str(error).partition(";")[0]
        raise ContextOverflow(f"{words}; {_full_advice(talk)}") from None
    finally:
        if turn.answer.finish_reason == "interrupted":
            talk.press()


def _reply(answer: Answer) -> dict[str, str]:
    reply = {"role": "assistant", "content": answer.text}
    if answer.reasoning:
        reply["reasoning_content"] = answer.reasoning
    return reply


def _unfinished(turn: Turn, seed: int, think: str) -> Unfinished | None:
    if turn.answer.finish_reason == "stop" or not turn.ids:
        return None
    return Unfinished(turn.ids, seed, think)


def _say_how_it_ended(talk: "Talk", turn: Turn) -> None:
    """Say why there is no more of an answer, if the model did not end it."""
    answer, session = turn.answer, talk.session
    if answer.finish_reason == "stop" and not answer.text:
        talk.output.note("(the answer is empty; /retry asks again)")
    if answer.finish_reason == "length":
        limit, n_new = talk.knobs.max_tokens, answer.usage["completion_tokens"]
        if limit is None or n_new < limit:
            talk.output.warning(f"the context is full; {_full_advice(talk)}")
        elif answer.text:
            said = f"(cut after {n_new:,} tokens, as max_tokens says; /more goes on)"
            talk.output.note(said)
        else:
            n_tokens = f"all {len(turn.ids):,} tokens went into thinking"
            talk.output.note(f"no answer yet: {n_tokens}; /more continues")
    elif session.position >= _FULL * session.context and not talk.is_warned:
        talk.is_warned = True
        share = session.position / session.context
        talk.output.warning(f"{share:.0%} of the context is in use; {_full_advice(talk)}")
    talk.output.gap()


def _full_advice(talk: "Talk") -> str:
    most = talk.engine.config.max_position_embeddings
    larger = ", or start again with a larger --context" if talk.session.context < most else ""
    return f"/new starts over{larger}"
