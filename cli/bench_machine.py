"""What a measured figure must not be quoted without: machine, load, date, version."""

import datetime
import os
from typing import Any

import localv4
from localv4.cli.output import Output

__all__ = ["machine", "print_machine"]


def machine() -> dict[str, Any]:
    """Return what a figure must not be quoted without."""
    # Imported here, as NumPy is not for --help.
    from localv4.doctor_machine import cpu_name

    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    return {
        "version": localv4.__version__,
        "date": datetime.date.today().isoformat(),
        "machine": cpu_name(),
        "cpus": os.cpu_count(),
        "load_average": load,
    }


def print_machine(report: dict[str, Any], output: Output) -> None:
    """Print it, as a report's first line."""
    load = report["load_average"]
    busy = "" if load is None else f", load average {load:.1f}"
    output.line(f"{report['machine']}, {report['cpus']} CPUs{busy}, {report['date']}")
