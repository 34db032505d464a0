"""Weights that every token needs, in memory of the process, read while the program goes on.

Where routed experts are streamed, the rest must not be page cache, which streaming and other
programs push out.  Matrices get their place in one piece of memory at once, at multiples of 64
bytes, and their bytes arrive behind: whoever computes with a group of them waits for it.  Rows
of the embedding are read as tokens need them: a few kilobytes each of a gigabyte.

Knows nothing of what the matrices are for.
"""

import contextlib
import os
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import Checkpoint, TensorInfo, view_tensor
from localv4.config import ModelConfig
from localv4.reads import CLOSING_S, Wait, join_for
from localv4.shard_files import ShardFiles, closed, piece_bytes, split
from localv4.sizes import up
from localv4.slots import PAGE, give_back, private_memory
from localv4.tensors import ScaleDtype
from localv4.weights import WeightSource

__all__ = ["DenseWeights", "MappedWeights", "ModelWeights", "dense_bytes", "dense_names"]

U8 = NDArray[np.uint8]
_LINE = 64  # bytes of a cache line
_BOUNCE_BYTES = 2**24
_PIECE_BYTES = 2**22  # for few threads; behind each one they look whether they are to stop
_LEAST_BYTES = 2**12  # smaller tensors are copied by whoever binds them
_N_THREADS = 2
_WORTH_ASKING_BYTES = 2**28


class ModelWeights(WeightSource, Protocol):
    """What a model binds its weights from: a source that says when they are there."""

    def wait(self, group: int) -> None:
        """Wait until the weights of a layer are there; -1 is the head."""

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows of a matrix."""


class MappedWeights:
    """A checkpoint's tensors where its map has them; a `ModelWeights`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config = checkpoint.config
        self.tensors = checkpoint.tensors
        self.scale_dtype = checkpoint.scale_dtype
        self.view = checkpoint.view
        self.check_finite = checkpoint.check_finite
        self._folder = checkpoint.path

    def bring_in(self, mtp: bool) -> None:
        """Ask the system to read all weights ahead, those first that every token needs.

        Returns at once: the first tokens need not wait for one page after another.
        """
        n_bytes = sum(info.nbytes for info in self.tensors.values())
        if n_bytes >= _WORTH_ASKING_BYTES and hasattr(os, "posix_fadvise"):
            asker = threading.Thread(target=self._ask, args=(mtp,), daemon=True)
            asker.start()

    def _ask(self, mtp: bool) -> None:
        names = [name for group in dense_names(self.tensors, self.config, mtp) for name in group]
        files: dict[str, int] = {}
        # a hint: if it cannot be given, pages are read when they are touched
        with contextlib.suppress(OSError):
            try:
                for info in [*map(self.tensors.__getitem__, names), *self.tensors.values()]:
                    if info.shard not in files:
                        files[info.shard] = os.open(self._folder / info.shard, os.O_RDONLY)
                    file = files[info.shard]
                    os.posix_fadvise(file, info.offset, info.nbytes, os.POSIX_FADV_WILLNEED)
            finally:
                for file in files.values():
                    os.close(file)

    def wait(self, group: int) -> None:
        """Do nothing: the system reads what is touched."""

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows of a matrix."""
        return np.asarray(self.view(name)[ids])


def dense_names(
    tensors: Mapping[str, TensorInfo], config: ModelConfig, mtp: bool
) -> list[list[str]]:
    """Return the matrices that every token needs: of each layer, then of the head.

    Parameters
    ----------
    tensors, config
        Of the checkpoint.
    mtp
        Whether the MTP block is in use, which comes after the last layer.
    """
    n_layers = config.num_hidden_layers
    groups: list[list[str]] = [[] for _ in range(n_layers + 1 + mtp)]
    for name, info in tensors.items():
        if ".experts." in name or name == "embed.weight" or not _is_matrix(info):
            continue
        parts = name.split(".")
        if parts[0] == "mtp":
            if mtp:
                groups[n_layers].append(name)
        else:
            groups[int(parts[1]) if parts[0] == "layers" else -1].append(name)
    return groups


def _is_matrix(info: TensorInfo) -> bool:
    is_table = info.dtype == "I64" or info.name.endswith((".scale", ".ape"))
    return len(info.shape) == 2 and info.nbytes >= _LEAST_BYTES and not is_table


def dense_bytes(checkpoint: Checkpoint, groups: Sequence[Sequence[str]]) -> int:
    """Return the memory that matrices take."""
    return sum(up(checkpoint.tensors[name].nbytes, _LINE) for names in groups for name in names)


class DenseWeights:
    """A checkpoint's tensors, the matrices that every token needs in memory; a `ModelWeights`.

    Parameters
    ----------
    checkpoint
        Whose.
    files
        Its shards; closed by somebody else.
    groups
        What to keep in memory, in the order of use (`dense_names`).
    """

    def __init__(
        self, checkpoint: Checkpoint, files: ShardFiles, groups: Sequence[Sequence[str]]
    ) -> None:
        self._checkpoint = checkpoint
        self._files = files
        self._groups = groups
        n_bytes = dense_bytes(checkpoint, groups)
        self._map = private_memory(n_bytes)
        self._memory: U8 = np.frombuffer(self._map, np.uint8)
        self._places: dict[str, int] = {}
        place = 0
        for names in groups:
            for name in names:
                self._places[name] = place
                place += up(checkpoint.tensors[name].nbytes, _LINE)
        self._loaded = [threading.Event() for _ in groups]
        self._left = Counter({group: len(names) for group, names in enumerate(groups)})
        self._waiting = [(group, name) for group, names in enumerate(groups) for name in names]
        self._waiting.reverse()
        self._lock = threading.Lock()
        self._error: Exception | None = None
        self._closing = False
        self._threads = [
            threading.Thread(target=self._load, name=f"localv4-dense-{number}", daemon=True)
            for number in range(_N_THREADS)
        ]
        self._row_threads: list[threading.Thread] = []

    @property
    def config(self) -> ModelConfig:
        """The model."""
        return self._checkpoint.config

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Every tensor by name."""
        return self._checkpoint.tensors

    @property
    def scale_dtype(self) -> ScaleDtype:
        """Dtype of all scales."""
        return self._checkpoint.scale_dtype

    def view(self, name: str) -> NDArray[Any]:
        """Return a tensor where it lies; a matrix's bytes may be yet to come (`wait`)."""
        if name in self._places:
            return view_tensor(self.tensors[name], self._memory, self._places[name])
        return self._checkpoint.view(name)

    def check_finite(self, name: str) -> None:
        """Refuse NaN and infinity in a small tensor; see `Checkpoint.check_finite`."""
        assert name not in self._places, name
        self._checkpoint.check_finite(name)

    def start(self) -> None:
        """Begin to read; returns at once."""
        for group, names in enumerate(self._groups):
            if not names:
                self._loaded[group].set()
        for thread in self._threads:
            thread.start()

    def wait(self, group: int) -> None:
        """Wait until a group is there, -1 for the last.

        Raises
        ------
        DamagedCheckpoint
            It cannot be read.
        LocalV4Error
            After `close`.
        """
        loaded, wait = self._loaded[group], Wait()
        while not loaded.is_set():
            if self._error is not None:
                # another one each time: with it goes what the frames hold that it passes
                raise type(self._error)(*self._error.args) from None
            if self._closing:
                raise closed()
            if not loaded.wait(wait.EVERY_S):
                wait.goes_on()

    def rows(self, name: str, ids: NDArray[np.int64]) -> NDArray[Any]:
        """Return rows of a matrix that is not kept in memory, read now.

        Parameters
        ----------
        name
            The tensor.
        ids
            int64 [n], numbers of rows.

        Returns
        -------
        Values as stored, [n, columns].

        Raises
        ------
        DamagedCheckpoint
            They cannot be read.
        """
        info = self.tensors[name]
        wanted, places = np.unique(ids, return_inverse=True)
        row_bytes = info.nbytes // info.shape[0]
        memory = np.empty((wanted.size, row_bytes), np.uint8)
        self._read_rows(
            [
                (info.shard, info.offset + number * row_bytes, target)
                for target, number in zip(memory, wanted.tolist(), strict=True)
            ]
        )
        rows = TensorInfo(name, info.dtype, (wanted.size, *info.shape[1:]), "", 0, memory.nbytes)
        return np.asarray(view_tensor(rows, memory.reshape(-1), 0)[places])

    def forget(self) -> None:
        """Give the memory back to the system; nothing may be computed afterwards."""
        give_back(self._map, 0)

    def close(self) -> bool:
        """Stop reading; return whether no thread is held by the disk."""
        self._closing = True
        return join_for([*self._threads, *self._row_threads], CLOSING_S)

    def _read_rows(self, wanted: Sequence[tuple[str, int, U8]]) -> None:
        """Read shards at offsets into memory, on a thread: a signal ends the wait for it."""
        errors: list[Exception] = []

        def read() -> None:
            try:
                for place in wanted:
                    self._files.read_small(*place)
            except Exception as error:
                errors.append(error)

        thread = threading.Thread(target=read, name="localv4-rows", daemon=True)
        # one that was interrupted may still wait for the disk
        self._row_threads = [other for other in self._row_threads if other.is_alive()] + [thread]
        thread.start()
        wait = Wait()
        while thread.is_alive():
            thread.join(wait.EVERY_S)
            wait.goes_on()
        for error in errors:
            raise error

    def _load(self) -> None:
        try:
            bounce = np.frombuffer(private_memory(_BOUNCE_BYTES + 2 * PAGE), np.uint8)
            while self._error is None:
                with self._lock:
                    if not self._waiting:
                        return
                    group, name = self._waiting.pop()
                if not self._read(self.tensors[name], bounce):
                    return
                with self._lock:
                    self._left[group] -= 1
                    if not self._left[group]:
                        self._loaded[group].set()
        except Exception as error:
            self._error = error

    def _read(self, info: TensorInfo, bounce: U8) -> bool:
        """Read a matrix to its place; return whether it was not given up.

        A direct read keeps the file's alignment, which costs every product afterwards; so the
        bytes pass through memory that has it.
        """
        place = self._places[info.name]
        for done in range(0, info.nbytes, _BOUNCE_BYTES):
            count = min(_BOUNCE_BYTES, info.nbytes - done)
            offset = info.offset + done
            room = bounce[: piece_bytes(offset, count)]
            for piece in split(info.shard, offset, count, room, _PIECE_BYTES):
                if self._closing:
                    return False
                self._files.read(piece)
            skipped = offset % PAGE
            self._memory[place + done : place + done + count] = bounce[skipped : skipped + count]
        return True
