"""What streaming is put together from: room for KV state, a budget that holds, and the end."""

from collections.abc import Iterator
from pathlib import Path

import pytest

import localv4.streams
from localv4.checkpoint import Checkpoint
from localv4.errors import DamagedCheckpoint
from localv4.limits import Resident
from localv4.memory import MemoryPlan
from localv4.reads import join_for
from localv4.stats import Stats
from localv4.streaming import fewest_slots
from localv4.streams import Streams
from tests.small_checkpoints import make_small

SLOT = 1000
BUDGET = 2**40
FEWEST = fewest_slots(3)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Checkpoint]:
    folder = make_small(tmp_path_factory.mktemp("streams") / "model", n_routed_experts=8)
    with Checkpoint.open(folder) as opened:
        yield opened


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What the process is made to hold: its own memory, and memory shared."""
    bytes_held = [0, 0]
    monkeypatch.setattr(
        localv4.streams, "resident", lambda: Resident(bytes_held[0], bytes_held[1], 10**15, 0)
    )
    return bytes_held


@pytest.fixture
def streams(checkpoint: Checkpoint, held: list[int]) -> Iterator[Streams]:
    plan = MemoryPlan(
        0, 0, 20 * SLOT, 5000, 0, 0, BUDGET, BUDGET, 1024, True, 20, SLOT, kv_most=5000 + 14 * SLOT
    )
    streams = Streams(checkpoint, plan, mtp=True)
    yield streams
    streams.close()


def slots_for(streams: Streams, kv_bytes: int) -> int:
    streams.make_room(kv_bytes)
    return streams.store.n_slots


def test_kv_state_takes_the_room_of_experts_and_gives_it_back(streams: Streams) -> None:
    assert slots_for(streams, 0) == slots_for(streams, 5000) == 20
    assert slots_for(streams, 5001) == slots_for(streams, 6000) == 19
    assert slots_for(streams, 6001) == 18
    assert slots_for(streams, 5000 + 14 * SLOT) == FEWEST
    assert slots_for(streams, 10**9) == FEWEST  # refused before; never less than a token needs
    assert slots_for(streams, 0) == 20


@pytest.mark.parametrize("kind", [0, 1])
def test_what_the_process_holds_above_the_budget_is_made_up_for_for_good(
    streams: Streams, held: list[int], kind: int
) -> None:
    held[kind] = BUDGET
    assert slots_for(streams, 0) == 20
    held[kind] = BUDGET + 1
    assert slots_for(streams, 0) == 19
    held[kind] = BUDGET
    assert slots_for(streams, 0) == 19
    assert slots_for(streams, 5000 + SLOT) == 18
    held[kind] = BUDGET + 2 * SLOT
    assert slots_for(streams, 0) == 17
    held[kind] = 2 * BUDGET
    assert slots_for(streams, 0) == FEWEST


def test_memory_that_others_share_and_page_cache_do_not_count_twice(
    streams: Streams, held: list[int]
) -> None:
    held[:] = BUDGET // 2, BUDGET // 2
    assert slots_for(streams, 0) == 20


def test_counters(streams: Streams) -> None:
    stats = Stats(prefill_tokens=7)
    store = streams.store
    store.begin(1)
    with store.lend(1, [0, 1, 2], [1, 1, 1]) as loan:
        for index in range(3):
            loan.get(index)
    with store.lend(1, [0, 1, 2], [1, 1, 1]):
        pass
    counted = streams.counted(stats)
    assert (counted.prefill_tokens, counted.expert_hits, counted.expert_misses) == (7, 3, 3)
    # at least: reads begin at pages
    assert counted.bytes_read >= 3 * store.records.expert_bytes
    assert counted.read_s > 0
    assert counted.wait_s > 0


def test_closing_ends_all_threads_and_once_is_enough(streams: Streams) -> None:
    readers, weights = streams.store.readers, streams.weights
    weights.wait(-1)
    streams.close()
    streams.close()
    assert join_for([*readers._threads, *weights._threads], 0)
    assert not readers.files._buffered
    assert not readers.files._direct


def test_closing_keeps_what_the_disk_gave(
    streams: Streams, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept: list[tuple[object, ...]] = []
    monkeypatch.setattr(localv4.streams, "keep_disk_in_use", lambda *given: kept.append(given))
    counters = streams.store.counters
    counters.decode_bytes, counters.decode_read_s = 12345, 6.7
    streams.close()
    streams.close()
    shard = min(checkpoint.path.glob("*.safetensors"))
    assert kept == [(streams.store.readers, 12345, 6.7, shard)]


def test_a_shard_that_is_gone_is_named(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "model")
    with Checkpoint.open(folder) as checkpoint:
        shard = sorted(folder.glob("*.safetensors"))[1]
        shard.unlink()
        plan = MemoryPlan(0, 0, 0, 0, 0, 0, 0, 0, 1024, True, 6, SLOT)
        with pytest.raises(DamagedCheckpoint, match=f"{shard.name} cannot be opened"):
            Streams(checkpoint, plan, mtp=False)
