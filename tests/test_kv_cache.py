"""The KV state: sizes, marks, and taking a chunk back."""

import numpy as np
import pytest

from localv4.errors import OutOfBudget
from localv4.kv_cache import KVCache, KVMark
from localv4.kv_ledger import KVLedger
from localv4.kv_sizes import entry_bytes, key_bytes, kv_bytes
from localv4.limits import resident
from tests.released import released_config

MILLION = 2**20
# spec/forward.md: bytes a token, from the exact sizes of entries and keys
EXACT = {"flash": 3514, "pro": 5031}


def fill(cache: KVCache, n_tokens: int, value: int = 1) -> None:
    """Let a cache hold so many tokens, without computing them."""
    begun = cache.ids.size
    cache.append_ids(np.arange(begun, begun + n_tokens))
    for rows, ratio in [*zip(cache.growing, cache.ratios, strict=True)][1:]:
        rows.extend((begun + n_tokens) // ratio - len(rows))[:] = value
    cache.fixed[:] = value


def content(cache: KVCache) -> bytes:
    return b"".join([cache.fixed.tobytes(), *(rows.used.tobytes() for rows in cache.growing)])


@pytest.mark.parametrize("preset", ["flash", "pro"])
def test_bytes_a_token_of_the_releases(preset):
    config = released_config(preset)
    entry, key = entry_bytes(config, trained=True), key_bytes(config, trained=True)
    counted = [config.compress_ratios.count(ratio) for ratio in (4, 128)]
    exact = counted[0] * (entry + key) / 4 + counted[1] * entry / 128
    assert int(exact) == EXACT[preset]
    grown = kv_bytes(config, MILLION, trained=True) - kv_bytes(config, 0, trained=True)
    assert grown <= 1.002 * exact * MILLION
    assert kv_bytes(config, MILLION, trained=True) <= 1.05 * exact * MILLION


def test_what_is_planned_is_what_is_held():
    config = released_config("flash")
    cache = KVCache(config, trained=True, mtp=True, context=MILLION)
    assert cache.n_bytes == kv_bytes(config, 0, trained=True, mtp=True)
    for n_tokens in (1, 127, 70_000):
        assert cache.n_bytes_at(n_tokens) == kv_bytes(config, n_tokens, trained=True, mtp=True)
        fill(cache, n_tokens - cache.ids.size)
        assert cache.n_bytes == kv_bytes(config, n_tokens, trained=True, mtp=True)


@pytest.mark.skipif(resident().file == 0, reason="this system does not tell anonymous memory apart")
def test_what_is_held_is_what_the_system_counts():
    config = released_config("flash")
    before = resident().anonymous
    cache = KVCache(config, trained=True, mtp=False, context=MILLION)
    mapped = resident().anonymous - before
    assert mapped <= cache.n_bytes + 2**21  # addresses of a million tokens take no memory
    fill(cache, 2**17)
    cache.remember()
    held = resident().anonymous - before
    assert held == pytest.approx(cache.n_bytes, rel=0.01)


def test_marks_and_taking_back():
    cache = KVCache(released_config("flash"), trained=True, mtp=False, context=4096)
    fill(cache, 700, 1)
    mark, marked = cache.mark(), content(cache)
    assert mark.ids.tolist() == list(range(700))
    fill(cache, 300, 2)
    grown = content(cache)
    cache.remember()
    fill(cache, 900, 3)
    cache.take_back()
    assert content(cache) == grown
    assert cache.cost_of(mark) == 0
    cache.go_to(mark)
    assert content(cache) == marked
    other = KVCache(released_config("flash"), trained=True, mtp=False, context=2048)
    fill(other, 20, 9)
    assert other.cost_of(mark) > 0
    other.go_to(mark)
    assert content(other) == marked
    fill(other, 600, 4)
    cache.go_to(mark)
    assert content(cache) == marked


def test_clearing_is_a_new_cache():
    config = released_config("flash")
    cache = KVCache(config, trained=True, mtp=False, context=1024)
    empty = content(cache)
    fill(cache, 300, 5)
    mark, marked = cache.mark(), content(cache)
    cache.clear()
    assert content(cache) == empty
    cache.go_to(mark)
    assert content(cache) == marked


def test_the_ledger_counts_shared_rows_once():
    config = released_config("flash")
    told: list[int] = []
    ledger = KVLedger(10**12, told.append)
    cache = KVCache(config, trained=True, mtp=False, context=4096)
    ledger.enter(cache)
    fill(cache, 4000)
    marks: list[KVMark] = [cache.mark(), cache.mark()]
    for mark in marks:
        ledger.enter(mark)
    assert ledger.n_bytes == cache.n_bytes + 2 * cache.fixed.nbytes
    held = ledger.n_bytes
    del marks, mark
    assert ledger.n_bytes == held - 2 * cache.fixed.nbytes
    ledger.admit(5)
    assert told == [ledger.n_bytes + 5]
    ledger.most = ledger.n_bytes + 4
    with pytest.raises(OutOfBudget, match="are in use"):
        ledger.admit(5)
