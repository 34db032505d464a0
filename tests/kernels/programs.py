"""Kernels run by themselves."""

from typing import Any

from localv4.kernels.launch import Kernel, Program


def run(kernel: Kernel, units: int, *arguments: Any, n_workers: int = 2) -> None:
    """Run all units of a kernel."""
    program = Program()
    program.phase("other")
    program.add(kernel, units, *arguments)
    program.run(n_workers)
