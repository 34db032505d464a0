"""One sequence of tokens with its KV state.

Feeds tokens to the model in chunks, keeps the position, and takes snapshots.  Knows nothing
of text or sampling.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.checks import choice, integer_array
from localv4.errors import ContextOverflow, InvalidInput, LocalV4Error
from localv4.kv_cache import KVCache
from localv4.model import Model
from localv4.mtp import MtpBlock
from localv4.stats import Stats
from localv4.step import Observer, Step

__all__ = ["CHUNK_TOKENS", "Session", "Snapshot"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]

# Tokens that pass through the model together.  More reuse each decoded weight more often
# and need more workspace; no byte of the result depends on it.
CHUNK_TOKENS = 1024


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a session at a position; `Session.restore` returns to it any number of times."""

    owner: object
    ids: tuple[int, ...]
    cache: KVCache
    last_hidden: F32 | None


class Session:
    """One sequence with its own KV state; made by `Engine.session`.

    Parameters
    ----------
    model, mtp
        What computes; mtp is None without a draft.
    context
        Most tokens the session may hold.
    trained
        Trained or float32 numerics.
    computing
        Returns a context in which kernels may run.
    admit
        Called before a chunk and a restore with the session and the bytes of KV state it will
        hold; raises OutOfBudget.
    stats
        Counters of the engine.
    """

    def __init__(
        self,
        model: Model,
        mtp: MtpBlock | None,
        context: int,
        trained: bool,
        computing: Callable[[], AbstractContextManager[None]],
        admit: Callable[["Session", int], None],
        stats: Stats,
    ) -> None:
        self.context = context
        self._model = model
        self._mtp = mtp
        self._trained = trained
        self._computing = computing
        self._admit = admit
        self._stats = stats
        self._cache = KVCache.empty(model.config, trained, mtp is not None)
        self._ids: list[int] = []
        self._last_hidden: F32 | None = None
        self._torn = False
        self._admitted: int | None = None

    @property
    def position(self) -> int:
        """Tokens held."""
        return len(self._ids)

    @property
    def ids(self) -> list[int]:
        """The tokens held."""
        return self._ids.copy()

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV state held, room for growth included."""
        return self._cache.n_bytes

    def prefill(
        self,
        ids: ArrayLike,
        logits: Literal["last", "all"] = "last",
        observe: Observer | None = None,
    ) -> F32:
        """Feed tokens; any split into calls gives the same bytes.

        Parameters
        ----------
        ids
            Token ids, at least one.
        logits
            "last" for the last token's logits, "all" for every token's.
        observe
            Called as observe(name, layer, position, array) for every layer of every chunk of
            at most `CHUNK_TOKENS` tokens; position is that of the chunk's first token.  Names:
            attn_in attn_out ffn_in ffn_out h router_indices router_weights indexer_topk
            window_kv compressed_kv indexer_kv.  Rows are tokens, for the last two the entries
            that the chunk completes; "h" of layer i is the state before block i.

        Returns
        -------
        float32 (vocab_size,), or (n, vocab_size) for "all".

        Raises
        ------
        InvalidInput
            No ids, or ids outside the vocabulary.
        ContextOverflow
            More tokens than fit; nothing was fed.
        OutOfBudget
            The KV state would exceed the memory budget; whole chunks before it stay fed.
        """
        choice("logits", logits, ("last", "all"))
        self._check_observer(observe)
        tokens = self._checked(ids)
        started = time.perf_counter()
        every = self._rows(tokens.size if logits == "all" else 1)
        for first in range(0, tokens.size, CHUNK_TOKENS):
            chunk = tokens[first : first + CHUNK_TOKENS]
            if logits == "all":
                rows = every[first : first + chunk.size]
            else:
                rows = every[int(first + chunk.size < tokens.size) :]
            with self._stepping(chunk.size):
                self._feed(chunk, observe, rows)
        self._stats.prefill_tokens += tokens.size
        self._stats.prefill_s += time.perf_counter() - started
        return every if logits == "all" else np.asarray(every[0])

    def decode(self, token_id: int, observe: Observer | None = None) -> F32:
        """Feed one token and return the next one's logits, float32 (vocab_size,).

        Raises
        ------
        InvalidInput, ContextOverflow, OutOfBudget
            As `prefill`.
        """
        self._check_observer(observe)
        tokens = self._checked([token_id])
        started = time.perf_counter()
        logits = self._rows(1)
        with self._stepping(1):
            self._feed(tokens, observe, logits)
        self._stats.decode_tokens += 1
        self._stats.decode_s += time.perf_counter() - started
        return np.asarray(logits[0])

    def draft(self, next_id: int) -> F32:
        """Return logits for the token after `next_id`, which follows the last token fed.

        Does not move the session.

        Returns
        -------
        float32 (vocab_size,).

        Raises
        ------
        InvalidInput
            The engine was loaded without ``draft="mtp"``, or nothing was fed yet.
        """
        if self._mtp is None:
            raise InvalidInput('a draft needs an engine loaded with draft="mtp"')
        self._check_whole()
        if self._last_hidden is None:
            raise InvalidInput("a draft follows a token; feed one with prefill first")
        ids = self._checked_ids([next_id])
        with self._computing():
            step = Step(ids, self.position - 1, self._trained, self._model.rope)
            scratch = self._cache.layers[-1].copy()
            logits = self._rows(1)
            hidden = self._mtp.forward(self._last_hidden, scratch, step)
            self._mtp.logits(hidden, self._trained, logits)
            return np.asarray(logits[0])

    def snapshot(self) -> Snapshot:
        """Return a copy of the state, to come back to with `restore`."""
        self._check_whole()
        return Snapshot(self._model, tuple(self._ids), self._cache.copy(), self._last_hidden)

    def restore(self, mark: Snapshot) -> None:
        """Return to a snapshot of this session, or of another session of the same engine.

        Raises
        ------
        InvalidInput
            The snapshot comes from another engine, or holds more than this session's context.
        OutOfBudget
            Its KV state would exceed the memory budget; the session stays as it was.
        """
        if not isinstance(mark, Snapshot):
            raise InvalidInput(f"{mark!r} is no snapshot; give what snapshot() returned")
        cache = mark.cache
        if mark.owner is not self._model or len(cache.layers) != len(self._cache.layers):
            raise InvalidInput("the snapshot belongs to another engine; restore it there")
        if len(mark.ids) > self.context:
            raise InvalidInput(
                f"the snapshot holds {len(mark.ids)} tokens, more than this session's context "
                f"of {self.context}; restore it in a larger one"
            )
        with self._computing():
            self._admit(self, cache.n_bytes)
        self._cache = cache.copy()
        self._ids = list(mark.ids)
        self._last_hidden = mark.last_hidden
        self._torn = False
        self._admitted = None

    def reset(self) -> None:
        """Forget all tokens."""
        self._cache = KVCache.empty(self._model.config, self._trained, self._mtp is not None)
        self._ids = []
        self._last_hidden = None
        self._torn = False
        self._admitted = None

    def check_fits(self, ids: ArrayLike) -> None:
        """Raise what `prefill` would raise for these ids before any work."""
        self._checked(ids)

    def _rows(self, count: int) -> F32:
        """Return room for logits."""
        return np.empty((count, self._model.config.vocab_size), np.float32)

    def _feed(self, ids: I64, observe: Observer | None, logits: F32) -> None:
        """Pass one chunk through the model, and the MTP block one token behind it.

        Writes the logits of the chunk's last tokens, as many as `logits` has rows.
        """
        step = Step(ids, self.position, self._trained, self._model.rope, observe)
        hidden = self._model.forward(self._cache, step)
        if len(logits):
            self._model.logits(hidden[len(hidden) - len(logits) :], self._trained, logits)
        if self._mtp is not None:
            last_hidden = hidden[-1:].copy()
            self._follow(hidden, ids)
            self._last_hidden = last_hidden
        self._ids += ids.tolist()

    def _follow(self, hidden: F32, ids: I64) -> None:
        """Feed the MTP block the states whose next token is known now."""
        assert self._mtp is not None
        if self._last_hidden is None:
            states, following, position = hidden[:-1].copy(), ids[1:], self.position
        else:
            states = np.concatenate([self._last_hidden, hidden[:-1]])
            following, position = ids, self.position - 1
        if following.size:
            step = Step(following, position, self._trained, self._model.rope)
            self._mtp.forward(states, self._cache.layers[-1], step)

    def _checked_ids(self, ids: ArrayLike) -> I64:
        """Return ids as int64 if they are ids of this model."""
        return integer_array("ids", ids, self._model.config.vocab_size)

    def _checked(self, ids: ArrayLike) -> I64:
        """Return ids that may be fed now."""
        self._check_whole()
        tokens = self._checked_ids(ids)
        if self.position + tokens.size > self.context:
            most = self._model.config.max_position_embeddings
            larger = " or ask for a larger context" if self.context < most else ""
            raise ContextOverflow(
                f"{tokens.size} tokens do not fit: the session holds {self.position} of at most "
                f"{self.context}; shorten the input{larger}"
            )
        return tokens

    @staticmethod
    def _check_observer(observe: object) -> None:
        if observe is not None and not callable(observe):
            raise InvalidInput(f"observe is {observe!r}; give a function or None")

    def _check_whole(self) -> None:
        if self._torn:
            raise LocalV4Error(
                "the session's state is not whole, because a step was interrupted or is still "
                "running in another thread; restore a snapshot, reset it or start a new session"
            )

    @contextmanager
    def _stepping(self, n_tokens: int) -> Iterator[None]:
        """Compute inside; a state that an exception left half updated is not used again."""
        with self._computing():
            # the KV state grows with every fourth token at most
            quarter = (self.position + n_tokens) // 4
            if quarter != self._admitted:
                self._admit(self, self._cache.n_bytes_at(self.position + n_tokens))
                self._admitted = quarter
            self._torn = True
            yield
            self._torn = False
