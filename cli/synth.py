"""``localv4 synth``: a random-weight checkpoint in the real on-disk format, tiny or full width."""

import dataclasses
import difflib
import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from localv4.cli import options
from localv4.cli.output import Output
from localv4.cli.stopping import stoppable
from localv4.errors import InvalidInput
from localv4.sizes import format_bytes
from localv4.synthetic_config import FULL_WIDTH, PRESETS, Preset, Routing, Sizes

__all__ = ["synth"]

_WORTH_PROGRESS_BYTES = 2**30


def synth(
    ctx: typer.Context,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder to make; new, or empty.")],
    preset: Annotated[Preset, typer.Option(help="Which release's layout and formats.")] = "flash",
    seed: Annotated[int, typer.Option(metavar="N", help="Same seed, same bytes.")] = 0,
    full_width: Annotated[
        bool,
        typer.Option(
            "--full-width",
            help="The release's own widths, vocabulary and tokenizer, to measure on. Flash takes "
            "3.6 GB a layer and 2.1 GB for embedding and head, Pro 13.9 and 3.7 GB; a layer of "
            "-Base is nearly twice as large.",
        ),
    ] = False,
    layers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="The release's first N layers. Else 5 tiny ones; with --full-width 4, which have "
            "every kind, or with --sparse all of the release.",
        ),
    ] = None,
    sparse: Annotated[
        bool,
        typer.Option(
            "--sparse",
            help="Real headers, index and small tensors, holes for the large ones: it opens like "
            "the real one and takes hardly any disk, but all it can answer is nothing.",
        ),
    ] = False,
    routing: Annotated[
        Routing,
        typer.Option(
            help="Which experts a text chooses: those that random weights happen to; all equally "
            "often; or, skewed, some far more often, as published of the trained model."
        ),
    ] = "random",
    mtp: Annotated[
        bool | None,
        typer.Option(
            "--mtp/--no-mtp",
            show_default=False,
            help="The MTP block, as large as a layer; else tiny and sparse checkpoints have it.",
        ),
    ] = None,
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
    """Make a checkpoint with random weights, to try localv4 without a download.

    It is tiny, unless --full-width asks for the release's sizes: to measure speed on the real work,
    a few layers at a time.

    Examples
    --------
    localv4 synth tiny
    localv4 synth tiny-pro --preset pro --seed 7
    localv4 synth wide --full-width --layers 4
    """
    _, output = options.start(ctx, {}, quiet, verbose)
    ratios = None if compress_ratios is None else _ratios(compress_ratios)
    sizes = _sizes((FULL_WIDTH if full_width else PRESETS)[preset], size or [])

    # Imported here, as NumPy is not for --help.
    from localv4.synthetic import synthesise

    # So that a SIGTERM, too, leaves no gigabytes behind.
    with stoppable():
        synthesise(
            folder,
            preset,
            seed,
            ratios,
            sizes=sizes,
            layout=layout,
            dspark=dspark,
            n_layers=layers,
            full_width=full_width,
            mtp=mtp,
            sparse=sparse,
            routing=routing,
            progress=_Progress(output),
        )
    output.note(_made(folder, preset, sparse), log=True)


class _Progress:
    """Shows how much is written: each percent on a terminal, each tenth in a log."""

    def __init__(self, output: Output) -> None:
        self._output = output
        self._step = 1 if output.on_terminal else 10
        self._percent = 0

    def __call__(self, done: int, total: int) -> None:
        percent = 100 * done // total
        if percent >= self._percent + self._step and total >= _WORTH_PROGRESS_BYTES:
            self._percent = percent
            self._output.progress(f"writing {format_bytes(total)}: {percent}%")


def _made(folder: Path, preset: Preset, sparse: bool) -> str:
    """Say what was made and what to do with it."""
    files = [path.stat() for path in folder.iterdir()]
    size, name = format_bytes(sum(file.st_size for file in files)), shlex.quote(str(folder))
    if sparse:
        # Where there is no st_blocks there are no holes either.
        n_bytes = sum(getattr(file, "st_blocks", file.st_size // 512) * 512 for file in files)
        return f"made {folder}, {size}, {format_bytes(n_bytes)} on disk; try: localv4 show {name}"
    ask = '--raw "Once upon a time"' if preset.endswith("base") else "Hello"
    return f"made {folder}, {size}; try: localv4 run -m {name} {ask}"


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
