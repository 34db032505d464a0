"""Tiny checkpoints with random weights in the exact on-disk format of the releases.

For a first try without a download, for tests and for benchmarks: config.json, shards laid out like
the releases with their index, a byte tokenizer and a generation_config.json that asks for no
thinking. Follows the spec's checkpoint layout; knows nothing of what the weights are.
"""

import errno
import json
import secrets
import shutil
from dataclasses import dataclass
from itertools import cycle
from pathlib import Path
from typing import Any, Literal, get_args

from localv4.byte_tokenizer import byte_level_tokenizer_json
from localv4.config import ModelConfig
from localv4.encoding.literals import BOS, EOS
from localv4.errors import DamagedCheckpoint, InvalidInput, OutOfBudget, UnsupportedModel
from localv4.shard_writer import write_shard
from localv4.sizes import format_bytes
from localv4.synthetic_config import PRESETS, Preset, Sizes, config_json
from localv4.synthetic_weights import random_tensor
from localv4.tensors import DTYPE_BYTES, TensorSpec, expected_tensors

__all__ = ["PRESETS", "Layout", "Preset", "Sizes", "synthesise"]

Layout = Literal["release", "scattered", "single"]

_N_SCATTERED = 5
_MOST_BYTES = 2 * 2**30
_MOST_TENSORS = 200_000  # the released Pro has 145,116
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True)
class _Plan:
    """What to write: config.json and the tensors of each file in order."""

    config_text: str
    config: ModelConfig
    tokenizer_text: str
    shards: dict[str, list[TensorSpec]]
    layout: Layout


def synthesise(
    folder: Path,
    preset: Preset = "flash",
    seed: int = 0,
    compress_ratios: tuple[int, ...] | None = None,
    *,
    sizes: Sizes | None = None,
    layout: Layout = "release",
    dspark: bool = False,
) -> None:
    """Write a checkpoint of some megabytes; takes seconds. The same arguments give the same bytes.

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
        None for the preset's; ``dataclasses.replace(PRESETS["flash"], n_routed_experts=4)``.
    layout
        "release": an embedding shard, one a layer, head, MTP. "scattered": tensors dealt in turn
        to unaligned shards, a weight apart from its scale. "single": one file without index.
    dspark
        Like the later releases: a drafter instead of the MTP block, which localv4 leaves unread.

    Raises
    ------
    InvalidInput
        If the folder is not empty or can't be written, or the sizes don't fit the format or make
        more than 2 GiB.
    OutOfBudget
        If the disk is full; nothing is left behind.
    """
    plan = _plan(preset, compress_ratios, sizes, layout, dspark)
    if seed < 0:
        raise InvalidInput(f"the seed {seed} is negative; choose an integer from 0 up")
    folder = Path(folder).absolute()
    partial = folder.parent / f".{folder.name[:80]}.{secrets.token_hex(4)}.partial"
    try:
        _refuse_occupied(folder)
        partial.mkdir(parents=True)
        _write(partial, plan, seed)
        if folder.exists():
            folder.rmdir()
        partial.rename(folder)
    except OSError as error:
        if error.errno in _NO_SPACE:
            total = sum(spec.nbytes for specs in plan.shards.values() for spec in specs)
            raise OutOfBudget(
                f"the disk is too full for {total:,} bytes in {folder}; free some, or choose "
                "another folder"
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


def _plan(
    preset: Preset,
    compress_ratios: tuple[int, ...] | None,
    sizes: Sizes | None,
    layout: Layout,
    dspark: bool,
) -> _Plan:
    if preset not in PRESETS:
        raise InvalidInput(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if layout not in get_args(Layout):
        choices = ", ".join(get_args(Layout))
        raise InvalidInput(f"there is no layout {layout!r}; choose one of {choices}")
    text = config_json(preset, sizes or PRESETS[preset], compress_ratios, dspark)
    try:
        config = ModelConfig.from_json(text, "the checkpoint asked for")
    except (DamagedCheckpoint, UnsupportedModel) as error:
        raise InvalidInput(str(error).replace("; restore the original file", "")) from None
    specs = _affordable(config, mtp=not dspark)
    tokenizer_text = byte_level_tokenizer_json(config.vocab_size)
    if dspark:
        specs += _drafter_tensors(config)
    if layout == "single":
        shards = {"model.safetensors": specs}
    else:
        groups = _dealt(specs) if layout == "scattered" else _like_releases(specs, config)
        shards = {
            f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
            for number, group in enumerate(groups, start=1)
        }
    ordered = {name: sorted(group, key=_official_order) for name, group in shards.items()}
    return _Plan(text, config, tokenizer_text, ordered, layout)


def _affordable(config: ModelConfig, mtp: bool) -> list[TensorSpec]:
    """Return the tensors; refuse, before any is made, what no trial needs."""
    base = config.expert_dtype == "fp8"
    specs = []
    total = 0
    for spec in expected_tensors(
        config, "fp8" if base else "fp4", "F32" if base else "F8_E8M0", mtp=mtp
    ):
        specs.append(spec)
        total += spec.nbytes
        # Stopping here, as sizes may ask for millions of tensors too.
        if total > _MOST_BYTES or len(specs) > _MOST_TENSORS:
            raise InvalidInput(
                f"a checkpoint of these sizes has {len(specs):,} tensors of {format_bytes(total)} "
                f"and more; choose sizes that come to {format_bytes(_MOST_BYTES)} and "
                f"{_MOST_TENSORS:,} tensors at most"
            )
    return specs


def _official_order(spec: TensorSpec) -> tuple[int, str, str]:
    """Order tensors as the safetensors library does: an expert's three weights are one run."""
    return -DTYPE_BYTES[spec.dtypes[0]], spec.dtypes[0], spec.name


def _like_releases(specs: list[TensorSpec], config: ModelConfig) -> list[list[TensorSpec]]:
    """Group as the releases do: embedding, each layer, head, each stage of ``mtp``."""
    groups: dict[str, list[TensorSpec]] = {"embed": []}
    groups |= {f"layers.{layer}": [] for layer in range(config.num_hidden_layers)}
    groups["head"] = []
    for spec in specs:
        first, second = spec.name.split(".")[:2] if "." in spec.name else (spec.name, "")
        if first in ("layers", "mtp"):
            groups.setdefault(f"{first}.{second}", []).append(spec)
        else:
            groups["embed" if first == "embed" else "head"].append(spec)
    return list(groups.values())


def _dealt(specs: list[TensorSpec]) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[] for _ in range(_N_SCATTERED)]
    for spec, group in zip(specs, cycle(groups), strict=False):
        group.append(spec)
    return groups


def _drafter_tensors(config: ModelConfig) -> list[TensorSpec]:
    """Return tensors named like those of a DSpark drafter; their shapes are made up."""
    hidden = config.hidden_size
    drafter = [
        TensorSpec("mtp.0.main_proj.weight", (hidden, hidden), ("BF16",)),
        TensorSpec("mtp.0.main_norm.weight", (hidden,), ("BF16",)),
        TensorSpec("mtp.2.markov_head.weight", (config.vocab_size, 16), ("BF16",)),
        TensorSpec("mtp.2.confidence_head.weight", (1, hidden), ("BF16",)),
    ]
    for stage in range(3):
        drafter += [
            TensorSpec(f"mtp.{stage}.attn_norm.weight", (hidden,), ("BF16",)),
            TensorSpec(f"mtp.{stage}.attn.attn_sink", (config.num_attention_heads,), ("F32",)),
        ]
    return drafter


def _write(folder: Path, plan: _Plan, seed: int) -> None:
    for name, specs in plan.shards.items():
        write_shard(
            folder / name,
            specs,
            lambda spec: random_tensor(spec, plan.config, seed),
            aligned=plan.layout != "scattered",
        )
    if plan.layout != "single":
        weight_map = {spec.name: name for name, specs in plan.shards.items() for spec in specs}
        total = sum(spec.nbytes for specs in plan.shards.values() for spec in specs)
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
        },
    )
    (folder / "config.json").write_text(plan.config_text, encoding="utf-8")


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
