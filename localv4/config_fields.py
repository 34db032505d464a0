"""Typed access to one JSON object of a config, with errors that name the key and the file.

Knows JSON types and ranges, nothing of what a key means.
"""

from collections.abc import Mapping
from typing import Any

from localv4.errors import DamagedCheckpoint, UnsupportedModel

__all__ = ["Fields"]


def _shown(value: object) -> str:
    """Give a value as it may appear in a one-line message."""
    text = repr(value) if not isinstance(value, int) or abs(value) < 10**18 else "a huge integer"
    return text if len(text) <= 60 else text[:57] + "..."


class Fields:
    """The members of one JSON object.

    Parameters
    ----------
    values
        The parsed object.
    source
        What to call it in a message, such as ``.../config.json``.
    """

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self._values = values
        self.source = source

    def damaged(self, what: str) -> DamagedCheckpoint:
        """Build the error for a value that cannot be right."""
        return DamagedCheckpoint(f"{self.source}: {what}; restore the original file")

    def unsupported(self, key: str, runs: str) -> UnsupportedModel:
        """Build the error for a sound value of another model; `runs` is what localv4 does run."""
        return UnsupportedModel(
            f"{self.source} has {key} {_shown(self._values.get(key))}; localv4 runs {runs}"
        )

    def unsupported_size(self, key: str, value: int, needed: str) -> UnsupportedModel:
        """Build the error for a size that the block formats cannot carry."""
        return UnsupportedModel(f"{self.source} has {key} {value}; localv4 needs {needed}")

    def has(self, key: str) -> bool:
        """Whether the key is present and not null."""
        return self._values.get(key) is not None

    def is_null(self, key: str) -> bool:
        """Whether the key is present and null; a missing key is an error."""
        return self._required(key) is None

    def _required(self, key: str) -> object:
        if key not in self._values:
            raise self.damaged(f"the key {key!r} is missing")
        return self._values[key]

    def integer(self, key: str, low: int, high: int) -> int:
        """Return an integer in [low, high]; a JSON true or 4.0 is not one."""
        value = self._required(key)
        if type(value) is not int or not low <= value <= high:
            raise self.damaged(
                f"{key} is {_shown(value)} where an integer from {low} to {high} is needed"
            )
        return value

    def number(self, key: str, low: float, high: float) -> float:
        """Return a finite number in [low, high] as a float."""
        value = self._required(key)
        # Compared before converted: an int of any size compares. NaN fails every comparison.
        if (
            not isinstance(value, int | float)
            or isinstance(value, bool)
            or not low <= value <= high
        ):
            raise self.damaged(
                f"{key} is {_shown(value)} where a number from {low:g} to {high:g} is needed"
            )
        return float(value)

    def text(self, key: str) -> str:
        """Return a string."""
        value = self._required(key)
        if not isinstance(value, str):
            raise self.damaged(f"{key} is {_shown(value)} where a string is needed")
        return value

    def integers(self, key: str) -> tuple[int, ...]:
        """Return a list of integers as a tuple."""
        value = self._required(key)
        if not isinstance(value, list) or any(type(item) is not int for item in value):
            raise self.damaged(f"{key} is {_shown(value)} where a list of integers is needed")
        return tuple(value)

    def choice(self, key: str, choices: tuple[str | None, ...]) -> str | None:
        """Return one of `choices`; a missing key counts as null."""
        value = self._values.get(key)
        if not isinstance(value, str | None) or value not in choices:
            known = " or ".join(repr(item) for item in choices if item is not None)
            raise self.unsupported(key, f"{key} {known}")
        return value

    def section(self, key: str) -> "Fields":
        """Return a nested object."""
        value = self._required(key)
        if not isinstance(value, dict):
            raise self.damaged(f"{key} is {_shown(value)} where an object is needed")
        return Fields(value, f"{self.source} ({key})")

    def require_fixed(self, fixed: Mapping[str, tuple[object, ...]]) -> None:
        """Refuse keys that are present with another value than the ones localv4 implements."""
        for key, accepted in fixed.items():
            if key not in self._values:
                continue
            value = self._values[key]
            # type() too: 1 == True in Python, but a JSON 1 is not a JSON true.
            if not any(value == item and type(value) is type(item) for item in accepted):
                raise self.unsupported(key, f"{key} {_shown(accepted[0])}")
