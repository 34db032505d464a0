"""``localv4 chat``: its flags, and what a conversation needs before it begins."""

import functools
import sys
from typing import Annotated, TextIO

import typer

from localv4.cli import options
from localv4.cli.chat import conversations
from localv4.cli.chat.background import Opening
from localv4.cli.chat.keyboard import no_echo
from localv4.cli.chat.knobs import Knobs
from localv4.cli.chat.lines import EditedLines, Lines, PlainLines
from localv4.cli.chat.talk import Talk, Wishes
from localv4.cli.chat.view import Thoughts
from localv4.cli.names import complete_session
from localv4.cli.opening import open_engine
from localv4.cli.output import Output
from localv4.cli.sessions import session_store
from localv4.models import resolve
from localv4.settings import Settings, history_file, terminal_is_dumb

__all__ = ["chat"]


def chat(
    ctx: typer.Context,
    model: options.Model = None,
    session: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Go on with this session, or begin it; saved when the chat ends.",
            autocompletion=complete_session,
        ),
    ] = None,
    system: options.System = None,
    think: options.ThinkFlag = None,
    thoughts: Annotated[
        Thoughts, typer.Option(help="What is shown of the thinking.", show_default=False)
    ] = "fold",
    max_tokens: options.MaxTokens = None,
    temperature: options.Temperature = 1.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    profile: options.ProfileFlag = None,
    numerics: options.NumericsFlag = None,
    memory: options.Memory = None,
    threads: options.Threads = None,
    context: options.Context = None,
    no_history: Annotated[
        bool, typer.Option("--no-history", help="Keep nothing of what is typed.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Talk to the model.

    /help lists what else can be typed. Ctrl-C stops an answer and keeps what there is of it.

    Examples
    --------
    localv4 chat
    localv4 chat -m flash --think high
    localv4 chat -m flash --session garden --memory 24GiB
    """
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    flags |= {"context": context, "numerics": numerics, "think": think, "profile": profile}
    flags |= {"history": False if no_history else None}
    settings, output = options.start(ctx, flags, quiet, verbose)
    knobs = Knobs(temperature, top_p, top_k, min_p, seed, max_tokens)
    saved = None
    if session is not None:
        # Before the model, which may take long to open.
        store = session_store(settings)
        saved = conversations.read(session, store) if store.has(session) else None
    folder = resolve(settings.model, say=output.warning)
    interactive = all(_is_terminal(stream) for stream in (sys.stdin, sys.stderr))
    wishes = Wishes(system, knobs, thoughts, session)
    talk = Talk(settings, output, wishes, folder, interactive)
    opens = functools.partial(open_engine, settings, output)
    if not interactive or terminal_is_dumb():  # which can do nothing but lines
        plain = PlainLines(output if interactive else None)
        talk.run(plain, Opening(opens, talk.opened), saved, at_once=True)
        return
    with no_echo():  # what is typed early is shown by the editor, once
        lines = _edited(talk, settings, output)
        talk.run(lines, Opening(opens, talk.opened, lines.stop), saved)


def _edited(talk: Talk, settings: Settings, output: Output) -> Lines:
    history = history_file() if settings.history else None
    return EditedLines(talk.suggestions, history, settings.color, output)


def _is_terminal(stream: TextIO | None) -> bool:
    return stream is not None and stream.isatty()
