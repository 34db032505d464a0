"""``localv4 chat``: a conversation in the terminal."""

from localv4.cli.chat.talk import chat

__all__ = ["chat"]
