"""Scenes of a chat, each a function that types into a `Stage`.

Together they show every row of the list of commands, and every key.
"""

import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace

from tests.chat_transcripts import Stage
from tests.scripted_chat import Answer

__all__ = ["SCENES"]

UP, BACK = "\x1b[A", "\x7f"
SHORT = Answer("Water it in the morning.")
PLANETS = Answer("Mercury, Venus, Earth, Mars, Jupiter, Saturn, Uranus and Neptune.", holds=(3,))
MARKDOWN = Answer(
    """## Two ways to sum

A loop is *plain*, and `sum` is **short**:

```python
def total(values):
    result = 0  # of all
    for value in values:
        result += value
    return result
```

| way  | lines | speed |
|:-----|------:|:-----:|
| loop |     5 | 1x    |
| `sum`|     1 | 8x    |

1. Take `sum` where there are numbers.
   - It wants a start for anything else.
2. See <https://docs.python.org/3/library/functions.html#sum>.

> Simple is better than complex.
"""
)
THOUGHT = Answer(
    "Seven.",
    thinking="The user asks for the sum of three and four. That is three plus four, so seven.",
    holds=(10,),
)
EDITOR = """#!{python}
import pathlib, sys
path = pathlib.Path(sys.argv[1])
path.write_text(path.read_text() + " and basil?\\nBoth stand inside.")
"""


def start(stage: Stage) -> None:
    """The start card, help, and what is no command."""
    stage.chat(answers=[SHORT])
    for line in (
        "/help",
        "/help undo",
        "/help clear",
        "/sesions",
        "/frobnicate",
        "/new x",
        "/load",
    ):
        stage.ask(line)
    stage.ask("//etc is a folder, /dev is one too")
    stage.ask("/stats")
    stage.end()


def early(stage: Stage) -> None:
    """A question asked before the model is open."""
    stage.chat(answers=[replace(SHORT, opens_s=1.5)], waits=False)
    stage.expect(">")
    stage.type("How do I water basil?\r")
    stage.expect("opening the model")
    stage.look("while the model opens", 2)
    stage.until_prompt()
    stage.end()


def markdown(stage: Stage) -> None:
    """An answer in Markdown, with code, a table and a line of statistics."""
    stage.chat(answers=[MARKDOWN])
    stage.ask("How do I sum a list in Python?")
    stage.end()


def thinking(stage: Stage) -> None:
    """Thinking is folded to a line, shown or hidden, and turned off."""
    stage.chat(answers=[THOUGHT])
    for how in ("fold", "show", "hide"):
        if how != "fold":
            stage.ask(f"/thoughts {how}")
        stage.ask("What is 3 + 4?", held=True)
        stage.until_held()
        stage.look("while it thinks", 2)
        stage.go_on()
        stage.until_prompt()
    for line in ("/thoughts", "/thoughts loud", "/think", "/think off", "What is 3 + 4?"):
        stage.ask(line)
    stage.end()


def stopped(stage: Stage) -> None:
    """Ctrl-C stops an answer and keeps it, /more goes on with it."""
    stage.chat(answers=[PLANETS, SHORT])
    stage.ask("Name the planets.", held=True)
    stage.until_held()
    stage.type("\x03")
    stage.until_prompt()
    stage.go_on()
    stage.ask("/more")
    stage.ask("/more")
    stage.end()


def cut(stage: Stage) -> None:
    """What max_tokens cuts goes on with /more; an answer that is not there yet says so."""
    stage.chat(answers=[replace(THOUGHT, holds=()), replace(PLANETS, holds=())])
    for line in ("/set max_tokens 12", "What is 3 + 4?", "/more", "Name the planets.", "/set"):
        stage.ask(line)
    for line in ("/set max_tokens none", "/set temprature 1", "/set top_p 7", "/set seed"):
        stage.ask(line)
    stage.end()


def again(stage: Stage) -> None:
    """Questions asked again, changed and taken back; the system message; a new beginning."""
    stage.chat(answers=[SHORT, Answer("Mulch it."), Answer("Ask a gardener."), SHORT])
    stage.ask("How does basil grow?")
    stage.ask("/retry")
    stage.ask("/edit", held=True)
    stage.expect("edit > How does basil grow?")
    stage.type(BACK * 5 + "thrive?\r")
    stage.until_prompt()
    for line in ("/undo 2", "/undo", "/retry", "/system", "/system Be brief.", "/system"):
        stage.ask(line)
    for line in ("/system none", "How does it smell?", "/new", "/more", "/stats"):
        stage.ask(line)
    stage.end()


def reading(stage: Stage) -> None:
    """A file goes with a message; how far its reading is; Ctrl-C there takes the turn back."""
    (stage.home / "notes.txt").write_text("the basil wants light and water " * 60)
    stage.chat(answers=[replace(SHORT, read_s=2.0, holds=(-1,)), SHORT])
    stage.ask("/read notes.txt")
    stage.ask("What does it want?", held=True)
    stage.until_held()
    stage.look("while the prompt is read", 2)
    stage.type("\x03")
    stage.expect("ask again to go on)" if stage.columns > 80 else "stay read")
    if stage.is_dumb:
        stage.until_prompt()
        stage.ask("What does it want?")
    else:  # the question is in the line again
        stage.expect("What does it want?", times=2)
        stage.type("\r")
        stage.until_prompt()
    for line in ("/read nowhere.txt", "/read notes.txt", "/read none", "And now?"):
        stage.ask(line)
    stage.end()


def sessions(stage: Stage) -> None:
    """A conversation saved in one process and gone on with in another."""
    stage.chat("--session", "garden", answers=[SHORT])
    stage.ask("How do I water basil?")
    stage.end()
    stage.chat(answers=[SHORT, Answer("At noon it burns."), SHORT])
    for line in ("/sessions", "How is the weather?", "/save", "/load gardn", "/load garden"):
        stage.ask(line)
    stage.ask("Why not later?")
    stage.end()


def history(stage: Stage) -> None:
    """What was typed comes back in the next chat, unless --no-history says otherwise."""
    stage.chat(answers=[SHORT])
    stage.ask("How do I water basil?")
    stage.end()
    stage.chat("--no-history", answers=[SHORT])
    stage.ask("This is a secret.")
    stage.type(UP)
    stage.expect("> This is a secret.", times=2)
    stage.type("\x15")
    stage.end("\x04")
    stage.chat(answers=[SHORT])
    stage.type(UP)
    stage.expect("/quit")
    stage.type(UP)
    stage.expect("> How do I water basil?")
    stage.look("after Up, Up", 1)
    stage.type("\r")
    stage.until_prompt()
    stage.type("\x12water")
    stage.expect("search")
    stage.look("while searched for", 1)
    stage.type("\r\x03")
    stage.until_prompt()
    stage.end("\x04")


def completion(stage: Stage) -> None:
    """The Tab key completes commands, values, files and sessions."""
    (stage.home / "notes.txt").write_text("basil")
    (stage.home / "notes-of-may.txt").write_text("basil")
    stage.chat(answers=[SHORT])
    stage.ask("How do I water basil?")
    stage.ask("/save garden")
    for typed, shown in (("/s", "/stats"), ("/think ", "max"), ("/set ", "max_tokens")):
        stage.type(f"{typed}\t")
        stage.expect(shown)
        stage.screen.idle(0.2)
        stage.look("with the menu", 8)
        stage.type("\x03\x15")
        stage.until_prompt()
    stage.type("/read no\t")
    stage.expect("notes-of-may.txt")
    stage.type("-\t\r")
    stage.until_prompt()
    stage.type("/load g\t")
    stage.expect("/load garden")
    stage.type("\r")
    stage.until_prompt()
    stage.end()


def several_lines(stage: Stage) -> None:
    """Messages of several lines: Alt-Enter, a paste, three quotation marks, an editor."""
    editor = stage.home / "editor"
    editor.write_text(EDITOR.format(python=sys.executable))
    editor.chmod(0o755)
    stage.chat(answers=[SHORT], EDITOR=str(editor))
    stage.type("How do I water basil\x1b\rand parsley?\r")
    stage.expect("  and parsley?")
    stage.until_prompt()
    stage.type("\x1b[200~a pasted line\nand another\x1b[201~")
    stage.expect("  and another")
    stage.ask(" are one message")
    stage.type('"""How do I\r')
    stage.expect('"""How do I')
    stage.ask('water it?"""')
    stage.type("How do I water parsley\x18\x05")
    stage.expect("  Both stand inside.")
    stage.type("\r")
    stage.until_prompt()
    stage.end()


def leaving(stage: Stage) -> None:
    """Ctrl-C at the prompt clears the line; twice it leaves; Ctrl-D leaves at once."""
    stage.chat(answers=[SHORT])
    stage.type("half a thought")
    stage.expect("> half a thought")
    stage.type("\x03")
    stage.until_prompt()
    if not stage.is_dumb:
        stage.type("\x03")
    stage.expect("once more")
    stage.until_prompt()
    time.sleep(0.6)  # a second press sooner could belong to the first
    stage.end("\x03")
    stage.chat(answers=[SHORT])
    stage.end("\x04")


def signals(stage: Stage) -> None:
    """The end of the terminal, and of the machine, save a conversation that has a name."""
    for number, held in ((signal.SIGTERM, True), (signal.SIGHUP, False)):
        stage.chat("--session", "garden", answers=[PLANETS])
        stage.ask("Name the planets.", held=held) if held else stage.type("half a thought")
        stage.until_held() if held else stage.expect("half a thought")
        stage.screen.signal(number)
        stage.end("")
    stage.chat("--session", "garden", answers=[replace(PLANETS, holds=())])
    stage.ask("/more")
    stage.end()


def two_chats(stage: Stage) -> None:
    """Two chats on one name: neither loses what was said in it."""
    stage.chat("--session", "garden", answers=[SHORT])
    stage.ask("How do I water basil?")
    stage.chat("--session", "garden", answers=[SHORT])
    stage.ask("How do I water parsley?")
    stage.end()
    stage.back_to(0)
    for line in ("/save", "/save basil", "/sessions"):
        stage.ask(line)
    stage.end()


def typed_ahead(stage: Stage) -> None:
    """What is typed while an answer comes waits, is not shown, and is sent then."""
    stage.chat(answers=[PLANETS, SHORT])
    stage.ask("Name the planets.", held=True)
    stage.until_held()
    stage.type("How do I water basil?\rand par")
    stage.screen.idle(0.3)
    stage.look("while the answer comes", 2)
    stage.go_on()
    stage.expect("> and par")
    stage.type("sley?\r")
    stage.until_prompt()
    stage.end()


def resized(stage: Stage) -> None:
    """A window that gets narrower and wider while an answer comes and while a line is typed."""
    long = replace(MARKDOWN, text=f"{PLANETS.text} {PLANETS.text} {PLANETS.text}", holds=(6,))
    stage.chat(answers=[long])
    stage.ask("Name the planets thrice.", held=True)
    stage.until_held()
    stage.screen.resize(60, 40)
    stage.go_on()
    stage.until_prompt()
    stage.look("after the answer", 4)
    stage.type("a line that is longer than sixty columns can hold, which it must not show twice")
    stage.expect("twice")
    for columns in (100, 64, 80):
        stage.screen.resize(columns, 40)
        stage.screen.idle(0.3)
    stage.type("\x03")
    stage.until_prompt()
    stage.end()


def full(stage: Stage) -> None:
    """A context that fills up is said, and nothing is cut silently."""
    stage.chat("--context", "26", answers=[SHORT, Answer("word " * 40)])
    stage.ask("How do I water basil?")
    stage.ask("And parsley?")
    stage.ask("And what of thyme and sage?", held=True)
    stage.expect("> And what of thyme and sage?", times=2)
    stage.type("\x03")
    for line in ("/new", "And what of thyme and sage?"):
        stage.ask(line)
    stage.end()


SCENES: dict[str, Callable[[Stage], None]] = {
    act.__name__: act
    for act in (
        start, early, markdown, thinking, stopped, cut, again, reading, sessions, history,
        completion, several_lines, leaving, signals, two_chats, typed_ahead, resized, full,
    )
}  # fmt: skip
