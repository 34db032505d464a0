"""Downloads that are killed: ``python -m tests.killed_pulls 50``, from the root of the checkout.

A process pulls from a hub on this machine and is killed at a random moment, again and again, until
one of them comes to its end; the checkpoint must then have the right bytes, and nothing else may
lie beside it. `test_pull.py` ends downloads at chosen moments instead.
"""

import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from localv4.synthetic import synthesise
from tests.conftest import ROOT
from tests.loopback_hub import LoopbackHub

REPO = "someone/model"
_LONGEST_S = 4.0  # from the start of the process; one that is not killed takes longer
_PIECE_PAUSE_S = 0.04


def pull(hub: LoopbackHub, home: Path, kill_after_s: float | None) -> bool:
    """Pull, or be killed; returns whether it came to its end."""
    process = subprocess.Popen(
        [sys.executable, "-m", "localv4", "pull", REPO, "-y", "-q"],
        env=hub.environment(home),
        cwd=ROOT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
    )
    if kill_after_s is not None:
        time.sleep(kill_after_s)
        process.kill()
    code = process.wait()
    assert code in (0, -signal.SIGKILL), code
    return code == 0


def check(hub: LoopbackHub, home: Path, model: Path) -> None:
    """Hold a finished checkpoint against its source; nothing unfinished may be left."""
    (ref,) = home.rglob("refs/*")
    snapshot = ref.parents[1] / "snapshots" / ref.read_text()
    names = {path.name for path in snapshot.iterdir()}
    for name in names:
        assert (snapshot / name).read_bytes() == (model / name).read_bytes(), name
    blobs = [path.name for path in (ref.parents[1] / "blobs").iterdir()]
    assert len(blobs) == len(names), blobs


def kill(times: int, folder: Path) -> dict[str, int]:
    """Kill so many downloads; returns how many were finished, and bytes sent for one's size."""
    model = folder / "model"
    synthesise(model, compress_ratios=(0,))
    counts = {"killed": 0, "finished": 0, "percent_sent": 0}
    n_bytes = 0
    seeds = random.Random(0)
    with LoopbackHub() as hub:
        hub.piece_pause_s = _PIECE_PAUSE_S
        hub.add(REPO, model)
        while counts["killed"] < times:
            home = folder / f"home-{counts['finished']}"
            while counts["killed"] < times and not pull(hub, home, seeds.uniform(0.5, _LONGEST_S)):
                counts["killed"] += 1
            pull(hub, home, None)
            check(hub, home, model)
            counts["finished"] += 1
            n_bytes += sum(path.stat().st_size for path in home.rglob("blobs/*"))
        counts["percent_sent"] = round(100 * hub.content_bytes / n_bytes)
    return counts


if __name__ == "__main__":
    os.environ.pop("HF_HUB_OFFLINE", None)
    with tempfile.TemporaryDirectory() as name:
        print(f"right bytes every time: {kill(int(sys.argv[1]), Path(name))}")
