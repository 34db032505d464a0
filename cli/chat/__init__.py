"""``localv4 chat``: a conversation in the terminal."""

from localv4.cli.chat.command import chat

__all__ = ["chat"]
