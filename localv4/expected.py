"""What to expect of a model on this machine: the speed model, fed with what was measured here.

The doctor's outlook and a dry run's come from here, so that they agree. Measures nothing: where a
rate is missing, so is what depends on it. Knows nothing of how it is shown.
"""

import logging
from dataclasses import dataclass
from pathlib import Path

from localv4.config import ModelConfig
from localv4.disk import load_disk_profile
from localv4.errors import DamagedCheckpoint
from localv4.inventory import take_inventory
from localv4.machine_rates import CpuRates, kept_rates
from localv4.memory import MemoryPlan
from localv4.speed import Estimate, Rates, Routing, Work, estimate, expected_hits, prefill_s
from localv4.token_work import token_work
from localv4.untrusted import read_object

__all__ = ["Expectation", "expect", "expected", "routing_of"]

_log = logging.getLogger(__name__)
_GENERATION_CONFIG_BYTES = 2**20
_ANY_DISK_BYTES_S = 1e9  # where nothing is read, it does not matter


@dataclass(frozen=True)
class Expectation:
    """How fast a model would be.

    Attributes
    ----------
    routing
        How choices spread over experts, as the estimates take it.
    warm
        With all chosen experts in memory.
    likely
        With as many as are expected in the long run; None if that asks for a disk's speed which
        was never measured.
    floor
        With none, as after the start; None if the disk was never measured.
    work, rates
        Of a token, and of the machine; `rates.disk` counts only if `knows_disk`.
    knows_disk
        Whether the disk was measured.
    slots
        Experts that fit into memory.
    chunk_tokens
        Most tokens of a prompt that go through the layers at a time.
    """

    routing: Routing
    warm: Estimate
    likely: Estimate | None
    floor: Estimate | None
    work: Work
    rates: Rates
    knows_disk: bool
    slots: int
    chunk_tokens: int

    @property
    def share(self) -> float:
        """Experts that fit into memory, as a share of all."""
        return self.slots / self.work.all_experts

    def prefill_s(self, n_tokens: int) -> float | None:
        """Return the seconds to read a prompt, the first token's wait; None as for `likely`."""
        if self.likely is None:
            return None
        return prefill_s(self.work, self.rates, n_tokens, self.share, self.chunk_tokens)

    def decode_s(self, n_tokens: int) -> float | None:
        """Return the seconds that an answer of so many tokens takes; None as for `likely`."""
        return None if self.likely is None else n_tokens * self.likely.token_s


def expect(
    work: Work, plan: MemoryPlan, cpu: CpuRates, disk_bytes_s: float | None, routing: Routing
) -> Expectation:
    """Return what to expect of a model.

    Parameters
    ----------
    work
        What a token makes of it.
    plan
        How much of it is in memory.
    cpu, disk_bytes_s
        What was measured; None for a disk that was not.
    routing
        How choices spread over experts.
    """
    disk = _ANY_DISK_BYTES_S if disk_bytes_s is None else disk_bytes_s
    rates = Rates(cpu.fp4, cpu.fp8, cpu.bf16, disk, cpu.flops)
    # of the slots, the MTP block's experts may take some
    slots = min(plan.n_slots, work.all_experts) if plan.streams else work.all_experts
    hit_rate = expected_hits(slots / work.all_experts, routing, work.hash_share)
    knows_disk = disk_bytes_s is not None
    return Expectation(
        routing,
        warm=estimate(work, rates, 1.0),
        likely=estimate(work, rates, hit_rate) if knows_disk or not plan.streams else None,
        floor=estimate(work, rates, 0.0) if knows_disk else None,
        work=work,
        rates=rates,
        knows_disk=knows_disk,
        slots=slots,
        chunk_tokens=plan.chunk_tokens,
    )


def expected(
    config: ModelConfig, plan: MemoryPlan, threads: int, folder: Path
) -> Expectation | None:
    """Return what to expect of a model from what was kept; None if the CPU was never measured.

    Parameters
    ----------
    config, plan
        Of an open engine.
    threads
        With which the CPU was measured: `choose_threads` for the same wish, whatever reads.
    folder
        The model's: tells its disk, and how a synthetic one routes.
    """
    cpu = kept_rates(threads)
    if cpu is None:
        return None
    try:
        routing = routing_of(folder)
    except DamagedCheckpoint as error:
        _log.warning("no speed is estimated: %s", error)
        return None
    shard = min(folder.glob("*.safetensors"), default=folder)
    profile = load_disk_profile(shard)
    work = token_work(take_inventory(config))
    return expect(work, plan, cpu, None if profile is None else profile.lasting, routing)


def routing_of(path: Path) -> Routing:
    """Return how choices spread over experts: as a synthetic checkpoint says, else skewed.

    Raises
    ------
    DamagedCheckpoint
        generation_config.json says something else, or is no JSON.
    """
    file = (path if path.is_dir() else path.parent) / "generation_config.json"
    values = read_object(file, _GENERATION_CONFIG_BYTES) or {}
    match values.get("localv4_routing", "skewed"):
        case "skewed":
            return "skewed"
        case "uniform":
            return "uniform"
        case other:
            raise DamagedCheckpoint(
                f"{file} has localv4_routing {other!r}; make it skewed or uniform"
            )
