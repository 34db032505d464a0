"""Every expert of every layout, read into a slot, is the expert of the checkpoint's map."""

import random
from pathlib import Path

import numpy as np
import pytest

import localv4.shard_files
from localv4.checkpoint import Checkpoint
from localv4.errors import DamagedCheckpoint
from localv4.expert_records import ExpertRecords
from localv4.shard_files import ShardFiles
from localv4.slots import PAGE, Slots
from localv4.synthetic import Layout, Preset
from localv4.weights import ExpertWeights, bind_expert
from tests.small_checkpoints import make_small, overwrite

CASES: list[tuple[Preset, Layout]] = [
    ("flash", "release"),
    ("flash", "scattered"),
    ("flash", "single"),
    ("flash-base", "release"),
    ("flash-base", "scattered"),
    ("pro", "scattered"),
]


def assert_same_expert(ours: ExpertWeights, expected: ExpertWeights) -> None:
    for name in ("w1", "w2", "w3"):
        our, other = getattr(ours, name), getattr(expected, name)
        assert (our.format, our.n_rows, our.n_columns) == (
            other.format,
            other.n_rows,
            other.n_columns,
        )
        assert our.weights.tobytes() == other.weights.tobytes()
        assert our.scales.tobytes() == other.scales.tobytes()


@pytest.fixture(params=CASES, ids=["-".join(case) for case in CASES])
def checkpoint(request: pytest.FixtureRequest, tmp_path: Path):
    preset, layout = request.param
    with Checkpoint.open(make_small(tmp_path / "model", preset, layout, ratios=(0, 4))) as opened:
        yield opened


@pytest.mark.parametrize("most", [PAGE, 2**22])
def test_every_expert_in_a_slot(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr(localv4.shard_files, "_PIECE_BYTES", most)
    records, config = ExpertRecords(checkpoint), checkpoint.config
    files = ShardFiles(checkpoint.path, records.shards)
    slots = Slots(2, records.slot_bytes)
    for layer in range(config.num_hidden_layers + 1):
        for expert in range(config.n_routed_experts):
            slots.memory[:] = random.Random(expert).randbytes(1)[0]
            pieces = records.pieces(layer, expert, slots.view(0))
            random.Random(layer).shuffle(pieces)  # they land in any order
            for piece in pieces:
                files.read(piece)
            ours = records.bind(layer, expert, slots.view(0))
            assert_same_expert(ours, bind_expert(checkpoint, layer, expert))
    # nothing beyond the slot was written to
    assert np.unique(slots.view(1)).size == 1
    files.close()


def test_the_slot_is_large_enough_for_any_place_in_the_file(checkpoint: Checkpoint) -> None:
    records, config = ExpertRecords(checkpoint), checkpoint.config
    for layer in range(config.num_hidden_layers + 1):
        for expert in range(config.n_routed_experts):
            runs = records.runs(layer, expert)
            assert sum(run.n_bytes for run in runs) == records.expert_bytes <= records.slot_bytes
            slot = np.zeros(records.slot_bytes, np.uint8)
            pieces = records.pieces(layer, expert, slot)
            assert sum(piece.needed for piece in pieces) >= records.expert_bytes
            # no two pieces share memory
            for piece in pieces:
                assert not piece.target.any()
                piece.target[:] = 1


def test_a_released_expert_is_two_runs(tmp_path: Path) -> None:
    with Checkpoint.open(make_small(tmp_path / "model")) as checkpoint:
        records = ExpertRecords(checkpoint)
        assert {len(records.runs(1, expert)) for expert in range(3)} == {2}
        assert records.slot_bytes % PAGE == 0


def test_a_scale_that_is_no_number_is_named(tmp_path: Path) -> None:
    folder = make_small(tmp_path / "model")
    name = "layers.1.ffn.experts.2.w3.scale"
    overwrite(folder, name, 5, b"\xff")
    with Checkpoint.open(folder) as checkpoint:
        records = ExpertRecords(checkpoint)
        files = ShardFiles(checkpoint.path, records.shards)
        slots = Slots(1, records.slot_bytes)
        for piece in records.pieces(1, 2, slots.view(0)):
            files.read(piece)
        with pytest.raises(DamagedCheckpoint, match=f"{name} holds NaN"):
            records.bind(1, 2, slots.view(0))
        files.close()
