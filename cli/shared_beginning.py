"""What a prompt shares with the next one: read once, by going back to a snapshot behind it.

Knows nothing of answers. Where prompts are read in pieces does not change a byte of their answers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from localv4.cli.answering import Request
from localv4.cli.output import Output
from localv4.errors import LocalV4Error

if TYPE_CHECKING:
    from localv4.engine import Engine
    from localv4.session import Session

__all__ = ["read_shared"]

_STEP = 64  # tokens: what is shared by less is not worth a snapshot


def read_shared(
    engine: "Engine",
    session: "Session",
    request: Request,
    following: Request | None,
    output: Output,
) -> list[int]:
    """Go back to what the session holds of a prompt, and read what the next one shares of it.

    Returns
    -------
    The ids of the prompt; the session holds a beginning of them that is not all.

    Raises
    ------
    InvalidInput, FormatError, ContextOverflow, OutOfBudget
        The prompt cannot be answered.
    """
    ids = _ids(engine, request)
    session.check_fits(ids, rewound=True)
    session.rewind(ids)
    n_shared = 0 if following is None else _n_shared(ids, engine, following)
    # Snapshots at round places, and two of them: those after the next may share a little less.
    last = n_shared // _STEP * _STEP
    for place in (last - _STEP, last):
        if place > session.position:
            n_new = place - session.position
            output.progress(f"reading what the next prompt shares: {n_new:,} tokens ...")
            session.prefill(ids[session.position : place], "none")
            session.keep()
    output.clear_progress()
    return ids


def _ids(engine: "Engine", request: Request) -> list[int]:
    return engine.prompt_format.ids(request.prompt, request.level(engine), request.tools)[0]


def _n_shared(ids: Sequence[int], engine: "Engine", following: Request) -> int:
    """Return how many tokens both begin with; the last one of a prompt is never shared."""
    try:
        others = _ids(engine, following)
    except LocalV4Error:  # said when it is its turn
        return 0
    most = min(len(ids), len(others)) - 1
    return next((place for place in range(most) if ids[place] != others[place]), most)
