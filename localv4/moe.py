"""The mixture of experts of one layer over a chunk.

The gate and the shared expert's first products are recorded in a program of the caller's; what
follows depends on the experts that the gate chose.  For one token it is recorded once, and the
chosen experts' matrices are put into it.  A longer chunk's tokens are sorted by expert, and
the experts pass in groups, so that each one's weights are read once and the rows in between
need bounded room.

Follows forward.md section 7.  Asks the expert store for routed experts in ascending order;
sums are in that order too, the shared expert last, wherever the experts come from.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.experts import ExpertStore
from localv4.kernels.lanes import packing_bytes
from localv4.kernels.launch import Program, Task
from localv4.kernels.matmul import Lanes, arrange, multiply, retarget
from localv4.kernels.moe import activate, add_experts, route
from localv4.step import Step
from localv4.weights import ExpertWeights, GateWeights
from localv4.workspace import Workspace

__all__ = ["GROUP_ROWS", "ExpertsPass", "MixtureOfExperts", "packing_room"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

GROUP_ROWS = 2048  # rows (a token with one of its experts) that pass together
_NO_BIAS = np.zeros(0, np.float32)


class MixtureOfExperts:
    """The experts of one layer.

    Parameters
    ----------
    config
        The model.
    layer
        Its number; num_hidden_layers is the MTP block.
    gate, shared
        Weights of the gate and of the shared expert.
    store
        Where routed experts come from.
    """

    def __init__(
        self,
        config: ModelConfig,
        layer: int,
        gate: GateWeights,
        shared: ExpertWeights,
        store: ExpertStore,
    ) -> None:
        self.config = config
        self.layer = layer
        self.gate = gate
        self.shared = shared
        self.store = store

    def record(
        self,
        program: Program,
        x: F32,
        out: F32,
        workspace: Workspace,
        then: Callable[[Program], None],
    ) -> "ExpertsPass":
        """Record sending every token through its experts and the shared one.

        Parameters
        ----------
        program
            Gets all that does not depend on the choice, the choice included.
        x
            float32 [n_tokens, d], the normalised input of the sublayer.
        out
            Written: the same shape.
        workspace
            Buffers.
        then
            Records what follows when `out` is complete, in the program it is given.

        Returns
        -------
        What to prepare before the program is run, and to run after it.
        """
        return ExpertsPass(self, program, x, out, workspace, then)


@dataclass(frozen=True, eq=False)
class _Rows:
    """Rows, each a token with one of its experts, sorted by expert.

    Attributes
    ----------
    tokens, shares
        int32 and float32 [n_rows]: each row's token and routing weight.
    places
        int32 [n_tokens, num_experts_per_tok], ascending: the rows of every token.
    """

    tokens: I32
    shares: F32
    places: I32


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


class ExpertsPass:
    """The experts of one layer for chunks of the workspace's number of tokens."""

    def __init__(
        self,
        experts: MixtureOfExperts,
        program: Program,
        x: F32,
        out: F32,
        workspace: Workspace,
        then: Callable[[Program], None],
    ) -> None:
        config, n_tokens = experts.config, workspace.n_tokens
        self._experts = experts
        self._workspace = workspace
        self._out = out
        self._then = then
        self._limit = config.swiglu_limit or np.inf
        slots = n_tokens, config.num_experts_per_tok
        self._chosen = workspace.i32("experts chosen", *slots)
        self._weights = workspace.f32("experts chosen weights", *slots)
        self._sorted = workspace.i32("experts sorted", *slots)
        self._shares = workspace.f32("experts sorted weights", *slots)
        n_rows = n_tokens * config.num_experts_per_tok
        self._room = min(n_rows, max(GROUP_ROWS, n_tokens))
        self._routed = _activations(config, workspace, "routed", self._room)
        self._shared = _activations(config, workspace, "shared", n_tokens)
        inner, trained = config.moe_intermediate_size, workspace.trained
        order, shared_order = experts.store.format, experts.shared.w2.lanes
        self._tokens_of_an_expert = -(-n_rows // config.n_routed_experts)
        self._inner = workspace.lanes(
            "routed inner", order, trained, inner, self._room, self._tokens_of_an_expert
        )
        self._shared_inner = workspace.lanes("shared inner", shared_order, trained, inner)
        self._numbers = np.arange(self._room, dtype=np.int32)
        packing = packing_room(config, order, n_tokens) if trained else 0
        self._packed = workspace.u8("packed", packing)
        self._every = workspace.f32("shared_weights", n_tokens)
        self._every[:] = 1
        self._inputs = self._record_gate(program, x)
        self._single: tuple[Program, list[list[Task]]] | None = None
        self._single_rows = _Rows(
            np.zeros(n_rows, np.int32),
            self._shares.reshape(-1),
            np.arange(n_rows, dtype=np.int32).reshape(slots),
        )

    def prepare(self, step: Step) -> None:
        """Look up a hash layer's experts; before the program is run."""
        table = self._experts.gate.tid2eid
        if table is not None:
            self._chosen[:] = table[step.ids]

    def run(self, step: Step) -> None:
        """Run the chosen experts, the shared one and what follows."""
        layer = self._experts.layer
        step.note("router_indices", layer, self._chosen)
        step.note("router_weights", layer, self._weights)
        if step.n_tokens == 1:
            self._run_single()
        else:
            for program in self._groups():
                self._workspace.run(program)

    def _record_gate(self, program: Program, x: F32) -> dict[str, Lanes]:
        """Record the choice and the shared expert's w1 and w3; return x in the experts' lanes."""
        experts, trained = self._experts, self._workspace.trained
        gate, shared = experts.gate, experts.shared
        n_tokens, size = x.shape
        program.phase("gate")
        inputs = {}
        for order in {experts.store.format, shared.w1.lanes}:
            parts_of = None if order == shared.w1.lanes else self._tokens_of_an_expert
            lanes = self._workspace.lanes("x", order, trained, size, parts_of=parts_of)
            inputs[order] = lanes
            arrange(program, x, inputs[order])
        plain = self._workspace.lanes("x", gate.weight.lanes, False, size)
        if plain not in inputs.values():
            arrange(program, x, plain)
        logits = self._workspace.f32("gate", n_tokens, gate.weight.n_rows)
        program.phase("experts")
        multiply(program, plain, gate.weight, logits, rounds=False)
        for matrix, rows in zip((shared.w1, shared.w3), self._shared, strict=False):
            multiply(program, inputs[matrix.lanes], matrix, rows, trained)
        program.phase("gate")
        program.add(
            route,
            n_tokens,
            logits,
            _NO_BIAS if gate.bias is None else gate.bias,
            experts.config.routed_scaling_factor,
            int(gate.tid2eid is not None),
            self._chosen,
            self._weights,
            self._sorted,
            self._shares,
        )
        return inputs

    def _run_single(self) -> None:
        """Put the chosen experts' matrices into the program of one token and run it."""
        get, layer = self._experts.store.get, self._experts.layer
        chosen = [get(layer, number) for number in self._sorted[0].tolist()]
        if self._single is None:
            program = Program()
            bounds = list(range(len(chosen) + 1))
            self._single = program, self._record_group(program, chosen, bounds, self._single_rows)
        else:
            for expert, (gate, up, down) in zip(chosen, self._single[1], strict=True):
                retarget(gate, expert.w1)
                retarget(up, expert.w3)
                retarget(down, expert.w2)
        self._workspace.run(self._single[0])

    def _groups(self) -> Iterator[Program]:
        """Sort tokens by expert; record as many experts at a time as there is room for."""
        n_slots = self._sorted.shape[1]
        by_row = self._sorted.reshape(-1)
        order = np.argsort(by_row, kind="stable")
        places = np.empty(self._sorted.shape, np.int32)
        places.reshape(-1)[order] = np.arange(order.size, dtype=np.int32)
        rows = _Rows((order // n_slots).astype(np.int32), self._shares.reshape(-1)[order], places)
        numbers, starts = np.unique(by_row[order], return_index=True)
        group: list[ExpertWeights] = []
        bounds = [0]
        for number, start, end in zip(numbers, starts, [*starts[1:], order.size], strict=True):
            # a hash table may name an expert twice: no more rows at a time than tokens
            for last in [*range(start + len(places), end, len(places)), end]:
                if last - bounds[0] > self._room:
                    yield self._group(group, bounds, rows)
                    group, bounds = [], bounds[-1:]
                group.append(self._experts.store.get(self._experts.layer, int(number)))
                bounds.append(int(last))
        yield self._group(group, bounds, rows)

    def _group(self, group: list[ExpertWeights], bounds: list[int], rows: _Rows) -> Program:
        program = Program()
        self._record_group(program, group, bounds, rows)
        return program

    def _record_group(
        self, program: Program, group: list[ExpertWeights], bounds: list[int], rows: _Rows
    ) -> list[list[Task]]:
        """Record some experts; the last group brings the shared one and what follows.

        Parameters
        ----------
        group
            Experts in ascending order.
        bounds
            Where each one's rows begin, and the end.
        rows
            Those of all experts.

        Returns
        -------
        The tasks of w1, w3 and w2 of each expert.
        """
        trained, shared = self._workspace.trained, self._experts.shared
        first, end = bounds[0], bounds[-1]
        last = end == rows.tokens.size
        parts = [slice(a - first, b - first) for a, b in pairwise(bounds)]
        gate, up, out = (buffer[: end - first] for buffer in self._routed)
        tasks = self._record_outer(program, group, parts, rows.tokens[first:end], gate, up)
        program.phase("experts")
        self._record_activation(program, gate, up, rows.shares[first:end])
        if last:
            self._record_activation(program, self._shared[0], self._shared[1], self._every)
        program.phase("experts")
        if last:
            arrange(program, self._shared[0], self._shared_inner)
        inner = self._record_inner(program, gate, parts)
        program.phase("experts")
        for expert, part, x, started in zip(group, parts, inner, tasks, strict=True):
            started.append(multiply(program, x, expert.w2, out[part], trained))
        if last:
            multiply(program, self._shared_inner, shared.w2, self._shared[2], trained)
        self._record_sum(program, out, first, last, rows.places)
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
        return [
            [
                multiply(program, x, expert.w1, gate[part], trained),
                multiply(program, x, expert.w3, up[part], trained),
            ]
            for expert, part, x in zip(group, parts, inputs, strict=True)
        ]

    def _record_activation(self, program: Program, gate: F32, up: F32, shares: F32) -> None:
        trained = int(self._workspace.trained)
        program.add(activate, len(gate), gate, up, shares, self._limit, trained, gate)

    def _record_inner(self, program: Program, rows: F32, parts: list[slice]) -> list[Lanes]:
        """Record putting rows into the lanes of w2; return those of each expert."""
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

    def _record_sum(self, program: Program, out: F32, first: int, last: bool, places: I32) -> None:
        """Record adding a group's results to the total, and what follows the last group."""
        program.phase("experts")
        program.add(
            add_experts,
            len(self._out),
            out,
            places,
            first,
            int(first == 0),
            self._shared[2],
            int(last),
            int(self._workspace.trained),
            self._out,
        )
        if last:
            self._then(program)
