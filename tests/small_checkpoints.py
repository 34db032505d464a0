"""Small synthetic checkpoints to damage, and the tools to damage them."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from localv4.checkpoint import Checkpoint
from localv4.synthetic import PRESETS, Layout, Preset, synthesise
from localv4.synthetic_weights import EOS
from localv4.tensors import expected_tensors
from tests.released import released_config, released_text

Header = dict[str, Any]


def make_small(
    folder: Path,
    preset: Preset = "flash",
    layout: Layout = "release",
    dspark: bool = False,
    ratios: tuple[int, ...] = (0, 4, 128),
    n_routed_experts: int = 3,
) -> Path:
    sizes = dataclasses.replace(
        PRESETS[preset], n_routed_experts=n_routed_experts, num_hash_layers=1
    )
    synthesise(folder, preset, 3, ratios, sizes=sizes, layout=layout, dspark=dspark)
    return folder


def never_ending(folder: Path) -> Path:
    """Take from a small checkpoint what makes its answers end: the head's row of the end token."""
    with Checkpoint.open(folder) as checkpoint:
        head = checkpoint.tensors["head.weight"]
    row_bytes = head.nbytes // head.shape[0]
    with (folder / head.shard).open("r+b") as shard:
        shard.seek(head.offset + row_bytes * EOS)
        shard.write(bytes(row_bytes))
    return folder


def make_sparse_flash(folder: Path) -> None:
    """Write the released Flash as sparse files: headers and index in full, the weights holes."""
    (folder / "config.json").write_text(released_text("flash"))
    headers: dict[str, Header] = {}
    sizes: dict[str, int] = {}
    weight_map = {}
    for spec in expected_tensors(released_config("flash"), "fp4", "F8_E8M0", mtp=True):
        shard = ".".join(["model", *spec.name.split(".")[:2], "safetensors"])
        weight_map[spec.name] = shard
        begin = sizes.get(shard, 0)
        sizes[shard] = begin + spec.nbytes
        headers.setdefault(shard, {})[spec.name] = {
            "dtype": spec.dtypes[0],
            "shape": spec.shape,
            "data_offsets": (begin, begin + spec.nbytes),
        }
    for shard, header in headers.items():
        content = join_shard(header, b"")
        with (folder / shard).open("wb") as file:
            file.write(content)
            file.truncate(len(content) + sizes[shard])
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def shard_of(folder: Path, tensor: str) -> Path:
    single = folder / "model.safetensors"
    if single.exists():
        return single
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    return folder / str(index["weight_map"][tensor])


def edit_index(folder: Path, edit: Callable[[dict[str, Any]], object]) -> None:
    """Change the parsed index in place and write it back."""
    file = folder / "model.safetensors.index.json"
    index = json.loads(file.read_text())
    edit(index)
    file.write_text(json.dumps(index))


def edit_config(folder: Path, **changes: Any) -> None:
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


def split_shard(content: bytes) -> tuple[Header, bytes]:
    """Return a shard's parsed header and its tensors' bytes."""
    length = int.from_bytes(content[:8], "little")
    header: Header = json.loads(content[8 : 8 + length])
    return header, content[8 + length :]


def join_shard(header: Header | bytes, body: bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def edit_header(shard: Path, edit: Callable[[Header], object]) -> None:
    """Change a shard's parsed header in place and write it back; the tensors' bytes stay."""
    header, body = split_shard(shard.read_bytes())
    edit(header)
    shard.write_bytes(join_shard(header, body))


def overwrite(folder: Path, tensor: str, offset: int, content: bytes) -> None:
    """Write bytes into a tensor."""
    shard = shard_of(folder, tensor)
    raw = bytearray(shard.read_bytes())
    start = 8 + int.from_bytes(raw[:8], "little")
    begin = start + split_shard(bytes(raw))[0][tensor]["data_offsets"][0] + offset
    raw[begin : begin + len(content)] = content
    shard.write_bytes(raw)
