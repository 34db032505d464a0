"""Which profile a checkpoint has, and what thinking levels it offers."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from localv4.encoding import detect_profile, encode, thinking_arguments, thinking_levels
from localv4.encoding.literals import (
    ASSISTANT,
    EFFORT_RELENTLESS,
    EFFORT_THOROUGH,
    ENDTHINK,
    THINK,
    USER,
)
from localv4.errors import InvalidInput

OFFICIAL = 'REASONING_EFFORT_PROMPTS = {\n    "low": "",\n}\nDEFAULT_REASONING_EFFORT = "low"\n'
PREVIEW = 'REASONING_EFFORT_MAX = (\n    "..."\n)\n'


@dataclass(frozen=True)
class Config:
    is_dspark: bool = False


def detected(folder: Path, source: str | bytes, *, is_dspark: bool = False) -> str:
    file = folder / "encoding" / "encoding_dsv4.py"
    file.parent.mkdir(exist_ok=True)
    file.write_bytes(source.encode() if isinstance(source, str) else source)
    config: Any = Config(is_dspark)
    return detect_profile(folder, config)


@pytest.mark.parametrize(
    ("source", "profile"),
    [
        (OFFICIAL, "official"),
        (OFFICIAL.replace(" = ", ": Final = "), "official"),
        (OFFICIAL.replace('"low"\n', "'low'  # the default\n"), "official"),
        (PREVIEW, "preview"),
        (OFFICIAL.replace('DEFAULT_REASONING_EFFORT = "low"', ""), None),
        (OFFICIAL.replace('= "low"', '= "high"'), None),
        ("# " + OFFICIAL.replace("\n", "\n# "), None),
        ("def f():\n    REASONING_EFFORT_MAX = 1\n", None),
        ("", None),
        (b"\xff\x00((((", None),
        (b"(" * 3_000_000 + PREVIEW.encode(), None),
    ],
)
def test_the_shipped_encoder_decides_and_the_config_where_it_says_nothing(
    tmp_path: Path, source: str | bytes, profile: str | None
) -> None:
    assert detected(tmp_path, source) == (profile or "preview")
    assert detected(tmp_path, source, is_dspark=True) == (profile or "official")


def test_the_shipped_encoder_is_not_run(tmp_path: Path) -> None:
    assert detected(tmp_path, PREVIEW + "raise SystemExit\n") == "preview"


def test_without_an_encoder_file(tmp_path: Path) -> None:
    preview: Any = Config()
    official: Any = Config(is_dspark=True)
    assert detect_profile(tmp_path, preview) == "preview"
    assert detect_profile(tmp_path / "missing", official) == "official"
    (tmp_path / "encoding" / "encoding_dsv4.py").mkdir(parents=True)
    assert detect_profile(tmp_path, preview) == "preview"


def test_levels_of_each_profile() -> None:
    assert thinking_levels("preview") == ("off", "high", "max")
    assert thinking_levels("official") == ("off", "low", "high", "max")
    with pytest.raises(InvalidInput, match="'low'; use one of off, high, max"):
        thinking_arguments("low", "preview")
    with pytest.raises(InvalidInput, match="off, low, high, max"):
        thinking_arguments("medium", "official")


@pytest.mark.parametrize(
    ("profile", "level", "prefix"),
    [
        ("preview", "high", ""),
        ("preview", "max", EFFORT_THOROUGH),
        ("official", "low", ""),
        ("official", "high", EFFORT_THOROUGH),
        ("official", "max", EFFORT_RELENTLESS),
    ],
)
def test_a_level_becomes_the_prompt_of_its_effort(profile: Any, level: str, prefix: str) -> None:
    def prompt(level: str) -> str:
        mode, effort = thinking_arguments(level, profile)
        messages = [{"role": "user", "content": "q"}]
        return encode(messages, mode, None, True, False, effort, profile)

    assert prompt(level) == prefix + f"{USER}q{ASSISTANT}{THINK}"
    assert prompt("off") == f"{USER}q{ASSISTANT}{ENDTHINK}"
