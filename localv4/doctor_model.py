"""The doctor's look at a model's files: are they all there and sound, and on what disk.

Knows nothing of speeds but the disk's.
"""

import contextlib
import shutil
from dataclasses import asdict, replace
from pathlib import Path

from localv4.checkpoint import Checkpoint
from localv4.disk import (
    DiskProfile,
    best_try,
    load_disk_profile,
    measure_disk,
    save_disk_profile,
)
from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.findings import Finding, note, ok, problem
from localv4.hub import cache_folder as hub_folder
from localv4.hub_cache import contents_of
from localv4.inventory import Inventory
from localv4.mounts import mount_of, read_mounts
from localv4.sizes import format_bytes

__all__ = [
    "check_absent",
    "check_checkpoint",
    "check_disk",
    "check_file_system",
]

_NETWORK = ("nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "beegfs", "gpfs", "afs")
_NAMED = 3  # missing shards


def check_absent(inventory: Inventory, is_here: bool) -> Finding:
    """Look at a model of which only the config is here, or, else, known."""
    if is_here:
        n_bytes, folder = inventory.total.nbytes, Path.cwd()
        words = f"only its config is here; the weights are {format_bytes(n_bytes)}, and this folder"
    else:  # a download leaves the MTP block out, and goes to the hub's cache
        n_bytes, folder = inventory.body.nbytes, hub_folder()
        words = f"not downloaded; it would take {format_bytes(n_bytes)}, and the hub's cache"
    free = shutil.disk_usage(_nearest_folder(folder)).free
    short = "" if is_here else "; HF_HOME=/other/disk moves the cache"
    fits = "" if n_bytes < free else f", too little for it{short}"
    return note(
        "checkpoint",
        f"{words} is on a disk with {format_bytes(free)} free{fits}",
        complete=False,
        total_bytes=n_bytes,
        free_bytes=free,
    )


def _nearest_folder(path: Path) -> Path:
    """Return a folder, or where it is not there, the nearest one above it."""
    return next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())


def check_checkpoint(folder: Path, remedy: str) -> tuple[list[Finding], Checkpoint | None]:
    """Open a checkpoint, which checks every header; None if it can't be opened."""
    try:
        checkpoint = Checkpoint.open(folder)
    except LocalV4Error as error:
        contents = contents_of(folder)
        missing, text = [*contents.missing], str(error)
        if missing and contents.n_shards:
            named = ", ".join(missing[:_NAMED]) + (" ..." if len(missing) > _NAMED else "")
            text = f"{len(missing)} of {contents.n_shards} shards are missing ({named}): {remedy}"
        return [problem("checkpoint", text, complete=False, missing=missing)], None
    shards = {tensor.shard for tensor in checkpoint.tensors.values()}
    n_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    found = [
        ok(
            "checkpoint",
            f"complete: {len(shards)} shards, {len(checkpoint.tensors):,} tensors, "
            f"{format_bytes(n_bytes)}, all headers sound",
            complete=True,
            shards=len(shards),
            tensors=len(checkpoint.tensors),
            total_bytes=n_bytes,
        )
    ]
    if checkpoint.lacks_mtp:
        text = "left out of the download; it is for drafting alone"
        found.append(note("MTP block", f"{text}: localv4 pull --include-draft gets it"))
    if not (folder / "tokenizer.json").is_file():
        text = "no tokenizer.json, so that it takes and gives ids only; add the release's"
        found.append(note("tokenizer", text))
    return found, checkpoint


def _a_shard(checkpoint: Checkpoint) -> Path:
    return (checkpoint.path / next(iter(checkpoint.tensors.values())).shard).resolve()


def check_file_system(checkpoint: Checkpoint) -> list[Finding]:
    """Look at what the shards are stored on."""
    shard = _a_shard(checkpoint)
    mount = mount_of(shard, read_mounts())
    if mount is None:
        return []
    figures = {"kind": mount.kind, "mount": mount.point}
    text = f"{mount.kind} at {mount.point}"
    if mount.kind in _NETWORK:
        return [note("file system", f"{text}, a network's: copy the model to a disk", **figures)]
    if mount.kind.startswith("fuse") or mount.kind == "virtiofs":
        return [note("file system", f"{text}, which another program serves: slower", **figures)]
    return [ok("file system", text, **figures)]


def check_disk(checkpoint: Checkpoint, seconds: float) -> tuple[Finding, DiskProfile | None]:
    """Measure the disk and keep the result; None if it can't be read."""
    try:
        tries = measure_disk(checkpoint, seconds)
    except DamagedCheckpoint as error:
        return problem("disk", str(error)), None
    shard = _a_shard(checkpoint)
    known = load_disk_profile(shard)
    profile = replace(best_try(tries), in_use=None if known is None else known.in_use)
    text = f"{profile.bytes_per_s / 1e9:.3g} GB/s for experts at random, {_way_words(profile)}"
    figures = {
        "bytes_per_s": profile.bytes_per_s,
        "direct": profile.direct,
        "readers": profile.readers,
        "in_use_bytes_per_s": profile.in_use,
        "tries": [asdict(tried) for tried in tries],
    }
    with contextlib.suppress(OSError):  # the cache folder's own finding says so
        save_disk_profile(profile, shard)
    if profile.in_use is not None:
        text += f"; {profile.in_use / 1e9:.3g} when a model was last streamed, which is what counts"
    if not profile.direct and not any(tried.direct for tried in tries):
        text += "; direct reads are refused there, and these keep a core busy"
        return note("disk", text, **figures), profile
    return ok("disk", text, **figures), profile


def _way_words(profile: DiskProfile) -> str:
    readers = "1 reader" if profile.readers == 1 else f"{profile.readers} readers"
    return f"{readers}, {'direct' if profile.direct else 'buffered'}"
