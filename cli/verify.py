"""``localv4 verify``: is every byte of a checkpoint here, and as it was published."""

import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.file_bar import FileBar
from localv4.cli.names import complete_model
from localv4.cli.output import Output, one_line
from localv4.cli.stopping import stoppable
from localv4.errors import DamagedCheckpoint, InvalidInput, ModelNotFound
from localv4.files_state import FilesState
from localv4.hub_cache import contents_of
from localv4.models import Located, locate, resolve
from localv4.sizes import format_bytes
from localv4.verifying import Damage, StoredFile, remove_damaged, stored_files, verify_files

__all__ = ["verify"]

_MOST_THREADS = 4


@dataclass(frozen=True)
class _Result:
    """What was found.

    Attributes
    ----------
    located, folder
        Of which model.
    files
        What is there of it.
    missing
        Needed files that are not.
    headers
        What is wrong with config, index and headers; empty for nothing.
    damages
        Files that are not as they were published.
    is_quick
        Whether checksums were left out.
    """

    located: Located
    folder: Path
    files: tuple[StoredFile, ...]
    missing: tuple[str, ...]
    headers: str
    damages: tuple[Damage, ...]
    is_quick: bool

    @property
    def is_sound(self) -> bool:
        return not (self.missing or self.headers or self.damages)

    @property
    def checked(self) -> tuple[StoredFile, ...]:
        """Files that were held against a checksum."""
        return () if self.is_quick else tuple(file for file in self.files if file.expected)


def verify(
    ctx: typer.Context,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Short name, repo or folder; else the one set.",
            autocompletion=complete_model,
        ),
    ] = None,
    quick: Annotated[
        bool, typer.Option("--quick", help="Headers and sizes only: read no weights.")
    ] = False,
    remove: Annotated[
        bool, typer.Option("--remove-damaged", help="Remove damaged files from the hub's cache.")
    ] = False,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Check that a checkpoint is here and sound, byte for byte.

    Every header is held against the config, then every file against the checksum that it was
    published with, which reads all of it. A folder that the hub's tools did not write has no
    checksums. Exit code 3 if something is damaged or missing.

    Examples
    --------
    localv4 verify flash
    localv4 verify flash --quick
    """
    settings, output = options.start(ctx, {"model": name}, quiet, verbose)
    located = locate(settings.model)
    if located.folder is None and not located.is_builtin:
        raise ModelNotFound(located.absence)
    if remove and located.repo is None:
        raise InvalidInput("--remove-damaged is for models of the hub's cache, not for a folder")
    folder = located.folder or resolve(None, output.warning)
    with stoppable():
        result = _verify(located, folder, quick, output)
    removed = None
    if remove and located.repo is not None:
        removed = remove_damaged(located.repo, result.damages)
    if as_json:
        output.line(json.dumps(_report(result, removed), indent=2))
    else:
        _print(result, removed, output)
    return 0 if result.is_sound else DamagedCheckpoint.exit_code


def _verify(located: Located, folder: Path, quick: bool, output: Output) -> _Result:
    output.progress("checking headers ...")
    contents = contents_of(folder)
    headers = "" if contents.missing else _check_headers(folder)
    files = stored_files(folder)
    result = _Result(located, folder, files, contents.missing, headers, (), quick)
    checked = result.checked
    n_files, n_bytes = len(checked), sum(file.n_bytes for file in checked)
    bar = FileBar(output)

    def advance(n_done: int, n_read: int) -> None:
        bar.advance(
            FilesState(
                n_done=n_done,
                n_files=n_files,
                here_bytes=n_read,
                n_bytes=n_bytes,
                received_bytes=n_read,
                n_checking=0,
                n_elsewhere=0,
            )
        )

    try:
        damages = verify_files(checked, min(_MOST_THREADS, os.cpu_count() or 1), advance)
    finally:
        output.clear_progress()
    return _Result(located, folder, files, contents.missing, headers, damages, quick)


def _check_headers(folder: Path) -> str:
    """Return what is wrong with config, index and headers; empty for nothing.

    Raises
    ------
    UnsupportedModel
        It is no DeepSeek-V4 that localv4 runs.
    """
    # Imported here, as NumPy is not for --help.
    from localv4.checkpoint import Checkpoint

    try:
        Checkpoint.open(folder).close()
    except (DamagedCheckpoint, ModelNotFound) as error:
        return str(error)
    return ""


def _report(result: _Result, removed: int | None) -> dict[str, Any]:
    return {
        "model": result.located.name,
        "path": str(result.folder),
        "commit": result.located.commit,
        "sound": result.is_sound,
        "headers": result.headers or None,
        "missing": [*result.missing],
        "n_files": len(result.files),
        "n_bytes": sum(file.n_bytes for file in result.files),
        "n_checked": len(result.checked),
        "damaged": [
            {
                "file": damage.file.name,
                "n_bytes": damage.file.n_bytes,
                "expected": damage.file.expected,
                "found": damage.found,
                "reason": damage.reason,
            }
            for damage in result.damages
        ],
        "removed_bytes": removed,
    }


def _print(result: _Result, removed: int | None, output: Output) -> None:
    name = result.located.name
    for damage in result.damages:
        output.line(one_line(f"DAMAGED {damage.file.name}: {damage.reason}"))
    told = {damage.file.name for damage in result.damages}
    for missing in (name for name in result.missing if name not in told):
        output.line(one_line(f"MISSING {missing}"))
    if result.headers and not result.damages:  # whose checksums tell more
        output.line(one_line(f"DAMAGED {result.headers}"))
    if result.is_sound:
        output.line(one_line(f"{name}: {_praise(result)}"))
        if not result.checked and not result.is_quick:
            output.note("this folder carries no checksums: headers and sizes were checked")
        return
    if removed is not None and result.damages:
        output.note(f"removed {len(result.damages)} damaged, freed {format_bytes(removed)}")
    output.failure(f"{name} {_complaint(result)}; {_next_step(result, removed is not None)}")


def _praise(result: _Result) -> str:
    n_bytes = format_bytes(sum(file.n_bytes for file in result.files))
    if result.checked:
        rest = len(result.files) - len(result.checked)
        besides = f"; {rest} more have none" if rest else ""
        return (
            f"sound, {n_bytes}, every byte of {len(result.checked)} files as their checksums "
            f"say{besides}"
        )
    return f"sound as far as headers and sizes tell, {len(result.files)} files, {n_bytes}"


def _complaint(result: _Result) -> str:
    if result.damages:
        return f"has {len(result.damages)} damaged of {len(result.checked)} files checked"
    if result.missing:
        n_missing = len(result.missing)
        return f"is not all here, {n_missing} file{'' if n_missing == 1 else 's'} missing"
    return "is damaged"


def _next_step(result: _Result, is_removed: bool) -> str:
    if result.located.repo is None:
        return "get the files again from where they came"
    if result.damages and not is_removed:
        return (
            f"remove them with: localv4 verify {result.located.name} --remove-damaged; then "
            f"{result.located.next_step} gets just these"
        )
    return f"get what is missing with: {result.located.next_step}"
