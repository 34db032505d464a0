"""The mixture of experts of one layer over a chunk.

Follows forward.md section 7.  Asks the expert store for routed experts one at a time, in
ascending order, so that sums come out the same wherever the experts come from.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.config import ModelConfig
from localv4.experts import ExpertStore
from localv4.kernels.matmul import Lanes, arrange, matmul
from localv4.kernels.moe import activate, route, score
from localv4.quant import bf16
from localv4.step import Step
from localv4.weights import ExpertWeights, GateWeights

__all__ = ["MixtureOfExperts"]

F32 = NDArray[np.float32]
I32 = NDArray[np.int32]


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

    def forward(self, x: F32, step: Step) -> F32:
        """Send every token of a chunk through its experts and the shared one.

        Parameters
        ----------
        x
            float32 [n_tokens, d], the normalised input of the sublayer.
        step
            The chunk; hash layers read its ids.

        Returns
        -------
        float32 [n_tokens, d].
        """
        chosen, weights = self._route(x, step)
        step.note("router_indices", self.layer, chosen)
        step.note("router_weights", self.layer, weights)
        inputs: dict[str, Lanes] = {}

        def lanes_for(expert: ExpertWeights) -> Lanes:
            order = expert.w1.lanes
            if order not in inputs:
                inputs[order] = arrange(x, order, step.trained)
            return inputs[order]

        total = np.zeros_like(x)
        for number in np.unique(chosen):
            tokens, slots = np.nonzero(chosen == number)
            expert = self.store.get(self.layer, int(number))
            lanes = lanes_for(expert).take(tokens)
            total[tokens] += self._expert(expert, lanes, weights[tokens, slots], step)
        every = np.ones(step.n_tokens, np.float32)
        total += self._expert(self.shared, lanes_for(self.shared), every, step)
        return bf16.round(total) if step.trained else total

    def _route(self, x: F32, step: Step) -> tuple[I32, F32]:
        """Return experts and weights of every token, [n_tokens, num_experts_per_tok] each."""
        gate = self.gate
        affinities = matmul(arrange(x, "bf16", quantised=False), gate.weight, rounds=False)
        score(affinities)
        shape = (step.n_tokens, self.config.num_experts_per_tok)
        weights = np.empty(shape, np.float32)
        scale = np.float32(self.config.routed_scaling_factor)
        if gate.tid2eid is not None:
            chosen = np.ascontiguousarray(gate.tid2eid[step.ids], np.int32)
            route(affinities, np.empty(0, np.float32), scale, True, chosen, weights)
        else:
            assert gate.bias is not None
            chosen = np.empty(shape, np.int32)
            route(affinities, gate.bias, scale, False, chosen, weights)
        return chosen, weights

    def _expert(self, expert: ExpertWeights, x: Lanes, weights: F32, step: Step) -> F32:
        """Run one expert; the routing weight enters before w2."""
        gated = matmul(x, expert.w1, rounds=step.trained)
        up = matmul(x, expert.w3, rounds=step.trained)
        limit = np.float32(self.config.swiglu_limit)
        activate(gated, up, np.ascontiguousarray(weights), limit, step.trained, gated)
        lanes = arrange(gated, expert.w2.lanes, step.trained)
        return matmul(lanes, expert.w2, rounds=step.trained)
