from pathlib import Path

import pytest

import localv4
from localv4.block import BlockPass
from localv4.checkpoint import Checkpoint
from localv4.memory import workspace_bytes
from localv4.model import Model
from localv4.session import CHUNK_TOKENS
from localv4.synthetic import Preset, synthesise

THREADS = 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["flash", "pro", "flash-base"])
def test_the_workspace_of_a_chunk_at_full_width(preset: Preset, tmp_path: Path):
    folder = tmp_path / preset
    synthesise(folder, preset, full_width=True, sparse=True, n_layers=4)
    checkpoint = Checkpoint.open(folder)
    model = Model.mapped(checkpoint, THREADS)
    assert {block.attention.ratio for block in model.blocks} >= {4, 128}
    for trained in (False, True):
        workspace = model.workspaces.make(CHUNK_TOKENS, trained)
        for block in model.blocks:
            BlockPass(block, workspace)
        planned = workspace_bytes(checkpoint.config, CHUNK_TOKENS, THREADS)
        assert workspace.n_bytes <= planned <= 1.3 * workspace.n_bytes
    checkpoint.close()


def test_what_an_engine_plans_is_enough(tmp_path: Path):
    synthesise(tmp_path / "flash", "flash")
    with localv4.load(tmp_path / "flash", threads=THREADS, draft="mtp") as engine:
        session = engine.session()
        session.prefill([5] * CHUNK_TOKENS)
        session.prefill([5] * CHUNK_TOKENS)
        session.draft(int(session.decode(7).argmax()))
        workspaces = engine._model.workspaces
        used = [workspaces.get(n, True).n_bytes for n in (1, CHUNK_TOKENS)]
        assert 0.5 * engine.plan.workspace < sum(used) <= engine.plan.workspace
