"""``localv4 bench streaming``: a model that does not fit, against its disk."""

import json
from typing import Annotated, Any

import typer

from localv4.cli import options
from localv4.cli.bench_machine import machine, print_machine
from localv4.cli.stopping import stoppable
from localv4.models import resolve
from localv4.sizes import format_bytes

__all__ = ["streaming"]


def streaming(
    ctx: typer.Context,
    model: options.Model = None,
    memory: options.Memory = None,
    prompt: Annotated[
        int, typer.Option(metavar="N", min=1, max=65_536, help="Tokens of the prompt.")
    ] = 256,
    warm: Annotated[
        int, typer.Option(metavar="N", min=0, max=100_000, help="Tokens decoded first.")
    ] = 16,
    tokens: Annotated[
        int, typer.Option(metavar="N", min=1, max=100_000, help="Tokens to measure.")
    ] = 32,
    check: Annotated[
        bool, typer.Option("--check", help="In the end compare resident experts with the files.")
    ] = False,
    threads: options.Threads = None,
    as_json: options.JsonFlag = False,
    quiet: options.Quiet = False,
    verbose: options.Verbose = 0,
) -> None:
    """Measure a model whose experts are read from disk: speed, disk, waits, memory.

    --memory must be less than the model, as in: localv4 synth DIR --full-width --layers 12, then
    localv4 bench streaming -m DIR --memory 10GiB. The disk's best is what as many readers reach
    when they are always asked for some experts: just before and after the tokens that are compared
    with it, and once more while all threads compute, as both share the memory. The bound of a token
    is the sum over its layers of the dense part and the longer of two, reading experts at the
    disk's best or computing with them. Prompts are random tokens, the answer is sampled.

    Examples
    --------
    localv4 bench streaming -m flash --memory 24GiB
    localv4 bench streaming -m wide --memory 10GiB --check
    """
    flags: dict[str, object] = {"model": model, "memory": memory, "threads": threads}
    settings, output = options.start(ctx, flags, quiet, verbose)
    folder = resolve(settings.model, say=output.warning)

    # Imported here, as NumPy is not for --help.
    from localv4.bench.streaming import measure_streaming

    with stoppable():
        result = measure_streaming(
            folder, settings.memory, prompt, warm, tokens, settings.threads, check, output.progress
        )
    report = {**machine(), "model": str(folder), **result}
    if as_json:
        output.line(json.dumps(report, indent=2))
        return
    print_machine(report, output)
    for name, text in _rows(report).items():
        output.line(f"{name:<12} {text}")


def _rows(report: dict[str, Any]) -> dict[str, str]:
    plan = report["plan"]
    rows = {
        "model": f"{report['model']}: {report['layers']} layers; {report['tier']}, "
        f"{report['threads']} threads",
        "memory": f"{format_bytes(report['peak_bytes'])} at most, of a budget of "
        f"{format_bytes(plan['budget'])}; {plan['n_slots']:,} experts fit",
    }
    for number, prompt in enumerate(report["prompts"], 1):
        rate = prompt["read_gb_s"]
        reading = (
            "nothing read" if rate is None else f"{prompt['read_gb']:.1f} GB at {rate:.2f} GB/s"
        )
        rows[f"prompt {number}"] = (
            f"{prompt['tokens']:,} tokens in {prompt['seconds']:.2f} s, "
            f"{prompt['tokens_s']:.3g} tok/s; {reading}, the disk busy "
            f"{prompt['outstanding_share']:.0%} of the time"
        )
    rows["decode"] = f"{report['tokens_s']:.3g} tok/s, {1e3 * report['token_s']:.0f} ms a token"
    rows["bound"] = (
        f"{1e3 * report['bound_s']:.0f} ms; a token takes {report['bound_ratio']:.2f} times its own"
    )
    rows["parts"] = (
        f"dense {1e3 * report['dense_s']:.0f}, experts {1e3 * report['experts_s']:.0f}, waiting "
        f"{1e3 * report['wait_s']:.0f} ms"
    )
    rows["experts"] = (
        f"{report['hit_share']:.1%} in memory when asked for; {report['misses']:.1f} a token not, "
        f"{format_bytes(round(report['read_bytes']))} read"
    )
    if report["read_gb_s"] is not None:
        rows["disk"] = (
            f"{report['read_gb_s']:.2f} GB/s while reads were outstanding, "
            f"{report['disk_share']:.0%} of its best {report['disk_gb_s']:.2f}; "
            f"{report['beside_gb_s']:.2f} while all threads compute, "
            f"{report['reachable_share']:.0%} of what that leaves"
        )
    if report["verified"] is not None:
        rows["checked"] = f"{report['verified']:,} resident experts equal the files"
    return rows
