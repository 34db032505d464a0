"""Every walk that this CPU can run, also those of lower tiers, against the twin: equal bytes.

Rows by rows (up to three tokens) and by tiles (more). What the matrix unit does is the business
of test_row_dot.py, as it belongs to the tier in force.
"""

import numpy as np
import pytest

from localv4.kernels import lanes, tiers
from localv4.kernels.walk import Walk
from localv4.kernels.walks import walk_for
from localv4.quant import e2m1, e4m3
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler
from tests.kernels.products import KINDS, Product, random_product, spread_floats

pytestmark = needs_compiler

WALKS = {
    walk_for(name, activations, tier): (name, activations)
    for tier in reversed(tiers.available())
    for name, activations in KINDS
}
ROUNDED_FP4 = [walk for walk, kind in WALKS.items() if kind == ("fp4", "fp8")]
FP8 = [walk for walk, kind in WALKS.items() if kind[0] == "fp8"]


def named(walks: list[Walk]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("walk", [pytest.param(walk, id=walk.name) for walk in walks])


@pytest.fixture(autouse=True)
def only_this_walk(monkeypatch: pytest.MonkeyPatch, walk: Walk) -> None:
    monkeypatch.setattr(lanes, "walk_for", lambda *_: walk)
    monkeypatch.setattr(lanes, "walk_for_many", lambda walk: walk)
    monkeypatch.setattr(lanes, "room_for_blocks", lambda *_: None)


def similar(walk: Walk, n_rows: int, n_columns: int, n_tokens: int) -> Product:
    name, activations = WALKS[walk]
    return random_product(name, n_rows, n_columns, n_tokens, 0, activations)


@named(list(WALKS))
@pytest.mark.parametrize("n_tokens", [1, 3, 4, 7, 18])
def test_whole_and_partial_superblocks(walk: Walk, n_tokens: int):
    for n_columns in (32, 256, 288, 512, 544, 1312):
        product = similar(walk, 19, n_columns, n_tokens)
        assert_same_bytes(product.ours(), product.twin())


@named(ROUNDED_FP4)
@pytest.mark.parametrize("n_tokens", [2, 6])
@pytest.mark.parametrize("signs", ["same", "opposite", "alternating", "random"])
def test_the_largest_integers_do_not_overflow(walk: Walk, n_tokens: int, signs: str):
    """All weights 6 and all activations 448 times a scale, the largest of both."""
    rng = np.random.default_rng(0)
    columns, rows, tokens = np.arange(512), np.arange(5), np.arange(n_tokens)
    weight_signs, x_signs = {
        "same": (np.ones((5, 512)), np.ones((n_tokens, 512))),
        "opposite": (np.ones((5, 512)), -np.ones((n_tokens, 512))),
        "alternating": ((-1.0) ** (columns + rows[:, None]), (-1.0) ** (columns + tokens[:, None])),
        "random": (rng.choice([-1, 1], (5, 512)), rng.choice([-1, 1], (n_tokens, 512))),
    }[signs]
    weights = e2m1.pack(e2m1.encode(6 * weight_signs))
    scales = np.full((5, 16), 127, np.uint8)
    x = (448 * 2.0**3 * x_signs).astype(np.float32)
    product = Product("fp4", weights, scales, x, "fp8")
    assert_same_bytes(product.ours(), product.twin())
    exact = (6 * 448 * 2.0**3 * (x_signs @ weight_signs.T)).astype(np.float32)
    assert_same_bytes(product.ours(), exact)


@named(ROUNDED_FP4)
def test_every_pair_of_an_fp4_code_and_an_fp8_code(walk: Walk):
    """Each of the 256 activations alone, with 448 in its block so that the scale is one."""
    octets = np.arange(256, dtype=np.uint8)
    weights = octets[:, None] + octets[:128]
    codes = e4m3.decode(octets)
    codes[np.isnan(codes)] = 0
    x = np.zeros((256, 256), np.float32)
    x[octets, (octets * 37) % 128] = codes
    x[:, 255] = x[:, 127] = 448
    x[127, 127] = 0
    product = Product("fp4", weights, np.full((256, 8), 127, np.uint8), x, "fp8")
    assert_same_bytes(product.ours(), product.twin())


@named(ROUNDED_FP4)
@pytest.mark.parametrize("poison", [np.nan, np.inf, -np.inf])
@np.errstate(all="ignore")
def test_a_block_of_activations_without_a_scale_gives_no_number(walk: Walk, poison: float):
    for n_tokens in (1, 5):
        product = similar(walk, 7, 512, n_tokens)
        product.x[-1, 300] = poison
        ours = product.ours()
        assert np.isnan(ours[-1]).all()
        assert_same_bytes(ours[:-1], product.twin()[:-1])


@named(FP8)
@pytest.mark.parametrize("n_tokens", [1, 5])
def test_every_fp8_code(walk: Walk, n_tokens: int):
    """A NaN code is none, or 480 for the CPUs that have no table of all codes."""
    codes = np.arange(256, dtype=np.uint8)
    weights = np.repeat(codes[:, None], 256, axis=1)
    scales = np.array([[1, 0.3], [3, 1e-3]], np.float32)
    x: F32 = spread_floats(np.random.default_rng(2), n_tokens, 256)
    product = Product("fp8", weights, scales, x)._replace(activations=WALKS[walk][1])
    if WALKS[walk][1] == "bf16":
        product = product._replace(x=random_product("fp8", 1, 256, n_tokens, 3, "bf16").x)
    ours, twin = product.ours(), product.twin()
    nan = np.isnan(e4m3.decode(codes))
    assert_same_bytes(ours[:, ~nan], twin[:, ~nan])
    if walk.name in ("fp8_half", "fp8_bf16"):
        ones = product._replace(x=np.eye(n_tokens, 256, dtype=np.float32))
        np.testing.assert_array_equal(ones.ours()[0, nan], [480, -480 * 3])
    else:
        assert np.isnan(ours[:, nan]).all()
