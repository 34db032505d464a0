"""Random weights for tiny checkpoints, scaled so that the model's logits are worth looking at.

Every tensor is drawn from its own generator, seeded by the checkpoint's seed and the tensor's name:
how tensors are spread over files changes no weight. Only integer streams and exact arithmetic are
used, no logarithm or cosine, so that a seed gives the same bytes on every machine and NumPy.
Magnitudes differ from block to block, so that a wrong scale index shows. What each weight does is
the spec's forward pass, sections 2 to 9. Knows nothing of files.
"""

import math
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.quant import bf16, e2m1, e4m3
from localv4.tensors import TensorSpec

__all__ = ["random_tensor"]

F32 = NDArray[np.float32]

_BLOCK = 128
_FP4_BLOCK = 32

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

# Ids of printable ASCII in the byte tokenizer. All embeddings share a direction, and the head
# favours these tokens along it: random text that a terminal can show. It also disfavours the token
# it has just read, for otherwise greedy text soon repeats a single one.
_PRINTABLE = slice(2 + 0x20, 2 + 0x7F)
_SHARED_DIRECTION = 0.5
_PREFERENCE = 11.0
_NOVELTY = 8.0


def random_tensor(spec: TensorSpec, config: ModelConfig, seed: int) -> NDArray[Any]:
    """Draw one tensor of the contract.

    Parameters
    ----------
    spec
        Its name, shape and dtype.
    config
        The model's sizes.
    seed
        Not negative.

    Returns
    -------
    ndarray of `spec.shape`
        As stored: uint8 codes, uint16 BF16 bits, float32 or int64, little-endian.
    """
    draw = _generator(spec.name, seed)
    dtype = spec.dtypes[0]
    if spec.name.endswith("tid2eid"):
        return _routing_table(draw, spec.shape, config.n_routed_experts)
    if spec.name.endswith(".scale"):
        return _scales(draw, spec, config)
    if dtype == "F8_E4M3":
        return e4m3.encode(_normal(draw, spec.shape) * _uneven(draw, spec.shape) * np.float32(32))
    if dtype == "I8":
        codes = e2m1.encode(_normal(draw, (spec.shape[0], 2 * spec.shape[1])) * np.float32(2))
        return e2m1.pack(codes)
    values = _plain(draw, spec, seed)
    return bf16.encode(values) if dtype == "BF16" else values


def _generator(name: str, seed: int) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence((seed, zlib.crc32(name.encode()))))


def _uint16(draw: np.random.PCG64, count: int) -> NDArray[np.uint16]:
    # The raw stream is what NumPy promises to keep; the distributions' streams may change.
    words = np.asarray(draw.random_raw(math.ceil(count / 4)), dtype="<u8")
    return words.view("<u2")[:count]


def _normal(draw: np.random.PCG64, shape: tuple[int, ...]) -> F32:
    """Draw nearly normal numbers of mean 0 and deviation 1, within 3.5: a sum of four uniforms."""
    parts = _uint16(draw, 4 * math.prod(shape)).reshape(4, *shape)
    centred = parts.sum(axis=0, dtype=np.int32) - 2 * 65535
    return np.asarray(centred.astype(np.float32) / np.float32(65536 / math.sqrt(3)))


def _uneven(draw: np.random.PCG64, shape: tuple[int, ...]) -> F32:
    """Draw a factor of 1/2, 1, 1 or 2 for each 32 x 32 block, spread over the elements."""
    blocks = tuple(math.ceil(size / 32) for size in shape)
    choices = np.array([0.5, 1.0, 1.0, 2.0], dtype=np.float32)
    factors = choices[_uint16(draw, math.prod(blocks)) % 4].reshape(blocks)
    return np.repeat(np.repeat(factors, 32, 0)[: shape[0]], 32, 1)[:, : shape[1]]


_RMS_UNEVEN = math.sqrt((0.25 + 1 + 1 + 4) / 4)


def _scales(draw: np.random.PCG64, spec: TensorSpec, config: ModelConfig) -> NDArray[Any]:
    """Draw scales that bring the codes of :func:`random_tensor` to the matrix's gain."""
    packed = spec.name.find(".experts.") >= 0 and spec.dtypes[0] == "F8_E8M0"
    columns = _columns(spec, config, packed)
    code_rms = 2.0 if packed else 32.0 * _RMS_UNEVEN
    target = _gain(spec.name) / math.sqrt(columns) / code_rms
    jitter = _uint16(draw, math.prod(spec.shape)).reshape(spec.shape)
    if spec.dtypes[0] == "F32":
        # Not powers of two: base checkpoints may hold any value.
        return (np.float32(target) * (jitter / np.float32(65536) + np.float32(0.5))).astype("<f4")
    exponent = math.frexp(target)[1] - 1  # 2**exponent <= target < 2**(exponent + 1)
    return (127 + exponent + jitter % 2).astype(np.uint8)


def _columns(spec: TensorSpec, config: ModelConfig, packed: bool) -> int:
    if packed:
        return spec.shape[1] * _FP4_BLOCK
    if spec.name.endswith("wo_a.scale"):
        return config.num_attention_heads * config.head_dim // config.o_groups
    return spec.shape[1] * _BLOCK


def _plain(draw: np.random.PCG64, spec: TensorSpec, seed: int) -> F32:
    """Draw a BF16 or F32 tensor."""
    values = _normal(draw, spec.shape)
    if len(spec.shape) == 1 or spec.name.endswith("ape"):
        mean, deviation = next(
            (spread for ending, spread in _SPREADS.items() if spec.name.endswith(ending)),
            _NORM_SPREAD,
        )
        return values * np.float32(deviation) + np.float32(mean)
    if spec.name == "embed.weight":
        return values + np.float32(_SHARED_DIRECTION) * _direction(seed, spec.shape[1])
    columns = spec.shape[1]
    values *= np.float32(_gain(spec.name) / math.sqrt(columns))
    if spec.name == "head.weight":
        preference = np.full((spec.shape[0], 1), -_PREFERENCE / columns, dtype=np.float32)
        preference[_PRINTABLE] *= -1
        values += preference * _direction(seed, columns)
        embeddings = _normal(_generator("embed.weight", seed), spec.shape)
        values -= np.float32(_NOVELTY / columns) * embeddings
    return values


def _gain(name: str) -> float:
    parts = name.removesuffix(".weight").removesuffix(".scale").split(".")
    return _GAINS.get(parts[-1], 1.0)


def _direction(seed: int, width: int) -> F32:
    signs = _uint16(_generator("direction", seed), width) % 2
    return signs.astype(np.float32) * np.float32(2) - np.float32(1)


def _routing_table(
    draw: np.random.PCG64, shape: tuple[int, ...], n_experts: int
) -> NDArray[np.int64]:
    """Draw distinct experts for every token id."""
    order = _uint16(draw, shape[0] * n_experts).reshape(shape[0], n_experts)
    return np.argsort(order, axis=1, kind="stable")[:, : shape[1]].astype("<i8")
