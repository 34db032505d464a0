"""From what a caller gives as a prompt to token ids, and from an answer's ids to its text.

A list of ids is taken as it is, a string is text without a template, a list of messages is
rendered in the chat format.  Control tokens come from ids and from the template alone, never
from a caller's text.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from localv4.encoding import Profile, ThinkingMode, render, thinking_arguments
from localv4.encoding.literals import ASSISTANT, USER
from localv4.errors import InvalidInput
from localv4.reader import CompletionReader, read_all
from localv4.tokenizer import Tokenizer

__all__ = ["Prompt", "PromptFormat", "with_tools"]

Messages = Sequence[Mapping[str, Any]]
_WRONG_TYPE = "a prompt is text, a list of messages or a list of token ids; this is none of them"
Prompt = str | Sequence[int] | Messages
_WORTH_A_STEP = 64  # tokens


def with_tools(messages: Messages, tools: Sequence[Mapping[str, Any]] | None) -> Messages:
    """Return the messages with tools offered in the first system message (made if missing)."""
    if not tools:
        return messages
    if messages and messages[0].get("role") == "system":
        return [{**messages[0], "tools": list(tools)}, *messages[1:]]
    return [{"role": "system", "content": "", "tools": list(tools)}, *messages]


def _as_ids(prompt: Sequence[object]) -> list[int]:
    """Return a list of ids, NumPy's integers included."""
    try:
        return [operator.index(token) for token in prompt]  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput(_WRONG_TYPE) from None


@dataclass(frozen=True)
class PromptFormat:
    """How this checkpoint wants its prompts.

    Attributes
    ----------
    tokenizer
        None if the checkpoint has none; prompts are then lists of ids.
    profile
        How reasoning effort is asked for.
    has_chat
        False for a Base checkpoint, which has no chat format.
    bos_token_id
        Begins every text.
    """

    tokenizer: Tokenizer | None
    profile: Profile
    has_chat: bool
    bos_token_id: int

    def ids(
        self,
        prompt: Prompt,
        thinking: str,
        tools: Sequence[Mapping[str, Any]] | None = None,
        continues: bool = False,
    ) -> tuple[list[int], ThinkingMode | None]:
        """Return token ids, and how the completion begins (None: plain text).

        Parameters
        ----------
        prompt
            Ids, text or messages.
        thinking
            "off", "low", "high" or "max", for messages.
        tools
            Offered to the model, for messages.
        continues
            A text goes on from tokens that are there already, so BOS is not added.

        Raises
        ------
        InvalidInput
            An empty prompt, text for a checkpoint without a tokenizer, messages for a Base
            checkpoint, or a thinking level that the profile lacks.
        FormatError
            Messages that the chat format cannot render.
        """
        if isinstance(prompt, str):
            text = self._tokenizer().encode(prompt)
            return (text if continues else [self.bos_token_id, *text]), None
        if not isinstance(prompt, Sequence | np.ndarray):
            raise InvalidInput(_WRONG_TYPE)
        if not len(prompt):
            raise InvalidInput("the prompt is empty; give text, messages or at least one token id")
        messages = [item for item in prompt if isinstance(item, Mapping)]
        if not messages:
            return _as_ids(prompt), None
        if len(messages) < len(prompt):
            raise InvalidInput("the prompt mixes messages with something else; give only messages")
        if not self.has_chat:
            raise InvalidInput(
                "a Base checkpoint has no chat format; give text to be continued "
                "(localv4 run --raw), not messages"
            )
        mode, effort = thinking_arguments(thinking, self.profile)
        pieces = render(
            [dict(message) for message in with_tools(messages, tools)],
            mode,
            reasoning_effort=effort,
            profile=self.profile,
        )
        return self._tokenizer().encode_pieces(pieces), mode

    def answer(self, ids: Sequence[int], thinking: str) -> tuple[str, str]:
        """Return what all tokens of an answer to messages say: reasoning, and answer text.

        Raises
        ------
        InvalidInput
            The profile has no such thinking level.
        """
        mode, _ = thinking_arguments(thinking, self.profile)
        said, let_out = read_all(CompletionReader(self._tokenizer(), mode), ids)
        texts = {"reasoning": "", "text": ""}
        for event in (*said, *let_out):
            if event.kind in texts:
                texts[event.kind] += event.text
        return texts["reasoning"], texts["text"]

    def branches(self, ids: Sequence[int], mode: ThinkingMode) -> tuple[int, ...]:
        """Return where a rendered conversation may go on in another way than it does.

        The end of what stands before the first question, and the last question's end: with
        thinking, the next prompt leaves out what is thought behind it; else for another try, if
        reading the question again would cost more than a step of its own.
        """
        assert self.tokenizer is not None
        user, assistant = (self.tokenizer.control_id(literal) for literal in (USER, ASSISTANT))
        if user not in ids or assistant not in ids:
            return ()
        opening, backwards = ids.index(user), ids[::-1]
        question_end = len(ids) - backwards.index(assistant)
        n_question = question_end - (len(ids) - 1 - backwards.index(user))
        found = [opening] if opening >= _WORTH_A_STEP else []
        if mode == "thinking" or n_question >= _WORTH_A_STEP:
            found.append(question_end)
        return tuple(found)

    def _tokenizer(self) -> Tokenizer:
        if self.tokenizer is None:
            raise InvalidInput(
                "this checkpoint has no tokenizer.json; give the prompt as a list of token ids"
            )
        return self.tokenizer
