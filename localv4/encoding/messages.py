"""From a caller's message dicts to checked, immutable turns.

Everything a caller can get wrong in a message list is found here, and everything that rendering
needs is taken out of the dicts here, so that no later step sees (or could change) them.
Source: section 2 of the chat encoding specification and the input rules of sections 3a and 4.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from localv4.encoding.literals import PARAMETER_END
from localv4.errors import FormatError

Message = Mapping[str, Any]
"""role, content, tools, response_format, tool_calls, reasoning_content, task, wo_eos, ..."""

ROLES: Final = ("system", "user", "assistant", "tool", "latest_reminder", "developer")


@dataclass(frozen=True)
class Block:
    """One part of a user turn: what the user wrote, or the result of a tool call."""

    text: str
    is_tool_result: bool = False
    call_id: str = ""


@dataclass(frozen=True)
class Parameter:
    """One argument of a tool call: raw text if it is a string, else JSON."""

    key: str
    value: str
    is_string: bool


@dataclass(frozen=True)
class ToolCall:
    """One call of an assistant turn; ``id`` is empty if the caller gave none."""

    id: str
    name: str
    parameters: tuple[Parameter, ...]


@dataclass(frozen=True)
class Turn:
    """One message, checked. ``blocks`` is for users, ``content`` for everybody else."""

    role: str
    content: str = ""
    blocks: tuple[Block, ...] = ()
    schemas: tuple[str, ...] = ()  # JSON of each tool's function
    response_format: str = ""  # JSON, empty if none
    calls: tuple[ToolCall, ...] = ()
    reasoning: str = ""
    task: str | None = None
    is_prefill: bool = False  # wo_eos: generation continues this text


def to_json(value: object, where: str) -> str:
    """Write JSON as the format does: spaces after separators, order kept, raw UTF-8."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise FormatError(f"{where} cannot be written as JSON ({error}); send plain JSON") from None


def read_turns(messages: Sequence[Message], name: str) -> list[Turn]:
    """Check a message list and take a turn out of each message.

    Parameters
    ----------
    messages
        A list or tuple of message mappings; never changed.
    name
        What to call a message in an error: "message" or "context message".

    Raises
    ------
    FormatError
        Naming the first message that is malformed, and how.
    """
    if not isinstance(messages, (list, tuple)):
        raise FormatError(f"{name}s are {type(messages).__name__}; send a list of messages")
    return [_read_turn(message, f"{name} {index}") for index, message in enumerate(messages)]


def _read_turn(message: Message, where: str) -> Turn:
    if not isinstance(message, Mapping):
        raise FormatError(f"{where} is {type(message).__name__}; a message is an object")
    role = message.get("role")
    if role not in ROLES:
        raise FormatError(f"{where} has the unknown role {role!r}; use one of {', '.join(ROLES)}")
    where = f"{where} ({role})"
    content = message.get("content")
    if role == "tool":
        call_id = _optional_text(message.get("tool_call_id"), f"tool_call_id of {where}")
        return Turn("user", blocks=(Block(_tool_result(content, where), True, call_id),))
    task = message.get("task")
    if task is not None and not isinstance(task, str):
        raise FormatError(f"task of {where} is {type(task).__name__}; send a string")
    prefill = bool(message.get("wo_eos"))
    if role == "user":
        block = Block(_plain_text(content, where))
        return Turn("user", blocks=(block,), task=task, is_prefill=prefill)
    takes_format = role in ("system", "developer") and message.get("response_format")
    return Turn(
        role,
        content=_plain_text(content, where),
        schemas=_schemas(message.get("tools"), where),
        response_format=(
            to_json(message["response_format"], f"response_format of {where}")
            if takes_format
            else ""
        ),
        calls=_tool_calls(message.get("tool_calls"), where) if role == "assistant" else (),
        reasoning=_optional_text(message.get("reasoning_content"), f"reasoning_content of {where}"),
        task=task,
        is_prefill=prefill,
    )


def _optional_text(value: object, what: str) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise FormatError(f"{what} is {type(value).__name__}; send a string")
    return value


def _parts(content: Sequence[Any], where: str) -> list[tuple[str, str]]:
    """Return (type, text) of each part of a list content; text is empty unless type is "text"."""
    parts = []
    for part in content:
        if not isinstance(part, Mapping) or not isinstance(part.get("type"), str):
            raise FormatError(f"{where} holds a content part without a type; send text parts")
        is_text = part["type"] == "text"
        text = _optional_text(part.get("text"), f"a text part of {where}") if is_text else ""
        parts.append((part["type"], text))
    return parts


def _plain_text(content: object, where: str) -> str:
    """Flatten a message's content to text; a list may only hold text parts."""
    if not isinstance(content, (list, tuple)):
        return _optional_text(content, f"content of {where}")
    parts = _parts(content, where)
    for kind, _ in parts:
        if kind != "text":
            raise FormatError(
                f"{where} holds a content part of type {kind!r}, and the model reads text only; "
                "leave it out"
            )
    return "\n\n".join(text for _, text in parts)


def _tool_result(content: object, where: str) -> str:
    if isinstance(content, Mapping):
        return to_json(content, f"content of {where}")
    if not isinstance(content, (list, tuple)):
        return _optional_text(content, f"content of {where}")
    parts = _parts(content, where)
    return "\n\n".join(text if kind == "text" else f"[Unsupported {kind}]" for kind, text in parts)


def _schemas(tools: object, where: str) -> tuple[str, ...]:
    if not tools:
        return ()
    if not isinstance(tools, (list, tuple)):
        raise FormatError(f"tools of {where} are {type(tools).__name__}; send a list of tools")
    schemas = []
    for index, tool in enumerate(tools):
        function = tool.get("function") if isinstance(tool, Mapping) else None
        if not isinstance(function, Mapping):
            raise FormatError(
                f'tool {index} of {where} has no function object; send {{"type": "function", '
                '"function": {"name": ..., "parameters": ...}}'
            )
        schemas.append(to_json(function, f"tool {index} of {where}"))
    return tuple(schemas)


def _tool_calls(calls: object, where: str) -> tuple[ToolCall, ...]:
    if not calls:
        return ()
    if not isinstance(calls, (list, tuple)):
        raise FormatError(f"tool_calls of {where} are {type(calls).__name__}; send a list")
    return tuple(_tool_call(call, f"tool call {i} of {where}") for i, call in enumerate(calls))


def _tool_call(call: object, where: str) -> ToolCall:
    if not isinstance(call, Mapping) or not isinstance(call.get("function"), Mapping):
        raise FormatError(f"{where} has no function object; send its name and arguments in one")
    function = call["function"]
    name = function.get("name")
    if not isinstance(name, str):
        raise FormatError(f"{where} has no function name; send it as a string")
    call_id = _optional_text(call.get("id") or function.get("id"), f"id of {where}")
    parameters = _parameters(function.get("arguments"), where)
    for parameter in parameters:
        if PARAMETER_END in parameter.value:
            raise FormatError(
                f"argument {parameter.key!r} of {where} contains {PARAMETER_END!r}, "
                "which the format cannot carry inside a value; change that text"
            )
    return ToolCall(call_id, name, parameters)


def _parameters(arguments: object, where: str) -> tuple[Parameter, ...]:
    if isinstance(arguments, Mapping):
        # The released encoder takes an object for text that failed to parse; so do the goldens.
        return (Parameter("arguments", to_json(arguments, f"arguments of {where}"), False),)
    if not isinstance(arguments, str):
        raise FormatError(
            f"arguments of {where} are {type(arguments).__name__}; send the JSON text of an object"
        )
    try:
        values = json.loads(arguments)
    except (ValueError, RecursionError):
        return (Parameter("arguments", arguments, True),)
    if not isinstance(values, dict):
        raise FormatError(
            f"arguments of {where} are a JSON {type(values).__name__}; send a JSON object"
        )
    return tuple(
        Parameter(key, value, True)
        if isinstance(value, str)
        else Parameter(key, to_json(value, f"argument {key!r} of {where}"), False)
        for key, value in values.items()
    )
