"""Somebody who walks through a page of the docs and types what it says.

At home nowhere: the home folder is new, the hub is on loopback, and the shell finds localv4 of this
checkout. Knows nothing of what the pages say.
"""

import os
import shlex
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

from tests.conftest import ROOT
from tests.doc_pages import Block, Command
from tests.loopback_hub import LoopbackHub
from tests.terminal import in_terminal

__all__ = ["Reader"]

_IN_TERMINAL = "localv4 chat"

_WRAPPER = """#!/bin/sh
PYTHONPATH={root} exec {python} -P -m localv4 "$@"
"""
_JQ = """#!{python}
import json, sys
value = json.load(sys.stdin)
for name in sys.argv[-1].strip(".").split("."):
    value = value[name]
print(value)
"""


@dataclass
class Reader:
    """Somebody with a home folder, a shell, and a page to walk through."""

    folder: Path
    environment: dict[str, str]
    exports: list[str] = field(default_factory=list)

    @classmethod
    def at(cls, folder: Path, hub: LoopbackHub) -> "Reader":
        environment = {
            name: value
            for name, value in hub.environment(folder / "home/.cache/huggingface").items()
            if not name.startswith(("LOCALV4_", "XDG_"))
        }
        environment |= {"HOME": str(folder / "home"), "PATH": f"{folder}/bin:{os.environ['PATH']}"}
        # Kernels are compiled there already; the built-in model is made there once.
        environment["LOCALV4_CACHE_DIR"] = os.environ["LOCALV4_CACHE_DIR"]
        reader = cls(folder, environment)
        wrapper = _WRAPPER.format(root=shlex.quote(str(ROOT)), python=shlex.quote(sys.executable))
        _program(folder / "bin" / "localv4", wrapper)
        _program(folder / "work" / "scripts" / "localv4", wrapper)
        # a stand-in, so that the tests don't need it
        _program(folder / "bin" / "jq", _JQ.format(python=sys.executable))
        (folder / "home").mkdir()
        _change_something(folder / "work", reader.environment)
        return reader

    @property
    def work(self) -> Path:
        return self.folder / "work"

    def run(self, step: Command | Block) -> str | None:
        """Do one step; return what is wrong with it."""
        if isinstance(step, Block):
            script = self.folder / f"line-{step.line}.py"
            script.write_text(step.text, "utf-8")
            environment = {**self.environment, "PYTHONPATH": str(ROOT)}
            return self._done([sys.executable, "-P", str(script)], 0, environment)
        if step.text.startswith("export "):
            self.exports.append(step.text)
        shell = ["bash", "-c", "\n".join([*self.exports, step.text])]
        if step.text.startswith(_IN_TERMINAL):
            code, shown = in_terminal(
                shell, self.environment, self.work, typed="/quit\n", after="/help"
            )
            return None if code == step.code else f"exit {code}: {shown[-500:]}"
        return self._done(shell, step.code, self.environment)

    def _done(self, command: list[str], expected: int, environment: dict[str, str]) -> str | None:
        done = subprocess.run(
            command,
            env=environment,
            cwd=self.work,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=300,
        )
        if done.returncode == expected and "Traceback" not in done.stderr:
            return None
        return f"exit {done.returncode}, expected {expected}: {done.stderr[-500:]}"


def _change_something(folder: Path, environment: dict[str, str]) -> None:
    """Give `git diff` something to show."""
    if shutil.which("git") is None:
        return
    file = folder / "poem.txt"
    file.write_text("Roses are red\n", "utf-8")
    for arguments in (["init", "--quiet"], ["add", file.name]):
        subprocess.run(["git", *arguments], cwd=folder, env=environment, check=True)
    file.write_text("Roses are read\n", "utf-8")


def _program(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
