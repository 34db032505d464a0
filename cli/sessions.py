"""``localv4 sessions``: the sessions on disk: what they are, removed, verified."""

import json
import time
from dataclasses import asdict
from typing import Annotated

import typer

from localv4.cli import options
from localv4.cli.asking import agrees
from localv4.cli.names import complete_session
from localv4.cli.output import one_line
from localv4.cli.tables import Table
from localv4.session_store import SessionStore, StoredSession
from localv4.settings import Settings, session_folder
from localv4.sizes import format_bytes

__all__ = ["session_rows", "session_store", "sessions"]

sessions = Table()

_LONGEST_TITLE = 40


@sessions.callback(invoke_without_command=True)
def _list(
    ctx: typer.Context,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """List the sessions on disk, the one used last first.

    Where they are and how much they may take: sessions_dir and session_limit of localv4 config.

    Examples
    --------
    localv4 sessions
    localv4 sessions --json
    """
    if ctx.invoked_subcommand is not None:
        return
    settings, output = options.start(ctx, {}, quiet, verbose)
    store = session_store(settings)
    found = store.sessions()
    total = sum(session.n_bytes for session in found)
    if as_json:
        report = {
            "folder": str(store.folder),
            "limit_bytes": store.limit_bytes,
            "n_bytes": total,
            "sessions": [asdict(session) for session in found],
        }
        output.line(json.dumps(report, indent=2))
        return
    if found:
        output.line("\n".join(session_rows(found)))
    for session in found:
        if session.damage is not None:
            output.warning(session.damage)
    count = f"{len(found)} session{'' if len(found) == 1 else 's'}"
    size = f"{format_bytes(total)} of at most {format_bytes(store.limit_bytes)}"
    output.note(f"{count}, {size}, in {one_line(str(store.folder))}")


@sessions.command()
def rm(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME", help="Sessions to remove.", autocompletion=complete_session),
    ],
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Don't ask.")] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Remove sessions, with their conversations' text.

    Exit code 1 if the answer to the question is no.

    Examples
    --------
    localv4 sessions rm garden
    localv4 sessions rm garden -y
    """
    settings, output = options.start(ctx, {}, quiet, verbose)
    store = session_store(settings)
    names = list(dict.fromkeys(names))
    n_bytes = sum(store.n_bytes(name) for name in names)
    what = f"{', '.join(map(repr, names))}, {format_bytes(n_bytes)}"
    if not yes and not agrees(f"remove {what}?", output):
        output.note("nothing was removed")
        return 1
    for name in names:
        store.delete(name)
    output.note(f"removed {what}")
    return 0


@sessions.command()
def verify(
    ctx: typer.Context,
    name: Annotated[
        str,
        typer.Argument(
            metavar="NAME", help="The session to read.", autocompletion=complete_session
        ),
    ],
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Read a session's file and check every byte of it.

    Exit code 3 if it is damaged.

    Examples
    --------
    localv4 sessions verify garden
    """
    settings, output = options.start(ctx, {}, quiet, verbose)
    store = session_store(settings)
    n_bytes = store.n_bytes(name)

    # Imported here, as NumPy is not for --help.
    from localv4.state_file import open_state

    with open_state(store.path(name)) as file:
        file.verify()
    output.line(f"{name}: {format_bytes(n_bytes)}, every byte as it was saved")


def session_store(settings: Settings) -> SessionStore:
    """Return the sessions on disk.

    Raises
    ------
    InvalidInput
        There is no home folder, and none was named.
    """
    return SessionStore(session_folder(), settings.session_limit)


def session_rows(found: tuple[StoredSession, ...]) -> list[str]:
    """Return a line for each session, below a heading."""
    width = max(4, *(len(session.name) for session in found))
    rows = [f"{'name':<{width}}  {'used':<16}  {'size':>8}  {'tokens':>9}  title"]
    for session in found:
        used = time.strftime("%Y-%m-%d %H:%M", time.localtime(session.used_s))
        tokens = "" if session.n_tokens is None else f"{session.n_tokens:,}"
        title = session.title
        if session.damage is not None:
            title = "DAMAGED"
        elif len(title) > _LONGEST_TITLE:
            title = f"{title[: _LONGEST_TITLE - 3]}..."
        model = f" ({session.model})" if session.model else ""
        row = f"{session.name:<{width}}  {used:<16}  {format_bytes(session.n_bytes):>8}"
        rows.append(one_line(f"{row}  {tokens:>9}  {title}{model}").rstrip())
    return rows
