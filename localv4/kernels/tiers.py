"""Which vector instructions the kernels may use, decided once from the CPU's features.

An instruction that the CPU lacks aborts the compiler, so nothing is ever tried out: a tier is
a list of features that must all be there.  `LOCALV4_TIER` asks for a lower one (for tests and
comparisons); then everything is compiled for a CPU of that tier.
"""

import ctypes
import platform
from collections.abc import Collection
from functools import cache

import llvmlite.binding as llvm
import numba

from localv4.errors import InvalidInput
from localv4.settings import asked_tier

__all__ = ["TIERS", "active", "available", "choose", "features", "runnable"]

_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA = 158, 0x1023, 18

_AVX2 = ("avx2", "fma", "f16c")
_AVX512 = (*_AVX2, "avx512f", "avx512bw", "avx512vl", "avx512dq")

TIERS: dict[str, tuple[str, ...]] = {
    "amx": (
        *_AVX512,
        "avx512vnni",
        "avx512vbmi",
        "avx512bf16",
        "gfni",
        "amx-tile",
        "amx-bf16",
        "amx-int8",
    ),
    "avx512_bf16": (*_AVX512, "avx512vnni", "avx512vbmi", "avx512bf16", "gfni"),
    "avx512_vnni": (*_AVX512, "avx512vnni"),
    "avx512": _AVX512,
    "avx2": _AVX2,
    "generic": (),
}
"""Tiers from the best to the plainest, with the features that each needs."""

# What numba compiles for when a lower tier is asked for.
_CPUS = {"avx512_vnni": "cascadelake", "avx512": "skylake-avx512", "avx2": "haswell"}


@cache  # before a lower tier changes what numba compiles for
def features() -> frozenset[str]:
    """Return the CPU's features by LLVM's names; none if numba was told another CPU."""
    if numba.config.CPU_NAME or numba.config.CPU_FEATURES:
        return frozenset()
    found = llvm.get_host_cpu_features()
    return frozenset(name for name, there in found.items() if there)


@cache
def _matrix_unit_granted() -> bool:
    """Ask Linux for the right to use the matrix unit's large registers."""
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        return False
    denied: int = ctypes.CDLL(None).syscall(_ARCH_PRCTL, _REQUEST_PERMISSION, _TILE_DATA)
    return denied == 0


def runnable(found: Collection[str]) -> list[str]:
    """Return the tiers that a CPU with these features can run, best first."""
    return [name for name, needed in TIERS.items() if set(needed) <= set(found)]


def available() -> list[str]:
    """Return the tiers that this CPU can run, best first."""
    found = features()
    if "amx-tile" in found and not _matrix_unit_granted():
        found -= {"amx-tile"}
    return runnable(found)


def choose(asked: str | None, offered: list[str]) -> str:
    """Return the tier that is asked for, else the best of those offered.

    Raises
    ------
    InvalidInput
        If there is no such tier, or it is not offered.
    """
    if asked is None:
        return offered[0]
    if asked not in TIERS:
        raise InvalidInput(f"LOCALV4_TIER is {asked!r}; choose one of {', '.join(TIERS)}")
    if asked not in offered:
        raise InvalidInput(
            f"LOCALV4_TIER is {asked}, which this CPU cannot run; it has {', '.join(offered)}"
        )
    return asked


_asked = asked_tier()
_active = choose(_asked, available())
if _asked in _CPUS:
    numba.config.CPU_NAME = _CPUS[_asked]


def active() -> str:
    """Return the tier in force."""
    return _active
