"""Routing traces: which experts every token chose, kept in a file, to replay caches on.

Beside the choices a trace has the chunks in which the tokens came, and for decoded tokens what
gates said one layer ahead.  A file is an .npz of whole numbers, read as what it is: input from a
stranger.  Knows nothing of models, caches or clocks.
"""

import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.errors import InvalidInput

__all__ = ["NOTHING", "Trace", "load_trace", "save_trace"]

U16 = NDArray[np.uint16]

NOTHING = 0xFFFF
"""In place of an expert where nothing was predicted."""

_VERSION = 1
_MOST_BYTES = 2**30
_MOST_EXPERTS = 4096
_PREDICTED = "predicted_"


@dataclass(frozen=True, eq=False)
class Trace:
    """Experts chosen, token by token.

    Attributes
    ----------
    chosen
        uint16 [n_tokens, n_layers, num_experts_per_tok].
    chunks
        int64 [n_chunks]: tokens that passed together; 1 is a decoded token.
    n_experts
        Routed experts of a layer.
    n_hash_layers
        First layers, whose experts are known from the token.
    expert_bytes
        Bytes of an expert.
    predicted
        uint16 [n_tokens, n_layers, width] by what was asked: the experts thought most likely,
        best first, before the layer began.

    Raises
    ------
    InvalidInput
        The parts contradict each other.
    """

    chosen: U16
    chunks: NDArray[np.int64]
    n_experts: int
    n_hash_layers: int
    expert_bytes: int
    predicted: Mapping[str, U16] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check that the parts fit."""
        shape = self.chosen.shape
        _require(self.chosen.dtype == np.uint16, "the experts are not 16-bit numbers")
        _require(len(shape) == 3 and min(shape, default=0) > 0, f"the experts' shape is {shape}")
        _require(0 < self.n_experts <= _MOST_EXPERTS, f"it has {self.n_experts} experts a layer")
        _require(int(self.chosen.max()) < self.n_experts, f"it names expert {self.chosen.max()}")
        fits = self.chunks.ndim == 1 and bool(np.all((self.chunks > 0) & (self.chunks <= shape[0])))
        _require(fits and int(self.chunks.sum()) == shape[0], f"chunks do not sum to {shape[0]}")
        _require(0 <= self.n_hash_layers <= shape[1], f"it has {self.n_hash_layers} hash layers")
        _require(0 < self.expert_bytes < 2**40, f"an expert has {self.expert_bytes} bytes")
        for name, array in self.predicted.items():
            good = array.dtype == np.uint16 and array.ndim == 3 and array.shape[:2] == shape[:2]
            _require(good, f"predictions {name[:40]!r} have the shape {array.shape}")
            named = (array < self.n_experts) | (array == NOTHING)
            _require(bool(named.all()), f"predictions {name[:40]!r} name other experts")

    @property
    def n_tokens(self) -> int:
        """Tokens of all chunks."""
        return len(self.chosen)

    @property
    def n_layers(self) -> int:
        """Layers."""
        return int(self.chosen.shape[1])

    @property
    def n_keys(self) -> int:
        """Experts of all layers; a key is layer * n_experts + expert."""
        return self.n_layers * self.n_experts

    def steps(self) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Yield every chunk: its first token, and keys int64 [n_layers, n_tokens, k]."""
        base = np.arange(self.n_layers)[:, None, None] * self.n_experts
        first = 0
        for count in self.chunks.tolist():
            experts = self.chosen[first : first + count].astype(np.int64).transpose(1, 0, 2)
            yield first, experts + base
            first += count


def _require(good: bool, what: str) -> None:
    if not good:
        raise InvalidInput(f"the trace contradicts itself ({what}); record it again")


def save_trace(trace: Trace, path: Path) -> None:
    """Write a trace to a file, which it replaces.

    Raises
    ------
    InvalidInput
        The file cannot be written.
    """
    sizes = [_VERSION, trace.n_experts, trace.n_hash_layers, trace.expert_bytes]
    arrays: dict[str, Any] = {
        "sizes": np.array(sizes, np.int64),
        "chunks": trace.chunks.astype(np.int64),
        "chosen": trace.chosen,
    }
    arrays |= {_PREDICTED + name: array for name, array in trace.predicted.items()}
    try:
        with path.open("wb") as file:
            np.savez_compressed(file, **arrays)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be written: {error.strerror}; choose another") from None


def load_trace(path: Path) -> Trace:
    """Read a trace from a file.

    Raises
    ------
    InvalidInput
        There is no such file, or it is damaged or no trace.
    """
    try:
        arrays = _read(path)
    except OSError as error:
        raise InvalidInput(f"{path} cannot be read: {error.strerror}; check the path") from None
    except (ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, zlib.error,
            zipfile.BadZipFile) as error:  # fmt: skip
        raise InvalidInput(f"{path} is no trace ({str(error)[:120]}); record it again") from None
    try:
        sizes = arrays["sizes"].tolist()
        if len(sizes) != 4 or sizes[0] != _VERSION:
            raise InvalidInput(f"{path} is of another version; record it again")
        names = [name for name in arrays if name.startswith(_PREDICTED)]
        predicted = {name.removeprefix(_PREDICTED): arrays[name] for name in names}
        _, n_experts, n_hash_layers, n_bytes = sizes
        chosen, chunks = arrays["chosen"], arrays["chunks"]
        return Trace(chosen, chunks, n_experts, n_hash_layers, n_bytes, predicted)
    except KeyError as error:
        raise InvalidInput(f"{path} is no trace ({error} is missing); record it again") from None
    except InvalidInput as error:
        raise InvalidInput(f"{path}: {error}") from None


def _read(path: Path) -> dict[str, NDArray[Any]]:
    """Return the arrays of an .npz; sizes are compared with the headers before any is read."""
    if not path.is_file():
        raise InvalidInput(f"{path} is no file; record one: localv4 bench trace {path}")
    arrays = {}
    with zipfile.ZipFile(path) as archive:
        if sum(info.file_size for info in archive.infolist()) > _MOST_BYTES:
            raise ValueError(f"more than {_MOST_BYTES:,} bytes")
        for info in archive.infolist():
            with archive.open(info) as file:
                if np.lib.format.read_magic(file) != (1, 0):
                    raise ValueError("an array of another version")
                shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
                n_bytes = info.file_size - file.tell()
                wanted = np.int64 if info.filename in ("sizes.npy", "chunks.npy") else np.uint16
                if by_column or dtype != wanted or _size(shape) * dtype.itemsize != n_bytes:
                    raise ValueError(f"{info.filename[:40]!r} is not what a trace has there")
                content = file.read(n_bytes + 1)
            array = np.frombuffer(content, dtype).reshape(shape)
            arrays[info.filename.removesuffix(".npy")] = array
    return arrays


def _size(shape: tuple[int, ...]) -> int:
    size = 1
    for length in shape:
        if length < 0:
            raise ValueError("a negative length")
        size *= length
    return size
