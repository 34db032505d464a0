"""Saves that are killed: ``python -m tests.killed_saves 200``, from the root of the checkout.

A process saves two contents in turn over the same file, and is killed at a random moment; what the
file then holds must be wholly one of the two. `test_state_file.py` does this a few times.
"""

import os
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from localv4.replacing import remove_abandoned
from localv4.state_file import open_state, write_state
from tests.conftest import ROOT

N_BYTES = 6 * 2**20
_LONGEST_S = 0.2  # several saves


def content(which: int) -> dict[str, np.ndarray]:
    """Two sections, of different sizes for the two contents."""
    rng = np.random.default_rng(which)
    sizes = {"entries": N_BYTES + which * 2**20, "states": 5000 - which}
    return {name: rng.integers(0, 256, size, np.uint8) for name, size in sizes.items()}


def save(path: Path, which: int) -> None:
    """Save one of the two contents."""
    write_state(path, {"which": which}, content(which))


def saved(path: Path) -> int:
    """Return which content a file holds; anything but one of the two raises."""
    with open_state(path) as file:
        which = file.head["which"]
        found = {name: file.read(name) for name in file.sections}
    expected = content(which)
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert np.array_equal(found[name], array)
    return int(which)


def kill(times: int, folder: Path) -> dict[str, int]:
    """Kill so many saves; returns how often which content was found, and partial files left."""
    path = folder / "a.session"
    save(path, 0)
    counts = {"first": 0, "second": 0, "partials": 0}
    for seed in range(times):
        writer = start_writer(path)
        time.sleep(random.Random(seed).uniform(0, _LONGEST_S))
        writer.kill()
        writer.wait()
        assert writer.stdout is not None
        writer.stdout.close()
        counts["second" if saved(path) else "first"] += 1
        for partial in folder.glob(".*.partial"):
            counts["partials"] += 1
            os.utime(partial, (0, 0))
        remove_abandoned(folder)
        assert list(folder.iterdir()) == [path]
    return counts


def start_writer(path: Path, times: int = 0) -> subprocess.Popen[bytes]:
    """Start a process that saves both contents so many times, 0 for ever; it has begun."""
    code = "import sys; from tests.killed_saves import write; write(*sys.argv[1:])"
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(path), str(times)], stdout=subprocess.PIPE, cwd=ROOT
    )
    assert writer.stdout is not None
    assert writer.stdout.readline() == b"saving\n"
    return writer


def write(path: str, times: str) -> None:
    """Save both contents in turn."""
    contents = [content(which) for which in range(2)]
    print("saving", flush=True)
    number = 0
    while number < int(times) or times == "0":
        write_state(Path(path), {"which": number % 2}, contents[number % 2])
        number += 1


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as name:
        counts = kill(int(sys.argv[1]), Path(name))
    print(f"old or new every time: {counts}")
