"""Checkpoints put into a cache as the hub's own client lays them out."""

import hashlib
import os
from collections.abc import Collection
from pathlib import Path

from localv4.hub_cache import CachedRepo, find_repo, repo_folder

FLASH = "deepseek-ai/DeepSeek-V4-Flash"
COMMIT, OLDER = "a" * 40, "b" * 40


def put(
    cache: Path,
    folder: Path,
    repo_id: str = FLASH,
    commit: str = COMMIT,
    ref: str | None = "main",
    without: Collection[str] = (),
) -> CachedRepo:
    """Add a folder's files as a commit; those `without` are left out, as while they download."""
    root = repo_folder(cache, repo_id)
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = file.relative_to(folder)
        if name.as_posix() in without:
            continue
        blob = root / "blobs" / checksum_of(file)
        blob.parent.mkdir(parents=True, exist_ok=True)
        if not blob.exists():
            blob.write_bytes(file.read_bytes())
        link = root / "snapshots" / commit / name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
    if ref is not None:
        file = root / "refs" / ref
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(commit)
    repo = find_repo(cache, repo_id)
    assert repo is not None
    return repo


def share_blob(cache: Path, blob: Path) -> Path:
    """Move a blob to the store that all repos of a cache share, and return its content there."""
    store = cache / "blobs"
    store.mkdir(exist_ok=True)
    (store / ".huggingface-shared-blobs").write_text("1\n")
    name = hashlib.sha256(blob.read_bytes()).hexdigest()
    content = store / name[:2] / name
    content.parent.mkdir(exist_ok=True)
    blob.rename(content) if not content.exists() else blob.unlink()
    blob.symlink_to(os.path.relpath(content, blob.parent))
    with content.with_name(f"{name}.refs").open("a") as manifest:
        manifest.write(f"{blob.relative_to(cache).as_posix()}\n")
    return content


def checksum_of(file: Path) -> str:
    """Return what the hub calls a file's content."""
    content = file.read_bytes()
    if file.suffix == ".safetensors":
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def write_metadata(folder: Path, commit: str = COMMIT) -> None:
    """Write beside a folder's files what ``hf download --local-dir`` writes."""
    for file in [path for path in folder.iterdir() if path.is_file()]:
        note = folder / ".cache" / "huggingface" / "download" / f"{file.name}.metadata"
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(f"{commit}\n{checksum_of(file)}\n1712656091.123\n")
