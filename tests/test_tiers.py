"""The whole engine in a tier that is not this CPU's best: same bytes for splits, right logits."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import localv4
from localv4.kernels import tiers
from tests.golden_models import golden_models

ROOT = Path(__file__).parents[1]
SCRIPT = """
import sys
import numpy as np
import localv4
from localv4.kernels import tiers

folder, target = sys.argv[1:]
with localv4.load(folder, numerics="float32", threads=2) as engine:
    ids = np.arange(40) % 200 + 3
    whole = engine.session().prefill(ids, logits="all")
    session = engine.session()
    parts = [session.prefill(part, logits="all") for part in np.split(ids, [1, 3, 8, 26])]
    assert np.concatenate(parts).tobytes() == whole.tobytes()
with localv4.load(folder, threads=2) as engine:
    trained = engine.session().prefill(ids, logits="all")
    session = engine.session()
    parts = [session.prefill(part, logits="all") for part in np.split(ids, [1, 3, 8, 26])]
    assert np.concatenate(parts).tobytes() == trained.tobytes()
    assert np.isfinite(trained).all()
np.save(target, whole)
print(tiers.active())
"""


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["generic"])
def test_the_engine_runs_in_a_lower_tier(tier: str, tmp_path: Path) -> None:
    assert tier in tiers.available()
    folder = next(iter(golden_models())).checkpoint
    target = tmp_path / "logits.npy"
    # a cache of its own, kept beside those of the test processes
    cache = ROOT / ".cache" / "tests" / tier
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(folder), str(target)],
        cwd=ROOT,
        env={**os.environ, "LOCALV4_TIER": tier, "LOCALV4_CACHE_DIR": str(cache)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == [tier]
    with localv4.load(folder, numerics="float32", threads=2) as engine:
        ours = engine.session().prefill(np.arange(40) % 200 + 3, logits="all")
    # both are within 1e-4 of the same goldens
    assert np.abs(np.load(target) - ours).max() < 1e-4
