"""Matrix times activations for every weight format, in one sum order for every batch size.

`Matrix` describes rows of weights where they lie (a read-only map); `multiply` records the
product with activations that lanes.py has arranged.  Few tokens are multiplied by some rows at a
time (row_dot.py), many by tiles (row_tile.py).

Knows nothing of layers.  Follows forward.md section 1 (LQ, LD, LF); the sum order is
described in walks.py.  Twin: tests/reference/row_dot.py.
"""

from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np
from numba.extending import register_jitable
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels._jit import leaf
from localv4.kernels.amx_rows import UNIT_ROWS
from localv4.kernels.amx_tile import amx_tile
from localv4.kernels.amx_unit import BLOCK_TOKENS, UNIT_TOKENS
from localv4.kernels.arrays import LINE, address
from localv4.kernels.lanes import Lanes, arrange
from localv4.kernels.launch import Kernel, Program, Task, kernel
from localv4.kernels.row_dot import MOST_STREAMS, ask_for, read_i32, rows_dot
from localv4.kernels.row_tile import TILE_ROWS, TILE_TOKENS, row_tile
from localv4.kernels.threads import usable_cpus
from localv4.kernels.walk import Walk
from localv4.kernels.walks import walk_for, walk_for_many

__all__ = [
    "MATRIX_WORDS",
    "Lanes",
    "Matrix",
    "arrange",
    "multiply",
    "retarget",
    "weight_kernels",
]

# a matrix is divided into so many for one token, and large ones into more: long streams, but no
# thread without a unit
_UNITS = max(min(2 * usable_cpus(), 16), usable_cpus())
_UNIT_BYTES = 2**20 if _UNITS <= 8 else 2**19
# many threads end a phase together if the end of each matrix, a quarter, is cut into units of a
# quarter; to two or four threads that is worth no more than it costs
_END = 4
_FINER = 1 if _UNITS <= 8 else 4
# the most blocks of rows in a unit of the matrix unit: all but the first find their weights near
_UNIT_BLOCKS = 16
_ASKED_BYTES = 1024  # of each stream, whenever a thread that waits looks again
_MOST_ASKED_BYTES = 2**16  # of each stream: a fraction of the second cache
_ARGUMENTS = ", ".join(["i64"] * 19)

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

MATRIX_WORDS = 9
"""Words by which a kernel knows a matrix."""


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
    words
        int64 [MATRIX_WORDS]: the same for kernels.
    """

    format: str
    weights: NDArray[np.generic]
    scales: NDArray[np.generic] | None
    n_columns: int
    first_row: int = 0
    n_rows: int = -1
    words: I64 = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Gather what the kernel needs once, so that a call costs no look-ups."""
        scales = self.scales
        if self.n_rows < 0:
            object.__setattr__(self, "n_rows", self.weights.shape[0])
        words = (
            address(self.weights),
            self.weights.strides[0],
            0 if scales is None else address(scales),
            0 if scales is None else scales.strides[0],
            1 if self.format == "fp4" else 128,
            0 if scales is None else scales.shape[1],
            self.n_columns,
            self.first_row,
            self.n_rows,
        )
        object.__setattr__(self, "words", np.array(words, np.int64))

    def rows(self, first: int, count: int) -> "Matrix":
        """Return a part of the rows; its outputs are numbered from 0."""
        return replace(self, first_row=self.first_row + first, n_rows=count)

    @property
    def lanes(self) -> str:
        """Name of the lane order its activations need."""
        return self.format


@register_jitable  # type: ignore[untyped-decorator]
def _n_whole(part: int, unit_rows: int) -> int:
    """Return how many units of a part of the rows come before the smaller ones of its end."""
    return (part - part // _END) // unit_rows


@leaf
def _rows_of(unit: int, unit_rows: int, end_rows: int, part: int) -> tuple[int, int]:
    """Return a unit's first row in each part and the one behind its last."""
    n_whole = _n_whole(part, unit_rows)
    if unit < n_whole:
        return unit * unit_rows, (unit + 1) * unit_rows
    first = n_whole * unit_rows + (unit - n_whole) * end_rows
    return first, min(first + end_rows, part)


@cache
def _rows_kernel(walk: Walk) -> Kernel:
    """Return the kernel for few tokens: a unit is some rows of each of `streams` parts."""
    dot = rows_dot(walk)

    @kernel(_ARGUMENTS, name=f"rows_{walk.name}")
    def rows(
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
        tokens: int,
        n_tokens: int,
        y: int,
        y_stride: int,
        rounds: int,
        unit_rows: int,
        end_rows: int,
        streams: int,
        unit: int,
    ) -> None:
        part = (n_rows + streams - 1) // streams
        first, last = _rows_of(unit, unit_rows, end_rows, part)
        for index in range(0, n_tokens, 2):
            n_others = min(n_tokens - index - 1, 1)
            other_index = index + n_others
            token = index if tokens == 0 else read_i32(tokens, index)
            other = other_index if tokens == 0 else read_i32(tokens, other_index)
            for row in range(first, last):
                dot(
                    weights,
                    weight_stride,
                    scales,
                    scale_stride,
                    band,
                    n_scales,
                    n_columns,
                    first_row,
                    n_rows,
                    part,
                    row,
                    x + token * x_stride,
                    x + other * x_stride,
                    y + index * y_stride,
                    n_others * y_stride,
                    rounds,
                    streams,
                )

    return rows


@kernel(_ARGUMENTS)
def _ask_for_rows(
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
    tokens: int,
    n_tokens: int,
    y: int,
    y_stride: int,
    rounds: int,
    unit_rows: int,
    end_rows: int,
    streams: int,
    unit: int,
    worker: int,
) -> None:
    """Ask for the next weights of a unit of `_rows_kernel`; `worker` counts the calls."""
    part = (n_rows + streams - 1) // streams
    first, last = _rows_of(unit, unit_rows, end_rows, part)
    n_bytes = (last - first) * weight_stride
    begin = worker * _ASKED_BYTES
    for stream in range(streams):
        start = weights + (first_row + first + stream * part) * weight_stride
        for place in range(begin, min(begin + _ASKED_BYTES, n_bytes, _MOST_ASKED_BYTES), LINE):
            ask_for(start + place)


@cache
def _tiles_kernel(walk: Walk) -> Kernel:
    """Return the kernel for many tokens: a unit is 16 rows by 64 tokens."""
    tile = row_tile(walk, (2, 2) if tiers.active() in ("avx2", "generic") else (4, 4))

    @kernel(_ARGUMENTS, name=f"tiles_{walk.name}")
    def tiles(
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
        tokens: int,
        n_tokens: int,
        y: int,
        y_stride: int,
        rounds: int,
        token_blocks: int,
        unused: int,
        unused_as_well: int,
        unit: int,
    ) -> None:
        # blocks of stored rows, so that a block never has two rows of scales
        block = first_row // TILE_ROWS + unit // token_blocks
        first = max(first_row, block * TILE_ROWS)
        last = min(first_row + n_rows, (block + 1) * TILE_ROWS)
        token = unit % token_blocks * TILE_TOKENS
        tile(
            weights + first * weight_stride,
            weight_stride,
            scales + first // band * scale_stride,
            scale_stride if band == 1 else 0,
            last - first,
            n_columns,
            n_scales,
            x if tokens != 0 else x + token * x_stride,
            x_stride,
            0 if tokens == 0 else tokens + 4 * token,
            min(n_tokens - token, TILE_TOKENS),
            y + token * y_stride + 4 * (first - first_row),
            y_stride,
            rounds,
        )

    return tiles


@cache
def _amx_kernel(walk: Walk) -> Kernel:
    """Return the kernel for packed tokens: a unit is some blocks of 32 rows by 64 tokens.

    All rows meet the same tokens first, which stay in the second cache.
    """
    tile = amx_tile(walk)

    @kernel(_ARGUMENTS, name=f"amx_{walk.name}")
    def amx(
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
        tokens: int,
        n_tokens: int,
        y: int,
        y_stride: int,
        rounds: int,
        row_units: int,
        blocks: int,
        unused: int,
        unit: int,
    ) -> None:
        token = unit // row_units * UNIT_TOKENS
        start = (first_row // UNIT_ROWS + unit % row_units * blocks) * UNIT_ROWS
        end = min(first_row + n_rows, start + blocks * UNIT_ROWS)
        for at in range(start, end, UNIT_ROWS):
            first, last = max(first_row, at), min(end, at + UNIT_ROWS)
            ahead = last if last < end else first
            tile(
                weights + first * weight_stride,
                weight_stride,
                scales + first // band * scale_stride,
                scale_stride if band == 1 else 0,
                last - first,
                n_columns,
                n_scales,
                x + token // BLOCK_TOKENS * x_stride,
                min(n_tokens - token, UNIT_TOKENS),
                y + token * y_stride + 4 * (first - first_row),
                y_stride,
                rounds,
                weights + ahead * weight_stride,
            )

    return amx


def weight_kernels(weight_format: str, activations: str) -> list[Kernel]:
    """Return the kernels that multiply a format with such activations (see `walk_for`)."""
    few = walk_for(weight_format, activations)
    many = walk_for_many(few)
    return [_rows_kernel(few), (_amx_kernel if _in_matrix_unit(many) else _tiles_kernel)(many)]


def _in_matrix_unit(walk: Walk) -> bool:
    """Return whether the matrix unit multiplies many tokens."""
    return tiers.active() == "amx" and walk.layout in ("bf16", "halves")


def _streams(matrix: Matrix, walk: Walk) -> int:
    """Return how many rows are walked side by side: not so many that threads have none."""
    fewer = matrix.n_rows < MOST_STREAMS * usable_cpus()
    return max(walk.for_rows.in_flight, MOST_STREAMS // 2 if fewer else MOST_STREAMS)


def _unit_rows(matrix: Matrix, streams: int) -> tuple[int, int]:
    """Return how many rows of a stream a thread takes at a time, at first and at the end."""
    largest = max(1, _UNIT_BYTES // (streams * matrix.weights.strides[0]))
    unit_rows = min(largest, -(-matrix.n_rows // (streams * _UNITS)))
    return unit_rows, -(-unit_rows // _FINER)


def _n_units(matrix: Matrix, streams: int, unit_rows: int, end_rows: int) -> int:
    """Return the units of `_rows_kernel`."""
    part = -(-matrix.n_rows // streams)
    n_whole: int = _n_whole(part, unit_rows)
    return n_whole + -(-(part - n_whole * unit_rows) // end_rows)


def _row_blocks(matrix: Matrix, size: int) -> int:
    """Return how many blocks of stored rows a matrix has a part of."""
    return -(-(matrix.first_row + matrix.n_rows) // size) - matrix.first_row // size


def multiply(
    program: Program,
    x: Lanes,
    matrix: Matrix,
    out: F32,
    rounds: bool,
) -> Task:
    """Record a product y = x W^T.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    x
        Activations in the matrix's lanes.
    matrix
        Weights [n_rows, n_columns].
    out
        Written: float32 [n_tokens, n_rows], rows of any stride.
    rounds
        Round the float32 sums to BF16 (ties to even; kept as float32).

    Returns
    -------
    The task, for `retarget`.  A row's bytes depend on that token's activations alone.
    """
    assert x.order == matrix.lanes, (x.order, matrix.format)
    assert x.n_columns == matrix.n_columns, (x.n_columns, matrix.n_columns)
    n_tokens = len(x)
    assert out.shape == (n_tokens, matrix.n_rows), (out.shape, n_tokens, matrix.n_rows)
    assert out.strides[1] == 4
    walk = x.walk
    memory = x.memory
    if x.blocks is not None:
        function, memory = _amx_kernel(walk), x.blocks
        row_blocks, token_units = _row_blocks(matrix, UNIT_ROWS), -(-n_tokens // UNIT_TOKENS)
        blocks = max(1, min(_UNIT_BLOCKS, row_blocks * token_units // _UNITS))
        row_units = -(-row_blocks // blocks)
        units, last = row_units * token_units, (row_units, blocks, 0)
    elif n_tokens <= walk.few_tokens or _in_matrix_unit(walk):
        function = _rows_kernel(walk)
        streams = _streams(matrix, walk)
        rows = _unit_rows(matrix, streams)
        units, last = _n_units(matrix, streams, *rows), (*rows, streams)
    else:
        function = _tiles_kernel(walk)
        token_blocks = -(-n_tokens // TILE_TOKENS)
        units, last = _row_blocks(matrix, TILE_ROWS) * token_blocks, (token_blocks, 0, 0)
    task = program.add(
        function,
        units,
        *matrix.words.tolist(),
        address(memory),
        memory.strides[0],
        address(x.tokens) if x.tokens.size else 0,
        n_tokens,
        address(out),
        out.strides[0],
        int(rounds),
        *last,
    )
    task.keep(matrix, x, out)
    if function is _rows_kernel(walk):
        task.ask_ahead(_ask_for_rows)
    return task


def retarget(task: Task, matrix: Matrix) -> None:
    """Let a recorded product use another matrix of the same format and shape."""
    task.words[:MATRIX_WORDS] = matrix.words
    task.replace_kept(0, matrix)
