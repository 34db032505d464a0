"""Small state files and what they hold, for tests."""

from pathlib import Path
from typing import Any

import numpy as np

from localv4.state_file import open_state, read_head

HEAD = {"title": "a talk", "text": ["Grüße", "\udcff"], "n_tokens": 7}
INTACT = "text is intact and opens without its state"


def arrays(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "layers.0.window": rng.integers(0, 256, (3, 5), np.uint8),
        "ids": rng.integers(-9, 9, 4, np.int64),
        "none": np.empty((0, 4), np.float32),
        "hidden": rng.standard_normal((2, 3)).astype(np.float32),
    }


def assert_same(path: Path, head: dict[str, Any], expected: dict[str, np.ndarray]) -> None:
    with open_state(path) as file:
        assert file.head == head
        assert list(file.sections) == list(expected)
        for name, array in expected.items():
            found = file.read(name)
            assert (found.dtype, found.shape) == (array.dtype, array.shape)
            assert found.tobytes() == array.tobytes()
        file.verify()
    assert read_head(path) == head
