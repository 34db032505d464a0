"""A message as it is typed: what is kept of it, and whether it is complete.

Knows nothing of terminals.
"""

__all__ = ["MARKS", "cleaned", "is_open", "unquoted"]

# A message between these may have Enter in it.
MARKS = '"""'
_CONTROLS = {code: "" for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"}
# Bytes that are not UTF-8, as Python reads them from a terminal.
_UNREADABLE = dict.fromkeys(range(0xD800, 0xE000), "\ufffd")


def cleaned(text: str) -> str:
    """Return a text without control characters other than tabs and line ends, in one form."""
    return text.replace("\r\n", "\n").replace("\r", "\n").translate(_CONTROLS | _UNREADABLE)


def is_open(text: str) -> bool:
    """Return whether a text begins with the marks and does not end with others."""
    text = text.strip()
    return text.startswith(MARKS) and not (len(text) >= 2 * len(MARKS) and text.endswith(MARKS))


def unquoted(text: str) -> str:
    """Return a message without the marks around it, and without blanks around those."""
    text = text.strip()
    if not text.startswith(MARKS):
        return text
    text = text.removeprefix(MARKS)
    if text.endswith(MARKS):
        text = text.removesuffix(MARKS)
    return text.strip("\n")
