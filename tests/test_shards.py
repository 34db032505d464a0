import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from localv4.errors import DamagedCheckpoint, LocalV4Error
from localv4.shards import _are_sound, _refuse_unsound, open_shard
from tests.small_checkpoints import join_shard

BODY = bytes(range(64))


def entry(dtype: object = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, Any]:
    shape, offsets = (list(x) if isinstance(x, tuple) else x for x in (shape, offsets))
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


def shard(folder: Path, header: dict[str, Any] | bytes, body: bytes = BODY) -> Path:
    path = folder / "model.safetensors"
    path.write_bytes(join_shard(header, body))
    return path


def test_a_sound_shard_is_read_and_mapped_read_only(tmp_path: Path) -> None:
    header = {"__metadata__": {"format": "pt"}, "a": entry(), "b.c": entry("I8", (3, 1), (9, 12))}
    path = shard(tmp_path, header)
    opened = open_shard(path)
    assert opened is not None
    assert list(opened.tensors) == ["a", "b.c"]
    info = opened.tensors["b.c"]
    assert (info.dtype, info.shape, info.shard, info.nbytes) == ("I8", (3, 1), path.name, 3)
    assert opened.map[info.offset : info.offset + 3] == BODY[9:12]
    assert memoryview(opened.map).readonly


def test_gaps_trailing_bytes_empty_tensors_and_unknown_dtypes_are_tolerated(tmp_path: Path) -> None:
    header = {
        "a": entry("F32", (1,), (4, 8)),
        "empty": entry("F32", (0, 7), (6, 6)),
        "b": entry("F4_NEW", (9, 9), (16, 20)),
    }
    opened = open_shard(shard(tmp_path, header))
    assert opened is not None
    assert set(opened.tensors) == {"a", "empty", "b"}


def test_tensors_may_be_listed_in_any_order(tmp_path: Path) -> None:
    header = {"b": entry(offsets=(8, 16)), "a": entry(), "c": entry(offsets=(16, 24))}
    opened = open_shard(shard(tmp_path, header))
    assert opened is not None
    assert list(opened.tensors) == ["b", "a", "c"]


def test_no_file_is_none(tmp_path: Path) -> None:
    assert open_shard(tmp_path / "absent.safetensors") is None


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"a": entry(offsets=(60, 68))}, "has 64|ends at 1"),
        ({"a": entry(offsets=(0, 2**62), shape=(2**60,))}, "truncated"),
        ({"a": entry(offsets=(8, 0))}, "has the offsets"),
        ({"a": entry(offsets=(-8, 0))}, "has the offsets"),
        ({"a": entry(offsets=(0, 8.0))}, "has the offsets"),
        ({"a": entry(offsets=(False, 8))}, "has the offsets"),
        ({"a": entry(offsets=(0, 8, 8))}, "has the offsets"),
        ({"a": entry(offsets=(0, 10**30))}, "has the offsets"),
        ({"a": entry(offsets=None)}, "has the offsets None"),
        ({"a": entry(shape=(3,))}, "shape .3. has 8 bytes"),
        ({"a": entry(shape=(-2,))}, "has the shape"),
        ({"a": entry(shape=(2**62, 2**62, 4))}, "has 8 bytes"),
        ({"a": entry(shape=(10**40,))}, "has the shape"),
        ({"a": entry(shape=(1,) * 17)}, "has the shape"),
        ({"a": entry(shape=(True, 2))}, "has the shape"),
        ({"a": entry(shape="2")}, "has the shape '2'"),
        ({"a": entry(dtype=32)}, "has the dtype 32"),
        ({"a": entry(dtype="F64")}, "dtype F64"),
        ({"a": {}}, "has the dtype None"),
        ({"a": [0, 8]}, "is described by"),
        ({"a": entry(), "b": entry(offsets=(4, 12))}, "'a' and 'b' share bytes"),
        ({"a": entry(), "b": entry()}, "share bytes"),
        ({"b": entry(offsets=(4, 12)), "a": entry()}, "'a' and 'b' share bytes"),
        ({"sound": entry(), "a": entry(offsets=(8, 17), shape=(1,))}, "'a' of dtype F32"),
        ({"a\x1b[2J": entry()}, "impossible name"),
        ({"\ud800": entry()}, "impossible name"),
        ({"a" * 257: entry()}, "impossible name"),
        (b"[]", "a JSON list where an object is needed"),
        (b"{" + b" " * 9, "not valid JSON"),
        (b'{"a":\xff}', "not UTF-8"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (json.dumps({"a": entry()}).encode()[:-1] + b',"a":0}', "'a' appears twice"),
        (b'{"a":{"dtype":"I8","dtype":"F32"}}', "'dtype' appears twice"),
    ],
)
def test_a_lying_header_is_refused(
    tmp_path: Path, header: dict[str, Any] | bytes, message: str
) -> None:
    path = shard(tmp_path, header)
    with pytest.raises(DamagedCheckpoint, match=message) as caught:
        open_shard(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    str(caught.value).encode()  # no lone surrogate that a terminal could not print


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has 0 bytes, too few"),
        (b"\x02\0\0\0", "has 4 bytes, too few"),
        ((2**63).to_bytes(8, "little") + b"{}", "claims a header of 9,223,372,036,854,775,808"),
        ((3).to_bytes(8, "little") + b"{}", "claims a header of 3 bytes in a file of 10"),
        (b"\x80\x02}q\x00X\x05\x00\x00\x00", "claims a header"),
    ],
)
def test_what_is_no_safetensors_file_is_refused(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(DamagedCheckpoint, match=message):
        open_shard(path)


def test_a_header_over_the_formats_limit_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    with path.open("wb") as file:
        file.write((100_000_001).to_bytes(8, "little"))
        file.truncate(200_000_000)  # sparse
    with pytest.raises(DamagedCheckpoint, match="claims a header of 100,000,001"):
        open_shard(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes on this system")
def test_a_named_pipe_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(DamagedCheckpoint, match="not a regular file"):
        open_shard(tmp_path / "model.safetensors")


def test_a_folder_in_a_shards_place_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DamagedCheckpoint, match="not a regular file"):
        open_shard(tmp_path)


SOUND = join_shard({"a": entry(), "b": entry("BF16", (2, 4), (8, 24))}, BODY)


@settings(deadline=None, max_examples=150)
@given(st.lists(st.tuples(st.integers(0, len(SOUND) - 1), st.integers(0, 255)), max_size=4))
def test_flipped_bytes_never_lead_outside_the_file(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[int, int]]
) -> None:
    content = bytearray(SOUND)
    for place, value in changes:
        content[place] = value
    _open_or_refuse(tmp_path_factory, bytes(content))


FIELDS = st.sampled_from(["F32", "I8", "BF16", "U4"]) | st.integers() | st.none()
LISTS = st.lists(st.integers(-2, 80) | st.integers() | st.booleans(), max_size=4)
ENTRIES = st.fixed_dictionaries(
    {"dtype": FIELDS, "shape": LISTS, "data_offsets": LISTS | FIELDS}
) | st.dictionaries(st.text(max_size=4), FIELDS)

SOUND_ENTRIES = st.builds(
    lambda rows, start, dtype: entry(dtype, (rows, 2), (start, start + 2 * rows)),
    st.integers(0, 4) | st.booleans(),
    st.integers(0, 60) | st.just(2.0),
    st.sampled_from(["I8", "U8", "X"]),
)


@settings(deadline=None, max_examples=300)
@given(st.lists(ENTRIES | SOUND_ENTRIES | st.none(), max_size=3))
def test_entries_are_sound_at_once_if_each_is(entries: list[Any]) -> None:
    def is_refused(value: object) -> bool:
        try:
            _refuse_unsound("a", value, Path("shard"), 8, 8 + 64)
        except DamagedCheckpoint:
            return True
        return False

    assert _are_sound(entries, 64) is not any(map(is_refused, entries))


@settings(deadline=None, max_examples=150)
@given(st.dictionaries(st.text(max_size=6), ENTRIES, max_size=3), st.binary(max_size=70))
def test_invented_headers_never_lead_outside_the_file(
    tmp_path_factory: pytest.TempPathFactory, header: dict[str, Any], body: bytes
) -> None:
    _open_or_refuse(tmp_path_factory, join_shard(header, body))


def _open_or_refuse(factory: pytest.TempPathFactory, content: bytes) -> None:
    path = factory.getbasetemp() / "fuzzed.safetensors"
    path.write_bytes(content)
    try:
        opened = open_shard(path)
    except LocalV4Error:
        return
    assert opened is not None
    for info in opened.tensors.values():
        assert 8 <= info.offset <= info.offset + info.nbytes <= len(content)
