"""What a measured figure must not be quoted without: machine, load, date, version."""

import datetime
import os
import platform
from typing import Any

import localv4
from localv4.cli.output import Output

__all__ = ["machine", "print_machine"]


def machine() -> dict[str, Any]:
    """Return what a figure must not be quoted without."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "version": localv4.__version__,
        "date": datetime.date.today().isoformat(),
        "machine": _cpu_name(),
        "cpus": os.cpu_count(),
        "load_average": load,
    }


def _cpu_name() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as lines:  # noqa: PTH123
            names = [line.partition(":")[2].strip() for line in lines if "model name" in line]
    except OSError:
        names = []
    return names[0] if names else platform.processor() or platform.machine()


def print_machine(report: dict[str, Any], output: Output) -> None:
    """Print it, as a report's first line."""
    load = report["load_average"]
    busy = "" if load is None else f", load average {load:.1f}"
    output.line(f"{report['machine']}, {report['cpus']} CPUs{busy}, {report['date']}")
