from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from localv4 import quant
from localv4.bench.arena import Arena, stored_bytes
from localv4.quant import WeightFormat, bf16

FORMATS = ["fp4", "fp8", "fp8_as_bf16", "bf16", "f32"]


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_sane(name):
    arena = Arena(2**20)
    arena.fill(name)
    for matrix in arena.matrices(name, 64, 512, 2**19, 2**18):
        values: NDArray[Any] = matrix.weights
        if matrix.scales is not None:
            kind: WeightFormat = "fp4" if name == "fp4" else "fp8"
            values = quant.dequantise(matrix.weights, matrix.scales, kind)
        elif name == "bf16":
            values = bf16.decode(matrix.weights)
        assert values.shape == (64, 512)
        sizes = np.abs(values[values != 0])
        assert sizes.size > values.size // 2
        assert np.isfinite(sizes).all()
        assert sizes.min() > 2.0**-100
        assert sizes.max() < 2.0**12


@pytest.mark.parametrize(("name", "expected"), [
    ("fp4", 100 * 256 + 100 * 16), ("fp8", 100 * 512 + 16), ("bf16", 100 * 1024),
    ("f32", 100 * 2048),
])  # fmt: skip
def test_stored_bytes(name, expected):
    assert stored_bytes(name, 100, 512) == expected


@pytest.mark.parametrize("name", FORMATS)
def test_matrices_lie_side_by_side(name):
    arena = Arena(2**20)
    arena.fill(name)
    size = stored_bytes(name, 64, 512)
    found = list(arena.matrices(name, 64, 512, 2**19, 2**18))
    assert len(found) == 2**19 // (-(-size // 64) * 64)
    start = arena.memory.ctypes.data
    end = start + 2**18
    for matrix in found:
        assert matrix.weights.ctypes.data >= end
        end = matrix.weights.ctypes.data + size
    assert end <= start + 2**18 + 2**19
