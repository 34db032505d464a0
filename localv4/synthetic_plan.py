"""What a synthetic checkpoint will consist of: its config, its tokenizer, the tensors of each file.

Everything that can be refused is refused here, before anything is written. Follows the spec's
checkpoint layout; knows nothing of what the weights are.
"""

import json
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from localv4.byte_tokenizer import byte_level_tokenizer_json
from localv4.checks import whole_number
from localv4.config import ModelConfig
from localv4.errors import DamagedCheckpoint, InvalidInput, UnsupportedModel
from localv4.sizes import format_bytes
from localv4.synthetic_config import (
    FULL_WIDTH,
    PRESETS,
    Preset,
    Routing,
    Sizes,
    config_json,
    first_ratios,
    n_released_layers,
)
from localv4.synthetic_weights import PRINTABLE
from localv4.tensors import DTYPE_BYTES, TensorSpec, expected_tensors
from localv4.tokenizer import bundled_tokenizer_json

__all__ = ["Layout", "Request", "WritePlan", "make_write_plan"]

Layout = Literal["release", "scattered", "single"]

_N_SCATTERED = 5
_MOST_BYTES = 2 * 2**30
_MOST_TENSORS = 200_000
_MOST_TENSORS_FULL = 1_000_000  # the released Pro has 145,116; a reader's index may have 100 MB
_MOST_LAYERS = 512
# With four layers there is one of every kind: csa, hca, hash-routed and gate-routed.
_N_FULL_LAYERS = 4

# Real files of a sparse checkpoint hold what is at most this large, and the routing tables.
_LARGEST_REAL_BYTES = 2**18
_FILE_BYTES_PER_TENSOR = 512  # its entries in header and index, generously
_BLOCK_BYTES = 4096

# Words are found among the first merges of the released tokenizer.
_COMMON_IDS = range(259, 4096)
_WORD_BEGIN = "\u0120"


@dataclass(frozen=True)
class Request:
    """What :func:`localv4.synthetic.synthesise` was asked for; see there."""

    preset: Preset
    compress_ratios: tuple[int, ...] | None
    sizes: Sizes | None
    layout: Layout
    dspark: bool
    n_layers: int | None
    full_width: bool
    mtp: bool | None
    sparse: bool
    routing: Routing = "random"


@dataclass(frozen=True)
class WritePlan:
    """What to write.

    Attributes
    ----------
    config_text, tokenizer_text
        Files of the checkpoint.
    config
        Of `config_text`.
    favoured
        Ids of the tokens that a head should favour, int64.
    shards
        The tensors of each file, in order.
    layout, full_width, sparse, routing
        As asked for.
    """

    config_text: str
    config: ModelConfig
    tokenizer_text: str
    favoured: NDArray[np.int64]
    shards: dict[str, list[TensorSpec]]
    layout: Layout
    full_width: bool
    sparse: bool
    routing: Routing

    @cached_property
    def tensor_bytes(self) -> int:
        """Bytes of all tensors."""
        return sum(spec.nbytes for specs in self.shards.values() for spec in specs)

    def is_hole(self, spec: TensorSpec) -> bool:
        """Whether a tensor is left out of the files, which then read as zeros there."""
        if not self.sparse or spec.name.endswith("tid2eid"):
            return False
        return ".experts." in spec.name or spec.nbytes > _LARGEST_REAL_BYTES

    def disk_bytes(self, holes: bool) -> int:
        """Return about how much disk the files take, on one that does or doesn't keep holes."""
        total = len(self.tokenizer_text.encode())
        for specs in self.shards.values():
            for spec in specs:
                total += _FILE_BYTES_PER_TENSOR
                if not (holes and self.is_hole(spec)):
                    # Between holes a tensor has blocks of its own.
                    total += spec.nbytes + (2 * _BLOCK_BYTES if self.sparse else 0)
        return total


def make_write_plan(request: Request) -> WritePlan:
    """Decide what to write.

    Raises
    ------
    InvalidInput
        If the request contradicts itself, does not fit the format, or is too large for a trial.
    """
    preset, layout = request.preset, request.layout
    if preset not in PRESETS:
        raise InvalidInput(f"there is no preset {preset!r}; choose one of {', '.join(PRESETS)}")
    if layout not in get_args(Layout):
        choices = ", ".join(get_args(Layout))
        raise InvalidInput(f"there is no layout {layout!r}; choose one of {choices}")
    if request.routing not in get_args(Routing):
        choices = ", ".join(get_args(Routing))
        raise InvalidInput(f"there is no routing {request.routing!r}; choose one of {choices}")
    sizes = request.sizes or (FULL_WIDTH if request.full_width else PRESETS)[preset]
    text = config_json(preset, sizes, _ratios(request), request.dspark, _has_mtp(request))
    try:
        config = ModelConfig.from_json(text, "the checkpoint asked for")
    except (DamagedCheckpoint, UnsupportedModel) as error:
        raise InvalidInput(str(error).replace("; restore the original file", "")) from None
    specs = _affordable(config, _has_mtp(request), request.full_width)
    if request.dspark:
        specs += _drafter_tensors(config)
    tokenizer_text, favoured = _vocabulary(config, request.full_width)
    shards = _shards(specs, config, layout)
    return WritePlan(
        text,
        config,
        tokenizer_text,
        favoured,
        shards,
        layout,
        request.full_width,
        request.sparse,
        request.routing,
    )


def _ratios(request: Request) -> tuple[int, ...] | None:
    """Return a ratio for each layer; None for those of the tiny preset."""
    if request.compress_ratios is not None:
        if request.n_layers is not None:
            raise InvalidInput(
                "the number of layers and a ratio for each layer are both given; give one of them"
            )
        return request.compress_ratios
    n_layers = request.n_layers
    most = n_released_layers(request.preset) if request.full_width else _MOST_LAYERS
    if n_layers is None:
        if not request.full_width:
            return None
        n_layers = most if request.sparse else _N_FULL_LAYERS
    return first_ratios(request.preset, whole_number("the number of layers", n_layers, 1, most))


def _has_mtp(request: Request) -> bool:
    """Whether there is an MTP block: at full width only if asked for, or if it costs nothing."""
    if request.dspark:
        if request.mtp:
            raise InvalidInput(
                "a checkpoint has either the MTP block or the drafter of dspark; ask for one"
            )
        return False
    if request.mtp is None:
        return request.sparse or not request.full_width
    return request.mtp


def _affordable(config: ModelConfig, mtp: bool, full_width: bool) -> list[TensorSpec]:
    """Return the tensors; refuse, before any is made, what no trial needs."""
    base = config.expert_dtype == "fp8"
    specs = []
    total = 0
    most_tensors = _MOST_TENSORS_FULL if full_width else _MOST_TENSORS
    for spec in expected_tensors(
        config, "fp8" if base else "fp4", "F32" if base else "F8_E8M0", mtp=mtp
    ):
        specs.append(spec)
        total += spec.nbytes
        # Stopping here, as sizes may ask for millions of tensors too.
        if len(specs) > most_tensors or (total > _MOST_BYTES and not full_width):
            limit = f"{most_tensors:,} tensors at most"
            if not full_width:
                limit = f"{format_bytes(_MOST_BYTES)} and {limit}"
            raise InvalidInput(
                f"a checkpoint of these sizes has {len(specs):,} tensors of {format_bytes(total)} "
                f"and more; choose sizes that come to {limit}"
            )
    return specs


def _vocabulary(config: ModelConfig, full_width: bool) -> tuple[str, NDArray[np.int64]]:
    """Return a tokenizer.json and the ids that an answer should be made of.

    The released vocabulary has the released tokenizer: a text has as many tokens as it will have,
    and every token has a text. Others spell bytes.
    """
    if not full_width or config.vocab_size != FULL_WIDTH["flash"].vocab_size:
        byte_ids = np.arange(config.vocab_size, dtype=np.int64)[PRINTABLE]
        return byte_level_tokenizer_json(config.vocab_size), byte_ids
    text = bundled_tokenizer_json()
    words = sorted(
        token_id
        for content, token_id in json.loads(text)["model"]["vocab"].items()
        if token_id in _COMMON_IDS and _is_word(content.removeprefix(_WORD_BEGIN))
    )
    return text, np.array(words, dtype=np.int64)


def _is_word(content: str) -> bool:
    return content.isascii() and content.isalpha()


def _shards(
    specs: list[TensorSpec], config: ModelConfig, layout: Layout
) -> dict[str, list[TensorSpec]]:
    """Spread tensors over files."""
    if layout == "single":
        shards = {"model.safetensors": specs}
    else:
        groups = _dealt(specs) if layout == "scattered" else _like_releases(specs, config)
        shards = {
            f"model-{number:05d}-of-{len(groups):05d}.safetensors": group
            for number, group in enumerate(groups, start=1)
        }
    return {name: sorted(group, key=_official_order) for name, group in shards.items()}


def _official_order(spec: TensorSpec) -> tuple[int, str, str]:
    """Order tensors as the safetensors library does: an expert's three weights are one run."""
    return -DTYPE_BYTES[spec.dtypes[0]], spec.dtypes[0], spec.name


def _like_releases(specs: list[TensorSpec], config: ModelConfig) -> list[list[TensorSpec]]:
    """Group as the releases do: embedding, each layer, head, each stage of ``mtp``."""
    groups: dict[str, list[TensorSpec]] = {"embed": []}
    groups |= {f"layers.{layer}": [] for layer in range(config.num_hidden_layers)}
    groups["head"] = []
    for spec in specs:
        first, second = spec.name.split(".")[:2] if "." in spec.name else (spec.name, "")
        if first in ("layers", "mtp"):
            groups.setdefault(f"{first}.{second}", []).append(spec)
        else:
            groups["embed" if first == "embed" else "head"].append(spec)
    return list(groups.values())


def _dealt(specs: list[TensorSpec]) -> list[list[TensorSpec]]:
    groups: list[list[TensorSpec]] = [[] for _ in range(_N_SCATTERED)]
    for spec, group in zip(specs, cycle(groups), strict=False):
        group.append(spec)
    return groups


def _drafter_tensors(config: ModelConfig) -> list[TensorSpec]:
    """Return tensors named like those of a DSpark drafter; their shapes are made up."""
    hidden = config.hidden_size
    drafter = [
        TensorSpec("mtp.0.main_proj.weight", (hidden, hidden), ("BF16",)),
        TensorSpec("mtp.0.main_norm.weight", (hidden,), ("BF16",)),
        TensorSpec("mtp.2.markov_head.weight", (config.vocab_size, 16), ("BF16",)),
        TensorSpec("mtp.2.confidence_head.weight", (1, hidden), ("BF16",)),
    ]
    for stage in range(3):
        drafter += [
            TensorSpec(f"mtp.{stage}.attn_norm.weight", (hidden,), ("BF16",)),
            TensorSpec(f"mtp.{stage}.attn.attn_sink", (config.num_attention_heads,), ("F32",)),
        ]
    return drafter
