"""RMS norm over rows, with a weight.

Follows forward.md section 1 (RMS); heads.py has the one without a weight.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.launch import Program, kernel
from localv4.kernels.rounding import round_bf16
from localv4.kernels.sums import dot

__all__ = ["record_rms_norm", "rms_norm_row"]

F32 = NDArray[np.float32]


@leaf
def rms_norm_row(row: F32, weight: F32, eps: np.float32, trained: int, out: F32) -> None:
    """Normalise one row by its root mean square; `out` may be the row itself."""
    mean = dot(row, row) / np.float32(row.size)
    factor = np.float32(1) / np.sqrt(np.float32(mean + eps))
    if trained:
        for i in range(row.size):
            out[i] = round_bf16(np.float32(weight[i] * np.float32(row[i] * factor)))
    else:
        for i in range(row.size):
            out[i] = weight[i] * np.float32(row[i] * factor)


@kernel("f32[2], f32[1], f32, i64, f32[2]")
def _rms_norm(x: F32, weight: F32, eps: np.float32, trained: int, out: F32, row: int) -> None:
    rms_norm_row(x[row], weight, eps, trained, out[row])


def record_rms_norm(
    program: Program, x: F32, weight: F32, eps: float, trained: bool, out: F32
) -> None:
    """Record normalising rows by their root mean square, times a weight; a unit is a row.

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
        Written: float32, the shape of x; may be x itself.
    """
    program.add(_rms_norm, x.shape[0], x, weight, eps, int(trained), out)
