"""The prompts of ``--prompts``: JSON lines, all checked before a model is opened.

A line is a text, or an object with a ``prompt`` or ``messages``, an ``id``, and parameters that win
over the flags. Knows nothing of answers.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

from localv4.cli.answering import Parameters, Request
from localv4.cli.input_files import parse_json, read_file, read_stdin
from localv4.encoding import render
from localv4.errors import FormatError, InvalidInput
from localv4.settings import Settings, Think
from localv4.sizes import shown

__all__ = ["Entry", "read_prompts"]

_PARAMETERS = tuple(Parameters.__dataclass_fields__)
_MEMBERS = ("prompt", "messages", "id", *_PARAMETERS)
_CHAT_ONLY = ("messages", "system", "think")
_FLOATS = ("temperature", "top_p", "min_p")
_KEY_CHARACTERS = 16


@dataclass(frozen=True)
class Entry:
    """One prompt of a file.

    Attributes
    ----------
    index
        Number of its line, from 0.
    id
        What its line calls it.
    key
        A digest of all that decides the answer.
    request
        What is asked.
    """

    index: int
    id: str | int | float | None
    key: str
    request: Request

    @property
    def head(self) -> str:
        """How the line of its answer begins."""
        named = {"index": self.index, "id": self.id, "key": self.key}
        return json.dumps(named, ensure_ascii=False).removesuffix("}")


def read_prompts(path: Path, base: Request, raw: bool, settings: Settings) -> list[Entry]:
    """Return the prompts of a file.

    Parameters
    ----------
    path
        JSON lines; ``-`` is standard input.
    base
        What the flags say; its prompt is not looked at.
    raw
        Whether texts are continued without a template.
    settings
        Which model is to answer, and how exactly.

    Raises
    ------
    InvalidInput
        If the file cannot be read, or a line of it is no prompt.
    """
    text, name = (
        (read_stdin(), "standard input")
        if str(path) == "-"
        else (read_file(path, "--prompts"), str(path))
    )
    entries = []
    # Not splitlines: JSON may hold other line ends inside a text.
    for index, line in enumerate(text.split("\n")):
        if line.strip():
            place = f"{name} line {index + 1}"
            members = _members(parse_json(line, place), place, raw)
            try:
                request = _request(members, base, raw)
            except (FormatError, InvalidInput) as error:
                raise InvalidInput(f"{place}: {error}") from None
            key = _key(request, settings)
            entries.append(Entry(index, members.get("id"), key, request))
    if not entries:
        raise InvalidInput(f"{name} holds no prompts; write a JSON text or object a line")
    return entries


def _members(value: object, place: str, raw: bool) -> dict[str, Any]:
    """Return a line's members, as far as they are told apart; null is as if it were not there."""
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise InvalidInput(f"{place} is {shown(value)}; write a JSON text or object a line")
    for name in value:
        if name not in _MEMBERS:
            known = ", ".join(_MEMBERS)
            raise InvalidInput(f"{place} has the unknown member {shown(name)}; known are {known}")
        if raw and name in _CHAT_ONLY:
            raise InvalidInput(f"{place} has {name!r}, and --raw has no template; leave one out")
    members = {name: given for name, given in value.items() if given is not None}
    if ("prompt" in members) == ("messages" in members):
        raise InvalidInput(f"{place} needs either a prompt or messages; give one of them")
    name = members.get("id", "")
    if isinstance(name, bool) or not isinstance(name, str | int | float):
        raise InvalidInput(f"{place} has the id {shown(name)}; give a text or a number")
    return members


def _request(members: dict[str, Any], base: Request, raw: bool) -> Request:
    """Return what a line asks for."""
    parameters = _parameters(members, base.parameters)
    if "prompt" in members:
        prompt = members["prompt"]
        if not isinstance(prompt, str) or not prompt:
            raise InvalidInput(f"the prompt is {shown(prompt)}; give a text that is not empty")
        if raw:
            return replace(base, prompt=prompt, parameters=parameters)
        said = [{"role": "user", "content": prompt}]
        conversation = _conversation(said, parameters.system, "system" in members)
        return replace(base, prompt=conversation, parameters=parameters)
    conversation = _conversation(members["messages"], parameters.system, "system" in members)
    if base.tools and any(message.get("tools") for message in conversation):
        raise InvalidInput("a message has tools of its own beside --tools; leave out one of them")
    render(conversation, "chat")  # finds what the model's own rendering would
    return replace(base, prompt=conversation, parameters=parameters)


def _conversation(messages: object, system: str | None, is_own: bool) -> list[dict[str, Any]]:
    """Return messages behind a system message; one they have wins over that of the flag."""
    if not isinstance(messages, list) or not messages:
        raise InvalidInput(f"messages are {shown(messages)}; give a list of at least one")
    for place, message in enumerate(messages):
        if not isinstance(message, dict):
            raise InvalidInput(f"message {place} is {shown(message)}; a message is an object")
    has_system = messages[0].get("role") == "system"
    if has_system and is_own:
        raise InvalidInput("there are two system messages; leave out system or the first message")
    if system is None or has_system:
        return messages
    return [{"role": "system", "content": system}, *messages]


def _parameters(members: dict[str, Any], base: Parameters) -> Parameters:
    given: dict[str, Any] = {name: members[name] for name in _PARAMETERS if name in members}
    for name, check in _CHECKS.items():
        if name in given:
            given[name] = check(given[name])
    changed = replace(base, **given)
    changed.sampling(changed.seed)
    # 1 and 1.0 are the same parameter.
    floats: dict[str, Any] = {name: float(getattr(changed, name)) for name in _FLOATS}
    return replace(changed, **floats)


def _system(value: object) -> object:
    if not isinstance(value, str):
        raise InvalidInput(f"system is {shown(value)}; give a text")
    return value


def _max_tokens(value: object) -> object:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise InvalidInput(f"max_tokens is {shown(value)}; give a whole number of at least 1")
    return value


def _stop(value: object) -> object:
    texts = value if isinstance(value, list) else [value]
    if not all(isinstance(text, str) and text for text in texts):
        raise InvalidInput(f"stop is {shown(value)}; give a text, or a list of texts")
    return tuple(texts)


def _think(value: object) -> object:
    if value not in get_args(Think):
        raise InvalidInput(f"think is {shown(value)}; give one of {', '.join(get_args(Think))}")
    return value


_CHECKS: dict[str, Callable[[object], object]] = {
    "system": _system,
    "max_tokens": _max_tokens,
    "stop": _stop,
    "think": _think,
}


def _key(request: Request, settings: Settings) -> str:
    """Return a digest of what decides an answer; memory, threads and context do not."""
    decides = {
        **vars(request),
        "parameters": vars(request.parameters),
        "model": settings.model,
        "numerics": settings.numerics,
        "profile": settings.profile,
    }
    content = json.dumps(decides).encode()
    return hashlib.sha256(content).hexdigest()[:_KEY_CHARACTERS]
