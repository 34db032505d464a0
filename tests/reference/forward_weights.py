"""A checkpoint as float64 matrices, read and dequantised without the engine's code.

Follows spec/checkpoint.md: which dtype means which format, block scales, nibble order.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import numpy.typing as npt

from tests.reference.forward_numerics import Floats, round_bf16
from tests.reference.raw_safetensors import RawTensor, read, widen

E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def e4m3_values() -> Floats:
    """Value of each of the 256 codes; the two NaN codes stay NaN."""
    codes = np.arange(256)
    exponent, mantissa = (codes >> 3) & 15, codes & 7
    normal = np.ldexp(8.0 + mantissa, exponent - 10)
    values = np.where(exponent == 0, np.ldexp(mantissa * 1.0, -9), normal)
    values[(codes & 127) == 127] = np.nan
    signed: Floats = np.where(codes < 128, values, -values)
    return signed


E4M3 = e4m3_values()


class Weights:
    """``weights(name)`` is the dequantised float64 tensor; ``config`` holds config.json's keys."""

    def __init__(self, folder: Path) -> None:
        self.config = SimpleNamespace(**json.loads((folder / "config.json").read_text("utf-8")))
        self._stored: dict[str, RawTensor] = {}
        for shard in sorted(folder.glob("*.safetensors")):
            self._stored.update(read(shard))
        self._dequantised: dict[str, Floats] = {}

    def __call__(self, name: str) -> Floats:
        if name not in self._dequantised:
            self._dequantised[name] = self._dequantise(name)
        return self._dequantised[name]

    def block_prefix(self, layer: int) -> str:
        return f"layers.{layer}." if layer < self.config.num_hidden_layers else "mtp.0."

    def compress_ratio(self, layer: int) -> int:
        """0, 4 or 128; the MTP block, one past the last layer, always has 0."""
        ratios: list[int] = self.config.compress_ratios
        return ratios[layer] if layer < self.config.num_hidden_layers else 0

    def hash_table(self, layer: int) -> npt.NDArray[np.int64]:
        return self._stored[f"layers.{layer}.ffn.gate.tid2eid"].array.astype(np.int64)

    def _plain(self, name: str) -> Floats:
        tensor = self._stored[name]
        if tensor.dtype == "F8_E8M0":
            return np.ldexp(1.0, tensor.array.astype(np.int64) - 127)
        return widen(tensor).astype(np.float64)

    def _dequantise(self, name: str) -> Floats:
        dtype, stored = self._stored[name]
        if dtype not in ("I8", "F8_E4M3"):
            return self._plain(name)
        scale = self._plain(name.removesuffix("weight") + "scale")
        if dtype == "I8":
            packed = stored.view(np.uint8)
            values = E2M1[np.stack([packed & 15, packed >> 4], axis=-1).reshape(len(packed), -1)]
            return values * np.repeat(scale, 32, axis=1)
        values = E4M3[stored]
        rows, columns = values.shape
        per_value = np.repeat(np.repeat(scale, 128, axis=0), 128, axis=1)[:rows, :columns]
        # wo_a is a BF16 matrix to the model: dequantised once, each product rounded.
        return round_bf16(values * per_value) if "wo_a" in name else values * per_value
