"""Where routed experts come from: here the checkpoint's map, bound when first used.

The seam for streaming: the maths asks for an expert by layer and number and gets matrices.
"""

from localv4.checkpoint import Checkpoint
from localv4.weights import ExpertWeights, bind_expert

__all__ = ["ExpertStore"]


class ExpertStore:
    """Routed experts of a mapped checkpoint.

    Attributes
    ----------
    format
        The matrices' format, "fp4" or "fp8", which is also the order of their lanes.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.format = checkpoint.expert_format
        self._checkpoint = checkpoint
        self._bound: dict[tuple[int, int], ExpertWeights] = {}

    def get(self, layer: int, expert: int) -> ExpertWeights:
        """Return one expert's matrices, which lie in the map (page cache, not copied).

        Raises
        ------
        DamagedCheckpoint
            One of its scales is not finite; found when the expert is first used.
        """
        key = layer, expert
        if key not in self._bound:
            self._bound[key] = bind_expert(self._checkpoint, layer, expert)
        return self._bound[key]
