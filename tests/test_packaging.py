"""The house rules that no linter knows."""

import ast
import os
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SOURCES = sorted(
    path
    for folder in ("localv4", "quant", "cli")
    for path in (ROOT / folder).rglob("*.py")
    if not any(parent.is_symlink() for parent in path.parents)
)


def pyproject() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def packages_on_disk() -> set[str]:
    return {
        str(Path(folder).relative_to(ROOT)).replace(os.sep, ".")
        for folder, _, files in os.walk(ROOT / "localv4", followlinks=True)
        if any(name.endswith(".py") for name in files)
    }


def test_every_package_is_installed():
    assert set(pyproject()["tool"]["setuptools"]["packages"]) == packages_on_disk()


def test_links_show_the_checkout_the_installed_tree():
    for name in ("quant", "cli"):
        link = ROOT / "localv4" / name
        assert link.is_symlink()
        assert str(link.readlink()) == f"../{name}"


def test_sources_are_found():
    names = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"localv4/settings.py", "cli/app.py", "quant/__init__.py"} <= names
    assert not any(name.startswith(("localv4/cli", "localv4/quant")) for name in names)


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_only_settings_reads_the_environment(path):
    if path == ROOT / "localv4" / "settings.py":
        return
    names = {"environ", "environb", "getenv", "getenvb", "putenv"}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            assert not (node.value.id == "os" and node.attr in names), f"line {node.lineno}"
        if isinstance(node, ast.ImportFrom) and node.module == "os":
            assert not names & {alias.name for alias in node.names}, f"line {node.lineno}"


def test_notices_are_shipped():
    patterns = pyproject()["project"]["license-files"]
    shipped = {path.name for pattern in patterns for path in ROOT.glob(pattern)}
    assert shipped == {"LICENSE", "NOTICE"}
    assert "2023 DeepSeek" in (ROOT / "NOTICE").read_text(encoding="utf-8")
