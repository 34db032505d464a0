"""A process never holds more memory of its own than its budget; sampled while it works."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest

from localv4.config import ModelConfig
from localv4.kernels.threads import choose_threads
from localv4.limits import resident
from localv4.memory import workspace_bytes
from localv4.synthetic import PRESETS, synthesise

pytestmark = pytest.mark.skipif(
    resident().file == 0, reason="this system does not tell anonymous memory from mapped files"
)

_WORK = """
import json, sys, threading
import numpy as np
import localv4
from localv4.limits import resident

peak, done = 0, threading.Event()

def sample():
    global peak
    while not done.wait(0.01):
        held = resident()
        peak = max(peak, held.anonymous + held.shared)

threading.Thread(target=sample, daemon=True).start()
with localv4.load(sys.argv[1], memory=int(sys.argv[2])) as engine:
    ids = np.random.default_rng(0).integers(0, engine.config.vocab_size, 3000)
    session = engine.session()
    for first, last in ((0, 1024), (1024, 1100), (1100, 2124), (2124, 2900)):
        session.prefill(ids[first:last])
        for token in ids[last : last + 10]:
            session.decode(int(token))
    mark = session.snapshot()
    session.restore(mark)
    other = engine.session()
    other.prefill(ids[:500])
    done.set()
    compared = engine.verify_experts()
    print(json.dumps({"peak": peak, "compared": compared, **vars(engine.plan)}))
"""

_KV_BYTES = 2**24


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return 130 MB of experts, which are most of the model."""
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    sizes = dataclasses.replace(
        PRESETS["flash"], hidden_size=512, moe_intermediate_size=512, n_routed_experts=64
    )
    synthesise(folder, "flash", 1, sizes=sizes, mtp=False)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.1, 0.6])
def test_a_process_stays_below_its_budget(folder: Path, share: float) -> None:
    def run(budget: int) -> dict[str, int]:
        command = [sys.executable, "-c", _WORK, str(folder), str(budget)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        result: dict[str, int] = json.loads(done.stdout)
        return result

    roomy = run(2**31)
    assert not roomy["streams"]
    # buffers of the smallest chunk: with those of a larger one the experts would fit
    config, threads = ModelConfig.from_folder(folder), choose_threads(None)
    workspace = sum(workspace_bytes(config, n_tokens, threads) for n_tokens in (1, 128))
    fixed = roomy["process"] + workspace + roomy["dense"] + roomy["head"]
    held = run(fixed + _KV_BYTES + round(share * roomy["experts"]))
    assert held["streams"]
    assert 0 < held["compared"] <= held["n_slots"]
    assert held["total"] <= held["budget"]
    assert held["peak"] <= held["budget"]
