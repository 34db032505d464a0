"""``localv4 rm``: checkpoints removed from the hub's cache."""

import json
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.asking import agrees
from localv4.cli.names import complete_repo
from localv4.cli.output import one_line
from localv4.errors import InvalidInput, ModelNotFound
from localv4.hub_cache import files_below, size_on_disk
from localv4.installed import is_v4
from localv4.models import Located, locate
from localv4.removing import Removal, plan_removal, remove
from localv4.sizes import format_bytes

__all__ = ["rm"]


@dataclass(frozen=True)
class _Target:
    """What to remove: from the hub's cache, or the built-in model's folder."""

    located: Located
    removal: Removal | None
    n_bytes: int

    @property
    def words(self) -> str:
        """What it is, for a question."""
        if self.removal is None:
            return "the built-in model"
        repo, name = self.removal.repo, self.located.name.partition("@")[0]
        if not self.removal.is_whole:
            return f"commit {self.removal.commits[0][:7]} of {name}"
        if repo.folder.is_symlink():
            return f"the link {repo.folder}, not what it leads to"
        n_commits = len(self.removal.commits)
        return f"{name}{f' ({n_commits} commits)' if n_commits > 1 else ''}"


def rm(
    ctx: typer.Context,
    names: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Short names, repos, or built-in.",
            autocompletion=complete_repo,
        ),
    ],
    revision: Annotated[
        str | None,
        typer.Option(metavar="R", help="Only this branch, tag or commit; else all of a repo."),
    ] = None,
    yes: Annotated[bool, typer.Option("-y", "--yes", help="Don't ask.")] = False,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> int:
    """Remove checkpoints from this machine, unfinished downloads too.

    Says first what it frees: what other commits need stays. Only the hub's cache is touched, never
    a folder of your own. Exit code 1 if the answer to the question is no.

    Examples
    --------
    localv4 rm flash-base
    localv4 rm pro --revision 1a2b3c4 -y
    """
    _, output = options.start(ctx, {}, quiet, verbose)
    wanted = [f"{name}@{revision}" if revision else name for name in names]
    targets = _once([_target(name) for name in wanted])
    freed = sum(target.n_bytes for target in targets.values())
    what = one_line(", ".join(targets))
    if not yes and not agrees(f"remove {what}, and free {format_bytes(freed)}?", output):
        output.note("nothing was removed")
        return 1
    for target in targets.values():
        if target.removal is not None:
            remove(target.removal)
        elif target.located.folder is not None:
            shutil.rmtree(target.located.folder)
    if as_json:
        output.line(json.dumps(_report([*targets.values()], freed), indent=2))
    output.note(f"removed {what}; freed {format_bytes(freed)}")
    return 0


def _once(targets: Sequence[_Target]) -> dict[str, _Target]:
    """Return targets by their words, without commits of a repo that goes as a whole."""
    removals = [target.removal for target in targets if target.removal is not None]
    whole = {removal.repo.repo_id for removal in removals if removal.is_whole}
    return {
        target.words: target
        for target in targets
        if target.removal is None
        or target.removal.is_whole
        or target.removal.repo.repo_id not in whole
    }


def _target(name: str) -> _Target:
    """Find what a name stands for.

    Raises
    ------
    ModelNotFound
        There is no such model here.
    InvalidInput
        It is a folder of the user's, another program's model, or a download is running.
    """
    located = locate(name)
    if located.is_builtin:
        if located.folder is None:
            raise ModelNotFound("the built-in model is not made; there is nothing to remove")
        return _Target(located, None, size_on_disk(files_below(located.folder)))
    if located.repo_id is None:
        raise InvalidInput(
            f"{name} is a folder of yours, not a download in the hub's cache; remove it yourself"
        )
    if located.repo is None or ("@" in located.name and located.commit is None):
        raise ModelNotFound(f"{located.name} is not on this machine; see localv4 list")
    if located.repo.commits and not is_v4(located.repo):
        raise InvalidInput(
            f"{located.repo_id} is not a DeepSeek-V4; remove it with the program that fetched it"
        )
    commit = located.commit if "@" in located.name else None
    removal = plan_removal(located.repo, commit)
    return _Target(located, removal, removal.n_bytes)


def _report(targets: list[_Target], freed: int) -> dict[str, Any]:
    return {
        "freed_bytes": freed,
        "removed": [
            {
                "name": target.located.name,
                "repo_id": target.located.repo_id,
                "commits": [] if target.removal is None else [*target.removal.commits],
                "freed_bytes": target.n_bytes,
            }
            for target in targets
        ],
    }
