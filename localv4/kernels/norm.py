"""RMS norm over rows, with a weight.

Follows forward.md section 1 (RMS); heads.py has the one without a weight.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.launch import Program, kernel
from localv4.kernels.rounding import round_bf16
from localv4.kernels.slices import Slices, slice_of
from localv4.kernels.sums import dot

__all__ = ["record_rms_norm", "rms_norm_row", "room_for_norm"]

F32 = NDArray[np.float32]


@leaf
def _factor(row: F32, eps: np.float32) -> np.float32:
    """Return the inverse root mean square."""
    mean = dot(row, row) / np.float32(row.size)
    return np.float32(np.float32(1) / np.sqrt(np.float32(mean + eps)))


@leaf
def _scale(row: F32, factor: np.float32, weight: F32, trained: int, out: F32) -> None:
    if trained:
        for i in range(row.size):
            out[i] = round_bf16(np.float32(weight[i] * np.float32(row[i] * factor)))
    else:
        for i in range(row.size):
            out[i] = weight[i] * np.float32(row[i] * factor)


@leaf
def rms_norm_row(row: F32, weight: F32, eps: np.float32, trained: int, out: F32) -> None:
    """Normalise one row by its root mean square; `out` may be the row itself."""
    _scale(row, _factor(row, eps), weight, trained, out)


@kernel("f32[2], f32[1], f32, i64, i64, i64, f32[2]")
def _rms_norm(
    x: F32,
    weight: F32,
    eps: np.float32,
    trained: int,
    per_row: int,
    size: int,
    out: F32,
    unit: int,
) -> None:
    token, first, last = slice_of(unit, per_row, size, x.shape[1])
    factor = _factor(x[token], eps)  # of the whole row, by every unit anew
    _scale(x[token, first:last], factor, weight[first:last], trained, out[token, first:last])


def room_for_norm(out: F32, other: Callable[[], F32]) -> F32:
    """Return where to put what `record_rms_norm` shall normalise into `out`.

    That is `out` itself where rows are not cut, else what `other` makes of the same shape.
    """
    return out if Slices.of(*out.shape).per_row == 1 else other()


def record_rms_norm(
    program: Program, x: F32, weight: F32, eps: float, trained: bool, out: F32
) -> None:
    """Record normalising rows by their root mean square, times a weight.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    x
        float32 [n_rows, n_columns].
    weight
        float32 [n_columns].
    eps
        Added to the mean square.
    trained
        Round the result to BF16.
    out
        Written: float32, the shape of x; x itself makes every row one unit of work.
    """
    in_place = np.may_share_memory(x, out)  # one unit must not overwrite what others add up
    slices = Slices(1, x.shape[1]) if in_place else Slices.of(*x.shape)
    units, cut = len(x) * slices.per_row, (slices.per_row, slices.size)
    program.add(_rms_norm, units, x, weight, eps, int(trained), *cut, out)
