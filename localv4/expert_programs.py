"""Programs of one layer's experts: what is recorded, for any tokens and experts.

The gate and the shared expert's first products do not depend on the choice of experts; products
with routed experts are recorded for those that somebody else chose, into rows of buffers that all
layers share.  Follows forward.md section 7.  Knows nothing of where experts come from or when.
"""

from collections.abc import Callable
from dataclasses import replace
from itertools import chain

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.kernels.lanes import packing_bytes
from localv4.kernels.launch import Program, Task
from localv4.kernels.matmul import Lanes, arrange, multiply
from localv4.kernels.moe import record_activation, record_addition, route
from localv4.weights import ExpertWeights, GateWeights
from localv4.workspace import Workspace

__all__ = ["GROUP_ROWS", "ExpertPrograms", "packing_room"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

GROUP_ROWS = 2048  # rows (a token with one of its experts) that pass together
_NO_BIAS = np.zeros(0, np.float32)


def _activations(config: ModelConfig, workspace: Workspace, name: str, n_rows: int) -> list[F32]:
    """Return buffers for what w1, w3 and w2 give."""
    sizes = config.moe_intermediate_size, config.moe_intermediate_size, config.hidden_size
    names = f"{name}_gate", f"{name}_up", f"{name}_out"
    return [workspace.f32(n, n_rows, size) for n, size in zip(names, sizes, strict=True)]


def packing_room(config: ModelConfig, order: str, n_tokens: int) -> int:
    """Return the bytes in which a chunk's tokens are packed for the experts (`Lanes.take`).

    `order` is the format of the experts.
    """
    n_slots, n_experts = config.num_experts_per_tok, config.n_routed_experts
    n_rows = min(n_tokens * n_slots, max(GROUP_ROWS, n_tokens))
    n_parts = min(n_rows, n_experts + n_slots)
    parts_of = -(-n_tokens * n_slots // n_experts)
    return max(
        packing_bytes(order, size, parts_of, n_parts, n_rows)
        for size in (config.hidden_size, config.moe_intermediate_size)
    )


class ExpertPrograms:
    """What one layer's experts record for chunks of the workspace's number of tokens.

    Parameters
    ----------
    config
        The model.
    gate, shared
        Weights of the gate and of the shared expert.
    order
        Format of routed experts.
    x
        float32 [n_tokens, d], the normalised input of the sublayer.
    out
        Written: the same shape.
    workspace
        Buffers.
    then
        Records what follows when `out` is complete, in the program it is given.
    ahead
        The next layer's gate, to be asked what it would choose for the same input; or None.
    given
        Name of a buffer of its own for the choice, which the caller writes; None if it is the
        gate's.

    Attributes
    ----------
    foreseen
        int32 [n_tokens, num_experts_per_tok]: what `ahead` says, the likeliest first.
    chosen, weights
        int32 and float32 [n_tokens, num_experts_per_tok]: the choice, in the gate's order.
    experts, shares
        The same in ascending order of experts.
    room
        Rows that may pass together.
    """

    def __init__(
        self,
        config: ModelConfig,
        gate: GateWeights,
        shared: ExpertWeights,
        order: str,
        x: F32,
        out: F32,
        workspace: Workspace,
        then: Callable[[Program], None],
        ahead: GateWeights | None = None,
        given: str | None = None,
    ) -> None:
        n_tokens = workspace.n_tokens
        self._ahead = ahead
        self._config = config
        self._gate = gate
        self._shared = shared
        self._order = order
        self._x = x
        self._out = out
        self._workspace = workspace
        self._then = then
        self._limit = config.swiglu_limit or np.inf
        slots = n_tokens, config.num_experts_per_tok
        self.foreseen = workspace.i32("experts foreseen", *slots)
        self.chosen = workspace.i32(given or "experts chosen", *slots)
        self.weights = workspace.f32("experts chosen weights", *slots)
        self.experts = workspace.i32("experts sorted", *slots)
        self.shares = workspace.f32("experts sorted weights", *slots)
        n_rows = n_tokens * config.num_experts_per_tok
        self.room = min(n_rows, max(GROUP_ROWS, n_tokens))
        self._rows = _activations(config, workspace, "routed", self.room)
        self._shared_rows = _activations(config, workspace, "shared", n_tokens)
        inner, trained = config.moe_intermediate_size, workspace.trained
        self._tokens_of_an_expert = -(-n_rows // config.n_routed_experts)
        self._inner = workspace.lanes(
            "routed inner", order, trained, inner, self.room, self._tokens_of_an_expert
        )
        self._shared_inner = workspace.lanes("shared inner", shared.w2.lanes, trained, inner)
        self._numbers = np.arange(self.room, dtype=np.int32)
        packing = packing_room(config, order, n_tokens) if trained else 0
        self._packed = workspace.u8("packed", packing)
        self._every = workspace.f32("shared_weights", n_tokens)
        self._every[:] = 1
        self._inputs: dict[str, Lanes] = {}

    def record_gate(self, program: Program) -> None:
        """Record the choice and the shared expert's w1 and w3."""
        x, gate, shared = self._x, self._gate, self._shared
        trained, inputs = self._workspace.trained, self._inputs
        n_tokens, size = x.shape
        program.phase("gate")
        for order in {self._order, shared.w1.lanes}:
            parts_of = None if order == shared.w1.lanes else self._tokens_of_an_expert
            inputs[order] = self._workspace.lanes("x", order, trained, size, parts_of=parts_of)
            arrange(program, x, inputs[order])
        plain = self._workspace.lanes("x", gate.weight.lanes, False, size)
        if plain not in inputs.values():
            arrange(program, x, plain)
        logits = self._workspace.f32("gate", n_tokens, gate.weight.n_rows)
        program.phase("shared")  # the longest units first, so that all threads end together
        for matrix, rows in zip((shared.w1, shared.w3), self._shared_rows, strict=False):
            multiply(program, inputs[matrix.lanes], matrix, rows, trained)
        multiply(program, plain, gate.weight, logits, rounds=False)
        ahead = self._ahead
        if ahead is not None:
            ahead_logits = self._workspace.f32("gate ahead", n_tokens, ahead.weight.n_rows)
            multiply(program, plain, ahead.weight, ahead_logits, rounds=False)
        program.phase("gate")
        chosen = self.chosen, self.weights, self.experts, self.shares
        self._record_choice(program, gate, logits, *chosen)
        if ahead is not None:
            unused = self._workspace.f32("foreseen weights", *self.weights.shape)
            sorted_too = self._workspace.i32("foreseen sorted", *self.experts.shape)
            self._record_choice(
                program, ahead, ahead_logits, self.foreseen, unused, sorted_too, unused
            )

    def _record_choice(
        self,
        program: Program,
        gate: GateWeights,
        logits: F32,
        chosen: I32,
        weights: F32,
        experts: I32,
        shares: F32,
    ) -> None:
        """Record what a gate makes of its logits; see `route`."""
        bias = _NO_BIAS if gate.bias is None else gate.bias
        factor, hashed = self._config.routed_scaling_factor, int(gate.tid2eid is not None)
        program.add(
            route, len(logits), logits, bias, factor, hashed, chosen, weights, experts, shares
        )

    def record_experts(
        self,
        program: Program,
        group: list[ExpertWeights],
        parts: list[slice],
        tokens: I32,
        shares: F32,
        first: int = 0,
        with_shared: bool = False,
    ) -> list[list[Task]]:
        """Record some experts, and the shared one if asked.

        Parameters
        ----------
        program
            Gets them.
        group
            The experts.
        parts
            The rows of each, counted from `first`.
        tokens, shares
            Token and routing weight of each row.
        first
            The buffers' first row to use.
        with_shared
            The shared expert too.

        Returns
        -------
        The tasks of w1, w3 and w2 of each expert.
        """
        trained, shared = self._workspace.trained, self._shared
        gate, up, out = (buffer[first : first + tokens.size] for buffer in self._rows)
        tasks = self._record_outer(program, group, parts, tokens, gate, up)
        program.phase("experts")
        self._record_activation(program, gate, up, shares)
        if with_shared:
            self._record_activation(
                program, self._shared_rows[0], self._shared_rows[1], self._every
            )
        program.phase("experts")
        if with_shared:
            arrange(program, self._shared_rows[0], self._shared_inner)
        inner = self._record_inner(program, gate, parts)
        program.phase("experts")
        if with_shared:  # again the longest units
            multiply(program, self._shared_inner, shared.w2, self._shared_rows[2], trained)
        for expert, part, x, started in zip(group, parts, inner, tasks, strict=True):
            started.append(multiply(program, x, expert.w2, out[part], trained))
        return tasks

    def _record_outer(
        self,
        program: Program,
        group: list[ExpertWeights],
        parts: list[slice],
        tokens: I32,
        gate: F32,
        up: F32,
    ) -> list[list[Task]]:
        """Record w1 and w3 of a group; return each expert's tasks."""
        trained = self._workspace.trained
        program.phase("experts")
        chosen = [tokens[part] for part in parts]
        inputs = self._taken(program, [self._inputs[e.w1.lanes] for e in group], chosen)
        program.phase("experts")
        tasks = [
            [
                multiply(program, x, expert.w1, gate[part], trained),
                multiply(program, x, expert.w3, up[part], trained),
            ]
            for expert, part, x in zip(group, parts, inputs, strict=True)
        ]
        for task in chain.from_iterable(tasks):
            task.ask_ahead(None)  # the phase before may choose the experts
        return tasks

    def _record_activation(self, program: Program, gate: F32, up: F32, shares: F32) -> None:
        record_activation(program, gate, up, shares, self._limit, self._workspace.trained, gate)

    def _record_inner(self, program: Program, rows: F32, parts: list[slice]) -> list[Lanes]:
        """Record putting rows into the lanes of w2; return those of each expert."""
        if not parts:
            return []
        lanes = replace(self._inner, memory=self._inner.memory[: len(rows)])
        arrange(program, rows, lanes)
        program.phase("experts")
        return self._taken(program, [lanes] * len(parts), [self._numbers[p] for p in parts])

    def _taken(self, program: Program, lanes: list[Lanes], tokens: list[I32]) -> list[Lanes]:
        """Record the choice of tokens, packed one after the other where they are packed."""
        room, taken = self._packed, []
        for each, numbers in zip(lanes, tokens, strict=True):
            taken.append(each.take(program, numbers, room))
            room = room[0 if taken[-1].blocks is None else taken[-1].blocks.nbytes :]
        return taken

    def record_sum(
        self, program: Program, n_rows: int, places: I32, first: int = 0, last: bool = True
    ) -> None:
        """Record adding results to the total, and what follows the last of them.

        Parameters
        ----------
        program
            Gets it.
        n_rows
            How many of the buffers' first rows hold results.
        places
            int32 [n_tokens, num_experts_per_tok]: the rows of every token's results, in ascending
            order of experts.
        first
            The number that the buffers' first row has in `places`.
        last
            These are the last ones: the shared expert's come on top.
        """
        program.phase("experts")
        record_addition(
            program,
            self._rows[2][:n_rows],
            places,
            first,
            first == 0,
            self._shared_rows[2],
            last,
            self._workspace.trained,
            self._out,
        )
        if last:
            self._then(program)
