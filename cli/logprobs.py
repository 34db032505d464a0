"""Log-probabilities as programs read them: each token with its text.

Knows nothing of answers or of how they are shown.
"""

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from localv4.sampling import TokenLogprob
    from localv4.tokenizer import Tokenizer

__all__ = ["token_entries"]


def token_entries(
    logprobs: "Iterable[TokenLogprob] | None", tokenizer: "Tokenizer"
) -> list[dict[str, Any]] | None:
    """Return sampled tokens with the likeliest others; None if they were not asked for."""
    if logprobs is None:
        return None
    return [
        {
            **_token(sampled.id, sampled.logprob, tokenizer),
            "top": [_token(token_id, logprob, tokenizer) for token_id, logprob in sampled.top],
        }
        for sampled in logprobs
    ]


def _token(token_id: int, logprob: float, tokenizer: "Tokenizer") -> dict[str, Any]:
    """Return a token; one that is no text by itself, as a part of a character, has its bytes."""
    content = b""
    if token_id < tokenizer.vocab_size:  # else a spare row of the model's vocabulary
        content = tokenizer.token_bytes(token_id)
    text = content.decode("utf-8", errors="replace")
    spelled: dict[str, Any] = {"id": token_id, "token": text}
    if text.encode() != content:
        spelled["bytes"] = [*content]
    return {**spelled, "logprob": logprob}
