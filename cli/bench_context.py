"""``localv4 bench context``: what a longer context costs."""

import json
from typing import Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.bench_machine import machine, print_machine
from localv4.cli.output import Output
from localv4.cli.stopping import stoppable
from localv4.errors import InvalidInput

__all__ = ["context"]

_MOST = 2**20
_STEP = 128


def context(
    ctx: typer.Context,
    contexts: Annotated[
        str, typer.Option(metavar="N,...", help="Tokens; rounded down to multiples of 128.")
    ] = "4096,65536,262144,1048576",
    seconds: Annotated[
        float, typer.Option(metavar="S", min=0.01, max=60, help="Time of each measurement.")
    ] = 1.0,
    threads: options.Threads = None,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure index scores and attention of one token at long contexts, at Flash's widths.

    Multiply-adds a second are compared with what the CPU does in registers in the same run: byte
    products for the index, pairs of BF16 for attention. No model is needed.

    Examples
    --------
    localv4 bench context
    localv4 bench context --contexts 4096,65536 --seconds 0.2
    """
    settings, output = options.start(ctx, {"threads": threads}, quiet, verbose)
    numbers = [_tokens(text) for text in contexts.split(",")]

    # Imported here, as NumPy is not for --help.
    from localv4.bench.context import measure_context

    with stoppable():
        result = measure_context(numbers, settings.threads, seconds, output.progress)
    report = {**machine(), **result}
    if as_json:
        output.line(json.dumps(report, indent=2))
        return
    print_machine(report, output)
    _print(report, output)


def _tokens(text: str) -> int:
    count = int(text) // _STEP * _STEP if text.strip().isdecimal() else 0
    if not _STEP <= count <= _MOST:
        raise InvalidInput(
            f"--contexts has {text!r}; give whole numbers from {_STEP} to {_MOST}, with commas"
        )
    return count


def _print(report: dict[str, Any], output: Output) -> None:
    output.line(f"{report['tier']}, {report['threads']} threads; one token, one layer of each kind")
    output.line(
        f"{'tokens':>10}  {'index: keys':>11} {'ms':>7} {'choice':>7} {'G/s':>5} {'share':>6} "
        f"{'GB/s':>5}  {'CSA ms':>7} {'share':>6}  {'HCA: rows':>9} {'ms':>7} {'G/s':>5} "
        f"{'share':>6} {'GB/s':>5}  {'Flash ms':>8}"
    )
    for row in report["contexts"]:
        index, csa, hca = row["index"], row["csa"], row["hca"]
        output.line(
            f"{row['context']:>10,}  {index['keys']:>11,} {1e3 * index['score_s']:>7.3f} "
            f"{1e3 * index['choose_s']:>7.3f} {index['g_products_s']:>5.0f} "
            f"{_share(index['share']):>6} {index['gb_s']:>5.2f}  {1e3 * csa['seconds']:>7.3f} "
            f"{_share(csa['share']):>6}  {hca['entries']:>9,} {1e3 * hca['seconds']:>7.3f} "
            f"{hca['g_products_s']:>5.0f} {_share(hca['share']):>6} {hca['gb_s']:>5.2f}  "
            f"{1e3 * row['layers_s']:>8.1f}"
        )
    output.line(
        "G/s: multiply-adds; share: of byte products (index) and of BF16 pairs (attention) in "
        "registers; Flash: 21 CSA and 20 HCA layers"
    )


def _share(share: float | None) -> str:
    return "-" if share is None else f"{share:.0%}"
