import numpy as np
import pytest

from localv4.kernels.compressor import record_compress
from localv4.kernels.launch import Program
from tests.kernels.compare import assert_same_bytes
from tests.reference import kernels_compressor as twin

# (ratio, overlap, width, tokens); 70 and 130 columns are more than one unit of work
CASES = [
    pytest.param(4, True, 70, 23, id="csa"),
    pytest.param(4, True, 64, 3, id="csa-short"),
    pytest.param(128, False, 130, 261, id="hca"),
    pytest.param(128, False, 8, 127, id="hca-short"),
]


def random_tokens(ratio: int, overlap: bool, width: int, n_tokens: int):
    rng = np.random.default_rng(width)
    columns = (2 if overlap else 1) * width
    kv, score = rng.standard_normal((2, n_tokens, columns), np.float32)
    return kv, score * np.float32(8), rng.standard_normal((ratio, columns), np.float32)


def compress_in_pieces(kv, score, ape, overlap: bool, ends):
    ratio, columns = ape.shape
    coff = 2 if overlap else 1
    kv_state = np.zeros((coff * ratio, columns), np.float32)
    score_state = np.full((coff * ratio, columns), -np.inf, np.float32)
    entries, start = [np.empty((0, columns // coff), np.float32)], 0
    for end in ends:
        part = np.full((-(-(end - start) // ratio), columns // coff), np.nan, np.float32)
        program, place = Program(), np.array([start], np.int64)
        program.phase("compressor")
        record_compress(
            program,
            kv[start:end],
            score[start:end],
            ape,
            place,
            overlap,
            kv_state,
            score_state,
            part,
        )
        program.run(1)
        n_entries = end // ratio - start // ratio
        assert np.isnan(part[n_entries:]).all()
        entries.append(part[:n_entries])
        start = end
    return np.concatenate(entries), kv_state, score_state


@pytest.mark.parametrize(("ratio", "overlap", "width", "n_tokens"), CASES)
def test_entries(ratio: int, overlap: bool, width: int, n_tokens: int):
    kv, score, ape = random_tokens(ratio, overlap, width, n_tokens)
    ours = compress_in_pieces(kv, score, ape, overlap, [n_tokens])[0]
    expected = twin.entries(kv.astype(np.float64), score.astype(np.float64), ape, overlap)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=3e-6)


@pytest.mark.parametrize(("ratio", "overlap", "width", "n_tokens"), CASES)
def test_any_split_gives_the_same_bytes(ratio: int, overlap: bool, width: int, n_tokens: int):
    kv, score, ape = random_tokens(ratio, overlap, width, n_tokens)
    whole = compress_in_pieces(kv, score, ape, overlap, [n_tokens])
    for piece in (1, 3, 4, 5, 127, 128):
        ends = [*range(piece, n_tokens, piece), n_tokens]
        pieces = compress_in_pieces(kv, score, ape, overlap, ends)
        for ours, expected in zip(pieces, whole, strict=True):
            assert_same_bytes(ours, expected)


def test_the_first_entry_has_no_window_before_it():
    kv, score, ape = random_tokens(4, True, 64, 4)
    ours = compress_in_pieces(kv, score, ape, True, [4])[0]
    kv[:, :64], score[:, :64] = 99, 99  # the a-columns
    assert_same_bytes(compress_in_pieces(kv, score, ape, True, [4])[0], ours)


def test_one_large_score_takes_all():
    kv, score, ape = random_tokens(4, True, 64, 8)
    score[2, :64] = 1e4  # a-columns of token 2: in entry 1, by overlap
    ours = compress_in_pieces(kv, score, ape, True, [8])[0]
    assert_same_bytes(ours[1], kv[2, :64])


def test_no_number_stays_in_its_column():
    kv, score, ape = random_tokens(128, False, 8, 128)
    kv[77, 3] = np.nan
    ours = compress_in_pieces(kv, score, ape, False, [128])[0]
    assert np.isnan(ours[0]).tolist() == [column == 3 for column in range(8)]
