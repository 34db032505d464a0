"""One safetensors file: its header, parsed without trusting it, and a read-only map of it.

The format is an 8-byte little-endian header length, that many bytes of JSON, then the tensors'
bytes. A header is believed only where it agrees with the file: its own length, every tensor's
bounds, its shape times its dtype, and no two tensors sharing bytes. Gaps between tensors and bytes
after the last one are harmless and tolerated. Knows nothing of models.
"""

import math
import mmap
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeGuard

from localv4.errors import DamagedCheckpoint
from localv4.untrusted import open_regular, parse_object

__all__ = ["Shard", "TensorInfo", "open_shard", "refuse_impossible_names", "shown"]

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


class TensorInfo(NamedTuple):
    """Where one tensor lies; a tuple, as there are tens of thousands.

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


def refuse_impossible_names(names: Collection[str], path: Path) -> None:
    """Raise DamagedCheckpoint for tensor names that could not be printed; `path` lists them."""
    if all(map(str.isprintable, names)) and max(map(len, names), default=0) <= _MAX_NAME:
        return
    name = next(name for name in names if len(name) > _MAX_NAME or not name.isprintable())
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
    """Check the header's entries against the file: tens of thousands, so all of them at once."""
    header.pop("__metadata__", None)
    refuse_impossible_names(header, path)
    if not _are_sound([*header.values()], size - start):
        for name, entry in header.items():
            _refuse_unsound(name, entry, path, start, size)
    file_name, tensors = path.name, {}
    in_order, last_end = True, 0
    for name, entry in header.items():
        begin, end = entry["data_offsets"]
        in_order = in_order and begin >= last_end
        last_end = end
        columns = name, entry["dtype"], tuple(entry["shape"]), file_name, start + begin, end - begin
        tensors[name] = TensorInfo._make(columns)
    if not in_order:
        _refuse_overlaps(tensors.values(), path)
    return tensors


def _are_sound(entries: Sequence[object], room: int) -> bool:
    """Whether :func:`_refuse_unsound` would refuse none; `room` is for the tensors' bytes."""
    found = [entry for entry in entries if isinstance(entry, dict)]
    dtypes: list[Any] = [entry.get("dtype") for entry in found]
    shapes: list[Any] = [entry.get("shape") for entry in found]
    offsets: list[Any] = [entry.get("data_offsets") for entry in found]
    if len(found) < len(entries) or not {*map(type, dtypes)} <= {str}:
        return False
    if not all(map(_are_lists_of_counts, (shapes, offsets))):
        return False
    if max(map(len, shapes), default=0) > _MAX_RANK or not {*map(len, offsets)} <= {2}:
        return False
    for dtype, shape, (begin, end) in zip(dtypes, shapes, offsets, strict=True):
        bits = _DTYPE_BITS.get(dtype)
        if begin > end or end > room:
            return False
        if bits is not None and math.prod(shape) * bits != (end - begin) * 8:
            return False
    return True


def _are_lists_of_counts(values: Sequence[object]) -> bool:
    """Whether each is what :func:`_are_counts` takes."""
    lists = [value for value in values if isinstance(value, list)]
    counts = [*chain.from_iterable(lists)]
    if len(lists) < len(values) or not {*map(type, counts)} <= {int}:
        return False
    return not counts or (min(counts) >= 0 and max(counts) < 2**63)


def _refuse_unsound(name: str, entry: object, path: Path, start: int, size: int) -> None:
    """Say what is wrong with a header's entry, if anything is."""
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


def _bad_entry(path: Path, name: str, what: str) -> DamagedCheckpoint:
    return DamagedCheckpoint(f"{path}: tensor {shown(name)} {what}; download the file again")


def _are_counts(values: object) -> TypeGuard[list[int]]:
    """Whether `values` is a list of integers from 0 to 2**63 (a JSON true is not one)."""
    if not isinstance(values, list):
        return False
    return all(type(value) is int and 0 <= value < 2**63 for value in values)


def _refuse_overlaps(tensors: Iterable[TensorInfo], path: Path) -> None:
    spans = sorted(
        [(offset, offset + nbytes, name) for name, _, _, _, offset, nbytes in tensors if nbytes]
    )
    for (_, end, last), (begin, _, name) in pairwise(spans):
        if begin < end:
            raise DamagedCheckpoint(
                f"{path}: tensors {shown(last)} and {shown(name)} share bytes; download the file "
                "again"
            )
