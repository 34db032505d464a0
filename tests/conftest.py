"""Shared by all tests: where the optional goldens are, and an environment of their own.

``LOCALV4_CACHE_DIR`` is set before anything of localv4 is imported. Two processes that compile
kernels into one cache folder can crash, so each test process holds a folder that no other has
while it runs; the folders are kept, so that a second run finds its kernels compiled.
"""

import fcntl
import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

# Goldens too large for the repository: a folder beside the checkout, absent on a fresh clone.
SHARED = Path(__file__).parents[2] / "shared"


def _claim_cache_folder() -> Path:
    """Return the first cache folder that no living test process holds."""
    folders = ROOT / ".cache" / "tests"
    folders.mkdir(parents=True, exist_ok=True)
    number = 0
    while True:
        handle = os.open(folders / f"{number}.lock", os.O_CREAT | os.O_RDWR)
        try:
            # Never closed: the lock ends with the process. Child processes do not inherit it.
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return folders / str(number)
        except BlockingIOError:
            os.close(handle)
            number += 1


for _name in [name for name in os.environ if name.startswith("LOCALV4_")]:
    del os.environ[_name]
os.environ["LOCALV4_CACHE_DIR"] = str(_claim_cache_folder())
os.environ["LOCALV4_CONFIG"] = str(ROOT / ".cache" / "tests" / "no-config.toml")
os.environ["HF_HUB_OFFLINE"] = "1"


# Modules with tests of a minute and more: begun first, or one core would wait for the other.
LONGEST = ("test_long_context", "test_loops", "test_tiers", "test_goldens", "test_docs")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Return the folder of goldens, or skip."""
    if not SHARED.is_dir():
        pytest.skip(f"no goldens: {SHARED} is not there")
    return SHARED


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the hub's cache of a test, not there yet."""
    folder = tmp_path / "home" / "hub"
    folder.parent.mkdir()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(folder))
    return folder
