"""Compare what a folder lists and holds with what its config demands.

Decides, by names and dtypes alone, the expert format, the scale dtype, whether there is a usable
MTP block and which tensors are left unread (the spec's revisions: DSpark drafters, unknown
``mtp.*``). Knows nothing of the tensors' values.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import islice
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

_FORMATS: tuple[ExpertFormat, ScaleDtype] = ("fp4", "F8_E8M0")
"""Of the releases, and taken for those of a checkpoint until it is open."""

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
    specs = _body_specs(listing, config)
    of_mtp = _mtp_specs(listing, config)
    # A download without the draft has none of the shards that hold nothing else.
    of_draft = {listing.shard_of[spec.name] for spec in of_mtp}
    lacks_mtp = not all((folder / file_name).exists() for file_name in of_draft)
    has_mtp = bool(of_mtp) and not lacks_mtp
    if has_mtp:
        specs += of_mtp
    needed = dict.fromkeys(spec.name for spec in specs)
    unread = _unread_names(listing, needed)
    shards = _open_needed(folder, listing, needed)
    expert_format, scale_dtype = _formats(listing, shards, config, folder)
    if (expert_format, scale_dtype) != _FORMATS:
        specs = [*expected_tensors(config, expert_format, scale_dtype, has_mtp)]
    tensors = _find(specs, listing, shards, folder)
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
    specs = _body_specs(listing, config) + _mtp_specs(listing, config)
    _unread_names(listing, dict.fromkeys(spec.name for spec in specs))


def _body_specs(listing: Listing, config: ModelConfig) -> list[TensorSpec]:
    """Return the body's tensors in order, or refuse at the first one that isn't listed."""
    specs, listed = [], listing.shard_of
    for spec in expected_tensors(config, *_FORMATS, mtp=False):
        if spec.name not in listed:
            raise _missing(spec.name, listing)
        specs.append(spec)
    return specs


def _mtp_specs(listing: Listing, config: ModelConfig) -> list[TensorSpec]:
    """Return the MTP block's tensors, none if there is no usable one; half a block is refused."""
    if config.is_dspark:
        return []
    specs = [*mtp_tensors(config, *_FORMATS)]
    missing = [spec.name for spec in specs if spec.name not in listing.shard_of]
    if missing and len(missing) < len(specs):
        raise DamagedCheckpoint(
            f"{listing.source} lists an MTP block without {missing[0]} and {len(missing) - 1:,} "
            "more of its tensors; download it again"
        )
    return [] if missing else specs


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
    unread = tuple(sorted(listing.shard_of.keys() - needed.keys()))
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
    for file_name in dict.fromkeys(map(listing.shard_of.__getitem__, needed)):
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
    _refuse_twice(folder, listing, shards)
    return shards


def _refuse_twice(folder: Path, listing: Listing, shards: Mapping[str, Shard]) -> None:
    """Refuse a tensor that two shards hold; there is none where all lie as listed."""
    listed = listing.shard_of.get
    if all({*map(listed, shard.tensors)} <= {name} for name, shard in shards.items()):
        return
    seen: dict[str, str] = {}
    for file_name, shard in shards.items():
        for name in shard.tensors:
            if name in seen:
                raise DamagedCheckpoint(
                    f"{folder} has tensor {shown(name)} twice, in {seen[name]} and {file_name}; "
                    "remove the file that doesn't belong"
                )
            seen[name] = file_name


def _find(
    specs: Iterable[TensorSpec], listing: Listing, shards: Mapping[str, Shard], folder: Path
) -> dict[str, TensorInfo]:
    """Return the tensors from where the listing says that they are, each as demanded."""
    tensors, listed = {}, listing.shard_of
    held = {file_name: shard.tensors for file_name, shard in shards.items()}
    for spec in specs:
        name, shape, dtypes = spec
        info = held[listed[name]].get(name)
        if info is None:
            raise _not_held(name, listing)
        if info.shape != shape or info.dtype not in dtypes:
            raise _other_than(spec, info, folder)
        tensors[name] = info
    return tensors


def _not_held(name: str, listing: Listing) -> DamagedCheckpoint:
    return DamagedCheckpoint(
        f"{listing.source} says that {listing.shard_of[name]} holds {name}, but it does not; "
        "download both again"
    )


def _formats(
    listing: Listing, shards: Mapping[str, Shard], config: ModelConfig, folder: Path
) -> tuple[ExpertFormat, ScaleDtype]:
    """Decide by the first routed expert; :func:`_find` then holds all others to it."""
    found = []
    for spec in islice(expert_tensors(config, 0, 0, *_FORMATS), 2):
        info = shards[listing.shard_of[spec.name]].tensors.get(spec.name)
        if info is None:
            raise _not_held(spec.name, listing)
        found.append(info.dtype)
    weight, scale = found
    expert_format, scale_dtype = _EXPERT_FORMATS.get(weight), _SCALE_DTYPES.get(scale)
    if expert_format is None or scale_dtype is None or (weight, scale) == ("I8", "F32"):
        raise UnsupportedModel(
            f"{folder} has experts of dtype {shown(weight)} with scales of dtype "
            f"{shown(scale)}; localv4 runs I8 (packed FP4) with F8_E8M0, and F8_E4M3 with "
            "F8_E8M0 or F32"
        )
    return expert_format, scale_dtype


def _other_than(spec: TensorSpec, info: TensorInfo, folder: Path) -> DamagedCheckpoint:
    if info.dtype not in spec.dtypes:
        return DamagedCheckpoint(
            f"{folder / info.shard}: {spec.name} has dtype {shown(info.dtype)} where the rest of "
            f"the checkpoint needs {' or '.join(spec.dtypes)}; download the file again"
        )
    return DamagedCheckpoint(
        f"{folder / info.shard}: {spec.name} has shape {shown(info.shape)} where config.json "
        f"needs {spec.shape}; one of the two is from another model"
    )
