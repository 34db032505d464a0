"""The look-up of one token's experts between two phases, and where it stops."""

import numpy as np
import pytest

from localv4.kernels.arrays import address
from localv4.kernels.binding import record_binding
from localv4.kernels.launch import Program, kernel
from localv4.kernels.matmul import MATRIX_WORDS

N_EXPERTS, N_CHOSEN, MARK = 7, 3, 4


@kernel("i64[1]", "count_behind")
def _count(calls, unit):
    calls[0] += 1


class Lookup:
    """A recorded look-up with its tables full, and something behind it."""

    def __init__(self) -> None:
        rng = np.random.default_rng(0)
        shape = N_EXPERTS, 3, MATRIX_WORDS
        self.table, self.following = (rng.integers(1, 1 << 40, shape) for _ in range(2))
        self.experts = np.array([[1, 4, 6]], np.int32)
        self.foreseen = np.array([5, 0], np.int32)
        self.bound = np.full(N_CHOSEN, -1, np.int32)
        self.stops, self.behind = np.zeros(2, np.int64), np.zeros(1, np.int64)
        self.words = np.zeros((N_CHOSEN, 3, MATRIX_WORDS), np.int64)
        self.program = Program()
        self.program.stop_at(self.stops[:1])
        self.program.phase("experts")
        targets = record_binding(
            self.program,
            self.experts,
            self.table,
            self.foreseen,
            self.following,
            self.bound,
            MARK,
            self.stops,
        )
        targets[:] = [[address(words) for words in expert] for expert in self.words]
        self.program.phase("other")
        self.program.add(_count, 1, self.behind)

    def run(self) -> None:
        """Run it anew."""
        self.bound[:] = -1
        self.words[:] = 0
        self.behind[0] = 0
        self.program.run(2)

    @property
    def is_done(self) -> bool:
        """Whether everything is in place and the program went on; else nothing is."""
        done = self.stops[0] == 0
        experts = self.experts[0].tolist()
        expected = self.table[experts] if done else np.zeros_like(self.words)
        assert self.stops[0] in (0, MARK)
        assert self.words.tolist() == expected.tolist()
        assert self.bound.tolist() == (experts if done else [-1] * N_CHOSEN)
        assert self.behind[0] == int(done)
        return bool(done)


@pytest.fixture
def lookup() -> Lookup:
    return Lookup()


def test_what_is_there_is_put_in_place(lookup: Lookup) -> None:
    for experts in ([1, 4, 6], [0, 0, 5], [2, 3, 3]):
        lookup.experts[0] = experts
        lookup.run()
        assert lookup.is_done


@pytest.mark.parametrize("answered", [0, MARK, MARK + 1])
@pytest.mark.parametrize("missing", range(N_EXPERTS))
def test_it_stops_where_a_chosen_expert_is_missing(
    lookup: Lookup, missing: int, answered: int
) -> None:
    lookup.table[missing] = 0
    lookup.stops[1] = answered
    lookup.run()
    assert lookup.is_done == (missing not in lookup.experts)


@pytest.mark.parametrize("missing", range(N_EXPERTS))
def test_it_stops_once_where_a_foreseen_expert_is_missing(lookup: Lookup, missing: int) -> None:
    lookup.following[missing] = 0
    for answered in (0, MARK - 1):
        lookup.stops[:] = 0, answered
        lookup.run()
        assert lookup.is_done == (missing not in lookup.foreseen)
    lookup.stops[:] = 0, MARK
    lookup.run()
    assert lookup.is_done
