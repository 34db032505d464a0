"""What ``localv4 doctor`` finds: one fact each, with how grave it is."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

__all__ = ["Finding", "Severity", "note", "ok", "problem"]

Severity = Literal["ok", "note", "problem"]


@dataclass(frozen=True)
class Finding:
    """One fact.

    Attributes
    ----------
    severity
        "ok"; "note": it costs something, or is good to know; "problem": something does not work.
    topic
        A word or two.
    text
        One sentence or less, for a person.
    figures
        The numbers in it and more, for JSON.
    """

    severity: Severity
    topic: str
    text: str
    figures: Mapping[str, Any] = field(default_factory=dict)


def ok(topic: str, text: str, **figures: Any) -> Finding:  # noqa: ANN401 (for JSON)
    """Return a finding that is as it should be."""
    return Finding("ok", topic, text, figures)


def note(topic: str, text: str, **figures: Any) -> Finding:  # noqa: ANN401
    """Return a finding that is good to know."""
    return Finding("note", topic, text, figures)


def problem(topic: str, text: str, **figures: Any) -> Finding:  # noqa: ANN401
    """Return a finding that keeps something from working."""
    return Finding("problem", topic, text, figures)
