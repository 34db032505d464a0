"""The same bytes of logits however far a position is and however it was reached.

One prefill of everything is what the others are compared with: pieces, decode, snapshots, files
read by another process, prefixes used again, one thread, and experts streamed through the fewest
slots.  tests/test_invariance.py does the same for the golden models at short lengths.
"""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray

import localv4
from localv4.synthetic import PRESETS, synthesise
from tests.streaming_plans import force_streaming
from tests.test_invariance import assert_same_bytes

Numerics = Literal["float32", "trained"]
F32 = NDArray[np.float32]

_LAST = 5  # tokens whose logits are compared
_LOAD = """
import sys
import numpy as np
import localv4

folder, numerics, saved, out, *ids = sys.argv[1:]
with localv4.load(folder, numerics=numerics, threads=1) as engine:
    session = engine.load_session(saved)
    np.save(out, session.prefill([int(token) for token in ids], logits="all"))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("long") / "model"
    sizes = dataclasses.replace(
        PRESETS["flash"],
        hidden_size=128,
        num_attention_heads=4,
        n_routed_experts=8,
        index_n_heads=2,
    )
    synthesise(folder, "flash", 3, sizes=sizes, mtp=False, compress_ratios=(0, 4, 128))
    return folder


@pytest.fixture(scope="module", params=["trained", "float32"])
def numerics(request: pytest.FixtureRequest) -> Numerics:
    found: Numerics = request.param
    return found


@pytest.fixture(scope="module")
def engine(folder: Path, numerics: Numerics) -> Iterator[localv4.Engine]:
    with localv4.load(folder, numerics=numerics, threads=2) as opened:
        yield opened


@pytest.fixture(scope="module")
def ids(engine: localv4.Engine) -> list[int]:
    tokens: list[int] = (
        np.random.default_rng(5).integers(0, engine.config.vocab_size, 65_600).tolist()
    )
    return tokens


def other_process(folder: Path, numerics: str, saved: Path, ids: list[int]) -> F32:
    """Return the logits that a new process computes behind a saved session."""
    out = saved.with_suffix(".npy")
    command = [sys.executable, "-c", _LOAD, str(folder), numerics, str(saved), str(out)]
    subprocess.run([*command, *map(str, ids)], check=True)
    logits: F32 = np.load(out)
    return logits


# Around a full window, four of the coarser entries, 4,096 and the whole first region of RoPE.
LENGTHS = [127, 128, 129, 511, 512, 513, 4096, pytest.param(65_536, marks=pytest.mark.slow)]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_position_is_reached_in_many_ways(
    engine: localv4.Engine,
    folder: Path,
    numerics: Numerics,
    ids: list[int],
    length: int,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun, tokens = length - _LAST + 1, ids[: length + 1]
    rest = tokens[begun:]

    session = engine.session()
    session.prefill(tokens[:begun])
    session.keep()
    mark, saved = session.snapshot(), tmp_path / "a.session"
    session.save(saved)
    expected = session.prefill(rest, logits="all")

    session.restore(mark)
    assert_same_bytes(np.stack([session.decode(token) for token in rest]), expected)
    session.prefill(ids[:50])  # a conversation that went elsewhere
    assert session.rewind(tokens) == begun
    assert_same_bytes(session.prefill(rest, logits="all"), expected)
    other = engine.session()
    other.restore(mark)
    assert_same_bytes(other.prefill(rest, logits="all"), expected)
    assert_same_bytes(other_process(folder, numerics, saved, rest), expected)

    force_streaming(monkeypatch)
    with localv4.load(folder, numerics=numerics, threads=1) as streaming:
        # the whole length again on one thread: minutes of float32 at the greatest, not done there
        if numerics == "trained" or length < 10_000:
            pieces = streaming.session()
            piece = 37 if length < 1000 else 999
            for first in range(0, begun, piece):
                pieces.prefill(tokens[first : min(first + piece, begun)], logits="none")
            assert_same_bytes(pieces.prefill(rest, logits="all"), expected)
        loaded = streaming.load_session(saved)
        assert_same_bytes(loaded.prefill(rest, logits="all"), expected)
