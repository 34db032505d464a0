"""Read a safetensors file into NumPy arrays without interpreting the small formats.

NumPy has no BF16, E4M3 or UE8M0, so those come back as their bits: BF16 as uint16, F8_E4M3 and
F8_E8M0 as uint8. The file format is eight bytes of header length (little endian), a JSON header
that gives each tensor's dtype, shape and byte range, then the bytes.
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

NUMPY_DTYPES = {
    "F64": "<f8",
    "F32": "<f4",
    "F16": "<f2",
    "BF16": "<u2",
    "F8_E4M3": "u1",
    "F8_E8M0": "u1",
    "I64": "<i8",
    "I32": "<i4",
    "I8": "i1",
    "U8": "u1",
    "BOOL": "?",
}


class RawTensor(NamedTuple):
    """A tensor's safetensors dtype name and its bits as an array."""

    dtype: str
    array: NDArray[Any]


def read(path: Path) -> dict[str, RawTensor]:
    """Return every tensor of the file at `path`, by name."""
    return {name: read_tensor(path, name) for name in read_header(path)}


def read_tensor(path: Path, name: str) -> RawTensor:
    """Return one tensor of the file at `path`, reading no other tensor's bytes."""
    entry = read_header(path)[name]
    first, last = entry["data_offsets"]
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        file.seek(8 + header_bytes + first)
        payload = file.read(last - first)
    array = np.frombuffer(payload, NUMPY_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return RawTensor(entry["dtype"], array)


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the header's entries (dtype, shape, data_offsets) by tensor name."""
    with path.open("rb") as file:
        header_bytes = int.from_bytes(file.read(8), "little")
        header: dict[str, dict[str, Any]] = json.loads(file.read(header_bytes))
    header.pop("__metadata__", None)
    return header


def widen(tensor: RawTensor) -> NDArray[Any]:
    """Return BF16 bits as float32 values; every other tensor's array as it is."""
    if tensor.dtype != "BF16":
        return tensor.array
    return (tensor.array.astype(np.uint32) << 16).view(np.float32)


def read_folder_tensor(folder: Path, name: str) -> RawTensor:
    """Return the tensor `name` of a sharded checkpoint folder, found through its index."""
    index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
    return read_tensor(folder / index["weight_map"][name], name)
