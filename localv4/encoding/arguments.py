"""The arguments of a tool call: from tag values to the JSON text of an object.

Source: section 6 of the chat encoding specification.
"""

import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn


def join_arguments(arguments: Mapping[str, str]) -> str:
    """Write a JSON object from keys and values that are JSON already."""
    pairs = (f"{string_value(key)}: {value}" for key, value in arguments.items())
    return "{" + ", ".join(pairs) + "}"


def string_value(value: str) -> str:
    """Return a text as JSON."""
    return json.dumps(value, ensure_ascii=False)


def json_value(value: str) -> str:
    """Return a value announced as JSON: as it is if valid, else as a JSON string."""
    try:
        json.loads(value, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return string_value(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is Python's, not JSON's")


def arguments_not_strings(tools: Iterable[object]) -> frozenset[tuple[str, str]]:
    """Return (tool name, argument) of the arguments whose schema rules a string out.

    A tool that is not in the expected shape says nothing about its arguments.
    """
    functions = [_member(tool, "function") for tool in tools]
    return frozenset(
        (str(function.get("name")), key)
        for function in functions
        for key, schema in _member(_member(function, "parameters"), "properties").items()
        if isinstance(schema, Mapping) and _rules_string_out(schema.get("type"))
    )


def _member(value: object, name: str) -> Mapping[str, Any]:
    member = value.get(name) if isinstance(value, Mapping) else None
    return member if isinstance(member, Mapping) else {}


def _rules_string_out(declared: object) -> bool:
    types = declared if isinstance(declared, list) else [declared]
    return declared is not None and "string" not in types
