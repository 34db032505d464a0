"""Every layout of activations against an obvious construction in NumPy."""

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4 import quant
from localv4.kernels import lanes
from localv4.kernels.arrays import aligned
from localv4.kernels.decode import FP4_OFFSET
from localv4.kernels.launch import Program
from localv4.kernels.walk import Walk
from localv4.kernels.walks import walk_for
from localv4.kernels.walks_fp4 import FP4_HALVES
from localv4.quant import bf16, e4m3
from tests.kernels.compare import F32, assert_same_bytes, assert_same_numbers, needs_compiler
from tests.kernels.products import arranged, spread_floats
from tests.reference import row_dot

RNG = np.random.default_rng(0)


def use(monkeypatch: pytest.MonkeyPatch, walk: Walk) -> None:
    """Arrange for this walk, whatever the tier in force."""
    monkeypatch.setattr(lanes, "walk_for", lambda *_: walk)
    monkeypatch.setattr(lanes, "walk_for_many", lambda walk: walk)
    monkeypatch.setattr(lanes, "room_for_blocks", lambda *_: None)


def steps_of(name: str, x: F32) -> F32:
    """Return activations as the twin walks them, [token, superblock, step, lane]."""
    columns = row_dot.ORDERS[name].columns
    n_superblocks = -(-x.shape[1] // columns.size)
    blocks = row_dot.padded(x, n_superblocks * columns.size).reshape(len(x), -1, columns.size)
    return np.ascontiguousarray(blocks[:, :, columns])


@pytest.mark.parametrize("name", row_dot.ORDERS)
@pytest.mark.parametrize("n_columns", [1, 40, 256, 300, 513])
def test_float32_is_moved_and_padded_with_zeros(
    monkeypatch: pytest.MonkeyPatch, name: str, n_columns: int
):
    use(monkeypatch, walk_for(name, "f32", "generic"))
    x = spread_floats(RNG, 3, n_columns)
    before = x.copy()
    room = arranged(x, name)
    assert (room.order, room.activations, room.n_columns) == (name, "f32", n_columns)
    assert_same_bytes(room.memory.view(np.float32), steps_of(name, x).reshape(3, -1))
    assert_same_bytes(x, before)


@pytest.mark.parametrize("name", ["fp8", "fp8_as_bf16", "f32"])
@pytest.mark.parametrize("n_columns", [128, 200, 512])
def test_float32_is_rounded_to_fp8_in_blocks_of_128(
    monkeypatch: pytest.MonkeyPatch, name: str, n_columns: int
):
    use(monkeypatch, walk_for(name, "f32", "generic"))
    x = spread_floats(RNG, 4, n_columns)
    padded = row_dot.padded(x, -(-n_columns // 128) * 128)
    expected = steps_of(name, quant.fp8_sim(padded, 128)).reshape(4, -1)
    ours = arranged(x, name, "fp8").memory.view(np.float32)
    assert_same_numbers(ours, expected)


def expected_pairs(name: str, x: F32) -> NDArray[np.uint32]:
    """Return BF16 pairs; a step adds the column in the upper half first."""
    codes = bf16.encode(steps_of(name, x)).astype(np.uint32)
    pairs: NDArray[np.uint32] = codes[:, :, ::2] << np.uint32(16) | codes[:, :, 1::2]
    return pairs.reshape(len(x), -1)


@pytest.mark.parametrize("name", ["fp8", "bf16"])
@pytest.mark.parametrize("n_columns", [128, 200, 512])
def test_pairs_of_bf16(monkeypatch: pytest.MonkeyPatch, name: str, n_columns: int):
    use(monkeypatch, walk_for(name, "bf16", "avx512_bf16"))
    x = bf16.round(spread_floats(RNG, 3, n_columns))
    ours = arranged(x, name, "bf16").memory.view(np.uint32)
    np.testing.assert_array_equal(ours, expected_pairs(name, x))
    ours = arranged(x, name, "fp8").memory.view(np.uint32)
    rounded = quant.fp8_sim(row_dot.padded(x, -(-n_columns // 128) * 128), 128)
    # a zero has any sign
    np.testing.assert_array_equal(
        bf16.decode(ours.view(np.uint16)),
        bf16.decode(expected_pairs(name, rounded).view(np.uint16)),
    )


def units_and_scales(x: F32) -> tuple[NDArray[np.int64], F32]:
    """Return FP8 activations as whole multiples of 2^-9, and the scales of 128 columns."""
    codes, scales = quant.act_quant(row_dot.padded(x, -(-x.shape[1] // 512) * 512), 128)
    return (512 * e4m3.decode(codes)).astype(np.int64), scales


def assert_lane_scales(ours: F32, scales: F32) -> None:
    """Lane 4s+z has block z of its superblock, times 2^-10."""
    blocks = scales.reshape(len(scales), -1, 4)[:, :, np.arange(16) & 3]
    assert_same_bytes(np.ascontiguousarray(ours), blocks * np.float32(2.0**-10))


@pytest.mark.parametrize("n_columns", [32, 256, 416, 1024])
def test_integers(monkeypatch: pytest.MonkeyPatch, n_columns: int):
    use(monkeypatch, walk_for("fp4", "fp8", "generic"))
    x = spread_floats(RNG, 3, n_columns)
    units, scales = units_and_scales(x)
    words = arranged(x, "fp4", "fp8").memory.view(np.float32).reshape(3, -1, 1040)
    blocks = units.reshape(3, -1, 4, 4, 32).transpose(0, 1, 4, 3, 2)  # step, s, z
    highest = words[:, :, :512]
    np.testing.assert_array_equal(highest, (blocks.reshape(3, -1, 512) + 2080) // 4096 * 4096)
    together = highest + words[:, :, 512:1024]
    np.testing.assert_array_equal(together, blocks.reshape(3, -1, 512))
    assert_lane_scales(words[:, :, 1024:], scales)


def digit_columns() -> NDArray[np.int64]:
    """Register 2w+h, lane 4s+z, byte b: column 8w+2b+h of the scale block 4z+s."""
    columns = np.full((8, 16, 4), -1)
    for w, h, s, z, b in np.ndindex(4, 2, 4, 4, 4):
        columns[2 * w + h, 4 * s + z, b] = 32 * (4 * z + s) + 8 * w + 2 * b + h
    assert sorted(columns.ravel()) == list(range(512))
    return columns


def all_fp8_values() -> F32:
    """Return tokens that hold every FP8 value, and blocks of the largest of either sign."""
    values = e4m3.decode(np.arange(256, dtype=np.uint8))
    values[np.isnan(values)] = 448
    return np.stack([values, np.full(256, 448), np.full(256, -448)]).astype(np.float32)


@pytest.mark.parametrize("tier", ["avx512_vnni", "amx"])
@pytest.mark.parametrize("n_columns", [32, 256, 416, 1024, 0])
def test_digits(monkeypatch: pytest.MonkeyPatch, n_columns: int, tier: str):
    walk = walk_for("fp4", "fp8", tier)
    use(monkeypatch, walk)
    x = spread_floats(RNG, 3, n_columns) if n_columns else all_fp8_values()
    units, scales = units_and_scales(x)
    memory = arranged(x, "fp4", "fp8").memory.reshape(3, -1, walk.lane_bytes)
    digits = memory[:, :, :1536].view(np.int8).astype(np.int64).reshape(3, -1, 3, 8, 16, 4)
    assert (np.abs(digits) <= 64).all()  # so that no kernel's 16-bit sum overflows
    together = (digits[:, :, 0] * 64 + digits[:, :, 1]) * 64 + digits[:, :, 2]
    np.testing.assert_array_equal(together, units.reshape(3, -1, 512)[:, :, digit_columns()])
    highest = digits[:, :, 0]
    apart = [highest, together - 4096 * highest]
    for part, numbers in enumerate(apart if tier == "amx" else [together]):
        place = 1536 + 64 * part
        ours = np.ascontiguousarray(memory[:, :, place : place + 64]).view(np.int32)
        np.testing.assert_array_equal(ours, -FP4_OFFSET * numbers.sum(axis=(2, 4)))
    assert_lane_scales(np.ascontiguousarray(memory[:, :, -64:]).view(np.float32), scales)


@pytest.mark.parametrize("poison", [np.nan, -np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("tier", ["generic", "avx512_vnni"])
@np.errstate(all="ignore")
def test_a_block_without_a_scale_has_none(
    monkeypatch: pytest.MonkeyPatch, poison: float, tier: str
):
    walk = walk_for("fp4", "fp8", tier)
    use(monkeypatch, walk)
    x = spread_floats(RNG, 2, 1024)
    x[0, 200] = poison
    tokens = arranged(x, "fp4", "fp8").memory.reshape(2, 2, walk.lane_bytes)
    scales = np.ascontiguousarray(tokens[:, :, -64:]).view(np.float32)
    lost = np.zeros((2, 2, 16), bool)
    lost[0, 0] = (np.arange(16) & 3) == 1
    np.testing.assert_array_equal(np.isnan(scales), lost)


@pytest.mark.parametrize(
    ("name", "activations", "tier"),
    [
        ("fp8", "fp8", "avx512_bf16"),
        ("bf16", "bf16", "avx512_bf16"),
        ("fp8", "fp8", "generic"),
        ("f32", "f32", "generic"),
        ("fp4", "fp8", "generic"),
        ("fp4", "fp8", "avx512_vnni"),
        ("fp4", "fp8", "halves"),
    ],
)
@pytest.mark.parametrize("n_columns", [1024, 1300])
@needs_compiler  # the loops are those of few tokens
def test_few_tokens_are_shared_out_by_columns(
    monkeypatch: pytest.MonkeyPatch, name: str, activations: str, tier: str, n_columns: int
):
    use(monkeypatch, FP4_HALVES if tier == "halves" else walk_for(name, activations, tier))
    x = bf16.round(spread_floats(RNG, 40, n_columns))
    many, few = (arranged(tokens, name, activations).memory for tokens in (x, x[:3]))
    if tier == "halves":  # of the places for scales, 4 of 16 are used
        many, few = (m.reshape(len(m), -1, 528 * 4)[:, :, : 516 * 4] for m in (many, few))
    assert_same_bytes(few, many[:3])  # of many, each is one unit


def test_memory_begins_at_a_cache_line():
    for shape in ((1, 1), (3, 5), (2, 1000)):
        memory = aligned(shape, np.float32)
        assert memory.ctypes.data % 64 == 0
        assert memory.shape == shape
        assert memory.dtype == np.float32
        assert memory.flags.c_contiguous


def test_the_room_must_fit():
    room = lanes.Lanes.room("f32", False, 2, 16)
    for shape in ((2, 17), (1, 16)):
        with pytest.raises(AssertionError):
            lanes.arrange(Program(), np.zeros(shape, np.float32), room)
