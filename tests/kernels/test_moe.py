import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from localv4.kernels.moe import activate, route, score
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler
from tests.reference import kernels_moe as twin

SCALE = np.float32(2.5)


def test_score():
    logits = np.array(
        [[-200, -88, -20, -1, -1e-30, 0], [1e-30, 1, 10, 19.999999, 20, 20.000002]], np.float32
    )
    expected = [[twin.affinity(float(logit)) for logit in row] for row in logits]
    score(logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-6, atol=1e-22)


@settings(deadline=None, max_examples=100)
@given(st.floats(-80, 100, width=32))
def test_score_of_any_logit(logit: float):
    logits = np.array([[logit]], np.float32)
    score(logits)
    assert logits[0, 0] == pytest.approx(twin.affinity(logit), rel=1e-6)


def test_no_number_has_no_score():
    logits = np.array([[1, np.nan]], np.float32)
    score(logits)
    assert np.isnan(logits).tolist() == [[False, True]]


def run_route(affinities: F32, bias: F32, count: int):
    chosen = np.full((len(affinities), count), -1, np.int32)
    weights = np.full(chosen.shape, np.nan, np.float32)
    route(affinities, bias, SCALE, False, chosen, weights)
    return chosen, weights


FEW = st.sampled_from([0.125, 0.25, 0.5, 1.0])
BIASES = st.sampled_from([-1.0, -0.25, 0.0, 0.25])


@settings(deadline=None, max_examples=200)
@given(
    hnp.arrays(np.float32, (2, 9), elements=FEW | st.floats(2.0**-20, 8, width=32)),
    hnp.arrays(np.float32, 9, elements=BIASES | st.floats(-4, 4, width=32)),
    st.integers(1, 9),
)
def test_route(affinities: F32, bias: F32, count: int):
    chosen, weights = run_route(affinities, bias, count)
    for row, numbers in enumerate(chosen.tolist()):
        assert numbers == twin.choose(affinities[row], bias, count)
        expected = twin.weigh(affinities[row].astype(np.float64), numbers, float(SCALE))
        np.testing.assert_allclose(weights[row], expected, rtol=1e-6)


def test_equal_experts_are_taken_from_the_lowest_up():
    chosen, weights = run_route(np.ones((1, 6), np.float32), np.zeros(6, np.float32), 4)
    assert chosen.tolist() == [[0, 1, 2, 3]]
    assert weights.tolist() == [[0.625] * 4]


def test_the_bias_chooses_and_does_not_weigh():
    affinities = np.array([[1, 2, 3, 4]], np.float32)
    bias = np.array([5, 0, 0, -5], np.float32)
    chosen, weights = run_route(affinities, bias, 2)
    assert chosen.tolist() == [[0, 2]]
    assert weights.tolist() == [[0.625, 1.875]]


def test_a_hash_layer_weighs_what_the_table_chose():
    affinities = np.array([[1, 2, 3, 4]] * 2, np.float32)
    chosen = np.array([[2, 0], [3, 1]], np.int32)
    before, weights = chosen.copy(), np.empty((2, 2), np.float32)
    route(affinities, np.empty(0, np.float32), SCALE, True, chosen, weights)
    assert_same_bytes(chosen, before)
    expected = np.array([[1.875, 0.625], [4 / 6 * 2.5, 2 / 6 * 2.5]])
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def run_activate(gate, up, weights, limit: float, trained: bool) -> F32:
    out: F32 = np.full_like(gate, np.nan)
    activate(gate, up, weights, np.float32(limit), trained, out)
    return out


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
    activate(in_place, up, weights, np.float32(limit), False, in_place)
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


@needs_compiler  # Python's exp raises an error where the compiled one is infinite
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
