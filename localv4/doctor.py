"""What this machine can do with a model: what is found, and how fast it would be.

Every look is in a file of its own (doctor_machine, doctor_model, doctor_plan, doctor_rates); the
estimates are the speed model's.  Knows nothing of how the diagnosis is shown.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.doctor_machine import (
    check_cache,
    check_cpu,
    check_load,
    check_memory,
    check_threads,
)
from localv4.doctor_model import (
    check_absent,
    check_checkpoint,
    check_disk,
    check_file_system,
)
from localv4.doctor_plan import Fit, check_plan
from localv4.doctor_rates import check_rates
from localv4.errors import LocalV4Error
from localv4.expected import expect, routing_of
from localv4.findings import Finding, note, problem
from localv4.inventory import Inventory, take_inventory
from localv4.kernels.threads import choose_threads
from localv4.machine_rates import CpuRates
from localv4.speed import (
    Estimate,
    Gain,
    Routing,
    Work,
    disk_share,
    gains,
)
from localv4.token_work import token_work

__all__ = ["ASSUMED_DISK_BYTES_S", "Diagnosis", "Outlook", "Request", "diagnose"]

ASSUMED_DISK_BYTES_S = 2e9
"""Of a disk that can't be measured: what a middling NVMe disk gives at random."""

PROMPT_TOKENS = 1000
_DISK_S = 0.8  # of each way to read


@dataclass(frozen=True)
class Request:
    """What to look at.

    Attributes
    ----------
    path
        The model's folder or a config.json; None looks at the machine only, or at `config`.
    memory, threads
        As for `localv4.load`.
    cache_folder
        For compiled kernels.
    measures
        False measures nothing, and so estimates nothing.
    routing
        How choices spread over experts; None asks the checkpoint.
    disk_bytes_s
        Taken for the disk's speed instead of measuring it.
    config
        Of a model that is not here at all.
    remedy
        What to do where shards are missing.
    """

    path: Path | None
    memory: int | None
    threads: int | None
    cache_folder: Path
    measures: bool = True
    routing: Routing | None = None
    disk_bytes_s: float | None = None
    config: ModelConfig | None = None
    remedy: str = "download them"


@dataclass(frozen=True)
class Outlook:
    """How fast a model would be.

    Attributes
    ----------
    routing
        That the estimates are for.
    floor, likely, warm
        With no expert in memory, as after the start; with as many as are expected in the long
        run; with all.
    prompt_s
        Seconds to read a prompt of `PROMPT_TOKENS` tokens.
    disk_share
        Share of a likely token's time that a faster disk would shorten.
    gains
        What would help, the most helpful first.
    """

    routing: Routing
    floor: Estimate
    likely: Estimate
    warm: Estimate
    prompt_s: float
    disk_share: float
    gains: tuple[Gain, ...]


@dataclass(frozen=True)
class Diagnosis:
    """What was found, in order; the outlook is None where something it needs is missing."""

    findings: tuple[Finding, ...]
    outlook: Outlook | None

    @property
    def has_problem(self) -> bool:
        """Whether something does not work."""
        return any(finding.severity == "problem" for finding in self.findings)


def diagnose(request: Request, say: Callable[[str], None] = lambda _: None) -> Diagnosis:
    """Look at the machine and at the model.

    Parameters
    ----------
    request
        What to look at.
    say
        Told what takes a while.

    Raises
    ------
    ModelNotFound, DamagedCheckpoint, UnsupportedModel
        There is no config.json that could be read; what else is wrong is a finding.
    InvalidInput
        There are not so many threads.
    """
    n_threads = choose_threads(request.threads)
    found = [*check_memory(), check_cpu(), check_threads(n_threads)]
    found += [*check_load(), check_cache(request.cache_folder)]
    config, path = request.config, request.path
    if config is None:
        if path is None:
            return Diagnosis(tuple(found), None)
        config = ModelConfig.from_path(path)
    checkpoint = None
    if path is not None and path.is_dir() and any(path.glob("*.safetensors*")):
        say("opening the checkpoint ...")
        of_files, checkpoint = check_checkpoint(path, request.remedy)
        found += of_files
    inventory = take_inventory(checkpoint or config)
    if checkpoint is None and not any(each.topic == "checkpoint" for each in found):
        found.append(check_absent(inventory, is_here=path is not None))
    try:
        of_model, outlook = _look_at_model(request, checkpoint, inventory, n_threads, say)
    finally:
        if checkpoint is not None:
            checkpoint.close()
    return Diagnosis((*found, *of_model), outlook)


def _look_at_model(
    request: Request,
    checkpoint: Checkpoint | None,
    inventory: Inventory,
    n_threads: int,
    say: Callable[[str], None],
) -> tuple[list[Finding], Outlook | None]:
    found = [] if checkpoint is None else check_file_system(checkpoint)
    work = token_work(inventory)
    of_plan, fit = check_plan(checkpoint or inventory.config, work, request.memory, n_threads)
    found += of_plan
    n_compute = choose_threads(request.threads, fit is not None and fit.plan.streams)
    if n_compute < n_threads:
        text = f"{n_compute} for this model: one CPU is left to the threads that read"
        found.append(note("threads", text, threads=n_compute))
    routing = request.routing
    if routing is None:
        try:
            routing = "skewed" if request.path is None else routing_of(request.path)
        except LocalV4Error as error:
            found.append(problem("routing", str(error)))
    if not request.measures:
        found.append(note("speed", "not estimated: with --quick nothing is measured"))
        return found, None
    of_disk, disk = _disk(request, checkpoint, say)
    found += of_disk
    say("measuring memory and kernels; on the first run they are compiled ...")
    of_cpu, cpu = check_rates(n_threads)
    found.append(of_cpu)
    if fit is None or disk is None or routing is None:
        return found, None
    return found, _outlook(work, fit, cpu, disk, routing)


def _disk(
    request: Request, checkpoint: Checkpoint | None, say: Callable[[str], None]
) -> tuple[list[Finding], float | None]:
    """Return the disk's bytes/s: as told, measured, or assumed; None if it can't be read."""
    told = request.disk_bytes_s
    if told is not None:
        text = f"taken to give {told / 1e9:.3g} GB/s, as told"
        return [note("disk", text, bytes_per_s=told, measured=False)], told
    if checkpoint is None:
        text = (
            f"the model is not on it yet, so it is taken to give {ASSUMED_DISK_BYTES_S / 1e9:.3g} "
            "GB/s; --disk-gb-s says otherwise"
        )
        figures = {"bytes_per_s": ASSUMED_DISK_BYTES_S, "measured": False}
        return [note("disk", text, **figures)], ASSUMED_DISK_BYTES_S
    say("measuring the disk ...")
    finding, profile = check_disk(checkpoint, _DISK_S)
    return [finding], None if profile is None else profile.lasting


def _outlook(work: Work, fit: Fit, cpu: CpuRates, disk: float, routing: Routing) -> Outlook:
    of_model = expect(work, fit.plan, cpu, disk, routing)
    likely, floor = of_model.likely, of_model.floor
    prompt_s = of_model.prefill_s(PROMPT_TOKENS)
    assert likely is not None and floor is not None and prompt_s is not None  # noqa: PT018
    return Outlook(
        routing,
        floor,
        likely,
        of_model.warm,
        prompt_s,
        disk_share(work, of_model.rates, likely.hit_rate),
        tuple(gains(work, of_model.rates, fit.slots, routing)),
    )
