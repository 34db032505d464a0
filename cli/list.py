"""``localv4 list``: the DeepSeek-V4 checkpoints on this machine."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import typer

from localv4.cli import options
from localv4.cli.output import Output, one_line
from localv4.installed import Inhabitants, Installed, find_installed
from localv4.sizes import format_bytes

__all__ = ["list"]

_HEADS = ("name", "kind", "draft", "size", "commit", "state", "changed", "path")
_RIGHT = ("size",)
_EXPENDABLE = ("path", "changed", "draft", "commit")  # left out first where the terminal is narrow
_DRAFTS = {"here": "yes", "left out": "no", "unread": "unread", "none": "no"}
_GAP = "  "
_LEAST_NAME = 12
_ELLIPSIS = "..."


def list(
    ctx: typer.Context,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """List the DeepSeek-V4 checkpoints on this machine, one line for each commit.

    They lie in the hub's own cache (HF_HOME), where other programs find them too. The built-in
    model, tiny and random, is made on first use.

    Examples
    --------
    localv4 list
    localv4 list --json
    """
    _, output = options.start(ctx, {}, quiet, verbose)
    found = find_installed()
    if as_json:
        output.line(json.dumps(_report(found), indent=2))
        return
    for row in _table([_cells(model) for model in found.models], output.answer_columns):
        output.line(row)
    _print_summary(found, output)


def _report(found: Inhabitants) -> dict[str, Any]:
    return {
        "cache": str(found.cache),
        "n_bytes": found.n_bytes,
        "n_others": found.n_others,
        "models": [_model_report(model) for model in found.models],
    }


def _model_report(model: Installed) -> dict[str, Any]:
    contents = model.contents
    return {
        "name": model.name,
        "repo_id": model.repo_id,
        "commit": model.commit,
        "refs": [*model.refs],
        "path": str(model.folder),
        "kind": model.kind,
        "draft": model.draft,
        "complete": model.is_complete,
        "n_shards": None if contents is None else contents.n_shards,
        "missing": None if contents is None else [*contents.missing],
        "n_bytes": model.n_bytes,
        "partial_bytes": model.partial_bytes,
        "modified_s": model.modified_s,
    }


def _cells(model: Installed) -> dict[str, str]:
    """Return a row's texts, those of strangers without anything that acts on a terminal."""
    changed = ""
    if model.modified_s is not None:
        changed = time.strftime("%Y-%m-%d", time.localtime(model.modified_s))
    cells = {
        "name": model.name,
        "kind": model.kind,
        "draft": _DRAFTS[model.draft],
        "size": format_bytes(model.n_bytes + model.partial_bytes),
        "commit": (model.commit or "")[:7],
        "state": "not made yet" if model.contents is None else model.contents.share,
        "changed": changed,
        "path": str(model.folder),
    }
    return {head: one_line(text) for head, text in cells.items()}


def _table(rows: Sequence[Mapping[str, str]], columns: int | None) -> Iterator[str]:
    """Yield a table's lines; on a terminal of so many columns what tells least is left out."""
    widths = {head: max(len(head), *(len(row[head]) for row in rows)) for head in _HEADS}
    for head in _EXPENDABLE:
        if columns is not None and _width(widths) > columns:
            del widths[head]
    if columns is not None and _width(widths) > columns:
        widths["name"] = max(_LEAST_NAME, widths["name"] - (_width(widths) - columns))
    for row in ({head: head for head in _HEADS}, *rows):
        cells = (_cell(head, row[head], width) for head, width in widths.items())
        yield _GAP.join(cells).rstrip()


def _width(widths: Mapping[str, int]) -> int:
    return sum(widths.values()) + len(_GAP) * (len(widths) - 1)


def _cell(head: str, text: str, width: int) -> str:
    if len(text) > width:
        # the end of a name tells more than its middle
        kept = width - len(_ELLIPSIS)
        text = f"{text[: kept // 2]}{_ELLIPSIS}{text[-(kept - kept // 2) :]}"
    return text.rjust(width) if head in _RIGHT else text.ljust(width)


def _print_summary(found: Inhabitants, output: Output) -> None:
    n_downloaded = sum(model.repo_id is not None for model in found.models)
    others = f"; repos of other models there: {found.n_others}" if found.n_others else ""
    where = f"in {one_line(str(found.cache))}"
    if not n_downloaded:
        output.note("no DeepSeek-V4 is downloaded; get one with: localv4 pull flash")
        return
    count = f"{n_downloaded} download{'' if n_downloaded == 1 else 's'}"
    output.note(f"{count}, {format_bytes(found.n_bytes)}, {where}{others}")
