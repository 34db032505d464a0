"""The operator fixtures, which are in the repository."""

from pathlib import Path
from typing import Any

import pytest
from numpy.typing import NDArray

from tests.reference import raw_safetensors

FIXTURES = Path(__file__).parents[1] / "golden" / "kernels.safetensors"


@pytest.fixture(scope="session")
def fixtures() -> dict[str, NDArray[Any]]:
    """Operator fixtures by name, BF16 widened to float32."""
    tensors = raw_safetensors.read(FIXTURES)
    return {name: raw_safetensors.widen(tensor).copy() for name, tensor in tensors.items()}
