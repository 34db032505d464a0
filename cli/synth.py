"""``localv4 synth``: a tiny random-weight checkpoint in the real on-disk format."""

import dataclasses
import difflib
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from localv4.cli import options
from localv4.errors import InvalidInput
from localv4.sizes import format_bytes
from localv4.synthetic_config import PRESETS, Preset, Sizes

__all__ = ["synth"]


def synth(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; new, or empty.")],
    preset: Annotated[Preset, typer.Option(help="Which release's layout and formats.")] = "flash",
    seed: Annotated[int, typer.Option(metavar="N", help="Same seed, same bytes.")] = 0,
    compress_ratios: Annotated[
        str | None,
        typer.Option(metavar="0,4,128,...", help="A ratio for each layer: 0, 4 or 128."),
    ] = None,
    size: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N", help="A size under its config.json name, hidden_size=512; repeatable."
        ),
    ] = None,
    layout: Annotated[
        Literal["release", "scattered", "single"],
        typer.Option(help="Shards as released, tensors dealt over shards, or one file."),
    ] = "release",
    dspark: Annotated[
        bool, typer.Option("--dspark", help="A drafter in place of the MTP block.")
    ] = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Make a tiny checkpoint with random weights, to try localv4 without a download."""
    _, output = options.start(ctx, {}, quiet, verbose)
    ratios = None if compress_ratios is None else _ratios(compress_ratios)
    sizes = _sizes(PRESETS[preset], size or [])

    # Imported here, as NumPy is not for --help.
    from localv4.synthetic import synthesise

    synthesise(folder, preset, seed, ratios, sizes=sizes, layout=layout, dspark=dspark)
    n_bytes = sum(path.stat().st_size for path in folder.iterdir())
    ask = '--raw "Once upon a time"' if preset.endswith("base") else "Hello"
    name = shlex.quote(str(folder))
    output.note(f"made {folder}, {format_bytes(n_bytes)}; try: localv4 run -m {name} {ask}")


def _ratios(text: str) -> tuple[int, ...]:
    try:
        return tuple(int(ratio) for ratio in text.split(","))
    except ValueError:
        raise InvalidInput(
            f"--compress-ratios is {text!r}; give numbers with commas between, such as 0,4,128"
        ) from None


def _sizes(sizes: Sizes, changes: list[str]) -> Sizes:
    """Return sizes with ``name=number`` texts applied."""
    names = [field.name for field in dataclasses.fields(sizes)]
    values: dict[str, int] = {}
    for change in changes:
        name, _, number = change.partition("=")
        if name not in names:
            near = difflib.get_close_matches(name, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"known are {', '.join(names)}"
            raise InvalidInput(f"there is no size {name!r}; {hint}")
        if not (number.isascii() and number.isdigit()):
            raise InvalidInput(f"--size {change} has no whole number; write {name}=256")
        values[name] = int(number)
    return dataclasses.replace(sizes, **values)
