"""The picture of the README: commands run in a terminal, drawn as docs/terminal.svg.

``python -m tests.picture`` makes it anew, for which the machine should be quiet: the doctor
measures it.
"""

import io
import os
import shlex
import sys
import tempfile
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

from localv4.settings import cache_folder
from tests.terminal import in_terminal

__all__ = ["SHOWN", "TARGET"]

SHOWN = ("localv4 doctor -m flash --memory 120GiB --disk-gb-s 3.5",)
TARGET = Path(__file__).parents[1] / "docs" / "terminal.svg"
_COLUMNS = 88
_FONTS = "ui-monospace, SFMono-Regular, Menlo, Consolas, monospace"


def main() -> None:
    """Run the commands and draw what they showed."""
    console = Console(record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True)
    for command in SHOWN:
        console.print(Text.assemble(("$ ", "green"), (command, "bold")))
        console.print(Text.from_ansi(_output(command)))
    # no fonts from the network: whoever looks at the picture has one
    form = CONSOLE_SVG_FORMAT
    while "@font-face" in form:
        begin = form.index("@font-face")
        form = form[:begin] + form[form.index("}}", begin) + 2 :]
    form = form.replace("Fira Code, monospace", _FONTS)
    picture = console.export_svg(
        title="localv4", theme=MONOKAI, code_format=form, unique_id="terminal"
    )
    TARGET.write_text(picture.replace("Fira Code, monospace", _FONTS), "utf-8")


def _output(command: str) -> str:
    """Run localv4 as a person would who has no model yet."""
    arguments = shlex.split(command)[1:]
    cache = str(cache_folder())
    with tempfile.TemporaryDirectory() as home:
        environment = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("HF_", "LOCALV4_"))
        }
        environment |= {"HOME": home, "TERM": "xterm-256color", "LOCALV4_CACHE_DIR": cache}
        paths = [str(TARGET.parents[1]), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        code, shown = in_terminal(
            [sys.executable, "-P", "-m", "localv4", *arguments],
            environment,
            Path(home),
            columns=_COLUMNS,
        )
    if code:
        raise SystemExit(f"{command} ended with {code}:\n{shown}")
    for folder, name in ((cache, "~/.cache/localv4"), (home, "~"), ("\r\n", "\n")):
        shown = shown.replace(folder, name)
    return shown.rstrip()


if __name__ == "__main__":
    main()
