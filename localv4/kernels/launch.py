"""Programs: kernels recorded once with their arguments and run many times, in parallel.

A *kernel* is a compiled function that does one unit of work (some rows, a token, a head).
A *task* is a kernel with arguments and a number of units; a *phase* is a set of tasks that may
run at the same time; a *program* is a list of phases.  Running a program is one call from
Python: the compute threads take units one after the other, whoever is free; one who takes a unit
of the next phase waits until all units of this one are done.  So a slow or busy core delays by
one unit at most, which thread does a unit decides no byte, and any number of threads gets through.
Who waits looks again and again for some microseconds, and then lets other threads have the core.

Kernels are called by address.  That keeps one parallel function in the whole engine to
compile, and a task costs no unpacking of arguments by Python.

Knows nothing of what kernels compute.
"""

import struct
import time
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numpy as np
from numba import prange, types
from numpy.typing import NDArray

from localv4.kernels._jit import cache_dir, leaf, options, parallel
from localv4.kernels.calls import (
    DTYPES,
    GIVE_WAY,
    address_of,
    call,
    claim,
    count,
    finish,
    give_way_by,
    pointer,
    real,
    word,
)

__all__ = ["Kernel", "Program", "Task", "declared_kernels", "kernel"]

_LINE = 64  # bytes of a cache line
_LOOKS = 5000  # some tens of microseconds
_COLUMNS = 4  # of the task table: kernel's address, arguments' address, first unit, units


_NAMESPACE = {
    "word": word,
    "real": real,
    "float32": np.float32,
    "carray": numba.carray,
    **{f"{dtype}_pointer": pointer(dtype) for dtype in DTYPES},
}


declared_kernels: "list[Kernel]" = []
"""All kernels that were declared so far."""


class Kernel:
    """A function that does one unit of work; made by `kernel`.

    Attributes
    ----------
    function
        The plain Python function: arguments, then ``unit``, then ``worker`` if it has one.
    name
        Unique in the function's module, as the cache of compiled code goes by it.
    """

    def __init__(
        self, function: Callable[..., None], signature: str, name: str | None = None
    ) -> None:
        self.function = function
        self.name = function.__name__ if name is None else name
        self.kinds = signature.replace(" ", "").split(",") if signature else []
        self.takes_worker = function.__code__.co_varnames[: function.__code__.co_argcount][-1:] == (
            "worker",
        )
        self._compiled: Any = None

    def compile(self) -> None:
        """Compile, or find in the cache."""
        if self._compiled is None:
            self._compiled = self._compile()

    def widths(self) -> list[int]:
        """Return how many words each argument takes: an array's address and shape, or 1."""
        return [1 + int(kind[-2]) if kind.endswith("]") else 1 for kind in self.kinds]

    @property
    def address(self) -> int:
        """Address of the compiled function; compiles it on first use."""
        self.compile()
        return int(self._compiled.address)

    def _compile(self) -> Any:
        values, at = [], 0
        for kind, width in zip(self.kinds, self.widths(), strict=True):
            if width > 1:
                shape = "".join(f"word(arguments, {at + i}), " for i in range(1, width))
                pointer = f"{kind.partition('[')[0]}_pointer(word(arguments, {at}))"
                values.append(f"carray({pointer}, ({shape}))")
            elif kind == "f32":
                values.append(f"float32(real(arguments, {at}))")
            else:
                values.append(f"word(arguments, {at})")
            at += width
        values += ["unit", "worker"] if self.takes_worker else ["unit"]
        name = f"{self.name}_task"
        source = f"def {name}(arguments, unit, worker):\n    function({', '.join(values)})\n"
        # the file name places the compiled code in the cache, under the kernel's module
        code = compile(source, self.function.__code__.co_filename, "exec")
        # compiled as a part of its only caller
        inlined = numba.njit(**options(), inline="always")(self.function)
        # the cache finds its way back through the module's name
        namespace = {**_NAMESPACE, "function": inlined, "__name__": self.function.__module__}
        exec(code, namespace)
        signature = types.void(types.int64, types.int64, types.int64)
        return numba.cfunc(signature, cache=cache_dir is not None, **options())(namespace[name])


def kernel(signature: str, name: str | None = None) -> Callable[[Callable[..., None]], Kernel]:
    """Declare a kernel.

    Parameters
    ----------
    signature
        The kinds of its arguments, with commas between: "i64", "f32" (scalars) or an array
        with its number of dimensions, as "f32[2]", "u8[1]", "i32[2]", "i64[1]", "u16[2]".
        After these the function takes ``unit``, the number of the unit to do, and, if it
        names it, ``worker``, the number of the thread's private scratch.
    name
        See `Kernel`; the function's unless given.
    """

    def declare(function: Callable[..., None]) -> Kernel:
        made = Kernel(function, signature, name)
        declared_kernels.append(made)
        return made

    return declare


class Task:
    """A kernel with its arguments and number of units, in a program."""

    def __init__(self, kernel: Kernel, units: int, arguments: Sequence[Any]) -> None:
        assert len(arguments) == len(kernel.kinds), (kernel.name, len(arguments))
        self.kernel = kernel
        self.units = units
        self.arguments = list(arguments)
        widths = kernel.widths()
        self._starts = [sum(widths[:i]) for i in range(len(widths))]
        self.words = np.zeros(max(sum(widths), 1), np.int64)
        self._kept: list[Any] = []
        for index, value in enumerate(arguments):
            self.put(index, value)

    def put(self, index: int, value: Any) -> None:
        """Give another value to an argument, for the runs that follow."""
        self.arguments[index] = value
        start = self._starts[index]
        if isinstance(value, np.ndarray):
            kind = self.kernel.kinds[index]
            assert value.dtype == DTYPES[kind.partition("[")[0]], (kind, value.dtype)
            assert value.ndim == int(kind[-2]), (kind, value.shape)
            assert value.flags.c_contiguous, kind
            self.words[start] = value.__array_interface__["data"][0]
            for dimension, length in enumerate(value.shape, 1):
                self.words[start + dimension] = length
        elif self.kernel.kinds[index] == "f32":
            self.words[start] = struct.unpack("<q", struct.pack("<d", value))[0]
        else:
            self.words[start] = value

    def lend(self, index: int, array: NDArray[Any]) -> None:
        """As `put`, for an array that the caller keeps alive in every run; the task does not."""
        self.put(index, array)
        self.arguments[index] = weakref.ref(array)

    def keep(self, *objects: Any) -> None:
        """Keep alive what arguments point to as bare addresses."""
        self._kept = list(objects)

    def replace_kept(self, index: int, value: Any) -> None:
        """Keep another object in place of one given to `keep`."""
        self._kept[index] = value

    def run_in_python(self) -> None:
        """Do all units without compiled code, in order."""
        worker = (0,) if self.kernel.takes_worker else ()
        arguments = [v() if isinstance(v, weakref.ref) else v for v in self.arguments]
        for unit in range(self.units):
            self.kernel.function(*arguments, unit, *worker)


class Program:
    """Phases of tasks; the arrays that tasks were given, not lent, stay alive with it."""

    def __init__(self) -> None:
        self._phases: list[list[Task]] = []
        self._parts: list[str] = []
        self._table: NDArray[np.int64] | None = None
        self._ends: NDArray[np.int64] = np.zeros(0, np.int64)
        self._sealed_parts: list[str] = []

    def add(self, kernel: Kernel, units: int, *arguments: Any) -> Task:
        """Add a task to the last phase; tasks of a phase may run in any order or at once."""
        task = Task(kernel, units, arguments)
        self._phases[-1].append(task)
        self._table = None
        return task

    def phase(self, part: str) -> None:
        """Begin a new phase: what comes runs when everything before is done.

        Parameters
        ----------
        part
            Of the model, for measurements: "projections", "attention", "indexer",
            "compressor", "mhc", "gate", "shared", "experts", "head" or "other".
        """
        if self._phases and not self._phases[-1]:
            self._parts[-1] = part
        else:
            self._phases.append([])
            self._parts.append(part)

    @property
    def part(self) -> str:
        """The part of the last phase."""
        return self._parts[-1]

    def set_units(self, task: Task, units: int) -> None:
        """Change how many units a task has."""
        task.units = units
        self._table = None

    def run(self, n_workers: int, seconds: dict[str, float] | None = None) -> None:
        """Run all phases on up to `n_workers` threads.

        Parameters
        ----------
        n_workers
            Most threads to use.
        seconds
            If given, the time of every part is added to it; costs a microsecond a phase.
        """
        if numba.config.DISABLE_JIT:
            for phase in self._phases:
                for task in phase:
                    task.run_in_python()
            return
        if self._table is None:
            self._table = self._seal()
        if seconds is None:
            _run(self._table, self._ends, n_workers, GIVE_WAY)
            return
        for number, part in enumerate(self._sealed_parts):
            started = time.perf_counter()
            _run(self._table, self._ends[number : number + 2], n_workers, GIVE_WAY)
            seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - started

    def _seal(self) -> NDArray[np.int64]:
        rows, ends, first = [], [0], 0
        self._sealed_parts = []
        for phase, part in zip(self._phases, self._parts, strict=True):
            for task in phase:
                if task.units > 0:
                    address = task.words.__array_interface__["data"][0]
                    rows.append((task.kernel.address, address, first, task.units))
                    first += task.units
            if len(rows) > ends[-1]:
                ends.append(len(rows))
                self._sealed_parts.append(part)
        self._ends = np.array(ends, np.int64)
        return np.array(rows, np.int64).reshape(-1, _COLUMNS)


@leaf
def _wait(done: int, needed: int, give_way: int) -> None:
    """Return when so many units of a phase are done."""
    looks = 0
    while count(done) < needed:
        looks += 1
        if looks > _LOOKS and give_way != 0:
            give_way_by(give_way)


@leaf
def _work(
    table: NDArray[np.int64],
    ends: NDArray[np.int64],
    counters: int,
    give_way: int,
    worker: int,
) -> None:
    """Take units of all phases until none is left."""
    phase, task = 0, ends[0]
    begin, last = table[ends[0], 2], ends[-1] - 1
    end = table[last, 2] + table[last, 3]
    while True:
        unit = begin + claim(counters)
        if unit >= end:
            break
        while unit >= table[task, 2] + table[task, 3]:
            task += 1
        while task >= ends[phase + 1]:
            phase += 1
        if phase > 0:
            needed = table[ends[phase], 2] - table[ends[phase - 1], 2]
            _wait(counters + _LINE * phase, needed, give_way)
        call(table[task, 0], table[task, 1], unit - table[task, 2], worker)
        finish(counters + _LINE * (phase + 1))


@parallel
def _run(table: NDArray[np.int64], ends: NDArray[np.int64], n_workers: int, give_way: int) -> None:
    if ends.size < 2:
        return
    widest = 0
    for phase in range(ends.size - 1):
        last = ends[phase + 1] - 1
        widest = max(widest, table[last, 2] + table[last, 3] - table[ends[phase], 2])
    # cache lines of their own: units taken, and units done in each phase
    counters = np.zeros((ends.size + 1) * _LINE // 8, np.int64)
    address = (address_of(counters) + _LINE - 1) // _LINE * _LINE
    if widest == 1 or n_workers == 1:
        _work(table, ends, address, give_way, 0)
    else:
        for worker in prange(min(n_workers, widest)):
            _work(table, ends, address, give_way, worker)
    counters[0] = 0  # they live until here: the address alone would not keep them
