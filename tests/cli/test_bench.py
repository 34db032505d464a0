"""The shape of what bench prints, and what it refuses; never how fast anything is."""

import json
import os
import subprocess

import pytest

from localv4.kernels import tiers
from localv4.settings import environment_with
from tests.kernels.compare import needs_compiler

MACHINE = {"version", "date", "machine", "cpus", "load_average"}
MODEL = {"model", "tier", "threads", "layers", "weights_bytes", "in_memory", "map_gb_s", "tokens"}


@needs_compiler
@pytest.mark.slow
def test_kernels(command):
    tier = tiers.available()[-1]
    flags = "--bytes 1MiB --tokens 1,5 --threads 1 --json --tier"
    result = command("bench", "kernels", *flags.split(), tier)
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert set(report) == MACHINE | {"bytes", "tiers"}
    assert report["bytes"] == 2**20
    (measured,) = report["tiers"]
    assert (measured["tier"], measured["threads"]) == (tier, 1)
    assert measured["read"]["gb_s"] > 0
    assert {row["weight_format"] for row in measured["weights"]} == {"fp4", "fp8", "bf16", "f32"}
    for row in measured["weights"]:
        assert row["gb_s"] > 0
        assert row["share"] > 0
        assert row["plain_share"] > 0
        assert row["error"] < 1e-6
        assert 0 < row["n_bytes"] <= 2**20
    assert [row["n_tokens"] for row in measured["batches"]] == [1, 5] * 3
    for row in measured["batches"]:
        assert row["gflops"] > 0
        assert row["peak"] in measured["peaks"]


@needs_compiler
@pytest.mark.slow
def test_the_table_of_kernels(command):
    tier = tiers.available()[-1]
    result = command("bench", "kernels", "--bytes", "1MiB", "--tokens", "", "--tier", tier)
    assert (result.code, result.err) == (0, "")
    lines = result.out.splitlines()
    assert lines[2].startswith(tier)
    assert any(line.startswith("FP4 expert gate, up") and "%" in line for line in lines)
    assert "batches" not in result.out


@needs_compiler
@pytest.mark.slow
def test_decode(command, checkpoint):
    flags = "--context 0,64,1000 --tokens 2 --threads 2 --json"
    result = command("bench", "decode", "-m", str(checkpoint), *flags.split())
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert set(report) == MACHINE | MODEL | {"token_bytes", "token_products", "contexts"}
    assert report["layers"] == 2
    assert 0 < report["token_bytes"] < report["weights_bytes"]
    assert [row["context"] for row in report["contexts"]] == [0, 64, 896]
    assert [row["fed"] for row in report["contexts"]] == [0, 64, 128]
    for row in report["contexts"]:
        assert row["token_ms"] * row["tokens_s"] == pytest.approx(1000)
        assert {"experts", "attention", "head"} <= set(row["parts_ms"])
        total = sum(row["parts_ms"].values()) + row["overhead_ms"]
        assert total == pytest.approx(row["timed_ms"])
        assert set(row["kinds_ms"]) == {"sliding", "csa"}
        assert row["all_layers"] is None


@needs_compiler
@pytest.mark.slow
def test_prefill(command, checkpoint):
    flags = "--tokens 9 --threads 2"
    result = command("bench", "prefill", "-m", str(checkpoint), *flags.split(), "--json")
    assert result.code == 0, result.err
    report = json.loads(result.out)
    assert set(report) > MACHINE | MODEL
    assert report["tokens_s"] * report["prefill_s"] == pytest.approx(9)
    assert report["overhead_s"] < report["prefill_s"] * 10
    assert report["peaks"]["f32"] > 0
    table = command("bench", "prefill", "-m", str(checkpoint), *flags.split()).out
    assert "\nprefill      9 tokens in " in table
    assert "\nby part      " in table


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("kernels --bytes 1KiB", 2, "at least 1.00 MiB"),
        ("kernels --bytes much", 2, "24GiB"),
        ("kernels --bytes 900TiB", 4, "smaller --bytes"),
        ("kernels --tokens 0", 2, "at least 1"),
        ("kernels --tokens 1;2", 2, "commas between"),
        ("kernels --tokens 5000", 2, "from 1 to 4096"),
        ("kernels --tier sse", 2, "no such tier"),
        ("kernels --threads 0", 2, "threads"),
        ("decode --context -1", 2, "at least 0"),
        ("decode --tokens 0", 2, "--tokens"),
        ("decode -m /nowhere", 3, "/nowhere"),
        ("prefill -m /nowhere", 3, "/nowhere"),
        ("prefill --tokens many", 2, "--tokens"),
        ("prefill --tokens 70000", 2, "--tokens"),
        ("everything", 2, "everything"),
        ("", 2, "localv4 bench --help"),
    ],
)
def test_refusals(command, arguments, code, words):
    result = command("bench", *arguments.split())
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert result.err.count("\n") == 1


@needs_compiler
def test_a_context_beyond_the_model(command, checkpoint):
    result = command("bench", "decode", "--context", "9999999", "-m", str(checkpoint), "-q")
    assert (result.code, result.out) == (2, "")
    assert "the model ends at 1048576" in result.err


def test_a_process_that_fails(command, monkeypatch):
    def fail(*_: object, **__: object) -> subprocess.CompletedProcess[str]:
        return subprocess.CompletedProcess([], -9, "", "Traceback\nBoom: no\n")

    monkeypatch.setattr(subprocess, "run", fail)
    result = command("bench", "kernels", "--bytes", "1MiB", "-q")
    assert (result.code, result.out) == (1, "")
    assert "ended with code -9 (Boom: no)" in result.err


def test_help_is_quick(command):
    for name in ("kernels", "decode", "prefill"):
        result = command("bench", name, "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: localv4 bench {name}")
        assert "--json" in result.out


def test_the_environment_of_a_tier():
    before = dict(os.environ)
    assert environment_with({"LOCALV4_TIER": "avx2"}) == before | {"LOCALV4_TIER": "avx2"}
    assert dict(os.environ) == before
