"""The simulation in time, computed by hand."""

import numpy as np
import pytest

from localv4.bench.lookahead import LookAhead, Machine, simulate
from localv4.bench.lookahead_disk import Disk
from localv4.bench.traces import NOTHING, Trace
from localv4.bench.traces_made import SKEWED, Shape, add_predictions, make

MACHINE = Machine("by hand", 10.0, 1.0, 8.0)


def _trace(*, chosen, predicted=(), n_hash_layers=0):
    chunks = np.ones(len(chosen), np.int64)
    named = {"gate": np.array(predicted, np.uint16)} if len(predicted) else {}
    return Trace(np.array(chosen, np.uint16), chunks, 8, n_hash_layers, 1, named)


def test_a_disk_by_hand():
    begun: list[int] = []
    disk = Disk(8.0, begun.append)
    disk.submit(0.0, [1, 2], expected=True)
    disk.submit(5.0, [3])
    assert begun == [1]
    disk.submit(6.0, [4])
    # 1 from 0 to 8, then what is wanted
    assert disk.withdraw(7.0, {1, 2}) == {2}
    assert disk.landings([4, 3, 1]) == [8.0, 16.0, 24.0]
    disk.submit(100.0, [5])
    assert disk.landings([5]) == [108.0]
    assert disk.n_reads == 4


def test_without_look_ahead_by_hand():
    # layer 0: dense to 10, two reads to 18 and 26, computed at 27; layer 1: dense to 37, reads
    # to 45 and 53, 54.  The second token hits everywhere but for one in layer 1.
    trace = _trace(chosen=[[[0, 1], [0, 1]], [[0, 1], [1, 2]]])
    timing = simulate(trace, 16, MACHINE, LookAhead("", "nothing"), 0)
    first = 10 + 16 + 1 + 10 + 16 + 1
    second = 10 + 2 + 10 + 8 + 1  # the hit is computed while the read runs
    assert timing.ms == first + second
    assert (timing.wanted, timing.missing, timing.n_reads) == (8, 5, 5)
    later = simulate(trace, 16, MACHINE, LookAhead("", "nothing"), 1)
    assert (later.token_ms, later.n_tokens, later.missing) == (second, 1, 1)


def test_a_known_layer_is_read_during_the_dense_part():
    trace = _trace(chosen=[[[0, 1], [0, 1]]])
    # layer 0 as above, to 27; its own reads come before those of layer 1, which are read from 26
    # to 34 and 42; dense to 37; one has landed, the other lands at 42
    timing = simulate(trace, 16, MACHINE, LookAhead("", "next"), 0)
    assert timing.ms == 43
    assert (timing.missing, timing.ahead, timing.useful) == (2, 2, 2)
    # everything known: reads from 0 without a pause, landed at 8, 16, 24, 32
    timing = simulate(trace, 16, MACHINE, LookAhead("", "token"), 0)
    assert timing.ms == 10 + 1 + 5 + 1 + 10 + 1 + 4 + 1
    assert timing.recall == 1
    hashed = _trace(chosen=[[[0, 1], [0, 1]]], n_hash_layers=2)
    assert simulate(hashed, 16, MACHINE, LookAhead("", "hash"), 0).ms == timing.ms


def test_a_wrong_prediction_by_hand():
    chosen = [[[0, 1], [0, 1]]]
    predicted = [[[NOTHING] * 3, [5, 0, 6]]]
    trace = _trace(chosen=chosen, predicted=predicted)
    # expected from 26: 5 to 34, 0 to 42; 6 is taken back at 37; then 1 from 42 to 50
    timing = simulate(trace, 16, MACHINE, LookAhead("", "hash", "gate", 3), 0)
    assert timing.ms == 51
    assert (timing.ahead, timing.useful, timing.missing, timing.n_reads) == (2, 1, 3, 5)
    assert (timing.recall, timing.waste) == (0.25, 1.0)
    late = simulate(trace, 16, MACHINE, LookAhead("", "hash", "gate", 3, late=True), 0)
    # from 27 on: 5 to 35, 0 to 43, 1 to 51
    assert late.ms == 52
    one = simulate(trace, 16, MACHINE, LookAhead("", "hash", "gate", 1), 0)
    # 5 from 26 to 34; 0 and 1 from 37 to 53
    assert one.ms == 54
    assert one.useful == 0


def test_knowing_more_takes_less_time():
    shape = Shape(n_layers=6, n_experts=32, n_chosen=3, n_hash_layers=1)
    trace = add_predictions(make(shape, SKEWED, [5, *[1] * 60]), [0.6])
    ways = [
        LookAhead("", "nothing"),
        LookAhead("", "hash"),
        LookAhead("", "hash", "recall 60%", 3),
        LookAhead("", "next"),
    ]
    timings = [simulate(trace, 60, MACHINE, way, 20) for way in ways]
    assert [each.token_ms for each in timings] == sorted(
        (each.token_ms for each in timings), reverse=True
    )
    assert all(each.n_tokens == 45 for each in timings)
    for each in timings:
        assert each.token_ms >= 6 * 10 + 18
        assert each.n_reads >= each.missing
    # read or not, everything is in a slot at last
    assert timings[0].n_reads == pytest.approx(timings[0].missing)


def test_a_cache_that_is_full_of_expectations_still_works():
    trace = make(Shape(n_layers=4, n_experts=16, n_chosen=3, n_hash_layers=0), SKEWED, [1] * 30)
    timing = simulate(trace, 7, MACHINE, LookAhead("", "token"), 0)
    assert timing.wanted == 30 * 4 * 3
    assert timing.missing + timing.useful <= timing.n_reads
