"""A question before something is removed for good."""

import sys

from localv4.cli.output import Output
from localv4.errors import InvalidInput

__all__ = ["agrees"]


def agrees(question: str, output: Output) -> bool:
    """Ask in the terminal; anything but a yes is a no.

    Raises
    ------
    InvalidInput
        There is no terminal to ask in.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask in; give -y to remove without a question")
    # not typer's own: it writes to standard output
    output.note(f"{question} [y/N]", level=-1)
    return sys.stdin.readline().strip().lower() in ("y", "yes")
