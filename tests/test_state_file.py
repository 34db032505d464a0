"""State files: the round trip, what is not written, and saves that fail or are killed."""

import errno
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from localv4.errors import DamagedSession, InvalidInput, LocalV4Error, OutOfBudget
from localv4.state_file import open_state, state_bytes, write_state
from localv4.state_layout import ITEM_BYTES, PIECE_BYTES, Section, trailer_block
from tests import killed_saves
from tests.conftest import ROOT
from tests.state_files import HEAD, INTACT, arrays, assert_same


def partials(folder: Path) -> list[Path]:
    return list(folder.glob(".*"))


@pytest.fixture
def path(tmp_path) -> Path:
    path: Path = tmp_path / "a.session"
    write_state(path, HEAD, arrays())
    return path


def names() -> st.SearchStrategy[str]:
    return st.text(min_size=1, max_size=200).filter(str.isprintable)


def contents() -> st.SearchStrategy[dict[str, np.ndarray]]:
    dtypes = st.sampled_from([np.dtype(name) for name in ITEM_BYTES])
    shapes = hnp.array_shapes(min_dims=0, max_dims=4, min_side=0, max_side=6)
    return st.dictionaries(names(), hnp.arrays(dtypes, shapes), max_size=5)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(contents(), st.dictionaries(st.text(), st.text() | st.integers() | st.none()))
def test_round_trip(expected, head):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.session"
        n_bytes = write_state(path, head, expected)
        assert n_bytes == path.stat().st_size == state_bytes(head, expected)
        assert_same(path, head, expected)


def test_sections_of_many_pieces_and_any_strides(tmp_path):
    rng = np.random.default_rng(3)
    whole = rng.integers(0, 256, 2 * PIECE_BYTES + 5, np.uint8)
    expected = {"exact": whole[:PIECE_BYTES], "more": whole, "strided": whole[::3]}
    expected["more"].flags.writeable = False
    path = tmp_path / "big.session"
    write_state(path, {}, expected)
    assert_same(path, {}, expected)
    assert path.stat().st_mode & 0o777 == 0o600


def test_sections_are_read_into_given_memory(path):
    memory = np.empty((4, 3), np.float32)
    ids = np.empty(4, np.int64)
    with open_state(path) as file:
        file.read_into({"hidden": memory[1:3], "ids": ids})
    assert np.array_equal(memory[1:3], arrays()["hidden"])
    assert np.array_equal(ids, arrays()["ids"])


@pytest.mark.parametrize("wrong", [np.empty(6, np.float32), np.empty((2, 3), np.int32)])
def test_memory_of_another_model_is_refused(path, wrong):
    with open_state(path) as file:
        with pytest.raises(DamagedSession, match=INTACT):
            file.read_into({"hidden": wrong})
        with pytest.raises(DamagedSession, match="has no section 'other'"):
            file.read("other")


def test_memory_that_cannot_be_filled_is_refused(path):
    read_only = np.empty((2, 3), np.float32)
    read_only.flags.writeable = False
    with open_state(path) as file:
        for memory in (np.empty((3, 2), np.float32).T, read_only):
            with pytest.raises(InvalidInput, match="not contiguous and writable"):
                file.read_into({"hidden": memory})


@pytest.mark.parametrize(
    "array", [np.zeros(2, ">f4"), np.zeros(2, bool), np.zeros(2, "U3"), np.array([None])]
)
def test_other_dtypes_are_not_written(tmp_path, array):
    with pytest.raises(InvalidInput, match="little-endian"):
        write_state(tmp_path / "a.session", {}, {"x": array})
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["", "a\nb", "\udcff", "x" * 201])
def test_impossible_names_are_not_written(tmp_path, name):
    with pytest.raises(InvalidInput, match="impossible"):
        write_state(tmp_path / "a.session", {}, {name: np.zeros(2)})


@pytest.mark.parametrize("head", [{"x": float("nan")}, {"x": object()}, {"x": b""}])
def test_heads_that_are_not_json_are_not_written(tmp_path, head):
    with pytest.raises(InvalidInput, match="not JSON"):
        write_state(tmp_path / "a.session", head, {})


def test_a_head_larger_than_the_limit_is_not_written(tmp_path):
    with pytest.raises(InvalidInput, match="start a new session"):
        write_state(tmp_path / "a.session", {"x": "x" * 2**26}, {})


def test_a_trailer_has_a_limit():
    digests = ("0" * 64,) * 2**18
    with pytest.raises(InvalidInput, match="larger than a session file can hold"):
        trailer_block(b"", [Section("x", "uint8", (1,), 4096, 1, digests)])


def test_an_open_file_stays_what_it_was(path):
    with open_state(path) as file:
        write_state(path, {}, arrays(1))
        assert np.array_equal(file.read("hidden"), arrays()["hidden"])
        path.unlink()
        file.verify()


def test_short_reads_and_writes_are_continued(tmp_path, monkeypatch):
    pwrite, preadv = os.pwrite, os.preadv
    monkeypatch.setattr(os, "pwrite", lambda file, memory, at: pwrite(file, memory[:1000], at))
    monkeypatch.setattr(os, "preadv", lambda file, rows, at: preadv(file, [rows[0][:999]], at))
    expected = {"x": np.arange(5000, dtype=np.uint16)}
    write_state(tmp_path / "a.session", HEAD, expected)
    assert_same(tmp_path / "a.session", HEAD, expected)


# Saves that fail.


def failing(real: Callable[..., Any], at: int, error: BaseException) -> Callable[..., Any]:
    """The function, which raises at its call number `at`, counted from 0."""
    calls = iter(range(10**6))

    def call(*arguments: Any) -> Any:
        if next(calls) == at:
            raise error
        return real(*arguments)

    return call


ERRORS: dict[type[BaseException], BaseException] = {
    OutOfBudget: OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
    LocalV4Error: OSError(errno.EIO, os.strerror(errno.EIO)),
    KeyboardInterrupt: KeyboardInterrupt(),
}


@pytest.mark.parametrize("raised", ERRORS)
@pytest.mark.parametrize("at", range(5))
def test_a_save_that_fails_at_any_write_leaves_the_old_file(path, monkeypatch, raised, at):
    monkeypatch.setattr(os, "pwrite", failing(os.pwrite, at, ERRORS[raised]))
    with pytest.raises(raised):
        write_state(path, {"new": 1}, arrays(1))
    monkeypatch.undo()
    assert_same(path, HEAD, arrays())
    assert partials(path.parent) == []


def test_a_save_makes_as_many_writes_as_were_made_to_fail(path, monkeypatch):
    monkeypatch.setattr(os, "pwrite", failing(os.pwrite, 5, AssertionError()))
    write_state(path, {"new": 1}, arrays(1))
    assert_same(path, {"new": 1}, arrays(1))


@pytest.mark.parametrize("raised", ERRORS)
@pytest.mark.parametrize(("owner", "name"), [(os, "fsync"), (Path, "replace")])
def test_a_save_that_fails_at_its_end_leaves_the_old_file(path, monkeypatch, owner, name, raised):
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), 0, ERRORS[raised]))
    with pytest.raises(raised):
        write_state(path, {"new": 1}, arrays(1))
    monkeypatch.undo()
    assert_same(path, HEAD, arrays())
    assert partials(path.parent) == []


def test_a_disk_without_room_is_found_before_writing(path, monkeypatch):
    usage = shutil.disk_usage(path.parent)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=20_000))
    with pytest.raises(OutOfBudget, match=r"its disk has 19.5 KiB free; .* free some space"):
        write_state(path, {}, {"x": np.zeros(30_000, np.uint8)})
    assert_same(path, HEAD, arrays())


def test_a_file_larger_than_the_process_may_write(path):
    code = (
        "import sys, resource, numpy as np; from pathlib import Path;"
        "from localv4.errors import OutOfBudget; from localv4.state_file import write_state;"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (20_000_000, 20_000_000))\n"
        "try: write_state(Path(sys.argv[1]), {}, {'x': np.ones(30_000_000, np.uint8)})\n"
        "except OutOfBudget as error: print(error)"
    )
    result = subprocess.run(
        [sys.executable, "-c", code, str(path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert "no room (File too large)" in result.stdout
    assert result.stderr == ""
    assert_same(path, HEAD, arrays())
    assert partials(path.parent) == []


def test_a_missing_folder(tmp_path):
    with pytest.raises(LocalV4Error, match="No such file or directory"):
        write_state(tmp_path / "none" / "a.session", {}, {})


def test_a_folder_without_permission():
    # not below tmp_path, which another user cannot enter
    folder = Path(tempfile.mkdtemp())
    try:
        write_state(folder / "a.session", HEAD, arrays())
        folder.chmod(0o555)
        is_root = os.geteuid() == 0
        try:
            if is_root:  # who may write everywhere
                os.seteuid(65534)
            with pytest.raises(LocalV4Error, match="Permission denied"):
                write_state(folder / "a.session", {}, arrays(1))
        finally:
            if is_root:
                os.seteuid(0)
        assert_same(folder / "a.session", HEAD, arrays())
        assert partials(folder) == []
    finally:
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.slow
def test_a_killed_save_leaves_the_old_or_the_new(tmp_path):
    counts = killed_saves.kill(12, tmp_path)
    assert counts["first"] + counts["second"] == 12
    assert counts["partials"] > 0  # else no kill met a save


@pytest.mark.slow
def test_two_processes_that_save_the_same_session(tmp_path):
    path = tmp_path / "a.session"
    killed_saves.save(path, 0)
    writers = [killed_saves.start_writer(path, times=20) for _ in range(2)]
    while any(writer.poll() is None for writer in writers):
        killed_saves.saved(path)
    for writer in writers:
        assert writer.stdout is not None
        writer.stdout.close()
    assert [writer.returncode for writer in writers] == [0, 0]
    killed_saves.saved(path)
    assert partials(tmp_path) == []
