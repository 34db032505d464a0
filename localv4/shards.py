"""One safetensors file: its header, parsed without trusting it, and a read-only map of it.

The format is an 8-byte little-endian header length, that many bytes of JSON, then the tensors'
bytes. A header is believed only where it agrees with the file: its own length, every tensor's
bounds, its shape times its dtype, and no two tensors sharing bytes. Gaps between tensors and bytes
after the last one are harmless and tolerated. Knows nothing of models.
"""

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeGuard

from localv4.errors import DamagedCheckpoint
from localv4.untrusted import open_regular, parse_object

__all__ = ["Shard", "TensorInfo", "open_shard", "refuse_impossible_name", "shown"]

_LENGTH_BYTES = 8
_HEADER_LIMIT_BYTES = 100_000_000  # the format's own limit
_MAX_RANK = 16
_MAX_NAME = 256

# Bits of an element. A checkpoint may hold tensors of dtypes that localv4 leaves unread, but their
# sizes must add up all the same.
_DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "U16": 16,
    "I16": 16,
    "F16": 16,
    "BF16": 16,
    "U32": 32,
    "I32": 32,
    "F32": 32,
    "U64": 64,
    "I64": 64,
    "F64": 64,
}


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Where one tensor lies.

    Attributes
    ----------
    name
        Its raw on-disk name.
    dtype
        The safetensors dtype name.
    shape
        Stored shape.
    shard
        File name inside the checkpoint's folder.
    offset
        First byte, counted from the start of the file; not necessarily aligned to the dtype.
    nbytes
        Stored bytes.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    shard: str
    offset: int
    nbytes: int


@dataclass(frozen=True)
class Shard:
    """An open shard: the tensors of its header and a read-only map of the whole file."""

    tensors: Mapping[str, TensorInfo]
    map: mmap.mmap


def shown(name: object) -> str:
    """Give a name from a header as it may appear in a one-line message."""
    text = repr(name)
    return text if len(text) <= 120 else text[:117] + "..."


def refuse_impossible_name(name: str, path: Path) -> None:
    """Raise DamagedCheckpoint for a tensor name that could not be printed; `path` is its source."""
    if len(name) > _MAX_NAME or not name.isprintable():
        raise DamagedCheckpoint(
            f"{path} lists a tensor with the impossible name {shown(name)}; download it again"
        )


def open_shard(path: Path) -> Shard | None:
    """Read a shard's header, check it against the file and map the file; None if there is no file.

    Raises
    ------
    DamagedCheckpoint
        If the file is no safetensors file, is shorter than its header says, or its header
        contradicts itself.
    """
    file = open_regular(path)
    if file is None:
        return None
    with file:
        try:
            size = file.seek(0, 2)
            header, start = _read_header(file, size, path)
            tensors = _tensors(header, path, start, size)
            return Shard(tensors, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))
        except OSError as error:
            raise DamagedCheckpoint(
                f"{path} cannot be read or mapped ({error}); check the disk and the limit on open "
                "files"
            ) from None


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    """Return the parsed header and the file offset where the tensors' bytes start."""
    if size < _LENGTH_BYTES:
        raise DamagedCheckpoint(
            f"{path} has {size} bytes, too few for a safetensors file; download it again"
        )
    file.seek(0)
    length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    if length > _HEADER_LIMIT_BYTES or length > size - _LENGTH_BYTES:
        raise DamagedCheckpoint(
            f"{path} claims a header of {length:,} bytes in a file of {size:,}; it is truncated or "
            "no safetensors file, download it again"
        )
    return parse_object(file.read(length), f"the header of {path}"), _LENGTH_BYTES + length


def _tensors(header: dict[str, Any], path: Path, start: int, size: int) -> dict[str, TensorInfo]:
    file_name = path.name
    tensors = {
        name: _tensor(name, entry, path, file_name, start, size)
        for name, entry in header.items()
        if name != "__metadata__"
    }
    _refuse_overlaps(tensors.values(), path)
    return tensors


def _tensor(
    name: str, entry: object, path: Path, file_name: str, start: int, size: int
) -> TensorInfo:
    """Check one header entry against the file."""
    refuse_impossible_name(name, path)
    if not isinstance(entry, dict):
        raise _bad_entry(path, name, f"is described by {shown(entry)}")
    dtype, shape, offsets = entry.get("dtype"), entry.get("shape"), entry.get("data_offsets")
    if not isinstance(dtype, str):
        raise _bad_entry(path, name, f"has the dtype {shown(dtype)}")
    if not _are_counts(shape) or len(shape) > _MAX_RANK:
        raise _bad_entry(path, name, f"has the shape {shown(shape)}")
    if not _are_counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _bad_entry(path, name, f"has the offsets {shown(offsets)}")
    begin, end = offsets
    if start + end > size:
        raise DamagedCheckpoint(
            f"{path} has {size:,} bytes, but tensor {shown(name)} ends at {shown(start + end)}; it "
            "is truncated, download it again"
        )
    bits = _DTYPE_BITS.get(dtype)
    if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
        raise _bad_entry(
            path, name, f"of dtype {dtype} and shape {shown(shape)} has {end - begin:,} bytes"
        )
    return TensorInfo(name, dtype, tuple(shape), file_name, start + begin, end - begin)


def _bad_entry(path: Path, name: str, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path}: tensor {shown(name)} {what}; download the file again")


def _are_counts(values: object) -> TypeGuard[list[int]]:
    """Whether `values` is a list of integers from 0 to 2**63 (a JSON true is not one)."""
    if not isinstance(values, list):
        return False
    # a loop: a checkpoint has 69,187 tensors, and `all` takes twice as long
    for value in values:  # noqa: SIM110
        if type(value) is not int or not 0 <= value < 2**63:
            return False
    return True


def _refuse_overlaps(tensors: Iterable[TensorInfo], path: Path) -> None:
    end, last = 0, ""
    for tensor in sorted(tensors, key=lambda item: item.offset):
        if tensor.nbytes == 0:
            continue
        if tensor.offset < end:
            raise DamagedCheckpoint(
                f"{path}: tensors {shown(last)} and {shown(tensor.name)} share bytes; download the "
                "file again"
            )
        end, last = tensor.offset + tensor.nbytes, tensor.name
