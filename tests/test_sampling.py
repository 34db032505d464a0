import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from localv4.errors import DamagedCheckpoint, InvalidInput
from localv4.sampling import Sampler, SamplingParams, token_logprob, top_logprobs

# Steps of 1/64: logits closer than that could have equal probabilities and so be ties.
LOGITS = hnp.arrays(
    np.float32, st.integers(1, 40), elements=st.integers(-3200, 3200).map(lambda n: n / 64)
)
TIED_LOGITS = hnp.arrays(np.float32, st.integers(1, 40), elements=st.sampled_from([0, 1, 2.5]))


def kept_by_the_book(logits, params):
    """Return the ids that may come out and their probabilities: full sorts, one rule a line."""
    probability = np.exp((logits.astype(np.float64) - float(logits.max())) / params.temperature)
    order = sorted(range(logits.size), key=lambda i: (-logits[i], i))
    order = order[: params.top_k or None]
    if params.top_p < 1:
        target = params.top_p * sum(probability[order])
        short = [n for n in range(len(order)) if sum(probability[order[:n]]) < target]
        order = order[: len(short)]
    order = [i for i in order if probability[i] >= params.min_p * probability[order[0]]]
    kept = np.zeros(logits.size)
    kept[order] = probability[order]
    return kept / kept.sum()


def frequencies(logits, params, draws=4000):
    sampler = Sampler(params)
    counts = np.bincount([sampler.sample(logits) for _ in range(draws)], minlength=logits.size)
    return counts / draws


PARAMS = [
    SamplingParams(seed=1),
    SamplingParams(seed=1, temperature=0.4),
    SamplingParams(seed=1, temperature=3.0),
    SamplingParams(seed=1, top_k=3),
    SamplingParams(seed=1, top_p=0.7),
    SamplingParams(seed=1, min_p=0.3),
    SamplingParams(seed=1, temperature=1.7, top_k=5, top_p=0.8, min_p=0.25),
]


@pytest.mark.parametrize("params", PARAMS)
def test_frequencies_are_the_probabilities(params):
    logits = np.array([0.3, 2.0, -1.0, 1.1, 1.9, -4.0, 0.9], dtype=np.float32)
    expected = kept_by_the_book(logits, params)
    found = frequencies(logits, params)
    assert set(np.flatnonzero(found)) <= set(np.flatnonzero(expected))
    # Five standard deviations of the most spread-out outcome.
    assert np.abs(found - expected).max() < 5 * math.sqrt(0.25 / 4000)


@given(
    LOGITS | TIED_LOGITS,
    st.floats(0.05, 5),
    st.integers(0, 45),
    st.floats(0.01, 1),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
@settings(deadline=None, max_examples=200)
def test_only_kept_tokens_come_out(logits, temperature, top_k, top_p, min_p, seed):
    params = SamplingParams(temperature, top_p, top_k, min_p, seed)
    # A token on the very border of top-p or min-p may fall to either side by rounding.
    looser = SamplingParams(temperature, min(1.0, top_p + 1e-9), top_k, max(0, min_p - 1e-9), seed)
    sampler = Sampler(params)
    allowed = kept_by_the_book(logits, looser)
    for _ in range(5):
        assert allowed[sampler.sample(logits)] > 0


@given(LOGITS | TIED_LOGITS)
@settings(deadline=None, max_examples=50)
def test_greedy_takes_the_first_of_the_best(logits):
    best = min(i for i in range(logits.size) if logits[i] == logits.max())
    assert Sampler(SamplingParams(temperature=0)).sample(logits) == best
    assert Sampler(SamplingParams(top_k=1)).sample(logits) == best
    assert Sampler(SamplingParams(top_p=1e-9)).sample(logits) == best


def test_ties_at_the_border_go_to_the_lowest_ids():
    logits = np.zeros(10, dtype=np.float32)
    for params in (SamplingParams(top_k=3, seed=1), SamplingParams(top_p=0.3, seed=1)):
        assert set(np.flatnonzero(frequencies(logits, params, 500))) == {0, 1, 2}


def test_the_seed_decides():
    logits = np.zeros(1000, dtype=np.float32)
    first, again = Sampler(SamplingParams(seed=7)), Sampler(SamplingParams(seed=7))
    ids = [first.sample(logits) for _ in range(20)]
    assert ids == [again.sample(logits) for _ in range(20)]
    assert ids != [Sampler(SamplingParams(seed=8)).sample(logits) for _ in range(20)]
    # PCG64's raw stream is fixed by NumPy; these ids are the same on every machine.
    assert ids[:6] == [625, 897, 775, 225, 300, 873]


def test_a_drawn_seed_repeats_the_answer_and_fits_a_double():
    logits = np.zeros(1000, dtype=np.float32)
    drawn = Sampler(SamplingParams())
    repeat = Sampler(SamplingParams(seed=drawn.seed))
    assert [drawn.sample(logits) for _ in range(9)] == [repeat.sample(logits) for _ in range(9)]
    assert int(float(drawn.seed)) == drawn.seed < 2**53
    assert drawn.seed != Sampler(SamplingParams()).seed


def test_each_token_takes_one_number_whatever_is_cut_off():
    flat, sharp = np.zeros(100, dtype=np.float32), np.arange(100, dtype=np.float32)
    one = Sampler(SamplingParams(seed=3, top_k=5, min_p=0.5))
    other = Sampler(SamplingParams(seed=3, top_k=5, min_p=0.5))
    for logits in (flat, sharp, sharp):
        one.sample(logits)
    for _ in range(3):
        other.sample(flat)
    assert one.sample(flat) == other.sample(flat)


def test_extreme_temperatures_and_logits():
    logits = np.array([1.0, 3e38, -3e38, 2.0], dtype=np.float32)
    for temperature in (1e-300, 1e-3, 1.0, 1e6):
        assert Sampler(SamplingParams(temperature=temperature)).sample(logits) == 1
    close = np.array([1.0, 1.0001, 0.0], dtype=np.float32)
    assert Sampler(SamplingParams(temperature=5e-324)).sample(close) == 1
    found = frequencies(close, SamplingParams(temperature=1e300, seed=5), 3000)
    assert found == pytest.approx([1 / 3] * 3, abs=0.05)


def test_logits_are_only_read():
    logits = np.linspace(-1, 1, 50, dtype=np.float32)
    logits.flags.writeable = False
    for params in PARAMS:
        Sampler(params).sample(logits)
    top_logprobs(logits, 3)


def test_the_largest_number_drawn_still_finds_a_token():
    class Highest:
        def random_raw(self):
            return 2**64 - 1

    logits = np.array([0.0, 1.0, -1000.0, -2000.0], dtype=np.float32)
    sampler = Sampler(SamplingParams())
    sampler._bits = Highest()  # type: ignore[assignment]
    assert sampler.sample(logits) == 1


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite_are_counted(bad, temperature):
    logits = np.zeros(5000, dtype=np.float32)
    logits[[3, 4999]] = bad
    with pytest.raises(DamagedCheckpoint, match="2 of 5,000 logits are NaN or infinite"):
        Sampler(SamplingParams(temperature=temperature)).sample(logits)
    with pytest.raises(DamagedCheckpoint, match="2 of 5,000"):
        top_logprobs(logits, 1)


@pytest.mark.parametrize("shape", [(0,), (1, 5), ()])
def test_logits_of_a_wrong_shape(shape):
    with pytest.raises(InvalidInput, match=r"needs \(vocab,\)"):
        Sampler(SamplingParams()).sample(np.zeros(shape, dtype=np.float32))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[("temperature", v) for v in (-0.1, math.nan, math.inf, 10**400, "1", None, True)],
        *[("top_p", v) for v in (0, -1, 1.0001, math.nan, None)],
        *[("min_p", v) for v in (-0.1, 1.1, math.nan)],
        *[("top_k", v) for v in (-1, 1.5, None, True)],
        *[("seed", v) for v in (-1, 2**64, 1.0, "7", False)],
    ],
)
def test_values_out_of_range_are_named(field, value):
    with pytest.raises(InvalidInput, match=f"^{field} is .*; it must be "):
        SamplingParams(**{field: value})


def test_the_limits_of_the_ranges_are_allowed():
    SamplingParams(temperature=0, top_p=1, top_k=10**9, min_p=1, seed=2**64 - 1)
    logits = np.array([1, 2], dtype=np.float32)
    assert Sampler(SamplingParams(top_k=10**9, min_p=1)).sample(logits) == 1


@given(LOGITS | TIED_LOGITS, st.integers(0, 45))
@settings(deadline=None, max_examples=50)
def test_top_logprobs(logits, n):
    exact = logits.astype(np.float64)
    exact -= np.logaddexp.reduce(exact)
    order = sorted(range(logits.size), key=lambda i: (-logits[i], i))[:n]
    top = top_logprobs(logits, n)
    assert [token for token, _ in top] == order
    assert [value for _, value in top] == pytest.approx(exact[order].tolist(), abs=1e-12)
    last = logits.size - 1
    logprob = token_logprob(logits, last, n)
    assert (logprob.id, logprob.top) == (last, top)
    assert logprob.logprob == pytest.approx(exact[last], abs=1e-12)
