"""Where bad inputs are typed: a home folder, models that are damaged in one way each, files."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from localv4.synthetic import synthesise
from tests.small_checkpoints import edit_config, edit_header, edit_index, overwrite, shard_of

__all__ = ["furnish"]

_PROGRAM = """\
#!/bin/sh
exec {python} -m localv4 "$@"
"""
_SHARD = "model-00003-of-00005.safetensors"
_NAN = b"\xff"  # of E8M0


def furnish(place: Path) -> None:
    """Fill an empty folder: ``bin`` has the program, ``home`` is home, ``here`` all the rest."""
    for name in ("bin", "home", "here"):
        (place / name).mkdir()
    program = place / "bin" / "localv4"
    program.write_text(_PROGRAM.format(python=sys.executable))
    program.chmod(0o755)
    here = place / "here"
    synthesise(here / "model", compress_ratios=(0, 4))
    synthesise(here / "base", "flash-base", compress_ratios=(0,))
    for name, damage in _DAMAGE.items():
        shutil.copytree(here / "model", here / name)
        damage(here / name)
    for name, content in _FILES.items():
        (here / name).write_bytes(content.encode() if isinstance(content, str) else content)
    sessions = place / "home" / ".local" / "share" / "localv4" / "sessions"
    sessions.mkdir(parents=True)
    (sessions / "torn.session").write_bytes(b"not of localv4")
    (here / "empty").mkdir()
    for name, mode in (("secret", 0), ("readonly", 0o555)):
        (here / name).mkdir(mode)
    (here / "secret.txt").touch(0)


def _cut(folder: Path) -> None:
    content = (folder / _SHARD).read_bytes()
    (folder / _SHARD).write_bytes(content[:-1000])


def _boast(folder: Path) -> None:
    content = (folder / _SHARD).read_bytes()
    (folder / _SHARD).write_bytes((2**63).to_bytes(8, "little") + content[8:])


def _leave(folder: Path) -> None:
    edit_index(folder, lambda index: index["weight_map"].update({"head.weight": "../../passwd"}))


def _retype(folder: Path) -> None:
    shard = shard_of(folder, "head.weight")
    edit_header(shard, lambda header: header["head.weight"].update(dtype="F16"))


def _in_json(name: str, edit: Callable[[dict[str, object]], object]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text())
        edit(content)
        (folder / name).write_text(json.dumps(content))

    return change


def _as(name: str, text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).write_text(text)


def _without(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / name).unlink()


_DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": _cut,
    "boasting": _boast,
    "zeros": lambda folder: (folder / _SHARD).write_bytes(b""),
    "gap": _without(_SHARD),
    "no-index": _without("model.safetensors.index.json"),
    "nan": lambda folder: overwrite(folder, "layers.0.attn.wkv.scale", 0, _NAN),
    "dtype": _retype,
    "outside": _leave,
    "llama": lambda folder: edit_config(folder, model_type="llama"),
    "wide": lambda folder: edit_config(folder, hidden_size=4096),
    "ratios": lambda folder: edit_config(folder, compress_ratios=[7, 7, 7]),
    "greedy": lambda folder: edit_config(folder, num_experts_per_tok=1000),
    "huge": lambda folder: edit_config(folder, vocab_size=10**15),
    "half-config": _as("config.json", '{"model_type": '),
    "list-config": _as("config.json", "[]"),
    "no-tokenizer": _without("tokenizer.json"),
    "deep-tokenizer": _as("tokenizer.json", "[" * 100_000),
    "other-tokenizer": _as("tokenizer.json", '{"model": {"type": "Unigram"}}'),
    "far-tokenizer": _in_json(
        "tokenizer.json",
        lambda content: content["added_tokens"][0].update(id=10**9),  # type: ignore[index]  # JSON
    ),
    "nonsense": _as("generation_config.json", "nonsense"),
    "furious": _as("generation_config.json", '{"localv4_thinking": "furious"}'),
}
_FILES: dict[str, str | bytes] = {
    "file": "x",
    "nothing": "",
    "bytes": bytes(range(256)),
    "red.txt": "\x1b[31mred\x1b[2J",
    "two.jsonl": '"a"\n"b"\n',
    "bad.jsonl": '"a"\n{"prompt": "b", "max_tokens": 0}\n',
    "half.jsonl": '"a"\n{"prompt": \n',
    "slip.jsonl": '{"prompt": "a", "temprature": 1}\n',
    "king.jsonl": '{"messages": [{"role": "king", "content": "a"}]}\n',
    "twice.jsonl": '{"prompt": "a", "prompt": "b"}\n',
    "nan.jsonl": '{"prompt": "a", "temperature": NaN}\n',
    "long.jsonl": json.dumps("word " * 99) + "\n",
    "others.jsonl": '{"index": 0, "id": "x"}\n',
    "object.json": '{"name": "f"}',
    "spaced.json": '[{"name": "a b"}]',
    "same.json": '[{"name": "f"}, {"name": "f"}]',
    "slip.toml": "memroy = 1\n",
    "lots.toml": 'memory = "lots"\n',
    "half.toml": "memory = [\n",
}
