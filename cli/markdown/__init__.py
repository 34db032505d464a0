"""Markdown, shown in a terminal as it comes: what is written is never touched again.

Structure of lines (`structure`), text of paragraphs (`inline`, `prose`), tables, code, and the
page that they are written on, line by line (`page`). Knows nothing of models and conversations.
"""

from localv4.cli.markdown.stream import MarkdownStream

__all__ = ["MarkdownStream"]
