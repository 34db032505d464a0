"""Traces: made ones, the file, hostile files, and a recorded one against the engine's own gate."""

import io
import zipfile
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from localv4.bench.lookahead_gates import Gates
from localv4.bench.traces import NOTHING, Trace, load_trace, save_trace
from localv4.bench.traces_made import SKEWED, UNIFORM, Drift, Shape, add_predictions, make
from localv4.bench.traces_recorded import record_trace
from localv4.checkpoint import Checkpoint
from localv4.engine import load
from localv4.errors import ContextOverflow, InvalidInput
from tests.kernels.compare import needs_compiler
from tests.small_checkpoints import make_small

SHAPE = Shape(n_layers=5, n_experts=32, n_chosen=3, n_hash_layers=2, expert_bytes=1000)


@pytest.fixture(scope="module")
def trace():
    return add_predictions(make(SHAPE, SKEWED, [7, *[1] * 60]), [0.5])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checkpoint") / "model"
    return make_small(folder, ratios=(0, 4, 128, 0), n_routed_experts=12)


def test_a_file_keeps_a_trace(trace, tmp_path):
    save_trace(trace, tmp_path / "a.npz")
    loaded = load_trace(tmp_path / "a.npz")
    for name in ("n_experts", "n_hash_layers", "expert_bytes", "n_tokens", "n_layers", "n_keys"):
        assert getattr(loaded, name) == getattr(trace, name)
    assert np.array_equal(loaded.chosen, trace.chosen)
    assert np.array_equal(loaded.chunks, trace.chunks)
    assert list(loaded.predicted) == ["recall 50%"]
    assert np.array_equal(loaded.predicted["recall 50%"], trace.predicted["recall 50%"])


def test_steps_are_the_chunks(trace):
    steps = list(trace.steps())
    assert [first for first, _ in steps] == [0, *range(7, 67)]
    assert steps[0][1].shape == (5, 7, 3)
    assert np.array_equal(steps[3][1][4, 0], trace.chosen[9, 4] + 4 * 32)


def _npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


GOOD = {
    "sizes": np.array([1, 8, 1, 100]),
    "chunks": np.array([1, 1]),
    "chosen": np.zeros((2, 3, 2), np.uint16),
}
LONG_HEADER = (b"\x93NUMPY\x01\x00\x76\x00" + b"{'descr': '<u2', 'fortran_order': False, "
               b"'shape': (99999999, 9999, 99), }".ljust(117) + b"\n")  # fmt: skip


def _bomb():
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("chosen.npy", LONG_HEADER)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no trace"),
        (b"PK\x03\x04 and nothing", "no trace"),
        (_npz(**GOOD)[:-200], "no trace"),
        (_npz(**GOOD).replace(b"<u2", b"<f2"), "no trace"),
        (_bomb(), "no trace"),
        (_npz(**GOOD | {"chosen": np.array([object()])}), "no trace"),
        (_npz(**GOOD | {"chosen": np.zeros((2, 3, 2))}), "no trace"),
        (_npz(chunks=GOOD["chunks"], chosen=GOOD["chosen"]), "'sizes' is missing"),
        (_npz(**GOOD | {"sizes": np.array([9, 8, 1, 100])}), "another version"),
        (_npz(**GOOD | {"sizes": np.array([1, 0, 1, 100])}), "0 experts"),
        (_npz(**GOOD | {"sizes": np.array([1, 8, 4, 100])}), "4 hash layers"),
        (_npz(**GOOD | {"sizes": np.array([1, 8, 1, -1])}), "-1 bytes"),
        (_npz(**GOOD | {"chunks": np.array([1, 2])}), "do not sum to 2"),
        (_npz(**GOOD | {"chunks": np.array([2**62, 2**62, 2**62, 2**62, 2])}), "do not sum to 2"),
        (_npz(**GOOD | {"chosen": np.full((2, 3, 2), 8, np.uint16)}), "names expert 8"),
        (_npz(**GOOD | {"chosen": np.zeros((0, 3, 2), np.uint16)}), "shape is"),
        (_npz(**GOOD | {"predicted_x": np.zeros((1, 3, 2), np.uint16)}), "have the shape"),
        (_npz(**GOOD | {"predicted_x": np.full((2, 3, 2), 9, np.uint16)}), "name other experts"),
    ],
)
def test_bad_files(content, words, tmp_path):
    path = tmp_path / "bad.npz"
    path.write_bytes(content)
    with pytest.raises(InvalidInput, match=r"bad\.npz") as raised:
        load_trace(path)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


def test_no_file(tmp_path, trace):
    with pytest.raises(InvalidInput, match="is no file"):
        load_trace(tmp_path)
    with pytest.raises(InvalidInput, match="cannot be written"):
        save_trace(trace, tmp_path / "none" / "a.npz")


def test_made_choices_are_distinct_and_reproducible(trace):
    ordered = np.sort(trace.chosen, axis=2)
    assert (np.diff(ordered.astype(int), axis=2) > 0).all()
    again = make(SHAPE, SKEWED, [7, *[1] * 60])
    assert np.array_equal(again.chosen, trace.chosen)


def test_popularity_is_as_published():
    shape = replace(SHAPE, n_layers=8, n_experts=256, n_chosen=2)
    made = make(shape, replace(SKEWED, sigma=0.0, repeats=0.0), [1] * 1500)
    for layer in range(2, 8):
        counts = np.sort(np.bincount(made.chosen[:, layer].reshape(-1), minlength=256))[::-1]
        shares = np.cumsum(counts) / counts.sum()
        assert shares[22] == pytest.approx(0.5, abs=0.06)
        assert shares[117] == pytest.approx(0.95, abs=0.04)
    uniform = np.bincount(made.chosen[:, 0].reshape(-1), minlength=256)
    assert uniform.max() < 40


@pytest.mark.parametrize("smooth", [False, True])
def test_drift_changes_what_is_popular(smooth):
    drift = Drift(sigma=2.0, tokens=50, smooth=smooth, repeats=0.0)
    chosen = make(SHAPE, drift, [1] * 400).chosen[:, 4]
    first, last = (
        np.bincount(part.reshape(-1), minlength=32) for part in (chosen[:50], chosen[350:])
    )
    same = make(SHAPE, UNIFORM, [1] * 400).chosen[:, 4]
    assert first.max() > np.bincount(same[:50].reshape(-1), minlength=32).max()
    assert np.corrcoef(first, last)[0, 1] < 0.9


def test_predictions_have_their_recall():
    made = add_predictions(make(SHAPE, UNIFORM, [1] * 500), [0.3, 0.6])
    for recall, named in zip((0.3, 0.6), made.predicted.values(), strict=True):
        found = (named[:, 2:, :, None] == made.chosen[:, 2:, None]).any(-1)
        assert found.mean() == pytest.approx(recall, abs=0.03)
        assert found[..., 0].mean() > found[..., 2].mean() + 0.2
        assert (named[:, :2] == NOTHING).all()


@needs_compiler
@pytest.mark.slow
def test_a_recorded_trace_is_what_the_engine_chose(folder):
    trace = record_trace(folder, 6, "Hello there", threads=1, seed=3)
    assert trace.chunks[1:].tolist() == [1] * 6
    assert (trace.n_layers, trace.n_experts, trace.n_hash_layers) == (4, 12, 1)
    assert trace.expert_bytes > 0
    for named in trace.predicted.values():
        assert named.shape == (trace.n_tokens, 4, 6)
        assert (named[:-6] == NOTHING).all()
        assert (named[-6:, :1] == NOTHING).all()
        assert (named[-6:, 1:] < 12).all()
    again = record_trace(folder, 6, "Hello there", threads=1, seed=3)
    assert np.array_equal(again.chosen, trace.chosen)


@needs_compiler
@pytest.mark.slow
def test_gates_agree_with_the_engine(folder):
    seen: dict[tuple[str, int], Any] = {}
    with Checkpoint.open(folder) as checkpoint, load(folder, threads=1) as engine:
        gates = Gates(checkpoint)
        engine.session(64).prefill(
            [5, 6, 7, 8, 9],
            observe=lambda name, layer, _, array: seen.update({(name, layer): array}),
        )
        for layer in range(1, 4):
            ffn_in = seen["ffn_in", layer]
            chosen = np.sort(gates.likely(layer, ffn_in, 3), axis=1)
            assert np.array_equal(chosen, np.sort(seen["router_indices", layer], axis=1))
            between = gates.after_attention(layer, seen["h", layer], seen["attn_out", layer])
            assert gates.ffn_in(layer, between) == pytest.approx(ffn_in, abs=0.06)


def test_too_many_tokens(folder):
    with pytest.raises(ContextOverflow, match="give less"):
        record_trace(folder, 2**21, threads=1)


def test_a_trace_checks_itself():
    with pytest.raises(InvalidInput, match="16-bit"):
        Trace(np.zeros((1, 1, 1)), np.array([1]), 4, 0, 1)  # type: ignore[arg-type]
