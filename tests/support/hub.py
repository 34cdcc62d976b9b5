"""A Hub of a few repositories in memory, behind HTTP on this machine, for the real client of huggingface_hub.

Start it with `serve()` and point a new process at it with HF_ENDPOINT. A private repository asks for the token. As the real
Hub does, it refuses a card whose `base_model` is no name of a repository.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote, urlsplit


TOKEN = "hf_" + "t" * 34


class Repository:
    """The files of each revision: of branches by name, of commits by their hash."""

    def __init__(self, private: bool):
        self.private = private
        self.revisions: dict[str, dict[str, bytes]] = {}
        self.commits: dict[str, str] = {}
        self.commit("main", {})

    def commit(self, branch: str, files: dict[str, bytes]) -> str:
        """Add files to a branch, which starts from main, and return the hash."""
        now = {**self.revisions.get(branch, self.revisions.get("main", {})), **files}
        digest = hashlib.sha1(f"{branch}{len(self.revisions)}{sorted(now)}".encode()).hexdigest()
        self.revisions[branch] = self.revisions[digest] = now
        self.commits[branch] = self.commits[digest] = digest
        return digest


class Hub(ThreadingHTTPServer):
    """The server.

    Attributes:
        repositories: by name.
        seen: method and path of every request.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.seen: list[str] = []

    @property
    def endpoint(self) -> str:
        """What HF_ENDPOINT has to be."""
        return f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    """Answers what the client asks to create, upload and download."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args):
        """Say nothing."""

    def send(self, body: bytes | dict | list = b"", status: int = 200, **headers) -> None:
        """Send an answer."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def refuse(self, code: str, status: int = 404) -> None:
        """Send an error as the Hub names it."""
        self.send({"error": code}, status, X_Error_Code=code)

    def allowed(self, name: str) -> Repository | None:
        """Return a repository, or refuse."""
        repository = self.server.repositories.get(name)
        if repository is None or (repository.private and self.headers.get("Authorization") != f"Bearer {TOKEN}"):
            self.refuse("RepoNotFound", 401 if repository else 404)
            return None
        return repository

    def do_GET(self):
        """Send a file, or what is known of a repository."""
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append(f"{self.command} {path}")
        if match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(*match.groups())
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/(revision|tree)/([^/]+).*)?", path):
            name, kind, revision = match.groups()
            if (repository := self.allowed(name)) is not None:
                self.send_info(repository, name, kind, revision or "main")
        else:
            self.refuse("EntryNotFound")

    do_HEAD = do_GET  # noqa: N815 (names of the standard library's)

    def send_file(self, name: str, revision: str, file: str) -> None:
        """Send one file."""
        if (repository := self.allowed(name)) is None:
            return
        if revision not in repository.revisions:
            self.refuse("RevisionNotFound")
        elif file not in repository.revisions[revision]:
            self.refuse("EntryNotFound")
        else:
            data = repository.revisions[revision][file]
            etag = hashlib.sha1(data).hexdigest()
            self.send(data, ETag=f'"{etag}"', X_Repo_Commit=repository.commits[revision], Accept_Ranges="bytes")

    def send_info(self, repository: Repository, name: str, kind: str | None, revision: str) -> None:
        """Send what is known of a repository, or its list of files."""
        if revision not in repository.revisions:
            self.refuse("RevisionNotFound")
            return
        files = repository.revisions[revision]
        if kind == "tree":
            self.send([{"type": "file", "path": f, "size": len(d), "oid": "0" * 40} for f, d in files.items()])
        else:
            siblings = [{"rfilename": file} for file in files]
            sha = repository.commits[revision]
            self.send({"id": name, "modelId": name, "sha": sha, "private": repository.private, "siblings": siblings})

    def do_POST(self):
        """Create a repository or a branch, or take files."""
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append(f"POST {path}")
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if path == "/api/repos/create":
            self.create(json.loads(data))
        elif path == "/api/validate-yaml":
            self.validate(json.loads(data)["content"])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)", path):
            name, kind, revision = match.groups()
            if (repository := self.allowed(name)) is not None:
                self.take(repository, name, kind, revision, data)
        else:
            self.refuse("EntryNotFound")

    def create(self, wanted: dict) -> None:
        """Create a repository."""
        name = f"{wanted.get('organization') or 'me'}/{wanted['name']}"
        known = name in self.server.repositories
        self.server.repositories.setdefault(
            name, Repository(wanted.get("visibility") == "private" or bool(wanted.get("private")))
        )
        self.send({"url": f"{self.server.endpoint}/{name}", "name": name}, 409 if known else 200)

    def validate(self, card: str) -> None:
        """Refuse a card whose base model is no name of a repository."""
        base = re.search(r"^base_model: *(.+)$", card, re.MULTILINE)
        bad = base is not None and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", base[1].strip())
        errors = [{"message": '"base_model" must be a name of a repository'}] if bad else []
        self.send({"errors": errors, "warnings": []}, 400 if bad else 200)

    def take(self, repository: Repository, name: str, kind: str, revision: str, data: bytes) -> None:
        """Take files, all of them in the request itself."""
        if kind == "branch":
            repository.commit(revision, {})
            self.send({})
        elif kind == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(data)["files"]
            ]
            self.send({"files": files})
        else:
            lines = [json.loads(line) for line in data.splitlines() if line.strip()]
            files = {
                line["value"]["path"]: base64.b64decode(line["value"]["content"])
                for line in lines
                if line["key"] == "file"
            }
            digest = repository.commit(revision, files)
            url = f"{self.server.endpoint}/{name}/commit/{digest}"
            self.send({"success": True, "commitOid": digest, "commitUrl": url, "hookOutput": ""})


@contextmanager
def serve() -> Iterator[Hub]:
    """Serve a Hub until the block ends."""
    hub = Hub()
    thread = threading.Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()
