"""What streaming needs, put together: open shards, reading threads, dense weights, expert slots.

Knows nothing of sessions or of the maths.
"""

import weakref
from contextlib import ExitStack
from dataclasses import replace

from localv4.checkpoint import Checkpoint
from localv4.dense import DenseWeights, dense_names
from localv4.disk import keep_disk_in_use, load_disk_profile
from localv4.limits import resident
from localv4.memory import MemoryPlan
from localv4.reads import Readers
from localv4.shard_files import ShardFiles
from localv4.stats import Stats
from localv4.streaming import StreamedExperts, fewest_slots

__all__ = ["Streams"]

_N_READERS = 16  # where `localv4 doctor` has not found what suits the disk


def _close(weights: DenseWeights, readers: Readers, files: ShardFiles) -> None:
    """Stop all threads; files stay open under one that the disk holds."""
    idle = weights.close()
    if readers.close() and idle:
        files.close()


class Streams:
    """The weights of a checkpoint that does not fit into memory.

    Parameters
    ----------
    checkpoint
        Whose.
    plan
        How much memory there is.
    mtp
        Whether the MTP block is in use.

    Attributes
    ----------
    weights
        What every token needs; being read from now on.
    store
        Routed experts.

    Raises
    ------
    DamagedCheckpoint
        A shard cannot be opened.
    """

    def __init__(self, checkpoint: Checkpoint, plan: MemoryPlan, mtp: bool) -> None:
        config = checkpoint.config
        groups = dense_names(checkpoint.tensors, checkpoint.config, mtp)
        shards = {info.shard for info in checkpoint.tensors.values()}
        self._shard = checkpoint.path / min(shards)
        profile = load_disk_profile(self._shard)
        with ExitStack() as opened:
            files = ShardFiles(checkpoint.path, sorted(shards), profile is None or profile.direct)
            opened.callback(files.close)
            readers = Readers(files, _N_READERS if profile is None else profile.readers)
            opened.callback(readers.close)
            self.weights = DenseWeights(checkpoint, files, groups)
            self.store = StreamedExperts(
                checkpoint, readers, plan.n_slots, config.num_hidden_layers + mtp
            )
            opened.pop_all()
        self._plan = plan
        self._excess = 0
        self._fewest = fewest_slots(config.num_experts_per_tok)
        self._finalizer = weakref.finalize(self, _close, self.weights, readers, files)
        self.weights.start()

    def make_room(self, kv_bytes: int) -> None:
        """Give memory of experts to KV state, or back; between chunks.

        If the process holds more than its budget all the same, because something took more than
        planned, experts make up for that too, and for good.

        Parameters
        ----------
        kv_bytes
            Of all sessions; at most the plan's `kv_most`.
        """
        plan, held = self._plan, resident()
        excess = self._excess + max(held.anonymous + held.shared - plan.budget, 0)
        self._excess = min(excess, plan.experts)
        wanted = max(kv_bytes - plan.kv, 0) + self._excess
        n_slots = max(plan.n_slots - -(-wanted // plan.slot_bytes), self._fewest)
        if n_slots != self.store.n_slots:
            self.store.resize(n_slots)

    def counted(self, stats: Stats) -> Stats:
        """Return statistics with the counters of expert reads."""
        counters, readers = self.store.counters, self.store.readers
        return replace(
            stats,
            expert_hits=counters.hits,
            expert_misses=counters.misses,
            bytes_read=readers.bytes_read,
            read_s=readers.busy_s,
            wait_s=counters.wait_s,
        )

    def close(self) -> None:
        """Stop reading, let go of the shards, and give the memory back to the system."""
        if self._finalizer.alive:
            store = self.store
            reads = store.counters.decode_bytes, store.counters.decode_read_s
            keep_disk_in_use(store.readers, *reads, self._shard)
        self._finalizer()
        self.store.forget()
        self.weights.forget()
