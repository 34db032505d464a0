"""Every error localv4 raises on purpose.

::

    LocalV4Error            exit code 1
    |-- InvalidInput        2   an argument, a flag or a setting is wrong (also a ValueError)
    |-- ContextOverflow     2   more tokens than the session may hold
    |-- FormatError         1   a message list or a completion breaks the chat format
    |-- DownloadFailed      1   the hub can't be reached, refused, or broke off
    |-- ModelNotFound       3   no checkpoint where one was named
    |-- DamagedCheckpoint   3   files that contradict themselves or their config
    |-- DamagedSession      3   a session file that is torn, damaged or of another model
    |-- UnsupportedModel    3   a sound checkpoint of something localv4 does not run
    `-- OutOfBudget         4   not enough memory or disk

A message is one sentence that says what happened, with the number, and what to do next.
Asserts are for programmers' mistakes and are not part of this tree.
"""

__all__ = [
    "ContextOverflow",
    "DamagedCheckpoint",
    "DamagedSession",
    "DownloadFailed",
    "FormatError",
    "InvalidInput",
    "LocalV4Error",
    "ModelNotFound",
    "OutOfBudget",
    "UnsupportedModel",
]


class LocalV4Error(Exception):
    """Base of every error that localv4 raises on purpose.

    Attributes
    ----------
    exit_code
        What the command line exits with when this error reaches it.
    """

    exit_code: int = 1


class InvalidInput(LocalV4Error, ValueError):
    """An argument, a flag, a setting or a prompt that cannot be used as given."""

    exit_code = 2


class ContextOverflow(LocalV4Error):
    """More tokens than the session may hold; raised before any work is done."""

    exit_code = 2


class FormatError(LocalV4Error):
    """A message list that cannot be rendered, or a completion that cannot be parsed."""


class DownloadFailed(LocalV4Error):
    """The hub cannot be reached, refuses, or broke off; what came is kept for the next try."""


class ModelNotFound(LocalV4Error):
    """No checkpoint where one was named."""

    exit_code = 3


class DamagedCheckpoint(LocalV4Error):
    """Checkpoint files that are truncated, lie about themselves or contradict the config."""

    exit_code = 3


class DamagedSession(LocalV4Error):
    """A session file whose state, or all of it, is torn, damaged or made by another model."""

    exit_code = 3


class UnsupportedModel(LocalV4Error):
    """A checkpoint that may be sound, but is not a DeepSeek-V4 that localv4 runs."""

    exit_code = 3


class OutOfBudget(LocalV4Error):
    """The memory budget or the disk is too small for what was asked."""

    exit_code = 4
