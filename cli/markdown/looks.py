"""How things look: codes of the terminal's own colours, and the glyphs of a page.

Only colours that can be read on dark and on light backgrounds: no yellow, no white, no bright
black. Dim is for what can be missed.
"""

from dataclasses import dataclass
from functools import cache

__all__ = [
    "BOLD",
    "CODE",
    "DIM",
    "HEADINGS",
    "ITALIC",
    "STRUCK",
    "UNDERLINED",
    "Glyphs",
    "code_look",
    "glyphs",
    "painted",
]

BOLD, DIM, ITALIC, UNDERLINED, STRUCK = "1", "2", "3", "4", "9"
CODE = "35"  # in running text
HEADINGS = ("1;4", "1", "1;3", "3", "3", "3")  # by level

# By pygments' names; a kind that is missing looks like the one it is a kind of.
_CODE_LOOKS = {
    "Comment": "2;3",
    "Comment.Preproc": "35",
    "Generic.Deleted": "31",
    "Generic.Emph": "3",
    "Generic.Heading": "1",
    "Generic.Inserted": "32",
    "Generic.Prompt": "2",
    "Generic.Strong": "1",
    "Generic.Subheading": "36",
    "Generic.Traceback": "31",
    "Keyword": "35",
    "Keyword.Type": "36",
    "Literal": "32",
    "Literal.Number": "36",
    "Name.Attribute": "36",
    "Name.Builtin": "36",
    "Name.Class": "1",
    "Name.Decorator": "35",
    "Name.Function": "1",
    "Name.Tag": "35",
    "Operator.Word": "35",
}


@dataclass(frozen=True)
class Glyphs:
    """What a page is drawn with.

    Attributes
    ----------
    bullets
        Of lists, outermost first; deeper ones begin again.
    unticked, ticked
        Tasks.
    bar
        In front of quoted lines.
    rule, double_rule
        What rules are made of.
    box
        The name of rich's box for tables.
    """

    bullets: tuple[str, ...]
    unticked: str
    ticked: str
    bar: str
    rule: str
    double_rule: str
    box: str


_UNICODE = Glyphs(
    ("\u2022", "\u25e6", "\u25aa"), "\u2610", "\u2611", "\u2502", "\u2500", "\u2550", "ROUNDED"
)
_ASCII = Glyphs(("*", "-", "+"), "[ ]", "[x]", "|", "-", "=", "ASCII2")


def glyphs(unicode: bool) -> Glyphs:
    """Return what a terminal can show."""
    return _UNICODE if unicode else _ASCII


def painted(text: str, codes: str) -> str:
    """Return text that switches its look on, and off again."""
    return f"\x1b[{codes}m{text}\x1b[0m" if codes and text else text


@cache
def code_look(kind: str) -> str:
    """Return the codes for a token of pygments, by its name without "Token."."""
    while kind and kind not in _CODE_LOOKS:
        kind = kind.rpartition(".")[0]
    return _CODE_LOOKS.get(kind, "")
