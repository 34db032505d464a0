"""Compile all kernels ahead of their first use, in several processes at once.

Numba compiles one function at a time in a process, and the kernels are a minute of work; two
processes halve it.  Every process takes the next module's kernels (they share functions) that
nobody has claimed; what one has compiled, the others find in the cache.  Kernels that a process
left behind (it was stopped, or ran out of memory) are compiled when they are first used, as
always, which a warning says; the next warming up does the rest.
"""

import gc
import importlib
import logging
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from localv4.kernels import _jit
from localv4.kernels.lanes import ARRANGERS
from localv4.kernels.launch import Kernel, Program, declared_kernels
from localv4.kernels.matmul import weight_kernels
from localv4.kernels.threads import usable_cpus
from localv4.kernels.walks import walk_for, walk_for_many

__all__ = ["warm_up"]

_log = logging.getLogger(__name__)
_PROCESSES = 4
_POLL_S = 0.1
_FOR_MEASUREMENTS = {"peak", "read"}
# What the trained numerics multiply: formats, and what is known of the activations.
_PRODUCTS = [("fp8", "fp8"), ("fp8", "bf16"), ("fp4", "fp8"), ("bf16", "bf16"), ("f32", "f32")]


def _shares() -> list[list[Kernel]]:
    """Return the kernels of the trained numerics in shares, the same in every process."""
    for source in sorted(Path(__file__).parent.glob("[!_]*.py")):
        if source.stem not in _FOR_MEASUREMENTS:
            importlib.import_module(f"localv4.kernels.{source.stem}")
    walks = [walk_for(*product) for product in _PRODUCTS]
    needed = [ARRANGERS[walk.layout] for walk in (*walks, *map(walk_for_many, walks))]
    shares: dict[str, list[Kernel]] = {}
    for kernel in list(declared_kernels):
        if kernel in ARRANGERS.values() and kernel not in needed:
            continue
        shares.setdefault(kernel.function.__module__, []).append(kernel)
    for product in _PRODUCTS:  # these share nothing
        shares |= {kernel.name: [kernel] for kernel in weight_kernels(*product)}
    return list(shares.values())


def _claimed(shares: list[list[Kernel]], claims: Path) -> Iterator[Kernel]:
    """Yield the kernels of shares that no other process has begun."""
    for number, share in enumerate(shares):
        try:
            (claims / str(number)).touch(exist_ok=False)
        except FileExistsError:
            continue
        yield from share


def compile_shares(claims: str) -> None:
    """Compile what nobody has claimed, in a process that `warm_up` started."""
    gc.disable()  # a tenth of the time, and the process ends soon
    for kernel in _claimed(_shares(), Path(claims)):
        kernel.compile()
    Program().run(1)


def _start(claims: str) -> "subprocess.Popen[bytes]":
    # no leaf is called from Python there, and its wrapper would take time to compile
    script = (
        "from localv4.kernels import _jit; _jit.leaves_have_wrappers = False; "
        f"from localv4.kernels import warm; warm.compile_shares({claims!r})"
    )
    nowhere = subprocess.DEVNULL
    return subprocess.Popen(
        [sys.executable, "-c", script], stdin=nowhere, stdout=nowhere, stderr=nowhere
    )


def warm_up(progress: Callable[[int, int], None]) -> None:
    """Compile every kernel for this CPU into the cache; returns at once without a cache.

    Parameters
    ----------
    progress
        Called now and then with the number of shares of the work begun and of all.
    """
    if _jit.cache_dir is None:  # other processes could not hand over what they compile
        return
    with tempfile.TemporaryDirectory() as claims:
        processes = [_start(claims) for _ in range(min(usable_cpus(), _PROCESSES))]
        try:
            count = len(_shares())
            while any(process.poll() is None for process in processes):
                progress(sum(1 for _ in Path(claims).iterdir()), count)
                time.sleep(_POLL_S)
        finally:
            for process in processes:
                process.kill()
                process.wait()
    failed = sum(process.returncode != 0 for process in processes)
    if not failed:
        _jit.note_all_cached()
    else:
        _log.warning(
            "%d of %d processes that compile kernels ended early; the rest compiles when it is "
            "first used",
            failed,
            len(processes),
        )
