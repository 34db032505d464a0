"""What the operating system lets this process have: memory to take, memory it holds, CPU time.

Knows nothing of what they are for.  Limits of control groups follow the kernel's
admin-guide/cgroup-v2 and cgroup-v1.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import psutil

from localv4.mounts import Mount, read_mounts

__all__ = ["GroupLimit", "Resident", "available_bytes", "cpu_quota", "group_limits", "resident"]

_SYSTEM = Path("/")
_KIB = 1024
# Where the hierarchies are on a system whose mounts can't be read.
_USUAL = (
    Mount("", "/", "/sys/fs/cgroup", "cgroup2", ()),
    Mount("", "/", "/sys/fs/cgroup/memory", "cgroup", ("memory",)),
    Mount("", "/", "/sys/fs/cgroup/cpu", "cgroup", ("cpu",)),
)
# Files of a group: limits, usage, and the page cache within it that can be dropped.
_V2 = (("memory.max", "memory.high"), "memory.current", ("inactive_file", "active_file"))
_V1 = (
    ("memory.limit_in_bytes",),
    "memory.usage_in_bytes",
    ("total_inactive_file", "total_active_file"),
)


@dataclass(frozen=True)
class GroupLimit:
    """A limit on the memory of a control group that this process belongs to.

    Attributes
    ----------
    path
        The group's folder.
    limit
        Most bytes of the group: what it is killed above, or slowed down above if that is less.
    used
        Bytes it holds now, without page cache that can be dropped.
    """

    path: Path
    limit: int
    used: int

    @property
    def room(self) -> int:
        """Bytes the group may still take."""
        return max(self.limit - self.used, 0)


@dataclass(frozen=True)
class Resident:
    """Bytes of this process that lie in memory.

    Attributes
    ----------
    anonymous
        Its own memory: what nobody but this process can drop.
    shared
        Memory shared with other processes that is no file.
    file
        Mapped files: page cache, which the system drops when others need memory.
    locked
        Of all of these, what is locked in memory.
    """

    anonymous: int
    shared: int
    file: int
    locked: int


def available_bytes(system: Path = _SYSTEM) -> int:
    """Return the memory this process could take now.

    What the system calls available, within the limits of all control groups that apply.

    Parameters
    ----------
    system
        Stands for the root folder; for tests.
    """
    rooms = (limit.room for limit in group_limits(system))
    return min(int(psutil.virtual_memory().available), *rooms, 2**63)


def group_limits(system: Path = _SYSTEM) -> list[GroupLimit]:
    """Return the limits of this process's control groups and of their parents, if any."""
    limits = (_limit_of(folder, is_v2) for folder, is_v2 in _groups(system, "memory"))
    return [limit for limit in limits if limit is not None]


def cpu_quota(system: Path = _SYSTEM) -> float | None:
    """Return how many CPUs' time control groups let this process take; None for no limit."""
    quotas = []
    for folder, is_v2 in _groups(system, "cpu"):
        if is_v2:
            words = _text(folder / "cpu.max").split()
        else:
            words = [_text(folder / f"cpu.cfs_{name}_us") for name in ("quota", "period")]
        if len(words) == 2 and all(word.isdecimal() for word in words) and int(words[1]):
            quotas.append(int(words[0]) / int(words[1]))
    return min(quotas, default=None)


def _groups(system: Path, controller: str) -> Iterator[tuple[Path, bool]]:
    """Yield the folders of this process's groups and their parents, and whether of version 2."""
    for mount, group in _memberships(system, controller):
        point = system / mount.point.lstrip("/")
        folder = point / _below(group, mount.root)
        yield folder, mount.kind == "cgroup2"
        while folder != point:
            folder = folder.parent
            yield folder, mount.kind == "cgroup2"


def _memberships(system: Path, controller: str) -> Iterator[tuple[Mount, str]]:
    """Yield the mounted hierarchies with a controller, and this process's group in each."""
    mounts = read_mounts(system) or list(_USUAL)
    for line in _text(system / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, group = rest.partition(":")
        for mount in mounts:
            is_v2 = mount.kind == "cgroup2" and number == "0"
            is_v1 = mount.kind == "cgroup" and controller in mount.options
            if is_v2 or (is_v1 and controller in controllers.split(",")):
                yield mount, group


def _below(group: str, root: str) -> PurePosixPath:
    """Return a group's path below the folder of the hierarchy that is mounted.

    A group outside of it, as a container sees its own, is taken for that folder.
    """
    path = PurePosixPath(group)
    if not path.is_relative_to(root) or ".." in path.parts:
        return PurePosixPath()
    return path.relative_to(root)


def _limit_of(folder: Path, is_v2: bool) -> GroupLimit | None:
    names, usage, cached = _V2 if is_v2 else _V1
    limits = [limit for name in names if (limit := _number(folder / name)) is not None]
    used = _number(folder / usage)
    if not limits or used is None or min(limits) >= 2**62:  # v1 writes that for none
        return None
    found = _named_numbers(folder / "memory.stat")
    dropped = sum(found.get(name, 0) for name in cached)
    return GroupLimit(folder, min(limits), max(used - dropped, 0))


def _text(file: Path) -> str:
    try:
        return file.read_text("utf-8", "surrogateescape").strip()
    except OSError:
        return ""


def _number(file: Path) -> int | None:
    text = _text(file)
    return int(text) if text.isdecimal() else None


def _named_numbers(file: Path) -> dict[str, int]:
    """Return the numbers of lines like "name 12"."""
    pairs = (line.split() for line in _text(file).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}


def resident(system: Path = _SYSTEM) -> Resident:
    """Return what this process holds in memory.

    Takes about 20 us on Linux.  On other systems all that is resident counts as anonymous.
    Kernels from 6.2 to 6.15 may be off by some pages for each CPU.

    Parameters
    ----------
    system
        Stands for the root folder; for tests.
    """
    try:
        with open(system / "proc/self/status", "rb") as file:  # noqa: PTH123 (called each token)
            status = file.read()
    except OSError:
        status = b""
    if b"\nRssAnon:" not in status:
        return Resident(int(psutil.Process().memory_info().rss), 0, 0, 0)
    return Resident(
        _kib(status, b"\nRssAnon:"),
        _kib(status, b"\nRssShmem:"),
        _kib(status, b"\nRssFile:"),
        _kib(status, b"\nVmLck:"),
    )


def _kib(status: bytes, name: bytes) -> int:
    """Return the bytes of a line like "VmLck:	     16 kB"."""
    start = status.find(name)
    if start < 0:
        return 0
    return _KIB * int(status[start + len(name) : status.index(b" kB", start)])
