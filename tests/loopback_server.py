"""The fake hub's two servers: the hub itself, and the store of its large files."""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from tests.loopback_state import Fault, HubFile, HubRepo, HubState, Request


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, handler: "type[_Handler]", hub: HubState) -> None:
        super().__init__(("127.0.0.1", 0), partial(handler, hub))
        self.open: set[Any] = set()
        self._thread = threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop, and end the connections that clients keep for their next request."""
        self.shutdown()
        self._thread.join()
        for connection in list(self.open):
            self.shutdown_request(connection)
        self.server_close()

    def process_request(self, request: Any, client_address: Any) -> None:
        self.open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self.open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing: clients that leave early are what is tested."""


class _Handler(BaseHTTPRequestHandler):
    """What both servers have in common: how content is sent."""

    protocol_version = "HTTP/1.1"
    at_store = False

    def __init__(self, hub: HubState, *rest: Any) -> None:
        self.hub = hub
        super().__init__(*rest)

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        authorization = self.headers.get("Authorization")
        self.asked = Request(
            self.command,
            self.path,
            authorization.removeprefix("Bearer ") if authorization else None,
            self.at_store,
        )
        with self.hub.lock:
            self.hub.requests.append(self.asked)
        self.reply([unquote(part) for part in urlsplit(self.path).path.strip("/").split("/")])

    def reply(self, parts: list[str]) -> None:
        raise NotImplementedError

    def answer(
        self, status: int, headers: Mapping[str, str] | None = None, body: bytes = b""
    ) -> None:
        self._head(status, {**(headers or {}), "Content-Length": str(len(body))})
        if self.command != "HEAD":
            self.wfile.write(body)

    def refuse(self, status: int, code: str, message: str) -> None:
        self.answer(status, {"X-Error-Code": code, "X-Error-Message": message})

    def answer_file(self, name: str, file: HubFile, headers: dict[str, str]) -> None:
        """Send a file or its range, with the fault set for it."""
        self.asked.file = name
        fault = (self.hub.fault(name) if self.command == "GET" else None) or Fault()
        if fault.before is not None:
            fault.before()
        if fault.status is not None:
            self.answer(fault.status, fault.headers)
            return
        if file.path is None:
            self.answer(410)  # a test that asks for a hole is wrong, and a disk is soon full of it
            return
        n_bytes = file.n_bytes if fault.content is None else len(fault.content)
        start, end = (0, n_bytes) if fault.ignores_range else self._range(n_bytes)
        if start >= n_bytes > 0:
            self.answer(416, {"Content-Range": f"bytes */{n_bytes}"})
            return
        if start and fault.begins_at is not None:
            start = fault.begins_at
        self._send_head(start, end, n_bytes, headers)
        if self.command == "GET":
            self._send(self._pieces(file, fault, start, end), fault)

    def _range(self, n_bytes: int) -> tuple[int, int]:
        first, _, last = self.headers.get("Range", "bytes=0-").partition("=")[2].partition("-")
        return int(first), min(int(last) + 1, n_bytes) if last else n_bytes

    def _send_head(self, start: int, end: int, n_bytes: int, headers: dict[str, str]) -> None:
        headers = headers | {"Content-Length": str(end - start)}
        self.asked.start = start
        if start:
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{n_bytes}"
        self._head(206 if start else 200, headers)

    def _head(self, status: int, headers: Mapping[str, str]) -> None:
        self.asked.status = status
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def _pieces(self, file: HubFile, fault: Fault, start: int, end: int) -> Iterator[bytes]:
        if fault.content is None:
            yield from file.pieces(start, end)
        else:
            yield fault.content[start:end]

    def _send(self, pieces: Iterator[bytes], fault: Fault) -> None:
        stops = [n for n in (fault.break_after, fault.stall_after) if n is not None]
        room = min(stops, default=None)
        for piece in pieces:
            part = piece if room is None else piece[: room - self.asked.n_bytes]
            self.wfile.write(part)
            self.asked.n_bytes += len(part)
            if self.asked.n_bytes == room:
                self.wfile.flush()
                if fault.stall_after is not None:
                    self.hub.closing.wait()
                self.close_connection = True
                return
            if self.hub.piece_pause_s:
                time.sleep(self.hub.piece_pause_s)


class HubHandler(_Handler):
    """``/api/models/...``, and ``/{repo}/resolve/{revision}/{file}``."""

    def reply(self, parts: list[str]) -> None:
        match parts:
            case ["api", "resolve-cache", "models", owner, name, commit, *path]:
                files = self.hub.repos[f"{owner}/{name}"].commits[commit]
                file = files["/".join(path)]
                headers = {"X-Repo-Commit": commit, "ETag": f'"{file.checksum}"'}
                self.answer_file("/".join(path), file, headers)
            case ["api", "models", owner, name, "revision", revision]:
                self._api(f"{owner}/{name}", revision, self._info)
            case ["api", "models", owner, name, "tree", revision]:
                self._api(f"{owner}/{name}", revision, self._tree)
            case [owner, name, "resolve", revision, *path]:
                self._resolve(f"{owner}/{name}", revision, "/".join(path))
            case _:
                self.refuse(404, "RepoNotFound", "Repository not found")

    def _repo(self, repo_id: str) -> HubRepo | None:
        """Return a repo that the token may see, or refuse; a token nobody has is always refused."""
        repo, token = self.hub.repos.get(repo_id), self.asked.token
        if token is not None and token not in [repo.token for repo in self.hub.repos.values()]:
            self.answer(401, {"X-Error-Message": "Invalid credentials in Authorization header"})
        elif repo is None or (repo.token is not None and not repo.gated and token != repo.token):
            self.refuse(404 if token else 401, "RepoNotFound", "Repository not found")
        else:
            return repo
        return None

    def _commit(self, repo: HubRepo, revision: str) -> str | None:
        commit = repo.refs.get(revision, revision)
        if commit not in repo.commits:
            self.refuse(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return None
        return commit

    def _api(self, repo_id: str, revision: str, reply: Callable[[str, str], None]) -> None:
        fault = self.hub.fault("api") or Fault()
        if fault.before is not None:
            fault.before()
        if fault.status is not None:
            self.answer(fault.status, fault.headers)
            return
        repo = self._repo(repo_id)
        commit = repo and self._commit(repo, revision)
        if commit:
            reply(repo_id, commit)

    def _info(self, repo_id: str, commit: str) -> None:
        siblings = [{"rfilename": name} for name in self.hub.repos[repo_id].commits[commit]]
        facts = {"_id": "1", "id": repo_id, "modelId": repo_id, "sha": commit, "private": False}
        body = json.dumps(facts | {"tags": [], "downloads": 0, "siblings": siblings}).encode()
        self.answer(200, {"Content-Type": "application/json"}, body)

    def _tree(self, repo_id: str, commit: str) -> None:
        entries = _entries(self.hub.repos[repo_id].commits[commit])
        address = urlsplit(self.path)
        start = int(parse_qs(address.query).get("cursor", ["0"])[0])
        end = start + self.hub.page
        headers = {"Content-Type": "application/json"}
        if end < len(entries):
            query = f"recursive=true&cursor={end}"
            headers["Link"] = f'<{self.hub.url}{address.path}?{query}>; rel="next"'
        self.answer(200, headers, json.dumps(entries[start:end]).encode())

    def _resolve(self, repo_id: str, revision: str, name: str) -> None:
        self.asked.file = name
        repo = self._repo(repo_id)
        if repo is None:
            return
        if repo.gated and self.asked.token != repo.token:
            status = 403 if self.asked.token else 401
            self.refuse(status, "GatedRepo", f"Access to model {repo_id} is restricted")
            return
        commit = self._commit(repo, revision)
        file = repo.commits[commit].get(name) if commit else None
        if commit is None:
            return
        if file is None:
            self.refuse(404, "EntryNotFound", "Entry not found")
            return
        headers = {"X-Repo-Commit": commit, "X-Linked-Size": str(file.n_bytes)}
        headers["X-Linked-ETag"] = f'"{file.checksum}"'
        if file.is_large:
            location = f"{self.hub.store_url}/{repo_id}/{commit}/{name}"
        else:
            location = f"/api/resolve-cache/models/{repo_id}/{commit}/{name}"
        self.answer(302 if file.is_large else 307, headers | {"Location": location})


class StoreHandler(_Handler):
    """``/{repo}/{commit}/{file}``: the content of large files."""

    at_store = True

    def reply(self, parts: list[str]) -> None:
        owner, name, commit, *path = parts
        file = self.hub.repos[f"{owner}/{name}"].commits[commit]["/".join(path)]
        self.answer_file("/".join(path), file, {"ETag": f'"{file.checksum}"'})


def _entries(files: dict[str, HubFile]) -> list[dict[str, Any]]:
    """Return a tree's entries as the hub gives them, folders too."""
    folders = {str(parent) for name in files for parent in Path(name).parents} - {"."}
    entries: list[dict[str, Any]] = [
        {"type": "directory", "oid": "0" * 40, "size": 0, "path": name} for name in sorted(folders)
    ]
    for name, file in sorted(files.items()):
        entry = {"type": "file", "oid": file.git_id, "size": file.n_bytes, "path": name}
        if file.is_large:
            entry["lfs"] = {"oid": file.checksum, "size": file.n_bytes, "pointerSize": 135}
        entries.append(entry)
    return entries
