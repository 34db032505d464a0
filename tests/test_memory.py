from pathlib import Path

import pytest

import localv4
from localv4.block import BlockPass
from localv4.checkpoint import Checkpoint
from localv4.errors import OutOfBudget
from localv4.memory import MAPPED_CHUNK, make_plan, workspace_bytes
from localv4.model import Model
from localv4.synthetic import Preset, synthesise
from tests.released import released_config

THREADS = 2


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["flash", "pro", "flash-base"])
def test_the_workspace_of_a_chunk_at_full_width(preset: Preset, tmp_path: Path):
    folder = tmp_path / preset
    synthesise(folder, preset, full_width=True, sparse=True, n_layers=4)
    checkpoint = Checkpoint.open(folder)
    model = Model.mapped(checkpoint, THREADS)
    assert {block.attention.ratio for block in model.blocks} >= {4, 128}
    for n_tokens, trained in (
        (MAPPED_CHUNK, False),
        (256, True),
        (MAPPED_CHUNK, True),
        (8192, True),
    ):
        workspace = model.workspaces.make(n_tokens, trained)
        for block in model.blocks:
            BlockPass(block, workspace)
        planned = workspace_bytes(checkpoint.config, n_tokens, THREADS)
        # eight rows of scores grow with the context, to a million tokens
        held = workspace.n_bytes + 8 * checkpoint.config.max_position_embeddings
        assert held <= planned <= 1.3 * held
    checkpoint.close()


GB = 10**9


@pytest.mark.parametrize(
    ("preset", "gigabytes", "streams", "chunk_tokens"),
    [
        ("flash", 12, True, 1024),
        ("flash", 24, True, 2048),
        ("flash", 64, True, 4096),
        ("flash", 120, True, 8192),
        ("pro", 80, True, 4096),
    ],
)
def test_the_chunk_grows_with_the_budget(
    preset: Preset,
    gigabytes: int,
    streams: bool,
    chunk_tokens: int,
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(localv4.memory, "available_bytes", lambda: 10**13)
    plan = make_plan(released_config(preset), gigabytes * GB, 16, trained=True, mtp=False)
    assert (plan.streams, plan.chunk_tokens) == (streams, chunk_tokens)
    assert plan.total <= plan.budget
    assert plan.workspace <= 0.1 * plan.budget


def test_the_chunk_of_weights_in_memory(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(localv4.memory, "available_bytes", lambda: 10**13)
    config = released_config("flash")
    plan = make_plan(config, 400 * GB, 16, trained=True, mtp=False)
    assert (plan.streams, plan.chunk_tokens) == (False, MAPPED_CHUNK)
    held = plan.dense + plan.head + plan.experts + plan.process
    # where a little is lacking for a whole chunk's buffers, smaller ones spare the streaming
    plan = make_plan(config, held + plan.workspace // 2, 16, trained=True, mtp=False)
    assert not plan.streams
    assert plan.chunk_tokens < MAPPED_CHUNK


def test_a_budget_for_the_smallest_chunk_only(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(localv4.memory, "available_bytes", lambda: 10**13)
    config = released_config("flash")
    with pytest.raises(OutOfBudget, match="needs at least") as caught:
        make_plan(config, GB, 16, trained=True, mtp=False)
    least = str(caught.value).split("at least ")[1].split(" GiB")[0]
    plan = make_plan(config, round((float(least) + 0.06) * 2**30), 16, trained=True, mtp=False)
    assert plan.chunk_tokens == 128
    assert plan.total <= plan.budget


def test_what_an_engine_plans_is_enough(tmp_path: Path):
    synthesise(tmp_path / "flash", "flash")
    with localv4.load(tmp_path / "flash", threads=THREADS, draft="mtp") as engine:
        session = engine.session()
        session.prefill([5] * MAPPED_CHUNK)
        session.prefill([5] * MAPPED_CHUNK)
        session.draft(int(session.decode(7).argmax()))
        workspaces = engine._model.workspaces
        used = [workspaces.get(n, True).n_bytes for n in (1, MAPPED_CHUNK)]
        assert 0.5 * engine.plan.workspace < sum(used) <= engine.plan.workspace
