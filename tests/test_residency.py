import numpy as np

from localv4.residency import CHUNK_TOKENS_COUNTED, Popularity


def test_a_choice_counts_half_as_much_a_half_life_later() -> None:
    popularity = Popularity(2, half_life=4.0)
    popularity.begin(1)
    popularity.count([0])
    for _ in range(4):
        popularity.begin(1)
    popularity.count([1])
    assert np.isclose(popularity.scores[1], 2 * popularity.scores[0])


def test_a_chunk_counts_like_its_tokens_one_by_one_but_for_when_they_came() -> None:
    chunk, single = Popularity(3), Popularity(3)
    chunk.begin(4)
    chunk.count([0, 0, 0, 1], n_tokens=4)
    for key in (0, 0, 0, 1):
        single.begin(1)
        single.count([key])
    assert chunk.scores[0] == 3 * chunk.scores[1]
    assert chunk.scores[2] == single.scores[2] == 0
    # what comes next weighs the same
    for popularity in (chunk, single):
        popularity.begin(1)
        popularity.count([2])
    assert np.isclose(chunk.scores[2], single.scores[2])


def test_a_long_chunk_does_not_forget_what_an_answer_needed() -> None:
    popularity = Popularity(3)
    for _ in range(40):
        popularity.begin(1)
        popularity.count([0])
    popularity.begin(1024)
    popularity.count(np.repeat([1, 2], [1000, 24]), n_tokens=1024)
    of_the_answer, often, seldom = popularity.scores
    assert often > of_the_answer > seldom
    assert np.isclose(often / seldom, 1000 / 24)
    # like so many tokens at most
    another = Popularity(1)
    another.begin(CHUNK_TOKENS_COUNTED)
    another.count([0] * CHUNK_TOKENS_COUNTED, CHUNK_TOKENS_COUNTED)
    assert np.isclose(often, popularity._choice / another._choice * another.scores[0] * 1000 / 1024)


def test_choices_of_ages_stay_finite_and_in_order() -> None:
    popularity = Popularity(4, half_life=1.0)
    popularity.begin(1)
    popularity.count([3])
    for step in range(3000):
        popularity.begin(1)
        popularity.count([step % 3])
        assert np.isfinite(popularity.scores).all()
    # the last three steps chose 0, 1, 2; 3 has faded away
    assert popularity.scores[2] > popularity.scores[1] > popularity.scores[0] > 0
    assert popularity.scores[3] == 0


def test_a_larger_cache_is_never_worse() -> None:
    """Evicting the least popular keeps a small cache's experts inside a larger one."""
    generator = np.random.default_rng(3)
    chosen = generator.zipf(1.4, 2000) % 50
    hits = []
    for size in (2, 5, 10, 20, 50):
        popularity, cache = Popularity(50), set[int]()
        hits.append(0)
        for key in chosen.tolist():
            popularity.begin(1)
            popularity.count([key])
            hits[-1] += key in cache
            cache.add(key)
            if len(cache) > size:
                others = sorted(cache - {key})
                cache.remove(others[int(popularity.scores[others].argmin())])
    assert hits == sorted(hits)
    assert len(set(hits)) > 3
