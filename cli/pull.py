"""``localv4 pull``: a checkpoint of the hub fetched into its cache, after a look at the plan."""

import json
import logging
from collections.abc import Sequence
from dataclasses import replace
from typing import Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.asking import agrees
from localv4.cli.file_bar import FileBar
from localv4.cli.names import complete_repo
from localv4.cli.output import Output, one_line
from localv4.cli.stopping import Stopped, stoppable
from localv4.errors import InvalidInput
from localv4.hub import HubBusy, cache_folder, describe, is_offline
from localv4.models import Located, locate
from localv4.pull import pull as fetch
from localv4.pull_plan import PlannedFile, PullPlan, make_plan
from localv4.sizes import format_bytes

__all__ = ["plan_rows", "pull"]

_SHORT_COMMIT = 10


def pull(
    ctx: typer.Context,
    repo: Annotated[
        str,
        typer.Argument(
            metavar="REPO",
            help="A short name such as flash, or owner/name.",
            autocompletion=complete_repo,
        ),
    ],
    revision: Annotated[
        str | None, typer.Option(metavar="R", help="Branch, tag or commit; else main.")
    ] = None,
    include_draft: Annotated[
        bool, typer.Option("--include-draft", help="Also the MTP block or drafter.")
    ] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and fetch nothing.")
    ] = False,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Don't ask.")] = False,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int | None:
    """Fetch a checkpoint from the Hugging Face hub, or what of it is not here yet.

    localv4 pull flash shows what it takes and asks; localv4 run -m "$(localv4 pull flash -y)" ...
    does not. Prints the checkpoint's folder. Whatever interrupts it, the same command goes on where
    it ended. Files go to the hub's own cache (HF_HOME); HF_TOKEN and HF_HUB_OFFLINE are honoured.

    Exit code 1 if the answer to the question is no.

    Examples
    --------
    localv4 pull flash --dry-run
    localv4 pull flash -y
    localv4 pull flash-base -y --include-draft
    """
    _, output = options.start(ctx, {}, quiet, verbose)
    if not verbose:
        # what it warns of while it tries again is told in the end, if it fails
        logging.getLogger("huggingface_hub").setLevel(logging.ERROR)
    with stoppable():
        located = _located(repo, revision)
        plan = _plan(located, include_draft, output)
        if plan is None:
            report = _offline_report(located)
        else:
            report = _plan_report(plan)
            if not as_json and (dry_run or not plan.is_complete):
                _show(plan, dry_run, output)
            elif dry_run:
                output.line(json.dumps(report, indent=2))
            plan.refuse_small_disk()
            if dry_run:
                return None
            if not _fetch(plan, yes, output):
                output.note("nothing was fetched")
                return 1
            what = f"{format_bytes(plan.fetch_bytes)} of {plan.repo.repo_id}, {plan.repo.commit}"
            output.note(f"fetched {what}", level=1, log=True)
            report = _plan_report(_fulfilled(plan)) | {"fetched_bytes": plan.fetch_bytes}
    output.line(json.dumps(report, indent=2) if as_json else str(report["folder"]))
    output.note(_next_step(located))
    return None


def _located(name: str, revision: str | None) -> Located:
    """Return which repo is meant, and what of it is here."""
    located = locate(f"{name}@{revision}" if revision else name)
    if located.is_builtin:
        raise InvalidInput("the built-in model is made on first use; there is nothing to fetch")
    if located.repo_id is None:
        raise InvalidInput(f"{name} is a folder here; name a repo of the hub, as owner/name")
    return located


def _plan(located: Located, include_draft: bool, output: Output) -> PullPlan | None:
    """Return what is to fetch; None where the hub can't be asked and nothing is to fetch."""
    assert located.repo_id is not None
    drafts = ("here", "none") if include_draft else ("here", "none", "absent")
    is_here = (
        located.is_complete and located.contents is not None and located.contents.draft in drafts
    )
    if is_here and is_offline():
        output.note(f"all of {located.repo_id} is here (HF_HUB_OFFLINE: the hub was not asked)")
        return None
    try:
        repo = describe(located.repo_id, located.name.partition("@")[2] or "main")
        return make_plan(repo, cache_folder(), include_draft)
    except HubBusy as error:
        if not is_here:
            raise
        output.warning(f"{str(error).rpartition(';')[0]}, but all of {located.repo_id} is here")
        return None


def _fetch(plan: PullPlan, yes: bool, output: Output) -> bool:
    """Fetch what is missing; returns False if that is not wanted."""
    if plan.is_complete:
        output.note(f"all of {plan.repo.repo_id} is here, {format_bytes(plan.n_bytes)}")
    elif not yes and not agrees(f"fetch {format_bytes(plan.fetch_bytes)}?", output, usual=True):
        return False
    bar = FileBar(output)
    try:
        fetch(plan, bar.advance)
    except (KeyboardInterrupt, Stopped):
        here, all_of_it = bar.here_bytes or plan.here_bytes, format_bytes(plan.n_bytes)
        output.note(
            f"stopped; {format_bytes(here)} of {all_of_it} are kept: the same command goes on there"
        )
        raise
    finally:
        output.clear_progress()
    return True


def _fulfilled(plan: PullPlan) -> PullPlan:
    """Return the plan as it is once all is here."""
    whole = (replace(file, here_bytes=file.remote.n_bytes, is_whole=True) for file in plan.files)
    return replace(plan, files=tuple(whole))


def _show(plan: PullPlan, dry_run: bool, output: Output) -> None:
    """Show the plan: on standard output if it is all that was asked for."""
    write = output.line if dry_run else output.note
    for row in plan_rows(plan, every_file=output.verbosity > 0):
        write(one_line(row))


def plan_rows(plan: PullPlan, every_file: bool) -> list[str]:
    """Return a plan as lines: what, its size, how much of it is here, and what is to fetch."""
    repo = plan.repo
    small = [file for file in plan.files if not file.is_shard]
    shards = [file for file in plan.files if file.is_shard]
    rows = [
        _row("config, tokenizer, ...", small),
        _row(f"weights, {_count(len(shards), 'shard')}", shards),
    ]
    if every_file:
        rows = [_row(file.remote.path, [file]) for file in plan.files]
    rows.append(_row("all", plan.files))
    heading = ("", "size", "here", "to fetch")
    width = max(len(name) for name, *_ in rows)
    commit = (
        repo.commit
        if repo.revision == repo.commit
        else (f"{repo.revision} ({repo.commit[:_SHORT_COMMIT]})")
    )
    lines = [f"{repo.repo_id}, {commit}"]
    for name, *sizes in (heading, *rows):
        lines.append(f"  {name:<{width}}" + "".join(f"  {size:>9}" for size in sizes))
    if plan.left_out:
        n_bytes = sum(file.n_bytes for file in plan.left_out)
        what = f"{_count(len(plan.left_out), 'shard')} for drafting, {format_bytes(n_bytes)}"
        lines.append(f"  left out: {what} (--include-draft)")
    lines.append(f"  {format_bytes(plan.free_bytes)} free in {plan.cache}")
    return lines


def _row(name: str, files: Sequence[PlannedFile]) -> tuple[str, ...]:
    sizes = (
        sum(file.remote.n_bytes for file in files),
        sum(file.here_bytes for file in files),
        sum(file.fetch_bytes for file in files),
    )
    return (name, *map(format_bytes, sizes))


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"


def _plan_report(plan: PullPlan) -> dict[str, Any]:
    return {
        "repo_id": plan.repo.repo_id,
        "revision": plan.repo.revision,
        "commit": plan.repo.commit,
        "folder": str(plan.snapshot),
        "complete": plan.is_complete,
        "n_bytes": plan.n_bytes,
        "here_bytes": plan.here_bytes,
        "fetch_bytes": plan.fetch_bytes,
        "free_bytes": plan.free_bytes,
        "left_out_bytes": sum(file.n_bytes for file in plan.left_out),
        "files": [
            {
                "path": file.remote.path,
                "n_bytes": file.remote.n_bytes,
                "here_bytes": file.here_bytes,
                "state": file.state,
            }
            for file in plan.files
        ],
    }


def _offline_report(located: Located) -> dict[str, Any]:
    return {
        "repo_id": located.repo_id,
        "revision": located.name.partition("@")[2] or "main",
        "commit": located.commit,
        "folder": str(located.folder),
        "complete": True,
    }


def _next_step(located: Located) -> str:
    if str(located.repo_id).lower().endswith("-base"):
        return f'next: localv4 run --raw -m {located.name} "Once upon a time"'
    return f"next: localv4 chat -m {located.name}"
