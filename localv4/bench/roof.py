"""The two roofs: how fast memory is read, and how many products the CPU can add."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from localv4.bench.timing import in_turns
from localv4.kernels.arrays import address, aligned
from localv4.kernels.launch import Program
from localv4.kernels.peak import OPERAND_BYTES, PEAKS, peak_kernel, peak_products
from localv4.kernels.read import READ_BYTES, read_kernel

__all__ = ["DIGITS", "PLAIN", "Peak", "Reader", "best_reader", "measure_peaks"]

DIGITS = 3
"""Products of bytes that stand for one exact product of FP4 with an FP8-rounded activation."""

_UNITS = (2**18, 2**20)
_DISTANCES = (0, 2048, 4096)
_TRIES = 5
_PEAK_S = 0.01
_PEAK_TRIES = 25  # disturbed ones must not decide which kind is the fastest
_F32, _BF16, _BYTE = (np.float32, 2.0**-10), (np.uint16, 0x3A80), (np.uint8, 1)
_SMALL = dict(zip(PEAKS, (_F32, _BF16, _BYTE, _BF16, _BYTE), strict=True))


@dataclass(frozen=True)
class Reader:
    """A way to read memory.

    Attributes
    ----------
    unit_bytes
        What a thread reads at a time.
    ahead
        Bytes to prefetch ahead; 0 leaves it to the hardware.
    gb_s
        Its speed when it was chosen.
    """

    unit_bytes: int
    ahead: int
    gb_s: float = 0.0

    def program(self, memory: NDArray[np.uint8]) -> Program:
        """Return a program that reads all of a memory."""
        program = Program()
        program.phase("other")
        self.record(program, memory)
        return program

    def record(self, program: Program, memory: NDArray[np.uint8]) -> None:
        """Record reading a memory, uint8 [n_bytes]."""
        units = -(-memory.size // self.unit_bytes)
        sums = np.zeros(units, np.int64)
        begin = address(memory)
        function = read_kernel(self.ahead > 0)
        task = program.add(function, units, begin, memory.size, self.unit_bytes, self.ahead, sums)
        task.keep(memory)


PLAIN = Reader(2**20, 0)
"""A loop without prefetches."""


def best_reader(parts: list[NDArray[np.uint8]], n_threads: int) -> Reader:
    """Return the fastest way to read parts of a memory, tried in turns.

    Parameters
    ----------
    parts
        uint8 [n_bytes] each; multiples of 1 KiB, or what is left over is not read.
    n_threads
        Compute threads.
    """
    size = parts[0].size // READ_BYTES * READ_BYTES
    readers = [Reader(min(unit, size), ahead) for unit in _UNITS for ahead in _DISTANCES]
    programs = [[reader.program(part) for part in parts] for reader in readers]

    def run(number: int, of_reader: list[Program]) -> Callable[[int], None]:
        of_reader[0].run(n_threads)  # compiles
        # no two readers read a part one after the other: it would be in the cache
        return lambda turn: of_reader[(turn + 3 * number) % len(parts)].run(n_threads)

    runs = [run(*each) for each in enumerate(programs)]
    seconds = in_turns(runs, _TRIES * len(parts))
    speeds = [size / statistics.median(times) / 1e9 for times in seconds]
    best = int(np.argmax(speeds))
    return Reader(readers[best].unit_bytes, readers[best].ahead, speeds[best])


@dataclass(frozen=True)
class Peak:
    """Products in registers, on all threads.

    Attributes
    ----------
    kind
        One of `PEAKS`.
    gflops
        The best of some tries.  Two operations a product; for bytes of exact FP4 products,
        which take `DIGITS` byte products each.
    program
        Adds products for about 10 ms.
    n_flop
        Operations of the program.
    """

    kind: str
    gflops: float
    program: Program
    n_flop: float


def _program(kind: str, n_threads: int, n_rounds: int) -> Program:
    operands = aligned((OPERAND_BYTES,), np.uint8)
    dtype, value = _SMALL[kind]
    operands.view(dtype)[:] = value
    program = Program()
    program.phase("other")
    begin = address(operands)
    results = np.zeros(4 * n_threads, np.int64)
    task = program.add(peak_kernel(kind), results.size, begin, n_rounds, results)
    task.keep(operands)
    return program


def _sized(kind: str, n_threads: int) -> tuple[Program, float]:
    """Return a program of about `_PEAK_S`, and its operations."""
    rounds = 1000
    program = _program(kind, n_threads, rounds)
    program.run(n_threads)
    started_s = time.perf_counter()
    program.run(n_threads)
    rounds = max(1, round(rounds * _PEAK_S / max(time.perf_counter() - started_s, 1e-6)))
    n_flop = 2.0 * peak_products(kind) * rounds * 4 * n_threads
    return _program(kind, n_threads, rounds), n_flop / (DIGITS if kind.endswith("bytes") else 1)


def measure_peaks(n_threads: int) -> dict[str, Peak]:
    """Return the peak of every kind of product that the tier in force has."""
    sized = {kind: _sized(kind, n_threads) for kind in PEAKS if peak_products(kind)}

    def run(program: Program) -> Callable[[int], None]:
        return lambda _: program.run(n_threads)

    seconds = in_turns([run(program) for program, _ in sized.values()], _PEAK_TRIES)
    return {
        kind: Peak(kind, n_flop / min(times) / 1e9, program, n_flop)
        for (kind, (program, n_flop)), times in zip(sized.items(), seconds, strict=True)
    }
