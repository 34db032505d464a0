"""Kernels of each tier, every tier in a process of its own, as it decides how all is compiled."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import localv4
from localv4.bench.arena import Arena
from localv4.bench.batches import measure_batch, multiplied_cases
from localv4.bench.roof import best_reader, measure_peaks
from localv4.bench.weight_kernels import CASES, SLICES, measure_weights
from localv4.errors import InvalidInput, LocalV4Error, OutOfBudget
from localv4.kernels import tiers
from localv4.kernels.threads import choose_threads, computing
from localv4.limits import available_bytes
from localv4.settings import environment_with
from localv4.sizes import format_bytes

__all__ = ["Request", "measure_kernels", "measure_tier"]

_LEAST_BYTES = 2**20
_MOST_TOKENS = 4096
_Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What to measure of a tier.

    Attributes
    ----------
    n_bytes
        Distinct weights.
    threads
        Compute threads, or None for all.
    tokens
        Sizes of batches; none are measured if it is empty.
    """

    n_bytes: int
    threads: int | None
    tokens: tuple[int, ...]


def measure_tier(request: Request) -> dict[str, Any]:
    """Measure the tier in force in this process.

    Returns
    -------
    For JSON: tier, threads, read (`Reader`), weights (`WeightFigures`), peaks (GFLOP/s by kind)
    and batches (`BatchFigures`).
    """
    n_threads = choose_threads(request.threads)
    arena = Arena(request.n_bytes)
    arena.fill("fp4")
    with computing():
        reader = best_reader([*arena.memory.reshape(SLICES, -1)], n_threads)
        weights = [measure_weights(case, arena, reader, n_threads, plain=True) for case in CASES]
        peaks = measure_peaks(n_threads) if request.tokens else {}
        batches = [
            measure_batch(case, n_tokens, arena, peaks, n_threads)
            for case in multiplied_cases()
            for n_tokens in request.tokens
        ]
    return {
        "tier": tiers.active(),
        "threads": n_threads,
        "read": asdict(reader),
        "weights": [asdict(figures) for figures in weights],
        "peaks": {kind: peak.gflops for kind, peak in peaks.items()},
        "batches": [asdict(figures) for figures in batches],
    }


def measure_kernels(
    request: Request, asked_tiers: Sequence[str], cold: bool, say: _Say
) -> list[dict[str, Any]]:
    """Measure tiers, each in a process of its own.

    Parameters
    ----------
    request
        What to measure.
    asked_tiers
        Their names; all that this CPU can run if there are none.
    cold
        Compile everything anew, to see how long that takes.
    say
        Told what is measured.

    Raises
    ------
    InvalidInput
        A name, a size or a number cannot be used.
    OutOfBudget
        There is not enough memory.
    LocalV4Error
        A process failed.
    """
    runnable = tiers.available()
    for tier in asked_tiers:
        if tier not in runnable:
            known = "this CPU cannot run it" if tier in tiers.TIERS else "there is no such tier"
            raise InvalidInput(f"--tier is {tier}: {known}; it runs {', '.join(runnable)}")
    request = _checked(request)
    results = []
    for tier in asked_tiers or runnable:
        say(f"measuring {tier} ...")
        results.append(_in_process(request, tier, cold))
    return results


def _checked(request: Request) -> Request:
    choose_threads(request.threads)
    if request.n_bytes < _LEAST_BYTES:
        raise InvalidInput(
            f"--bytes is {format_bytes(request.n_bytes)}; give at least "
            f"{format_bytes(_LEAST_BYTES)}, and 1GiB for figures that no cache is part of"
        )
    for n_tokens in request.tokens:
        if not 1 <= n_tokens <= _MOST_TOKENS:
            raise InvalidInput(f"--tokens has {n_tokens}; give numbers from 1 to {_MOST_TOKENS}")
    available = available_bytes()
    if request.n_bytes > available * 0.9:
        raise OutOfBudget(
            f"{format_bytes(request.n_bytes)} of weights do not fit: {format_bytes(available)} "
            "of memory are available; give a smaller --bytes"
        )
    # slices of whole kilobytes, as the reader reads
    return Request(request.n_bytes // 2**14 * 2**14, request.threads, request.tokens)


def _import_path() -> list[str]:
    """Return where this process finds modules, for one that begins in no folder."""
    ours = Path(localv4.__file__).parents[1]
    return [str(ours), *(str(Path(entry).absolute()) for entry in sys.path if entry)]


def _in_process(request: Request, tier: str, cold: bool) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="localv4-bench-") as folder:
        changes = {"LOCALV4_TIER": tier, "PYTHONPATH": os.pathsep.join(_import_path())}
        if cold:
            changes["LOCALV4_CACHE_DIR"] = folder
        done = subprocess.run(
            [sys.executable, "-P", "-m", "localv4.bench", json.dumps(asdict(request))],
            env=environment_with(changes),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing"]
        raise LocalV4Error(
            f"measuring tier {tier} ended with code {done.returncode} ({lines[-1]}); try others "
            "with --tier"
        )
    result: dict[str, Any] = json.loads(done.stdout)
    return result
