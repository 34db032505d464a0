"""Checks of arguments that a caller gives: one sentence with the name, the value, the range."""

import operator
from collections.abc import Collection

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.errors import InvalidInput

__all__ = ["choice", "float_array", "integer_array", "whole_number"]


def whole_number(name: str, value: object, lowest: int, highest: int | None = None) -> int:
    """Return an integer (NumPy's included) of a range.

    Raises
    ------
    InvalidInput
        It is no integer, or outside the range.
    """
    allowed = f"from {lowest} to {highest}" if highest is not None else f"of at least {lowest}"
    try:
        if isinstance(value, bool):
            raise TypeError
        number = operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise InvalidInput(f"{name} is {value!r}; give a whole number {allowed}") from None
    if number < lowest or (highest is not None and number > highest):
        raise InvalidInput(f"{name} is {number}; give a whole number {allowed}")
    return number


def choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise InvalidInput unless a value is one of the choices."""
    if not any(value is other or value == other for other in choices):
        listed = ", ".join(repr(other) for other in choices)
        raise InvalidInput(f"{name} is {value!r}; give one of {listed}")


def integer_array(name: str, values: object, size: int) -> NDArray[np.int64]:
    """Return a list of at least one integer in 0..size-1 as int64.

    Raises
    ------
    InvalidInput
        It is anything else.
    """
    try:
        array = np.asarray(values)
    except ValueError:  # lists of unequal length
        array = np.asarray(None)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise InvalidInput(f"{name} must be a list of at least one whole number")
    wrong = array[(array < 0) | (array >= size)]
    if wrong.size:
        raise InvalidInput(f"{name} holds {wrong[0]}, which is outside 0..{size - 1}")
    return array.astype(np.int64)


def float_array(name: str, values: ArrayLike, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return float32 of the shape (n, *shape) with n of at least 1, contiguous.

    Raises
    ------
    InvalidInput
        It is anything else.
    """
    wanted = ", ".join(["n", *map(str, shape)])
    try:
        array = np.ascontiguousarray(values, np.float32)
    except (TypeError, ValueError):
        raise InvalidInput(f"{name} must be numbers of the shape ({wanted})") from None
    if array.shape[1:] != shape or not len(array):
        raise InvalidInput(f"{name} has the shape {array.shape}; it must be ({wanted})")
    return array
