"""State files damaged or made to deceive: every byte flipped, every length, forged ones."""

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from localv4.errors import DamagedSession, InvalidInput
from localv4.state_file import open_state, read_head, write_state
from localv4.state_layout import (
    END,
    END_MAGIC,
    PIECE_BYTES,
    START,
    aligned,
    digest_of_trailer,
    head_block,
)
from tests.state_files import HEAD, INTACT, arrays


@pytest.fixture
def path(tmp_path) -> Path:
    path: Path = tmp_path / "a.session"
    write_state(path, HEAD, arrays())
    return path


def is_refused(path: Path) -> bool:
    try:
        with open_state(path) as file:
            file.verify()
    except DamagedSession:
        return True
    return False


def head_is_refused(path: Path) -> bool:
    try:
        return read_head(path) != HEAD
    except DamagedSession:
        return True


def head_size(content: bytes) -> int:
    """Bytes up to the digest of the head."""
    return START.size + int.from_bytes(content[16:24], "little") + 32


@pytest.mark.slow
def test_every_flipped_byte_is_found(path):
    content = path.read_bytes()
    in_head = head_size(content)
    missed, heads_missed = [], []
    with path.open("r+b", buffering=0) as file:
        for offset, byte in enumerate(content):
            # a different bit at every byte, then all of them
            for pattern in (1 << offset % 8, 255):
                os.pwrite(file.fileno(), bytes([byte ^ pattern]), offset)
                if not is_refused(path):
                    missed.append(offset)
                if head_is_refused(path) != (offset < in_head):
                    heads_missed.append(offset)
            os.pwrite(file.fileno(), bytes([byte]), offset)
    assert (missed, heads_missed) == ([], [])
    assert not is_refused(path)


@pytest.mark.slow
def test_every_truncation_is_found(path):
    content = path.read_bytes()
    in_head = head_size(content)
    for size in range(len(content) - 1, -1, -1):
        os.truncate(path, size)
        assert is_refused(path), size
        assert head_is_refused(path) == (size < in_head), size


@pytest.mark.parametrize("extra", [b"\0", b"x", b"\0" * 4096, END_MAGIC])
def test_bytes_behind_the_end_are_found(path, extra):
    with path.open("ab") as file:
        file.write(extra)
    with pytest.raises(DamagedSession, match=INTACT):
        open_state(path)
    assert read_head(path) == HEAD


def test_parts_of_another_file_are_found(path, tmp_path):
    other = tmp_path / "b.session"
    write_state(other, {**HEAD, "title": "a task"}, arrays(1))
    ours, theirs = path.read_bytes(), other.read_bytes()
    assert len(ours) == len(theirs)
    with open_state(path) as file:
        spots = [(0, 4096)]
        spots += [(row.offset, row.nbytes) for row in file.sections.values() if row.nbytes]
        end = max(aligned(row.offset + row.nbytes) for row in file.sections.values())
    spots.append((end, len(ours) - end))
    for first, size in spots:
        path.write_bytes(ours[:first] + theirs[first : first + size] + ours[first + size :])
        assert is_refused(path), first
    path.write_bytes(ours)
    assert not is_refused(path)


def test_what_shrinks_while_it_is_open_is_found(path):
    with open_state(path) as file:
        os.truncate(path, 4096 + 15)
        with pytest.raises(DamagedSession, match=f"ends at byte 4,111.*{INTACT}"):
            file.read("layers.0.window")


def test_damage_names_its_section(path):
    with open_state(path) as file:
        offset = file.sections["hidden"].offset
    with path.open("r+b") as changed:
        changed.seek(offset + 3)
        changed.write(b"!")
    with open_state(path) as file:
        file.read("ids")
        with pytest.raises(DamagedSession, match=f"damaged in 'hidden'.*{INTACT}"):
            file.read("hidden")
    with pytest.raises(DamagedSession, match="'hidden'"), open_state(path) as file:
        file.verify()


# Files made to deceive: all checksums are right.


def forged_head(text: bytes, length: int | None = None, version: int = 1) -> bytes:
    block = START.pack(b"LV4STATE", version, len(text) if length is None else length) + text
    block += hashlib.sha256(block).digest()
    return block.ljust(aligned(len(block)), b"\0")


@pytest.mark.parametrize(
    "block",
    [
        b"",
        b"LV4STATE",
        b"PK\3\4" + bytes(8192),
        forged_head(b"[]"),
        forged_head(b'{"a":1,"a":2}'),
        forged_head(b'{"a":NaN}'),
        forged_head(b'{"a":' + b"[" * 100_000),
        forged_head(b'{"a":"\xff"}'),
        forged_head(b"{}", length=2**64 - 1),
        forged_head(b"{}", length=2**26),
    ],
    ids=lambda block: repr(block[:40]),
)
def test_hostile_heads_are_refused(tmp_path, block):
    path = tmp_path / "a.session"
    path.write_bytes(block)
    for read in (read_head, open_state):
        with pytest.raises(DamagedSession, match="remove it"):
            read(path)


def test_another_version_is_refused(tmp_path):
    path = tmp_path / "a.session"
    path.write_bytes(forged_head(b"{}", version=2))
    with pytest.raises(DamagedSession, match="has the format 2, and this localv4 reads format 1"):
        read_head(path)


def forged(trailer: object, sections: bytes = b"") -> bytes:
    """A file whose trailer is this; a dict without "head" is given the right one."""
    block = head_block({})
    if isinstance(trailer, dict):
        trailer = {"head": hashlib.sha256(block).hexdigest(), **trailer}
    text = trailer if isinstance(trailer, bytes) else json.dumps(trailer).encode()
    return block + sections + text + END.pack(digest_of_trailer(text), len(text), END_MAGIC)


def row(**changes: object) -> dict[str, object]:
    digest = hashlib.sha256(bytes(4)).hexdigest()
    return {"name": "x", "dtype": "uint8", "shape": [4], "digests": [digest], **changes}


def test_a_forged_file_is_sound_unless_it_deceives(tmp_path):
    path = tmp_path / "a.session"
    path.write_bytes(forged({"sections": [row()]}, bytes(4096)))
    with open_state(path) as file:
        file.verify()
        assert file.read("x").tolist() == [0] * 4


HOSTILE: list[object] = [
    [],
    b"{",
    b'{"sections":[],"sections":[]}',
    {},
    {"sections": {}},
    {"sections": [1]},
    {"sections": [{}]},
    {"sections": [], "head": "0" * 64},
    {"sections": []},  # leaves bytes that nothing vouches for
    {"sections": [row(name="")]},
    {"sections": [row(name="a\nb")]},
    {"sections": [row(name="x" * 201)]},
    {"sections": [row(name=1)]},
    {"sections": [row(dtype="object")]},
    {"sections": [row(dtype="bool")]},
    {"sections": [row(dtype=["uint8"])]},
    {"sections": [row(shape=4)]},
    {"sections": [row(shape=[-4])]},
    {"sections": [row(shape=[True, 4])]},
    {"sections": [row(shape=[4.0])]},
    {"sections": [row(shape=[2**64])]},
    {"sections": [row(shape=[0, 2**62, 2**62], digests=[])]},
    {"sections": [row(shape=[2**62], dtype="int64")]},
    {"sections": [row(shape=[4097])]},
    {"sections": [row(shape=[PIECE_BYTES + 1], digests=["0" * 64] * 2)]},
    {"sections": [row(shape=[1] * 17)]},
    {"sections": [row(digests=[])]},
    {"sections": [row(digests=["0" * 64] * 2)]},
    {"sections": [row(digests=[1])]},
    {"sections": [row(offset=4096)]},
    {"sections": [row(), row()]},
    {"sections": [row(), row(name="y")]},  # both in the same bytes
    {"sections": [row(name=f"{n}", shape=[0], digests=[]) for n in range(2**16 + 1)]},
]


@pytest.mark.parametrize("trailer", HOSTILE, ids=lambda trailer: str(trailer)[:60])
def test_hostile_trailers_are_refused(tmp_path, trailer):
    path = tmp_path / "a.session"
    path.write_bytes(forged(trailer, bytes(4096)))
    with pytest.raises(DamagedSession, match=INTACT) as error:
        open_state(path)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 600
    assert read_head(path) == {}


def test_a_trailer_that_begins_in_the_head_is_refused(tmp_path):
    text = b"{}"
    block = head_block({})
    for length in (2 + 4096, 2**63):
        ending = END.pack(digest_of_trailer(text), length, END_MAGIC)
        path = tmp_path / "a.session"
        path.write_bytes(block + text + ending)
        with pytest.raises(DamagedSession, match="damaged at its end"):
            open_state(path)


def test_what_is_no_file_is_refused(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe"):
        with pytest.raises(DamagedSession, match="not a regular file"):
            read_head(path)
    with pytest.raises(InvalidInput, match="no session file"):
        open_state(tmp_path / "nothing")
    with pytest.raises(DamagedSession, match="cannot be opened"):
        read_head(tmp_path / "a\0b")


def test_a_disk_that_fails_is_named(path, monkeypatch):
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with open_state(path) as file:
        monkeypatch.setattr(os, "preadv", fail)
        with pytest.raises(DamagedSession, match="Input/output error"):
            file.read("ids")
