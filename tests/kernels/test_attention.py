from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4 import quant
from localv4.kernels.attention import attend
from localv4.kernels.kv_rows import encode_entries
from localv4.quant import bf16
from tests.kernels.compare import F32, assert_bf16_close, assert_same_bytes, relative_rms
from tests.reference import kernels_attention as twin
from tests.reference.forward_attention import attend as attend_as_trained
from tests.reference.forward_attention import candidate_blocks
from tests.reference.forward_numerics import Numerics

ROPE_DIM = 8


def packed(entries: F32, rope_dim: int, trained: bool):
    plain = entries.shape[1] - rope_dim
    n_bytes = plain + 2 * rope_dim + -(-(plain // 64) // 8) * 8
    rows = np.empty((len(entries), n_bytes if trained else 4 * entries.shape[1]), np.uint8)
    encode_entries(entries.copy(), rope_dim, trained, rows)
    return rows


class Case(NamedTuple):
    """A sequence's entries from position 0 on, and queries at its last positions."""

    queries: F32
    kv: F32
    entries: F32
    chosen: NDArray[np.int32]
    n_chosen: NDArray[np.int32]
    sinks: F32
    position: int
    window: int

    def run(self, trained: bool, head_groups: int = 1, tokens: slice = slice(None)) -> F32:
        """Attend with some of the queries, as a chunk of their own."""
        first, end, _ = tokens.indices(len(self.queries))
        position = self.position + first
        before = np.full((self.window - 1, self.kv.shape[1]), np.nan, np.float32)
        kept = min(position, self.window - 1)
        before[len(before) - kept :] = self.kv[position - kept : position]
        window = np.concatenate([before, self.kv[position : self.position + end]])
        out = np.full((end - first, *self.queries.shape[1:]), np.nan, np.float32)
        attend(
            self.queries[tokens],
            window,
            packed(self.entries, ROPE_DIM, trained),
            self.chosen[tokens],
            self.n_chosen[tokens],
            self.sinks,
            position,
            ROPE_DIM,
            np.float32(self.scale),
            trained,
            head_groups,
            out,
        )
        return out

    @property
    def scale(self) -> float:
        return float(self.kv.shape[1] ** -0.5)

    def chosen_of(self, token: int) -> NDArray[np.int64]:
        count = int(self.n_chosen[token])
        row = self.chosen[token]
        return row[:count].astype(np.int64) if row.size else np.arange(count)


def random_case(
    position: int,
    n_tokens: int = 4,
    n_heads: int = 3,
    width: int = 72,
    window: int = 16,
    n_entries: int = 0,
    n_chosen: int = 0,
) -> Case:
    """Return entries that the packed form holds exactly; without `n_chosen` all are taken."""
    rng = np.random.default_rng([position, n_entries])
    shapes = (position + n_tokens, width), (n_entries, width)
    kv, entries = (bf16.round(rng.standard_normal(shape)) for shape in shapes)
    entries[:, :-ROPE_DIM] = quant.fp8_sim(entries[:, :-ROPE_DIM], 64)
    counts = rng.integers(0, (n_chosen or n_entries) + 1, n_tokens)
    chosen = np.full((n_tokens, n_chosen), -1)
    for row, count in zip(chosen, counts, strict=True):
        row[:count] = np.sort(rng.choice(n_entries, count, replace=False)) if n_chosen else 0
    return Case(
        bf16.round(rng.standard_normal((n_tokens, n_heads, width)) * 2),
        kv,
        entries,
        chosen.astype(np.int32),
        counts.astype(np.int32),
        rng.standard_normal(n_heads, np.float32),
        position,
        window,
    )


CASES = {
    "start": random_case(0, n_tokens=3),
    "window-fills": random_case(13, n_tokens=6),
    "blocks-of-64": random_case(200, window=128, n_tokens=3),
    "all-entries": random_case(60, n_entries=15),
    "chosen-entries": random_case(300, n_entries=75, n_chosen=70),
    "more-room-than-entries": random_case(9, n_entries=5, n_chosen=5),
}


@pytest.mark.parametrize("name", CASES)
def test_plain_softmax(name: str):
    case = CASES[name]
    ours = case.run(trained=False)
    for token, queries in enumerate(case.queries.astype(np.float64)):
        end = case.position + token + 1
        recent = case.kv[max(0, end - case.window) : end]
        keys = np.concatenate([recent, case.entries[case.chosen_of(token)]]).astype(np.float64)
        expected = twin.attend(queries, keys, case.sinks.astype(np.float64), case.scale)
        np.testing.assert_allclose(ours[token], expected, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", CASES)
def test_blocks_as_trained(name: str):
    case, num = CASES[name], Numerics("trained")
    ours = case.run(trained=True)
    kv, entries = case.kv.astype(np.float64), case.entries.astype(np.float64)
    expected = np.empty(ours.shape)
    for token, queries in enumerate(case.queries.astype(np.float64)):
        position = case.position + token
        blocks = candidate_blocks(position, case.window, kv, entries, case.chosen_of(token))
        expected[token] = attend_as_trained(num, queries, blocks, case.sinks.astype(np.float64))
    assert_bf16_close(ours, expected, equal=0.97, steps=2)
    assert relative_rms(ours, expected) < 1e-3


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_neither_groups_of_heads_nor_chunks_change_a_byte(name: str, trained: bool):
    case = CASES[name]
    whole = case.run(trained)
    for head_groups in (2, 3, 5):
        assert_same_bytes(case.run(trained, head_groups), whole)
    for piece in (1, 2):
        parts = [
            case.run(trained, tokens=slice(first, min(first + piece, len(whole))))
            for first in range(0, len(whole), piece)
        ]
        assert_same_bytes(np.concatenate(parts), whole)


def test_matches_the_golden(fixtures):
    """The fixture's candidates are 200 rows of BF16: no window, and no FP8 columns."""
    q, kv, sink = (fixtures[f"sparse_attn.{name}"] for name in ("q", "kv", "sink"))
    listed = fixtures["sparse_attn.idx"]
    counts = np.count_nonzero(listed >= 0, axis=1).astype(np.int32)
    chosen = np.full_like(listed, -1)
    for row, candidates in zip(chosen, listed, strict=True):
        taken = candidates[candidates >= 0]
        row[: len(taken)] = taken
    no_window = np.empty((len(q) - 1, 128), np.float32)
    out = np.empty_like(q)
    rows = packed(kv, 128, True)
    scale = fixtures["sparse_attn.scale"][0]
    attend(q, no_window, rows, chosen, counts, sink, 0, 128, scale, True, 2, out)
    assert relative_rms(out, fixtures["sparse_attn.o"]) < 3e-3


def test_a_sink_takes_its_share():
    case = CASES["start"]
    for sink, share in ((-50, 1.0), (50, 0.0)):
        ours = case._replace(sinks=np.full(3, sink, np.float32)).run(trained=False)
        np.testing.assert_allclose(ours[0], share * case.kv[[0] * 3], rtol=0, atol=1e-6)


def test_large_scores_do_not_overflow():
    case = CASES["chosen-entries"]
    case = case._replace(queries=case.queries * np.float32(1e4))
    for trained in (False, True):
        assert np.isfinite(case.run(trained)).all()


@np.errstate(invalid="ignore")
def test_no_number_stays_in_its_head():
    case = CASES["all-entries"]
    queries = case.queries.copy()
    queries[1, 2, 0] = np.nan
    for trained in (False, True):
        lost = np.isnan(case._replace(queries=queries).run(trained))
        assert lost[1, 2].all()
        assert lost.sum() == lost[1, 2].size
