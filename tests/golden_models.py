"""The golden models: tiny random checkpoints with the logits, caches and choices they must give.

One lies in the repository, the others in the optional folder beside the checkout. The keys of the
golden files are listed in tests/golden/README.md.
"""

import functools
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
from numpy.typing import NDArray

from tests.conftest import SHARED
from tests.reference.raw_safetensors import read, widen

NumericsName = Literal["float32", "trained"]
FILES = {"float32": "golden_f32.safetensors", "trained": "golden_exact.safetensors"}
IN_REPOSITORY = Path(__file__).parent / "golden"


@dataclass(frozen=True)
class GoldenModel:
    """One golden checkpoint and what it must give."""

    name: str
    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "model"

    def goldens(self, numerics: NumericsName) -> Mapping[str, NDArray[Any]]:
        """Every golden array of one numerics by key: float32, or integers."""
        return _goldens(self.folder / "golden" / FILES[numerics])


@functools.cache
def _goldens(path: Path) -> Mapping[str, NDArray[Any]]:
    arrays = {key: widen(tensor) for key, tensor in read(path).items()}
    return {
        key: array.astype(np.float32) if array.dtype == np.float16 else array
        for key, array in arrays.items()
    }


def golden_models() -> Iterator[GoldenModel]:
    """Find every golden model; the repository's copy goes before one of the same name beside it."""
    found: dict[str, Path] = {}
    for parent in (IN_REPOSITORY, SHARED / "golden"):
        for config in sorted(parent.glob("*/model/config.json")):
            folder = config.parents[1]
            found.setdefault(folder.name, folder)
    return (GoldenModel(name, folder) for name, folder in found.items())


def every_golden_model() -> Callable[[Any], Any]:
    """Parametrise a fixture or test argument called ``model`` with every golden model."""
    models = list(golden_models())
    return pytest.mark.parametrize("model", models, ids=[model.name for model in models])


Observations = dict[tuple[str, int], NDArray[Any]]


class Recorder:
    """An ``observe`` callback that joins what each call of the session hands over."""

    def __init__(self) -> None:
        self._rows: dict[tuple[str, int], list[NDArray[Any]]] = {}

    def __call__(self, name: str, layer: int, position: int, array: NDArray[Any]) -> None:
        # A copy, since an engine may hand over the same workspace every time.
        self._rows.setdefault((name, layer), []).append(np.array(array))

    def joined(self) -> Observations:
        return {key: np.concatenate(rows) for key, rows in self._rows.items()}


def golden_key(tokens: int, name: str, layer: int) -> str:
    """Key of one observed intermediate of the prefill of ``tokens`` tokens."""
    return f"hidden.L{tokens}." + (f"h{layer}" if name == "h" else f"layer{layer}.{name}")


def assert_same_choices(ours: NDArray[Any], golden: NDArray[Any]) -> None:
    """Compare choices row by row as sets; -1 is padding and rows may differ in width."""
    assert len(ours) == len(golden)
    for row, (our, expected) in enumerate(zip(ours, golden, strict=True)):
        our_set, expected_set = set(our[our >= 0]), set(expected[expected >= 0])
        assert our_set == expected_set, f"row {row}: {sorted(our_set)} != {sorted(expected_set)}"


def relative_rms(ours: NDArray[Any], golden: NDArray[Any]) -> float:
    """Root mean square of the difference over that of the golden."""
    assert ours.shape == golden.shape
    difference = ours.astype(np.float64) - golden
    return float(np.sqrt(np.mean(difference**2) / np.mean(golden.astype(np.float64) ** 2)))


def mean_divergence(logits: NDArray[Any], golden: NDArray[Any]) -> float:
    """Mean over rows of KL(golden || ours), in nats."""
    log_ours, log_golden = _log_softmax(logits), _log_softmax(golden)
    return float((np.exp(log_golden) * (log_golden - log_ours)).sum(axis=1).mean())


def _log_softmax(logits: NDArray[Any]) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    result: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return result
