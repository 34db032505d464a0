"""Random weights for a checkpoint, scaled so that the model's logits are worth looking at.

Every tensor is drawn from its own generator, seeded by the checkpoint's seed and the tensor's name:
how tensors are spread over files changes no weight. Magnitudes differ from block to block, so that
a wrong scale index shows. What each weight does is the spec's forward pass, sections 2 to 9. Knows
nothing of files.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.quant import bf16, e2m1, e4m3
from localv4.synthetic_config import Routing
from localv4.synthetic_draws import RMS_UNEVEN, direction, generator, normal, uint16, uneven
from localv4.synthetic_routing import COMMON, OWN, PREFERENCE_FACTOR, Topics, gate_bias
from localv4.tensors import TensorSpec

__all__ = [
    "CODE_SPREAD",
    "EOS",
    "NOVELTY",
    "PRINTABLE",
    "SHARED_DIRECTION",
    "gain",
    "lowest_exponent",
    "random_tensor",
]

F32 = NDArray[np.float32]

_BLOCK = 128
_FP4_BLOCK = 32

CODE_SPREAD = {"F8_E4M3": 32, "I8": 2}
"""Standard deviation of the numbers that codes stand for, but for :func:`uneven`."""

# Root mean square of a row's dot product with unit inputs. SwiGLU multiplies two outputs of w1 and
# w3, which are large enough to meet swiglu_limit now and then; w2 brings the product back down.
_GAINS = {
    "head": 2.6,
    "gate": 2.0,
    "wgate": 1.5,
    "wo_b": 0.6,
    "w1": 2.5,
    "w2": 0.05,
    "w3": 2.5,
}

# Vectors and tables that are used as they are: mean and standard deviation.
_SPREADS = {
    "ape": (0.0, 0.7),
    "attn_sink": (0.0, 1.0),
    "gate.bias": (0.0, 0.3),
    "hc_attn_base": (0.0, 0.7),
    "hc_ffn_base": (0.0, 0.7),
    "hc_head_base": (0.0, 0.7),
    "hc_attn_scale": (0.8, 0.2),
    "hc_ffn_scale": (0.8, 0.2),
    "hc_head_scale": (0.8, 0.1),
    "kv_norm.weight": (1.2, 0.25),
    "compressor.norm.weight": (1.2, 0.25),
}
_NORM_SPREAD = (1.0, 0.2)

# Ids of the end and of printable ASCII in the byte tokenizer. All embeddings share a direction, and
# the head favours these tokens along it: random text that a terminal can show, and that ends. It
# also disfavours the token it has just read, for otherwise greedy text soon repeats a single one.
EOS = 1
PRINTABLE = slice(2 + 0x20, 2 + 0x7F)
_WORDS = np.arange(0x7F - 0x20)
SHARED_DIRECTION = 0.5
_PREFERENCE = 11.0
NOVELTY = 8.0


def random_tensor(
    spec: TensorSpec, config: ModelConfig, seed: int, routing: Routing = "random"
) -> NDArray[Any]:
    """Draw one tensor of the contract.

    Parameters
    ----------
    spec
        Its name, shape and dtype.
    config
        The model's sizes.
    seed
        Not negative.
    routing
        "uniform" and "skewed" give other gate biases, embeddings and head.

    Returns
    -------
    ndarray of `spec.shape`
        As stored: uint8 codes, uint16 BF16 bits, float32 or int64, little-endian.
    """
    draw = generator(spec.name, seed)
    dtype = spec.dtypes[0]
    if spec.name.endswith("tid2eid"):
        return _routing_table(draw, spec.shape, config.n_routed_experts)
    if spec.name.endswith(".scale"):
        return _scales(draw, spec, config)
    if routing == "uniform" and spec.name.endswith("gate.bias"):
        return np.zeros(spec.shape, np.float32)
    if routing == "skewed" and spec.name.endswith("gate.bias"):
        return gate_bias(spec.name, spec.shape[0], config.num_experts_per_tok, seed)
    if dtype == "F8_E4M3":
        values = normal(draw, spec.shape) * uneven(draw, spec.shape)
        return e4m3.encode(values * np.float32(CODE_SPREAD["F8_E4M3"]))
    if dtype == "I8":
        values = normal(draw, (spec.shape[0], 2 * spec.shape[1]))
        return e2m1.pack(e2m1.encode(values * np.float32(CODE_SPREAD["I8"])))
    values = _plain(draw, spec, seed, routing)
    return bf16.encode(values) if dtype == "BF16" else values


def _scales(draw: np.random.PCG64, spec: TensorSpec, config: ModelConfig) -> NDArray[Any]:
    """Draw scales that bring the codes of :func:`random_tensor` to the matrix's gain."""
    jitter = uint16(draw, math.prod(spec.shape)).reshape(spec.shape)
    if spec.dtypes[0] == "F32":
        target = np.float32(_scale(spec, config))
        # Not powers of two: base checkpoints may hold any value.
        return (target * (jitter / np.float32(65536) + np.float32(0.5))).astype("<f4")
    return (lowest_exponent(spec, config) + jitter % 2).astype(np.uint8)


def lowest_exponent(spec: TensorSpec, config: ModelConfig) -> int:
    """Return the lower of the two bytes that an F8_E8M0 scale tensor holds."""
    return 126 + math.frexp(_scale(spec, config))[1]  # 2**(byte - 127) <= scale < twice that


def _scale(spec: TensorSpec, config: ModelConfig) -> float:
    packed = spec.name.find(".experts.") >= 0 and spec.dtypes[0] == "F8_E8M0"
    spread = CODE_SPREAD["I8"] if packed else CODE_SPREAD["F8_E4M3"] * RMS_UNEVEN
    return gain(spec.name) / math.sqrt(_columns(spec, config, packed)) / spread


def _columns(spec: TensorSpec, config: ModelConfig, packed: bool) -> int:
    if packed:
        return spec.shape[1] * _FP4_BLOCK
    if spec.name.endswith("wo_a.scale"):
        return config.num_attention_heads * config.head_dim // config.o_groups
    return spec.shape[1] * _BLOCK


def _plain(draw: np.random.PCG64, spec: TensorSpec, seed: int, routing: Routing) -> F32:
    """Draw a BF16 or F32 tensor."""
    values = normal(draw, spec.shape)
    if len(spec.shape) == 1 or spec.name.endswith("ape"):
        mean, deviation = next(
            (spread for ending, spread in _SPREADS.items() if spec.name.endswith(ending)),
            _NORM_SPREAD,
        )
        return values * np.float32(deviation) + np.float32(mean)
    if spec.name == "embed.weight":
        return _embeddings(values, seed, routing)
    columns = spec.shape[1]
    values *= np.float32(gain(spec.name) / math.sqrt(columns))
    if spec.name == "head.weight":
        _prefer(values, seed, routing)
    return values


def _embeddings(values: F32, seed: int, routing: Routing) -> F32:
    """Return embeddings with these numbers as their own parts."""
    shared = direction(seed, values.shape[1])
    if routing == "random":
        return values + np.float32(SHARED_DIRECTION) * shared
    values = np.float32(OWN) * values + np.float32(COMMON) * shared
    if routing == "skewed":
        values[PRINTABLE] += Topics(len(_WORDS), values.shape[1], seed).embeddings(_WORDS)
    return values


def _prefer(head: F32, seed: int, routing: Routing) -> None:
    """Make a random head favour printable tokens and the end, and nothing twice."""
    rows, columns = head.shape
    preference = _PREFERENCE * (1 if routing == "random" else PREFERENCE_FACTOR)
    preferences = np.full((rows, 1), -preference / columns, dtype=np.float32)
    preferences[PRINTABLE] *= -1
    preferences[EOS] *= -1  # an answer has a hundred tokens or so
    head += preferences * direction(seed, columns)
    head -= np.float32(NOVELTY / columns) * normal(generator("embed.weight", seed), head.shape)
    if routing == "skewed":
        head[PRINTABLE] += Topics(len(_WORDS), columns, seed).head_rows(_WORDS)


def gain(name: str) -> float:
    """Return the root mean square of a row's dot product with unit inputs."""
    parts = name.removesuffix(".weight").removesuffix(".scale").split(".")
    return _GAINS.get(parts[-1], 1.0)


def _routing_table(
    draw: np.random.PCG64, shape: tuple[int, ...], n_experts: int
) -> NDArray[np.int64]:
    """Draw distinct experts for every token id."""
    order = uint16(draw, shape[0] * n_experts).reshape(shape[0], n_experts)
    return np.argsort(order, axis=1, kind="stable")[:, : shape[1]].astype("<i8")
