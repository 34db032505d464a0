"""A tokenizer of single bytes with V4's control tokens, for vocabularies of any small size.

Random-weight checkpoints with a few hundred tokens need a ``tokenizer.json`` that can spell
every text. This one is byte-level BPE without merges: a token for each byte and one for each
control token of the chat format. It knows nothing of checkpoints or of the tokenizers library.

Ids: 0 and 1 are BOS and EOS, 2..257 the bytes 0x00..0xff in order, then the other control
tokens, then unused placeholders up to the size asked for. Control tokens: the chat format's
(DeepSeek-V4 encoding, table of literals), with the flags that the released file gives them.
"""

import json
from functools import lru_cache
from typing import Final

from localv4.encoding.literals import BOS, CONTROL_LITERALS, EOS
from localv4.errors import InvalidInput

__all__ = ["MIN_VOCAB_SIZE", "byte_alphabet", "byte_level_tokenizer_json"]

# The released tokenizer flags these two special: true and the rest of the chat format false.
_SPECIAL: Final = (BOS, EOS)
_CHAT: Final = tuple(literal for literal in CONTROL_LITERALS if literal not in _SPECIAL)

MIN_VOCAB_SIZE: Final = len(_SPECIAL) + 256 + len(_CHAT)
"""The smallest vocabulary that holds every byte and every control token."""


@lru_cache(maxsize=1)
def byte_alphabet() -> tuple[str, ...]:
    """Return the printable character that stands for each byte in a byte-level vocabulary.

    Returns
    -------
    tuple of str
        256 distinct characters; entry ``b`` stands for byte ``b``. Visible Latin-1 characters
        stand for themselves, the other 68 bytes are numbered upwards from U+0100 (the
        alphabet of GPT-2, which every byte-level ``tokenizer.json`` uses).
    """
    visible = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    substitutes = iter(range(0x100, 0x200))
    return tuple(chr(byte if byte in visible else next(substitutes)) for byte in range(256))


def byte_level_tokenizer_json(vocab_size: int) -> str:
    """Build a ``tokenizer.json`` of exactly `vocab_size` tokens: bytes and control tokens.

    Parameters
    ----------
    vocab_size
        Tokens in the vocabulary, at least `MIN_VOCAB_SIZE`.

    Returns
    -------
    str
        The file's text, in the format of the tokenizers library.

    Raises
    ------
    InvalidInput
        If `vocab_size` is too small for the bytes and the control tokens.
    """
    if vocab_size < MIN_VOCAB_SIZE:
        raise InvalidInput(
            f"a vocabulary of {vocab_size} tokens is too small for a byte tokenizer: 256 bytes and "
            f"the chat format's control tokens need {MIN_VOCAB_SIZE}; ask for at least that many"
        )
    vocab = {content: index for index, content in enumerate((*_SPECIAL, *byte_alphabet()))}
    # The library gives an added token that is not in the model's vocabulary the next free id,
    # so the order of this list is what makes the ids below true.
    added = [_added_token(content, vocab[content], special=True) for content in _SPECIAL]
    for content in _CHAT:
        added.append(_added_token(content, len(vocab) + len(added) - len(_SPECIAL), special=False))
    for number in range(vocab_size - MIN_VOCAB_SIZE):
        content = f"<｜place▁holder▁no▁{number}｜>"  # noqa: RUF001
        added.append(_added_token(content, MIN_VOCAB_SIZE + number, special=True))
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
    byte_level["use_regex"] = False
    document: dict[str, object] = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": None,
            "end_of_word_suffix": None,
            "fuse_unk": False,
            "byte_fallback": False,
            "ignore_merges": False,
            "vocab": vocab,
            "merges": [],
        },
    }
    return json.dumps(document, ensure_ascii=False)


def _added_token(content: str, token_id: int, *, special: bool) -> dict[str, object]:
    """Return one entry of ``added_tokens``; text around a token is never trimmed."""
    return {
        "id": token_id,
        "content": content,
        "single_word": False,
        "lstrip": False,
        "rstrip": False,
        "normalized": not special,
        "special": special,
    }
