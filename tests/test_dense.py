"""What every token needs: the bytes of the file, waited for, and errors instead of silence."""

import os
import threading
import weakref
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import localv4.dense
import localv4.reads
from localv4.checkpoint import Checkpoint
from localv4.dense import DenseWeights, MappedWeights, dense_bytes, dense_names
from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.reads import join_for
from localv4.shard_files import Piece, ShardFiles
from localv4.slots import PAGE
from tests.small_checkpoints import make_small

PATIENCE_S = 20.0


@pytest.fixture(scope="module", params=["release", "scattered", "single"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_small(
        tmp_path_factory.mktemp("dense") / "model", layout=request.param, ratios=(0, 4)
    )


@pytest.fixture
def checkpoint(folder: Path) -> Iterator[Checkpoint]:
    with Checkpoint.open(folder) as opened:
        yield opened


def open_files(checkpoint: Checkpoint, kind: type[ShardFiles] = ShardFiles) -> ShardFiles:
    return kind(checkpoint.path, sorted({info.shard for info in checkpoint.tensors.values()}))


class HeldFiles(ShardFiles):
    """Files whose reads wait until they are let through."""

    def __init__(self, folder: Path, names: list[str]) -> None:
        super().__init__(folder, names)
        self.gate = threading.Event()
        self.begun = threading.Event()

    def read(self, piece: Piece) -> None:
        self.begun.set()
        assert self.gate.wait(PATIENCE_S)
        super().read(piece)

    def read_small(self, *place: object) -> None:
        self.begun.set()
        assert self.gate.wait(PATIENCE_S)
        super().read_small(*place)  # type: ignore[arg-type]


@pytest.mark.parametrize("bounce_bytes", [PAGE, 3 * PAGE, 2**24])
def test_every_matrix_is_that_of_the_map(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, bounce_bytes: int
) -> None:
    monkeypatch.setattr(localv4.dense, "_BOUNCE_BYTES", bounce_bytes)
    groups = dense_names(checkpoint.tensors, checkpoint.config, mtp=True)
    weights = DenseWeights(checkpoint, open_files(checkpoint), groups)
    weights.start()
    for group, names in enumerate(groups):
        weights.wait(group)
        for name in names:
            ours = weights.view(name)
            assert ours.ctypes.data % 64 == 0
            assert ours.tobytes() == checkpoint.view(name).tobytes()
            assert ours.dtype == checkpoint.view(name).dtype
    weights.wait(-1)
    assert weights.close()


def test_what_is_kept_is_every_large_matrix_but_experts_and_the_embedding(
    checkpoint: Checkpoint,
) -> None:
    with_mtp, without = (
        dense_names(checkpoint.tensors, checkpoint.config, mtp=True),
        dense_names(checkpoint.tensors, checkpoint.config, mtp=False),
    )
    assert len(with_mtp) == len(without) + 1 == checkpoint.config.num_hidden_layers + 2
    kept = {name for names in with_mtp for name in names}
    assert sum(len(names) for names in with_mtp) == len(kept)
    left = checkpoint.tensors.keys() - kept
    assert "head.weight" in with_mtp[-1]
    assert all(name.startswith("layers.1.") for name in with_mtp[1])
    assert all(name.startswith("mtp.0.") for name in with_mtp[2])
    assert {name for names in without for name in names} == kept - set(with_mtp[2])
    # 64 KiB is more than any table or scale here, and less than any weight that is left
    large = {name for name in left if checkpoint.tensors[name].nbytes >= 2**15}
    assert all(".experts." in name or name == "embed.weight" for name in large)
    assert dense_bytes(checkpoint, with_mtp) >= sum(
        checkpoint.tensors[name].nbytes for name in kept
    )


def test_waiting_is_for_one_group_and_nothing_is_there_before(checkpoint: Checkpoint) -> None:
    groups = dense_names(checkpoint.tensors, checkpoint.config, mtp=False)
    files = open_files(checkpoint, HeldFiles)
    assert isinstance(files, HeldFiles)
    weights = DenseWeights(checkpoint, files, groups)
    weights.start()
    waited: list[str] = []

    def wait() -> None:
        weights.wait(1)
        waited.extend(name for name in groups[1] if not weights.view(name).any())
        waited.append("done")

    thread = threading.Thread(target=wait)
    thread.start()
    assert files.begun.wait(PATIENCE_S)
    assert not waited
    assert not weights.view("head.weight").any()
    files.gate.set()
    thread.join(PATIENCE_S)
    assert waited == ["done"]
    assert weights.close()


def test_rows_of_the_embedding(checkpoint: Checkpoint) -> None:
    weights = DenseWeights(
        checkpoint,
        open_files(checkpoint),
        dense_names(checkpoint.tensors, checkpoint.config, mtp=False),
    )
    ids = np.array([5, 0, 383, 5, 5, 1])
    for source in (weights, MappedWeights(checkpoint)):
        rows = source.rows("embed.weight", ids)
        assert rows.tobytes() == checkpoint.view("embed.weight")[ids].tobytes()
        assert rows.dtype == np.uint16
    assert weights.close()


def test_small_tensors_stay_where_the_map_has_them(checkpoint: Checkpoint) -> None:
    weights = DenseWeights(
        checkpoint,
        open_files(checkpoint),
        dense_names(checkpoint.tensors, checkpoint.config, mtp=True),
    )
    mapped = MappedWeights(checkpoint)
    assert weights.config is mapped.config is checkpoint.config
    assert weights.tensors is mapped.tensors
    assert weights.scale_dtype == mapped.scale_dtype
    for source in (weights, mapped):
        source.check_finite("norm.weight")
        source.wait(-1) if source is mapped else None
        assert source.view("norm.weight").tobytes() == checkpoint.view("norm.weight").tobytes()


@pytest.fixture
def copied(tmp_path: Path) -> Iterator[Checkpoint]:
    with Checkpoint.open(make_small(tmp_path / "model", ratios=(0, 4))) as opened:
        yield opened


def test_a_shard_that_was_cut_short_is_an_error_whenever_it_is_waited_for(
    copied: Checkpoint,
) -> None:
    weights = DenseWeights(
        copied, open_files(copied), dense_names(copied.tensors, copied.config, mtp=False)
    )
    info = copied.tensors["head.weight"]
    os.truncate(copied.path / info.shard, info.offset + info.nbytes - 1)
    weights.start()
    for _ in range(2):
        with pytest.raises(DamagedCheckpoint, match="cut short"):
            weights.wait(-1)
    assert weights.close()


def test_an_error_does_not_hold_what_it_passed_through(copied: Checkpoint) -> None:
    class Passed:
        pass

    weights = DenseWeights(
        copied, open_files(copied), dense_names(copied.tensors, copied.config, mtp=False)
    )
    os.truncate(copied.path / copied.tensors["head.weight"].shard, 10)
    weights.start()

    def use() -> "weakref.ref[Passed]":
        passed = Passed()
        with pytest.raises(DamagedCheckpoint):
            weights.wait(-1)
        return weakref.ref(passed)

    assert use()() is None
    assert weights.close()


def test_rows_that_cannot_be_read_are_an_error(copied: Checkpoint) -> None:
    weights = DenseWeights(
        copied, open_files(copied), dense_names(copied.tensors, copied.config, mtp=False)
    )
    os.truncate(copied.path / copied.tensors["embed.weight"].shard, 1000)
    with pytest.raises(DamagedCheckpoint, match="cut short"):
        weights.rows("embed.weight", np.array([3]))


def test_no_memory_for_what_is_read_is_an_error(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = DenseWeights(
        checkpoint,
        open_files(checkpoint),
        dense_names(checkpoint.tensors, checkpoint.config, mtp=False),
    )

    def refuse(n_bytes: int) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(localv4.dense, "private_memory", refuse)
    weights.start()
    with pytest.raises(OSError, match="Cannot allocate"):
        weights.wait(0)


def test_the_reading_thread_waits_for_the_disk_and_never_the_caller(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A wait in the system's call would keep Ctrl-C from being seen."""
    threads = set[str]()
    real = os.preadv

    def preadv(*rest: object) -> int:
        threads.add(threading.current_thread().name)
        return real(*rest)  # type: ignore[arg-type]

    monkeypatch.setattr(os, "preadv", preadv)
    weights = DenseWeights(
        checkpoint,
        open_files(checkpoint),
        dense_names(checkpoint.tensors, checkpoint.config, mtp=False),
    )
    weights.start()
    weights.wait(-1)
    weights.rows("embed.weight", np.arange(9))
    assert weights.close()
    assert threads <= {"localv4-dense-0", "localv4-dense-1", "localv4-rows"}
    assert "localv4-rows" in threads


def test_closing_while_the_disk_holds_a_thread(
    checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(localv4.dense, "CLOSING_S", 0.05)
    files = open_files(checkpoint, HeldFiles)
    assert isinstance(files, HeldFiles)
    weights = DenseWeights(
        checkpoint, files, dense_names(checkpoint.tensors, checkpoint.config, mtp=False)
    )
    weights.start()
    assert files.begun.wait(PATIENCE_S)
    assert not weights.close()
    with pytest.raises(LocalV4Error, match="closed"):
        weights.wait(-1)
    files.gate.set()
    assert join_for(weights._threads, PATIENCE_S)
    assert not weights.view("head.weight").any()  # given up, not read to the end
    assert weights.close()


def test_closing_before_the_start(checkpoint: Checkpoint) -> None:
    files = open_files(checkpoint)
    assert DenseWeights(
        checkpoint, files, dense_names(checkpoint.tensors, checkpoint.config, mtp=False)
    ).close()
