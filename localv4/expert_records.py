"""Where the bytes of a routed expert lie: in the shards, and in a slot of memory.

In the releases an expert's three weights are one run of bytes and its three scales another; an
expert whose tensors are scattered over shards has up to six.  A run keeps its place within a page
of the file, so that a direct read needs no copy.  Follows the spec's revisions (expert layout).
Knows nothing of which experts are in memory.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import Checkpoint, TensorInfo, refuse_non_finite, view_tensor
from localv4.config import ModelConfig
from localv4.shard_files import Piece, piece_bytes, split
from localv4.sizes import up
from localv4.slots import PAGE
from localv4.tensors import ScaleDtype, expert_tensors
from localv4.weights import ExpertWeights, bind_expert

__all__ = ["ExpertRecords", "Run", "slot_bytes"]

U8 = NDArray[np.uint8]


@dataclass(frozen=True)
class Run:
    """Tensors that lie one after the other in a shard.

    Attributes
    ----------
    shard
        File name.
    offset, n_bytes
        In the file.
    place
        Where the run's pages begin in a slot.
    """

    shard: str
    offset: int
    n_bytes: int
    place: int


@dataclass(frozen=True)
class _Record:
    """An expert's runs, and where each tensor begins in a slot."""

    runs: tuple[Run, ...]
    places: Mapping[str, int]


@dataclass(frozen=True, eq=False)
class _Slot:
    """A slot that holds an expert, as a source of its tensors."""

    config: ModelConfig
    tensors: Mapping[str, TensorInfo]
    scale_dtype: ScaleDtype
    checkpoint: Checkpoint
    places: Mapping[str, int]
    memory: U8

    def view(self, name: str) -> NDArray[Any]:
        return view_tensor(self.tensors[name], self.memory, self.places[name])

    def check_finite(self, name: str) -> None:
        refuse_non_finite(self.view(name), self.tensors[name], self.checkpoint.path)


def slot_bytes(tensor_bytes: Iterable[int]) -> int:
    """Return the room of an expert with tensors of these sizes, wherever in a file they lie."""
    # every tensor a run of its own, beginning and ending anywhere in a page
    return sum(up(n_bytes, PAGE) + PAGE for n_bytes in tensor_bytes)


class ExpertRecords:
    """The routed experts of a checkpoint as records to be read into slots.

    Attributes
    ----------
    expert_bytes
        Bytes of one expert.
    slot_bytes
        Room that any expert fits into.
    shards
        Names of the files that hold experts.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint
        sizes = [info.nbytes for info in self._specs(0, 0)]
        self.expert_bytes = sum(sizes)
        self.slot_bytes = slot_bytes(sizes)
        self.shards = sorted(
            {info.shard for name, info in checkpoint.tensors.items() if ".experts." in name}
        )
        self._record = cache(self._make_record)

    def runs(self, layer: int, expert: int) -> tuple[Run, ...]:
        """Return where an expert's bytes lie."""
        return self._record(layer, expert).runs

    def pieces(self, layer: int, expert: int, slot: U8) -> list[Piece]:
        """Return what to read into a slot."""
        pieces = []
        for run in self.runs(layer, expert):
            pieces += split(run.shard, run.offset, run.n_bytes, slot[run.place :])
        return pieces

    def bind(self, layer: int, expert: int, slot: U8) -> ExpertWeights:
        """Return the matrices of an expert that was read into a slot.

        Raises
        ------
        DamagedCheckpoint
            A scale is not finite.
        """
        checkpoint = self._checkpoint
        record = self._record(layer, expert)
        source = _Slot(
            checkpoint.config,
            checkpoint.tensors,
            checkpoint.scale_dtype,
            checkpoint,
            record.places,
            slot,
        )
        return bind_expert(source, layer, expert)

    def _specs(self, layer: int, expert: int) -> list[TensorInfo]:
        checkpoint = self._checkpoint
        specs = expert_tensors(
            checkpoint.config, layer, expert, checkpoint.expert_format, checkpoint.scale_dtype
        )
        return [checkpoint.tensors[spec.name] for spec in specs]

    def _make_record(self, layer: int, expert: int) -> _Record:
        runs: list[Run] = []
        places: dict[str, int] = {}
        room = 0
        for info in sorted(self._specs(layer, expert), key=lambda info: (info.shard, info.offset)):
            last = runs[-1] if runs else None
            if last and last.shard == info.shard and last.offset + last.n_bytes == info.offset:
                runs[-1] = Run(last.shard, last.offset, last.n_bytes + info.nbytes, last.place)
            else:
                runs.append(Run(info.shard, info.offset, info.nbytes, room))
            run = runs[-1]
            places[info.name] = run.place + info.offset - run.offset // PAGE * PAGE
            room = run.place + piece_bytes(run.offset, run.n_bytes)
        assert room <= self.slot_bytes
        return _Record(tuple(runs), places)
