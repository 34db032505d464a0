"""Write a safetensors file: header, then the tensors' bytes. Knows nothing of models."""

import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.tensors import TensorSpec

__all__ = ["Pieces", "write_shard"]

Pieces = Callable[[TensorSpec], Iterable[NDArray[Any]] | None]
"""A tensor's values in order, in arrays of any shape; None leaves a hole, which reads as zeros."""


def write_shard(
    path: Path,
    specs: Sequence[TensorSpec],
    pieces: Pieces,
    *,
    aligned: bool = True,
    wrote: Callable[[int], None] = lambda _: None,
) -> None:
    """Write tensors in the order given.

    Parameters
    ----------
    path
        A file that isn't there yet.
    specs
        What to write; the first of `dtypes` is the one stored.
    pieces
        Called for one spec at a time; no more than one piece is in memory.
    aligned
        Pad the header so that the tensors start at a multiple of eight bytes, as releases do.
        Readers may not rely on it: the format does not ask for it.
    wrote
        Told the bytes of every piece, holes included.

    Raises
    ------
    OSError
        If the file can't be written.
    """
    text = _header(specs, aligned)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            arrays = pieces(spec)
            if arrays is None:
                # Also right for the last tensor, which no write would follow.
                file.truncate(file.seek(spec.nbytes, 1))
                wrote(spec.nbytes)
                continue
            begin = file.tell()
            for array in arrays:
                file.write(np.ascontiguousarray(array).data)
                wrote(array.nbytes)
            assert file.tell() - begin == spec.nbytes, spec.name


def _header(specs: Sequence[TensorSpec], aligned: bool) -> bytes:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in specs:
        begin, end = end, end + spec.nbytes
        header[spec.name] = {
            "dtype": spec.dtypes[0],
            "shape": list(spec.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header, separators=(",", ":")).encode()
    # One byte off on purpose where alignment is not wanted.
    return text + b" " * (-len(text) % 8 if aligned else (1 - len(text)) % 8)
