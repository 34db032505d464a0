"""The mixture of experts of one layer over a chunk.

The gate and the shared expert's first products are recorded in a program of the caller's; what
follows depends on the experts that the gate chose.  For one token it is recorded once, and the
chosen experts' matrices are put into it.  A longer chunk's tokens are sorted by expert, and
the experts pass in groups, so that each one's weights are read once and the rows in between
need bounded room.

Where experts have to be read first, those of one token are computed as they arrive, each into
a row of its own, and added when all are there; those of a chunk pass in ascending order, a few
at a time.

Follows forward.md section 7.  Sums are in ascending order of the experts' numbers, the shared one
last, wherever and whenever the experts come.
"""

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.expert_programs import ExpertPrograms
from localv4.experts import ExpertStore, Loan
from localv4.kernels.arrays import address
from localv4.kernels.binding import record_binding
from localv4.kernels.launch import Program, Task
from localv4.kernels.matmul import retarget
from localv4.step import Step
from localv4.weights import ExpertWeights, GateWeights
from localv4.workspace import Workspace

__all__ = ["ExpertsPass", "MixtureOfExperts"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]

_FORESEEN = 4  # experts to expect of those that the next gate names: more are too often wrong
_NEARLY_ALL = 3  # times as many choices as experts leave out one in twenty


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

    Attributes
    ----------
    following
        The next layer's, or None.
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
        self.following: MixtureOfExperts | None = None

    @property
    def gate_ahead(self) -> GateWeights | None:
        """The next layer's gate, if it is worth asking while this one's experts are read."""
        following = self.following
        if following is None or not self.store.looks_ahead or following.gate.tid2eid is not None:
            return None
        return following.gate

    def expect(self, step: Step) -> None:
        """Tell the store which experts a chunk will want here, as far as that is known before.

        A hash layer's are known from the tokens.  A long chunk wants nearly all.
        """
        table, n_experts = self.gate.tid2eid, self.config.n_routed_experts
        if not self.store.looks_ahead:
            return
        if table is not None:
            self.store.expect(self.layer, np.unique(table[step.ids]).tolist())
        elif step.n_tokens * self.config.num_experts_per_tok >= _NEARLY_ALL * n_experts:
            self.store.expect(self.layer, range(n_experts))

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


@dataclass(frozen=True, eq=False)
class _Single:
    """A program of some of one token's experts, with the tasks of w1, w3 and w2 of each."""

    program: Program
    tasks: list[list[Task]]


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
        self._experts = experts
        self._workspace = workspace
        self._programs = ExpertPrograms(
            experts.config,
            experts.gate,
            experts.shared,
            experts.store.format,
            x,
            out,
            workspace,
            then,
            experts.gate_ahead if workspace.n_tokens == 1 else None,
            f"experts chosen {experts.layer}" if experts.gate.tid2eid is not None else None,
        )
        self._programs.record_gate(program)
        n_chosen = experts.config.num_experts_per_tok
        self._singles: dict[tuple[int, int, bool], _Single] = {}
        self._sum: Program | None = None
        self._tokens = np.zeros(n_chosen, np.int32)
        self._shares = np.zeros(n_chosen, np.float32)
        self._places = np.zeros((1, n_chosen), np.int32)

    def prepare(self, step: Step) -> None:
        """Look up a hash layer's experts; before the program is run."""
        table = self._experts.gate.tid2eid
        if table is not None:
            self._programs.chosen[:] = table[step.ids]

    def go_on(self, program: Program, stops: NDArray[np.int64], bound: I32) -> None:
        """Record one token's experts, and what follows, behind the choice.

        Parameters
        ----------
        program
            The one that has the choice; it must end where the first of `stops` is not 0.
        stops
            int64 [2]: the first becomes the layer's number + 1 if the store has to be asked, for
            an expert that was chosen, or one that the next layer is likely to choose; see
            `record_binding` and `answer`.
        bound
            int32 [num_experts_per_tok], written: experts that were found without asking.
        """
        store, layer, programs = self._experts.store, self._experts.layer, self._programs
        table, n_chosen = store.table(layer), self._tokens.size
        looks_ahead = self._experts.gate_ahead is not None
        foreseen = programs.foreseen[0, : _FORESEEN if looks_ahead else 0]
        following = store.table(layer + 1) if looks_ahead else table
        targets = record_binding(
            program, programs.experts, table, foreseen, following, bound, layer + 1, stops
        )
        parts = [slice(n, n + 1) for n in range(n_chosen)]
        # the program puts the chosen ones in their place
        group, shares = [store.example(layer)] * n_chosen, programs.shares.reshape(-1)
        tasks = programs.record_experts(program, group, parts, self._tokens, shares, 0, True)
        targets[:] = [[address(task.words) for task in expert] for expert in tasks]
        programs.record_sum(program, n_chosen, np.arange(n_chosen, dtype=np.int32)[None])

    def answer(self) -> bool:
        """Ask the store for one token's experts, where the program of `go_on` has stopped.

        Returns
        -------
        True if the program can go on with them; false if they had to be waited for and were run
        here, with all that follows.
        """
        return self._run_single(may_bind=True)

    def run(self, step: Step) -> None:
        """Run the chosen experts, the shared one and what follows."""
        layer, programs = self._experts.layer, self._programs
        step.note("router_indices", layer, programs.chosen)
        step.note("router_weights", layer, programs.weights)
        if step.n_tokens == 1:
            self._run_single(may_bind=False)
        else:
            self._run_chunk(step)

    def _run_single(self, may_bind: bool) -> bool:
        """Run one token's experts: all at once if they are there, else as they come.

        With `may_bind`, those that are all there are left to the caller's program; return that.
        """
        numbers = self._programs.experts[0].tolist()
        experts = sorted(set(numbers))  # a hash table may name an expert twice
        indices = [experts.index(number) for number in numbers]
        counts = [numbers.count(expert) for expert in experts]
        store, layer = self._experts.store, self._experts.layer
        with store.lend(layer, experts, counts) as loan:
            if self._experts.gate_ahead is not None:
                foreseen = self._programs.foreseen[0, :_FORESEEN].tolist()
                store.expect(layer + 1, sorted(foreseen))
            waiting = [place for place, index in enumerate(indices) if not loan.ready(index)]
            ready = [place for place in range(len(indices)) if place not in waiting]
            group = [loan.get(indices[place]) for place in ready]
            if may_bind and not waiting:
                return True
            self._run_rows(ready, 0, group, True)
            row = len(ready)
            while waiting:
                index = loan.first_ready({indices[place] for place in waiting})
                landed = next(place for place in waiting if indices[place] == index)
                waiting.remove(landed)
                self._run_rows([landed], row, [loan.get(index)], False)
                row += 1
            if len(ready) < len(indices):
                self._run_sum()
        return False

    def _run_rows(
        self, places: list[int], first: int, group: list[ExpertWeights], shared: bool
    ) -> None:
        """Run some of one token's experts.

        Parameters
        ----------
        places
            Theirs among the token's experts.
        first
            The row of the first one's result; the others follow.
        group
            The experts.
        shared
            Also run the shared one; if these are all experts, what follows them as well.
        """
        rows = slice(first, first + len(group))
        self._shares[rows] = self._programs.shares[0, places]
        self._places[0, places] = np.arange(rows.start, rows.stop)
        key = first, len(group), shared
        single = self._singles.get(key)
        if single is None:
            single = self._singles[key] = self._record_rows(rows, group, shared)
        else:
            for expert, (gate, up, down) in zip(group, single.tasks, strict=True):
                retarget(gate, expert.w1)
                retarget(up, expert.w3)
                retarget(down, expert.w2)
        self._workspace.run(single.program)

    def _record_rows(self, rows: slice, group: list[ExpertWeights], shared: bool) -> "_Single":
        program, parts = Program(), [slice(n, n + 1) for n in range(len(group))]
        tasks = self._programs.record_experts(
            program, group, parts, self._tokens[rows], self._shares[rows], rows.start, shared
        )
        if len(group) == self._places.size:
            self._programs.record_sum(program, len(group), self._places)
        return _Single(program, tasks)

    def _run_sum(self) -> None:
        """Add one token's results, which lie in the order in which they came."""
        if self._sum is None:
            self._sum = Program()
            self._programs.record_sum(self._sum, self._places.size, self._places)
        self._workspace.run(self._sum)

    def _run_chunk(self, step: Step) -> None:
        """Sort tokens by expert; run as many experts at a time as there are and have room."""
        chosen, shares = self._programs.experts, self._programs.shares
        by_row, n_slots = chosen.reshape(-1), chosen.shape[1]
        order = np.argsort(by_row, kind="stable")
        places = np.empty(chosen.shape, np.int32)
        places.reshape(-1)[order] = np.arange(order.size, dtype=np.int32)
        rows = _Rows((order // n_slots).astype(np.int32), shares.reshape(-1)[order], places)
        numbers, starts = np.unique(by_row[order], return_index=True)
        counts = np.diff(starts, append=order.size)
        store, layer = self._experts.store, self._experts.layer
        with store.lend(layer, numbers.tolist(), counts.tolist()) as loan:
            group: list[tuple[int, ExpertWeights]] = []
            bounds = [0]
            for index, (start, end) in enumerate(pairwise([*starts.tolist(), order.size])):
                # a hash table may name an expert twice: no more rows at a time than tokens
                for last in [*range(start + len(places), end, len(places)), end]:
                    full = last - bounds[0] > self._programs.room or len(group) == loan.most
                    if group and (full or not loan.ready(index)):
                        self._run_group(group, bounds, rows, loan, index, step)
                        group, bounds = [], bounds[-1:]
                    group.append((index, loan.get(index)))
                    bounds.append(last)
            self._run_group(group, bounds, rows, loan, numbers.size, step)

    def _run_group(
        self,
        group: list[tuple[int, ExpertWeights]],
        bounds: list[int],
        rows: _Rows,
        loan: Loan,
        following: int,
        step: Step,
    ) -> None:
        """Run some experts of a chunk, and give back those before the following one.

        Parameters
        ----------
        group
            Experts in ascending order, with their numbers in the loan.
        bounds
            Where each one's rows begin, and the end.
        rows
            Those of all experts.
        loan
            Whose experts they are.
        following
            Number of the next one; it may be the last one of the group, with more rows.
        step
            The chunk.
        """
        if loan.asked and self._experts.following is not None:
            self._experts.following.expect(step)
        program = Program()
        first, end = bounds[0], bounds[-1]
        last = end == rows.tokens.size
        parts = [slice(a - first, b - first) for a, b in pairwise(bounds)]
        self._programs.record_experts(
            program,
            [expert for _, expert in group],
            parts,
            rows.tokens[first:end],
            rows.shares[first:end],
            with_shared=last,
        )
        self._programs.record_sum(program, end - first, rows.places, first, last)
        self._workspace.run(program)
        for index, _ in group:
            if index < following:
                loan.done(index)
