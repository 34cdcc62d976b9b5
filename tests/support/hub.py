"""A Hub of a few repositories in memory, behind HTTP on this machine, for the real client of huggingface_hub.

Start it with `serve()` and point a new process at it with HF_ENDPOINT. A private repository asks for the token. As the real
Hub does, it refuses a card whose `base_model` is no name of a repository, and takes weights by LFS: the batch endpoint, then
PUT (what the client does without Xet).
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

#: Whose token it is.
USER = "me"

#: How files end that the Hub wants by LFS.
LARGE = (".safetensors", ".bin")


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
        received: bodies of all requests, and the files in them as they are.
        broken: part of a path -> status with which requests to it fail.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repositories: dict[str, Repository] = {}
        self.seen: list[str] = []
        self.received: list[bytes] = []
        self.broken: dict[str, int] = {}
        self.objects: dict[str, bytes] = {}

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

    def begin(self) -> str | None:
        """Return the path that is asked for; None where it is broken, after having said so."""
        path = unquote(urlsplit(self.path).path)
        self.server.seen.append(f"{self.command} {path}")
        status = next((status for part, status in self.server.broken.items() if part in path), None)
        if status is None:
            return path
        self.close_connection = True
        self.send({"error": "the server has a bad day"}, status, Connection="close")
        return None

    def do_GET(self):
        """Send a file, or what is known of a repository or of the user."""
        if (path := self.begin()) is None:
            return
        if path == "/api/whoami-v2":
            known = self.headers.get("Authorization") == f"Bearer {TOKEN}"
            said = {"type": "user", "name": USER, "orgs": [], "auth": {"type": "access_token"}}
            self.send(said if known else {"error": "Invalid credentials"}, 200 if known else 401)
        elif match := re.fullmatch(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
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
            etag = f'"{hashlib.sha1(data).hexdigest()}"'
            linked = {}
            if file.endswith(LARGE):
                etag = f'"{hashlib.sha256(data).hexdigest()}"'
                linked = {"X_Linked_ETag": etag, "X_Linked_Size": str(len(data))}
            self.send(data, ETag=etag, X_Repo_Commit=repository.commits[revision], Accept_Ranges="bytes", **linked)

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
        data = self.body()
        if (path := self.begin()) is None:
            return
        if path == "/api/repos/create":
            self.create(json.loads(data))
        elif path == "/api/validate-yaml":
            self.validate(json.loads(data)["content"])
        elif match := re.fullmatch(r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            if self.allowed(match[1]) is not None:
                self.send_places(json.loads(data)["objects"])
        elif match := re.fullmatch(r"/api/models/([^/]+/[^/]+)/(preupload|commit|branch)/([^/]+)", path):
            name, kind, revision = match.groups()
            if (repository := self.allowed(name)) is not None:
                self.take(repository, name, kind, revision, data)
        else:
            self.refuse("EntryNotFound")

    def do_PUT(self):
        """Take one object of LFS."""
        data = self.body()
        if (path := self.begin()) is None:
            return
        digest = path.rpartition("/")[2]
        if hashlib.sha256(data).hexdigest() != digest:
            self.refuse("BadDigest", 400)
            return
        self.server.objects[digest] = data
        self.send()

    def body(self) -> bytes:
        """Read what is sent, in one piece or in chunks."""
        if self.headers.get("Transfer-Encoding") == "chunked":
            pieces = []
            while size := int(self.rfile.readline(), 16):
                pieces.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            data = b"".join(pieces)
        else:
            data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        self.server.received.append(data)
        return data

    def send_places(self, objects: list[dict]) -> None:
        """Say where objects of LFS are to be put; those that are there are not taken again."""
        answer = []
        for each in objects:
            known = each["oid"] in self.server.objects
            href = f"{self.server.endpoint}/lfs/{each['oid']}"
            answer.append(each if known else each | {"actions": {"upload": {"href": href}}})
        self.send({"transfer": "basic", "objects": answer}, Content_Type="application/vnd.git-lfs+json")

    def create(self, wanted: dict) -> None:
        """Create a repository."""
        if self.headers.get("Authorization") is None:
            self.refuse("Unauthorized", 401)
            return
        name = f"{wanted.get('organization') or USER}/{wanted['name']}"
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
        """Take files: small ones in the request itself, large ones that were put by LFS before."""
        if kind == "branch":
            repository.commit(revision, {})
            self.send({})
        elif kind == "preupload":
            modes = {True: "lfs", False: "regular"}
            files = [
                {"path": f["path"], "uploadMode": modes[f["path"].endswith(LARGE)], "shouldIgnore": False}
                for f in json.loads(data)["files"]
            ]
            self.send({"files": files})
        else:
            lines = [json.loads(line) for line in data.splitlines() if line.strip()]
            values = [(line["key"], line["value"]) for line in lines]
            files = {value["path"]: base64.b64decode(value["content"]) for key, value in values if key == "file"}
            files |= {value["path"]: self.server.objects[value["oid"]] for key, value in values if key == "lfsFile"}
            self.server.received += files.values()
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
