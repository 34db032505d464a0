"""What is kept of this machine's speed, and when it counts no more."""

import json
import logging
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import pytest

from localv4 import machine_rates
from localv4.machine_rates import CpuRates, cpu_name, keep_rates, kept_rates

RATES = CpuRates(20e9, 17.25e9, 16e9, 18e9, 2.1e11)


@pytest.fixture
def cache(monkeypatch, tmp_path):
    folder = tmp_path / "cache"
    monkeypatch.setenv("LOCALV4_CACHE_DIR", str(folder))
    monkeypatch.delenv("LOCALV4_TIER", raising=False)
    return folder


def change(folder, **changes):
    (file,) = folder.iterdir()
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def test_rates_are_kept_for_threads_and_tier(cache, monkeypatch):
    assert kept_rates(2) is None
    keep_rates(RATES, 2)
    assert kept_rates(2) == RATES
    assert kept_rates(1) is None
    monkeypatch.setenv("LOCALV4_TIER", "generic")
    assert kept_rates(2) is None
    keep_rates(CpuRates(1.0, 1.0, 1.0, 1.0, 1.0), 2)
    monkeypatch.delenv("LOCALV4_TIER")
    assert kept_rates(2) == RATES
    assert len(list(cache.iterdir())) == 2


def test_another_cpu_has_other_rates(cache, monkeypatch):
    keep_rates(RATES, 2)
    monkeypatch.setattr(machine_rates, "cpu_name", lambda: "another")
    assert kept_rates(2) is None


def test_what_is_measured_again_counts(cache):
    keep_rates(CpuRates(1.0, 1.0, 1.0, 1.0, 1.0), 2)
    keep_rates(RATES, 2)
    assert kept_rates(2) == RATES


@pytest.mark.parametrize("name", ["cpu", "tier", "threads"])
def test_rates_of_something_else_are_not_used(cache, caplog, name):
    keep_rates(RATES, 2)
    change(cache, **{name: "another"})
    assert kept_rates(2) is None
    assert caplog.text == ""


def test_old_rates_are_not_used(cache):
    keep_rates(RATES, 2)
    today = datetime.now(UTC).date()
    change(cache, measured=(today - timedelta(days=20)).isoformat())
    assert kept_rates(2) == RATES
    change(cache, measured=(today - timedelta(days=40)).isoformat())
    assert kept_rates(2) is None


@pytest.mark.parametrize("value", [0, -1, True, "9", None, float("inf")])
def test_a_rate_that_is_none_is_refused(cache, caplog, value):
    keep_rates(RATES, 2)
    change(cache, fp8=value)
    with caplog.at_level(logging.WARNING, "localv4"):
        assert kept_rates(2) is None
    assert "is damaged and not used" in caplog.text


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"measured": "last week"}', '{"mea', "x" * 9999])
def test_a_torn_file_is_refused(cache, caplog, text):
    keep_rates(RATES, 2)
    (file,) = cache.iterdir()
    file.write_text(text)
    with caplog.at_level(logging.WARNING, "localv4"):
        assert kept_rates(2) is None
    assert "is damaged and not used" in caplog.text
    keep_rates(RATES, 2)
    assert kept_rates(2) == RATES


def test_looking_up_costs_no_compiler(cache):
    keep_rates(RATES, 2)
    code = (
        "import sys; from localv4.machine_rates import kept_rates; found = kept_rates(2)\n"
        "print(found.fp4, 'numba' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "17250000000.0 False\n"


def test_the_cpu_has_a_name():
    assert cpu_name()
