"""The doctor's look at the machine: memory and its limits, CPU, threads, cache folder.

Knows nothing of models.
"""

import os
import shutil
from pathlib import Path

import psutil

from localv4.findings import Finding, note, ok, problem
from localv4.kernels import tiers
from localv4.kernels._jit import kernels_are_cached
from localv4.kernels.threads import usable_cpus
from localv4.limits import available_bytes, cpu_quota, group_limits
from localv4.machine_rates import cpu_name
from localv4.sizes import format_bytes

__all__ = ["check_cache", "check_cpu", "check_load", "check_memory", "check_threads", "cpu_name"]

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_BUSY = 0.5  # threads that want to run, for each CPU


def check_memory() -> list[Finding]:
    """Look at memory, at what limits it, and at huge pages."""
    memory, swap = psutil.virtual_memory(), psutil.swap_memory()
    available, total = available_bytes(), int(memory.total)
    swap_words = f"swap {format_bytes(swap.total)}" if swap.total else "no swap"
    found = [
        ok(
            "memory",
            f"{format_bytes(total)}, {format_bytes(available)} of it available, {swap_words}",
            total_bytes=total,
            available_bytes=available,
            swap_bytes=int(swap.total),
            swap_used_bytes=int(swap.used),
        )
    ]
    limits = [limit for limit in group_limits() if limit.limit < total]
    if limits:
        tightest = min(limits, key=lambda limit: limit.room)
        found.append(
            note(
                "memory limit",
                f"the control group {tightest.path} may hold {format_bytes(tightest.limit)} and "
                f"holds {format_bytes(tightest.used)}",
                path=str(tightest.path),
                limit_bytes=tightest.limit,
                used_bytes=tightest.used,
            )
        )
    return found + _check_huge_pages()


def _check_huge_pages(file: Path = _HUGE_PAGES) -> list[Finding]:
    try:
        chosen = file.read_text("ascii").partition("[")[2].partition("]")[0]
    except (OSError, UnicodeDecodeError):
        return []
    if chosen != "never":
        return [ok("huge pages", f"{chosen}: disks read into them faster", setting=chosen)]
    text = f"never, and disks read into small pages up to a third slower; allow them: {file}"
    return [note("huge pages", text, setting=chosen)]


def check_cpu() -> Finding:
    """Look at the CPU's name and the vector instructions in use."""
    name, count, tier = cpu_name(), os.cpu_count(), tiers.active()
    best = tiers.available()[0]
    figures = {"name": name, "cpus": count, "tier": tier, "best_tier": best}
    text = f"{name}, {count} CPUs; tier {tier}"
    if tier != best:
        return note("cpu", f"{text}, and {best} is there: unset LOCALV4_TIER", **figures)
    if tier == "generic":
        return note("cpu", f"{text}: without AVX2 a third of the speed", **figures)
    return ok("cpu", text, **figures)


def check_load() -> list[Finding]:
    """Look whether other programs want the CPUs, which would make every speed a guess."""
    if not hasattr(os, "getloadavg"):
        return []
    load, cpus = os.getloadavg()[0], os.cpu_count() or 1
    if load < _BUSY * cpus:
        return []
    text = f"{load:.1f} on {cpus} CPUs: others are busy, so that measured speeds are too low"
    return [note("load average", text, load_average=load, cpus=cpus)]


def check_threads(n_threads: int) -> Finding:
    """Look whether the compute threads get the CPUs' time."""
    cpus = usable_cpus()
    figures = {"threads": n_threads, "cpus": cpus}
    text = f"{n_threads} on {cpus} CPUs that this process may use"
    quota = cpu_quota()
    if quota is not None and quota < n_threads:
        text += (
            f"; a control group lets it have {quota:.3g} CPUs' time, so that the threads are "
            f"stopped again and again: give --threads {max(1, int(quota))}"
        )
        return note("threads", text, **figures, quota=quota)
    return ok("threads", text, **figures)


def check_cache(folder: Path) -> Finding:
    """Look at the folder for compiled kernels: may it be written, and are they there."""
    probe = folder / ".writable"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink(missing_ok=True)
        free = shutil.disk_usage(folder).free
    except OSError as error:
        return problem(
            "cache folder",
            f"{folder} can't be written ({error.strerror or error}), so that kernels are compiled "
            "anew in every run; let LOCALV4_CACHE_DIR name another folder",
            path=str(folder),
        )
    compiled = kernels_are_cached()
    words = "kernels compiled" if compiled else "kernels not compiled yet (about a minute, once)"
    return ok(
        "cache folder",
        f"{folder}, {format_bytes(free)} free, {words}",
        path=str(folder),
        free_bytes=free,
        kernels_compiled=compiled,
    )
