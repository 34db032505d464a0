import math
from typing import NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from localv4.kernels.moe import record_activation, record_addition, route
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler
from tests.kernels.programs import run, run_recorded
from tests.reference import kernels_moe as twin

I32 = NDArray[np.int32]

SCALE = 2.5
NO_BIAS = np.empty(0, np.float32)


class Routed(NamedTuple):
    affinities: F32
    chosen: I32
    weights: F32
    experts: I32
    shares: F32


def run_route(logits: F32, bias: F32, count: int, chosen: I32 | None = None) -> Routed:
    """Route tokens; with `chosen`, as a hash layer does."""
    shape = len(logits), count
    hashed = chosen is not None
    table = np.full(shape, -1, np.int32) if chosen is None else chosen
    weights, shares = np.full((2, *shape), np.nan, np.float32)
    experts, affinities = np.full(shape, -1, np.int32), logits.copy()
    arguments = affinities, bias, SCALE, int(hashed), table, weights, experts, shares
    run(route, len(logits), *arguments)
    return Routed(affinities, table, weights, experts, shares)


def score(logits: F32) -> F32:
    return run_route(logits, np.zeros(logits.shape[1], np.float32), 1).affinities


def test_score():
    logits = np.array(
        [[-200, -88, -20, -17, -1, -1e-30], [0, 1e-30, 1, 10, 19.999999, 20.000002]], np.float32
    )
    expected = [[twin.affinity(float(logit)) for logit in row] for row in logits]
    np.testing.assert_allclose(score(logits), expected, rtol=1e-6, atol=1e-22)


@settings(deadline=None, max_examples=100)
@given(st.floats(-80, 100, width=32))
def test_score_of_any_logit(logit: float):
    ours = score(np.array([[logit]], np.float32))
    assert ours[0, 0] == pytest.approx(twin.affinity(logit), rel=1e-6)


def test_no_number_has_no_score():
    assert np.isnan(score(np.array([[1, np.nan]], np.float32))).tolist() == [[False, True]]


FEW = st.sampled_from([0.125, 0.25, 0.5, 1.0])
BIASES = st.sampled_from([-1.0, -0.25, 0.0, 0.25])


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(np.float32, (2, 9), elements=FEW | st.floats(-20, 30, width=32)),
    hnp.arrays(np.float32, 9, elements=BIASES | st.floats(-4, 4, width=32)),
    st.integers(1, 9),
)
def test_route(logits: F32, bias: F32, count: int):
    routed = run_route(logits, bias, count)
    for row, numbers in enumerate(routed.chosen.tolist()):
        affinities = routed.affinities[row]
        assert numbers == twin.choose(affinities, bias, count)
        expected = twin.weigh(affinities.astype(np.float64), numbers, SCALE)
        np.testing.assert_allclose(routed.weights[row], expected, rtol=1e-6)
        assert routed.experts[row].tolist() == sorted(numbers)
        order = np.argsort(numbers)
        assert_same_bytes(routed.shares[row], routed.weights[row][order])


def test_equal_experts_are_taken_from_the_lowest_up():
    routed = run_route(np.ones((1, 6), np.float32), np.zeros(6, np.float32), 4)
    assert routed.chosen.tolist() == [[0, 1, 2, 3]]
    assert routed.weights.tolist() == [[0.625] * 4]


def test_the_bias_chooses_and_does_not_weigh():
    logits = np.array([[1, 2, 3, 4]], np.float32)
    bias = np.array([5, 0, 0, -5], np.float32)
    routed = run_route(logits, bias, 2)
    assert routed.chosen.tolist() == [[0, 2]]
    expected = twin.weigh(routed.affinities[0].astype(np.float64), [0, 2], SCALE)
    np.testing.assert_allclose(routed.weights[0], expected, rtol=1e-6)


def test_affinities_of_either_sign_are_in_order_once_biased():
    bias = np.array([-9, -7, -8, 1, -3e38, 0], np.float32)
    assert run_route(np.zeros((1, 6), np.float32), bias, 6).chosen.tolist() == [[3, 5, 1, 2, 0, 4]]


def test_a_hash_layer_weighs_what_the_table_chose():
    logits = np.array([[1, 2, 3, 4]] * 2, np.float32)
    chosen = np.array([[2, 0], [3, 1]], np.int32)
    routed = run_route(logits, NO_BIAS, 2, chosen.copy())
    assert_same_bytes(routed.chosen, chosen)
    affinities = routed.affinities.astype(np.float64)
    for row, numbers in enumerate(chosen.tolist()):
        expected = twin.weigh(affinities[row], numbers, SCALE)
        np.testing.assert_allclose(routed.weights[row], expected, rtol=1e-6)
    assert routed.experts.tolist() == [[0, 2], [1, 3]]
    assert_same_bytes(routed.shares, routed.weights[:, ::-1].copy())


def test_an_expert_may_be_named_twice():
    routed = run_route(np.ones((1, 4), np.float32), NO_BIAS, 3, np.array([[2, 0, 2]], np.int32))
    assert routed.experts.tolist() == [[0, 2, 2]]


def run_activate(gate, up, weights, limit: float, trained: bool) -> F32:
    out: F32 = np.full_like(gate, np.nan)
    run_recorded(record_activation, gate, up, weights, limit or np.inf, trained, out)
    return out


@needs_compiler
def test_an_activation_in_slices():
    """A row among few is cut; among many it is not, and gives the same bytes."""
    rng = np.random.default_rng(2)
    gate, up = bf16.round(rng.standard_normal((2, 40, 1100)) * 6)
    weights = rng.random(40, np.float32)
    for trained in (False, True):
        whole = run_activate(gate, up, weights, 10, trained)
        alone = run_activate(gate[:1].copy(), up[:1].copy(), weights[:1].copy(), 10, trained)
        assert_same_bytes(alone, whole[:1])


@pytest.mark.parametrize("limit", [0.0, 2.0, 10.0])
def test_activate(limit: float):
    rng = np.random.default_rng(1)
    gate, up = bf16.round(rng.standard_normal((2, 5, 33)) * 6)
    weights = rng.random(5, np.float32)
    exact = run_activate(gate, up, weights, limit, False)
    expected = np.empty(gate.shape)
    for token, i in np.ndindex(gate.shape):
        weight = float(weights[token])
        expected[token, i] = twin.activate(
            float(gate[token, i]), float(up[token, i]), weight, limit
        )
    np.testing.assert_allclose(exact, expected, rtol=1e-6, atol=1e-9)
    assert_same_bytes(run_activate(gate, up, weights, limit, True), bf16.round(exact))
    in_place = gate.copy()
    run_recorded(record_activation, in_place, up, weights, limit or np.inf, False, in_place)
    assert_same_bytes(in_place, exact)


def test_clamps():
    gate = np.array([[5, -5, 1, 1]], np.float32)
    up = np.array([[1, 1, 5, -5]], np.float32)
    one = np.ones(1, np.float32)
    sigmoids = [1 / (1 + math.exp(-value)) for value in (2, -5, 1, 1)]
    expected = [2 * sigmoids[0], -5 * sigmoids[1], 2 * sigmoids[2], -2 * sigmoids[3]]
    np.testing.assert_allclose(run_activate(gate, up, one, 2, False), [expected], rtol=1e-6)
    open_up = run_activate(gate, up, one, 0, False)
    assert open_up[0, 2] == pytest.approx(5 * sigmoids[2])


def test_a_very_negative_gate_closes():
    gate = np.array([[-89, -500, -3e38]], np.float32)
    ours = run_activate(gate, np.ones_like(gate), np.ones(1, np.float32), 10, False)
    np.testing.assert_allclose(ours, 0, atol=1e-30)


@pytest.mark.parametrize("limit", [0.0, 2.0])
def test_no_number_stays_where_it_is(limit: float):
    gate, up = np.ones((2, 1, 4), np.float32)
    gate[0, 1], up[0, 2] = np.nan, np.nan
    for trained in (False, True):
        lost = np.isnan(run_activate(gate, up, np.ones(1, np.float32), limit, trained))
        assert lost.tolist() == [[False, True, True, False]]


@pytest.mark.parametrize("columns", [33, 1100])
def test_add_experts(columns: int):
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((7, columns), np.float32)
    shared = rng.standard_normal((2, columns), np.float32)
    places = np.array([[0, 3, 5], [1, 3, 6]], np.int32)
    expected = np.zeros((2, columns), np.float32)
    for slot in range(3):
        expected += rows[places[:, slot]]
    total = np.full_like(expected, np.nan)
    for first, last in ((0, 3), (3, 4), (4, 7)):  # in groups of rows, side by side
        begins, ends = first == 0, last == 7
        group = rows[first:last]
        run_recorded(record_addition, group, places, first, begins, shared, ends, False, total)
        if last == 4:
            assert_same_bytes(total[0], rows[0] + rows[3])
    assert_same_bytes(total, expected + shared)
    rounded = np.empty_like(total)
    run_recorded(record_addition, rows, places, 0, True, shared, True, True, rounded)
    assert_same_bytes(rounded, bf16.round(total))
