"""The tools of ``--tools``: a JSON list, in the form that OpenAI's API takes.

A tool is ``{"type": "function", "function": {...}}`` or the function object alone. What else a
function object holds is passed on as it is. Knows nothing of prompts.
"""

import re
from pathlib import Path
from typing import Any

from localv4.cli.input_files import parse_json, read_file
from localv4.errors import InvalidInput
from localv4.sizes import shown

__all__ = ["read_tools"]

_MOST_BYTES = 4 * 2**20  # as many tokens as the longest context has, about
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def read_tools(path: Path) -> list[dict[str, Any]]:
    """Return the tools of a file, all in the longer form.

    Raises
    ------
    InvalidInput
        If the file cannot be read, is no list of tools, or names a tool twice.
    """
    entries = parse_json(read_file(path, "--tools", _MOST_BYTES), str(path))
    if not isinstance(entries, list):
        raise InvalidInput(f"{path} holds {_kind(entries)}; write a JSON list of tools")
    if not entries:
        raise InvalidInput(f"{path} holds no tools; leave out --tools")
    functions = [_function(entry, f"{path}[{place}]") for place, entry in enumerate(entries)]
    places: dict[str, int] = {}
    for place, function in enumerate(functions):
        first = places.setdefault(function["name"], place)
        if first != place:
            raise InvalidInput(
                f"{path}[{place}] has the name {function['name']!r} of [{first}]; "
                "give each tool its own"
            )
    return [{"type": "function", "function": function} for function in functions]


def _function(entry: object, place: str) -> dict[str, Any]:
    """Return the function object of one entry, checked."""
    if not isinstance(entry, dict):
        raise InvalidInput(f"{place} is {_kind(entry)}; a tool is an object")
    if entry.get("type", "function") != "function":
        raise InvalidInput(f'{place}.type is {shown(entry["type"])}; only "function" is known')
    function = {key: value for key, value in entry.items() if key != "type"}
    if "function" in entry:
        if len(function) > 1:
            extra = next(key for key in function if key != "function")
            raise InvalidInput(f"{place} has {shown(extra)} beside function; move it inside")
        function, place = entry["function"], f"{place}.function"
    if not isinstance(function, dict):
        raise InvalidInput(f"{place} is {_kind(function)}; write an object with a name")
    name = function.get("name")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        found = f"is {shown(name)}" if "name" in function else "is missing"
        raise InvalidInput(f"{place}.name {found}; give 1 to 64 letters, digits, _ . or -")
    for member, kind in (("description", str), ("parameters", dict)):
        if not isinstance(function.get(member, kind()), kind):
            found, wanted = _kind(function[member]), _kind(kind())
            raise InvalidInput(f"{place}.{member} is {found}; write {wanted}, or leave it out")
    if not isinstance(function.get("parameters", {}).get("properties", {}), dict):
        raise InvalidInput(f"{place}.parameters.properties is no object; write a JSON schema")
    return function


def _kind(value: object) -> str:
    """Return what JSON calls a value."""
    names = {dict: "an object", list: "a list", str: "a text", bool: "a truth value"}
    return "null" if value is None else names.get(type(value), "a number")
