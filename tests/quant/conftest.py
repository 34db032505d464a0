"""The operator fixtures, which are in the repository."""

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.reference import raw_safetensors

KERNELS = Path(__file__).parents[1] / "golden" / "kernels.safetensors"


@pytest.fixture(scope="session")
def kernels() -> dict[str, NDArray[Any]]:
    """Operator fixtures by name, BF16 widened to float32, read-only."""
    tensors = raw_safetensors.read(KERNELS)
    arrays = {name: raw_safetensors.widen(tensor) for name, tensor in tensors.items()}
    for array in arrays.values():
        array.flags.writeable = False
    return arrays
