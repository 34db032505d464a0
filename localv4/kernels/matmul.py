"""Matrix times activations for every weight format, in one sum order for every batch size.

`Matrix` describes rows of weights where they lie (a read-only map); `arrange` puts
activations into the order in which the rows are walked; `matmul` does the sums.  One
parallel region for each call, its units are blocks of rows times blocks of tokens.

Knows nothing of layers.  Follows forward.md section 1 (LQ, LD, LF); the sum order is
described in row_dot.py.  Twin: tests/reference/row_dot.py.
"""

from dataclasses import dataclass, field, replace
from functools import lru_cache

import numpy as np
from numba import prange
from numpy.typing import NDArray

from localv4.kernels._jit import leaf, parallel
from localv4.kernels.rounding import quantise_block
from localv4.kernels.row_dot import ROW_FORMATS, lane_columns, row_dot_1, row_dot_4

__all__ = ["Lanes", "Matrix", "arrange", "matmul"]

_ROWS = 64  # rows and tokens of one unit of parallel work
_TOKENS = 64
_CODES = {name: code for code, name in enumerate(ROW_FORMATS)}

F32 = NDArray[np.float32]
_Arguments = tuple[int, int, int, int, int, int, int, int, int, int]


@dataclass(frozen=True, eq=False)
class Matrix:
    """A weight matrix [out, in] in its stored format.

    Attributes
    ----------
    format
        "fp4" (packed E2M1, a UE8M0 scale per 32 columns), "fp8" (E4M3, a float32 scale per
        128x128 block), "fp8_as_bf16" (the same, every scaled weight rounded to BF16),
        "bf16" or "f32" (no scales).
    weights
        2-D array of uint8, uint16 or float32, rows contiguous; read-only and unaligned is fine.
    scales
        2-D array of uint8 (fp4: [out, in/32]) or float32 (fp8: [ceil(out/128), ceil(in/128)]).
    n_columns
        Number of input columns.
    first_row, n_rows
        Which rows are multiplied; all of them unless `rows` made this a part.
    """

    format: str
    weights: NDArray[np.generic]
    scales: NDArray[np.generic] | None
    n_columns: int
    first_row: int = 0
    n_rows: int = -1
    arguments: _Arguments = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Gather what the kernel needs once, so that a call costs no look-ups."""
        scales = self.scales
        if self.n_rows < 0:
            object.__setattr__(self, "n_rows", self.weights.shape[0])
        arguments = (
            _CODES[self.format],
            self.weights.ctypes.data,
            self.weights.strides[0],
            0 if scales is None else scales.ctypes.data,
            0 if scales is None else scales.strides[0],
            1 if self.format == "fp4" else 128,
            0 if scales is None else scales.shape[1],
            self.n_columns,
            self.first_row,
            self.n_rows,
        )
        object.__setattr__(self, "arguments", arguments)

    def rows(self, first: int, count: int) -> "Matrix":
        """Return a part of the rows; its outputs are numbered from 0."""
        return replace(self, first_row=self.first_row + first, n_rows=count)

    @property
    def lanes(self) -> str:
        """Name of the lane order its activations need."""
        return "fp8" if self.format == "fp8_as_bf16" else self.format


@dataclass(frozen=True, eq=False)
class Lanes:
    """Activations in lane order: float32 [n_tokens, padded columns], rows of any stride."""

    order: str
    n_columns: int
    values: F32

    def take(self, rows: NDArray[np.intp]) -> "Lanes":
        """Return a copy of some tokens."""
        return Lanes(self.order, self.n_columns, self.values[rows])


@lru_cache(maxsize=64)
def _columns(order: str, n_columns: int) -> NDArray[np.int64]:
    return lane_columns(order, n_columns)


@leaf
def _arrange_token(x: F32, columns: NDArray[np.int64], quantised: bool, out: F32) -> None:
    row = np.empty(x.size + 1, np.float32)
    for i in range(x.size):
        row[i] = x[i]
    row[x.size] = 0  # what slots without a column read
    if quantised:
        for first in range(0, x.size, 128):
            quantise_block(row[first : first + 128])
    for slot in range(columns.size):
        out[slot] = row[columns[slot]]


@parallel
def _arrange(x: F32, columns: NDArray[np.int64], quantised: bool, out: F32) -> None:
    for token in prange(x.shape[0]):
        _arrange_token(x[token], columns, quantised, out[token])


def arrange(x: F32, order: str, quantised: bool) -> Lanes:
    """Put activations into the lane order of a weight format.

    Parameters
    ----------
    x
        float32 [n_tokens, n_columns].
    order
        `Matrix.lanes` of the matrices they will meet.
    quantised
        Round to FP8 in blocks of 128 columns first (AQ128, forward.md section 1); the values
        are kept as float32, code times scale, which is exact.
    """
    columns = _columns(order, x.shape[1])
    out = np.empty((x.shape[0], columns.size), np.float32)
    _arrange(np.ascontiguousarray(x), columns, quantised, out)
    return Lanes(order, x.shape[1], out)


@leaf
def _multiply_rows(
    code: int,
    weights: int,
    weight_stride: int,
    scales: int,
    scale_stride: int,
    band: int,
    n_scales: int,
    n_columns: int,
    first_row: int,
    last_row: int,
    x: int,
    x_stride: int,
    n_tokens: int,
    y: int,
    y_stride: int,
    rounds: int,
) -> None:
    """Multiply some rows with some tokens, four tokens at a time while there are four."""
    token = 0
    while token < n_tokens:
        several = token + 4 <= n_tokens
        for row in range(first_row, last_row):
            w = weights + row * weight_stride
            s = scales + row // band * scale_stride
            source = x + token * x_stride
            target = y + token * y_stride + 4 * (row - first_row)
            if several:
                row_dot_4(
                    code, w, s, n_columns, n_scales, source, x_stride, target, y_stride, rounds
                )
            else:
                row_dot_1(
                    code, w, s, n_columns, n_scales, source, x_stride, target, y_stride, rounds
                )
        token += 4 if several else 1


@parallel
def _matmul(
    code: int,
    weights: int,
    weight_stride: int,
    scales: int,
    scale_stride: int,
    band: int,
    n_scales: int,
    n_columns: int,
    first_row: int,
    n_rows: int,
    x: int,
    x_stride: int,
    n_tokens: int,
    y: int,
    y_stride: int,
    rounds: int,
) -> None:
    token_blocks = (n_tokens + _TOKENS - 1) // _TOKENS
    row_blocks = (n_rows + _ROWS - 1) // _ROWS
    for unit in prange(row_blocks * token_blocks):
        row = unit // token_blocks * _ROWS
        token = unit % token_blocks * _TOKENS
        _multiply_rows(
            code,
            weights,
            weight_stride,
            scales,
            scale_stride,
            band,
            n_scales,
            n_columns,
            first_row + row,
            first_row + min(row + _ROWS, n_rows),
            x + token * x_stride,
            x_stride,
            min(_TOKENS, n_tokens - token),
            y + token * y_stride + 4 * row,
            y_stride,
            rounds,
        )


def matmul(x: Lanes, matrix: Matrix, rounds: bool, out: F32 | None = None) -> F32:
    """Multiply activations with a matrix: y = x W^T.

    Parameters
    ----------
    x
        Activations arranged in the matrix's lane order.
    matrix
        Weights [n_rows, n_columns].
    rounds
        Round the float32 sums to BF16 (ties to even; kept as float32).
    out
        float32 [n_tokens, n_rows] to write to, rows of any stride; made if None.

    Returns
    -------
    float32 [n_tokens, n_rows].  A row's bytes depend on that token's activations alone.
    """
    assert x.order == matrix.lanes, (x.order, matrix.format)
    assert x.n_columns == matrix.n_columns, (x.n_columns, matrix.n_columns)
    n_tokens = x.values.shape[0]
    if out is None:
        out = np.empty((n_tokens, matrix.n_rows), np.float32)
    assert x.values.strides[1] == out.strides[1] == 4
    _matmul(
        *matrix.arguments,
        x.values.ctypes.data,
        x.values.strides[0],
        n_tokens,
        out.ctypes.data,
        out.strides[0],
        int(rounds),
    )
    return out
