"""A routing trace of a real decode: prompt, sampled tokens, and what the next gates said.

Watches an engine through `observe` and changes nothing in it.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from localv4.bench.lookahead_gates import STATES, Gates, Seen
from localv4.bench.traces import NOTHING, Trace
from localv4.checkpoint import Checkpoint
from localv4.config import ModelConfig
from localv4.engine import load
from localv4.errors import ContextOverflow
from localv4.generate import default_stop_ids
from localv4.inventory import take_inventory
from localv4.sampling import Sampler, SamplingParams
from localv4.session import Session

__all__ = ["record_trace"]

PROMPT = (
    "Explain how tides come about, and why there are two a day in most places. Then tell a short "
    "story about a lighthouse keeper who notices that one of them is late."
)


class Recorder:
    """Gathers choices and predictions as an observer of a session.

    Parameters
    ----------
    config
        The model.
    gates
        Asked one layer ahead about decoded tokens.
    """

    def __init__(self, config: ModelConfig, gates: Gates) -> None:
        self._config = config
        self._gates = gates
        self._chunks: list[NDArray[np.uint16]] = []
        self._predicted: list[dict[str, NDArray[np.uint16]]] = []
        self._shown: dict[str, NDArray[np.float32]] = {}

    def __call__(self, name: str, layer: int, _position: int, array: NDArray[np.generic]) -> None:
        """Take what the engine shows."""
        if name == "router_indices":
            self._chunks[-1][:, layer] = array
        elif name in ("attn_out", "ffn_in"):
            self._shown[name] = np.asarray(array, np.float32)
        elif name == "h":
            after = np.asarray(array, np.float32)
            if layer == 0:
                self._begin(len(after))
            elif len(after) == 1:
                shown = self._shown
                seen = Seen(shown["h"], shown["attn_out"], shown["ffn_in"], after)
                self._predict(layer - 1, seen)
            self._shown["h"] = after

    def trace(self, expert_bytes: int) -> Trace:
        """Return everything that was seen."""
        config = self._config
        return Trace(
            np.concatenate(self._chunks),
            np.array([len(chunk) for chunk in self._chunks], np.int64),
            config.n_routed_experts,
            min(config.num_hash_layers, config.num_hidden_layers),
            expert_bytes,
            {name: np.concatenate([each[name] for each in self._predicted]) for name in STATES},
        )

    def _begin(self, n_tokens: int) -> None:
        config = self._config
        shape = n_tokens, config.num_hidden_layers, config.num_experts_per_tok
        self._chunks.append(np.zeros(shape, np.uint16))
        wide = *shape[:2], min(2 * shape[2], config.n_routed_experts)
        self._predicted.append({name: np.full(wide, NOTHING, np.uint16) for name in STATES})

    def _predict(self, layer: int, seen: Seen) -> None:
        """Ask the gate of the layer after this one."""
        following = layer + 1
        if not self._config.num_hash_layers <= following < self._config.num_hidden_layers:
            return
        for name, state in STATES.items():
            rows = self._predicted[-1][name]
            x = state(self._gates, layer, seen)
            rows[:, following] = self._gates.likely(following, x, rows.shape[2])


def record_trace(
    folder: Path,
    n_tokens: int,
    text: str | None = None,
    threads: int | None = None,
    memory: int | str | None = None,
    seed: int = 0,
    say: Callable[[str], None] = lambda words: None,
) -> Trace:
    """Record the answer to a prompt; the end of the answer is never sampled.

    Parameters
    ----------
    folder
        The checkpoint.
    n_tokens
        Tokens to decode.
    text
        The prompt, a message of a chat where the checkpoint has one; None for a text of ours.
    threads, memory
        As `load`.
    seed
        Of the sampling, at temperature 1.
    say
        Told what is done.

    Raises
    ------
    ContextOverflow
        Prompt and answer are more than the model takes.
    LocalV4Error
        The checkpoint cannot be run.
    """
    with (
        Checkpoint.open(folder) as checkpoint,
        load(folder, threads=threads, memory=memory) as engine,
    ):
        words = PROMPT if text is None else text
        prompt = words if engine.is_base else [{"role": "user", "content": words}]
        ids, _ = engine.prompt_format.ids(prompt, engine.default_thinking)
        most = engine.config.max_position_embeddings
        if len(ids) + n_tokens > most:
            raise ContextOverflow(
                f"{len(ids)} tokens of prompt and --tokens {n_tokens} are more than the model's "
                f"{most}; give less"
            )
        recorder = Recorder(engine.config, Gates(checkpoint))
        stop_ids = list(default_stop_ids(engine.tokenizer, engine.config.eos_token_id))
        session = engine.session(len(ids) + n_tokens)
        _decode(session, ids, n_tokens, stop_ids, seed, recorder, say)
        return recorder.trace(take_inventory(checkpoint).expert_bytes)


def _decode(
    session: Session,
    ids: Sequence[int],
    n_tokens: int,
    stop_ids: list[int],
    seed: int,
    recorder: Recorder,
    say: Callable[[str], None],
) -> None:
    say("compiling ...")
    sampler = Sampler(SamplingParams(seed=seed))
    logits = session.prefill(ids, observe=recorder)
    for number in range(n_tokens):
        say(f"token {number + 1:,} of {n_tokens:,}")
        allowed = logits.copy()
        allowed[stop_ids] = allowed.min()
        logits = session.decode(sampler.sample(allowed), observe=recorder)
