"""The engine: an open checkpoint ready to compute, and everything made from it.

`load` is the front door of the Python API.  Knows how the parts fit together and none of
their insides.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from localv4.checkpoint import Checkpoint
from localv4.checks import choice, whole_number
from localv4.config import ModelConfig
from localv4.dense import MappedWeights
from localv4.encoding import Profile, detect_profile
from localv4.errors import (
    DamagedCheckpoint,
    InvalidInput,
    LocalV4Error,
    ModelNotFound,
    OutOfBudget,
    UnsupportedModel,
)
from localv4.experts import MappedExperts
from localv4.fingerprint import fingerprint
from localv4.generate import Generation, default_stop_ids, generate
from localv4.kernels.threads import choose_threads, computing
from localv4.kv_ledger import KVLedger
from localv4.kv_sizes import kv_bytes
from localv4.limits import resident
from localv4.memory import MemoryPlan, make_plan
from localv4.model import Model
from localv4.models import resolve
from localv4.mtp import MtpBlock
from localv4.prompt import Prompt, PromptFormat
from localv4.sampling import Sampler, SamplingParams
from localv4.session import Session
from localv4.session_state import Identity
from localv4.sizes import format_bytes, parse_bytes
from localv4.stats import Stats
from localv4.streams import Streams
from localv4.teacher_forced import TeacherForced
from localv4.tokenizer import Tokenizer
from localv4.untrusted import read_object

__all__ = ["Engine", "load"]

F32 = NDArray[np.float32]
Numerics = Literal["trained", "float32"]
_PROFILES = ("preview", "official")
_LEVELS = ("off", "low", "high", "max")
_GENERATION_CONFIG_BYTES = 2**20


def _default_thinking(folder: Path) -> str:
    """Return the level that generation_config.json names, or "high"."""
    path = folder / "generation_config.json"
    level = (read_object(path, _GENERATION_CONFIG_BYTES) or {}).get("localv4_thinking", "high")
    if level not in _LEVELS:
        raise DamagedCheckpoint(
            f"{path} has localv4_thinking {level!r}; make it one of {', '.join(_LEVELS)}"
        )
    return str(level)


def load(
    path: str | Path | None = None,
    *,
    memory: int | str | None = None,
    threads: int | None = None,
    numerics: Numerics = "trained",
    draft: Literal["mtp"] | None = None,
    profile: Profile | None = None,
) -> "Engine":
    """Open a checkpoint and make it ready to compute.

    Parameters
    ----------
    path
        A folder; None for the built-in default model, which is made on first use.
    memory
        Hard budget for what the process holds (the weights' map is page cache and apart):
        bytes or a text such as "24GiB"; None takes what is available.
    threads
        Compute threads; None takes all CPUs this process may run on, but for one where experts
        are streamed and there are many.
    numerics
        "trained": activations are rounded to FP8, FP4 and BF16 where the model was trained
        with it.  "float32": nowhere; the KV state is float32 too (verification).
    draft
        "mtp" also runs the checkpoint's MTP block, for `Session.draft`.
    profile
        How reasoning effort is asked for: "preview" or "official"; None asks the checkpoint.

    Raises
    ------
    ModelNotFound, DamagedCheckpoint, UnsupportedModel
        No folder, files that contradict themselves, or another architecture.
    OutOfBudget
        The budget is too small; the message names one that is not.
    InvalidInput
        An argument is out of its range.
    """
    choice("numerics", numerics, ("trained", "float32"))
    choice("draft", draft, (None, "mtp"))
    choice("profile", profile, (None, *_PROFILES))
    choose_threads(threads)  # refuses a wish before anything is opened
    budget = None if memory is None else parse_bytes(memory)
    folder = resolve(None if path is None else str(path))
    checkpoint = Checkpoint.open(folder)
    try:
        if draft == "mtp" and checkpoint.lacks_mtp:
            raise ModelNotFound(
                f"the MTP block of {folder} was left out of the download; get it with "
                "localv4 pull --include-draft, or load it without draft"
            )
        if draft == "mtp" and not checkpoint.has_mtp:
            raise UnsupportedModel(
                f"{folder} has no MTP block that localv4 can run; load it without draft"
            )
        return Engine(checkpoint, budget, threads, numerics, draft, profile)
    except BaseException:
        checkpoint.close()
        raise


class Engine:
    """An open checkpoint; made by `load`.  A context manager.

    Attributes
    ----------
    config
        The model's sizes, frozen.
    tokenizer
        None if the checkpoint has no tokenizer.json.
    plan
        Bytes by purpose.
    numerics
        "trained" or "float32".
    profile
        Chat profile in force.
    is_base
        A Base checkpoint, which has no chat format.
    default_thinking
        Thinking level of a prompt that names none.
    threads
        Compute threads.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        budget: int | None,
        threads: int | None,
        numerics: Numerics,
        draft: Literal["mtp"] | None,
        profile: Profile | None,
    ) -> None:
        self.config: ModelConfig = checkpoint.config
        self.numerics = numerics
        self.is_base = checkpoint.expert_format == "fp8"
        self.profile: Profile = profile or detect_profile(checkpoint.path, self.config)
        self.default_thinking = _default_thinking(checkpoint.path)
        self.tokenizer = Tokenizer.from_folder(checkpoint.path, self.config.vocab_size)
        self._trained = numerics == "trained"
        self._checkpoint: Checkpoint | None = checkpoint
        self._stats = Stats()
        self._known: Identity | None = None
        self._sessions: weakref.WeakSet[Session] = weakref.WeakSet()
        self.plan: MemoryPlan = make_plan(
            checkpoint, budget, choose_threads(threads), self._trained, draft == "mtp"
        )
        self.threads = n_threads = choose_threads(threads, self.plan.streams)
        self._streams = (
            Streams(checkpoint, self.plan, draft == "mtp") if self.plan.streams else None
        )
        try:
            if self._streams is None:
                mapped = MappedWeights(checkpoint)
                mapped.bring_in(draft == "mtp")
                self._model = Model(mapped, MappedExperts(checkpoint), n_threads)
            else:
                self._model = Model(self._streams.weights, self._streams.store, n_threads)
            self._mtp = MtpBlock(self._model) if draft == "mtp" else None
            self._forced = TeacherForced(self._model, self._trained)
            self._ledger = KVLedger(self.plan.kv_most, self._make_room)
        except BaseException:
            if self._streams is not None:
                self._streams.close()
            raise

    def __enter__(self) -> Self:
        """Return the engine."""
        self._check_open()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close the engine."""
        self.close()

    def close(self) -> None:
        """Release the checkpoint; sessions of this engine cannot be used afterwards."""
        checkpoint, self._checkpoint = self._checkpoint, None
        if checkpoint is not None:
            with computing():
                if self._streams is not None:
                    self._streams.close()
                checkpoint.close()

    @property
    def stats(self) -> Stats:
        """Counters so far; resident_bytes and kv_bytes as they are now."""
        held = resident()
        stats = replace(
            self._stats,
            resident_bytes=held.anonymous + held.shared + held.file,
            kv_bytes=self._ledger.n_bytes,
        )
        return stats if self._streams is None else self._streams.counted(stats)

    def verify_experts(self) -> int:
        """Compare all routed experts that were read into memory with the shards, byte by byte.

        Returns
        -------
        How many there are; 0 where weights are mapped.

        Raises
        ------
        DamagedCheckpoint
            One differs: the file was changed, or memory fails.
        """
        with self._computing():
            return 0 if self._streams is None else self._streams.store.verify()

    @property
    def prompt_format(self) -> PromptFormat:
        """How this checkpoint wants its prompts."""
        return PromptFormat(
            self.tokenizer, self.profile, not self.is_base, self.config.bos_token_id
        )

    def session(self, context: int | None = None) -> Session:
        """Return an empty sequence.

        Parameters
        ----------
        context
            Most tokens it may hold; None for as many as the model and the budget allow.

        Raises
        ------
        InvalidInput
            Less than one token, or more than the model's max_position_embeddings.
        OutOfBudget
            The KV state of that many tokens does not fit the memory budget.
        """
        self._check_open()
        most = self.config.max_position_embeddings
        size = most if context is None else whole_number("context", context, 1, most)
        if context is not None and self._kv_bytes(size) > self.plan.kv_most:
            raise OutOfBudget(
                f"a context of {size} tokens needs {format_bytes(self._kv_bytes(size))} of KV "
                f"state and the budget leaves {format_bytes(self.plan.kv_most)}; give more memory "
                "or a smaller context"
            )
        session = Session(
            self._model,
            self._mtp,
            size,
            self.plan.chunk_tokens,
            self._trained,
            self._computing,
            self._ledger,
            self._stats,
            self._identity,
        )
        self._sessions.add(session)
        return session

    def load_session(self, path: str | Path, context: int | None = None) -> Session:
        """Return a session with a state that `Session.save` wrote: a read, not a prefill.

        Parameters
        ----------
        path
            The file.
        context
            As `session`.

        Raises
        ------
        InvalidInput
            There is no such file, or it holds more than the context.
        DamagedSession
            It is torn, damaged, or of another model, numerics or version.
        OutOfBudget
            Its KV state does not fit the memory budget.
        """
        session = self.session(context)
        session.load(path)
        return session

    def generate(
        self,
        prompt: Prompt,
        sampling: SamplingParams | None = None,
        max_tokens: int | None = None,
        stop: Sequence[str] = (),
        session: Session | None = None,
        thinking: str | None = None,
        tools: Sequence[Mapping[str, Any]] | None = None,
        logprobs: int | None = None,
        progress: Callable[[int, int], None] | None = None,
        begun: Sequence[int] = (),
    ) -> Generation:
        """Answer a prompt: an iterator of events (see `localv4.events.Event`).

        Parameters
        ----------
        prompt
            Ids (fed behind what the session holds), text (the same, without a template; BOS
            begins an empty session), or messages: the whole conversation, of which what the
            session has read stays: up to its end, or to the last snapshot that is a beginning.
        sampling
            How tokens are chosen; None for `SamplingParams()`.
        max_tokens
            Most tokens to sample; None goes on until the model stops or the context is full.
        stop
            Strings that end the answer.
        session
            None for a new one with the largest context.
        thinking
            "off", "low", "high" or "max"; None for `default_thinking`.  For messages.
        tools
            Tools offered in the prompt.  For messages.
        logprobs
            Give each token's logprob beside this many of the most likely.
        progress
            Called while the prompt is read, with how many of its tokens are done and how many
            there are to read.
        begun
            All tokens of an answer to this prompt that ended early (`Generation.ids`): it goes on
            behind them. With the same seed it is the answer that would have come without the end.
            For messages.

        Raises
        ------
        InvalidInput, FormatError, ContextOverflow
            The prompt or an argument cannot be used; raised before any work.
        """
        if tools is not None and not isinstance(tools, Sequence):
            raise InvalidInput(f"tools is {tools!r}; give a list of tools or leave it out")
        sampler = Sampler(SamplingParams() if sampling is None else sampling)
        if session is None:
            session = self.session()
        elif session not in self._sessions:
            raise InvalidInput("the session belongs to another engine; make one with session()")
        level = self.default_thinking if thinking is None else thinking
        ids, mode = self.prompt_format.ids(prompt, level, tools, continues=session.position > 0)
        branches: tuple[int, ...] = ()
        if mode is None:
            if begun:
                raise InvalidInput("only an answer to messages can go on; leave begun out")
            session.check_fits(ids)
        else:
            branches = self.prompt_format.branches(ids, mode)
            ids = [*ids, *begun]
            session.check_fits(ids, rewound=True)
            kept = session.rewind(ids)
            if not begun:
                session.keep()  # the end of an answer, unless it is somewhere else
            branches = tuple(place - kept for place in branches)
            ids = ids[kept:]
        return generate(
            session,
            self.tokenizer,
            ids,
            sampler=sampler,
            max_tokens=max_tokens,
            stop=stop,
            stop_ids=default_stop_ids(self.tokenizer, self.config.eos_token_id),
            thinking_mode=mode,
            tools=tools,
            logprobs=logprobs,
            branches=branches,
            progress=progress,
            begun=begun,
        )

    def run_attention(self, layer: int, x: ArrayLike) -> F32:
        """Run one layer's attention on float32 [n, d] from an empty state (verification)."""
        with self._computing():
            return self._forced.attention(layer, x)

    def run_ffn(self, layer: int, x: ArrayLike, ids: ArrayLike) -> F32:
        """Run one layer's experts on float32 [n, d] and ids [n] (verification)."""
        with self._computing():
            return self._forced.ffn(layer, x, ids)

    def run_block(self, layer: int, h: ArrayLike, ids: ArrayLike) -> F32:
        """Run one block on float32 [n, hc_mult, d] from an empty state (verification)."""
        with self._computing():
            return self._forced.block(layer, h, ids)

    def _check_open(self) -> None:
        if self._checkpoint is None:
            raise LocalV4Error("the engine was closed; load the checkpoint again")

    @contextmanager
    def _computing(self) -> Iterator[None]:
        with computing():
            self._check_open()  # another thread may have closed it just before
            yield
            self._check_open()  # and an observer meanwhile

    def _kv_bytes(self, n_tokens: int) -> int:
        return kv_bytes(self.config, n_tokens, self._trained, self._mtp is not None)

    def _identity(self) -> Identity:
        if self._known is None:
            assert self._checkpoint is not None
            self._known = {
                "model": fingerprint(self._checkpoint),
                "numerics": self.numerics,
                "mtp": self._mtp is not None,
            }
        return self._known

    def _make_room(self, n_bytes: int) -> None:
        """Let experts give way to so much KV state."""
        if self._streams is not None:
            self._streams.make_room(n_bytes)
