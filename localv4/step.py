"""What is the same for every layer while a chunk of tokens passes through the model."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localv4.rope import Rope

__all__ = ["Observer", "Step"]

Observer = Callable[[str, int, int, NDArray[np.generic]], None]


@dataclass(frozen=True, eq=False)
class Step:
    """A chunk of consecutive tokens and how to compute on it.

    Attributes
    ----------
    ids
        int64 [n_tokens].
    position
        Position of the first token.
    trained
        Round activations to FP8, FP4 and BF16 where the model was trained with it; False
        computes in float32 throughout ("float32" numerics).
    rope
        The model's rotary tables.
    observe
        Called as observe(name, layer, position, array) with intermediate results, or None.
    passed
        Called behind every block with the number of blocks passed, or None.
    """

    ids: NDArray[np.int64]
    position: int
    trained: bool
    rope: Rope
    observe: Observer | None = None
    passed: Callable[[int], None] | None = None

    @property
    def n_tokens(self) -> int:
        """Number of tokens."""
        return self.ids.size

    @property
    def end(self) -> int:
        """Position after the last token."""
        return self.position + self.ids.size

    @property
    def positions(self) -> NDArray[np.int64]:
        """Every token's position, int64 [n_tokens]."""
        return np.arange(self.position, self.end, dtype=np.int64)

    def note(self, name: str, layer: int, array: NDArray[np.generic]) -> None:
        """Show an intermediate result to the observer, as a copy it may keep."""
        if self.observe is not None:
            self.observe(name, layer, self.position, array.copy())
