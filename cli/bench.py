"""``localv4 bench``: what this machine reaches, and which share of its limits that is."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.bench_context import context
from localv4.cli.bench_machine import machine, print_machine
from localv4.cli.bench_policies import policies, trace
from localv4.cli.bench_streaming import streaming
from localv4.cli.output import Output
from localv4.cli.stopping import stoppable
from localv4.cli.tables import Table
from localv4.errors import InvalidInput
from localv4.models import resolve
from localv4.settings import Settings
from localv4.sizes import format_bytes, parse_bytes

__all__ = ["bench"]

bench = Table()
bench.command()(trace)
bench.command()(policies)

_FORMATS = {"fp4": "FP4", "fp8": "FP8", "bf16": "BF16", "f32": "F32"}
_PEAKS = {
    "f32": "float32 products",
    "bf16": "BF16 products",
    "bytes": "byte products / 3",
    "matrix_bf16": "BF16 in the matrix unit",
    "matrix_bytes": "bytes in the matrix unit / 3",
}


@bench.callback()
def _bench() -> None:
    """Measure kernels, decode and prefill against this machine's limits.

    What is compared is measured in turns in the same run; a share is the median of the ratios.
    "fast" compares the fastest seventh of the turns of both: where it is far from the share, other
    programs were busy and neither should be quoted.

    Examples
    --------
    localv4 bench decode
    localv4 bench kernels --bytes 64MiB --tokens 1,64
    """


@bench.command()
def kernels(
    ctx: typer.Context,
    n_bytes: Annotated[
        str, typer.Option("--bytes", metavar="SIZE", help="Distinct weights of every format.")
    ] = "1GiB",
    tokens: Annotated[
        str, typer.Option(metavar="N,...", help='Sizes of batches; "" measures none.')
    ] = "1,12,64,512",
    tier: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="Only this tier of instructions; repeatable."),
    ] = None,
    cold: Annotated[
        bool, typer.Option("--cold", help="Compile anew, to see how long that takes.")
    ] = False,
    threads: options.Threads = None,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure the kernels that multiply weights, in every tier that this CPU can run.

    One token: GB/s of stored weights with their scales, and the share of the speed at which the
    same memory is read by all threads, in the fastest of some ways and (plain) by a loop without
    prefetches. Batches: GFLOP/s (two operations a product), and the share
    of what all threads multiply in registers, by the fastest instructions that add exact products
    of the format; FP4 takes three byte products for one.

    Examples
    --------
    localv4 bench kernels
    localv4 bench kernels --bytes 64MiB --tokens 1,64 --json
    """
    settings, output = options.start(ctx, {"threads": threads}, quiet, verbose)
    sizes = tuple(_numbers("--tokens", tokens)) if tokens.strip() else ()
    size = parse_bytes(n_bytes)

    # Imported here, as NumPy is not for --help.
    from localv4.bench.kernels import Request, measure_kernels

    with stoppable():
        request = Request(size, settings.threads, sizes)
        results = measure_kernels(request, tier or [], cold, output.progress)
    report = {**machine(), "bytes": size, "tiers": results}
    if as_json:
        output.line(json.dumps(report, indent=2))
        return
    print_machine(report, output)
    for result in results:
        _print_tier(result, output)


def _numbers(flag: str, text: str, lowest: int = 1) -> list[int]:
    """Return the whole numbers of a list with commas."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) >= lowest for part in parts):
        raise InvalidInput(
            f"{flag} is {text!r}; give whole numbers of at least {lowest} with commas between, "
            "such as 12,512"
        )
    return [int(part) for part in parts]


def _print_tier(result: dict[str, Any], output: Output) -> None:
    output.line(f"\n{result['tier']}, {result['threads']} threads")
    output.line(
        f"{'one token':<24} {'columns':>7} {'weights':>9} {'GB/s':>7} {'reading':>7} "
        f"{'share':>6} {'fast':>6} {'plain':>6} {'error':>8} {'compiled':>9}"
    )
    for row in result["weights"]:
        name = f"{_FORMATS[row['weight_format']]} {row['name']}"
        compiled = "" if row["compile_s"] is None else f"{row['compile_s']:.2f} s"
        output.line(
            f"{name:<24} {row['columns']:>7} {format_bytes(row['n_bytes']):>9} {row['gb_s']:>7.1f} "
            f"{row['read_gb_s']:>7.1f} {row['share']:>6.0%} {row['fast_share']:>6.0%} "
            f"{row['plain_share']:>6.0%} {row['error']:>8.0e} {compiled:>9}"
        )
    if not result["batches"]:
        return
    peaks = ", ".join(f"{_PEAKS[kind]} {value:.0f}" for kind, value in result["peaks"].items())
    output.line(f"in registers, GFLOP/s: {peaks}")
    output.line(f"{'batches':<24} {'matrix':>11} {'tokens':>7} {'GFLOP/s':>8} {'peak':>7} "
                f"{'share':>6} {'fast':>6}  of")  # fmt: skip
    for row in result["batches"]:
        name = f"{_FORMATS[row['weight_format']]} {row['name']}"
        shape = f"{row['rows']}x{row['columns']}"
        output.line(
            f"{name:<24} {shape:>11} {row['n_tokens']:>7} {row['gflops']:>8.1f} "
            f"{row['peak_gflops']:>7.0f} {row['share']:>6.0%} {row['fast_share']:>6.0%}  "
            f"{_PEAKS[row['peak']]}"
        )


@bench.command()
def decode(
    ctx: typer.Context,
    model: options.Model = None,
    context: Annotated[
        str, typer.Option(metavar="N,...", help="Tokens before the first measured one.")
    ] = "128",
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="Tokens to measure at each.")
    ] = 24,
    threads: options.Threads = None,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure decode: tokens a second, share of the roof, time by part.

    The roof is the time in which memory gives the weights that a token needs: dense weights, the
    chosen experts, head. Tokens are random, so that the experts change with every one. Of a
    context, 128 tokens are fed; for the rest, KV entries are put where they would be.

    The built-in model is tiny and shows what a step costs beside its weights. To measure on real
    widths: localv4 synth DIR --full-width, then localv4 bench decode -m DIR.

    Examples
    --------
    localv4 bench decode -m flash --context 128,4096
    localv4 bench decode --tokens 8
    """
    settings, output = options.start(ctx, {"model": model, "threads": threads}, quiet, verbose)
    contexts = _numbers("--context", context, lowest=0)
    folder = _folder(settings, output)

    # Imported here, as NumPy is not for --help.
    from localv4.bench.decode import measure_decode

    with stoppable():
        result = measure_decode(folder, contexts, tokens, settings.threads, output.progress)
    report = {**machine(), "model": str(folder), **result}
    _warn_of_disk(report, output)
    if as_json:
        output.line(json.dumps(report, indent=2))
        return
    print_machine(report, output)
    _print_model(report, output)
    for row in report["contexts"]:
        _print_context(row, output)


def _folder(settings: Settings, output: Output) -> Path:
    """Return the model's folder; say what the built-in one is good for."""
    if settings.model is None:
        output.warning(
            "the built-in model is tiny: this shows what a step costs beside its weights; for real "
            "widths: localv4 synth DIR --full-width, and -m DIR"
        )
    return resolve(settings.model, say=output.warning)


def _warn_of_disk(report: dict[str, Any], output: Output) -> None:
    if not report["in_memory"]:
        output.warning(
            f"the weights, {format_bytes(report['weights_bytes'])}, do not fit the memory that is "
            "available, so the disk is measured as well; make a checkpoint with fewer layers: "
            "localv4 synth DIR --full-width --layers N"
        )


def _print_model(report: dict[str, Any], output: Output) -> None:
    output.line(
        f"{report['model']}: {report['layers']} layers, {format_bytes(report['weights_bytes'])}; "
        f"{report['tier']}, {report['threads']} threads"
    )
    if report["map_gb_s"] is not None:
        output.line(f"its weights are read at {report['map_gb_s']:.1f} GB/s where they lie")


def _print_context(row: dict[str, Any], output: Output) -> None:
    output.line(f"\nat {row['context']:,} tokens")
    rows = {
        "decode": f"{row['tokens_s']:.4g} tok/s, {row['token_ms']:.2f} ms a token",
        "roof": f"{row['roof_ms']:.2f} ms at {row['read_gb_s']:.1f} GB/s: "
        f"{row['share']:.0%} of it, {row['fast_share']:.0%} fast",
        "kernels": f"{row['kernels_ms']:.2f} ms for the products with weights alone: "
        f"{row['kernels_share']:.0%} of them",
    }
    parts = sorted(row["parts_ms"].items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {ms:.2f}" for name, ms in parts)
    rows["by part"] = f"{listed}, Python {row['overhead_ms']:.2f}: {row['timed_ms']:.2f} ms"
    kinds = ", ".join(f"{kind} {ms:.2f}" for kind, ms in row["kinds_ms"].items())
    rows["a layer"] = f"{kinds} ms; head {row['head_ms']:.2f} ms"
    if row["all_layers"]:
        whole = row["all_layers"]
        rows["all layers"] = (
            f"{whole['tokens_s']:.3g} tok/s, {whole['token_ms']:.0f} ms a token with the "
            f"{whole['layers']} layers of {whole['release']}"
        )
    for name, text in rows.items():
        output.line(f"{name:<12} {text}")


@bench.command()
def prefill(
    ctx: typer.Context,
    model: options.Model = None,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=65_536, help="Tokens of the prompt.")
    ] = 512,
    context: Annotated[
        int, typer.Option(metavar="N", min=0, help="Tokens before it, put there unread.")
    ] = 0,
    threads: options.Threads = None,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure prefill: tokens a second, share of the CPU's peak, time by part.

    Operations are two a product of a weight with a token. They are compared with what the CPU
    multiplies in registers, by the fastest instructions that are exact for each format, and with
    the kernels alone on the same matrices, every expert with the average number of tokens.

    Examples
    --------
    localv4 bench prefill -m flash --tokens 2048
    localv4 bench prefill --tokens 64
    """
    settings, output = options.start(ctx, {"model": model, "threads": threads}, quiet, verbose)
    folder = _folder(settings, output)

    # Imported here, as NumPy is not for --help.
    from localv4.bench.prefill import measure_prefill

    with stoppable():
        result = measure_prefill(folder, tokens, context, settings.threads, output.progress)
    report = {**machine(), "model": str(folder), **result}
    _warn_of_disk(report, output)
    if as_json:
        output.line(json.dumps(report, indent=2))
        return
    print_machine(report, output)
    _print_model(report, output)
    _print_prefill(report, output)


def _print_prefill(report: dict[str, Any], output: Output) -> None:
    behind = f" behind {report['context']:,}" if report["context"] else ""
    parts = sorted(report["parts_s"].items(), key=lambda part: -part[1])
    listed = ", ".join(f"{name} {seconds:.3f}" for name, seconds in parts)
    peaks = ", ".join(f"{_PEAKS[kind]} {value:.0f}" for kind, value in report["peaks"].items())
    rows = {
        "prefill": f"{report['tokens']:,} tokens{behind} in {report['prefill_s']:.3g} s, "
        f"{report['tokens_s']:.4g} tok/s, {report['gflops']:.4g} GFLOP/s",
        "kernels": f"alone {report['kernels_gflops']:.4g} GFLOP/s: "
        f"{report['kernels_share']:.0%} of them",
        "peak": f"{peaks}: {report['peak_share']:.0%} of the best for each format",
        "by part": f"{listed}, Python {report['overhead_s']:.3f} s",
    }
    output.line("")
    for name, text in rows.items():
        output.line(f"{name:<12} {text}")


bench.command()(context)
bench.command()(streaming)
