"""Programs: kernels recorded once with their arguments and run many times, in parallel.

A *kernel* is a compiled function that does one unit of work (some rows, a token, a head).
A *task* is a kernel with arguments and a number of units; a *phase* is a set of tasks that may
run at the same time; a *program* is a list of phases.  Running a program is one call from
Python: the compute threads (pool.py) take units one after the other, whoever is free; one who
takes a unit of the next phase waits until all units of this one are done.  So a slow or busy core
delays by one unit at most, which thread does a unit decides no byte, and any number of threads
gets through.

Kernels are called by address, so that a task costs no unpacking of arguments by Python.

Knows nothing of what kernels compute.
"""

import struct
import time
import weakref
from collections.abc import Callable, Sequence
from itertools import accumulate, groupby, pairwise
from typing import Any

import numba
import numpy as np
from numba import types
from numpy.typing import NDArray

from localv4.kernels._jit import entry, options
from localv4.kernels.arrays import address
from localv4.kernels.calls import DTYPES, pointer, real, word
from localv4.kernels.pool import Schedule

__all__ = ["Kernel", "Program", "Task", "declared_kernels", "kernel"]

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
    starts
        Where each argument's words begin in a task's, and their number.
    takes_words
        All arguments are whole numbers.
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
        # an array takes its address and its shape, all else one word
        widths = [1 + int(kind[-2]) if kind.endswith("]") else 1 for kind in self.kinds]
        self.starts = [0, *accumulate(widths)]
        self.takes_words = set(self.kinds) <= {"i64"}
        self._compiled: Any = None

    def compile(self) -> None:
        """Compile, or find in the cache."""
        if self._compiled is None:
            self._compiled = self._compile()

    @property
    def address(self) -> int:
        """Address of the compiled function; compiles it on first use."""
        self.compile()
        return int(self._compiled.address)

    def _compile(self) -> Any:
        values = []
        for kind, (at, end) in zip(self.kinds, pairwise(self.starts), strict=True):
            if kind.endswith("]"):
                shape = "".join(f"word(arguments, {place}), " for place in range(at + 1, end))
                pointer = f"{kind.partition('[')[0]}_pointer(word(arguments, {at}))"
                values.append(f"carray({pointer}, ({shape}))")
            elif kind == "f32":
                values.append(f"float32(real(arguments, {at}))")
            else:
                values.append(f"word(arguments, {at})")
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
        return entry(namespace[name], signature)


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
        self.ahead: Kernel | None = None
        self._kept: list[Any] = []
        if kernel.takes_words and arguments:  # at once, as a chunk's thousands of products do
            self.words = np.array(arguments, np.int64)
            return
        self.words = np.zeros(max(kernel.starts[-1], 1), np.int64)
        for index, value in enumerate(arguments):
            self.put(index, value)

    def put(self, index: int, value: Any) -> None:
        """Give another value to an argument, for the runs that follow."""
        self.arguments[index] = value
        start = self.kernel.starts[index]
        if isinstance(value, np.ndarray):
            kind = self.kernel.kinds[index]
            assert value.dtype == DTYPES[kind.partition("[")[0]], (kind, value.dtype)
            assert value.ndim == int(kind[-2]), (kind, value.shape)
            assert value.flags.c_contiguous, kind
            self.words[start] = address(value)
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

    def ask_ahead(self, kernel: Kernel | None) -> None:
        """Let a thread whose unit waits for the phase before ask memory for what it will read.

        The kernel gets the same arguments, again and again; its ``worker`` counts the calls.  It
        must not touch what the phases before write.  None: nobody asks.
        """
        assert kernel is None or kernel.kinds == self.kernel.kinds, kernel.name
        self.ahead = kernel

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
        self._stop: NDArray[np.int64] | None = None
        self._schedule: Schedule | None = None
        self._scheduled: list[int] = []

    def add(self, kernel: Kernel, units: int, *arguments: Any) -> Task:
        """Add a task to the last phase; tasks of a phase may run in any order or at once."""
        task = Task(kernel, units, arguments)
        self._phases[-1].append(task)
        self._schedule = None
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
    def n_phases(self) -> int:
        """How many phases there are, but for a last one without tasks: the next one's number."""
        return len(self._phases) - int(bool(self._phases) and not self._phases[-1])

    def stop_at(self, word: NDArray[np.int64]) -> None:
        """Let a phase end the run: those behind it run only while word, int64 [1], is 0."""
        self._stop = word
        self._schedule = None

    @property
    def part(self) -> str:
        """The part of the last phase."""
        return self._parts[-1]

    def set_units(self, task: Task, units: int) -> None:
        """Change how many units a task has."""
        task.units = units
        self._schedule = None

    def run(
        self,
        n_workers: int,
        seconds: dict[str, float] | None = None,
        first: int = 0,
        last: int | None = None,
    ) -> None:
        """Run phases on up to `n_workers` threads.

        Parameters
        ----------
        n_workers
            Most threads to use.
        seconds
            If given, the time of every part is added to it: phases of one part that follow each
            other are one call, and each call costs some microseconds.
        first, last
            Numbers of the first phase to run and of the one before which to end; all are run
            unless told.
        """
        last = len(self._phases) if last is None else last
        if numba.config.DISABLE_JIT:
            self._run_in_python(first, last)
            return
        if self._schedule is None:
            self._schedule = self._make_schedule()
        places = self._scheduled
        if seconds is None:
            self._schedule.run(n_workers, places[first], places[last])
            return
        for part, phases in groupby(range(first, last), key=self._parts.__getitem__):
            numbers = [*phases]
            begin, end = places[numbers[0]], places[numbers[-1] + 1]
            started = time.perf_counter()
            self._schedule.run(n_workers, begin, end)
            if end > begin:
                seconds[part] = seconds.get(part, 0.0) + time.perf_counter() - started
            if self._is_stopped:
                break

    @property
    def _is_stopped(self) -> bool:
        return self._stop is not None and self._stop[0] != 0

    def _run_in_python(self, first: int, last: int) -> None:
        for phase in self._phases[first:last]:
            for task in phase:
                task.run_in_python()
            if self._is_stopped:
                break

    def _make_schedule(self) -> Schedule:
        """Leave out phases without units, and note where the others are."""
        rows, ends, n_units = [], [0], 0
        self._scheduled = [0]
        for phase in self._phases:
            for task in phase:
                if task.units > 0:
                    ahead = 0 if task.ahead is None else task.ahead.address
                    words = address(task.words)
                    rows.append((task.kernel.address, words, n_units, task.units, ahead))
                    n_units += task.units
            if len(rows) > ends[-1]:
                ends.append(len(rows))
            self._scheduled.append(len(ends) - 1)
        return Schedule(np.array(rows, np.int64).reshape(-1, 5), ends, self._stop)
