"""What the operating system says is mounted where: Linux's /proc/self/mountinfo.

Follows proc(5).  Knows nothing of what the files are for; on a system without that file nothing
is known to be mounted.
"""

import re
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Mount", "mount_of", "read_mounts"]

_ESCAPE = re.compile(r"\\([0-7]{3})")  # of blanks and backslashes in a path


@dataclass(frozen=True)
class Mount:
    """One mounted file system.

    Attributes
    ----------
    device
        Its "major:minor".
    root
        Which folder of the file system is mounted.
    point
        Where, as an absolute path.
    kind
        Such as "ext4" or "nfs4".
    options
        Of the file system itself; names the controllers of a control group.
    """

    device: str
    root: str
    point: str
    kind: str
    options: tuple[str, ...]


def read_mounts(system: Path = Path("/")) -> list[Mount]:
    """Return what is mounted, in order; later mounts hide earlier ones of the same point.

    Parameters
    ----------
    system
        Stands for the root folder; for tests.
    """
    try:
        text = (system / "proc/self/mountinfo").read_text("utf-8", "surrogateescape")
    except OSError:
        return []
    return [mount for line in text.splitlines() if (mount := _parse(line)) is not None]


def _parse(line: str) -> Mount | None:
    before, _, after = line.partition(" - ")
    fields, rest = before.split(" "), after.split(" ")
    if len(fields) < 6 or len(rest) < 3:
        return None
    root, point = (_ESCAPE.sub(lambda found: chr(int(found[1], 8)), field) for field in fields[3:5])
    return Mount(fields[2], root, point, rest[0], tuple(rest[2].split(",")))


def mount_of(path: Path, mounts: list[Mount]) -> Mount | None:
    """Return the mount that holds a path, whose links must be resolved already."""
    holding = [mount for mount in mounts if path.is_relative_to(mount.point)]
    # the longest point; of equal ones the last hides the others
    return max(reversed(holding), key=lambda mount: len(mount.point), default=None)
