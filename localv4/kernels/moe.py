"""The small arithmetic of the mixture of experts: gate, choice, activation, sum.

Follows forward.md section 7.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kernels._jit import leaf
from localv4.kernels.elementwise import exp_f32
from localv4.kernels.launch import Program, kernel
from localv4.kernels.rounding import round_bf16
from localv4.kernels.slices import Slices, slice_of

__all__ = ["record_activation", "record_addition", "route"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

_ZERO = np.float32(0)
_HALF = np.float32(0.5)
_ONE = np.float32(1)
_TWO = np.float32(2)
# below, softplus(z) is e^z to the last place, and its root must not pass through denormals
_LOWEST = np.float32(-17)
# log((1 + s) / (1 - s)) = 2 s (1 + s^2 / 3 + s^4 / 5 ...), for s up to a third
_SERIES = tuple(np.float32(1 / n) for n in range(3, 16, 2))
_S3, _S5, _S7, _S9, _S11, _S13, _S15 = _SERIES


@leaf
def _affinity(logit: np.float32) -> np.float32:
    """Return sqrt(ln(1 + e^logit))."""
    small = exp_f32(np.float32(-np.abs(logit)))
    s = np.float32(small / (_TWO + small))
    square = np.float32(s * s)
    series = np.float32(_S15 * square + _S13)
    series = np.float32(series * square + _S11)
    series = np.float32(series * square + _S9)
    series = np.float32(series * square + _S7)
    series = np.float32(series * square + _S5)
    series = np.float32(series * square + _S3)
    series = np.float32(series * square + _ONE)
    softplus = np.float32(_TWO * s * series) + (logit if logit > _ZERO else _ZERO)
    root = np.float32(np.sqrt(np.float32(softplus)))
    return exp_f32(np.float32(_HALF * logit)) if logit < _LOWEST else root


@leaf
def _score(logits: F32) -> None:
    for expert in range(logits.size):
        logits[expert] = _affinity(logits[expert])


@leaf
def _choose(affinities: F32, bias: F32, chosen: I32) -> None:
    """Write the experts of the highest biased affinities, equal ones from the lowest up."""
    keys = np.empty(affinities.size, np.int64)
    for expert in range(affinities.size):
        # ordered as the floats are; whole numbers are compared in vectors, floats are not
        bits = np.int64(np.float32(affinities[expert] + bias[expert]).view(np.int32))
        ordered = bits if bits >= 0 else np.int64(-0x80000000) - bits
        keys[expert] = ordered * np.int64(1 << 32) + (np.int64(0xFFFFFFFF) - expert)
    taken = np.int64(-(1 << 62)) * 2
    for slot in range(chosen.size):
        best = keys[0]
        for expert in range(1, keys.size):
            best = max(best, keys[expert])
        number = np.int64(0xFFFFFFFF) - (best & np.int64(0xFFFFFFFF))
        keys[number] = taken
        chosen[slot] = number


@leaf
def _sort(chosen: I32, weights: F32, experts: I32, shares: F32) -> None:
    """Sort experts, and their weights with them, by insertion."""
    for slot in range(chosen.size):
        number, weight = chosen[slot], weights[slot]
        place = slot
        while place > 0 and experts[place - 1] > number:
            experts[place], shares[place] = experts[place - 1], shares[place - 1]
            place -= 1
        experts[place], shares[place] = number, weight


@kernel("f32[2], f32[1], f32, i64, i32[2], f32[2], i32[2], f32[2]")
def route(
    logits: F32,
    bias: F32,
    route_scale: np.float32,
    hashed: int,
    chosen: I32,
    weights: F32,
    experts: I32,
    shares: F32,
    token: int,
) -> None:
    """Choose experts (unless a hash table did) and weigh them; a unit is a token.

    Parameters
    ----------
    logits
        float32 [n_tokens, n_experts]; become affinities, sqrt(softplus(logits)).
    bias
        float32 [n_experts], added for the choice only; not read if `hashed`.
    route_scale
        routed_scaling_factor.
    hashed
        `chosen` is given; otherwise it is written: the highest biased affinities,
        descending, equal ones from the lowest expert up.
    chosen
        int32 [n_tokens, num_experts_per_tok].
    weights
        Written: float32, the shape of chosen; they sum to route_scale.
    experts, shares
        Written: chosen and weights in ascending order of experts.
    """
    affinities = logits[token]
    _score(affinities)
    if not hashed:
        _choose(affinities, bias, chosen[token])
    weight_sum = np.float32(0)
    for slot in range(chosen.shape[1]):
        weight_sum += affinities[chosen[token, slot]]
    for slot in range(chosen.shape[1]):
        weight = affinities[chosen[token, slot]] / weight_sum
        weights[token, slot] = weight * route_scale
    _sort(chosen[token], weights[token], experts[token], shares[token])


@leaf
def _activated(
    gate: np.float32, up: np.float32, weight: np.float32, limit: np.float32
) -> np.float32:
    # comparisons with a NaN are false, so it stays
    g = limit if gate > limit else gate
    u = limit if up > limit else up
    u = -limit if u < -limit else u
    silu = np.float32(g / (_ONE + exp_f32(np.float32(-g))))
    return np.float32(weight * np.float32(silu * u))


@kernel("f32[2], f32[2], f32[1], f32, i64, i64, i64, f32[2]")
def _activate(
    gate: F32,
    up: F32,
    weights: F32,
    limit: np.float32,
    trained: int,
    per_row: int,
    size: int,
    out: F32,
    unit: int,
) -> None:
    row, first, last = slice_of(unit, per_row, size, out.shape[1])
    gates, ups, target = gate[row, first:last], up[row, first:last], out[row, first:last]
    weight = weights[row]
    for i in range(target.size):
        target[i] = _activated(gates[i], ups[i], weight, limit)
    if trained:
        for i in range(target.size):
            target[i] = round_bf16(target[i])


def record_activation(
    program: Program, gate: F32, up: F32, weights: F32, limit: float, trained: bool, out: F32
) -> None:
    """Record SwiGLU with clamps, times the routing weight: out = weight * silu(gate) * up.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    gate, up
        float32 [n_rows, moe_intermediate_size].
    weights
        float32 [n_rows].
    limit
        swiglu_limit: gate is bounded above, up on both sides; infinity for no limit.
    trained
        Round the result to BF16.
    out
        Written: float32, the shape of gate; may be gate itself.
    """
    slices = Slices.of(*out.shape)
    cut = slices.per_row, slices.size
    units = len(out) * slices.per_row
    program.add(_activate, units, gate, up, weights, limit, int(trained), *cut, out)


@leaf
def _add(row: F32, total: F32) -> None:
    for i in range(total.size):
        total[i] += row[i]


@kernel("f32[2], i32[2], i64, i64, f32[2], i64, i64, i64, i64, f32[2]")
def _add_experts(
    rows: F32,
    places: I32,
    first_row: int,
    begins: int,
    shared: F32,
    ends: int,
    trained: int,
    per_row: int,
    size: int,
    total: F32,
    unit: int,
) -> None:
    token, first, last = slice_of(unit, per_row, size, total.shape[1])
    target = total[token, first:last]
    if begins:
        for i in range(target.size):
            target[i] = 0
    for slot in range(places.shape[1]):
        row = places[token, slot] - first_row
        if 0 <= row < rows.shape[0]:
            _add(rows[row, first:last], target)
    if ends:
        _add(shared[token, first:last], target)
        if trained:
            for i in range(target.size):
                target[i] = round_bf16(target[i])


def record_addition(
    program: Program,
    rows: F32,
    places: I32,
    first_row: int,
    begins: bool,
    shared: F32,
    ends: bool,
    trained: bool,
    total: F32,
) -> None:
    """Record adding experts' results to the tokens that asked for them.

    Parameters
    ----------
    program
        Gets a task in its last phase.
    rows
        float32 [n_rows, hidden_size], results side by side, expert after expert.
    places
        int32 [n_tokens, num_experts_per_tok], ascending: the rows of a token's results.
    first_row
        The number that the first row has in `places`; rows outside are another call's.
    begins
        The sum begins here, at zero.
    shared
        float32 [n_tokens, hidden_size], the shared expert's results.
    ends
        The sum ends here: `shared` is added as the last of it.
    trained
        Round the sum to BF16 when it ends.
    total
        Written: float32 [n_tokens, hidden_size].
    """
    slices = Slices.of(*total.shape)
    program.add(
        _add_experts,
        len(total) * slices.per_row,
        rows,
        places,
        first_row,
        int(begins),
        shared,
        int(ends),
        int(trained),
        slices.per_row,
        slices.size,
        total,
    )
