"""A text given to the editor that the user has chosen for texts.

Knows nothing of chats.
"""

import shlex
import subprocess
import tempfile
from pathlib import Path

from localv4.errors import InvalidInput
from localv4.settings import text_editor

__all__ = ["edited"]


def edited(text: str, keyboard: int, screen: int) -> str:
    """Return a text as the user's editor leaves it, without a line end at its end.

    Parameters
    ----------
    text
        What is to be edited.
    keyboard, screen
        Descriptors of the terminal to do it in.

    Raises
    ------
    InvalidInput
        There is no editor, it failed, or it left no text.
    """
    command = text_editor()
    if command is None:
        raise InvalidInput("no editor is set; let VISUAL or EDITOR name one, such as nano")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "message.md"
        path.write_text(text, "utf-8", newline="\n")
        try:
            words = [*shlex.split(command), str(path)]
            code = subprocess.run(words, stdin=keyboard, stdout=screen, stderr=screen).returncode
            content = path.read_bytes()
        except (OSError, ValueError) as error:  # ValueError: of shlex
            reason = error.strerror if isinstance(error, OSError) else error
            raise InvalidInput(
                f"the editor {command} failed: {reason}; check VISUAL and EDITOR"
            ) from None
        if code:
            raise InvalidInput(f"the editor {command} ended with {code}; the text is as before")
    try:
        return content.decode("utf-8-sig").removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise InvalidInput(f"the editor {command} left no UTF-8; the text is as before") from None
