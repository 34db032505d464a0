"""Which tensors a checkpoint's folder lists, and which file holds each.

Either model.safetensors.index.json with its shards, or one model.safetensors. Only files directly
in the folder are believed: an index may not name a path. Nothing else of the folder is ever read,
no pickle and no Python file. Knows nothing of what the tensors are.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from localv4.errors import DamagedCheckpoint, ModelNotFound
from localv4.shards import Shard, open_shard, refuse_impossible_names, shown
from localv4.untrusted import read_object

__all__ = [
    "INDEX_LIMIT_BYTES",
    "INDEX_NAME",
    "SINGLE_NAME",
    "Listing",
    "is_draft",
    "list_tensors",
    "listing_of_index",
]

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
INDEX_LIMIT_BYTES = 100_000_000
_SUFFIX = ".safetensors"


@dataclass(frozen=True)
class Listing:
    """The tensors a folder says it has.

    Attributes
    ----------
    source
        Path of the index, or of the single file.
    shard_of
        Tensor name to file name.
    total_bytes
        Bytes of all listed tensors, as far as the index says it believably; None if it doesn't.
    opened
        Shards that had to be opened to make the listing: the single file.
    """

    source: Path
    shard_of: Mapping[str, str]
    total_bytes: int | None
    opened: Mapping[str, Shard]

    def body_shards(self) -> tuple[str, ...]:
        """Return the files with anything but ``mtp.*``, sorted: answers need all of them."""
        return tuple(sorted({file for name, file in self.shard_of.items() if not is_draft(name)}))

    def draft_shards(self) -> tuple[str, ...]:
        """Return the files with any of ``mtp.*``, sorted."""
        return tuple(sorted({file for name, file in self.shard_of.items() if is_draft(name)}))


def is_draft(name: str) -> bool:
    """Whether a tensor is the MTP block's or a drafter's: answers need none of them."""
    return name.startswith("mtp.")


def list_tensors(folder: Path) -> Listing:
    """List the tensors of a checkpoint's folder.

    Raises
    ------
    ModelNotFound
        If it has neither an index nor a single file.
    DamagedCheckpoint
        If the index is malformed or names a file outside the folder.
    """
    index = read_object(folder / INDEX_NAME, INDEX_LIMIT_BYTES)
    if index is not None:
        return listing_of_index(folder / INDEX_NAME, index)
    shard = open_shard(folder / SINGLE_NAME)
    if shard is None:
        raise ModelNotFound(
            f"{folder} holds neither {INDEX_NAME} nor {SINGLE_NAME}; localv4 reads safetensors "
            "checkpoints only, such as the release"
        )
    return Listing(
        source=folder / SINGLE_NAME,
        shard_of=dict.fromkeys(shard.tensors, SINGLE_NAME),
        total_bytes=sum(tensor.nbytes for tensor in shard.tensors.values()),
        opened={SINGLE_NAME: shard},
    )


def listing_of_index(source: Path, index: dict[str, object]) -> Listing:
    """Return the tensors that an index lists.

    Parameters
    ----------
    source
        What to call it in a message, usually its path.
    index
        The parsed model.safetensors.index.json, from a stranger.

    Raises
    ------
    DamagedCheckpoint
        If it is malformed or names a file outside the folder.
    """
    shard_of = index.get("weight_map")
    if not isinstance(shard_of, dict) or not shard_of:
        raise DamagedCheckpoint(f"{source} has no weight_map; download it again")
    if not {*map(type, shard_of.values())} <= {str}:
        raise DamagedCheckpoint(f"{source} maps a tensor to no file name; download it again")
    refuse_impossible_names(shard_of, source)
    for shard in sorted(set(shard_of.values())):
        if not _is_plain_name(shard):
            raise DamagedCheckpoint(
                f"{source} names the shard {shown(shard)}, which is no {_SUFFIX} file of the "
                "checkpoint's own folder; don't trust this checkpoint"
            )
    metadata = index.get("metadata")
    total_bytes = metadata.get("total_size") if isinstance(metadata, dict) else None
    if type(total_bytes) is not int or not 0 <= total_bytes < 2**63:
        total_bytes = None
    return Listing(source, shard_of, total_bytes, {})


def _is_plain_name(name: str) -> bool:
    """Whether a name is one file of the folder itself, on any system."""
    return (
        name.endswith(_SUFFIX)
        and len(name) <= 255
        and name.isprintable()
        and not any(mark in name for mark in "/\\:")
    )
