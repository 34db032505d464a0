"""A model opened for measurements: in memory as far as it fits, at any context.

Goes past engine and sessions, to time single blocks and to start at a context without feeding
all of its tokens.
"""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localv4.bench.roof import PLAIN
from localv4.checkpoint import Checkpoint
from localv4.errors import ContextOverflow
from localv4.kernels.launch import Program
from localv4.kernels.threads import choose_threads, computing
from localv4.kv_cache import KVCache, LayerCache
from localv4.limits import available_bytes
from localv4.model import Model
from localv4.step import Step

__all__ = ["Opened", "open_model"]

_LEAST_BYTES = 2**16  # smaller tensors are not worth a task
_ROOM = 1024  # tokens that may follow
_FED = 128  # tokens after which every window and every compressor has been full


class Opened:
    """A model with what belongs to measuring it.

    Attributes
    ----------
    model
        The model.
    threads
        Compute threads.
    n_bytes
        Of all weights.
    in_memory
        Whether they fit the memory that was available; else the disk is measured as well.
    map_gb_s
        How fast the weights are read where they lie, each byte once; None if not in memory.
    """

    def __init__(self, checkpoint: Checkpoint, threads: int, say: Callable[[str], None]) -> None:
        self.model = Model.mapped(checkpoint, threads)
        self.threads = threads
        self.n_bytes = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
        self.in_memory = self.n_bytes < available_bytes()
        self.map_gb_s = self._touch(checkpoint, say) if self.in_memory else None
        self._rng = np.random.default_rng(0)

    def ids(self, count: int) -> NDArray[np.int64]:
        """Return random token ids, int64 [count]."""
        return self._rng.integers(0, self.model.config.vocab_size, count)

    def step(self, count: int, position: int) -> Step:
        """Return a chunk of random tokens."""
        return Step(self.ids(count), position, True, self.model.rope)

    def cache_at(self, context: int, more: int = _ROOM) -> tuple[KVCache, int]:
        """Return the KV state after a context, with room for more tokens, and its tokens.

        Up to `_FED` tokens are fed.  More are stood in for: compressed entries are repeated and
        index keys drawn at random, as many as there would be, which costs an attention step as
        much as real ones.  Such a context is rounded down to a multiple of `_FED` tokens.

        Raises
        ------
        ContextOverflow
            The model takes no context of that size.
        """
        most = self.model.config.max_position_embeddings
        if context >= most:
            raise ContextOverflow(
                f"--context has {context} and the model ends at {most}; give smaller ones"
            )
        cache = KVCache(self.model.config, True, False, context=min(context + more, most))
        if context:
            self.model.forward(cache, self.step(min(context, _FED), 0))
        if context > _FED:
            context = context // _FED * _FED
            for layer in cache.layers:
                self._extend(layer, context)
        return cache, context

    def _extend(self, layer: LayerCache, context: int) -> None:
        for rows in (layer.compressed, layer.keys):
            if rows is None:
                continue
            known = rows.used.copy()
            grown = rows.extend(context // layer.ratio - len(rows))
            grown[:] = np.resize(known, grown.shape)
            if rows is layer.keys:
                codes = grown[:, : self.model.config.index_head_dim // 2]
                codes[:] = self._rng.integers(0, 256, codes.shape, np.uint8)

    def _touch(self, checkpoint: Checkpoint, say: Callable[[str], None]) -> float:
        """Read all weights where they lie, twice, and return the speed of the second time."""
        say("reading the weights ...")
        for shard in {tensor.shard for tensor in checkpoint.tensors.values()}:
            _ask_for(checkpoint.path / shard)
        program = Program()
        program.phase("other")
        n_bytes = 0
        for name, tensor in checkpoint.tensors.items():
            if tensor.nbytes >= _LEAST_BYTES:
                view = checkpoint.view(name).reshape(-1).view(np.uint8)
                PLAIN.record(program, view)
                n_bytes += view.size
        program.run(self.threads)
        started_s = time.perf_counter()
        program.run(self.threads)
        return n_bytes / (time.perf_counter() - started_s) / 1e9


def _ask_for(path: Path) -> None:
    """Let the system read a file ahead, which is faster than by one page fault after another."""
    if not hasattr(os, "posix_fadvise"):
        return
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)


@contextmanager
def open_model(folder: Path, threads: int | None, say: Callable[[str], None]) -> Iterator[Opened]:
    """Open a checkpoint for measurements and hold the right to compute.

    Raises
    ------
    LocalV4Error
        The checkpoint cannot be run, or there are not so many threads.
    """
    n_threads = choose_threads(threads)
    with Checkpoint.open(folder) as checkpoint, computing():
        yield Opened(checkpoint, n_threads, say)
