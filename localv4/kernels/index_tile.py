"""Index scores of packed keys: exact integer sums at the rate of the CPU's byte products.

A unit of keys is unpacked once into a scratch in the nearest cache and meets all heads of some
tokens.  Keys lie in lanes, so what follows the products (scales, both roundings, relu, head
weights) is done for sixteen keys at a time, and a head's sum needs no step across lanes.

Sums of a block of 32 columns are whole numbers times the scales' powers of two: exact in every
way that is used here.  Four of them are added in order, each addition rounded once, and heads
from the first to the last: every tier gives the same bytes, and those of the statement
`score_keys`, as long as no number leaves the normal range of float32 (2**-126 to 2**111).

* With a matrix unit, queries come as BF16 and a block's products are one tile operation.
* Else unsigned bytes of keys meet signed bytes of queries, four products a lane and instruction
  where the CPU has that, or pairs of them in 16 bits, which 32 columns cannot overflow.

Follows forward.md section 6.
"""

from typing import Any

import numpy as np
from numba import types
from numba.extending import overload
from numpy.typing import NDArray

from localv4.kernels import tiers
from localv4.kernels._jit import intrinsic
from localv4.kernels.index_bytes import AnyPairs, Bytes, HalfPairs, Pairs
from localv4.kernels.index_matrix import Tiles
from localv4.kernels.index_queries import in_matrix_unit, unpack_query
from localv4.kernels.index_scoring import RATIO, Scoring
from localv4.kernels.kv_rows import decode_key
from localv4.kernels.rounding import round_bf16
from localv4.kernels.simd import I64, Emitter

__all__ = ["score_keys"]

F32Array = NDArray[np.float32]
U8Array = NDArray[np.uint8]

_BYTE_DOTS = ("avx512_bf16", "avx512_vnni")


def score_keys(
    packed: U8Array,
    n_heads: int,
    keys: U8Array,
    position: int | np.int64,
    first: int | np.int64,
    last: int | np.int64,
    scores: F32Array,
) -> None:
    """Score keys first..last-1 for each token, as far as it sees them.

    Parameters
    ----------
    packed
        uint8 [n_tokens, query_bytes]: queries and head weights from index_queries.py.
    n_heads
        Index heads.
    keys
        uint8 [at least last, key bytes], contiguous.
    position
        Of the first token; token i sees the keys below (position + i + 1) // 4.
    first, last
        Which keys.
    scores
        Written at columns first..last-1: float32 [n_tokens, at least last], contiguous.
    """
    width = keys.shape[1] // 17 * 32
    key, total = np.empty(width, np.float32), np.float32(0)
    for token in range(len(packed)):
        queries, weights = unpack_query(packed[token], n_heads, width)
        for number in range(first, min(last, (position + token + 1) // RATIO)):
            decode_key(keys[number], 1, key)
            blocks = (queries * key).astype(np.float64).reshape(n_heads, -1, 32).sum(axis=2)
            total = np.float32(0)
            for head in range(n_heads):
                product = np.float32(0)
                for block in blocks[head]:
                    product += np.float32(block)
                product = round_bf16(product)
                product = np.float32(0) if product <= 0 else product  # a NaN passes
                total += round_bf16(product * weights[head])
            scores[token, number] = round_bf16(total)


def _way() -> type[Scoring]:
    tier = tiers.active()
    if in_matrix_unit():
        return Tiles
    if tier in _BYTE_DOTS:
        return Bytes
    return {"avx512": Pairs, "avx2": HalfPairs}.get(tier, AnyPairs)


@intrinsic
def _score_keys(
    typing: Any,
    packed: Any,
    n_heads: Any,
    keys: Any,
    position: Any,
    first: Any,
    last: Any,
    scores: Any,
) -> Any:
    def code(context: Any, builder: Any, signature: Any, args: list[Any]) -> Any:
        def matrix(index: int) -> tuple[Any, Any, Any]:
            array = context.make_array(signature.args[index])(context, builder, args[index])
            address = builder.ptrtoint(array.data, I64)
            n_rows = builder.extract_value(array.shape, 0)
            return address, n_rows, builder.extract_value(array.strides, 0)

        queries, n_tokens, query_bytes = matrix(0)
        rows, _, key_bytes = matrix(2)
        out, _, score_bytes = matrix(6)
        parts = [queries, query_bytes, n_tokens, args[1], rows, key_bytes, *args[3:6]]
        _way()(Emitter(builder), [*parts, out, score_bytes]).generate()
        return context.get_dummy_value()

    whole = types.int64
    return types.void(packed, whole, keys, whole, whole, whole, scores), code


@overload(score_keys)  # type: ignore[untyped-decorator]
def _compiled_score_keys(
    packed: Any, n_heads: Any, keys: Any, position: Any, first: Any, last: Any, scores: Any
) -> Any:
    def implementation(
        packed: Any, n_heads: Any, keys: Any, position: Any, first: Any, last: Any, scores: Any
    ) -> None:
        _score_keys(packed, n_heads, keys, position, first, last, scores)

    return implementation
