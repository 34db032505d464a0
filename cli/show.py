"""``localv4 show``: what a checkpoint is: config, tensors, sizes; also from config.json alone."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.names import complete_model
from localv4.cli.output import Output
from localv4.cli.subject import Subject, find_subject
from localv4.hub_cache import files_below, size_on_disk
from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.checkpoint import Checkpoint
    from localv4.config import ModelConfig
    from localv4.inventory import Inventory

__all__ = ["show"]


def show(
    ctx: typer.Context,
    path: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="Short name, repo, folder, or a config.json.",
            autocompletion=complete_model,
        ),
    ] = None,
    model: options.Model = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Show what a checkpoint is: its config, tensors and sizes.

    A folder with weights is validated. From config.json alone, or of a release that is not
    downloaded or only in part, the sizes are what the released format takes.

    Examples
    --------
    localv4 show flash
    localv4 show flash --tensors | head
    localv4 show --json
    """
    if path is not None and model is not None:
        raise typer.BadParameter("a model and --model are both given; give one", ctx)
    settings, output = options.start(ctx, {"model": path or model}, quiet, verbose)
    subject = find_subject(settings.model, output.warning)

    # Imported here, as NumPy is not for --help.
    from localv4.inventory import take_inventory

    if _can_be_opened(subject):
        from localv4.checkpoint import Checkpoint

        with Checkpoint.open(subject.path or Path()) as checkpoint:
            inventory, lacks_mtp = take_inventory(checkpoint), checkpoint.lacks_mtp
            listed = list(_tensors(checkpoint)) if tensors else []
    else:
        inventory, lacks_mtp = take_inventory(_config(subject)), False  # as far as is known
        listed = list(_expected_tensors(inventory)) if tensors else []
    about = _about(subject, inventory, lacks_mtp)
    if as_json:
        _print_json(about, inventory, listed if tensors else None, output)
    else:
        _print_text(subject, about, inventory, output)
        for number, row in enumerate(listed):
            if number == 0:
                output.line("")
            output.line(" ".join(str(value) for value in row.values()))


def _can_be_opened(subject: Subject) -> bool:
    """Whether there are weights to hold against the config; not those of a part of a download."""
    if subject.path is None or not subject.path.is_dir():
        return False
    if subject.located is not None and not subject.located.is_complete:
        return False
    return any(subject.path.glob("*.safetensors*"))


def _config(subject: Subject) -> "ModelConfig":
    from localv4.config import ModelConfig

    return subject.config or ModelConfig.from_path(subject.path or Path())


def _about(subject: Subject, inventory: "Inventory", lacks_mtp: bool) -> dict[str, Any]:
    """Return what is told of a model's files, for JSON."""
    from localv4.encoding.profile import detect_profile

    located, path = subject.located, subject.path
    is_folder = path is not None and path.is_dir()
    contents = None if located is None else located.contents
    is_base = inventory.expert_format == "fp8"
    return {
        "path": None if path is None else str(path),
        "name": None if located is None else located.name,
        "repo_id": None if located is None else located.repo_id,
        "commit": None if located is None else located.commit,
        "complete": _can_be_opened(subject),
        "n_shards": None if contents is None else contents.n_shards,
        "missing": None if contents is None else [*contents.missing],
        "lacks_mtp": lacks_mtp,
        "disk_bytes": size_on_disk(files_below(path)) if path is not None and is_folder else None,
        "is_base": is_base,
        "profile": None if is_base else detect_profile(path or Path(os.devnull), inventory.config),
    }


def _tensors(checkpoint: "Checkpoint") -> Iterator[dict[str, Any]]:
    for info in checkpoint.tensors.values():
        yield {
            "name": info.name,
            "dtype": info.dtype,
            "shape": list(info.shape),
            "shard": info.shard,
            "offset": info.offset,
            "bytes": info.nbytes,
        }


def _expected_tensors(inventory: "Inventory") -> Iterator[dict[str, Any]]:
    from localv4.tensors import expected_tensors

    for spec in expected_tensors(
        inventory.config, inventory.expert_format, inventory.scale_dtype, inventory.has_mtp
    ):
        yield {
            "name": spec.name,
            "dtype": spec.dtypes[0],
            "shape": list(spec.shape),
            "bytes": spec.nbytes,
        }


def _print_json(
    about: dict[str, Any],
    inventory: "Inventory",
    tensors: list[dict[str, Any]] | None,
    output: Output,
) -> None:
    report = {**about, **asdict(inventory), "has_mtp": inventory.has_mtp}
    if tensors is not None:
        report["tensors"] = tensors
    output.line(json.dumps(report, indent=2))


def _print_text(
    subject: Subject, about: dict[str, Any], inventory: "Inventory", output: Output
) -> None:
    rows = {"model": subject.title, **_file_rows(subject, about), **_model_rows(about, inventory)}
    if subject.path is not None and rows["model"] != str(subject.path):
        rows["folder"] = str(subject.path)
    for name, value in rows.items():
        output.row(name, value)
    output.line(f"\n{'':<14} {'tensors':>9} {'size':>9} {'bytes':>19}")
    for part in (*inventory.parts, inventory.body, inventory.total):
        size = format_bytes(part.nbytes)
        output.line(f"{part.name:<14} {part.n_tensors:>9,} {size:>9} {part.nbytes:>19,}")


def _file_rows(subject: Subject, about: dict[str, Any]) -> dict[str, str]:
    """Return what is here of a repo's files, and what to do for the rest."""
    located = subject.located
    if located is None or located.repo_id is None:
        return {}
    rows = {"repo": located.repo_id}
    if located.commit is not None and located.repo is not None:
        refs = [ref for ref, commit in located.repo.refs.items() if commit == located.commit]
        rows["commit"] = " ".join([located.commit, *(f"({ref})" for ref in refs)])
    if subject.path is not None:
        partial = 0 if located.repo is None else located.repo.partial_bytes()
        rows["on disk"] = format_bytes(about["disk_bytes"])
        if partial:
            rows["on disk"] += f", and {format_bytes(partial)} of unfinished files"
    contents = located.contents
    if contents is not None and located.is_complete:
        rows["files"] = f"complete, {contents.n_shards} shards"
    elif contents is not None and subject.path is not None:
        rows["files"] = f"{contents.share}; finish with: {located.next_step}"
    else:
        rows["files"] = f"none; get them with: {located.next_step}"
    return rows


def _model_rows(about: dict[str, Any], inventory: "Inventory") -> dict[str, str]:
    config, kinds = inventory.config, inventory.layer_kinds
    counted = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in ("sliding", "csa", "hca") if kind in kinds
    )
    mtp = "an MTP block" if inventory.has_mtp else "no MTP block"
    if about["lacks_mtp"]:
        mtp = "the MTP block not here"
    profile = "none: a Base checkpoint continues text" if about["is_base"] else about["profile"]
    rows = {
        "chat format": profile,
        "formats": f"{inventory.expert_format} experts, {inventory.scale_dtype} scales, {mtp}",
        "layers": f"{len(kinds)} ({counted}), the first {config.num_hash_layers} hash-routed",
        "hidden size": f"{config.hidden_size:,}",
        "heads": f"{config.num_attention_heads} of {config.head_dim}",
        "experts": f"{config.n_routed_experts} routed, {config.num_experts_per_tok} a token, "
        f"{format_bytes(inventory.expert_bytes)} each",
        "vocabulary": f"{config.vocab_size:,}",
        "context": f"{config.max_position_embeddings:,} tokens, "
        f"{format_bytes(round(inventory.kv_bytes_per_token))} of KV state each",
    }
    if unread := _unread_words(about, inventory):
        rows["left unread"] = unread
    return rows


def _unread_words(about: dict[str, Any], inventory: "Inventory") -> str:
    if inventory.n_unread is None:  # from a config alone they can't be counted
        return "the tensors of a DSpark drafter (mtp.*)"
    if not inventory.n_unread:
        return ""
    if about["lacks_mtp"]:
        words = f"{inventory.n_unread:,} tensors of the MTP block, for drafting alone and left out"
        if about["repo_id"] is None:
            return f"{words} of the download"
        return f"{words}; localv4 pull {about['name']} --include-draft gets them"
    return f"{inventory.n_unread:,} tensors of a drafter"
