"""A question before something that takes long, or can't be undone."""

import sys

from localv4.cli.output import Output
from localv4.errors import InvalidInput

__all__ = ["agrees"]


def agrees(question: str, output: Output, *, usual: bool = False) -> bool:
    """Ask in the terminal, and return whether the answer is a yes.

    Parameters
    ----------
    question
        What would be done.
    output
        Where to ask; not standard output, which is a command's result.
    usual
        What an empty line means; no line at all is always a no.

    Raises
    ------
    InvalidInput
        There is no terminal to ask in.
    """
    if sys.stdin is None or not sys.stdin.isatty():
        raise InvalidInput("there is no terminal to ask in; give -y to go on without a question")
    answer = output.ask(f"{question} {'[Y/n]' if usual else '[y/N]'}")
    if not answer.strip():
        return usual and bool(answer)
    return answer.strip().lower() in ("y", "yes")
