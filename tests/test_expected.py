"""What is expected of a model: the doctor's figures, and nothing that was never measured."""

import dataclasses
import datetime
import json
from pathlib import Path

import pytest

from localv4 import doctor
from localv4.config import ModelConfig
from localv4.disk import DiskProfile, save_disk_profile
from localv4.doctor import Request, diagnose
from localv4.doctor_plan import Fit
from localv4.expected import expected, routing_of
from localv4.findings import ok
from localv4.machine_rates import CpuRates, keep_rates
from localv4.memory import MemoryPlan
from tests.small_checkpoints import make_small

RATES = CpuRates(20e9, 17e9, 16e9, 18e9, 2e11)
MAPPED = MemoryPlan(1, 2, 3, 4, 5, 6, 21, 2**30, 256)
STREAMED = dataclasses.replace(MAPPED, streams=True, n_slots=3, slot_bytes=2**16)
THREADS = 2


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return make_small(tmp_path_factory.mktemp("expected") / "small")


def found_for(model: Path, plan: MemoryPlan):
    return expected(ModelConfig.from_folder(model), plan, THREADS, model)


def keep_disk(model: Path, bytes_per_s: float = 1e9) -> None:
    shard = min(model.glob("*.safetensors"))
    save_disk_profile(DiskProfile(True, 2, bytes_per_s, datetime.date(2026, 1, 31)), shard)


@pytest.mark.parametrize("plan", [MAPPED, STREAMED], ids=["mapped", "streamed"])
def test_it_is_what_the_doctor_says(cache, model, monkeypatch, plan):
    monkeypatch.setattr(doctor, "check_rates", lambda _: (ok("speed", "given"), RATES))
    monkeypatch.setattr(doctor, "_DISK_S", 0.01)
    monkeypatch.setattr(
        doctor,
        "check_plan",
        lambda _, work, *rest: ([], Fit(plan, plan.n_slots if plan.streams else work.all_experts)),
    )
    outlook = diagnose(Request(model, None, THREADS, cache)).outlook
    keep_rates(RATES, THREADS)
    found = found_for(model, plan)
    assert outlook is not None
    assert found is not None
    assert (found.floor, found.likely, found.warm) == (outlook.floor, outlook.likely, outlook.warm)
    assert found.prefill_s(1000) == outlook.prompt_s
    assert found.routing == outlook.routing
    assert (found.share == 1.0) is not plan.streams


def test_without_rates_there_is_nothing(cache, model):
    keep_disk(model)
    assert found_for(model, MAPPED) is None
    keep_rates(RATES, THREADS + 1)
    assert found_for(model, MAPPED) is None


def test_without_the_disk_only_what_needs_none(cache, model):
    keep_rates(RATES, THREADS)
    streamed, mapped = found_for(model, STREAMED), found_for(model, MAPPED)
    assert (streamed.likely, streamed.floor, streamed.knows_disk) == (None, None, False)
    assert streamed.prefill_s(10) is streamed.decode_s(10) is None
    assert streamed.warm == mapped.warm == mapped.likely
    assert mapped.floor is None
    assert mapped.prefill_s(10) > 0
    unknown_s = mapped.prefill_s(10)
    keep_disk(model)
    assert found_for(model, MAPPED).prefill_s(10) == unknown_s
    assert found_for(model, MAPPED).floor.token_s > mapped.warm.token_s


def test_a_faster_disk_helps_where_experts_are_streamed(cache, model):
    keep_rates(RATES, THREADS)
    keep_disk(model, 1e6)
    slow = found_for(model, STREAMED)
    keep_disk(model, 1e9)
    fast = found_for(model, STREAMED)
    assert fast.likely.token_s < slow.likely.token_s
    assert fast.prefill_s(100) < slow.prefill_s(100)
    assert fast.decode_s(10) == 10 * fast.likely.token_s
    assert fast.warm == slow.warm


@pytest.mark.parametrize("routing", ["skewed", "uniform", "odd"])
def test_routing_is_as_the_checkpoint_says(cache, model, tmp_path, caplog, routing):
    keep_rates(RATES, THREADS)
    (tmp_path / "generation_config.json").write_text(json.dumps({"localv4_routing": routing}))
    found = expected(ModelConfig.from_folder(model), MAPPED, THREADS, tmp_path)
    if routing == "odd":
        assert found is None
        assert "make it skewed or uniform" in caplog.text
    else:
        assert found is not None
        assert found.routing == routing_of(tmp_path) == routing
