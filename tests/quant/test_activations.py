from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from localv4 import quant
from localv4.errors import InvalidInput
from localv4.quant import bf16, e2m1, e4m3, e8m0
from tests.quant import scalar
from tests.quant.bits import AWKWARD_NAN_BITS, assert_same_bits

FLOATS = st.floats(width=32, allow_nan=False, allow_infinity=False)
ROWS = hnp.arrays(np.float32, (2, 8), elements=FLOATS | st.floats(-4, 4, width=32))
SIMS = [quant.fp8_sim, quant.fp4_sim]
QUANTISERS = [quant.act_quant, quant.fp8_quant, quant.fp4_quant]


def test_act_quant_matches_the_golden(kernels):
    codes, scales = quant.act_quant(kernels["act_quant128.x"])
    assert_same_bits(codes, kernels["act_quant128.q"])
    assert_same_bits(scales, kernels["act_quant128.s"])


def test_fp8_sim_matches_the_golden(kernels):
    assert_same_bits(quant.fp8_sim(kernels["act_quant64_sim.x"]), kernels["act_quant64_sim.y"])


def test_fp4_sim_matches_the_golden(kernels):
    assert_same_bits(quant.fp4_sim(kernels["fp4_quant32_sim.x"]), kernels["fp4_quant32_sim.y"])


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_act_quant_matches_rational_arithmetic(x):
    codes, scales = quant.act_quant(x, block=4)
    for row, block in np.ndindex(2, 2):
        part = slice(4 * block, 4 * block + 4)
        wanted, scale = scalar.quantise_block(
            x[row, part], float(np.float32(1e-4)), scalar.E4M3_MAGNITUDES
        )
        assert codes[row, part].tolist() == wanted
        assert float(scales[row, block]) == scale


@settings(deadline=None, max_examples=60)
@given(ROWS)
def test_fp4_quant_matches_rational_arithmetic(x):
    codes, scale_codes = quant.fp4_quant(x, block=4)
    for row, block in np.ndindex(2, 2):
        part = slice(4 * block, 4 * block + 4)
        wanted, scale = scalar.quantise_block(x[row, part], 6 * 2.0**-126, scalar.E2M1_MAGNITUDES)
        assert codes[row, part].tolist() == wanted
        assert float(e8m0.decode(scale_codes)[row, block]) == scale


@pytest.mark.parametrize("largest", [448, 6])
def test_pow2_scale_at_and_around_every_power(largest: int):
    powers = np.ldexp(np.float32(largest), np.arange(-20, 100)).astype(np.float32)
    for amax in (
        np.nextafter(powers, np.float32(0)),
        powers,
        np.nextafter(powers, np.float32(1e38)),
    ):
        wanted = [float(scalar.power_of_two(float(a), largest)) for a in amax]
        assert quant.pow2_scale(amax, largest).tolist() == wanted


def test_pow2_scale_of_no_number_is_nan():
    assert np.isnan(quant.pow2_scale([np.inf, np.nan, -np.inf], 6)).all()
    assert quant.pow2_scale(448.0, 448).shape == ()


@settings(deadline=None, max_examples=60)
@given(hnp.arrays(np.float32, (2, 64), elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_a_sim_is_stable_and_its_values_are_bf16(x):
    for sim in SIMS:
        y = sim(x)
        assert_same_bits(bf16.round(y), y)
        assert_same_bits(sim(y), y)


@settings(deadline=None, max_examples=40)
@given(
    hnp.arrays(np.float32, (1, 32), elements=st.floats(2.0**-6, 4, width=32)),
    st.integers(0, 60),
)
def test_a_power_of_two_moves_into_the_scale(x, power):
    moved = np.ldexp(x, power)
    for quantise in (quant.act_quant, quant.fp4_quant):
        codes, scales = quantise(x, 32)
        moved_codes, moved_scales = quantise(moved, 32)
        assert_same_bits(moved_codes, codes)
        if scales.dtype == np.uint8:
            assert_same_bits(moved_scales, (scales + power).astype(np.uint8))
        else:
            assert_same_bits(moved_scales, np.ldexp(scales, power))


def test_the_packed_forms_read_back_as_the_sims():
    x = np.random.default_rng(3).standard_normal((3, 5, 128), np.float32) * 30
    codes, scale_codes = quant.fp8_quant(x)
    assert (codes.shape, scale_codes.shape) == ((3, 5, 128), (3, 5, 2))
    assert_same_bits(quant.fp8_dequant(codes, scale_codes), quant.fp8_sim(x))
    codes, scale_codes = quant.fp4_quant(x)
    assert (codes.shape, scale_codes.shape) == ((3, 5, 128), (3, 5, 4))
    packed = e2m1.pack(codes)
    assert_same_bits(quant.fp4_dequant(e2m1.unpack(packed), scale_codes), quant.fp4_sim(x))


def test_the_floors():
    codes, scales = quant.act_quant(np.zeros((1, 128), np.float32))
    assert (codes == 0).all()
    assert scales.tolist() == [[2.0**-22]]  # 1e-4 / 448 is just below
    codes, scale_codes = quant.fp4_quant(np.full((1, 32), -1e-45, np.float32))
    assert (codes == 8).all()
    assert scale_codes.tolist() == [[1]]


@pytest.mark.parametrize(
    "poison", [*AWKWARD_NAN_BITS.view(np.float32), np.float32(np.inf), np.float32(-np.inf)]
)
def test_no_number_poisons_its_block_and_no_other(poison):
    x = np.ones((2, 256), np.float32)
    x[1, 130] = poison
    _, scales = quant.act_quant(x)
    assert np.isnan(scales).tolist() == [[False, False], [False, True]]
    codes, scale_codes = quant.fp8_quant(x, 128)
    assert scale_codes[1, 1] == e8m0.NAN_CODE
    assert (codes[1, 128:] == 0x7F).all()
    for sim in SIMS:
        is_nan = np.isnan(sim(x, 128))
        assert is_nan[1, 128:].all()
        assert is_nan.sum() == 128


def test_the_largest_floats_warn_of_nothing():
    x = np.full((1, 64), np.finfo(np.float32).max)
    assert quant.fp8_sim(x).tolist() == [[np.inf] * 64]  # 448 * 2^120 rounds up from below 2^128
    assert np.isfinite(quant.fp4_sim(x / 2)).all()


@pytest.mark.parametrize("quantise", [*QUANTISERS, *SIMS])
def test_any_shape_and_layout_and_the_input_stays(quantise: Callable[..., Any]):
    x = np.random.default_rng(5).standard_normal((4, 2, 256), np.float32)
    before = x.copy()
    x.flags.writeable = False
    whole = quantise(x, 32)
    part = quantise(x[::-2, 1], 32)
    strided = quantise(np.asfortranarray(x), 32)
    if not isinstance(whole, tuple):
        whole, part, strided = (whole,), (part,), (strided,)
    for i, array in enumerate(whole):
        assert_same_bits(part[i], array[::-2, 1])
        assert_same_bits(strided[i], array)
    assert_same_bits(x, before)
    empty = quantise(np.empty((0, 128), np.float32), 32)
    assert (empty[0] if isinstance(empty, tuple) else empty).shape == (0, 128)


@pytest.mark.parametrize("quantise", [*QUANTISERS, *SIMS])
def test_part_of_a_block_is_refused(quantise: Callable[..., Any]):
    with pytest.raises(InvalidInput, match=r"x has 100 columns.*multiple"):
        quantise(np.ones((2, 100), np.float32))


def test_codes_and_scales_that_do_not_fit_are_refused():
    codes = e4m3.encode(np.ones((2, 128)))
    with pytest.raises(InvalidInput, match=r"\(2, 4\).*\(2, 128\).*64.*\(2, 2\)"):
        quant.fp8_dequant(codes, np.full((2, 4), 127, np.uint8))
