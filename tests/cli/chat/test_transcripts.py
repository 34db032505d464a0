"""Every rule of the chat, shown in a terminal: scenes are played, and docs/transcripts is true."""

import functools
import re

import pyte
import pytest

from tests import chat_transcripts
from tests.chat_scenes import SCENES
from tests.chat_transcripts import FOLDER, FORMS, Page, play, record
from tests.screens import Screen

COLUMNS, ROWS = 80, 40
MARKS = re.compile(rb"(?=\x1b\[\?2004[hl])")  # a line editor begins, and ends
SEQUENCE = re.compile(rb"\x1b(?:\[([0-9;?]*)([@-~])|.)", re.DOTALL)
# The cursor is shown, lines wrap, and what is below the cursor is taken away.
HARMLESS = {"?2004l", "?12l", "?25h", "?7h", "m", "J", "\\r K"}
# What must be shown, whoever writes the transcripts again.
RULES = {
    "start": (
        "model    flash; 43 layers", "files    ~/flash", "limit 24.0 GiB: 10.0 GiB for what",
        "context  1,048,576 tokens", "speed    about 1.9 tok/s", "/undo [N]\nTake back the last N",
        "Also /clear.", "did you mean /sessions?", "there is no command /frobnicate; /help lists",
        "/load needs a name", "> //etc is a folder, /dev is one too\n\nWater it",
        "6 tokens at 5.2 tok/s, prompt 10 at 48 tok/s, 1.0 s, 90% of experts in memory",
        "1 turn, not saved; context: 15 of 1,048,576 tokens", "exit code 0",
    ),
    "early": (
        "> How do I water basil?\nopening the model ...\n",
        "> How do I water basil?\nlocalv4 0.1.0; /help", "memory\n\n\nWater it in the morning.\n",
    ),
    "markdown": ("result = 0  # of all", "│ loop │     5 │  1x   │", "• It wants a start"),
    "thinking": (
        "thinking: 10 tokens  The user asks", "thought for 1.0 s, 18 tokens\n\nSeven.",
        "(thoughts: show)\nThe user asks", "so seven.\n\nSeven.", "What is 3 + 4?\n\nSeven.",
        "thoughts: hide (show, fold, hide)", "thinking: high (off, low, high, max)",
        "(thinking: off)",
    ),
    "stopped": (
        "Earth, Mars,\n4 tokens", "(stopped; /more goes on)", "/more\n\nJupiter, Saturn, Uranus",
        "there is no answer that ended early; /retry",
    ),
    "cut": (
        "no answer yet: all 12 tokens went into thinking; /more continues", "/more\nthought for",
        "max_tokens   12", "/set knows no temprature", "top_p is 7.0; it must be above 0",
    ),
    "again": (
        "/retry\n\nMulch it.", "edit > How does basil thrive?\n\nAsk a gardener.",
        "cannot take back 2: the conversation has 1", "(took back 1 turn; 0 left)\n0 of 1M >",
        "system message: Be brief.", "(system message removed)", "(a new conversation)\n0 of 1M >",
    ),
    "reading": (
        "360 tokens; goes with your next message", "183 of 367 tokens  48 tok/s  0:02 left",
        "(stopped while reading the prompt; 183 of its 367 tokens stay read", "prompt 184 at",
        "nowhere.txt cannot be read: No such file", "(no file goes with the next message)",
    ),
    "sessions": (
        "saved as 'garden'", "saved as 'how-is-the-weather'", "did you mean 'garden'?",
        "loaded 'garden': 1 turn, 12 tokens from its state\n> How do I water basil?\nWater it",
        "12 of 1M > Why not later?\n\nAt noon it burns.\n5 tokens at 5.2 tok/s, prompt 11 at",
    ),
    "history": ("-- after Up, Up --\n0 of 1M > How do I water basil?", "reverse-i-search)`water'"),
    "completion": (
        "/stats     speed, memory", "\n                   high\n", "\n                 min_p\n",
        "> /read notes-of-may.txt\n(notes-of-may.txt: 5 B, 1 token;", "> /load garden\nloaded",
    ),
    "several_lines": (
        "> How do I water basil\n  and parsley?\n\nWater", "> a pasted line\n  and another are one",
        '> """How do I\n  water it?"""\n\nWater', "> How do I water parsley and basil?\n  Both",
    ),
    "leaving": ("(Ctrl-C once more leaves, and so does Ctrl-D)", "exit code 130", "exit code 0"),
    "signals": (
        "Mercury, Venus, Earth,\n3 tokens", "exit code 143", "> half a thought\n",
        "> /more\n\nMars, Jupiter, Saturn, Uranus and Neptune.\n",
    ),
    "two_chats": (
        "another chat has saved 'garden' meanwhile; /save NAME", "saved as 'basil'",
        "\nbasil   2026", "\ngarden  2026",
    ),
    "typed_ahead": (
        "while the answer comes --\n0 of 1M > Name the planets.\nMercury, Venus,\n",
        "> How do I water basil?\n\nWater", "> and parsley?\n\nWater",
    ),
    "resized": ("Mercury, Venus, Earth, Mars, Jupiter,", "exit code 0"),
    "full": (
        "localv4: the context is full; /new starts over",
        "34 tokens do not fit a context of 26; /new starts over", "(a new conversation)\n0 of 26 >",
    ),
}  # fmt: skip


@pytest.fixture(scope="module", params=FORMS)
def form(request) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="module")
def pages(form) -> dict[str, Page]:
    return record(FORMS[form])


def committed(form: str) -> dict[str, str]:
    """The pages of docs/transcripts, by title."""
    text = (FOLDER / f"{form}.txt").read_text()
    return {page.partition(" ==\n")[0]: page for page in re.split(r"\n?^== ", text, flags=re.M)[1:]}


def test_the_committed_transcripts_are_true(form, pages):
    there = committed(form)
    write_again = f"python -m tests.chat_transcripts {form}"
    assert [*there] == [page.title for page in pages.values()], write_again
    for page in pages.values():
        # an interrupt may take away the line end that a plain terminal was sent with it
        shown = page.whole.replace("^C(", "^C\n(")
        assert f"== {there[page.title]}".rstrip() == shown.rstrip(), write_again


def test_every_rule_is_shown():
    assert RULES.keys() == SCENES.keys()
    there = [*committed("chat-80").values()]
    for page, rules in zip(there, RULES.values(), strict=True):
        assert [rule for rule in rules if rule not in page] == []


def test_only_the_line_of_progress_and_the_edited_line_are_drawn_again(form, pages):
    for page in pages.values():
        for screen in page.screens:
            for part in MARKS.split(screen.raw):
                if not part.startswith(b"\x1b[?2004h"):  # no line is edited
                    assert set(sequences(part)) <= HARMLESS, page.title


def sequences(raw: bytes) -> list[str]:
    """Escape sequences, without what only colours and what only clears the line it is in."""
    found = []
    for match in SEQUENCE.finditer(raw):
        numbers, name = ((match[number] or b"").decode() for number in (1, 2))
        before = raw[match.start() - 1 : match.start()]
        if name == "K" and before == b"\r" and not numbers:
            found.append("\\r K")
        else:
            found.append("m" if name == "m" else f"{numbers}{name}")
    return found


def test_what_was_shown_above_a_line_stays(form, pages):
    for page in pages.values():
        if FORMS[form].columns == COLUMNS and page.name not in ("resized", "several_lines"):
            for screen in page.screens:
                check_stays(screen.raw, page.title)


def check_stays(raw: bytes, title: str) -> None:
    terminal = pyte.HistoryScreen(COLUMNS, ROWS, history=10_000)
    stream, settled = pyte.ByteStream(terminal), ""
    for part in MARKS.split(raw):
        shown = above(terminal)
        assert shown.startswith(settled), title
        settled = shown
        stream.feed(part)
    assert above(terminal).startswith(settled), title


def above(terminal: pyte.HistoryScreen) -> str:
    """Return all lines above the cursor's."""
    scrolled = ["".join(line[x].data for x in range(COLUMNS)) for line in terminal.history.top]
    return "\n".join([*scrolled, *terminal.display[: terminal.cursor.y]])


def test_looks(form, pages):
    screen = pages["markdown"].screens[0]
    noted = screen.looks("78 tokens at 5.2 tok/s")
    if form in ("chat-no-color", "chat-dumb"):
        assert noted == set()
        assert b"\x1b[" not in re.sub(rb"\x1b\[[?0-9;]*[A-LN-Zac-ln-z]|\x1b\[0?m", b"", screen.raw)
        assert "```python" in screen.history
    else:
        assert noted == {"dim"}
        assert screen.looks("0 of 1M") == {"dim"}
        assert "bold" in screen.looks("Two ways to sum")
        assert screen.looks("def") != screen.looks("total")
        assert screen.looks("A loop is") == set()
    if form == "chat-dumb":
        assert b"\x1b" not in screen.raw
    if form == "chat-latin-1":
        assert re.search(rb"[\x80-\xff]", screen.raw) is None


def test_thinking_is_dim_and_the_answer_is_not(form, pages):
    if form not in ("chat-80", "chat-200"):
        return
    (screen,) = pages["thinking"].screens
    assert screen.looks("The user asks") == {"dim"}
    assert screen.looks("thought for") == {"dim"}
    assert screen.looks("Seven.") == set()


def test_a_slow_line_changes_nothing(monkeypatch):
    slow = functools.partial(Screen, most_bytes=13)
    monkeypatch.setattr(chat_transcripts, "Screen", slow)
    page = play("markdown", FORMS["chat-80"], SCENES["markdown"])
    assert page.whole.rstrip() == f"== {committed('chat-80')[page.title]}".rstrip()
