import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from localv4.kernels.choice import SETS, note_highest, record_choose, set_shift
from localv4.kernels.launch import Program
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_same_bytes
from tests.reference import kernels_indexer as twin


def noted(scores: F32):
    """Note the highest scores of rows which are all visible, in two parts each."""
    n = scores.shape[1]
    highest = np.full((len(scores), SETS), 7, np.int32)
    middle = (n >> set_shift(n)) // 2 << set_shift(n)
    for row, sets in zip(scores, highest, strict=True):
        note_highest(row, middle, n, sets)
        note_highest(row, 0, middle, sets)
    return highest


def run_choose(scores: F32, count: int):
    """Choose from rows of scores which all are visible."""
    highest = noted(scores)
    chosen = np.full((len(scores), count), -7, np.int32)
    counts, best = np.full(len(scores), -7, np.int32), np.full(chosen.shape, np.nan, np.float32)
    # with ratio 1 row i sees place + i + 1 scores, so each row is a program of its own
    for row in range(len(scores)):
        program, part = Program(), slice(row, row + 1)
        program.phase("indexer")
        place = np.array([scores.shape[1] - 1], np.int64)
        results = chosen[part], counts[part], best[part]
        record_choose(program, scores[part], highest[part], place, 1, *results)
        program.run(1)
    assert counts.tolist() == np.count_nonzero(chosen >= 0, axis=1).tolist()
    for row, taken, values in zip(scores, chosen, best, strict=True):
        assert_same_bytes(values[taken >= 0], row[taken[taken >= 0]])
    return chosen


def assert_right_choice(scores: F32, count: int) -> None:
    expected = np.stack([twin.choose(row, count) for row in scores])
    assert_same_bytes(run_choose(scores, count), expected)


TIED = st.sampled_from([-np.inf, -2.5, -1.0, -1e-45, -0.0, 0.0, 1e-45, 1.0, 1.0078125, 3e38])
NUMBERS = st.floats(width=32, allow_nan=False, allow_infinity=False)


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(np.float32, st.tuples(st.just(2), st.integers(0, 40)), elements=TIED | NUMBERS),
    st.integers(0, 45),
)
def test_choice(scores: F32, count: int):
    assert_right_choice(scores, count)


@settings(deadline=None, max_examples=100)
@given(hnp.arrays(np.float32, (1, 30), elements=TIED), st.integers(1, 29))
def test_choice_among_ties(scores: F32, count: int):
    assert_right_choice(scores, count)


@pytest.mark.parametrize("count", [1, 5, 299, 300, 301])
def test_choice_of_many(count: int):
    rng = np.random.default_rng(count)
    scores = bf16.round(rng.standard_normal((3, 300)))  # BF16 numbers tie often
    scores[1, 40:] = -np.inf
    scores[2] = 0
    scores[2, ::2] = -0.0
    assert_right_choice(scores, count)


@pytest.mark.parametrize("order", ["random", "ascending", "descending", "equal", "few", "last"])
@pytest.mark.parametrize(("n", "count"), [(9000, 512), (70_001, 512), (20_000, 3000)])
def test_choice_of_more_than_is_collected(order: str, n: int, count: int):
    scores = bf16.round(np.random.default_rng(n).standard_normal((1, n)))
    if order == "ascending":
        scores = np.sort(scores.astype(np.float32), axis=1)
    elif order == "descending":
        scores = -np.sort(scores.astype(np.float32), axis=1)
    elif order == "equal":
        scores[:] = 1
    elif order == "few":
        scores[:, : n - count // 2] = -np.inf
    elif order == "last":  # the high ones are neighbours
        scores[:, n - 2 * count :] += np.float32(8)
    assert_right_choice(scores, count)


def test_a_nan_takes_a_place_and_is_not_chosen():
    scores = np.arange(6000, dtype=np.float32)[None].copy()
    scores[0, [3, 4000]] = np.nan
    chosen = run_choose(scores, 5)
    assert chosen.tolist() == [[5997, 5998, 5999, -1, -1]]
    scores[0, :5000] = np.nan
    assert run_choose(scores, 4500).tolist() == [[-1] * 4500]


@pytest.mark.parametrize("n", [1, 16, SETS * 16, SETS * 16 + 1, 262_144, 1_000_000])
def test_a_row_has_no_more_sets_than_there_is_room_for(n: int):
    n_sets = ((n - 1) >> set_shift(n)) + 1
    assert n_sets <= SETS
    assert n_sets > SETS // 2 or set_shift(n) == 4


def test_by_hand():
    scores = np.array([[1, 3, 2, 3, -np.inf, 3, 0, -0.0]], np.float32)
    assert run_choose(scores, 2).tolist() == [[1, 3]]
    assert run_choose(scores, 4).tolist() == [[1, 2, 3, 5]]
    assert run_choose(scores, 6).tolist() == [[0, 1, 2, 3, 5, 6]]
    assert run_choose(scores, 8).tolist() == [[0, 1, 2, 3, 5, 6, 7, -1]]


def test_a_query_chooses_among_what_it_sees():
    scores = np.arange(12, dtype=np.float32).reshape(2, 6)
    chosen, counts = np.zeros((2, 3), np.int32), np.zeros(2, np.int32)
    program = Program()
    program.phase("indexer")
    best, highest = np.zeros((2, 3), np.float32), np.zeros((2, SETS), np.int32)
    record_choose(program, scores, highest, np.array([6], np.int64), 4, chosen, counts, best)
    program.run(1)
    assert chosen.tolist() == [[0, -1, -1], [0, 1, -1]]
    assert counts.tolist() == [1, 2]
