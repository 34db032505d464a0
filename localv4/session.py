"""One sequence of tokens with its KV state.

Feeds tokens to the model in chunks, keeps the position, takes snapshots and goes back to them.
Knows nothing of text or sampling.
"""

import time
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.checks import choice, integer_array
from localv4.errors import ContextOverflow, InvalidInput
from localv4.feeding import draft, feed
from localv4.history import History
from localv4.kv_cache import KVCache, KVMark
from localv4.kv_ledger import KVLedger
from localv4.kv_sizes import kv_bytes
from localv4.model import Model
from localv4.mtp import MtpBlock
from localv4.session_state import (
    Identity,
    refuse_other,
    save_state,
    saved_bytes,
    saved_positions,
)
from localv4.state_file import open_state
from localv4.stats import Stats
from localv4.step import Observer, Step

__all__ = ["Session", "Snapshot"]

F32 = NDArray[np.float32]
I64 = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Snapshot:
    """The state of a session at a position; `Session.restore` returns to it any number of times.

    It shares what has grown with the session, and costs a copy of the rest.
    """

    owner: object
    state: KVMark

    @property
    def position(self) -> int:
        """Tokens held."""
        return self.state.ids.size


class Session:
    """One sequence with its own KV state; made by `Engine.session`.

    Parameters
    ----------
    model, mtp
        What computes; mtp is None without a draft.
    context
        Most tokens the session may hold.
    chunk_tokens
        Most tokens that pass through the model together; decides no byte.
    trained
        Trained or float32 numerics.
    computing
        Returns a context in which kernels may run.
    ledger
        Of all KV state.
    stats
        Counters of the engine.
    identity
        Returns what saved states are known by.

    Attributes
    ----------
    context, chunk_tokens
        As given.

    Raises
    ------
    OutOfBudget
        An empty state does not fit the memory budget.
    """

    def __init__(
        self,
        model: Model,
        mtp: MtpBlock | None,
        context: int,
        chunk_tokens: int,
        trained: bool,
        computing: Callable[[], AbstractContextManager[None]],
        ledger: KVLedger,
        stats: Stats,
        identity: Callable[[], Identity],
    ) -> None:
        self.context = context
        self.chunk_tokens = chunk_tokens
        self._model = model
        self._mtp = mtp
        self._trained = trained
        self._computing = computing
        self._stats = stats
        self._identity = identity
        with_mtp = mtp is not None
        with computing():
            ledger.admit(kv_bytes(model.config, 0, trained, with_mtp))
        self._cache = KVCache(model.config, trained, with_mtp, context)
        self._history = History(self._cache, ledger)

    @property
    def position(self) -> int:
        """Tokens held."""
        return self._cache.ids.size

    @property
    def ids(self) -> list[int]:
        """The tokens held."""
        held: list[int] = self._cache.ids.tolist()
        return held

    @property
    def kv_bytes(self) -> int:
        """Bytes of KV state held; snapshots are apart."""
        return self._cache.n_bytes

    def prefill(
        self,
        ids: ArrayLike,
        logits: Literal["last", "all", "none"] = "last",
        observe: Observer | None = None,
        progress: Callable[[float], None] | None = None,
    ) -> F32:
        """Feed tokens; any split into calls gives the same bytes.

        If it is interrupted or fails, the session holds the chunks that were done, and can go on.

        Parameters
        ----------
        ids
            Token ids, at least one.
        logits
            "last" for the last token's logits, "all" for every token's, "none" for none, which
            saves the product with the output matrix.
        observe
            Called as observe(name, layer, position, array) for every layer of every chunk of
            at most `chunk_tokens` tokens; position is that of the chunk's first token.  Names:
            attn_in attn_out ffn_in ffn_out h router_indices router_weights indexer_topk
            window_kv compressed_kv indexer_kv.  Rows are tokens, for the last two the entries
            that the chunk completes; "h" of layer i is the state before block i.
        progress
            Called now and then with how many of the tokens are done, parts of a chunk by its
            layers.

        Returns
        -------
        float32 (vocab_size,), (n, vocab_size) for "all", (0,) for "none".

        Raises
        ------
        InvalidInput
            No ids, or ids outside the vocabulary.
        ContextOverflow
            More tokens than fit; nothing was fed.
        OutOfBudget
            The KV state would exceed the memory budget; whole chunks before it stay fed.
        """
        choice("logits", logits, ("last", "all", "none"))
        self._check_observer(observe)
        tokens = self._checked(ids)
        started = time.perf_counter()
        n_rows = {"last": 1, "all": tokens.size, "none": 0}[logits]
        rows = self._rows(n_rows)
        n_layers = len(self._model.blocks)
        for first in range(0, tokens.size, self.chunk_tokens):
            chunk = tokens[first : first + self.chunk_tokens]
            behind = tokens.size - first - chunk.size  # tokens of later chunks
            wanted = rows[max(n_rows - behind - chunk.size, 0) : max(n_rows - behind, 0)]
            passed = _by_layers(progress, first, chunk.size, n_layers)
            self._feed(chunk, observe, wanted, passed)
            self._stats.prefill_tokens += chunk.size
        self._stats.prefill_s += time.perf_counter() - started
        if logits == "all":
            return rows
        return np.asarray(rows[0]) if logits == "last" else np.empty(0, np.float32)

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
        self._feed(tokens, observe, logits, None)
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
        self._history.check_whole()
        if self._cache.last_hidden is None:
            raise InvalidInput("a draft follows a token; feed one with prefill first")
        ids = self._checked_ids([next_id])
        logits = self._rows(1)
        with self._computing():
            step = Step(ids, self.position - 1, self._trained, self._model.rope)
            draft(self._mtp, self._cache, step, logits)
        return np.asarray(logits[0])

    def snapshot(self) -> Snapshot:
        """Return the state, to come back to with `restore`.

        Raises
        ------
        OutOfBudget
            Its copy of what does not grow would exceed the memory budget.
        """
        self._history.check_whole()
        with self._computing():
            return Snapshot(self._model, self._history.mark())

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
        if mark.owner is not self._model or len(mark.state.rows) != len(self._cache.growing):
            raise InvalidInput("the snapshot belongs to another engine; restore it there")
        if mark.position > self.context:
            raise InvalidInput(
                f"the snapshot holds {mark.position} tokens, more than this session's context "
                f"of {self.context}; restore it in a larger one"
            )
        with self._computing():
            self._history.go_to(mark.state)

    def reset(self) -> None:
        """Forget all tokens, and what was kept."""
        self._history.reset()

    def keep(self) -> None:
        """Keep a snapshot of the present state, for `rewind`; not if memory is short."""
        self._history.check_whole()
        with self._computing():
            self._history.keep()

    def mend(self) -> None:
        """If an interrupted step left half of itself, go back to the last snapshot kept."""
        with self._computing():
            self._history.mend()

    def rewind(self, ids: ArrayLike) -> int:
        """Go back to where these tokens can be continued from with the least work.

        That is the present state or one of those kept (`keep`): the longest that is a beginning
        of `ids` and not all of it.  If none is, the session is empty afterwards.

        Returns
        -------
        How many of the tokens the session holds now.

        Raises
        ------
        InvalidInput
            Ids outside the vocabulary.
        """
        tokens = self._checked_ids(ids)
        with self._computing():
            self._history.rewind(tokens)
        return self.position

    def saved_bytes(self, facts: Mapping[str, Any] | None = None) -> int:
        """Return the size of the file that `save` would write."""
        self._history.check_whole()
        return saved_bytes(self._cache, [*self._history.kept], self._identity(), facts or {})

    def save(self, path: str | Path, facts: Mapping[str, Any] | None = None) -> int:
        """Write the state to a file, with what `keep` kept: all of it or nothing.

        `Engine.load_session` reads it again.  Costs about as much as writing it, 3.5 kB a token
        for Flash and 17 MB.

        Parameters
        ----------
        path
            The file, which is replaced; its folder must be there.
        facts
            What else the file says and can be read without the state, as JSON.

        Returns
        -------
        Bytes written.

        Raises
        ------
        InvalidInput
            The facts are no JSON.
        OutOfBudget
            The disk has no room; what was there before is untouched.
        LocalV4Error
            It cannot be written, or the state is not whole.
        """
        self._history.check_whole()
        # no step may change the state meanwhile
        with self._computing():
            kept, identity = [*self._history.kept], self._identity()
            return save_state(Path(path), self._cache, kept, identity, facts or {})

    def load(self, path: str | Path) -> None:
        """Replace the state by one that was saved, with what was kept.

        Raises
        ------
        InvalidInput
            There is no such file, or it holds more than this session's context.
        DamagedSession
            It is torn, damaged, or of another model or version; the session is empty then.
        OutOfBudget
            Its KV state would exceed the memory budget; the session is empty then.
        """
        with open_state(Path(path)) as file, self._computing():
            refuse_other(Path(path), file.head, self._identity())
            n_tokens, kept = saved_positions(Path(path), file.head)
            if n_tokens > self.context:
                raise InvalidInput(
                    f"{path} holds {n_tokens:,} tokens, more than a context of {self.context:,}; "
                    "open it with a larger one"
                )
            self._history.load(file, n_tokens, kept)

    def check_fits(self, ids: ArrayLike, rewound: bool = False) -> None:
        """Raise what `prefill` would raise for these ids before any work.

        With `rewound`, ids are all that the session will hold, as after `rewind`.
        """
        if not rewound:
            self._checked(ids)
        elif (count := self._checked_ids(ids).size) > self.context:
            raise ContextOverflow(
                f"{count:,} tokens do not fit a context of {self.context:,}; {self._advice()}"
            )

    def _rows(self, count: int) -> F32:
        """Return room for logits."""
        return np.empty((count, self._model.config.vocab_size), np.float32)

    def _feed(
        self,
        ids: I64,
        observe: Observer | None,
        logits: F32,
        passed: Callable[[int], None] | None,
    ) -> None:
        """Feed one chunk; writes the logits of its last tokens, as many as `logits` has rows."""
        with self._computing(), self._history.stepping(ids.size):
            step = Step(ids, self.position, self._trained, self._model.rope, observe, passed)
            feed(self._model, self._mtp, self._cache, step, logits)

    def _checked_ids(self, ids: ArrayLike) -> I64:
        """Return ids as int64 if they are ids of this model."""
        return integer_array("ids", ids, self._model.config.vocab_size)

    def _checked(self, ids: ArrayLike) -> I64:
        """Return ids that may be fed now."""
        self._history.check_whole()
        tokens = self._checked_ids(ids)
        if self.position + tokens.size > self.context:
            raise ContextOverflow(
                f"{tokens.size:,} tokens do not fit: the session holds {self.position:,} of at "
                f"most {self.context:,}; {self._advice()}"
            )
        return tokens

    def _advice(self) -> str:
        most = self._model.config.max_position_embeddings
        larger = " or ask for a larger context" if self.context < most else ""
        return f"shorten the input{larger}"

    @staticmethod
    def _check_observer(observe: object) -> None:
        if observe is not None and not callable(observe):
            raise InvalidInput(f"observe is {observe!r}; give a function or None")


def _by_layers(
    progress: Callable[[float], None] | None, first: int, n_tokens: int, n_layers: int
) -> Callable[[int], None] | None:
    """Return what tells the progress of a chunk from the number of layers passed."""
    if progress is None:
        return None
    return lambda n_passed: progress(first + n_tokens * n_passed / n_layers)
