"""All KV state of an engine, and whether more of it fits the memory budget.

Rows that sessions and snapshots share count once.  Knows nothing of tokens.
"""

import weakref
from collections.abc import Callable

from localv4.errors import OutOfBudget
from localv4.kv_cache import KVCache, KVMark
from localv4.sizes import format_bytes

__all__ = ["KVLedger"]


class KVLedger:
    """What sessions and snapshots hold; see `MemoryPlan`.

    Parameters
    ----------
    most
        Bytes that all of them may take.
    make_room
        Called with the bytes that will be held, before they are taken.

    Attributes
    ----------
    most
        As given.
    """

    def __init__(self, most: int, make_room: Callable[[int], None]) -> None:
        self.most = most
        self._make_room = make_room
        self._states: weakref.WeakSet[KVCache | KVMark] = weakref.WeakSet()

    @property
    def n_bytes(self) -> int:
        """Bytes held by all."""
        states = list(self._states)
        blocks = {id(block): block.n_bytes for state in states for block in state.blocks}
        return sum(state.fixed_bytes for state in states) + sum(blocks.values())

    def enter(self, state: KVCache | KVMark) -> None:
        """Count a state for as long as somebody holds it."""
        self._states.add(state)

    def admit(self, n_bytes: int) -> None:
        """Make room for so many more bytes.

        Raises
        ------
        OutOfBudget
            They don't fit.
        """
        held = self.n_bytes
        if held + n_bytes > self.most:
            raise OutOfBudget(
                f"{format_bytes(n_bytes)} more of KV state are needed, and {format_bytes(held)} of "
                f"the {format_bytes(self.most)} that the budget leaves are in use; give more "
                "memory, or drop other sessions and snapshots"
            )
        self._make_room(held + n_bytes)
