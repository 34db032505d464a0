"""A session's state as named arrays, and back: what a file of a saved session holds.

The head says which model and numerics the state belongs to, and whatever else the caller wants to
be readable without it.  Knows nothing of how files are laid out (state_file.py).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.errors import DamagedSession
from localv4.kv_cache import KVCache, KVMark
from localv4.state_file import StateFile, state_bytes, write_state

__all__ = ["Identity", "refuse_other", "save_state", "saved_bytes", "saved_positions", "take_state"]

Facts = Mapping[str, Any]
Arrays = dict[str, NDArray[Any]]
Identity = Mapping[str, Any]
"""What a state must agree with to be of use: model, numerics, whether the MTP block took part."""

_VERSION = 1  # of the arrays below and of what they mean
_MOST_KEPT = 64


def _arrays(cache: KVCache, kept: Sequence[KVMark]) -> Arrays:
    """Return what is saved: the rows once, and the fixed state of every place."""
    arrays: Arrays = {f"rows.{i}": rows.used for i, rows in enumerate(cache.growing)}
    states = [("now", cache.fixed, cache.last_hidden)]
    states += [(f"kept.{i}", mark.fixed, mark.last_hidden) for i, mark in enumerate(kept)]
    for name, fixed, last_hidden in states:
        arrays[f"{name}.fixed"] = fixed
        if last_hidden is not None:
            arrays[f"{name}.last_hidden"] = last_hidden
    return arrays


def _head(cache: KVCache, kept: Sequence[KVMark], identity: Identity, facts: Facts) -> Facts:
    state = {
        "version": _VERSION,
        **identity,
        "n_tokens": cache.ids.size,
        "kept": [mark.ids.size for mark in kept],
    }
    return {"n_tokens": cache.ids.size, **facts, "state": state}


def saved_bytes(cache: KVCache, kept: Sequence[KVMark], identity: Identity, facts: Facts) -> int:
    """Return the size of the file that `save_state` would write."""
    return state_bytes(_head(cache, kept, identity, facts), _arrays(cache, kept))


def save_state(
    path: Path, cache: KVCache, kept: Sequence[KVMark], identity: Identity, facts: Facts
) -> int:
    """Write a state in place of what is at `path`, all of it or nothing; return its bytes.

    Parameters
    ----------
    path
        The file; its folder must be there.
    cache, kept
        The state, and marks in its history.
    identity
        See `Identity`.
    facts
        What else the file's head says, as JSON.

    Raises
    ------
    InvalidInput, OutOfBudget, LocalV4Error
        As `write_state`.
    """
    return write_state(path, _head(cache, kept, identity, facts), _arrays(cache, kept))


def refuse_other(path: Path, head: Mapping[str, Any], identity: Identity) -> None:
    """Raise DamagedSession for a state that belongs to something else."""
    state = head.get("state")
    saved = state if isinstance(state, dict) else {}
    wanted = {"version": _VERSION, **identity}
    for name, value in wanted.items():
        if saved.get(name) != value:
            said = {"version": "another version of localv4", "model": "another model"}
            raise DamagedSession(
                f"{path} was saved by {said.get(name, f'an engine with another setting ({name})')}"
                "; its state is of no use here, but the conversation's text is"
            )


def saved_positions(path: Path, head: Mapping[str, Any]) -> tuple[int, list[int]]:
    """Return how many tokens a state holds, and where its marks are.

    Raises
    ------
    DamagedSession
        The head contradicts itself.
    """
    state = head["state"]
    n_tokens, kept = state.get("n_tokens"), state.get("kept")
    numbers = [n_tokens, *kept] if isinstance(kept, list) else [None]
    whole = all(type(number) is int and 0 <= number <= n_tokens for number in numbers)
    if not whole or kept != sorted(kept) or len(kept) > _MOST_KEPT:
        raise DamagedSession(
            f"{path} contradicts itself on how many tokens it holds; its state is of no use, but "
            "the conversation's text is"
        )
    return n_tokens, kept


def take_state(file: StateFile, cache: KVCache, n_tokens: int, kept: Sequence[int]) -> list[KVMark]:
    """Read a state into an empty cache; return its marks.

    Parameters
    ----------
    file
        Open, and not refused.
    cache
        Of the same sizes, empty, with room for the tokens.
    n_tokens, kept
        From `saved_positions`.

    Raises
    ------
    DamagedSession
        The file lacks an array, has another shape, or its bytes have changed; the cache is of no
        use then.
    """
    into: Arrays = {"now.fixed": cache.fixed}
    for i, (rows, ratio) in enumerate(zip(cache.growing, cache.ratios, strict=True)):
        into[f"rows.{i}"] = rows.extend(n_tokens // ratio)
    fixed = [np.empty_like(cache.fixed) for _ in kept]
    into |= {f"kept.{i}.fixed": memory for i, memory in enumerate(fixed)}
    hidden: Arrays = {
        name: np.empty((1, cache.hidden_columns), np.float32)
        for name in ("now.last_hidden", *(f"kept.{i}.last_hidden" for i in range(len(kept))))
        if name in file.sections
    }
    file.read_into(into | hidden)
    cache.last_hidden = hidden.get("now.last_hidden")
    return [
        KVMark(memory, cache.marks_at(position), hidden.get(f"kept.{i}.last_hidden"))
        for i, (memory, position) in enumerate(zip(fixed, kept, strict=True))
    ]
