"""Text to token ids and back: a checkpoint's ``tokenizer.json``, and UTF-8 as it streams in.

Control tokens (``<think>`` and the like) are recognised only where the caller says so, so text
that a user types never becomes one (DeepSeek-V4 encoding, section 5). A token may end inside a
character, so ids become bytes first and text after that. Knows nothing of the chat format.
"""

import codecs
import lzma
from collections.abc import Iterable
from importlib import resources
from pathlib import Path
from typing import Any, Final, Self

import tokenizers
from tokenizers import models

from localv4.byte_tokenizer import byte_alphabet
from localv4.errors import DamagedCheckpoint, InvalidInput, UnsupportedModel
from localv4.untrusted import open_regular, parse_object

__all__ = ["TextStream", "Tokenizer", "bundled_tokenizer_json"]

_FILE_LIMIT_BYTES: Final = 64 * 2**20  # ten times the released file
# Spaces, line ends, digits, an accent in both forms, CJK, an emoji, a NUL: whatever a normaliser,
# a prefix space or a lost byte would change.
_PROBE: Final = "a  B\r\n\n\t1234 e\u0301\u00e9 \u4e2d\u6587 \U0001f600\x00 "


def bundled_tokenizer_json() -> str:
    """Return the released DeepSeek-V4 ``tokenizer.json`` (129,280 tokens) that comes with localv4.

    For random-weight checkpoints with the full vocabulary; a real checkpoint brings its own copy.
    """
    packed = resources.files("localv4").joinpath("assets/tokenizer.json.xz").read_bytes()
    return lzma.decompress(packed).decode("utf-8")


class TextStream:
    """Token ids to text as they come, never showing half a character.

    At most three bytes of an unfinished character are held back. The texts of all `feed` calls
    and of `close`, joined, equal `Tokenizer.decode` of the same ids.
    """

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def feed(self, token_id: int) -> str:
        """Return the characters that `token_id` completes, perhaps none.

        Raises
        ------
        InvalidInput
            If the vocabulary has no such id.
        """
        return self._decoder.decode(self._tokenizer.token_bytes(token_id))

    def close(self) -> str:
        """Return U+FFFD if a character is unfinished, else nothing; the stream starts afresh."""
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class Tokenizer:
    """A byte-level BPE vocabulary with its control tokens; made by `from_folder` or `from_json`.

    Immutable and safe to share between threads; encoding releases the interpreter lock.
    """

    def __init__(
        self, library_tokenizer: tokenizers.Tokenizer, control_ids: dict[str, int]
    ) -> None:
        self._with_control = library_tokenizer
        self._control_ids = control_ids
        self._control_bytes = {
            token_id: content.encode("utf-8") for content, token_id in control_ids.items()
        }
        # Shares the vocabulary and merges of the first, so it costs microseconds and no memory.
        self._plain = tokenizers.Tokenizer(library_tokenizer.model)
        if library_tokenizer.normalizer is not None:
            self._plain.normalizer = library_tokenizer.normalizer
        if library_tokenizer.pre_tokenizer is not None:
            self._plain.pre_tokenizer = library_tokenizer.pre_tokenizer
        self._byte_of = {character: byte for byte, character in enumerate(byte_alphabet())}
        self._vocab_size = library_tokenizer.get_vocab_size(with_added_tokens=True)

    @classmethod
    def from_folder(cls, path: Path, vocab_size: int | None = None) -> Self | None:
        """Load ``tokenizer.json`` of a checkpoint folder; None if the folder has none.

        Parameters
        ----------
        path
            The checkpoint's folder.
        vocab_size
            Rows of the model's embedding; every id must lie below it.

        Raises
        ------
        DamagedCheckpoint
            If the file cannot be read, is larger than 64 MiB, is not a byte-level BPE tokenizer,
            contradicts itself, or holds ids that the model lacks.
        """
        file_path = Path(path) / "tokenizer.json"
        file = open_regular(file_path)
        if file is None:
            return None
        with file:
            try:
                content = file.read(_FILE_LIMIT_BYTES + 1)
            except OSError as error:
                raise DamagedCheckpoint(
                    f"{file_path} cannot be read ({error}); check the disk"
                ) from None
        if len(content) > _FILE_LIMIT_BYTES:
            raise DamagedCheckpoint(
                f"{file_path} is larger than the {_FILE_LIMIT_BYTES:,} bytes a tokenizer may have; "
                "download it again"
            )
        return cls._from_bytes(content, str(file_path), vocab_size)

    @classmethod
    def from_json(
        cls, text: str, vocab_size: int | None = None, source: str = "tokenizer.json"
    ) -> Self:
        """Build the tokenizer from the text of a ``tokenizer.json``; errors as in `from_folder`.

        Parameters
        ----------
        text
            The file's content.
        vocab_size
            Rows of the model's embedding; every id must lie below it.
        source
            What to call the text in a message.
        """
        # A lone surrogate becomes a byte that is not UTF-8, which is then refused as such.
        return cls._from_bytes(text.encode("utf-8", errors="surrogatepass"), source, vocab_size)

    @classmethod
    def _from_bytes(cls, content: bytes, source: str, vocab_size: int | None) -> Self:
        document = parse_object(content, source)
        _check_model(document, source)
        control_ids = _control_tokens(document, source)
        library_tokenizer = _build(content, source)
        _check_ids(document["model"]["vocab"], control_ids, source)
        tokenizer = cls(library_tokenizer, control_ids)
        tokenizer._check(source, vocab_size)
        return tokenizer

    def _check(self, source: str, vocab_size: int | None) -> None:
        """Refuse a vocabulary that cannot spell every text, or is not the model's."""
        for content, token_id in self._control_ids.items():
            found = self._with_control.token_to_id(content)
            if found != token_id:
                raise DamagedCheckpoint(
                    f"{source} gives the token {content[:80]!r} the id {token_id}, but its "
                    f"vocabulary makes that {found}; download it again"
                )
        missing = [char for char in byte_alphabet() if self._plain.token_to_id(char) is None]
        if missing or self.decode(self.encode(_PROBE)) != _PROBE:
            raise DamagedCheckpoint(
                f"{source} is not a lossless byte-level BPE tokenizer "
                f"({len(missing)} of 256 bytes have no token); localv4 runs no other kind"
            )
        if vocab_size is not None and self._vocab_size > vocab_size:
            raise DamagedCheckpoint(
                f"{source} has {self._vocab_size:,} tokens but the model's vocabulary has "
                f"{vocab_size:,}; it belongs to another checkpoint"
            )

    @property
    def vocab_size(self) -> int:
        """Number of ids, 0 to ``vocab_size - 1``; never more than the model's."""
        return self._vocab_size

    def encode(self, text: str, control: bool = False) -> list[int]:
        """Turn text into ids; nothing is added in front or behind.

        Parameters
        ----------
        text
            Any text; it comes back unchanged from `decode`.
        control
            True: the literal of a control token in the text becomes that token. False: it is
            spelled like any other text, and no id of a control token can come out.

        Raises
        ------
        InvalidInput
            If the text holds a lone surrogate, which is half a character and has no UTF-8.
        """
        encoder = self._with_control if control else self._plain
        try:
            ids: list[int] = encoder.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise InvalidInput(_not_text(text)) from None
        if not control and not self._control_bytes.keys().isdisjoint(ids):
            raise UnsupportedModel(
                "this checkpoint's tokenizer.json can spell a control token with ordinary text, "
                "which is not safe to run; use the tokenizer.json of the original release"
            )
        return ids

    def encode_pieces(self, pieces: Iterable[tuple[str, bool]]) -> list[int]:
        """Turn a rendered prompt into ids: ``(text, control)`` pieces, as the encoder makes them.

        A control piece is exactly one control token. Ordinary pieces between two control pieces
        are encoded as one string, so where the template was cut does not change the ids.

        Raises
        ------
        UnsupportedModel
            If the vocabulary lacks a control token of the prompt.
        InvalidInput
            If ordinary text holds a lone surrogate.
        """
        ids: list[int] = []
        ordinary: list[str] = []
        for text, control in pieces:
            if not control:
                ordinary.append(text)
                continue
            token_id = self._control_ids.get(text)
            if token_id is None:
                raise UnsupportedModel(
                    f"the tokenizer has no control token {text[:80]!r}, which the chat format "
                    "needs; give the prompt without a template, or use a DeepSeek-V4 tokenizer"
                )
            ids += self.encode("".join(ordinary))
            ids.append(token_id)
            ordinary.clear()
        return ids + self.encode("".join(ordinary))

    def control_id(self, literal: str) -> int | None:
        """Return the id of a control token by its exact content, or None."""
        return self._control_ids.get(literal)

    def is_control(self, token_id: int) -> bool:
        """Tell whether the id is a control token, which ordinary text never contains."""
        return token_id in self._control_bytes

    def token_bytes(self, token_id: int) -> bytes:
        """Return the exact bytes that a token stands for; a character may span several tokens.

        Raises
        ------
        InvalidInput
            If the vocabulary has no such id.
        """
        control = self._control_bytes.get(token_id)
        if control is not None:
            return control
        if not 0 <= token_id < self._vocab_size:
            raise InvalidInput(
                f"token id {token_id} is outside the tokenizer's vocabulary of "
                f"{self._vocab_size:,}; ids run from 0 to {self._vocab_size - 1:,}"
            )
        content = self._with_control.id_to_token(token_id) or ""
        try:
            return bytes(map(self._byte_of.__getitem__, content))
        except KeyError:  # not in the byte alphabet: the token is literal text
            return content.encode("utf-8")

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of ids, control tokens included; bytes that are not UTF-8 give U+FFFD.

        Raises
        ------
        InvalidInput
            If the vocabulary lacks one of the ids.
        """
        return b"".join(map(self.token_bytes, ids)).decode("utf-8", errors="replace")

    def stream(self) -> TextStream:
        """Return a fresh `TextStream` over this vocabulary."""
        return TextStream(self)


def _not_text(text: object) -> str:
    """Say why the library refused `text`."""
    if not isinstance(text, str):
        return f"text to encode must be a str, not {type(text).__name__}"
    position = next(i for i, char in enumerate(text) if "\ud800" <= char <= "\udfff")
    return (
        f"the text holds a lone surrogate (U+{ord(text[position]):04X} at character {position}), "
        "which is half a character; read the text as UTF-8 or remove it"
    )


def _check_model(document: dict[str, Any], source: str) -> None:
    """Refuse what is not plain byte-level BPE, before the library sees it.

    The library aborts noisily on some of these, and quietly loses or randomises text on others.
    """
    model = document.get("model")
    kind = model.get("type") if isinstance(model, dict) else None
    if not isinstance(model, dict) or kind != "BPE" or not isinstance(model.get("vocab"), dict):
        raise DamagedCheckpoint(
            f"{source} holds a tokenizer model of type {kind!r} where localv4 needs BPE with a "
            "vocabulary; download it again"
        )
    for option in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "byte_fallback"):
        if model.get(option):
            raise DamagedCheckpoint(
                f"{source} sets the BPE option {option!r}, which a byte-level tokenizer does not "
                "use; localv4 runs no other kind"
            )


def _control_tokens(document: dict[str, Any], source: str) -> dict[str, int]:
    """Return content -> id of the added tokens, as the file states them."""
    entries = document.get("added_tokens")
    tokens: dict[str, int] = {}
    for entry in entries if isinstance(entries, list) else []:
        content = entry.get("content") if isinstance(entry, dict) else None
        token_id = entry.get("id") if isinstance(entry, dict) else None
        if not isinstance(content, str) or not content or type(token_id) is not int:
            raise DamagedCheckpoint(
                f"entry {len(tokens)} of added_tokens in {source} lacks a content or an id; "
                "download it again"
            )
        if content in tokens:
            raise DamagedCheckpoint(
                f"{source} adds the token {content[:80]!r} twice; download it again"
            )
        tokens[content] = token_id
    return tokens


def _check_ids(vocab: dict[str, Any], control_ids: dict[str, int], source: str) -> None:
    """Refuse ids that leave a gap or stand for two tokens; the library takes both in silence."""
    ids = {**vocab, **control_ids}.values()
    if set(ids) != set(range(len(ids))):
        raise DamagedCheckpoint(
            f"{source} has {len(ids):,} tokens, whose ids are not 0 to {len(ids) - 1:,} without "
            "gaps; download it again"
        )


def _build(content: bytes, source: str) -> tokenizers.Tokenizer:
    """Let the library build its tokenizer, without truncation and padding."""
    try:
        built = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except (KeyboardInterrupt, SystemExit, MemoryError):
        raise
    # A Rust panic is a BaseException of a type that cannot be imported.
    except BaseException as error:
        raise DamagedCheckpoint(
            f"{source} is not a tokenizer that the tokenizers library can load "
            f"({str(error)[:200]}); download it again"
        ) from None
    if not isinstance(built.model, models.BPE):
        raise DamagedCheckpoint(f"{source} is not a BPE tokenizer; download it again")
    built.no_truncation()
    built.no_padding()
    return built
