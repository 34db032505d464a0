"""How long a chat takes to its prompt, in a real terminal, and until the model is open.

``python -m benchmarks.prompt_time [MODEL]``, five starts after one that nobody counts. The kernels
must have been compiled before: ``localv4 run Hi --max-tokens 1``.
"""

import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from localv4.settings import cache_folder
from tests.screens import Screen

_ROOT = Path(__file__).parents[1]
_STARTS = 5


def main() -> None:
    """Measure and print."""
    model = sys.argv[1:2]
    starts = [_start(model) for _ in range(_STARTS + 1)][1:]
    for what, seconds in zip(("prompt", "model open"), zip(*starts, strict=True), strict=True):
        middle = statistics.median(seconds)
        print(f"{what:<12} {middle:.2f} s ({min(seconds):.2f} to {max(seconds):.2f})")


def _start(model: list[str]) -> tuple[float, float]:
    arguments = ["-m", str(Path(model[0]).absolute())] if model else []
    with tempfile.TemporaryDirectory() as home:
        environment = {
            "PATH": os.defpath,
            "HOME": home,
            "PYTHONPATH": os.pathsep.join([str(_ROOT), *sys.path[1:]]),
            "LOCALV4_CACHE_DIR": str(cache_folder()),
        }
        command = [sys.executable, "-P", "-m", "localv4", "chat", *arguments]
        begun_s = time.perf_counter()
        with Screen(command, environment, Path(home), rows=40) as screen:
            screen.expect(">")
            prompt_s = time.perf_counter() - begun_s
            screen.expect("context ")
            open_s = time.perf_counter() - begun_s
            screen.type("\x04")
            screen.wait()
    return prompt_s, open_s


if __name__ == "__main__":
    main()
