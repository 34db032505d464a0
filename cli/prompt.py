"""The prompt of a script: from the argument, a file, or standard input.

Knows nothing of models. One line end at the end of a file or of standard input is dropped: shells
and editors put it there.
"""

import os
import sys
from pathlib import Path

from localv4.cli.input_files import decoded, read_file, read_stdin
from localv4.errors import InvalidInput

__all__ = ["read_line", "read_prompt"]


def read_prompt(argument: str | None, prompt_file: Path | None, example: str) -> str:
    """Return the prompt; an argument and piped standard input are joined by a blank line.

    Parameters
    ----------
    argument
        The command line's text; ``-`` means standard input, even from a terminal.
    prompt_file
        A file that holds the prompt; standard input is then left alone.
    example
        What to type, for the error when there is no prompt.

    Raises
    ------
    InvalidInput
        If there is no prompt, there are two, or it is not UTF-8.
    """
    if prompt_file is not None:
        if argument is not None:
            raise InvalidInput("there are two prompts, an argument and --prompt-file; give one")
        prompt = _without_line_end(read_file(prompt_file, "--prompt-file"))
    elif argument == "-":
        prompt = _without_line_end(read_stdin())
    elif _stdin_is_terminal():
        if argument is None:
            raise InvalidInput(f"there is no text to work on; try: {example}")
        prompt = _checked(argument)
    else:
        parts = [_checked(argument)] if argument is not None else []
        piped = _without_line_end(read_stdin())
        prompt = "\n\n".join([*parts, piped] if piped.strip() else parts)
    if not prompt:
        raise InvalidInput(f"the text is empty; try: {example}")
    return prompt


def read_line(question: str | None) -> str | None:
    """Return the next line of standard input without its end, or None at the end of input.

    Parameters
    ----------
    question
        Shown before the line, which can be edited; None where nobody sits at the keyboard.

    Raises
    ------
    InvalidInput
        If the line is not UTF-8.
    """
    if question is not None:
        try:
            return _checked(input(question), "the line")
        except EOFError:
            return None
        except UnicodeDecodeError as error:
            return decoded(error.object, "the line")
    if sys.stdin is None:
        return None
    line = sys.stdin.buffer.readline()
    return _without_line_end(decoded(line, "the line")) if line else None


def _stdin_is_terminal() -> bool:
    return sys.stdin is not None and sys.stdin.isatty()


def _checked(typed: str, source: str = "the argument") -> str:
    """Return what was typed; what this locale could not decode is read as UTF-8."""
    try:
        typed.encode("utf-8")
    except UnicodeEncodeError:
        return decoded(os.fsencode(typed), source)
    return typed


def _without_line_end(text: str) -> str:
    return text.removesuffix("\n").removesuffix("\r")
