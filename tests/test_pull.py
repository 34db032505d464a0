"""Downloads: resumed anywhere, checked, shared with other processes, in the hub's own layout."""

import errno
import os
import threading
import time
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_hub_download, scan_cache_dir, snapshot_download

from localv4 import downloads
from localv4 import hub as hub_client
from localv4 import pull as pull_module
from localv4.downloads import Patience
from localv4.errors import DamagedCheckpoint, DownloadFailed, LocalV4Error, OutOfBudget
from localv4.files_state import FilesState
from localv4.hub import describe, lock
from localv4.hub_cache import find_repo
from localv4.pull import pull
from localv4.pull_plan import PullPlan, make_plan, partial_of
from localv4.synthetic import synthesise
from tests.loopback_hub import Fault, LoopbackHub

REPO = "someone/model"
HASTE = Patience(tries=2, wait_s=0.01, longest_s=0.05)


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    folder: Path = tmp_path_factory.mktemp("model") / "model"
    synthesise(folder, compress_ratios=(0,))
    return folder


@pytest.fixture
def hub(monkeypatch, tmp_path, model):
    monkeypatch.setattr(hub_client, "_WAITS_S", (0.0, 0.0))
    with LoopbackHub() as hub:
        hub.use(monkeypatch, tmp_path / "home")
        hub.add(REPO, model)
        yield hub


def planned(cache, draft=False) -> PullPlan:
    return make_plan(describe(REPO), cache, draft)


def pulled(cache, draft=False, **rest) -> Path:
    return pull(planned(cache, draft), patience=HASTE, **rest)


def shard_bytes(hub) -> int:
    """Bytes of weights that were sent: config and index are read for every plan."""
    return sum(request.n_bytes for request in hub.contents() if request.at_store)


def weights(plan: PullPlan) -> int:
    return sum(file.remote.n_bytes for file in plan.files if file.is_shard)


def assert_right(plan: PullPlan, model: Path) -> None:
    """Hold everything in the cache against the source; nothing else may be there."""
    for file in plan.files:
        link = plan.snapshot / file.remote.path
        assert link.read_bytes() == (model / file.remote.path).read_bytes()
        assert str(link.readlink()) == f"../../blobs/{file.remote.checksum}"
    blobs = {file.name for file in (plan.folder / "blobs").iterdir()}
    assert blobs == {file.remote.checksum for file in plan.files}
    assert len(list(plan.snapshot.iterdir())) == len(plan.files)
    repo = find_repo(plan.cache, REPO)
    assert repo is not None
    assert dict(repo.refs) == {"main": plan.repo.commit}


def shard_of(plan: PullPlan) -> str:
    """The largest shard."""
    return max((file.remote for file in plan.files), key=lambda file: file.n_bytes).path


def test_a_whole_download(hub, cache, model):
    plan = planned(cache)
    states: list[FilesState] = []
    assert pull(plan, states.append) == plan.snapshot
    assert_right(plan, model)
    last = states[-1]
    assert (last.n_done, last.here_bytes) == (last.n_files, last.n_bytes) == (9 - 1, plan.n_bytes)
    # config and index were read for the plan, and are not fetched again
    assert sorted(request.file for request in hub.contents()) == sorted(
        file.remote.path for file in plan.files
    )
    assert hub.content_bytes == plan.n_bytes


def test_nothing_is_fetched_twice(hub, cache, model):
    pulled(cache)
    n_bytes = hub.content_bytes
    plan = planned(cache)
    assert plan.is_complete
    pull(plan)
    assert hub.content_bytes == n_bytes
    with_draft = planned(cache, draft=True)
    assert 0 < with_draft.fetch_bytes == with_draft.n_bytes - plan.n_bytes
    pull(with_draft)
    assert hub.content_bytes == with_draft.n_bytes
    assert_right(with_draft, model)


def test_the_real_client_finds_it_complete(hub, cache, model):
    snapshot = pulled(cache)
    n_requests = len(hub.requests)
    assert snapshot_download(REPO, local_files_only=True) == str(snapshot)
    commit = planned(cache).repo.commit
    for file in planned(cache).files:
        path = hf_hub_download(REPO, file.remote.path, revision=commit)
        assert Path(path) == snapshot / file.remote.path
    assert not any(r.file for r in hub.requests[n_requests:])
    found = scan_cache_dir(cache)
    assert found.warnings == []
    (repo,) = found.repos
    assert (repo.repo_id, repo.size_on_disk) == (REPO, planned(cache).n_bytes)
    assert set(repo.refs) == {"main"}


def test_what_the_real_client_fetched_is_found(hub, cache, model):
    snapshot = snapshot_download(REPO)
    n_bytes = hub.content_bytes
    plan = planned(cache, draft=True)
    assert plan.is_complete
    assert str(pull(plan)) == snapshot
    assert hub.content_bytes == n_bytes


def test_the_real_client_goes_on_with_ours(hub, cache, model):
    plan = planned(cache)
    break_after(hub, plan, 3)
    snapshot_download(REPO)
    for file in planned(cache, draft=True).files:
        path = plan.snapshot / file.remote.path
        assert path.read_bytes() == (model / file.remote.path).read_bytes()


class EndedError(Exception):
    pass


def break_after(hub, plan: PullPlan, n_done: int) -> None:
    """Pull, one file at a time, and end it when so many are done."""

    def watch(state):
        if state.n_done >= n_done:
            raise EndedError

    with pytest.raises(EndedError):
        pull(plan, watch, n_workers=1, patience=HASTE)


def test_interrupted_at_every_file_boundary(hub, cache, model, monkeypatch):
    """Each download does one more file, and ends before the next."""
    plan = planned(cache)
    real = downloads.fetch_blob

    def end_at(path):
        def fetch(repo, file, *rest):
            if file.path == path:
                raise EndedError
            real(repo, file, *rest)

        return fetch

    for n_done in range(len(plan.files)):
        monkeypatch.setattr(pull_module, "fetch_blob", end_at(plan.files[n_done].remote.path))
        with pytest.raises(EndedError):
            pull(planned(cache), n_workers=1, patience=HASTE)
        assert sum(file.is_whole for file in planned(cache).files) == n_done
        assert not (plan.folder / "refs").exists()
    monkeypatch.setattr(pull_module, "fetch_blob", real)
    pulled(cache)
    assert_right(plan, model)
    assert shard_bytes(hub) == weights(plan)


@pytest.mark.parametrize("n_bytes", [1, 50_000, -1])
def test_interrupted_inside_a_file(hub, cache, model, monkeypatch, n_bytes):
    """Ended by the reader while the rest of a shard is awaited; only the rest is fetched then."""
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 1.0)
    plan = planned(cache)
    name = shard_of(plan)
    size = (model / name).stat().st_size
    n_sent = n_bytes % size
    hub.faults[name] = Fault(stall_after=n_sent)
    others = plan.n_bytes - size

    def watch(state):
        if (state.n_done, state.here_bytes) == (state.n_files - 1, others + n_sent):
            raise EndedError

    with pytest.raises(EndedError):
        pull(plan, watch, patience=HASTE)
    hub.faults.clear()
    (left,) = [file for file in planned(cache).files if not file.is_whole]
    assert (left.remote.path, left.here_bytes, left.state) == (name, n_sent, "partial")
    pulled(cache)
    assert_right(plan, model)
    first, second = hub.contents(name)
    assert (first.n_bytes, second.start, second.n_bytes) == (n_sent, n_sent, size - n_sent)
    assert shard_bytes(hub) == weights(plan)


def test_ended_while_bytes_arrive(hub, cache, model):
    """Nothing goes on behind the caller's back."""
    hub.piece_pause_s = 0.05

    def watch(state):
        if state.received_bytes:
            raise EndedError

    plan = planned(cache)
    with pytest.raises(EndedError):
        pull(plan, watch, patience=HASTE)
    assert not [one for one in threading.enumerate() if one.name.startswith("pull-")]
    assert planned(cache).here_bytes < plan.n_bytes


def test_a_partial_that_is_whole_is_only_checked(hub, cache, model):
    plan = planned(cache)
    file = next(file.remote for file in plan.files if file.is_shard)
    partial = partial_of(plan.folder / "blobs" / file.checksum)
    partial.parent.mkdir(parents=True)
    partial.write_bytes((model / file.path).read_bytes())
    assert not planned(cache).is_complete
    pulled(cache)
    assert_right(plan, model)
    assert hub.contents(file.path) == []


@pytest.mark.parametrize("surplus", [-5, 0, 5])
def test_a_partial_with_wrong_bytes_is_begun_anew(hub, cache, model, surplus):
    plan = planned(cache)
    file = next(file.remote for file in plan.files if file.is_shard)
    partial = partial_of(plan.folder / "blobs" / file.checksum)
    partial.parent.mkdir(parents=True)
    partial.write_bytes(bytes(file.n_bytes + surplus))
    pulled(cache)
    assert_right(plan, model)


def test_a_blob_of_the_wrong_length_is_replaced(hub, cache, model):
    pulled(cache)
    plan = planned(cache)
    blob = plan.snapshot / shard_of(plan)
    os.truncate(blob, 100)
    assert not planned(cache).is_complete
    pulled(cache)
    assert_right(plan, model)


def test_wrong_bytes_once_are_fetched_again(hub, cache, model):
    plan = planned(cache)
    name = shard_of(plan)
    hub.faults[name] = Fault(times=1, content=bytes((model / name).stat().st_size))
    pulled(cache)
    assert_right(plan, model)
    assert len(hub.contents(name)) == 2


def failure(cache, kind: type[LocalV4Error] = DownloadFailed) -> str:
    with pytest.raises(kind) as caught:
        pulled(cache)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_wrong_bytes_for_ever_are_refused(hub, cache, model):
    plan = planned(cache)
    name = shard_of(plan)
    hub.faults[name] = Fault(content=bytes((model / name).stat().st_size))
    said = failure(cache, DamagedCheckpoint)
    checksum = next(f.remote.checksum for f in plan.files if f.remote.path == name)
    assert name in said
    assert checksum in said
    assert not list((plan.folder / "blobs").glob(f"{checksum}*"))
    assert not (plan.folder / "refs").exists()
    hub.faults.clear()
    pulled(cache)
    assert_right(plan, model)


@pytest.mark.parametrize("surplus", [-1000, 1000])
def test_a_file_of_another_length_than_listed(hub, cache, model, surplus):
    plan = planned(cache)
    name = shard_of(plan)
    hub.faults[name] = Fault(content=bytes((model / name).stat().st_size + surplus))
    failure(cache, DamagedCheckpoint)
    hub.faults.clear()
    pulled(cache)
    assert_right(plan, model)


def test_a_connection_broken_again_and_again(hub, cache, model):
    plan = planned(cache)
    name = shard_of(plan)
    hub.faults[name] = Fault(break_after=100_000)
    pulled(cache)
    assert_right(plan, model)
    # every break brought bytes, and none was asked for again
    assert len(hub.contents(name)) > HASTE.tries + 1
    assert shard_bytes(hub) == weights(plan)


def test_a_connection_without_a_byte_is_given_up(hub, cache, model):
    plan = planned(cache)
    name = shard_of(plan)
    hub.faults[name] = Fault(times=1, break_after=100_000)
    partial = Fault(break_after=0)
    hub.faults[name].before = lambda: hub.faults.__setitem__(name, partial)
    said = failure(cache)
    assert "97.7 KiB" in said
    assert "same command" in said
    assert len([r for r in hub.requests if r.at_store and r.file == name]) == HASTE.tries + 2


def test_a_server_that_ignores_ranges(hub, cache, model):
    plan = planned(cache)
    name = shard_of(plan)
    size = (model / name).stat().st_size
    hub.faults[name] = Fault(times=1, break_after=100_000)
    hub.faults[name].before = lambda: hub.faults.__setitem__(name, Fault(ignores_range=True))
    pulled(cache)
    assert_right(plan, model)
    assert [request.n_bytes for request in hub.contents(name)] == [100_000, size]


def test_a_range_that_begins_elsewhere_is_refused(hub, cache, model):
    name = shard_of(planned(cache))
    hub.faults[name] = Fault(times=1, break_after=100_000)
    hub.faults[name].before = lambda: hub.faults.__setitem__(name, Fault(begins_at=99_999))
    assert "other bytes than asked for" in failure(cache)


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_is_busy_for_a_while(hub, cache, model, status):
    plan = planned(cache)
    name = shard_of(plan)
    hub.faults[name] = Fault(times=2, status=status, headers={"Retry-After": "0"})
    pulled(cache)
    assert_right(plan, model)


def test_a_hub_that_forbids_a_file(hub, cache, model):
    name = shard_of(planned(cache))
    hub.faults[name] = Fault(status=403)
    assert "may not read" in failure(cache)


def test_the_first_error_ends_it_though_others_wait(hub, cache, model):
    plan = planned(cache)
    first, *_, last = [file.remote.path for file in plan.files if file.is_shard]

    def await_first() -> None:
        while not hub.contents(first):
            time.sleep(0.01)

    hub.faults[first] = Fault(stall_after=1_000)
    hub.faults[last] = Fault(status=403, before=await_first)
    failure(cache)
    assert [one for one in threading.enumerate() if one.name.startswith("pull-")]


def test_a_stall_is_a_broken_connection(hub, cache, model, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_DOWNLOAD_TIMEOUT", 0.2)
    plan = planned(cache)
    hub.faults[shard_of(plan)] = Fault(times=1, stall_after=10_000)
    pulled(cache)
    assert_right(plan, model)
    assert shard_bytes(hub) == weights(plan)


def test_the_store_never_sees_the_token(hub, cache, model, monkeypatch):
    hub.add("someone/gated", model, gated=True, token="hf_good")
    monkeypatch.setenv("HF_TOKEN", "hf_good")
    pull(make_plan(describe("someone/gated"), cache), patience=HASTE)
    tokens = {(request.at_store, request.token) for request in hub.requests}
    assert tokens == {(False, "hf_good"), (True, None)}


def test_main_moves_meanwhile(hub, cache, model, tmp_path):
    """What was planned is fetched; the name leads to it."""
    plan = planned(cache)
    (tmp_path / "later").mkdir()
    (tmp_path / "later/config.json").write_text("{}")
    hub.faults[shard_of(plan)] = Fault(before=lambda: hub.add(REPO, tmp_path / "later"))
    pull(plan, patience=HASTE)
    assert_right(plan, model)


def test_main_leads_to_the_old_commit_until_the_new_one_is_whole(hub, cache, model, tmp_path):
    pulled(cache)
    old = planned(cache).repo.commit
    newer = tmp_path / "newer"
    newer.mkdir()
    for file in model.iterdir():
        (newer / file.name).symlink_to(file)
    (newer / "generation_config.json").unlink()
    (newer / "generation_config.json").write_text('{"temperature": 0.5}')
    hub.add(REPO, newer)
    hub.faults["generation_config.json"] = Fault(status=403)
    failure(cache)
    repo = find_repo(cache, REPO)
    assert repo is not None
    assert (repo.refs["main"], repo.best_commit()) == (old, old)
    hub.faults.clear()
    n_bytes = hub.content_bytes
    snapshot = pulled(cache)
    assert hub.content_bytes == n_bytes + len('{"temperature": 0.5}')
    repo = find_repo(cache, REPO)
    assert repo is not None
    assert repo.refs["main"] == snapshot.name != old


def test_two_pulls_at_once_share_the_work(hub, cache, model):
    hub.piece_pause_s = 0.002
    plan = planned(cache)
    before = hub.content_bytes
    errors = []

    def run():
        try:
            pull(plan, n_workers=2, patience=HASTE)
        except LocalV4Error as error:
            errors.append(error)

    both = [threading.Thread(target=run) for _ in range(2)]
    for one in both:
        one.start()
    for one in both:
        one.join()
    assert errors == []
    assert_right(plan, model)
    assert hub.content_bytes - before == plan.fetch_bytes - sum(map(len, plan.contents.values()))


def test_a_file_that_another_process_fetches_is_waited_for(hub, cache, model, monkeypatch):
    monkeypatch.setattr(pull_module, "_LOCKED_S", 0.02)
    plan = planned(cache)
    file = max((file.remote for file in plan.files), key=lambda file: file.n_bytes)
    states: list[FilesState] = []
    with lock(cache / ".locks" / plan.folder.name / f"{file.checksum}.lock") as is_ours:
        assert is_ours

        def watch(state):
            states.append(state)
            if state.n_elsewhere:
                raise EndedError

        with pytest.raises(EndedError):
            pull(plan, watch, patience=HASTE)
        assert (states[-1].n_elsewhere, states[-1].n_done) == (1, len(plan.files) - 1)
    pulled(cache)
    assert_right(plan, model)


def test_a_full_disk(hub, cache, model, monkeypatch):
    plan = planned(cache)
    name = shard_of(plan)
    real = downloads._append

    def full(repo, file, target, meter):
        if file.path == name:
            target.write(b"x")
            raise OSError(errno.ENOSPC, "No space left on device")
        real(repo, file, target, meter)

    monkeypatch.setattr(downloads, "_append", full)
    said = failure(cache, OutOfBudget)
    assert "full" in said
    assert list((plan.folder / "blobs").glob("*.incomplete"))


def test_no_permission(hub, cache, model, monkeypatch):
    def deny(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(cache / "blobs"))

    monkeypatch.setattr(Path, "mkdir", deny)
    said = failure(cache)
    assert "Permission denied" in said
    assert "HF_HOME" in said


def test_where_links_are_not_supported(hub, cache, model, monkeypatch):
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(Path, "symlink_to", refuse)
    snapshot = pulled(cache)
    for file in planned(cache).files:
        path = snapshot / file.remote.path
        assert not path.is_symlink()
        assert path.read_bytes() == (model / file.remote.path).read_bytes()
    n_bytes = hub.content_bytes
    pulled(cache)
    assert hub.content_bytes == n_bytes


def test_files_with_the_same_content(hub, cache, model, tmp_path):
    twin = tmp_path / "twin"
    twin.mkdir()
    for file in model.iterdir():
        (twin / file.name).symlink_to(file)
    for name in ("LICENSE", "LICENSE.txt", "README.md"):
        (twin / name).write_text("free")
    hub.add(REPO, twin)
    snapshot = pulled(cache)
    assert {(snapshot / name).read_text() for name in ("LICENSE", "README.md")} == {"free"}


def test_patience_doubles_and_obeys_the_hub():
    patience = Patience(tries=6, wait_s=1.0, longest_s=60.0)
    busy = hub_client.HubBusy("busy")
    assert [patience.wait(n, busy) for n in (1, 2, 6, 9)] == [1, 2, 32, 60]
    assert patience.wait(1, hub_client.HubBusy("busy", 30.0)) == 30
    assert patience.wait(1, hub_client.HubBusy("busy", 86_400.0)) == 600
