"""What the kernels of the matrix unit share: where everything of a unit lies, and its instructions.

A unit is up to `UNIT_ROWS` rows of weights times up to `UNIT_TOKENS` tokens, which packing.py has
put into blocks.  The weights that come next are asked for meanwhile, a few lines at a time, since a
core has few places for lines on their way, and in several streams, since hardware follows each of
them by itself.

Knows nothing of how products become sums.
"""

from typing import Any

from llvmlite import ir
from numba.core import cgutils

from localv4.kernels.amx_rows import TILE_BYTES, TILE_ROWS, UNIT_ROWS, Rows
from localv4.kernels.row_dot import integer
from localv4.kernels.simd import I8, I32, Emitter
from localv4.kernels.walk import Walk

__all__ = [
    "BLOCK_TAIL",
    "BLOCK_TOKENS",
    "GROUP_BYTES",
    "LARGEST_SCALE",
    "TILES",
    "TOKENS",
    "UNIT_TOKENS",
    "WEIGHTS",
    "Unit",
    "group_bytes",
]

BLOCK_TOKENS = 16
BLOCK_TAIL = 64
"""Bytes behind a block: its first word is not zero if one of the activations is unusual."""
LARGEST_SCALE = 2.0**22
"""FP4's activations are multiplied with their scales, or with this where those are larger."""
UNIT_TOKENS = 64
"""Activations of more would not stay in the second cache."""

_VOID = ir.VoidType()
TILES = UNIT_ROWS // TILE_ROWS
GROUP_BYTES = TILES * TILE_BYTES
"""Of the sums of a group of 32 columns with a block of tokens."""
_BLOCKS = UNIT_TOKENS // BLOCK_TOKENS
# Superblocks of a part that are decoded at a time: for few tokens, whose sums are soon back in
# registers, so many that they stay in the first cache; for more tokens the sums' ways count.
_SHORT_RUN, _LONG_RUN = 2, 8
_MANY_BLOCKS = 3
_STREAMS = 4  # in which weights are asked for
WEIGHTS, TOKENS = (4, 5), (6, 7)
"""Tile registers; 0 to 3 are sums."""


def group_bytes(walk: Walk) -> int:
    """Return the bytes of a block of tokens in a group: tiles, and FP4's scales."""
    return 2 * TILE_BYTES + 64 if walk.layout == "halves" else TILE_BYTES


class Unit:
    """Emits code; made where a kernel's code begins.

    Attributes
    ----------
    stored
        The rows of weights.
    at_once, run
        Groups of 32 columns and superblocks that are decoded at a time; the second is a value.
    n_halves
        Tiles of activations for a tile of weights: 2 for FP4, else 1.
    n_lines
        Cache lines of stored weights in a tile.
    products, zeros, turned
        Room for products that leave the matrix unit, a tile of zeros, and a tile of outputs.
    """

    def __init__(self, emit: Emitter, walk: Walk, args: list[Any]) -> None:
        self.emit, self.walk, self.builder = emit, walk, emit.builder
        weights, weight_stride, scales, scale_stride, n_rows, n_columns, n_scales = args[:7]
        (
            self.input_memory,
            self.n_tokens,
            self.outputs,
            self.output_stride,
            self.rounds,
            self.ahead,
        ) = args[7:]
        self.n_rows = n_rows
        self.stored = Rows(
            emit,
            walk,
            (weights, weight_stride),
            (scales, scale_stride),
            n_rows,
            n_columns,
            n_scales,
        )
        self.n_superblocks = self.stored.n_superblocks
        self.groups, self.group_bytes = self.stored.groups, group_bytes(walk)
        self.at_once = self.stored.part_groups
        self.n_halves = 2 if walk.layout == "halves" else 1
        block_groups = self.builder.mul(self.n_superblocks, integer(self.groups))
        self.block_bytes = emit.at(integer(BLOCK_TAIL), block_groups, self.group_bytes)
        self.n_blocks = emit.up(self.n_tokens, integer(BLOCK_TOKENS))
        many = self.builder.icmp_unsigned(">=", self.n_blocks, integer(_MANY_BLOCKS))
        self.run = self.builder.select(many, integer(_LONG_RUN), integer(_SHORT_RUN))
        self.n_runs = emit.up(self.n_superblocks, self.run)
        self.n_lines = TILE_ROWS * walk.weight_bytes // (64 * self.groups)  # of a group's tile
        row_bytes = self.builder.mul(self.n_superblocks, integer(walk.weight_bytes))
        self.stream_bytes = self.builder.mul(row_bytes, integer(UNIT_ROWS // _STREAMS))
        self.decoded = emit.memory(_LONG_RUN * self.at_once * GROUP_BYTES, 64)
        self.products = emit.memory(2 * TILE_BYTES, 64)
        self.zeros = emit.memory(TILE_BYTES, 64)
        self.sum_memory = emit.memory(_BLOCKS * self.groups * GROUP_BYTES, 64)
        self.turned = emit.memory(TILE_BYTES, 64)

    def tile(self, name: str, *arguments: Any) -> None:
        """Emit an instruction of the matrix unit."""
        numbers = [ir.Constant(I8, a) if isinstance(a, int) else a for a in arguments]
        self.emit.call(f"llvm.x86.{name}", _VOID, *numbers)

    def load_tile(self, number: int, address: Any) -> None:
        """Load a tile register from 1 KB."""
        self.tile("tileloadd64", number, self.pointer(address), integer(64))

    def store_tile(self, number: int, address: Any) -> None:
        """Store a tile register to 1 KB."""
        self.tile("tilestored64", number, self.pointer(address), integer(64))

    def pointer(self, address: Any) -> Any:
        """Return an address as a pointer."""
        return self.builder.inttoptr(address, I8.as_pointer())

    def usual_tokens(self) -> Any:
        """Return whether no block of tokens has an unusual activation."""
        emit, builder = self.emit, self.builder
        found = cgutils.alloca_once(builder, I32)
        builder.store(ir.Constant(I32, 0), found)

        def block(number: Any) -> None:
            end = emit.offset(self.input_memory, builder.mul(self.block_bytes, number))
            tail = emit.offset(emit.offset(end, self.block_bytes), -BLOCK_TAIL)
            builder.store(builder.or_(builder.load(found), emit.load(tail, I32, 4)), found)

        emit.loop(self.n_blocks, block)
        return builder.icmp_unsigned("==", builder.load(found), ir.Constant(I32, 0))

    def weights(self, number: Any) -> Any:
        """Return the address of a group's decoded tile, counted from the part's first one."""
        return self.emit.at(self.decoded, self.builder.mul(number, self.run), TILE_BYTES)

    def inputs(self, block: Any, group: Any, superblock: Any) -> Any:
        """Return the address of a block's activations: a group's superblocks lie together."""
        place = self.builder.add(self.builder.mul(group, self.n_superblocks), superblock)
        start = self.emit.offset(self.input_memory, self.builder.mul(block, self.block_bytes))
        return self.emit.at(start, place, self.group_bytes)

    def sums(self, block: Any, group: Any, tile: int) -> Any:
        """Return the address of the sums of 16 rows and a block of tokens."""
        place = self.emit.at(group, block, self.groups)
        return self.emit.offset(
            self.emit.at(self.sum_memory, place, GROUP_BYTES), TILE_BYTES * tile
        )

    def prefetch(self, stream: Any, line: Any) -> None:
        """Ask for a line of the next weights."""
        start = self.builder.add(self.ahead, self.builder.mul(stream, self.stream_bytes))
        self.emit.prefetch(self.emit.at(start, line, 64), 2)

    def ask(self, tile: Any, superblock: Any, n_tiles: int) -> None:
        """Ask for the share of the next weights that belongs to a superblock of some tiles.

        That is a half; decoding asks for the other one.
        """
        emit, builder = self.emit, self.builder
        n_lines = n_tiles * self.n_lines // _STREAMS
        first = emit.at(builder.mul(tile, self.run), superblock, n_tiles)
        for stream in range(_STREAMS // 2, _STREAMS):
            for line in range(n_lines):
                at = emit.at(integer(line), first, self.n_lines // _STREAMS)
                self.prefetch(integer(stream), at)

    def ask_in_decoding(self, index: Any, row: Any, superblock: Any) -> None:
        """Ask for the share of the next weights that belongs to a row's superblock.

        `index` counts parts of runs of superblocks.
        """
        emit, builder = self.emit, self.builder
        row_lines = self.at_once * self.n_lines // TILE_ROWS
        done = emit.at(row, index, UNIT_ROWS)
        done = builder.add(builder.mul(done, self.run), superblock)
        half = builder.lshr(builder.mul(done, integer(row_lines)), integer(1))
        for line in range(-(-row_lines // 2)):  # FP4's one line of two rows: twice
            at = emit.offset(half, line)
            self.prefetch(builder.and_(at, integer(1)), builder.lshr(at, integer(1)))
