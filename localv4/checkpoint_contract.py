"""Compare what a folder lists and holds with what its config demands.

Decides, by names and dtypes alone, the expert format, the scale dtype, whether there is a usable
MTP block and which tensors are left unread (the spec's revisions: DSpark drafters, unknown
``mtp.*``). Knows nothing of the tensors' values.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localv4.checkpoint_index import Listing, is_draft, list_tensors
from localv4.config import ModelConfig
from localv4.errors import DamagedCheckpoint, UnsupportedModel
from localv4.shards import Shard, TensorInfo, open_shard, shown
from localv4.tensors import (
    ExpertFormat,
    ScaleDtype,
    TensorSpec,
    expected_tensors,
    expert_tensors,
    mtp_tensors,
)

__all__ = ["Contract", "match_contract", "refuse_other_names"]

_EXPERT_FORMATS: dict[str, ExpertFormat] = {"I8": "fp4", "F8_E4M3": "fp8"}
_SCALE_DTYPES: dict[str, ScaleDtype] = {"F8_E8M0": "F8_E8M0", "F32": "F32"}


@dataclass(frozen=True)
class Contract:
    """A checkpoint whose every needed tensor is there as demanded.

    Attributes
    ----------
    tensors, expert_format, scale_dtype, has_mtp, lacks_mtp, unread
        As on :class:`localv4.checkpoint.Checkpoint`.
    total_bytes
        Bytes of all listed tensors, if the listing says.
    shards
        The open shards that hold needed tensors, by file name.
    """

    tensors: Mapping[str, TensorInfo]
    expert_format: ExpertFormat
    scale_dtype: ScaleDtype
    has_mtp: bool
    lacks_mtp: bool
    unread: tuple[str, ...]
    total_bytes: int | None
    shards: Mapping[str, Shard]


def match_contract(folder: Path, config: ModelConfig) -> Contract:
    """Open a folder's shards and hold them against the config.

    Raises
    ------
    ModelNotFound, DamagedCheckpoint, UnsupportedModel
        As :meth:`localv4.checkpoint.Checkpoint.open`.
    """
    listing = list_tensors(folder)
    # Names are the same in every format, so they can be checked before any shard is opened.
    needed = _body_names(listing, config)
    mtp_names = _mtp_names(listing, config)
    # A download without the draft has none of the shards that hold nothing else.
    lacks_mtp = any(not (folder / listing.shard_of[name]).exists() for name in mtp_names)
    has_mtp = bool(mtp_names) and not lacks_mtp
    if has_mtp:
        needed |= dict.fromkeys(mtp_names)
    unread = _unread_names(listing, needed)
    shards = _open_needed(folder, listing, needed)
    tensors = {name: _find(name, listing, shards) for name in needed}
    expert_format, scale_dtype = _formats(tensors, config, folder)
    for spec in expected_tensors(config, expert_format, scale_dtype, has_mtp):
        _check(spec, tensors[spec.name], folder)
    return Contract(
        tensors=tensors,
        expert_format=expert_format,
        scale_dtype=scale_dtype,
        has_mtp=has_mtp,
        lacks_mtp=lacks_mtp,
        unread=unread,
        total_bytes=listing.total_bytes,
        shards=shards,
    )


def refuse_other_names(listing: Listing, config: ModelConfig) -> None:
    """Refuse a listing that is not of a checkpoint of this config, by its tensors' names alone.

    Raises
    ------
    DamagedCheckpoint, UnsupportedModel
        As :func:`match_contract`.
    """
    _unread_names(
        listing, _body_names(listing, config) | dict.fromkeys(_mtp_names(listing, config))
    )


def _body_names(listing: Listing, config: ModelConfig) -> dict[str, None]:
    """Return the body's names in order, or refuse at the first one that isn't listed."""
    needed: dict[str, None] = {}
    for spec in expected_tensors(config, "fp4", "F8_E8M0", mtp=False):
        if spec.name not in listing.shard_of:
            raise _missing(spec.name, listing)
        needed[spec.name] = None
    return needed


def _mtp_names(listing: Listing, config: ModelConfig) -> list[str]:
    """Return the MTP block's names, none if there is no usable block; half a block is refused."""
    if config.is_dspark:
        return []
    names = [spec.name for spec in mtp_tensors(config, "fp4", "F8_E8M0")]
    missing = [name for name in names if name not in listing.shard_of]
    if missing and len(missing) < len(names):
        raise DamagedCheckpoint(
            f"{listing.source} lists an MTP block without {missing[0]} and {len(missing) - 1:,} "
            "more of its tensors; download it again"
        )
    return [] if missing else names


def _missing(name: str, listing: Listing) -> DamagedCheckpoint | UnsupportedModel:
    if not any(listed.startswith("layers.0.") for listed in listing.shard_of):
        first = min(listing.shard_of, default="nothing")
        return UnsupportedModel(
            f"{listing.source} lists {shown(first)} but no layers.0.*; localv4 runs checkpoints "
            "with DeepSeek's own tensor names, not converted ones"
        )
    return DamagedCheckpoint(
        f"{listing.source} doesn't list {name}, which config.json demands; download both again"
    )


def _unread_names(listing: Listing, needed: Mapping[str, None]) -> tuple[str, ...]:
    """Return what is left alone; a tensor outside ``mtp.*`` that nobody knows is not."""
    unread = tuple(sorted(name for name in listing.shard_of if name not in needed))
    for name in unread:
        if not is_draft(name):
            raise UnsupportedModel(
                f"{listing.source} lists {shown(name)}, which no DeepSeek-V4 with this config.json "
                "has; localv4 runs V4-Flash, V4-Pro and their -Base"
            )
    return unread


def _open_needed(folder: Path, listing: Listing, needed: Mapping[str, None]) -> dict[str, Shard]:
    """Open the shards that hold needed tensors; the others may be absent."""
    shards = dict(listing.opened)
    seen: dict[str, str] = {}
    for name in needed:
        file_name = listing.shard_of[name]
        if file_name in shards:
            continue
        shard = open_shard(folder / file_name)
        if shard is None:
            count = sum(listing.shard_of[other] == file_name for other in needed)
            raise DamagedCheckpoint(
                f"{folder / file_name} is missing, with {count:,} needed tensors; finish the "
                "download"
            )
        shards[file_name] = shard
    for file_name, shard in shards.items():
        for name in shard.tensors:
            if name in seen:
                raise DamagedCheckpoint(
                    f"{folder} has tensor {shown(name)} twice, in {seen[name]} and {file_name}; "
                    "remove the file that doesn't belong"
                )
            seen[name] = file_name
    return shards


def _find(name: str, listing: Listing, shards: Mapping[str, Shard]) -> TensorInfo:
    file_name = listing.shard_of[name]
    info = shards[file_name].tensors.get(name)
    if info is None:
        raise DamagedCheckpoint(
            f"{listing.source} says that {file_name} holds {name}, but it does not; download both "
            "again"
        )
    return info


def _formats(
    tensors: Mapping[str, TensorInfo], config: ModelConfig, folder: Path
) -> tuple[ExpertFormat, ScaleDtype]:
    """Decide by the first routed expert; :func:`_check` then holds all others to it."""
    weight, scale = (
        tensors[spec.name] for spec in _first_two(expert_tensors(config, 0, 0, "fp4", "F8_E8M0"))
    )
    expert_format = _EXPERT_FORMATS.get(weight.dtype)
    scale_dtype = _SCALE_DTYPES.get(scale.dtype)
    if expert_format is None or scale_dtype is None or (weight.dtype, scale.dtype) == ("I8", "F32"):
        raise UnsupportedModel(
            f"{folder} has experts of dtype {shown(weight.dtype)} with scales of dtype "
            f"{shown(scale.dtype)}; localv4 runs I8 (packed FP4) with F8_E8M0, and F8_E4M3 with "
            "F8_E8M0 or F32"
        )
    return expert_format, scale_dtype


def _first_two(specs: Iterator[TensorSpec]) -> tuple[TensorSpec, TensorSpec]:
    return next(specs), next(specs)


def _check(spec: TensorSpec, info: TensorInfo, folder: Path) -> None:
    if info.dtype not in spec.dtypes:
        raise DamagedCheckpoint(
            f"{folder / info.shard}: {spec.name} has dtype {shown(info.dtype)} where the rest of "
            f"the checkpoint needs {' or '.join(spec.dtypes)}; download the file again"
        )
    if info.shape != spec.shape:
        raise DamagedCheckpoint(
            f"{folder / info.shard}: {spec.name} has shape {shown(info.shape)} where config.json "
            f"needs {spec.shape}; one of the two is from another model"
        )
