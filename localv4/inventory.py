"""What a checkpoint consists of, in tensors and bytes: the figures behind ``localv4 show``.

From an open checkpoint, or from a config alone, before anything is downloaded. Follows the tensor
contract of the spec's checkpoint layout; the released configs give the published sums. Knows
nothing of how the figures are shown.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from localv4.checkpoint import Checkpoint
from localv4.config import LayerKind, ModelConfig
from localv4.kv_sizes import entry_bytes, key_bytes
from localv4.tensors import (
    ExpertFormat,
    ScaleDtype,
    expected_tensors,
    expert_tensors,
)

__all__ = ["Inventory", "Part", "kv_bytes_per_token", "take_inventory"]

_PARTS = ("embedding", "attention", "ffn", "routed experts", "head", "mtp")


@dataclass(frozen=True)
class Part:
    """Tensors that belong together.

    Attributes
    ----------
    name
        One of "embedding", "attention" (with its norm and mHC), "ffn" (norm, mHC, gate, shared
        experts), "routed experts", "head", "mtp"; "body" and "total" for sums.
    n_tensors, nbytes
        How many, and their stored bytes without file headers.
    """

    name: str
    n_tensors: int
    nbytes: int


@dataclass(frozen=True)
class Inventory:
    """What a checkpoint consists of.

    Attributes
    ----------
    config
        The model's config.
    expert_format, scale_dtype
        As on :class:`Checkpoint`; from a config alone, what its expert_dtype implies.
    layer_kinds
        Attention kind of each body layer.
    parts
        Parts that localv4 reads, in the order of a forward pass; empty ones are left out.
    body, total
        All parts but the MTP block, and all parts.
    expert_bytes
        One routed expert: three matrices and their scales.
    n_unread, unread_bytes
        Tensors left alone (a DSpark drafter). None where that can't be known: always from a config
        of a DSpark release alone, and the bytes where the index doesn't say.
    kv_bytes_per_token
        See :func:`kv_bytes_per_token`.
    window_bytes
        The sliding windows of all body layers, a constant on top.
    """

    config: ModelConfig
    expert_format: ExpertFormat
    scale_dtype: ScaleDtype
    layer_kinds: tuple[LayerKind, ...]
    parts: tuple[Part, ...]
    body: Part
    total: Part
    expert_bytes: int
    n_unread: int | None
    unread_bytes: int | None
    kv_bytes_per_token: float
    window_bytes: int

    @property
    def has_mtp(self) -> bool:
        """Whether there is an MTP block that localv4 can run."""
        return any(part.name == "mtp" for part in self.parts)


def take_inventory(source: Checkpoint | ModelConfig) -> Inventory:
    """Count what a checkpoint holds, or what one of this config would hold.

    An open checkpoint holds what its config demands, so that no tensor of it is looked at.
    """
    if isinstance(source, Checkpoint):
        formats = source.expert_format, source.scale_dtype
        return _inventory(
            source.config, *formats, source.has_mtp, len(source.unread), source.unread_bytes
        )
    expert_format: ExpertFormat = "fp8" if source.expert_dtype == "fp8" else "fp4"
    scale_dtype: ScaleDtype = "F32" if expert_format == "fp8" else "F8_E8M0"
    mtp = source.num_nextn_predict_layers > 0 and not source.is_dspark
    unread = None if source.is_dspark else 0
    return _inventory(source, expert_format, scale_dtype, mtp, unread, unread)


def _inventory(
    config: ModelConfig,
    expert_format: ExpertFormat,
    scale_dtype: ScaleDtype,
    mtp: bool,
    n_unread: int | None,
    unread_bytes: int | None,
) -> Inventory:
    parts = _parts(_demanded(config, expert_format, scale_dtype, mtp))
    expert = expert_tensors(config, 0, 0, expert_format, scale_dtype)
    return Inventory(
        config=config,
        expert_format=expert_format,
        scale_dtype=scale_dtype,
        layer_kinds=tuple(config.layer_kind(n) for n in range(config.num_hidden_layers)),
        parts=parts,
        body=_sum("body", (part for part in parts if part.name != "mtp")),
        total=_sum("total", parts),
        expert_bytes=sum(spec.nbytes for spec in expert),
        n_unread=n_unread,
        unread_bytes=unread_bytes,
        kv_bytes_per_token=kv_bytes_per_token(config),
        window_bytes=config.num_hidden_layers
        * config.sliding_window
        * entry_bytes(config, trained=True),
    )


def _demanded(
    config: ModelConfig, expert_format: ExpertFormat, scale_dtype: ScaleDtype, mtp: bool
) -> Iterator[tuple[str, int, int]]:
    """Yield names with counts and bytes: experts of a layer, which are alike, as one."""
    for spec in expected_tensors(config, expert_format, scale_dtype, mtp, routed=False):
        yield spec.name, 1, spec.nbytes
    for layer in range(config.num_hidden_layers + mtp):
        for spec in expert_tensors(config, layer, 0, expert_format, scale_dtype):
            yield spec.name, config.n_routed_experts, config.n_routed_experts * spec.nbytes


def _parts(sizes: Iterable[tuple[str, int, int]]) -> tuple[Part, ...]:
    n_tensors: Counter[str] = Counter()
    nbytes: Counter[str] = Counter()
    for name, count, size in sizes:
        part = _part_of(name)
        n_tensors[part] += count
        nbytes[part] += size
    return tuple(Part(part, n_tensors[part], nbytes[part]) for part in _PARTS if n_tensors[part])


def _part_of(name: str) -> str:
    if name.startswith("mtp."):
        return "mtp"
    if not name.startswith("layers."):
        return "embedding" if name == "embed.weight" else "head"
    module = name.split(".", 2)[2]
    if module.startswith(("attn", "hc_attn")):
        return "attention"
    return "routed experts" if module.startswith("ffn.experts.") else "ffn"


def _sum(name: str, parts: Iterable[Part]) -> Part:
    listed = tuple(parts)
    return Part(name, sum(part.n_tensors for part in listed), sum(part.nbytes for part in listed))


def kv_bytes_per_token(config: ModelConfig) -> float:
    """Bytes by which the compressed KV state grows for each token, over all body layers.

    With the precision that the model was trained for: a csa layer stores an entry and an FP4 index
    key for 4 tokens, an hca layer an entry for 128, a sliding layer nothing beyond its window.
    """
    entry, key = entry_bytes(config, trained=True), key_bytes(config, trained=True)
    growth: dict[LayerKind, float] = {"sliding": 0.0, "csa": (entry + key) / 4, "hca": entry / 128}
    return sum(growth[config.layer_kind(n)] for n in range(config.num_hidden_layers))
