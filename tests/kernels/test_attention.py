from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4 import quant
from localv4.kernels.attention import (
    COMPRESSED,
    RING,
    SEGMENTS,
    attend_scratch_shapes,
    record_attend,
)
from localv4.kernels.attention_walk import block_size
from localv4.kernels.heads import head_norm
from localv4.kernels.kv_rows import encode_entry
from localv4.kernels.launch import Program
from localv4.kernels.rope import rotate
from localv4.quant import bf16
from tests.kernels.compare import (
    F32,
    assert_bf16_close,
    assert_same_bytes,
    needs_compiler,
    relative_rms,
)
from tests.reference import kernels_attention as twin
from tests.reference.forward_attention import attend as attend_as_trained
from tests.reference.forward_attention import candidate_blocks
from tests.reference.forward_numerics import Numerics

ROPE_DIM = 8
EPS = 1e-6


def packed(entries: F32, rope_dim: int, trained: bool):
    plain = entries.shape[1] - rope_dim
    n_bytes = plain + 2 * rope_dim + -(-(plain // 64) // 8) * 8
    rows = np.empty((len(entries), n_bytes if trained else 4 * entries.shape[1]), np.uint8)
    for entry, row in zip(entries.copy(), rows, strict=True):
        encode_entry(entry, rope_dim, int(trained), row)
    return rows


def attend(
    queries: F32,
    ring: NDArray[np.uint8],
    fresh: NDArray[np.uint8],
    compressed: NDArray[np.uint8],
    chosen: NDArray[np.int32],
    n_chosen: NDArray[np.int32],
    sinks: F32,
    *,
    tables: F32,
    position: int,
    ratio: int,
    scale: float,
    trained: bool,
    threads: int,
    eps: float | None = None,
) -> F32:
    """Attend with queries [n, heads, head_dim], normalised already unless `eps` is given."""
    n_tokens, n_heads, head_dim = queries.shape
    out = np.full((n_tokens, n_heads * head_dim), np.nan, np.float32)
    shapes = attend_scratch_shapes(n_tokens, threads, n_heads, head_dim, trained)
    program = Program()
    program.phase("attention")
    task = record_attend(
        program,
        queries.reshape(n_tokens, -1).copy(),
        eps,
        tables,
        np.array([position], np.int64),
        ratio,
        len(ring),
        ring[:0],
        fresh,
        compressed[:0],
        chosen,
        n_chosen,
        sinks,
        scale,
        trained,
        threads,
        [np.full(shape, np.nan, np.float32) for shape in shapes],
        out,
    )
    task.put(RING, ring)
    task.put(COMPRESSED, compressed)
    program.run(threads)
    return out.reshape(queries.shape)


def no_rotation(n_tokens: int, rope_dim: int) -> F32:
    """Return cosines and sines that leave queries and results as they are."""
    tables = np.zeros((n_tokens, 2, rope_dim // 2), np.float32)
    tables[:, 0] = 1
    return tables


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

    def run(self, trained: bool, threads: int = 1, tokens: slice = slice(None)) -> F32:
        """Attend with some of the queries, as a chunk of their own."""
        first, end, _ = tokens.indices(len(self.queries))
        position = self.position + first
        ring = np.full((self.window, self.kv.shape[1]), np.nan, np.float32)
        for place in range(max(0, position - self.window), position):
            ring[place % self.window] = self.kv[place]
        every = not self.chosen.shape[1]
        return attend(
            self.queries[tokens],
            packed(ring, ROPE_DIM, trained),
            packed(self.kv[position : self.position + end], ROPE_DIM, trained),
            packed(self.entries, ROPE_DIM, trained),
            self.chosen[tokens],
            self.n_chosen[tokens],
            self.sinks,
            tables=self.tables[tokens],
            position=position,
            ratio=self.ratio if every else 4,
            scale=self.scale,
            trained=trained,
            threads=threads,
        )

    @property
    def ratio(self) -> int:
        """Tokens of an entry where all complete ones are attended to."""
        return 4 if len(self.entries) else 0

    @property
    def tables(self) -> F32:
        """Cosines and sines of the queries' positions."""
        return no_rotation(len(self.queries), ROPE_DIM)

    @property
    def scale(self) -> float:
        """Factor of the scores."""
        return float(self.kv.shape[1] ** -0.5)

    def chosen_of(self, token: int) -> NDArray[np.int64]:
        row = self.chosen[token]
        if row.size:
            return np.asarray(row[: int(self.n_chosen[token])].astype(np.int64), np.int64)
        return np.arange((self.position + token + 1) // 4 if self.ratio else 0, dtype=np.int64)


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
    for rows in (kv, entries):
        rows[:, :-ROPE_DIM] = quant.fp8_sim(rows[:, :-ROPE_DIM], 64)
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
    "all-entries": random_case(56, n_entries=15),
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
    case = CASES[name]
    assert_as_trained(case, case.run(trained=True))


def assert_as_trained(case: Case, ours: F32) -> None:
    """Compare with the twin in the kernel's order of sums, and with the order of the original."""
    num = Numerics("trained")
    kv, entries = case.kv.astype(np.float64), case.entries.astype(np.float64)
    sinks = case.sinks.astype(np.float64)
    expected, original = np.empty((2, *ours.shape))
    for token, queries in enumerate(case.queries.astype(np.float64)):
        position = case.position + token
        recent = kv[max(0, position + 1 - case.window) : position + 1]
        keys = np.concatenate([recent, entries[case.chosen_of(token)]])
        expected[token] = twin.attend_in_segments(
            queries, keys, sinks, case.scale, block_size(1), SEGMENTS
        )
        blocks = candidate_blocks(position, case.window, kv, entries, case.chosen_of(token))
        original[token] = attend_as_trained(num, queries, blocks, sinks)
    assert_bf16_close(ours, expected, equal=0.97, steps=2)
    assert relative_rms(ours, expected) < 1e-3
    assert relative_rms(ours, original) < 3e-3  # weights are rounded below another largest score


@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_neither_threads_nor_chunks_change_a_byte(name: str, trained: bool):
    assert_one_result(CASES[name], trained, (2, 9), ((1, 1), (1, 2), (2, 3)))


def assert_one_result(
    case: Case, trained: bool, threads: tuple[int, ...], pieces: tuple[tuple[int, int], ...]
) -> None:
    """Compare ways to divide the same work; pieces are a number of tokens, and of threads."""
    whole = case.run(trained)
    for count in threads:
        assert_same_bytes(case.run(trained, count), whole)
    for size, count in pieces:
        parts = [
            case.run(trained, count, slice(first, min(first + size, len(whole))))
            for first in range(0, len(whole), size)
        ]
        assert_same_bytes(np.concatenate(parts), whole)


@needs_compiler
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("n_heads", [16, 17, 40])
def test_groups_of_heads_change_no_byte(n_heads: int, trained: bool):
    case = random_case(300, n_tokens=3, n_heads=n_heads, n_entries=75)
    assert_one_result(case, trained, (2, 3, 9), ((1, 1), (1, 2), (1, 5)))


@needs_compiler
@pytest.mark.parametrize("trained", [False, True])
@pytest.mark.parametrize("blocks", [3, 5, SEGMENTS - 1, SEGMENTS, 2 * SEGMENTS + 1])
def test_many_segments(blocks: int, trained: bool):
    """Fewer than `SEGMENTS` and as many; at last all hold several blocks."""
    n_chosen = blocks * block_size(int(trained)) - 20
    case = random_case(4 * n_chosen, n_tokens=2, n_heads=17, n_entries=n_chosen, n_chosen=n_chosen)
    case = case._replace(n_chosen=np.array([n_chosen, n_chosen - 1], np.int32))
    case = case._replace(chosen=np.tile(np.arange(n_chosen, dtype=np.int32), (2, 1)))
    assert_one_result(case, trained, (2, 5), ((1, 1), (1, 2)))
    ours = case.run(trained)
    if trained:
        assert_as_trained(case, ours)
        return
    for token, queries in enumerate(case.queries.astype(np.float64)):
        end = case.position + token + 1
        keys = np.concatenate(
            [case.kv[end - case.window : end], case.entries[case.chosen_of(token)]]
        )
        expected = twin.attend(
            queries, keys.astype(np.float64), case.sinks.astype(np.float64), case.scale
        )
        np.testing.assert_allclose(ours[token], expected, rtol=0, atol=2e-6)


def test_matches_the_golden(fixtures):
    """The fixture's candidates are 200 rows of BF16: no window, and no FP8 columns."""
    q, kv, sink = (fixtures[f"sparse_attn.{name}"] for name in ("q", "kv", "sink"))
    listed = fixtures["sparse_attn.idx"]
    counts = np.count_nonzero(listed >= 0, axis=1).astype(np.int32)
    chosen = np.full_like(listed, -1)
    for row, candidates in zip(chosen, listed, strict=True):
        taken = candidates[candidates >= 0]
        row[: len(taken)] = taken
    rows = packed(kv, 128, True)
    out = attend(
        q,
        np.empty((0, rows.shape[1]), np.uint8),
        rows[: len(q)],
        rows,
        chosen,
        counts,
        sink,
        tables=no_rotation(len(q), 128),
        position=0,
        ratio=4,
        scale=float(fixtures["sparse_attn.scale"][0]),
        trained=True,
        threads=1,
    )
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


@pytest.mark.parametrize("trained", [False, True])
def test_queries_are_normalised_and_turned_and_results_turned_back(trained: bool):
    rng = np.random.default_rng(4)
    queries = bf16.round(rng.standard_normal((2, 3, 72)) * 5)
    rows = packed(bf16.round(rng.standard_normal((2, 72))), ROPE_DIM, trained)
    turns = rng.uniform(0, 6, (2, 4)).astype(np.float32)
    tables = np.stack([np.cos(turns), np.sin(turns)], axis=1)
    none, no_rows = np.zeros((2, 0), np.int32), np.empty((0, rows.shape[1]), np.uint8)
    ring = np.zeros((16, rows.shape[1]), np.uint8)

    def run(given: F32, tables: F32, eps: float | None) -> F32:
        return attend(
            given,
            ring,
            rows,
            no_rows,
            none,
            np.zeros(2, np.int32),
            np.zeros(3, np.float32),
            tables=tables,
            position=0,
            ratio=0,
            scale=0.3,
            trained=trained,
            threads=1,
            eps=eps,
        )

    ready = queries.copy()
    for token, head in np.ndindex(2, 3):
        head_norm(ready[token, head], np.float32(EPS), int(trained), np.empty(72, np.float32))
        rotate(ready[token, head], tables[token], np.float32(1), int(trained))
    expected = run(ready, no_rotation(2, ROPE_DIM), None)
    for token, head in np.ndindex(2, 3):
        rotate(expected[token, head], tables[token], np.float32(-1), int(trained))
    assert_same_bytes(run(queries, tables, EPS), expected)
