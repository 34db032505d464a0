"""How every kernel is compiled: the one place that says numba's options.

Numba's own cache does not notice that a callee in another file changed, and writes beside
the sources, which may be read-only.  So the cache lies in the user's cache folder, in a
folder named after a hash of all kernel sources and of what else decides the machine code;
it is set before any decorator runs, which is why kernel modules import their decorators
from here.

The fast-math flags never include nnan or ninf: -inf is a value the kernels use (a score
that is not visible), and a NaN must reach the caller.
"""

import contextlib
import hashlib
import logging
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import llvmlite.binding as llvm
import numba
import numpy as np
from numba.extending import intrinsic as numba_intrinsic

from localv4.kernels import tiers
from localv4.settings import cache_folder

__all__ = [
    "cache_dir",
    "entry",
    "intrinsic",
    "kernels_are_cached",
    "leaf",
    "note_all_cached",
    "options",
    "reduction",
]

_Function = TypeVar("_Function", bound=Callable[..., Any])
_FASTMATH = {"contract", "nsz"}
_ALL = "all-compiled"
_log = logging.getLogger(__name__)


def _source_hash() -> str:
    """Hash of everything that decides the compiled code."""
    digest = hashlib.sha256()
    for source in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(source.name.encode() + b"\0" + source.read_bytes())
    # numba names cache entries after the source file, so two checkouts must not share them
    digest.update(str(Path(__file__).resolve().parent).encode())
    for part in (
        numba.__version__,
        llvmlite.__version__,
        np.__version__,
        platform.python_version(),
        llvm.get_host_cpu_name(),
        str(numba.config.CPU_NAME),
        str(numba.config.CPU_FEATURES),
        tiers.active(),
    ):
        digest.update(part.encode() + b"\0")
    return digest.hexdigest()[:16]


def _choose_cache_dir() -> Path | None:
    """Return the folder for compiled kernels, or None if it cannot be written."""
    folder = cache_folder() / f"kernels-{_source_hash()}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / ".writable"
        probe.touch()
        probe.unlink(missing_ok=True)
    except OSError as error:
        _log.warning("kernels are compiled anew in every run: cannot write %s: %s", folder, error)
        return None
    return folder


cache_dir: Path | None = _choose_cache_dir()
if cache_dir is not None:
    numba.config.CACHE_DIR = str(cache_dir)


def kernels_are_cached() -> bool:
    """Return whether all kernels of this version were compiled into the cache (`warm_up`)."""
    return cache_dir is not None and (cache_dir / _ALL).exists()


def note_all_cached() -> None:
    """Note that they were."""
    if cache_dir is not None:
        with contextlib.suppress(OSError):  # they are looked through once more then
            (cache_dir / _ALL).touch()


def options(**changes: Any) -> dict[str, Any]:
    """Return numba's options for a kernel."""
    return {"nogil": True, "fastmath": _FASTMATH, "error_model": "numpy", **changes}


leaves_have_wrappers = True
"""Set to False, before any kernel is imported, where Python will call no leaf."""


def _inner(function: _Function, **changes: Any) -> _Function:
    wrappers = {"no_cfunc_wrapper": True, "no_cpython_wrapper": not leaves_have_wrappers}
    return numba.njit(**options(**wrappers, **changes))(function)  # type: ignore[no-any-return]


def leaf(function: _Function) -> _Function:
    """Compile a function that runs on one thread and is called by kernels.

    Not cached by itself: the kernels are, and hold it.  So processes that compile different
    kernels at the same time (warm.py) never write the same file.
    """
    return _inner(function)


def reduction(function: _Function) -> _Function:
    """Compile a leaf whose sums LLVM may reorder once and for all (see sums.py)."""
    return _inner(function, fastmath=_FASTMATH | {"reassoc"})


def entry(function: Callable[..., Any], signature: Any) -> Any:
    """Compile a function that is called by its address, with words for arguments."""
    return numba.cfunc(signature, cache=cache_dir is not None, **options())(function)


def intrinsic(function: Callable[..., Any]) -> Any:
    """Declare a function that emits LLVM IR in place of its call."""
    return numba_intrinsic(function)
