"""Every command in the README and the docs is run as written, and every name in them exists.

A page is walked through as a reader would: its commands in order, in a home folder of its own, with
a hub on loopback that serves tiny checkpoints under the released names. What can't be run here is
in a table, with the reason, and has at least commands and flags that exist.
"""

import ast
import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command

from localv4.cli.app import COMMANDS, command_table
from localv4.settings import load_settings
from localv4.synthetic import synthesise
from tests.conftest import ROOT
from tests.doc_pages import LANGUAGES, Block, Command, Page
from tests.doc_reader import Reader
from tests.loopback_hub import LoopbackHub
from tests.picture import SHOWN, TARGET

RUN = [Page(path) for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md")]
RUN += [Page(path) for path in sorted((ROOT / "docs").glob("*.md"))]
READ = [*RUN, *map(Page, (ROOT / "CHANGELOG.md", *sorted((ROOT / "benchmarks").glob("*.md"))))]

# Not run here: what a command begins with, and why.
NOT_RUN = {
    "scripts/test": "runs this very test, and takes a quarter of an hour",
    "scripts/check": "CI runs it before the tests",
    "python -m tests.": "made by hand; tests/test_docs.py sees that the module is there",
}
# In running text, and not run as it stands there.
NOT_WHOLE = {
    "localv4 bench": "names a table of commands",
    "localv4 bench kernels": "takes minutes; tests/cli/test_bench.py runs it with small sizes",
    "localv4 rm flash": "asks in a terminal; models.md has it with -y",
    "localv4 run --raw": "wants a prompt; README.md has it with one",
    "localv4 run -v": "wants a prompt; troubleshooting.md has it with one",
}
OTHER_FLAGS = {"--local-dir": "of hf download"}

_PLACEHOLDER = re.compile(r"[A-Z]+(\.\.\.)?|\.\.\.|\[[A-Z]+\]")


@pytest.fixture(scope="module")
def hub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoopbackHub]:
    """A hub that has Flash, as it came out and as it was trained further."""
    folder = tmp_path_factory.mktemp("hub")
    synthesise(folder / "flash", compress_ratios=(0, 4))
    synthesise(folder / "flash-0731", compress_ratios=(0, 4), dspark=True)
    with LoopbackHub() as served:
        served.add("deepseek-ai/DeepSeek-V4-Flash", folder / "flash")
        served.add("deepseek-ai/DeepSeek-V4-Flash-0731", folder / "flash-0731")
        yield served


def steps_of(page: Page) -> list[Command | Block]:
    """Return what is to be done on a page, without what can't be run here."""
    return [
        step
        for step in page.steps
        if isinstance(step, Block) or not step.text.startswith(tuple(NOT_RUN))
    ]


@pytest.mark.parametrize(
    "page", [page for page in RUN if steps_of(page)], ids=lambda page: page.path.name
)
def test_commands_do_what_the_page_says(page: Page, hub: LoopbackHub, tmp_path: Path) -> None:
    reader = Reader.at(tmp_path, hub)
    wrong = []
    for step in steps_of(page):
        complaint = reader.run(step)
        if complaint is not None:
            wrong.append(f"{page.path.name}:{step.line}: {step.text.strip()}\n  {complaint}")
    assert not wrong, "\n".join(wrong)


def commands_in_text() -> list[str]:
    """Return the whole commands that stand in running text and in no block."""
    blocks = {step.text.strip() for page in RUN for step in page.steps}
    found = {
        span
        for page in RUN
        for span in page.spans
        if span.startswith("localv4 ") and not any(map(_PLACEHOLDER.fullmatch, span.split()))
    }
    return sorted(found - blocks)


def test_commands_in_running_text(hub: LoopbackHub, tmp_path: Path) -> None:
    commands = commands_in_text()
    assert len(commands) > 8
    assert {*NOT_WHOLE} <= {*commands}
    reader = Reader.at(tmp_path, hub)
    wrong = {}
    for line in ["localv4 pull flash -y", *commands]:
        if line not in NOT_WHOLE:
            wrong[line] = reader.run(Command(line, 0, 0))
    assert not {line: what for line, what in wrong.items() if what is not None}


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.path.name)
def test_blocks_have_a_language_that_says_what_to_do(page: Page) -> None:
    assert {block.language for block in page.blocks} <= {*LANGUAGES}
    for module in re.findall(r"python -m (tests\.\w+)", page.text):
        assert (ROOT / f"{module.replace('.', '/')}.py").is_file()


@pytest.mark.parametrize("page", RUN, ids=lambda page: page.path.name)
def test_config_files_load(page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in page.blocks:
        if block.language == "toml":
            file = tmp_path / "config.toml"
            file.write_text(block.text, "utf-8")
            monkeypatch.setenv("LOCALV4_CONFIG", str(file))
            settings = load_settings()
            assert all(settings.sources[name] == str(file) for name in tomllib.loads(block.text))


@pytest.fixture(scope="module")
def table() -> Any:
    """All commands, with their flags."""
    return get_command(command_table())


def flags_of(command: Any) -> set[str]:
    return {
        flag
        for parameter in command.params
        for flag in (*parameter.opts, *parameter.secondary_opts)
        if flag.startswith("-")
    } | {"--help", "-h"}


def every_flag(command: Any) -> set[str]:
    below = getattr(command, "commands", {}).values()
    return flags_of(command).union({"--version"}, *map(every_flag, below))


def complaint_of(line: str, table: Any) -> str | None:
    """Return which command or flag of a line there is not."""
    command = table
    for word in shlex.split(line, comments=True)[1:]:
        below = getattr(command, "commands", {})
        if word.startswith("-") and word != "-":
            known = every_flag(command) if command is table else flags_of(command)
            repeated = re.sub(r"^-(\w)\1+$", r"-\1", word)  # -vv
            if repeated.partition("=")[0] not in known:
                return word
        elif word in below:
            command = below[word]
        elif command is table and not _PLACEHOLDER.fullmatch(word):
            return word
    return None


@pytest.mark.parametrize("page", READ, ids=lambda page: page.path.name)
def test_commands_and_flags_exist(page: Page, table: Any) -> None:
    wrong = {line: complaint_of(line, table) for line in page.typed}
    assert not {line: what for line, what in wrong.items() if what is not None}
    assert not page.flags - every_flag(table) - {*OTHER_FLAGS}


@pytest.mark.parametrize("page", READ, ids=lambda page: page.path.name)
def test_variables_exist(page: Page) -> None:
    known = {f"LOCALV4_{name.upper()}" for name in load_settings().sources}
    assert page.variables <= known | {"LOCALV4_CONFIG", "LOCALV4_TIER"}


def test_every_setting_is_documented() -> None:
    formats = (ROOT / "docs" / "formats.md").read_text("utf-8")
    for name in load_settings().sources:
        assert f"| `{name}` | `LOCALV4_{name.upper()}` |" in formats


def test_every_command_is_in_the_table_of_the_readme() -> None:
    listed = re.findall(r"^\| `(\w+)[^`]*` \|", Page(ROOT / "README.md").prose, re.MULTILINE)
    assert sorted(listed) == sorted(COMMANDS)


@pytest.mark.parametrize("page", READ, ids=lambda page: page.path.name)
def test_links_lead_somewhere(page: Page) -> None:
    for name, anchor in page.links:
        target = page.path.parent / name if name else page.path
        assert target.exists(), name
        if anchor:
            assert anchor in Page(target).anchors, f"{name}#{anchor}"


def test_the_picture_shows_commands_that_exist(table: Any) -> None:
    picture = TARGET.read_text("utf-8")
    assert len(picture) < 200_000
    assert not re.search(r"(href|src|url\()=?\W*https?:", picture)
    for command in SHOWN:
        assert complaint_of(command, table) is None
        assert command.replace(" ", "&#160;") in picture


def sentences(path: Path) -> Iterator[str]:
    """Yield the texts of a program, with ... for what is filled in."""
    if path.suffix != ".py":
        yield path.read_text("utf-8")
        return
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.JoinedStr):
            parts = (
                part.value if isinstance(part, ast.Constant) else "..." for part in node.values
            )
            yield "".join(map(str, parts))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_symptoms_are_what_the_program_says() -> None:
    files = [*(ROOT / "localv4").glob("**/*.py"), *(ROOT / "cli").glob("*.py")]
    said = "\n".join(
        text for path in (*files, ROOT / "scripts/venv.sh") for text in sentences(path)
    )
    rows = re.findall(r"^\| (.+?) \|", Page(ROOT / "docs/troubleshooting.md").prose, re.MULTILINE)
    symptoms = [span for row in rows for span in re.findall(r"`([^`]+ [^`]+)`", row)]
    assert len(symptoms) > 20
    missing = [
        symptom
        for symptom in symptoms
        if not all(part.strip() in said for part in symptom.split("..."))
    ]
    assert not missing
