"""Write a safetensors file: header, then the tensors' bytes. Knows nothing of models."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from localv4.tensors import TensorSpec

__all__ = ["write_shard"]


def write_shard(
    path: Path,
    specs: Sequence[TensorSpec],
    values: Callable[[TensorSpec], NDArray[Any]],
    *,
    aligned: bool = True,
) -> None:
    """Write tensors in the order given.

    Parameters
    ----------
    path
        A file that isn't there yet.
    specs
        What to write; the first of `dtypes` is the one stored.
    values
        Called for one spec at a time, so that no more than one tensor is in memory.
    aligned
        Pad the header so that the tensors start at a multiple of eight bytes, as releases do.
        Readers may not rely on it: the format does not ask for it.

    Raises
    ------
    OSError
        If the file can't be written.
    """
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
    text += b" " * (-len(text) % 8 if aligned else (1 - len(text)) % 8)
    with path.open("xb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for spec in specs:
            array = values(spec)
            assert (array.shape, array.nbytes) == (spec.shape, spec.nbytes), spec.name
            file.write(array.tobytes())
