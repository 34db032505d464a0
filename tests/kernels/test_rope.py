import numpy as np
import pytest

from localv4.config import RopeScaling
from localv4.kernels.rope import angles
from localv4.kernels.rope import rotate as rotate_row
from localv4.quant import bf16
from localv4.rope import frequencies
from tests.kernels.compare import assert_bf16_close, assert_same_bytes, relative_rms
from tests.reference import kernels_rope as twin


def rope_table(positions, theta):
    """Return cosines and sines: float32 [n_positions, 2, n_frequencies]."""
    out = np.full((len(positions), 2, len(theta)), np.nan, np.float32)
    for position, table in zip(positions, out, strict=True):
        angles(int(position), theta, table)
    return out


def rotate(x, table, trained: bool, inverse: bool = False) -> None:
    """Rotate x [n_tokens, n_heads, columns] in place."""
    for token, head in np.ndindex(x.shape[:2]):
        rotate_row(x[token, head], table[token], np.float32(-1 if inverse else 1), int(trained))


TAGS = ["main10000", "tiny_compress", "edge_compress", "real_compress"]


def golden_parameters(fixtures, tag: str):
    """Return theta, original positions, factor, beta_fast and beta_slow."""
    theta, original, *rest = fixtures[f"rope.{tag}.params"].tolist()
    return theta, int(original), *rest


@pytest.mark.parametrize("tag", TAGS)
def test_tables_match_the_golden(fixtures, tag: str):
    theta, *yarn = golden_parameters(fixtures, tag)
    positions = fixtures[f"rope.{tag}.positions"].astype(np.int64)
    table = rope_table(positions, twin.frequencies(theta, 64, *yarn))
    assert table.shape == (len(positions), 2, 32)
    for number, part in enumerate(("cos", "sin")):
        expected = fixtures[f"rope.{tag}.{part}"]
        # half a unit in the last place of a float32 below 1 is 3e-8; the golden was rounded too
        np.testing.assert_allclose(table[:, number], expected, rtol=0, atol=6e-8)


@pytest.mark.parametrize("tag", TAGS)
def test_the_engine_has_these_frequencies(fixtures, tag: str):
    theta, original, factor, fast, slow = golden_parameters(fixtures, tag)
    scaling = RopeScaling(
        factor=factor, original_max_position_embeddings=original, beta_fast=fast, beta_slow=slow
    )
    ours = frequencies(theta, 64, scaling if original else None)
    assert_same_bytes(ours, twin.frequencies(theta, 64, original, factor, fast, slow))


def test_table_at_the_last_positions():
    """The angle is a float32 product, its cosine that of float64, also far out."""
    positions = np.array([0, 1, 2**20 - 1, 2**24 + 1], np.int64)
    theta = np.array([1, 0.75, 1e-4], np.float32)
    angles = positions.astype(np.float32)[:, None] * theta
    expected = [np.cos(angles.astype(np.float64)), np.sin(angles.astype(np.float64))]
    # two libraries' float64 cosines may differ in the last place, seldom in float32
    np.testing.assert_allclose(rope_table(positions, theta), np.stack(expected, 1), atol=6e-8)


def test_rotation_matches_the_golden(fixtures):
    parts = [fixtures[f"rope.edge_compress.{part}"] for part in ("cos", "sin")]
    table = np.stack(parts, axis=1)
    x = fixtures["rope_apply.x"].copy()
    rotate(x, table, trained=True)
    assert relative_rms(x, fixtures["rope_apply.y"]) < 1e-6
    assert_bf16_close(x, fixtures["rope_apply.y"], equal=0.999)
    x = fixtures["rope_apply.y"].copy()
    rotate(x, table, trained=True, inverse=True)
    assert relative_rms(x, fixtures["rope_apply.inverse_of_y"]) < 1e-6


@pytest.mark.parametrize("columns", [8, 24])
@pytest.mark.parametrize("inverse", [False, True])
def test_rotation_is_a_complex_product(columns: int, inverse: bool):
    rng = np.random.default_rng(columns)
    x = rng.standard_normal((5, 3, columns), np.float32)
    angles = rng.uniform(0, 6, (5, 4)).astype(np.float32)
    table = np.stack([np.cos(angles), np.sin(angles)], axis=1)
    turn = np.exp(1j * angles.astype(np.float64) * (-1 if inverse else 1))[:, None]
    turned = (x[..., -8::2].astype(np.float64) + 1j * x[..., -7::2]) * turn
    expected = x.astype(np.float64)
    expected[..., -8::2], expected[..., -7::2] = turned.real, turned.imag
    ours = x.copy()
    rotate(ours, table, trained=False, inverse=inverse)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-6)
    assert_same_bytes(ours[..., :-8], x[..., :-8])
    rounded = x.copy()
    rotate(rounded, table, trained=True, inverse=inverse)
    assert_same_bytes(rounded[..., -8:], bf16.round(ours[..., -8:]))
    assert_same_bytes(rounded[..., :-8], x[..., :-8])
