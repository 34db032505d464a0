import gc
import threading
import weakref

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4.kernels.launch import Program, kernel
from localv4.kernels.threads import computing
from tests.kernels.compare import COMPILED

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@kernel("i64[1]")
def count(counts: I64, unit: int) -> None:
    counts[unit] += 1


@kernel("i64[1], i64[1]")
def add_up(values: I64, sums: I64, unit: int) -> None:
    for i in range(values.size):
        sums[unit] += values[i]


@kernel("f32[2], f32, i64, f32[2]")
def scale_row(x: F32, factor: np.float32, row_number: int, out: F32, unit: int) -> None:
    for i in range(x.shape[1]):
        out[row_number + unit, i] = factor * x[row_number + unit, i]


@kernel("i64[1], i64[1]")
def note_worker(workers: I64, busy: I64, unit: int, worker: int) -> None:
    busy[worker] += 1
    workers[unit] = worker


@kernel("u8[1], u16[2], i32[3], f32[1], i64[2], i64[1]")
def shapes(
    bytes_: NDArray[np.uint8],
    words: NDArray[np.uint16],
    integers: NDArray[np.int32],
    reals: F32,
    longs: I64,
    out: I64,
    unit: int,
) -> None:
    out[0], out[1], out[2] = bytes_.shape[0], words.shape[0], words.shape[1]
    out[3], out[4], out[5] = integers.shape[0], integers.shape[1], integers.shape[2]
    out[6], out[7], out[8] = reals.shape[0], longs.shape[0], longs.shape[1]
    out[9] = bytes_[2] + words[1, 2] + integers[1, 0, 1] + longs[0, 1]


def program_of(*phases) -> Program:
    """A program of phases, each a list of (kernel, units, arguments ...)."""
    program = Program()
    for phase in phases:
        program.phase("other")
        for task in phase:
            program.add(*task)
    return program


@pytest.mark.parametrize("n_workers", [1, 2, 7])
@pytest.mark.parametrize("units", [1, 2, 3, 100])
def test_every_unit_is_done_once(units: int, n_workers: int):
    counts = np.zeros(units + 1, np.int64)
    program_of([(count, units, counts)]).run(n_workers)
    assert counts.tolist() == [1] * units + [0]


def test_tasks_of_a_phase_have_units_of_their_own():
    arrays = [np.zeros(5, np.int64) for _ in range(4)]
    sizes = (3, 0, 1, 5)
    program_of([(count, units, array) for units, array in zip(sizes, arrays, strict=True)]).run(2)
    for units, array in zip(sizes, arrays, strict=True):
        assert array.tolist() == [1] * units + [0] * (5 - units)


def test_a_phase_begins_when_the_one_before_is_done():
    values, sums, total = (np.zeros(n, np.int64) for n in (500, 8, 1))
    program = program_of(
        [(count, 500, values)], [(add_up, 8, values, sums)], [(add_up, 1, sums, total)]
    )
    for run in range(1, 51):
        sums[:], total[:] = 0, 0
        program.run(2)
        assert total[0] == 8 * 500 * run


def test_phases_without_units_and_empty_programs():
    Program().run(2)
    counts = np.zeros(2, np.int64)
    program_of([], [(count, 0, counts)], [(count, 2, counts)], []).run(2)
    assert counts.tolist() == [1, 1]


def test_arguments_of_every_kind():
    out = np.zeros(10, np.int64)
    arguments = (
        np.arange(3, dtype=np.uint8),
        np.arange(6, dtype=np.uint16).reshape(2, 3),
        np.arange(8, dtype=np.int32).reshape(2, 2, 2),
        np.zeros(0, np.float32),
        np.arange(4, dtype=np.int64).reshape(1, 4),
        out,
    )
    program_of([(shapes, 1, *arguments)]).run(1)
    assert out.tolist() == [3, 2, 3, 2, 2, 2, 0, 1, 4, 2 + 5 + 5 + 1]


def test_put_changes_the_runs_that_follow():
    x, out = np.ones((4, 3), np.float32), np.zeros((4, 3), np.float32)
    program = Program()
    program.phase("other")
    task = program.add(scale_row, 2, x, 0.5, 0, out)
    program.run(2)
    assert out[:, 0].tolist() == [0.5, 0.5, 0, 0]
    task.put(1, -np.inf)
    task.put(2, 2)
    program.run(2)
    assert out[:, 2].tolist() == [0.5, 0.5, -np.inf, -np.inf]
    wider = np.full((4, 5), 2, np.float32), np.zeros((4, 5), np.float32)
    task.put(0, wider[0])
    task.put(1, 1.5)
    task.put(3, wider[1])
    program.run(2)
    assert wider[1].tolist() == [[0] * 5] * 2 + [[3] * 5] * 2


@kernel("i64[1], i64")
def say(word: I64, value: int, unit: int) -> None:
    word[0] = value


@pytest.mark.parametrize("n_workers", [1, 2, 5])
@pytest.mark.parametrize("timed", [False, True])
def test_a_phase_may_end_the_run(n_workers: int, timed: bool):
    word, before, after = np.zeros(1, np.int64), np.zeros(40, np.int64), np.zeros(40, np.int64)
    program = Program()
    program.stop_at(word)
    program.phase("other")
    program.add(count, 40, before)
    program.phase("other")
    stopping = program.add(say, 1, word, 7)
    behind = program.n_phases
    for _ in range(3):
        program.phase("other")
        program.add(count, 40, after)
    seconds: dict[str, float] | None = {} if timed else None
    for run in range(1, 30):
        word[0] = 0
        program.run(n_workers, seconds)
        assert word[0] == 7
        assert set(before.tolist()) == {run}
        assert set(after.tolist()) == {3 * (run - 1)}
        word[0] = 0
        program.run(n_workers, seconds, behind)
        assert set(after.tolist()) == {3 * run}
    stopping.put(1, 0)
    program.run(n_workers, seconds)
    assert set(after.tolist()) == {90}


def test_some_phases_only():
    arrays = [np.zeros(3, np.int64) for _ in range(4)]
    program = Program()
    for array in arrays:
        program.phase("other")
        program.add(count, 3, array)
    program.run(2, first=1, last=3)
    assert [int(array[0]) for array in arrays] == [0, 1, 1, 0]
    program.run(2, first=3)
    program.run(2, last=1)
    assert [int(array[0]) for array in arrays] == [1, 1, 1, 1]


def test_set_units():
    counts = np.zeros(6, np.int64)
    program = Program()
    program.phase("other")
    task = program.add(count, 2, counts)
    program.run(2)
    for units in (0, 6, 1):
        program.set_units(task, units)
        program.run(2)
    assert counts.tolist() == [3, 2, 1, 1, 1, 1]


def test_a_task_may_be_added_after_a_run():
    first, second = np.zeros(2, np.int64), np.zeros(2, np.int64)
    program = program_of([(count, 2, first)])
    program.run(2)
    program.add(count, 2, second)
    program.run(2)
    assert first.tolist() == [2, 2]
    assert second.tolist() == [1, 1]


@pytest.mark.parametrize("n_workers", [1, 2])
def test_workers_have_numbers_below_their_count(n_workers: int):
    workers, busy = np.full(400, -1, np.int64), np.zeros(n_workers, np.int64)
    program = program_of([(note_worker, 400, workers, busy)])
    for _ in range(20):
        program.run(n_workers)
    assert busy.sum() == 20 * 400, "two threads had one number"
    assert set(workers.tolist()) <= set(range(n_workers))


def test_time_by_part():
    values, sums = np.zeros(50, np.int64), np.zeros(2, np.int64)
    program = Program()
    program.phase("gate")
    program.add(count, 50, values)
    program.phase("experts")
    program.add(add_up, 1, values, sums)
    program.phase("gate")
    program.add(count, 2, sums)
    seconds = {"gate": 1.0}
    program.run(2, seconds)
    assert sums.tolist() == [51, 1]
    if COMPILED:  # otherwise nothing is timed
        assert list(seconds) == ["gate", "experts"]
        assert seconds["gate"] > 1
        assert seconds["experts"] > 0


def test_arguments_stay_alive():
    counts = np.zeros(3, np.int64)
    alive = weakref.ref(counts)
    program = program_of([(count, 3, counts)])
    del counts
    gc.collect()
    program.run(2)
    kept = alive()
    assert kept is not None
    assert kept.tolist() == [1, 1, 1]


def test_lent_arguments_do_not_stay_alive():
    program, counts = Program(), np.zeros(2, np.int64)
    program.phase("other")
    task = program.add(count, 2, np.zeros(2, np.int64))
    task.lend(0, counts)
    program.run(1)
    assert counts.tolist() == [1, 1]
    dead = weakref.ref(counts)
    del counts
    gc.collect()
    assert dead() is None


def test_what_does_not_match_the_signature_is_refused():
    program = Program()
    program.phase("other")
    for wrong in (
        np.zeros(3, np.int32),
        np.zeros((3, 1), np.int64),
        np.zeros(6, np.int64)[::2],
    ):
        with pytest.raises(AssertionError):
            program.add(count, 3, wrong)
    with pytest.raises(AssertionError):
        program.add(count, 3)


def test_programs_run_from_any_thread():
    counts = np.zeros(40, np.int64)
    program = program_of([(count, 40, counts)])

    def run_often() -> None:
        for _ in range(50):
            with computing():
                program.run(2)

    threads = [threading.Thread(target=run_often) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counts.tolist() == [150] * 40
