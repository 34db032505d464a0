"""``localv4 show``: what a checkpoint is: config, tensors, sizes; also from config.json alone."""

import json
import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.output import Output
from localv4.models import resolve
from localv4.sizes import format_bytes

if TYPE_CHECKING:
    from localv4.checkpoint import Checkpoint
    from localv4.inventory import Inventory

__all__ = ["show"]


def show(
    ctx: typer.Context,
    path: Annotated[
        str | None, typer.Argument(metavar="[PATH]", help="Checkpoint folder, or a config.json.")
    ] = None,
    model: options.Model = None,
    tensors: Annotated[bool, typer.Option("--tensors", help="List every tensor.")] = False,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Show what a checkpoint is: its config, tensors and sizes.

    A folder with weights is validated. From config.json alone the sizes are what the released
    format takes.
    """
    if path is not None and model is not None:
        raise typer.BadParameter("a path and --model are both given; give one", ctx)
    settings, output = options.start(ctx, {"model": path or model}, quiet, verbose)
    file = Path(os.path.expanduser(settings.model or ""))  # noqa: PTH111 (never fails)
    if file.suffix != ".json" or not os.path.isfile(file):  # noqa: PTH113 (never fails)
        file = resolve(settings.model, say=output.warning)

    # Imported here, as NumPy is not for --help.
    from localv4.inventory import take_inventory

    if file.is_dir() and any(file.glob("*.safetensors*")):
        from localv4.checkpoint import Checkpoint

        with Checkpoint.open(file) as checkpoint:
            inventory = take_inventory(checkpoint)
            listed = list(_tensors(checkpoint)) if tensors else []
    else:
        from localv4.config import ModelConfig

        inventory = take_inventory(ModelConfig.from_path(file))
        listed = list(_expected_tensors(inventory)) if tensors else []
    if as_json:
        _print_json(file, inventory, listed if tensors else None, output)
    else:
        _print_text(file, inventory, output)
        for number, row in enumerate(listed):
            if number == 0:
                output.line("")
            output.line(" ".join(str(value) for value in row.values()))


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
    path: Path, inventory: "Inventory", tensors: list[dict[str, Any]] | None, output: Output
) -> None:
    report = {"path": str(path), **asdict(inventory), "has_mtp": inventory.has_mtp}
    if tensors is not None:
        report["tensors"] = tensors
    output.line(json.dumps(report, indent=2))


def _print_text(path: Path, inventory: "Inventory", output: Output) -> None:
    config, kinds = inventory.config, inventory.layer_kinds
    counted = ", ".join(
        f"{kinds.count(kind)} {kind}" for kind in ("sliding", "csa", "hca") if kind in kinds
    )
    mtp = "an MTP block" if inventory.has_mtp else "no MTP block"
    rows = {
        "model": str(path),
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
    for name, value in rows.items():
        output.line(f"{name:<12} {value}")
    if inventory.n_unread:
        output.line(f"{'left unread':<12} {inventory.n_unread:,} tensors of a drafter")
    elif inventory.n_unread is None:  # from a config alone they can't be counted
        output.line(f"{'left unread':<12} the tensors of a DSpark drafter (mtp.*)")
    output.line(f"\n{'':<14} {'tensors':>9} {'size':>9} {'bytes':>19}")
    for part in (*inventory.parts, inventory.body, inventory.total):
        size = format_bytes(part.nbytes)
        output.line(f"{part.name:<14} {part.n_tensors:>9,} {size:>9} {part.nbytes:>19,}")
