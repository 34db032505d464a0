"""The checksums that the hub names its files by.

A large file by its SHA-256, a small one by git's: SHA-1 of a header and the content. Knows nothing
of where the files are.
"""

import hashlib
import re
from collections.abc import Callable
from typing import BinaryIO

__all__ = ["PIECE_BYTES", "checksum", "is_checksum"]

PIECE_BYTES = 4 * 2**20
_CHECKSUM = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")
_SHA1_DIGITS = 40


def is_checksum(name: str) -> bool:
    """Whether a name is a checksum of either kind, in lower case."""
    return _CHECKSUM.fullmatch(name) is not None


def checksum(
    file: BinaryIO, expected: str, n_bytes: int, progress: Callable[[int], None] = lambda _: None
) -> str:
    """Return a file's checksum, of the kind that another one is.

    Parameters
    ----------
    file
        Read from where it stands to its end.
    expected
        A checksum of that kind: 40 or 64 hexadecimal digits.
    n_bytes
        Length of the content, which git's header states.
    progress
        Told the bytes of each piece read; what it raises ends the reading.

    Raises
    ------
    OSError
        If the file can't be read.
    """
    if len(expected) == _SHA1_DIGITS:
        digest = hashlib.sha1(b"blob %d\0" % n_bytes, usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    while piece := file.read(PIECE_BYTES):
        digest.update(piece)
        progress(len(piece))
    return digest.hexdigest()
