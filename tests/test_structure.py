"""docs/structure.md names every module, and no file that is not there."""

import os
import re
from pathlib import Path

from tests.conftest import ROOT

QUOTED = re.compile(r"`([^`]+)`")


def documented() -> set[str]:
    """The paths that the tables name; a table's first cell names its folder.

    A row that begins with a folder of modules names them behind it, without their suffix.
    """
    folder, paths = "", set()
    text = (ROOT / "docs" / "structure.md").read_text(encoding="utf-8")
    for line in text.split("## File by file")[1].splitlines():
        if not line.startswith("| "):
            continue
        names, about = (cell.strip() for cell in line.strip("|").split("|"))
        if names.endswith("/") and "`" not in names:
            folder = names
            continue
        for name in QUOTED.findall(names):
            paths.add(folder + name)
            if name.endswith("/") and folder != "tests/":
                paths |= {f"{folder}{name}{module}.py" for module in QUOTED.findall(about)}
    return paths


def modules() -> set[str]:
    """All modules, without the links to folders that lie elsewhere; `__init__.py` is apart."""
    return {
        (Path(folder) / name).relative_to(ROOT).as_posix()
        for top in ("localv4", "quant", "cli")
        for folder, _, names in os.walk(ROOT / top)
        for name in names
        if name.endswith(".py") and name != "__init__.py"
    }


def test_every_module_is_named():
    assert {"localv4/session.py", "localv4/encoding/parse.py", "quant/bf16.py"} <= modules()
    assert modules() - documented() == set()


def test_everything_named_is_there():
    assert {name for name in documented() if not (ROOT / name).exists()} == set()
