"""How fast this machine reads memory and multiplies weights: measured once, and kept.

By CPU, threads and the tier of vector instructions that was asked for, in the cache folder. Knows
nothing of how it is measured: looking a rate up must not import a compiler.
"""

import datetime
import hashlib
import json
import logging
import math
import os
import platform
from dataclasses import asdict, dataclass, fields
from pathlib import Path

from localv4.errors import DamagedCheckpoint
from localv4.replacing import replacing
from localv4.settings import asked_tier, cache_folder
from localv4.untrusted import read_object

__all__ = ["CpuRates", "cpu_name", "keep_rates", "kept_rates"]

_log = logging.getLogger(__name__)
_FILE_BYTES = 2**12
_GOOD_DAYS = 30  # memory may have been added since, and kernels may be faster


@dataclass(frozen=True)
class CpuRates:
    """What was measured, in bytes/s and operations/s.

    Attributes
    ----------
    memory
        Reading and nothing else.
    fp4, fp8, bf16, flops
        See `localv4.speed.Rates`.
    """

    memory: float
    fp4: float
    fp8: float
    bf16: float
    flops: float


def cpu_name() -> str:
    """Return what the CPU calls itself."""
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def keep_rates(rates: CpuRates, threads: int) -> None:
    """Keep rates for so many compute threads.

    Raises
    ------
    OSError
        The cache folder cannot be written.
    """
    source = _source(threads)
    file = _file(source)
    file.parent.mkdir(parents=True, exist_ok=True)
    values = source | asdict(rates) | {"measured": _today().isoformat()}
    with replacing(file) as descriptor:
        os.write(descriptor, f"{json.dumps(values, indent=2)}\n".encode())


def kept_rates(threads: int) -> CpuRates | None:
    """Return what was kept for so many threads; None for nothing, or nothing of use any more."""
    source = _source(threads)
    file = _file(source)
    try:
        values = read_object(file, _FILE_BYTES)
        return None if values is None else _checked(values, source)
    except (DamagedCheckpoint, ValueError, TypeError, KeyError) as error:
        _log.warning("%s is damaged and not used (%s); localv4 doctor makes it anew", file, error)
        return None


def _source(threads: int) -> dict[str, object]:
    """Return what rates depend on."""
    return {"cpu": cpu_name(), "threads": threads, "tier": asked_tier() or "best"}


def _file(source: dict[str, object]) -> Path:
    machine = f"{source['cpu']} {source['tier']}".encode()
    name = f"cpu-{hashlib.sha256(machine).hexdigest()[:8]}-{source['threads']}.json"
    return cache_folder() / name


def _checked(values: dict[str, object], source: dict[str, object]) -> CpuRates | None:
    """Return rates from JSON, None for outdated ones; raise what says that these are none."""
    age = _today() - datetime.date.fromisoformat(str(values["measured"]))
    rates = CpuRates(*(_rate(values[field.name]) for field in fields(CpuRates)))
    is_of_this = all(values[name] == value for name, value in source.items())
    return rates if is_of_this and age.days <= _GOOD_DAYS else None


def _rate(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("a value is no number")
    if not (0 < value < math.inf):
        raise ValueError("a value is out of range")
    return float(value)


def _today() -> datetime.date:
    return datetime.datetime.now(datetime.UTC).date()
