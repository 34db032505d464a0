"""Where routed experts come from, as the maths sees it.

A layer asks for the experts that its tokens chose and is lent them, one by one if need be: those
in memory at once, others when the disk has given them.  `MappedExperts` is for models that fit:
nothing is copied and nothing has to be waited for.  streaming.py is for the others.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from localv4.checkpoint import Checkpoint
from localv4.kernels.matmul import MATRIX_WORDS
from localv4.tensors import ExpertFormat
from localv4.weights import ExpertWeights, bind_expert

__all__ = ["ExpertStore", "Loan", "MappedExperts"]


class Loan(ABC):
    """Some experts of one layer, in ascending order; a context manager that gives them back.

    Attributes
    ----------
    most
        Experts that may be held at a time, from `get` to `done`; at least 1.
    """

    most: int

    @property
    @abstractmethod
    def asked(self) -> bool:
        """Whether the disk was asked for all of them: what comes next may be asked for."""

    @abstractmethod
    def ready(self, index: int) -> bool:
        """Whether `get` would not have to wait."""

    @abstractmethod
    def get(self, index: int) -> ExpertWeights:
        """Return an expert's matrices, valid until `done`; waits for them.

        Raises
        ------
        DamagedCheckpoint
            The expert cannot be read, or one of its scales is not finite.
        """

    @abstractmethod
    def first_ready(self, indices: Iterable[int]) -> int:
        """Return one of some experts that is ready; waits until there is one."""

    @abstractmethod
    def done(self, index: int) -> None:
        """Give an expert back."""

    @abstractmethod
    def close(self) -> None:
        """Give all of them back."""

    def __enter__(self) -> Self:
        """Return itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Give all of them back."""
        self.close()


class ExpertStore(ABC):
    """Routed experts of a checkpoint.

    Attributes
    ----------
    format
        The matrices' format, "fp4" or "fp8", which is also the order of their lanes.
    looks_ahead
        Whether it helps to know experts before they are asked for (`expect`).
    """

    format: ExpertFormat
    looks_ahead: bool

    @abstractmethod
    def begin(self, n_tokens: int) -> None:
        """Let a chunk of tokens begin: from now on its experts are asked for, layer by layer."""

    @abstractmethod
    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Say that a layer will ask for these experts, in ascending order, later in the chunk."""

    @abstractmethod
    def table(self, layer: int) -> NDArray[np.int64]:
        """Return where a layer's experts lie, for kernels that find them without asking.

        Returns
        -------
        int64 [n_routed_experts, 3, MATRIX_WORDS]: the words of w1, w3 and w2, and zeros for an
        expert that has to be asked for.  Changes only while this store is called.
        """

    @abstractmethod
    def example(self, layer: int) -> ExpertWeights:
        """Return matrices like those of a layer's experts, with any content."""

    @abstractmethod
    def passed(self, layer: int, experts: NDArray[np.int32]) -> None:
        """Note which experts one token found in the tables, without asking.

        Parameters
        ----------
        layer
            The first of those that it has passed.
        experts
            int32 [n_layers, num_experts_per_tok], ascending in each layer.
        """

    @abstractmethod
    def lend(self, layer: int, experts: Sequence[int], counts: Sequence[int]) -> Loan:
        """Lend experts of a layer.

        Parameters
        ----------
        layer
            Its number; num_hidden_layers is the MTP block.
        experts
            Distinct numbers, ascending.
        counts
            How many of the chunk's tokens chose each.
        """


class _MappedLoan(Loan):
    def __init__(self, store: "MappedExperts", layer: int, experts: Sequence[int]) -> None:
        self.most = len(experts)
        self._store = store
        self._layer = layer
        self._experts = experts

    @property
    def asked(self) -> bool:
        return True

    def ready(self, index: int) -> bool:
        return True

    def get(self, index: int) -> ExpertWeights:
        return self._store.get(self._layer, self._experts[index])

    def first_ready(self, indices: Iterable[int]) -> int:
        return next(iter(indices))

    def done(self, index: int) -> None:
        pass

    def close(self) -> None:
        pass


class MappedExperts(ExpertStore):
    """Routed experts where the checkpoint's map has them (page cache, not copied)."""

    looks_ahead = False

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.format = checkpoint.expert_format
        self._checkpoint = checkpoint
        self._bound: dict[tuple[int, int], ExpertWeights] = {}
        self._tables: dict[int, NDArray[np.int64]] = {}

    def begin(self, n_tokens: int) -> None:
        """Do nothing: all experts are there."""

    def expect(self, layer: int, experts: Sequence[int]) -> None:
        """Do nothing: all experts are there."""

    def table(self, layer: int) -> NDArray[np.int64]:
        """Return where a layer's experts lie; see `ExpertStore.table`."""
        if layer not in self._tables:
            shape = self._checkpoint.config.n_routed_experts, 3, MATRIX_WORDS
            self._tables[layer] = np.zeros(shape, np.int64)
        return self._tables[layer]

    def example(self, layer: int) -> ExpertWeights:
        """Return the first expert."""
        return self.get(layer, 0)

    def passed(self, layer: int, experts: NDArray[np.int32]) -> None:
        """Do nothing: all experts are there."""

    def lend(self, layer: int, experts: Sequence[int], counts: Sequence[int]) -> Loan:
        """Lend experts; see `ExpertStore.lend`."""
        return _MappedLoan(self, layer, experts)

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """Return one expert's matrices.

        Raises
        ------
        DamagedCheckpoint
            One of its scales is not finite; found when the expert is first used.
        """
        key = layer, expert
        if key not in self._bound:
            bound = self._bound[key] = bind_expert(self._checkpoint, layer, expert)
            self.table(layer)[expert] = bound.words
        return self._bound[key]
