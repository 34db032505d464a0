"""localv4: run DeepSeek-V4 on one machine's CPU.

::

    import localv4

    with localv4.load("path/to/checkpoint") as engine:
        for event in engine.generate([{"role": "user", "content": "Hello"}], max_tokens=64):
            print(event.text, end="")

Names are imported when they are first used, so that ``import localv4`` costs nothing: the
compiler behind the kernels alone takes more than a second.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localv4 import encoding, quant
    from localv4.config import ModelConfig
    from localv4.engine import Engine, load
    from localv4.errors import (
        ContextOverflow,
        DamagedCheckpoint,
        FormatError,
        InvalidInput,
        LocalV4Error,
        ModelNotFound,
        OutOfBudget,
        UnsupportedModel,
    )
    from localv4.events import Event
    from localv4.kernels._jit import kernels_are_cached
    from localv4.kernels.warm import warm_up
    from localv4.sampling import SamplingParams
    from localv4.session import Session, Snapshot

__all__ = [
    "ContextOverflow",
    "DamagedCheckpoint",
    "Engine",
    "Event",
    "FormatError",
    "InvalidInput",
    "LocalV4Error",
    "ModelConfig",
    "ModelNotFound",
    "OutOfBudget",
    "SamplingParams",
    "Session",
    "Snapshot",
    "UnsupportedModel",
    "__version__",
    "encoding",
    "kernels_are_cached",
    "load",
    "quant",
    "warm_up",
]

_HOMES = {
    "Engine": "engine",
    "Event": "events",
    "ModelConfig": "config",
    "kernels_are_cached": "kernels._jit",
    "SamplingParams": "sampling",
    "Session": "session",
    "Snapshot": "session",
    "load": "engine",
    "warm_up": "kernels.warm",
}
_MODULES = ("encoding", "quant")


def __getattr__(name: str) -> Any:
    """Import a public name when it is first asked for."""
    if name == "__version__":
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("localv4")
        except PackageNotFoundError:  # a bare checkout
            return "0.1.0"
    if name in _MODULES:
        return import_module(f"localv4.{name}")
    if name in __all__:
        return getattr(import_module(f"localv4.{_HOMES.get(name, 'errors')}"), name)
    raise AttributeError(f"module 'localv4' has no attribute {name!r}")
