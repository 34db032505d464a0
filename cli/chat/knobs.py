"""What ``/set`` changes: how the next answer's tokens are chosen, and how many there may be."""

from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING

from localv4.errors import InvalidInput

if TYPE_CHECKING:
    from localv4.sampling import SamplingParams

__all__ = ["Knobs"]

_UNSET = ("none", "default", "off")
_WHOLE = ("top_k", "seed", "max_tokens")


@dataclass(frozen=True)
class Knobs:
    """Choices for the answers to come; see `localv4.SamplingParams`.

    Attributes
    ----------
    max_tokens
        Most tokens of thinking and answer; None for as many as the context takes.

    Raises
    ------
    InvalidInput
        A value is out of its range.
    """

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        """Check every range."""
        if self.max_tokens is not None and self.max_tokens < 1:
            raise InvalidInput(f"max_tokens is {self.max_tokens}; give at least 1, or none")
        usual = all(getattr(self, field.name) == field.default for field in fields(self))
        if not usual:  # else a start would import numpy for nothing
            self.sampling(self.seed)

    @property
    def is_fixed(self) -> bool:
        """Whether the same question gets the same answer."""
        return self.seed is not None or self.temperature == 0 or self.top_k == 1

    def sampling(self, seed: int | None) -> "SamplingParams":
        """Return how tokens are chosen, with a seed for this answer."""
        from localv4.sampling import SamplingParams

        return SamplingParams(self.temperature, self.top_p, self.top_k, self.min_p, seed)

    def changed(self, name: str, value: str) -> "Knobs":
        """Return the choices with one of them changed, to what was typed.

        Raises
        ------
        InvalidInput
            There is no such choice, or it cannot have that value.
        """
        known = {field.name: field.default for field in fields(self)}
        if name not in known:
            raise InvalidInput(f"/set knows no {name}; it knows {', '.join(known)}")
        if value in _UNSET:
            return replace(self, **{name: known[name]})  # type: ignore[arg-type]  # by its name
        try:
            number = int(value) if name in _WHOLE else float(value)
        except ValueError:
            kind = "a whole number" if name in _WHOLE else "a number"
            raise InvalidInput(f"{name} is {value!r}; give {kind}, or none") from None
        return replace(self, **{name: number})  # type: ignore[arg-type]  # by its name

    def rows(self) -> list[str]:
        """Return a line for each choice."""
        named = {field.name: getattr(self, field.name) for field in fields(self)}
        return [f"{name:<12} {_shown(value)}" for name, value in named.items()]


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:.10g}"
