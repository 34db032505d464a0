"""What checkpoint a repo of the hub holds, told by its small files: before its weights are fetched.

They are read into memory, bounded and checked, so that what localv4 can't run is refused before
anything is written. Knows nothing of the files that are no checkpoint's, nor of downloads.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

from localv4.checkpoint_contract import refuse_other_names
from localv4.checkpoint_index import (
    INDEX_LIMIT_BYTES,
    INDEX_NAME,
    SINGLE_NAME,
    Listing,
    listing_of_index,
)
from localv4.checksums import checksum
from localv4.config import CONFIG_LIMIT_BYTES, CONFIG_NAME, ModelConfig
from localv4.errors import DamagedCheckpoint, UnsupportedModel
from localv4.hub import RemoteFile, RemoteRepo, open_stream, patiently
from localv4.untrusted import parse_object

__all__ = ["RemoteCheckpoint", "is_whole", "places", "read_checkpoint"]

_LEAST_ENTRY_BYTES = 40  # of a tensor in a shard's header, its name apart
_OTHER_FORMATS = (".gguf", ".bin", ".pt", ".pth", ".safetensors", ".onnx", ".msgpack", ".h5")


@dataclass(frozen=True)
class RemoteCheckpoint:
    """A checkpoint that localv4 runs, as far as names tell.

    Attributes
    ----------
    shards
        Files with its body, sorted.
    draft_shards
        Files with nothing but ``mtp.*``, sorted.
    contents
        The small files that were read, whole and checked, by path.
    """

    shards: tuple[str, ...]
    draft_shards: tuple[str, ...]
    contents: Mapping[str, bytes]


def read_checkpoint(repo: RemoteRepo, folder: Path) -> RemoteCheckpoint:
    """Read the small files that tell what a repo holds.

    Parameters
    ----------
    repo
        From :func:`localv4.hub.describe`.
    folder
        The repo's folder in the cache, not necessarily there: the hub is asked only for what it
        lacks.

    Raises
    ------
    UnsupportedModel
        If it is nothing that localv4 runs.
    DamagedCheckpoint
        If its files contradict each other, or are not what the hub lists.
    DownloadFailed
        If the hub can't be asked.
    """
    files = {file.path: file for file in repo.files}
    contents = {}
    if CONFIG_NAME in files:
        contents[CONFIG_NAME] = _content(repo, files[CONFIG_NAME], folder, CONFIG_LIMIT_BYTES)
        # first: of another model it says better than anything else what it is
        config = _config(contents[CONFIG_NAME], f"{repo.repo_id}/{CONFIG_NAME}")
    if CONFIG_NAME not in files or not {INDEX_NAME, SINGLE_NAME} & files.keys():
        raise _no_checkpoint(repo)
    if INDEX_NAME not in files:
        return RemoteCheckpoint((SINGLE_NAME,), (), contents)
    contents[INDEX_NAME] = _content(repo, files[INDEX_NAME], folder, INDEX_LIMIT_BYTES)
    source = f"{repo.repo_id}/{INDEX_NAME}"
    listing = listing_of_index(Path(source), parse_object(contents[INDEX_NAME], source))
    refuse_other_names(listing, config)
    _refuse_unbelievable(listing, files)
    body = listing.body_shards()
    draft = tuple(shard for shard in listing.draft_shards() if shard not in body)
    return RemoteCheckpoint(body, draft, contents)


def places(repo: RemoteRepo, file: RemoteFile, folder: Path) -> tuple[Path, Path]:
    """Return a file's link in the snapshot, and its blob: where there are no links, it is moved."""
    return folder / "snapshots" / repo.commit / file.path, folder / "blobs" / file.checksum


def is_whole(path: Path, file: RemoteFile) -> bool:
    """Whether a file is there with its full length; its bytes were checked when it was written."""
    return path.is_file() and path.stat().st_size == file.n_bytes


def _config(content: bytes, source: str) -> ModelConfig:
    try:
        return ModelConfig.from_json(content.decode("utf-8"), source)
    except UnicodeDecodeError as error:
        raise DamagedCheckpoint(
            f"{source} is not UTF-8 text (byte {error.start}); don't trust this checkpoint"
        ) from None


def _no_checkpoint(repo: RemoteRepo) -> UnsupportedModel:
    counts = {
        suffix: sum(file.path.endswith(suffix) for file in repo.files) for suffix in _OTHER_FORMATS
    }
    found = ", ".join(f"{count} {suffix}" for suffix, count in counts.items() if count)
    return UnsupportedModel(
        f"{repo.repo_id} has no {CONFIG_NAME} with {INDEX_NAME} or {SINGLE_NAME}, but "
        f"{found or 'no weights'}; localv4 runs DeepSeek's own safetensors releases, such as: "
        "localv4 pull flash"
    )


def _refuse_unbelievable(listing: Listing, files: Mapping[str, RemoteFile]) -> None:
    """Refuse an index whose shards aren't in the repo, or too small for their headers."""
    least_bytes: dict[str, int] = {}
    for name, shard in listing.shard_of.items():
        least_bytes[shard] = least_bytes.get(shard, 0) + len(name) + _LEAST_ENTRY_BYTES
    for shard, n_bytes in sorted(least_bytes.items()):
        if shard not in files:
            missing = sum(name not in files for name in least_bytes)
            raise DamagedCheckpoint(
                f"{listing.source} lists {shard}, which the repo doesn't have ({missing} of "
                f"{len(least_bytes)} shards missing); look for a newer revision"
            )
        if files[shard].n_bytes < n_bytes:
            raise DamagedCheckpoint(
                f"{listing.source} lists tensors in {shard}, whose {files[shard].n_bytes:,} bytes "
                "can't hold them; look for a newer revision"
            )


def _content(repo: RemoteRepo, file: RemoteFile, folder: Path, limit_bytes: int) -> bytes:
    """Return a small file's content, checked: from the cache where it is whole, else the hub's."""
    if file.n_bytes > limit_bytes:
        raise DamagedCheckpoint(
            f"{repo.repo_id}/{file.path} has {file.n_bytes:,} bytes where such a file may have "
            f"{limit_bytes:,}; don't trust this checkpoint"
        )
    for path in places(repo, file, folder):
        if is_whole(path, file) and _is_right(content := path.read_bytes(), file):
            return content
    content = patiently(lambda: _read(repo, file))
    if not _is_right(content, file):
        raise DamagedCheckpoint(
            f"{repo.repo_id}/{file.path} arrived with other bytes than the hub's checksum says; "
            "try again"
        )
    return content


def _read(repo: RemoteRepo, file: RemoteFile) -> bytes:
    content = bytearray()
    with open_stream(repo, file) as stream:
        for piece in stream.pieces:
            content += piece
            if len(content) > file.n_bytes:
                break  # a flood
    return bytes(content)


def _is_right(content: bytes, file: RemoteFile) -> bool:
    return checksum(BytesIO(content), file.checksum, len(content)) == file.checksum
