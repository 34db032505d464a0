"""Kernels run by themselves."""

from collections.abc import Callable
from typing import Any

from localv4.kernels.launch import Kernel, Program


def run(kernel: Kernel, units: int, *arguments: Any, n_workers: int = 2) -> None:
    """Run all units of a kernel."""
    program = Program()
    program.phase("other")
    program.add(kernel, units, *arguments)
    program.run(n_workers)


def run_recorded(record: Callable[..., object], *arguments: Any, n_workers: int = 2) -> None:
    """Run what a function records in the one phase of a program."""
    program = Program()
    program.phase("other")
    record(program, *arguments)
    program.run(n_workers)
