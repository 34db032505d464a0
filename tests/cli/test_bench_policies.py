"""What bench trace and bench policies print, and what they refuse."""

import json

import pytest

from localv4.bench.traces import load_trace, save_trace
from localv4.bench.traces_made import SKEWED, Shape, add_predictions, make
from tests.kernels.compare import needs_compiler

SHAPE = Shape(n_layers=4, n_experts=24, n_chosen=3, n_hash_layers=1, expert_bytes=10**6)


@pytest.fixture
def recorded(tmp_path):
    path = tmp_path / "small.npz"
    save_trace(add_predictions(make(SHAPE, SKEWED, [9, *[1] * 60]), [0.5]), path)
    return path


@needs_compiler
@pytest.mark.slow
def test_a_trace_is_recorded_and_replayed(command, checkpoint, tmp_path):
    path, prompt = tmp_path / "a.npz", tmp_path / "prompt.txt"
    prompt.write_text("Good morning", encoding="utf-8")
    flags = ["-m", str(checkpoint), "--tokens", "5", "--prompt-file", str(prompt), "--threads", "1"]
    result = command("bench", "trace", str(path), *flags)
    assert (result.code, result.out) == (0, ""), result.err
    assert "localv4 bench policies" in result.err
    trace = load_trace(path)
    assert trace.chunks[1:].tolist() == [1] * 5
    assert trace.n_layers == 2
    result = command("bench", "policies", str(path), "--share", "50", "-q")
    assert result.code == 0, result.err
    assert "a.npz: " in result.out


def test_policies_of_a_file(command, recorded):
    result = command("bench", "policies", str(recorded), "--share", "30,70", "--json", "-q")
    assert result.code == 0, result.err
    (report,) = json.loads(result.out)["traces"]
    assert report["bytes"] == 4 * 24 * 10**6
    assert report["decoded"] == 60
    rates = {row["policy"]: row["hit_rates"] for row in report["policies"]}
    assert {"LRU", "S3-FIFO", "frequency, half-life 32", "clairvoyant"} <= set(rates)
    assert all(0 < low <= high <= 1 for low, high in rates.values())
    assert {row["machine"] for row in report["look_ahead"]} == {"2 cores", "16 cores"}
    assert all(len(row["token_ms"]) == 2 for row in report["look_ahead"])


def test_the_table(command, recorded):
    flags = "--share 30 --times 5,1,4 --times 1,1,1 -q"
    result = command("bench", "policies", str(recorded), *flags.split())
    assert (result.code, result.err) == (0, "")
    assert "30%, 0.0288 GB" in result.out
    assert "\n5,1,4 ms, ahead" in result.out
    assert "\n1,1,1 ms, ahead" in result.out
    assert "\nrecall 50%, first 3 " in result.out


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ("policies --share 0", 2, "whole numbers from 1 to 100"),
        ("policies --share 5,x", 2, "'x'"),
        ("policies --times 1,2", 2, "8.7,0.75,8"),
        ("policies --times 1,2,nan", 2, "milliseconds above 0"),
        ("policies --tokens 1", 2, "--tokens"),
        ("policies /nowhere.npz", 2, "/nowhere.npz is no file"),
        ("trace", 2, "FILE"),
        ("trace /nowhere/a.npz", 2, "a folder that is there"),
        ("trace a.npz -m /nowhere", 3, "/nowhere"),
        ("trace a.npz --tokens 0", 2, "--tokens"),
        ("trace a.npz --prompt-file /nowhere", 2, "--prompt-file"),
    ],
)
def test_refusals(command, arguments, code, words):
    result = command("bench", *arguments.split(), "-q")
    assert (result.code, result.out) == (code, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_a_cache_that_is_too_small(command, recorded):
    result = command("bench", "policies", str(recorded), "--share", "1", "-q")
    assert (result.code, result.out) == (2, "")
    assert "larger share" in result.err


def test_help_is_quick(command):
    for name in ("trace", "policies"):
        result = command("bench", name, "--help")
        assert (result.code, result.err) == (0, "")
        assert result.out.startswith(f"Usage: localv4 bench {name}")
