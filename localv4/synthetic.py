"""Checkpoints with random weights in the exact on-disk format of the releases.

For a first try without a download, for tests and for benchmarks: config.json, shards laid out like
the releases with their index, a tokenizer and a generation_config.json that asks for no thinking.
Tiny ones, ones with layers of the released widths, and sparse ones that take no disk. Follows the
spec's checkpoint layout; knows nothing of what the weights are.
"""

import errno
import json
import secrets
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from localv4.encoding.literals import BOS, EOS
from localv4.errors import InvalidInput, OutOfBudget
from localv4.shard_writer import Pieces, write_shard
from localv4.sizes import format_bytes
from localv4.synthetic_config import FULL_WIDTH, PRESETS, Preset, Routing, Sizes
from localv4.synthetic_plan import Layout, Request, WritePlan, make_write_plan
from localv4.synthetic_pools import PooledWeights
from localv4.synthetic_weights import random_tensor
from localv4.tensors import TensorSpec

__all__ = ["FULL_WIDTH", "PRESETS", "Layout", "Preset", "Routing", "Sizes", "synthesise"]

Progress = Callable[[int, int], None]

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_PROBE_BYTES = 2**24


def synthesise(
    folder: Path,
    preset: Preset = "flash",
    seed: int = 0,
    compress_ratios: tuple[int, ...] | None = None,
    *,
    sizes: Sizes | None = None,
    layout: Layout = "release",
    dspark: bool = False,
    n_layers: int | None = None,
    full_width: bool = False,
    mtp: bool | None = None,
    sparse: bool = False,
    routing: Routing = "random",
    progress: Progress = lambda done, total: None,
) -> None:
    """Write a checkpoint; a tiny one takes seconds. The same arguments give the same bytes.

    The folder appears complete or not at all: it is written beside its place and then renamed.

    Parameters
    ----------
    folder
        Where to; must not exist, or be empty. Parents are made.
    preset
        "flash", "pro" (FP4 experts), "flash-base" or "pro-base" (FP8 experts, F32 scales).
    seed
        Not negative.
    compress_ratios
        One ratio (0, 4, 128) for each layer, and so the number of layers; None for the preset's.
    sizes
        None for the preset's; ``dataclasses.replace(PRESETS["flash"], n_routed_experts=4)``. At
        full width the preset's are in `FULL_WIDTH`.
    layout
        "release": an embedding shard, one a layer, head, MTP. "scattered": tensors dealt in turn
        to unaligned shards, a weight apart from its scale. "single": one file without index.
    dspark
        Like the later releases: a drafter instead of the MTP block, which localv4 leaves unread.
    n_layers
        The first layers of the release, instead of `compress_ratios`. None: five tiny ones; at
        full width four, which show every kind, or all of the release if `sparse`.
    full_width
        The released sizes, vocabulary and tokenizer: Flash takes 3.6 GB a layer and 2.1 GB for
        embedding and head, Pro 13.9 and 3.7 GB, a -Base layer nearly twice as much. Large matrices
        are slices of a pool of random codes, so that the disk sets the pace.
    mtp
        Whether there is an MTP block, as large as a layer. None: yes, but at full width only if
        `sparse`.
    sparse
        Holes, which read as zeros and take no disk, in place of routed experts and of all other
        tensors above 256 KiB but the routing tables. For opening, not for answers.
    routing
        "random": no popularity is asked for, and chance decides it. What all tokens have in common
        makes the gates prefer some experts even so. "uniform": all about equally often, by the
        token alone. "skewed": 50, 80 and 95 % of what a gate selects are 9, 25 and 46 % of the
        experts, others in each layer, and a text stays with topics and so with experts. The latter
        two are named in generation_config.json as "localv4_routing". Layers routed by table stay
        as they are. With "skewed" a cache hits as published for the text that the model samples,
        not for any ids; a byte vocabulary has so few words that it is more skewed still.
    progress
        Told the bytes written so far and in all, holes included.

    Raises
    ------
    InvalidInput
        If the folder is not empty or can't be written, or the sizes don't fit the format or make
        more than 2 GiB without `full_width`.
    OutOfBudget
        If the disk has less room than needed, or gets full; nothing is left behind.
    """
    plan = make_write_plan(
        Request(
            preset,
            compress_ratios,
            sizes,
            layout,
            dspark,
            n_layers,
            full_width,
            mtp,
            sparse,
            routing,
        )
    )
    if seed < 0:
        raise InvalidInput(f"the seed {seed} is negative; choose an integer from 0 up")
    folder = Path(folder).absolute()
    partial = folder.parent / f".{folder.name[:80]}.{secrets.token_hex(4)}.partial"
    try:
        _refuse_occupied(folder)
        partial.mkdir(parents=True)
        _refuse_full_disk(partial, folder, plan)
        _write(partial, plan, seed, progress)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutOfBudget(
                f"the disk is too full for {plan.disk_bytes(plan.sparse):,} bytes in {folder}; "
                "free some, or choose another folder"
            ) from None
        raise InvalidInput(
            f"{folder} can't be written ({error.strerror or error}); choose another folder"
        ) from None
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _refuse_occupied(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists() or folder.is_symlink():
        raise InvalidInput(f"{folder} is there already; choose a new folder or empty that one")


def _refuse_full_disk(partial: Path, folder: Path, plan: WritePlan) -> None:
    """Refuse before anything is written what the disk has no room for."""
    holes = plan.sparse and _keeps_holes(partial)
    needed, free = plan.disk_bytes(holes), shutil.disk_usage(partial).free
    if needed > free:
        without = " on a disk that keeps no holes" if plan.sparse and not holes else ""
        raise OutOfBudget(
            f"{folder} needs {format_bytes(needed)}{without} and {format_bytes(free)} are free; "
            "free some, choose another folder, or ask for fewer layers"
        )


def _keeps_holes(folder: Path) -> bool:
    """Whether a file that was only made longer takes no disk there."""
    probe = folder / "holes"
    with probe.open("xb") as file:
        file.truncate(_PROBE_BYTES)
    # Windows doesn't say; there such a file takes its full length.
    n_blocks = getattr(probe.stat(), "st_blocks", None)
    probe.unlink()
    return n_blocks is not None and n_blocks * 512 < _PROBE_BYTES // 2


def _pieces(plan: WritePlan, seed: int) -> Pieces:
    """Return where a tensor's values come from."""
    pooled = PooledWeights(plan.config, seed, plan.favoured, plan.routing)

    def pieces(spec: TensorSpec) -> Iterable[NDArray[Any]] | None:
        if plan.is_hole(spec):
            return None
        if plan.full_width:
            return pooled.pieces(spec)
        return (random_tensor(spec, plan.config, seed, plan.routing),)

    return pieces


def _write(folder: Path, plan: WritePlan, seed: int, progress: Progress) -> None:
    pieces, done = _pieces(plan, seed), 0

    def wrote(n_bytes: int) -> None:
        nonlocal done
        done += n_bytes
        progress(done, plan.tensor_bytes)

    for name, specs in plan.shards.items():
        write_shard(folder / name, specs, pieces, aligned=plan.layout != "scattered", wrote=wrote)
    if plan.layout != "single":
        weight_map = {spec.name: name for name, specs in plan.shards.items() for spec in specs}
        total = plan.tensor_bytes
        _write_json(
            folder / "model.safetensors.index.json",
            {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))},
        )
    (folder / "tokenizer.json").write_text(plan.tokenizer_text, encoding="utf-8")
    _write_json(
        folder / "tokenizer_config.json",
        {
            "add_bos_token": False,
            "add_eos_token": False,
            "bos_token": BOS,
            "eos_token": EOS,
            "model_max_length": plan.config.max_position_embeddings,
            "tokenizer_class": "PreTrainedTokenizerFast",
        },
    )
    _write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": plan.config.bos_token_id,
            "do_sample": True,
            "eos_token_id": plan.config.eos_token_id,
            "localv4_thinking": "off",
            "temperature": 1.0,
            "top_p": 1.0,
        }
        | ({"localv4_routing": plan.routing} if plan.routing != "random" else {}),
    )
    (folder / "config.json").write_text(plan.config_text, encoding="utf-8")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
