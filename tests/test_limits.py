"""Limits and memory as fake trees of /proc and /sys say, and as this process sees them."""

import mmap
import sys
from pathlib import Path

import psutil
import pytest

from localv4.limits import Resident, available_bytes, cpu_quota, group_limits, resident

GIB = 2**30
V2 = "31 23 0:28 / /sys/fs/cgroup rw,relatime - cgroup2 cgroup2 rw\n"
V1 = "35 31 0:32 {root} /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n"


@pytest.fixture(autouse=True)
def machine(monkeypatch):
    """A machine with 64 GiB available."""
    memory = type("Memory", (), {"available": 64 * GIB})
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)


def write(folder: Path, **files: object) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(f"{text}\n")


def system(root: Path, groups: str, mounts: str) -> Path:
    write(root / "proc" / "self", cgroup=groups)
    (root / "proc" / "self" / "mountinfo").write_text(mounts)
    return root


def v2(folder: Path, limit: object, used: int, cached: int = 0) -> None:
    stat = f"anon 5\nactive_file {cached // 2}\ninactive_file {cached - cached // 2}\nslab 7"
    write(folder, memory__max=limit, memory__current=used, memory__stat=stat)


def v1(folder: Path, limit: int, used: int, cached: int = 0) -> None:
    stat = f"cache 9\ninactive_file 9\ntotal_active_file {cached}\ntotal_inactive_file 0"
    write(
        folder,
        memory__limit_in_bytes=limit,
        memory__usage_in_bytes=used,
        memory__stat=stat,
    )


def test_no_limit(tmp_path):
    assert available_bytes(tmp_path) == 64 * GIB  # no /proc at all
    root = system(tmp_path, "0::/", V2)
    assert available_bytes(root) == 64 * GIB
    v2(root / "sys/fs/cgroup", "max", 5)
    assert available_bytes(root) == 64 * GIB


def test_the_own_group_and_every_parent(tmp_path):
    root = system(tmp_path, "0::/user.slice/run.scope", V2)
    group = root / "sys/fs/cgroup"
    v2(group / "user.slice" / "run.scope", 20 * GIB, 4 * GIB)
    assert available_bytes(root) == 16 * GIB
    v2(group / "user.slice", 10 * GIB, 8 * GIB)
    assert available_bytes(root) == 2 * GIB
    assert [limit.limit for limit in group_limits(root)] == [20 * GIB, 10 * GIB]
    # more than is available is no limit
    v2(group / "user.slice", 1000 * GIB, 0)
    v2(group / "user.slice" / "run.scope", 1000 * GIB, 0)
    assert available_bytes(root) == 64 * GIB


def test_page_cache_can_be_dropped(tmp_path):
    root = system(tmp_path, "0::/job", V2)
    v2(root / "sys/fs/cgroup" / "job", 10 * GIB, 9 * GIB, cached=6 * GIB)
    assert available_bytes(root) == 7 * GIB


def test_over_the_limit_is_no_room(tmp_path):
    root = system(tmp_path, "0::/job", V2)
    v2(root / "sys/fs/cgroup" / "job", 1 * GIB, 2 * GIB)
    assert available_bytes(root) == 0


def test_what_slows_a_group_down_is_a_limit(tmp_path):
    root = system(tmp_path, "0::/job", V2)
    v2(root / "sys/fs/cgroup" / "job", "max", 1 * GIB)
    write(root / "sys/fs/cgroup" / "job", memory__high=4 * GIB)
    assert available_bytes(root) == 3 * GIB


def test_version_1_beside_an_empty_version_2(tmp_path):
    groups = "4:cpu,memory:/batch/job\n3:cpuset:/\n0::/"
    mounts = V1.format(root="/") + V2.replace("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
    root = system(tmp_path, groups, mounts)
    memory = root / "sys/fs/cgroup/memory"
    v1(memory, 9223372036854771712, 50 * GIB)
    v1(memory / "batch", 30 * GIB, 20 * GIB, cached=5 * GIB)
    v1(memory / "batch" / "job", 9223372036854771712, 20 * GIB)
    assert available_bytes(root) == 15 * GIB


@pytest.mark.parametrize(("group", "root"), [("/docker/1a", "/docker/1a"), ("/docker/1a", "/x")])
def test_a_container_sees_its_own_group_as_the_root(tmp_path, group, root):
    top = system(tmp_path, f"4:memory:{group}", V1.format(root=root))
    v1(top / "sys/fs/cgroup/memory", 3 * GIB, 1 * GIB)
    assert available_bytes(top) == 2 * GIB


def test_a_group_outside_of_the_namespace(tmp_path):
    root = system(tmp_path, "0::/../other", V2)
    v2(root / "sys/fs/cgroup", 3 * GIB, 1 * GIB)
    assert available_bytes(root) == 2 * GIB


def test_mounted_elsewhere_with_a_blank(tmp_path):
    mounts = V2.replace("/sys/fs/cgroup", "/my\\040groups")
    root = system(tmp_path, "0::/job", mounts)
    v2(root / "my groups" / "job", 3 * GIB, 1 * GIB)
    assert available_bytes(root) == 2 * GIB


def test_mounts_unknown(tmp_path):
    root = system(tmp_path, "4:memory:/job", "")
    v1(root / "sys/fs/cgroup/memory/job", 3 * GIB, 1 * GIB)
    assert available_bytes(root) == 2 * GIB


@pytest.mark.parametrize("text", ["", "rubbish", "-5", "\xff"])
def test_rubbish_is_no_limit(tmp_path, text):
    root = system(tmp_path, f"0::/job\n{text}", f"{V2}{text}\n")
    v2(root / "sys/fs/cgroup" / "job", text, 1 * GIB)
    assert available_bytes(root) == 64 * GIB


def test_cpu_time(tmp_path):
    assert cpu_quota(tmp_path) is None
    mounts = V2 + V1.format(root="/").replace("memory", "cpu")
    root = system(tmp_path, "0::/a/b\n3:cpu:/c", mounts)
    assert cpu_quota(root) is None
    write(root / "sys/fs/cgroup/a/b", cpu__max="max 100000")
    assert cpu_quota(root) is None
    write(root / "sys/fs/cgroup/a", cpu__max="250000 100000")
    assert cpu_quota(root) == 2.5
    write(root / "sys/fs/cgroup/cpu/c", cpu__cfs_quota_us=-1, cpu__cfs_period_us=100000)
    assert cpu_quota(root) == 2.5
    write(root / "sys/fs/cgroup/cpu", cpu__cfs_quota_us=150000, cpu__cfs_period_us=100000)
    assert cpu_quota(root) == 1.5


def test_resident_by_kind(tmp_path):
    status = (
        "Name:\tx\nVmLck:\t      16 kB\nRssAnon:\t    1000 kB\nRssFile:\t 20 kB\nRssShmem:\t3 kB"
    )
    write(tmp_path / "proc" / "self", status=status)
    assert resident(tmp_path) == Resident(1_024_000, 3072, 20_480, 16_384)


def test_resident_of_this_process(tmp_path):
    elsewhere = resident(tmp_path)  # as on a system without /proc
    assert elsewhere.anonymous > 2**20
    assert elsewhere.shared == elsewhere.file == elsewhere.locked == 0
    if sys.platform != "linux":
        return
    before = resident()
    assert before.file > 0
    with mmap.mmap(-1, 2**25, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as memory:
        memory.write(b"1" * 2**25)
        grown = resident().anonymous - before.anonymous
    assert 0.9 * 2**25 < grown < 3 * 2**25
