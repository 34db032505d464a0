"""Matrices in every stored format with activations, multiplied by the kernels and by the twin."""

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from localv4.kernels.launch import Program
from localv4.kernels.matmul import Lanes, Matrix, arrange, multiply
from localv4.quant import bf16
from tests.kernels.compare import F32
from tests.reference import row_dot

LENGTHS = {
    "fp4": range(32, 513, 32),
    "fp8": [1, 7, 64, 128, 192, 200, 256, 320, 384, 449, 512],
    "fp8_as_bf16": [1, 128, 192, 256, 384, 449, 512],
    "bf16": [1, 2, 31, 32, 33, 40, 64, 256, 300, 512],
    "f32": [1, 7, 15, 16, 17, 33, 64, 128, 145, 300],
}
KINDS = [
    ("fp4", "f32"),
    ("fp4", "fp8"),
    ("fp8", "f32"),
    ("fp8", "bf16"),
    ("fp8", "fp8"),
    ("fp8_as_bf16", "f32"),
    ("bf16", "f32"),
    ("bf16", "bf16"),
    ("f32", "f32"),
]
"""Every format with every kind of activations that changes its arithmetic or layout."""

NOT_NAN = np.array([code for code in range(256) if code & 0x7F != 0x7F], np.uint8)


def arranged(x: F32, order: str, activations: str = "f32", n_workers: int = 1) -> Lanes:
    """Arrange float32 [n, columns]."""
    program = Program()
    program.phase("other")
    quantised, are_bf16 = activations == "fp8", activations != "f32"
    n_tokens, n_columns = x.shape
    lanes = Lanes.room(order, quantised, n_tokens, n_columns, are_bf16)
    arrange(program, np.ascontiguousarray(x), lanes)
    program.run(n_workers)
    return lanes


def taken(lanes: Lanes, tokens: list[int]) -> Lanes:
    """Choose some arranged tokens."""
    program = Program()
    program.phase("other")
    chosen = lanes.take(program, np.array(tokens, np.int32))
    program.run(1)
    return chosen


def run_product(
    lanes: Lanes,
    matrix: Matrix,
    rounds: bool = False,
    out: F32 | None = None,
    n_workers: int = 1,
) -> F32:
    """Multiply arranged activations with a matrix."""
    if out is None:
        out = np.full((len(lanes), matrix.n_rows), -7, np.float32)
    program = Program()
    program.phase("other")
    multiply(program, lanes, matrix, out, rounds)
    program.run(n_workers)
    return out


class Product(NamedTuple):
    """A stored matrix and activations."""

    name: str
    weights: NDArray[Any]
    scales: NDArray[Any] | None
    x: F32
    activations: str = "f32"

    def matrix(self) -> Matrix:
        return Matrix(self.name, self.weights, self.scales, self.x.shape[1])

    def lanes(self) -> Lanes:
        return arranged(self.x, self.name, self.activations)

    def ours(self, rounds: bool = False, n_workers: int = 1) -> F32:
        return run_product(self.lanes(), self.matrix(), rounds, n_workers=n_workers)

    def twin(self) -> F32:
        quantised = self.activations == "fp8"
        # the walk for few tokens: the tier's, or what a test chose
        walk = Lanes.room(self.name, quantised, 1, self.x.shape[1], self.activations != "f32").walk
        return row_dot.multiply(
            self.name,
            self.weights,
            self.scales,
            self.x,
            quantised,
            apart=walk.layout == "digits_apart",
        )


def spread_floats(rng: np.random.Generator, *shape: int) -> F32:
    """Return float32 of very different magnitudes, so that every rounding shows."""
    x: F32 = rng.standard_normal(shape, np.float32) * np.exp2(rng.integers(-12, 12, shape)).astype(
        np.float32
    )
    return x


def random_product(
    name: str,
    n_rows: int,
    n_columns: int,
    n_tokens: int = 1,
    seed: int = 0,
    activations: str = "f32",
    usual_scales: bool = False,
) -> Product:
    """Return a product of weights and activations of very different magnitudes.

    Usual scales are powers of two, one at most, as amx_rows.py wants them.
    """
    rng = np.random.default_rng([seed, n_rows, n_columns])
    x = spread_floats(rng, n_tokens, n_columns)
    if activations != "f32":
        x = bf16.round(x)
    scales: NDArray[Any] | None = None
    weights: NDArray[Any]
    if name == "fp4":
        weights = rng.integers(0, 256, (n_rows, n_columns // 2), np.uint8)
        fields = (127 - 60, 128) if usual_scales else (100, 150)
        scales = rng.integers(*fields, (n_rows, n_columns // 32), np.uint8)
    elif name in ("fp8", "fp8_as_bf16"):
        weights = rng.choice(NOT_NAN, (n_rows, n_columns))
        shape = -(-n_rows // 128), -(-n_columns // 128)
        scales = spread_floats(rng, *shape)
        if usual_scales:
            scales = np.exp2(rng.integers(-60, 1, shape)).astype(np.float32)
    else:
        weights = spread_floats(rng, n_rows, n_columns)
        if name == "bf16":
            weights = bf16.encode(weights)
    return Product(name, weights, scales, x, activations)
