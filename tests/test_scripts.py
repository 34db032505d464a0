"""How the scripts make .venv, in a copy of the checkout with a stand-in for Python.

The stand-in makes a "virtual environment" whose Python is the stand-in again, and writes down what
it was asked; a real install needs the network.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT

STAND_IN = """#!/bin/sh
here=$(dirname "$0")
echo "$*" >>"{log}"
case "$*" in
    "-c "*) exit {old} ;;
    "-m venv "*) mkdir -p "$4/bin" && cp "{python}" "$4/bin/python" ;;
    *"--editable"*) exit $(cat "{log}.fail" 2>/dev/null || echo 0) ;;
esac
"""


class Checkout:
    """A copy of the scripts in a folder with a space in its name."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "a checkout"
        self.log = folder / "log"
        self.fail = folder / "log.fail"
        self.python = folder / "stand-in-python"
        self.root.mkdir()
        shutil.copytree(ROOT / "scripts", self.root / "scripts")
        (self.root / "pyproject.toml").write_text("one")
        self.stand_in(old=0)

    def stand_in(self, old: int) -> None:
        self.python.write_text(STAND_IN.format(log=self.log, python=self.python, old=old))
        self.python.chmod(0o755)

    def run(self, name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        return subprocess.run(
            [self.root / "scripts" / name, *arguments],
            capture_output=True,
            text=True,
            timeout=30,
            env={"PATH": "/usr/bin:/bin", "PYTHON": str(self.python)},
            cwd="/",
        )

    @property
    def calls(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if not line.startswith("-c")]


@pytest.fixture
def checkout(tmp_path) -> Checkout:
    return Checkout(tmp_path)


def test_first_run_installs_and_later_ones_do_not(checkout):
    first = checkout.run("localv4", "run", "two words")
    assert (first.returncode, first.stdout) == (0, "")
    assert checkout.calls[0] == f"-m venv --clear {checkout.root}/.venv"
    assert any("--editable" in call for call in checkout.calls)
    assert not any("--group dev" in call for call in checkout.calls)
    assert checkout.calls[-1] == "-P -m localv4 run two words"
    second = checkout.run("localv4", "--version")
    assert (second.returncode, second.stderr) == (0, "")
    assert checkout.calls == ["-P -m localv4 --version"]


def test_a_changed_pyproject_installs_again(checkout):
    checkout.run("localv4")
    (checkout.root / "pyproject.toml").write_text("two")
    checkout.run("localv4")
    assert any("--editable" in call for call in checkout.calls)
    assert not any("-m venv" in call for call in checkout.calls)


def test_the_tests_need_more(checkout):
    checkout.run("localv4")
    checkout.run("test", "tests/quant")
    assert any("--group dev" in call for call in checkout.calls)
    assert checkout.calls[-1] == "-m pytest tests/quant"
    checkout.run("localv4")
    assert checkout.calls == ["-P -m localv4"]


def test_a_failed_first_install_leaves_nothing(checkout):
    checkout.fail.write_text("1")
    result = checkout.run("localv4")
    assert result.returncode == 1
    assert "the install failed" in result.stderr
    assert not (checkout.root / ".venv").exists()
    checkout.fail.unlink()
    assert checkout.run("localv4").returncode == 0


def test_a_failed_update_is_not_trusted(checkout):
    checkout.run("localv4")
    (checkout.root / "pyproject.toml").write_text("two")
    checkout.fail.write_text("1")
    assert checkout.run("localv4").returncode == 1
    (checkout.root / "pyproject.toml").write_text("one")
    checkout.fail.unlink()
    checkout.run("localv4")
    assert any("--editable" in call for call in checkout.calls)


def test_an_old_python_is_refused(checkout):
    checkout.stand_in(old=1)
    result = checkout.run("localv4")
    assert result.returncode == 1
    assert "Python 3.11 or newer" in result.stderr
    assert not (checkout.root / ".venv").exists()


def test_a_link_to_the_script_works(checkout, tmp_path):
    link = tmp_path / "bin" / "localv4"
    link.parent.mkdir()
    link.symlink_to(checkout.root / "scripts" / "localv4")
    result = subprocess.run(
        [link], capture_output=True, env={"PATH": "/usr/bin:/bin", "PYTHON": str(checkout.python)}
    )
    assert result.returncode == 0
    assert (checkout.root / ".venv").is_dir()
