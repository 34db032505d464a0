"""Putting the chosen experts' matrices into the tasks that multiply with them, between two phases.

Python can do the same, and takes a third of a millisecond for it while its own data are not in the
caches, through which weights have just passed.  Knows nothing of where experts come from.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels.calls import put_word
from localv4.kernels.launch import Program, kernel
from localv4.kernels.matmul import MATRIX_WORDS

__all__ = ["record_binding"]

I32 = NDArray[np.int32]
I64 = NDArray[np.int64]


@kernel("i32[2], i64[3], i32[1], i64[3], i64[2], i32[1], i64, i64[1]")
def _bind(
    experts: I32,
    table: I64,
    foreseen: I32,
    following: I64,
    targets: I64,
    bound: I32,
    mark: int,
    stops: I64,
    unit: int,
) -> None:
    missing = 0
    for slot in range(targets.shape[0]):
        if table[experts[unit, slot], 0, 0] == 0:
            missing = 1
    if stops[1] != mark:
        for place in range(foreseen.shape[0]):
            if following[foreseen[place], 0, 0] == 0:
                missing = 1
    if missing != 0:
        stops[0] = mark
        return
    for slot in range(targets.shape[0]):
        bound[slot] = experts[unit, slot]
        words = table[experts[unit, slot]]
        for matrix in range(targets.shape[1]):
            for place in range(MATRIX_WORDS):
                put_word(targets[slot, matrix], place, words[matrix, place])


def record_binding(
    program: Program,
    experts: I32,
    table: I64,
    foreseen: I32,
    following: I64,
    bound: I32,
    mark: int,
    stops: I64,
) -> I64:
    """Record, as a phase of its own, the look-up of one token's experts.

    Parameters
    ----------
    program
        Gets the phase.
    experts
        int32 [1, n]: their numbers when the program runs.
    table
        int64 [n_experts, 3, MATRIX_WORDS]: each expert's matrices; zeros for one that is not there.
    foreseen, following
        int32 [any number]: experts that are likely to be wanted soon; and their table.
    bound
        int32 [n], written: the experts that were put in place.
    mark
        Of this look-up, not 0.
    stops
        int64 [2].  The first becomes `mark` if an expert is not there, and then nothing is put in
        place.  While the second is `mark`, those foreseen do not matter.

    Returns
    -------
    int64 [n, 3], for the caller to fill: where the words of the tasks are that multiply with the
    matrices of each expert, in the table's order.
    """
    targets = np.zeros((experts.shape[1], 3), np.int64)
    program.phase(program.part)
    program.add(_bind, 1, experts, table, foreseen, following, targets, bound, mark, stops)
    return targets
