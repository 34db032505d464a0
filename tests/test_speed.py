"""The speed model against an event-by-event twin, hand-made figures and common sense."""

from collections import deque
from dataclasses import replace
from itertools import pairwise, product

import pytest

from localv4.checkpoint import Checkpoint
from localv4.inventory import take_inventory
from localv4.speed import (
    LAYER_S,
    OVERHEAD,
    STOP_S,
    Rates,
    Work,
    disk_share,
    estimate,
    expected_hits,
    gains,
    prefill_s,
)
from localv4.token_work import token_work
from tests.released import released_config
from tests.small_checkpoints import make_small

WORK = Work(
    layers=4,
    hash_layers=0,
    experts=8,
    experts_per_token=3,
    expert_bytes=1000,
    expert_is_fp8=False,
    dense_fp8_bytes=40_000,
    dense_bf16_bytes=8_000,
    beside_bytes=4_000,
    head_bytes=6_000,
    n_products=100_000,
    foreseen=0.0,
)
RATES = Rates(fp4=2e3, fp8=1e4, bf16=4e3, disk=1e3, flops=1e6)


def simulated_experts_s(work: Work, rates: Rates, misses: int) -> float:
    """Play a layer's reads and products event by event."""
    expert_s = work.expert_bytes / rates.fp4
    lands_s = deque((n + 1) * work.expert_bytes / rates.disk for n in range(misses))
    now_s = work.beside_bytes / rates.fp8 / work.layers
    now_s += (work.experts_per_token - misses) * expert_s
    now_s += misses * work.expert_bytes / rates.bf16  # what is read passes through memory too
    while lands_s:
        now_s = max(now_s, lands_s.popleft()) + expert_s
    return now_s


@pytest.mark.parametrize("disk", [10.0, 700.0, 1500.0, 2000.0, 4000.0, 1e9])
@pytest.mark.parametrize("hit_rate", [0.0, 0.3, 0.84, 1.0])
def test_a_token_against_the_twin(disk, hit_rate):
    rates = replace(RATES, disk=disk)
    layer_s = 0.0
    for missing in product((False, True), repeat=WORK.experts_per_token):
        chance = 1.0
        for each in missing:
            chance *= 1 - hit_rate if each else hit_rate
        layer_s += chance * simulated_experts_s(WORK, rates, sum(missing))
    dense_s = 40_000 / 1e4 + 8_000 / 4e3
    expected = (1 + OVERHEAD) * (dense_s + WORK.layers * layer_s + 6_000 / 4e3)
    chance_to_stop = 1 - hit_rate ** (WORK.experts_per_token + 4)
    expected += WORK.layers * (LAYER_S + STOP_S * chance_to_stop)
    assert estimate(WORK, rates, hit_rate).token_s == pytest.approx(expected)


def test_reads_of_hash_layers_begin_with_the_token():
    slow = replace(RATES, disk=200.0)
    hashed = replace(WORK, hash_layers=4)
    # all 12 reads one after the other, then the last expert and the head
    expected = (1 + OVERHEAD) * (12 * 5 + 0.5 + 1.5) + WORK.layers * (LAYER_S + STOP_S)
    assert estimate(hashed, slow, 0.0).token_s == pytest.approx(expected)
    assert estimate(hashed, slow, 1.0) == estimate(WORK, slow, 1.0)
    for hit_rate in (0.0, 0.5, 0.9):
        assert estimate(hashed, slow, hit_rate).token_s < estimate(WORK, slow, hit_rate).token_s


def test_foreseen_experts_are_read_during_the_dense_part():
    # a layer's dense part takes 1.5 s, a read 0.5 s: 2.4 useful ones fit; 3 missing, half foreseen
    slow, foreseen = replace(RATES, disk=2000.0), replace(WORK, foreseen=0.5)
    gain_s = estimate(WORK, slow, 0.0).token_s - estimate(foreseen, slow, 0.0).token_s
    assert gain_s == 0  # computing takes longer than reading here
    slow = replace(RATES, disk=1e3, fp4=1e6)
    gain_s = estimate(WORK, slow, 0.0).token_s - estimate(foreseen, slow, 0.0).token_s
    reads = min(0.5 * 3, 0.8 * 1.5 / 1.0)
    assert gain_s == pytest.approx((1 + OVERHEAD) * 4 * reads)


def test_experts_of_base_checkpoints_are_fp8():
    base = replace(WORK, expert_is_fp8=True)
    faster_s = 12 * 1000 * (1 / RATES.fp4 - 1 / RATES.fp8)
    difference_s = estimate(WORK, RATES, 1.0).token_s - estimate(base, RATES, 1.0).token_s
    assert difference_s == pytest.approx((1 + OVERHEAD) * faster_s)


def test_tokens_a_second_are_the_inverse():
    found = estimate(WORK, RATES, 0.5)
    assert found.hit_rate == 0.5
    assert found.tokens_s * found.token_s == pytest.approx(1)


def test_more_hits_are_never_slower():
    times = [estimate(WORK, RATES, n / 50).token_s for n in range(51)]
    assert all(after <= before for before, after in pairwise(times))


@pytest.mark.parametrize("routing", ["skewed", "uniform"])
def test_expected_hits_grow_with_the_share(routing):
    found = [expected_hits(n / 500, routing) for n in range(501)]
    assert found[0] == 0
    assert found[-1] == 1
    assert all(before < after for before, after in pairwise(found))
    assert expected_hits(-0.1, routing) == 0
    assert expected_hits(1.5, routing) == 1


def test_expected_hits_are_those_of_the_traces():
    # study of streaming, section 4: 10, 24, 48 and 100 GB of Flash's experts
    for gigabytes, lowest, highest in ((10, 47, 52.3), (24, 67.4, 70.7), (48, 84.6, 85.5)):
        share = gigabytes * 1e9 / 13_369_344 / 11_008
        assert lowest <= 100 * expected_hits(share, "skewed") <= highest
    assert expected_hits(0.25, "uniform", hash_share=0.0) == 0.25
    assert 0.25 < expected_hits(0.25, "uniform") < 0.28


def test_what_helps_depends_on_what_is_short():
    experts = 4000
    flash = token_work(take_inventory(released_config("flash")))
    fast_disk = Rates(17e9, 16e9, 18e9, 50e9, 2e11)
    assert gains(flash, fast_disk, experts, "skewed")[0].what == "cpu"
    slow_disk = replace(fast_disk, disk=5e8)
    assert gains(flash, slow_disk, experts, "uniform")[0].what == "disk"
    many_cores = Rates(90e9, 90e9, 110e9, 1e9, 2e12)
    assert gains(flash, many_cores, 300, "skewed")[0].what == "memory"
    all_there = gains(flash, slow_disk, flash.all_experts, "skewed")
    assert all_there[0].what == "cpu"
    assert all_there[1].tokens_s == all_there[2].tokens_s
    speeds = [gain.tokens_s for gain in all_there]
    assert speeds == sorted(speeds, reverse=True)


def test_the_share_that_waits_for_the_disk():
    assert disk_share(WORK, RATES, 1.0) == 0
    assert disk_share(WORK, replace(RATES, disk=0.1), 0.0) == pytest.approx(1, abs=0.01)
    shares = [disk_share(WORK, replace(RATES, disk=speed), 0.5) for speed in (100.0, 1e3, 1e4)]
    assert 1 > shares[0] > shares[1] > shares[2] >= 0


def test_a_prompt_reads_each_missing_expert_once_a_chunk():
    slow = replace(RATES, disk=1.0)
    head_s = 6_000 / 4e3
    one_chunk_s = prefill_s(WORK, slow, 1024, 0.25, 1024) / (1 + OVERHEAD) - head_s
    assert one_chunk_s == pytest.approx(32 * 0.75 * 1000)
    two_s = prefill_s(WORK, slow, 2048, 0.25, 1024) / (1 + OVERHEAD) - head_s
    assert two_s == pytest.approx(2 * one_chunk_s)


def test_a_prompt_is_bound_by_products_when_all_is_there():
    few_flops = replace(RATES, flops=1e3)
    seconds = prefill_s(WORK, few_flops, 500, 1.0, 1024) / (1 + OVERHEAD) - 6_000 / 4e3
    assert seconds == pytest.approx(2 * 100_000 * 500 / 1e3)


@pytest.mark.parametrize("preset", ["flash", pytest.param("pro", marks=pytest.mark.slow)])
def test_what_a_token_of_the_releases_makes(preset):
    config = released_config(preset)
    inventory = take_inventory(config)
    work = token_work(inventory)
    parts = {part.name: part.nbytes for part in inventory.parts}
    counted = work.dense_fp8_bytes + work.dense_bf16_bytes + work.beside_bytes
    # but for the hash layers' tables
    tables = config.num_hash_layers * config.vocab_size * config.num_experts_per_tok * 8
    assert counted == parts["attention"] + parts["ffn"] - tables
    assert work.head_bytes == pytest.approx(parts["head"], rel=1e-3)
    assert work.all_experts * work.expert_bytes == parts["routed experts"]
    active = {"flash": 13e9, "pro": 49e9}[preset]  # published, with embedding and head
    assert work.n_products == pytest.approx(active, rel=0.08)


@pytest.mark.parametrize("preset", ["flash", "flash-base"])
def test_what_a_token_makes_of_a_checkpoint_is_what_lies_in_it(tmp_path, preset):
    with Checkpoint.open(make_small(tmp_path / "small", preset)) as checkpoint:
        work = token_work(take_inventory(checkpoint))
        dense = [
            tensor
            for tensor in checkpoint.tensors.values()
            if tensor.name.startswith("layers.") and ".experts." not in tensor.name
            and tensor.dtype != "I64"
        ]  # fmt: skip
        expert = [x for x in checkpoint.tensors.values() if "layers.1.ffn.experts.2." in x.name]
    counted = work.dense_fp8_bytes + work.dense_bf16_bytes + work.beside_bytes
    assert counted == sum(tensor.nbytes for tensor in dense)
    assert work.beside_bytes == sum(
        tensor.nbytes for tensor in dense if ".shared_experts.w2." in tensor.name
    )
    assert work.dense_bf16_bytes == sum(
        tensor.nbytes
        for tensor in dense
        if tensor.dtype in ("BF16", "F32") and not tensor.name.endswith(".scale")
    )
    assert work.expert_bytes == sum(tensor.nbytes for tensor in expert)
