"""Buffers that a chunk of tokens passes through; every layer uses the same ones.

A buffer is known by its name and shape, so that recording a layer's program a second time, or
another layer's, gives the same memory.  Knows nothing of what is kept in them.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from localv4.kernels.arrays import aligned
from localv4.kernels.launch import Program
from localv4.kernels.matmul import Lanes
from localv4.rope import Rope

__all__ = ["Workspace", "Workspaces"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]
_T = TypeVar("_T")


class Workspace:
    """Buffers for chunks of one number of tokens.

    Attributes
    ----------
    n_tokens
        Tokens of a chunk.
    trained
        Trained or float32 numerics.
    threads
        Compute threads, for how finely work is divided; decides no byte.
    rope
        The model's rotary tables.
    seconds
        The time of every part of the model is added to it; None switches that off.
    """

    def __init__(self, n_tokens: int, trained: bool, threads: int, rope: Rope) -> None:
        self.n_tokens = n_tokens
        self.trained = trained
        self.threads = threads
        self.rope = rope
        self.seconds: dict[str, float] | None = None
        self._recorded: dict[str, Any] = {}
        self._buffers: dict[tuple[Any, ...], NDArray[Any]] = {}
        self._lanes: dict[tuple[Any, ...], Lanes] = {}

    def f32(self, name: str, *shape: int) -> F32:
        """Return the float32 buffer of this name and shape."""
        return self._buffer(name, shape, np.float32)

    def i32(self, name: str, *shape: int) -> I32:
        """Return the int32 buffer of this name and shape."""
        return self._buffer(name, shape, np.int32)

    def u8(self, name: str, *shape: int) -> NDArray[np.uint8]:
        """Return the uint8 buffer of this name and shape."""
        return self._buffer(name, shape, np.uint8)

    def i64(self, name: str, *shape: int) -> NDArray[np.int64]:
        """Return the int64 buffer of this name and shape."""
        return self._buffer(name, shape, np.int64)

    def lanes(
        self,
        name: str,
        order: str,
        quantised: bool,
        n_columns: int,
        n_rows: int | None = None,
        parts_of: int | None = None,
    ) -> Lanes:
        """Return the lanes of this name, order and size: `n_tokens` rows unless told."""
        count = self.n_tokens if n_rows is None else n_rows
        key = (name, order, quantised, n_columns, count, parts_of)
        if key not in self._lanes:
            # under trained numerics everything that meets weights is a BF16 number
            self._lanes[key] = Lanes.room(
                order, quantised, count, n_columns, self.trained, parts_of
            )
        return self._lanes[key]

    def recorded(self, name: str, record: Callable[[], _T]) -> _T:
        """Return what `record` gave for this name; it is called once in a workspace's life."""
        if name not in self._recorded:
            self._recorded[name] = record()
        result: _T = self._recorded[name]
        return result

    def run(self, program: Program, first: int = 0, last: int | None = None) -> None:
        """Run a program, or phases of it, on the workspace's threads."""
        program.run(self.threads, self.seconds, first, last)

    def clear(self) -> None:
        """Let go of all buffers and programs, which know the workspace in their turn."""
        self._recorded.clear()
        self._buffers.clear()
        self._lanes.clear()

    @property
    def n_bytes(self) -> int:
        """Bytes of all buffers so far."""
        arrays = [*self._buffers.values()]
        for lanes in self._lanes.values():
            arrays += [lanes.memory] if lanes.blocks is None else [lanes.memory, lanes.blocks]
        return sum(array.nbytes for array in arrays)

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
        key = (name, dtype, *shape)
        if key not in self._buffers:
            self._buffers[key] = aligned(shape, dtype)
        return self._buffers[key]


class Workspaces:
    """The workspace of one token, kept for good, and that of the other size used last.

    Parameters
    ----------
    threads
        Compute threads.
    rope
        The model's rotary tables.

    Attributes
    ----------
    seconds
        See `Workspace`; given to every workspace.
    """

    def __init__(self, threads: int, rope: Rope) -> None:
        self.threads = threads
        self.rope = rope
        self.seconds: dict[str, float] | None = None
        self._kept: dict[bool, Workspace] = {}

    def get(self, n_tokens: int, trained: bool) -> Workspace:
        """Return the workspace for chunks of this size; what is in its buffers is old."""
        single = n_tokens == 1
        kept = self._kept.get(single)
        if kept is None or kept.n_tokens != n_tokens or kept.trained != trained:
            if kept is not None:
                kept.clear()  # its memory is free before the next one's is taken
            kept = self._kept[single] = self.make(n_tokens, trained)
        kept.seconds = self.seconds
        return kept

    def make(self, n_tokens: int, trained: bool) -> Workspace:
        """Return a workspace of the caller's own."""
        return Workspace(n_tokens, trained, self.threads, self.rope)
