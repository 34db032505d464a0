"""A small hub on this machine's loopback, that the real client talks to.

Speaks as much of the hub's protocol as downloads need: a model's commit, its tree in pages, and
files. Small files come from the hub itself, large ones by a redirect to a second server, the store,
which must never see a token. Each file can be made to fail, and every request is remembered.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.loopback_server import HubHandler, Server, StoreHandler
from tests.loopback_state import Fault, HubFile, HubRepo, HubState, Request

__all__ = ["LFS_BYTES", "Fault", "LoopbackHub", "Request"]

LFS_BYTES = 100_000  # larger files are named by their SHA-256, as are all shards
_OURS = ("HF_", "HUGGING", "TRANSFORMERS_", "LOCALV4_MODEL")


class LoopbackHub(HubState):
    """Serves repos on 127.0.0.1 while it is open."""

    def __init__(self) -> None:
        super().__init__()
        self._servers = (Server(HubHandler, self), Server(StoreHandler, self))
        self.url, self.store_url = (
            f"http://127.0.0.1:{server.server_port}" for server in self._servers
        )

    def __enter__(self) -> "LoopbackHub":
        for server in self._servers:
            server.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.closing.set()
        for server in self._servers:
            server.stop()

    def add(
        self,
        repo_id: str,
        folder: Path,
        gated: bool = False,
        token: str | None = None,
        holes: Mapping[str, int] | None = None,
        ref: str = "main",
    ) -> str:
        """Add a folder's files as a commit, let `ref` be it, and return it.

        `holes` are files that are not there, with their sizes. The folder must stay as it is.
        """
        files = {
            path.relative_to(folder).as_posix(): _hub_file(path)
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        for name, n_bytes in (holes or {}).items():
            files[name] = HubFile(None, n_bytes, _is_large(name, n_bytes))
        listing = json.dumps([(name, file.checksum) for name, file in sorted(files.items())])
        commit = hashlib.sha1(listing.encode()).hexdigest()
        repo = self.repos.get(repo_id, HubRepo({}, {}, gated, token))
        repo.commits[commit] = files
        repo.refs[ref] = commit
        self.repos[repo_id] = repo
        return commit

    def environment(self, home: Path, **changes: str) -> dict[str, str]:
        """Return an environment in which the hub is this one, and its cache ``home/hub``."""
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(_OURS) and not name.lower().endswith("_proxy")
        }
        settings = {"HF_ENDPOINT": self.url, "HF_HOME": str(home)}
        return kept | settings | {"HF_HUB_DISABLE_TELEMETRY": "1"} | changes

    def use(self, monkeypatch: pytest.MonkeyPatch, home: Path) -> Path:
        """Let the hub's library in this process talk to this hub; returns its cache."""
        from huggingface_hub import close_session, constants

        for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
            monkeypatch.delenv(name)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        cache = home / "hub"
        values = {
            "ENDPOINT": self.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": self.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HOME": str(home),
            "HF_HUB_CACHE": str(cache),
            "HF_TOKEN_PATH": str(home / "token"),
            "HF_STORED_TOKENS_PATH": str(home / "stored_tokens"),
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
        }
        for name, value in values.items():
            monkeypatch.setattr(constants, name, value)
        close_session()
        return cache

    def contents(self, file: str | None = None) -> list[Request]:
        """Return the requests that were answered with content, or with that of one file."""
        return [
            request
            for request in self.requests
            if request.method == "GET"
            and request.n_bytes
            and (request.file is not None if file is None else request.file == file)
        ]

    @property
    def content_bytes(self) -> int:
        """Bytes of files sent so far."""
        return sum(request.n_bytes for request in self.contents())


def _hub_file(path: Path) -> HubFile:
    n_bytes = path.stat().st_size
    return HubFile(path, n_bytes, _is_large(path.name, n_bytes))


def _is_large(name: str, n_bytes: int) -> bool:
    return name.endswith(".safetensors") or n_bytes > LFS_BYTES
