"""Engines that stream: the bytes of one that maps its weights, or an error; never a hang.

How many slots there are, what came before and what the disk does must not be seen in any logit.
"""

import contextlib
import errno
import gc
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import localv4
import localv4.reads
from localv4.checkpoint import Checkpoint
from localv4.dense import DenseWeights
from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.shard_files import Piece, ShardFiles
from localv4.synthetic import Layout, Preset
from tests.conftest import ROOT
from tests.golden_models import golden_models
from tests.small_checkpoints import make_small, overwrite
from tests.streaming_plans import force_streaming, n_experts, store_of

PATIENCE_S = 20.0
IDS = [int(n) for n in np.random.default_rng(7).integers(3, 250, 150)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams") / "model"
    return make_small(folder, ratios=(0, 4, 128), n_routed_experts=8)


@pytest.fixture(scope="module")
def expected(folder: Path) -> bytes:
    """Logits of `answer` by an engine that maps its weights."""
    with localv4.load(folder, threads=2) as engine:
        return answer(engine)


@pytest.fixture
def copied(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copied"))


def answer(engine: localv4.Engine, session: Any = None) -> bytes:
    """Logits of a prompt and two tokens."""
    session = engine.session() if session is None else session
    rows = [session.prefill(IDS[:30]), session.decode(IDS[30]), session.decode(IDS[31])]
    return b"".join(row.tobytes() for row in rows)


def everything(engine: localv4.Engine, drafts: bool) -> dict[str, bytes]:
    """Logits by all ways: at once, in pieces, token by token, drafted, restored."""
    whole, pieces = engine.session(), engine.session()
    found = {"whole": whole.prefill(IDS, logits="all")}
    ends = (1, 3, 4, 11, 75, 130)
    found["pieces"] = np.concatenate(
        [
            pieces.prefill(IDS[first:end], logits="all")
            for first, end in zip((0, *ends), ends, strict=False)
        ]
    )
    mark = pieces.snapshot()
    for name in ("decoded", "restored"):
        rows = []
        for token in IDS[130:136]:
            rows.append(pieces.decode(token))
            if drafts:
                rows.append(pieces.draft(token + 1))
        found[name] = np.stack(rows)
        pieces.restore(mark)
    return {name: rows.tobytes() for name, rows in found.items()}


GOLDEN = [
    pytest.param(model.checkpoint, numerics, id=f"{model.name}-{numerics}")
    for model in golden_models()
    if model.name in ("tiny-edge", "tiny-base")
    for numerics in ("trained", "float32")
]


@pytest.mark.parametrize(("model", "numerics"), GOLDEN)
def test_the_same_bytes_for_any_number_of_slots(
    model: Path, numerics: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft: Any = "mtp"
    with Checkpoint.open(model) as checkpoint:
        fewest, every = 2 * checkpoint.config.num_experts_per_tok, n_experts(checkpoint)
    with localv4.load(model, numerics=numerics, threads=2, draft=draft) as engine:
        mapped = everything(engine, drafts=True)
    assert mapped["decoded"] == mapped["restored"]
    for n_slots in (fewest, fewest + 1, every):
        with monkeypatch.context() as forced:
            force_streaming(forced, n_slots)
            with localv4.load(model, numerics=numerics, threads=2, draft=draft) as engine:
                assert everything(engine, drafts=True) == mapped, n_slots
                stats, store = engine.stats, store_of(engine)
                assert store.verify() == len(store.books.resident) <= n_slots
                assert stats.bytes_read >= len(store.books.resident) * store.records.expert_bytes
                assert (stats.expert_hits, stats.expert_misses) > (0, 0)
                if n_slots < every:
                    assert store.asked.sum() > len(store.books.resident)


LAYOUTS: list[tuple[Preset, Layout]] = [
    ("flash", "scattered"),
    ("flash", "single"),
    ("flash-base", "scattered"),
    ("pro", "release"),
]


@pytest.mark.parametrize(("preset", "layout"), LAYOUTS)
def test_the_same_bytes_for_any_layout(
    preset: Preset, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_small(tmp_path / "model", preset, layout, n_routed_experts=7)
    with localv4.load(folder, threads=2) as engine:
        mapped = everything(engine, drafts=False)
    for n_slots in (None, 13):
        force_streaming(monkeypatch, n_slots)
        with localv4.load(folder, threads=2) as engine:
            assert everything(engine, drafts=False) == mapped
            store_of(engine).verify()


def test_the_same_bytes_after_heavy_traffic_and_with_less_memory_and_more(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = np.random.default_rng(1)
    with localv4.load(folder, threads=2) as engine:
        mapped = engine.session().prefill(IDS, logits="all")
    force_streaming(monkeypatch, 20)
    with localv4.load(folder, threads=2) as engine:
        store, session = store_of(engine), engine.session()
        monkeypatch.setattr(engine._streams, "make_room", lambda kv_bytes: None)
        position = 0
        while position < len(IDS):
            store.resize(int(generator.integers(6, 22)))
            other = engine.session()
            other.prefill(generator.integers(3, 300, int(generator.integers(1, 40))))
            count = int(generator.choice([1, 1, 2, 17]))
            rows = session.prefill(IDS[position : position + count], logits="all")
            assert rows.tobytes() == mapped[position : position + count].tobytes()
            store.verify()
            position += count
        assert answer(engine) == expected
        assert store.asked.sum() > 200


@pytest.mark.parametrize("distinct", [1, 2])
def test_tables_that_name_an_expert_more_than_once(
    distinct: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = make_small(tmp_path / "model", n_routed_experts=8)
    name = "layers.0.ffn.gate.tid2eid"
    with Checkpoint.open(folder) as checkpoint:
        table = checkpoint.view(name).copy()
    table[:, 1] = table[:, 0]
    if distinct == 1:
        table[:, 2] = table[:, 0]
    table[::2] = table[0]  # so that one expert gets more rows than there are tokens
    overwrite(folder, name, 0, table.tobytes())
    with localv4.load(folder, threads=2) as engine:
        mapped = everything(engine, drafts=False)
    for n_slots in (None, 32):
        force_streaming(monkeypatch, n_slots)
        with localv4.load(folder, threads=2) as engine:
            assert everything(engine, drafts=False) == mapped


def test_single_layers_wait_for_their_weights(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = np.random.default_rng(0).standard_normal((9, 256)).astype(np.float32)

    def layers(engine: localv4.Engine) -> list[bytes]:
        # nine tokens and then one, and a chunk after a token: what a loan may hold differs
        found = [engine.run_attention(2, x), engine.run_ffn(1, x, IDS[:9])]
        found += [engine.run_ffn(1, x[:1], IDS[:1]), engine.run_ffn(2, x, IDS[:9])]
        found.append(engine.run_block(0, np.repeat(x[:, None], 4, axis=1), IDS[:9]))
        return [result.tobytes() for result in found]

    with localv4.load(folder, threads=2) as engine:
        mapped = layers(engine)
    force_streaming(monkeypatch)
    real = DenseWeights.start
    late: list[threading.Timer] = []

    def start(weights: DenseWeights) -> None:
        late.append(threading.Timer(0.1, real, [weights]))
        late[-1].start()

    monkeypatch.setattr(DenseWeights, "start", start)
    with localv4.load(folder, threads=2) as engine:
        assert layers(engine) == mapped
    for timer in late:
        timer.join()


def test_nothing_is_computed_from_weights_before_they_are_there(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_streaming(monkeypatch)
    real = DenseWeights.start
    monkeypatch.setattr(DenseWeights, "start", lambda weights: None)
    with localv4.load(folder, threads=2) as engine:
        session = engine.session()
        assert engine._streams is not None
        real(engine._streams.weights)
        assert answer(engine, session) == expected


# Faults


def test_a_shard_that_is_cut_short_while_it_is_in_use(
    copied: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_streaming(monkeypatch)
    with localv4.load(copied, threads=2) as engine:
        assert answer(engine) == expected
        store = store_of(engine)
        for run in store.records.runs(1, 0):
            os.truncate(copied / run.shard, 5000)
        session = engine.session()
        with pytest.raises(DamagedCheckpoint, match="cut short"):
            session.prefill(IDS)  # 150 tokens choose every expert
        assert session.position == 0  # the chunk was taken back
        with pytest.raises(DamagedCheckpoint, match="cut short"):
            session.prefill(IDS)


@pytest.mark.parametrize("replaced", [False, True])
def test_shards_that_are_removed_or_replaced_while_they_are_in_use(
    copied: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch, replaced: bool
) -> None:
    force_streaming(monkeypatch)
    with localv4.load(copied, threads=2) as engine:
        for shard in copied.glob("*.safetensors"):
            size = shard.stat().st_size
            shard.unlink()
            if replaced:
                (copied / "other").write_bytes(b"\x37" * size)
                (copied / "other").rename(shard)
        assert answer(engine) == expected
        store_of(engine).verify()


def failing_reads(monkeypatch: pytest.MonkeyPatch, fails: Callable[[Piece], bool]) -> None:
    real = ShardFiles._read_at

    def read(files: ShardFiles, handles: Any, shard: str, target: memoryview, at: int) -> int:
        if fails(Piece(shard, at, len(target), np.zeros(0, np.uint8))):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(files, handles, shard, target, at)

    monkeypatch.setattr(ShardFiles, "_read_at", read)


def test_after_a_read_error_another_session_gets_the_right_bytes(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_streaming(monkeypatch)
    broken = [False]
    with localv4.load(folder, threads=2) as engine:
        failing_reads(monkeypatch, lambda piece: broken[0])
        for tokens in (1, 1, 30, 2, 30):
            session = engine.session()
            session.prefill(IDS[:9])
            broken[0] = True
            with pytest.raises(DamagedCheckpoint, match=r"cannot be read at byte .*Input/output"):
                session.prefill(IDS[9 : 9 + tokens])
            broken[0] = False
            assert answer(engine) == expected
            session.reset()
            assert answer(engine, session) == expected
        store_of(engine).verify()


def test_reads_that_fail_now_and_then_are_never_seen_in_a_logit(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_streaming(monkeypatch, 9)
    generator = np.random.default_rng(2)
    with localv4.load(folder, threads=2) as engine:
        store_of(engine)
        answer(engine)
        failing_reads(monkeypatch, lambda piece: bool(generator.random() < 0.02))
        right = wrong = 0
        while min(right, wrong) < 5 and right + wrong < 200:
            try:
                assert answer(engine) == expected
                right += 1
            except DamagedCheckpoint:
                wrong += 1
        assert min(right, wrong) >= 5


def test_a_scale_that_is_no_number(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "layers.0.ffn.experts.3.w2.scale"
    overwrite(copied, name, 7, b"\xff")
    with Checkpoint.open(copied) as checkpoint:
        table = checkpoint.view("layers.0.ffn.gate.tid2eid")
        uses = (table == 3).any(axis=1)
    bad, good = int(np.flatnonzero(uses)[0]), np.flatnonzero(~uses)[:9].tolist()
    force_streaming(monkeypatch)
    with localv4.load(copied, threads=2) as engine:
        first = engine.session().prefill(good)
        for _ in range(2):
            session = engine.session()
            session.prefill(good)
            with pytest.raises(DamagedCheckpoint, match=f"{name} holds NaN"):
                session.decode(bad)
        assert engine.session().prefill(good).tobytes() == first.tobytes()


def test_a_disk_that_stalls_is_waited_for_and_that_is_said(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    force_streaming(monkeypatch)
    monkeypatch.setattr(localv4.reads, "_STALL_S", 0.2)
    said = threading.Event()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if "has not answered" in record.getMessage():
                said.set()

    listener = Listener()
    logging.getLogger("localv4").addHandler(listener)
    real = ShardFiles.read
    with localv4.load(folder, threads=2) as engine:
        assert answer(engine) == expected

        def stall(files: ShardFiles, piece: Piece) -> None:
            assert said.wait(PATIENCE_S)
            real(files, piece)

        monkeypatch.setattr(ShardFiles, "read", stall)
        assert answer(engine) == expected
    logging.getLogger("localv4").removeHandler(listener)
    assert said.is_set()
    assert "Ctrl-C stops" in caplog.text


def test_a_folder_that_cannot_be_written_to(
    copied: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = sorted(copied.iterdir())
    for file in before:
        file.chmod(0o444)
    copied.chmod(0o555)
    force_streaming(monkeypatch)
    with localv4.load(copied, threads=2) as engine:
        assert answer(engine) == expected
    assert sorted(copied.iterdir()) == before
    copied.chmod(0o755)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Let reads of experts hang until the event is set; it is, in the end."""
    monkeypatch.setattr(localv4.reads, "CLOSING_S", 0.05)
    gate = threading.Event()
    gate.set()
    real = ShardFiles.read

    def read(files: ShardFiles, piece: Piece) -> None:
        assert gate.wait(PATIENCE_S)
        real(files, piece)

    monkeypatch.setattr(ShardFiles, "read", read)
    yield gate
    gate.set()


def readers_alive() -> list[threading.Thread]:
    names = "localv4-reader", "localv4-dense", "localv4-rows"
    return [thread for thread in threading.enumerate() if thread.name.startswith(names)]


def test_closing_while_reads_are_outstanding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, held: threading.Event
) -> None:
    others = set(readers_alive())
    force_streaming(monkeypatch)
    engine = localv4.load(folder, threads=2)
    session = engine.session()
    session.prefill(IDS[:40])
    store = store_of(engine)
    held.clear()
    store.begin(40)
    store.expect(2, range(8))
    assert store.readers.outstanding
    engine.close()
    for use in (lambda: session.decode(5), engine.session, lambda: engine.run_ffn(0, [], [])):
        with pytest.raises(LocalV4Error, match="closed"):
            use()
    held.set()
    for thread in set(readers_alive()) - others:
        thread.join(PATIENCE_S)
        assert not thread.is_alive()
    assert store.readers.outstanding == 0


def test_an_engine_that_is_closed_while_it_computes_gives_no_answer(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_streaming(monkeypatch)
    engine = localv4.load(folder, threads=2)

    def close(name: str, layer: int, position: int, array: object) -> None:
        engine.close()

    with pytest.raises(LocalV4Error, match="closed"):
        engine.session().prefill(IDS[:9], observe=close)


def test_the_threads_of_an_engine_that_was_dropped_end(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gc.collect()
    others = set(readers_alive())
    force_streaming(monkeypatch)
    engine = localv4.load(folder, threads=2)
    answer(engine)
    handles = [*store_of(engine).readers.files._buffered.values()]
    assert set(readers_alive()) - others
    del engine
    gc.collect()
    for thread in set(readers_alive()) - others:
        thread.join(PATIENCE_S)
    assert set(readers_alive()) <= others
    for handle in handles:
        with pytest.raises(OSError, match="Bad file"):
            os.fstat(handle)


def test_a_load_that_fails_leaves_no_threads(copied: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = set(readers_alive())
    force_streaming(monkeypatch)
    overwrite(copied, "layers.1.attn_norm.weight", 0, b"\xff\xff")
    for _ in range(2):
        with pytest.raises(DamagedCheckpoint, match="NaN"):
            localv4.load(copied, threads=2)
        assert set(readers_alive()) <= others
        monkeypatch.setattr("localv4.streaming.Slots", _no_memory)
        with pytest.raises(OSError, match="Cannot allocate"):
            localv4.load(copied, threads=2)
        assert set(readers_alive()) <= others
        monkeypatch.undo()
        force_streaming(monkeypatch)


def _no_memory(*_: object) -> None:
    raise OSError(errno.ENOMEM, "Cannot allocate memory")


def test_two_engines_at_once(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    force_streaming(monkeypatch, 7)
    with localv4.load(folder, threads=2) as one, localv4.load(folder, threads=1) as two:
        found: dict[int, list[bytes]] = {0: [], 1: []}

        def run(number: int) -> None:
            for _ in range(3):
                found[number].append(answer((one, two)[number]))

        threads = [threading.Thread(target=run, args=(number,)) for number in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert found == {0: [expected] * 3, 1: [expected] * 3}
        for engine in (one, two):
            store_of(engine).verify()


def test_a_session_is_restored_while_another_thread_computes(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Restoring makes room for KV state at the cost of experts, which another may be using."""
    force_streaming(monkeypatch, 9)
    with localv4.load(folder, threads=2) as engine:
        session = engine.session()
        session.prefill(IDS[:20])
        mark = session.snapshot()
        inside, computing = [], threading.Event()
        make_room = engine._streams.make_room  # type: ignore[union-attr]

        def watched(kv_bytes: int) -> None:
            inside.append(computing.is_set())
            make_room(kv_bytes)

        monkeypatch.setattr(engine._streams, "make_room", watched)
        restored = threading.Thread(target=session.restore, args=(mark,))

        def observe(name: str, layer: int, position: int, array: object) -> None:
            if (name, layer) == ("h", 0):
                computing.set()
                restored.start()
                restored.join(0.2)
            elif (name, layer) == ("h", 3):
                computing.clear()

        engine.session().prefill(IDS[:30], observe=observe)
        restored.join(PATIENCE_S)
        assert len(inside) > 2
        assert not any(inside)


def test_one_of_many_cpus_is_left_to_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("localv4.kernels.threads.usable_cpus", lambda: 12)
    with localv4.load(folder) as mapped:
        assert mapped.threads == 12
    force_streaming(monkeypatch)
    with localv4.load(folder) as engine, localv4.load(folder, threads=2) as wished:
        assert (engine.threads, wished.threads) == (11, 2)
        assert engine._model.workspaces.threads == 11


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_an_exception_in_the_middle_of_a_loan(
    folder: Path, expected: bytes, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    force_streaming(monkeypatch, 7)
    with localv4.load(folder, threads=2) as engine:
        workspaces = engine._model.workspaces
        for n_tokens in (1, 30):
            for calls in range(1, 9):
                session, left = engine.session(), [calls]
                session.prefill(IDS[:5])
                workspace = workspaces.get(n_tokens, True)
                real = workspace.run

                def run(*phases: Any, left: list[int] = left, real: Any = real) -> None:
                    left[0] -= 1
                    if not left[0]:
                        raise error
                    real(*phases)

                with monkeypatch.context() as failing, contextlib.suppress(error):
                    failing.setattr(workspace, "run", run)
                    session.prefill(IDS[:n_tokens])
                    assert calls > 5
                assert answer(engine) == expected
        store_of(engine).verify()


CHILD = """
import os, sys, threading, time
import pytest
from tests.streaming_plans import force_streaming
from localv4.cli.app import main

force_streaming(pytest.MonkeyPatch())
real, told, held = os.preadv, threading.Event(), sys.argv.pop()

def hang(file, buffers, offset):
    if threading.current_thread().name.startswith(held):
        if not told.is_set():
            told.set()
            print("the disk hangs", file=sys.stderr, flush=True)
        time.sleep(60)
    return real(file, buffers, offset)

os.preadv = hang
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="signals of another kind")
@pytest.mark.parametrize("thread", ["localv4-reader", "localv4-dense", "localv4-rows"])
def test_interrupting_a_disk_that_hangs(folder: Path, tmp_path: Path, thread: str) -> None:
    script = tmp_path / "child.py"
    script.write_text(CHILD)
    command = [sys.executable, str(script), "run", "--model", str(folder), "--threads", "2"]
    command += ["--max-tokens", "3", "hello", thread]
    with subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as child:
        assert child.stderr is not None
        lines = iter(child.stderr.readline, "")
        assert any("the disk hangs" in line for line in lines)
        child.send_signal(signal.SIGINT)
        _, errors = child.communicate(timeout=PATIENCE_S)  # and not the minute that it hangs
    assert child.returncode == 130
    assert "Traceback" not in errors
