"""Tokens passed through the model and, one token behind it, through the MTP block.

Knows nothing of positions beyond those of the KV state it is given, or of chunks.
"""

import numpy as np
from numpy.typing import NDArray

from localv4.kv_cache import KVCache
from localv4.model import Model
from localv4.mtp import MtpBlock
from localv4.step import Step

__all__ = ["draft", "feed"]

F32 = NDArray[np.float32]


def feed(model: Model, mtp: MtpBlock | None, cache: KVCache, step: Step, logits: F32) -> None:
    """Pass one chunk through the model and append it to the KV state.

    Parameters
    ----------
    model, mtp
        What computes; None without a draft.
    cache
        The state that the chunk continues.
    step
        The chunk, behind the state's last token.
    logits
        float32 (n, vocab_size), n at most the chunk's tokens: those of its last n are written.
    """
    hidden = model.forward(cache, step)
    if len(logits):
        model.logits(hidden[len(hidden) - len(logits) :], step.trained, logits)
    if mtp is not None:
        last_hidden = hidden[-1:].copy()
        _follow(mtp, cache, hidden, step)
        cache.last_hidden = last_hidden
    cache.append_ids(step.ids)


def draft(mtp: MtpBlock, cache: KVCache, step: Step, logits: F32) -> None:
    """Write the logits for the token after the next one; the state stays as it is.

    Parameters
    ----------
    mtp
        The MTP block.
    cache
        The state, with at least one token.
    step
        The next token, at the position of the state's last one.
    logits
        float32 (1, vocab_size), written.
    """
    assert cache.last_hidden is not None
    hidden = mtp.forward(cache.last_hidden, cache.layers[-1].without_rows(), step)
    mtp.logits(hidden, step.trained, logits)


def _follow(mtp: MtpBlock, cache: KVCache, hidden: F32, step: Step) -> None:
    """Feed the MTP block the states whose next token is known now."""
    before = cache.last_hidden
    if before is None:
        states, following, position = hidden[:-1].copy(), step.ids[1:], step.position
    else:
        states = np.concatenate([before, hidden[:-1]])
        following, position = step.ids, step.position - 1
    if following.size:
        mtp.forward(states, cache.layers[-1], Step(following, position, step.trained, step.rope))
