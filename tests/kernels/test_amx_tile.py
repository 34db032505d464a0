"""Products in the matrix unit against the twin and the kernels for few tokens: equal bytes.

Other numbers of tokens are the business of test_row_dot.py.
"""

import numpy as np
import pytest

from localv4 import quant
from localv4.kernels import tiers
from localv4.kernels.arrays import aligned
from localv4.kernels.lanes import Lanes, packing_bytes
from localv4.kernels.launch import Program
from localv4.kernels.packing import FEWEST_HALVES
from localv4.kernels.walks import walk_for, walk_for_many
from localv4.quant import bf16, e2m1, e4m3
from tests.kernels.compare import F32, assert_same_bytes, needs_compiler
from tests.kernels.products import (
    Product,
    arranged,
    random_product,
    run_product,
    spread_floats,
    taken,
)

pytestmark = [
    needs_compiler,
    pytest.mark.skipif(tiers.active() != "amx", reason="the tier in force has no matrix unit"),
]

_SOME_TOKENS = max(10, FEWEST_HALVES)  # enough for the matrix unit, less than a block

in_the_unit = pytest.mark.parametrize(
    ("name", "activations", "usual"),
    [
        ("fp4", "fp8", True),
        ("fp4", "fp8", False),
        ("fp8", "fp8", True),
        ("fp8", "fp8", False),
        ("fp8", "bf16", True),
        ("fp8", "bf16", False),
        ("bf16", "bf16", False),
    ],
)
"""Every format; with usual scales weights are multiplied with them before the unit."""


@in_the_unit
@pytest.mark.parametrize("n_columns", [32, 288, 512, 1024, 1312, 5120])
def test_whole_and_partial_superblocks(name: str, activations: str, usual: bool, n_columns: int):
    product = random_product(name, 37, n_columns, 20, 0, activations, usual)
    assert_same_bytes(product.ours(), product.twin())


@in_the_unit
@pytest.mark.parametrize("n_rows", [1, 15, 16, 17, 31, 32, 33, 64, 95])
@pytest.mark.parametrize("n_tokens", [10, 16, 33])
def test_whole_and_partial_units(
    name: str, activations: str, usual: bool, n_rows: int, n_tokens: int
):
    product = random_product(name, n_rows, 544, n_tokens, 1, activations, usual)
    lanes, matrix = product.lanes(), product.matrix()
    assert lanes.blocks is not None
    few = [arranged(product.x[first : first + 1], name, activations) for first in range(n_tokens)]
    assert all(one.blocks is None for one in few)
    alone = np.concatenate([run_product(one, matrix) for one in few])
    assert_same_bytes(run_product(lanes, matrix), alone)


@in_the_unit
@pytest.mark.parametrize(
    ("first", "n_rows", "n_tokens"), [(0, 530, 130), (37, 480, 129), (5, 1040, 65)]
)
def test_units_of_several_blocks_of_rows_and_of_tokens(
    name: str, activations: str, usual: bool, first: int, n_rows: int, n_tokens: int
):
    """Rows that begin inside a block; tokens that do not fill a unit."""
    product = random_product(name, first + n_rows, 544, n_tokens, 4, activations, usual)
    matrix = product.matrix().rows(first, n_rows)
    few = [arranged(product.x[token : token + 1], name, activations) for token in range(n_tokens)]
    alone = np.concatenate([run_product(one, matrix) for one in few])
    assert_same_bytes(run_product(product.lanes(), matrix), alone)


@pytest.mark.parametrize("n_taken", [1, 2, 5])
def test_few_tokens_of_many_stay_in_the_unit(n_taken: int):
    product = random_product("fp4", 40, 512, _SOME_TOKENS, 2, "fp8")
    lanes, matrix = product.lanes(), product.matrix()
    tokens = [7, 0, 3, 3, 8][:n_taken]
    assert_same_bytes(run_product(taken(lanes, tokens), matrix), product.twin()[tokens])


@pytest.mark.parametrize("sign", ["same", "opposite", "alternating"])
def test_the_largest_numbers_of_fp4_are_summed_exactly(sign: str):
    """All weights 6 and activations 448, or the largest below the limit of the halves."""
    columns = np.arange(1024)
    signs = {"same": 1.0, "opposite": -1.0, "alternating": (-1.0) ** columns}[sign]
    weights = e2m1.pack(e2m1.encode(np.full((5, 1024), 6.0) * signs))
    scales = np.full((5, 32), 127, np.uint8)
    sizes = np.resize(np.array([448, 60, 64, 56, 2.0**-9, 0, 1, 52], np.float32), _SOME_TOKENS)
    x: F32 = np.repeat(sizes[:, None], 1024, axis=1)
    x[:, ::128] = 448  # keeps the scale at one
    x[:, 5::7] = np.float32(2.0**-9) * 7
    product = Product("fp4", weights, scales, x, "fp8")
    assert_same_bytes(product.ours(), product.twin())


def test_every_fp8_code_meets_every_fp4_code():
    octets = np.arange(256, dtype=np.uint8)
    codes = e4m3.decode(octets)
    codes[np.isnan(codes)] = 0
    x = np.zeros((256, 512), np.float32)
    x[octets, (octets * 37) % 128] = codes
    x[:, 127] = 448
    x[127, 127] = 0
    weights = octets[:, None] + np.arange(256, dtype=np.uint8)
    product = Product("fp4", weights, np.full((256, 16), 127, np.uint8), x, "fp8")
    assert_same_bytes(product.ours(), product.twin())


@pytest.mark.parametrize("poison", [np.nan, np.inf])
@np.errstate(all="ignore")
def test_a_block_of_activations_without_a_scale_gives_no_number(poison: float):
    product = random_product("fp4", 7, 1024, _SOME_TOKENS, 3, "fp8")
    product.x[-1, 300] = poison
    ours = product.ours()
    assert np.isnan(ours[-1]).all()
    assert_same_bytes(ours[:-1], product.twin()[:-1])


def test_halves_are_the_digits_of_the_activations_times_their_scales():
    x = np.random.default_rng(0).standard_normal((10, 600), np.float32)
    lanes = arranged(x, "fp4", "fp8")
    walk = walk_for_many(walk_for("fp4", "fp8"))
    assert lanes.walk is walk
    assert walk.layout == "halves"
    words = lanes.memory.view(np.uint16).reshape(10, 2, -1)
    halves = bf16.decode(words[:, :, :1024]).reshape(10, 2, 16, 2, 32)
    scales = np.ascontiguousarray(words[:, :, 1024:1032]).view(np.float32)
    digits = halves / np.repeat(scales, 4, axis=2)[..., None, None]
    upper, lower = digits[:, :, :, 0], digits[:, :, :, 1]
    assert (upper % 4096 == 0).all()
    assert (lower == np.rint(lower)).all()
    assert (np.abs(lower) <= 2080).all()
    codes, _ = quant.act_quant(np.pad(x, ((0, 0), (0, 424))), 128)
    units = (512 * e4m3.decode(codes)).reshape(10, 2, 512)[:, :, walk.columns]
    assert_same_bytes((upper + lower).reshape(10, 2, 512), units)


@pytest.mark.parametrize("first", range(0, 256, 32))
@np.errstate(all="ignore")
def test_every_scale_of_fp4(first: int):
    """A unit's rows have one scale each: units of usual scales, of others and of both."""
    product = random_product("fp4", 64, 1056, 18, 5, "fp8")
    assert product.scales is not None
    usual = np.arange(first, first + 32, dtype=np.uint8)
    product.scales[:32] = usual[:, None]
    product.scales[32:] = np.arange(33, dtype=np.uint8) + np.uint8(first)
    product = product._replace(x=product.x * np.float32(2.0**20))
    twin = product.twin()
    assert_same_bytes(product.ours()[np.isfinite(twin)], twin[np.isfinite(twin)])
    np.testing.assert_array_equal(np.isfinite(product.ours()), np.isfinite(twin))


@pytest.mark.parametrize("exponent", [-61, -60, -20, -1, 0, 1])
def test_every_fp8_code_with_scales_at_the_limits(exponent: int):
    octets = np.arange(256, dtype=np.uint8)
    weights = octets[:, None] + np.arange(256, dtype=np.uint8)
    weights[np.isnan(e4m3.decode(weights))] = 0x80
    scales = np.full((2, 2), 2.0**exponent, np.float32)
    scales[1, 1] = 2.0**-3
    x = bf16.round(spread_floats(np.random.default_rng(6), 20, 256))
    product = Product("fp8", weights, scales, x, "bf16")
    assert_same_bytes(product.ours(), product.twin())


@pytest.mark.parametrize("exponent", [-130, -100, -60, -41, -40, 0, 40, 41, 60, 120])
@pytest.mark.parametrize("everywhere", [True, False])
def test_activations_at_the_limits(exponent: int, everywhere: bool):
    """Products that would be too small or too large if they met scaled weights."""
    product = random_product("fp8", 40, 544, 35, 7, "bf16", usual_scales=True)
    x = np.sign(product.x)
    if everywhere:
        x *= np.float32(2.0**exponent)
    else:
        x[20, 300] = 2.0**exponent
    product = product._replace(x=x)
    assert_same_bytes(product.ours(), one_by_one(product))


@pytest.mark.parametrize("exponent", [-30, 0, 30, 31, 32, 33, 60, 100])
def test_activations_of_fp4_at_the_limits(exponent: int):
    product = random_product("fp4", 40, 544, 35, 8, "fp8", usual_scales=True)
    product = product._replace(x=product.x * np.float32(2.0**exponent))
    assert_same_bytes(product.ours(), product.twin())


def one_by_one(product: Product) -> F32:
    """Multiply one token after the other: the kernels for few tokens."""
    matrix = product.matrix()
    few = [arranged(token[None], product.name, product.activations) for token in product.x]
    return np.concatenate([run_product(one, matrix) for one in few])


@pytest.mark.parametrize(("name", "parts_of"), [("fp4", 1), ("fp4", 12), ("fp8", 12)])
def test_parts_are_packed_in_the_room_that_is_planned(name: str, parts_of: int):
    rng = np.random.default_rng(parts_of)
    lanes = Lanes.room(name, True, 300, 640, parts_of=parts_of)
    assert lanes.blocks is None
    sizes = rng.integers(1, 40, 20)
    room = aligned((packing_bytes(name, 640, parts_of, 20, int(sizes.sum())),), np.uint8)
    assert (room.size == 0) == (parts_of == 1)
    left, program = room, Program()
    program.phase("other")
    for size in sizes:
        chosen = lanes.take(program, np.arange(size, dtype=np.int32), left)
        if chosen.blocks is not None:
            assert np.shares_memory(chosen.blocks, room)
            left = left[chosen.blocks.nbytes :]
