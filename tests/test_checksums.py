import hashlib
import io
import subprocess

import pytest

from localv4.checksums import PIECE_BYTES, checksum, is_checksum

CONTENT = b"of a file\n"
# sha256sum, and git hash-object
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a" * 40, True),
        ("0123456789abcdef" * 4, True),
        ("A" * 40, False),
        ("a" * 41, False),
        ("a" * 40 + "\n", False),
        ("", False),
    ],
)
def test_what_looks_like_a_checksum(name, expected):
    assert is_checksum(name) is expected


def test_a_large_file_is_named_by_sha_256():
    assert checksum(io.BytesIO(CONTENT), "a" * 64, len(CONTENT)) == SHA256


def test_a_small_one_as_git_does(tmp_path):
    # what git itself says of the empty file
    empty = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"
    assert checksum(io.BytesIO(), "a" * 40, 0) == empty
    file = tmp_path / "file"
    file.write_bytes(CONTENT)
    git = subprocess.run(
        ["git", "hash-object", "--no-filters", str(file)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert checksum(io.BytesIO(CONTENT), "a" * 40, len(CONTENT)) == git.stdout.strip()


def test_pieces_are_told_and_may_end_it():
    content = bytes(PIECE_BYTES + 5)
    told: list[int] = []
    assert checksum(io.BytesIO(content), "a" * 64, 0, told.append) == (
        hashlib.sha256(content).hexdigest()
    )
    assert told == [PIECE_BYTES, 5]

    def stop(_: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        checksum(io.BytesIO(content), "a" * 64, 0, stop)
