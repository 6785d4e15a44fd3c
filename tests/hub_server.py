"""A Hub on loopback, for tests: the real clients are pointed at it by ``HF_ENDPOINT``.

It speaks what huggingface_hub, transformers, datasets and peft ask of the Hub's HTTP interface: who a token belongs
to, making repositories, information, tree and paths at a revision, files with ranges and etags (large ones through a
redirect to a second host, as the Hub's storage is one), preupload, LFS batch, upload and verify, commits on a parent,
pull requests, references, and the headers by which clients tell one error from another. Faults come on demand::

    hub = Hub().start()
    hub.user("me", token="hf_me")
    hub.add("someone/model", {"config.json": b"{}"})
    hub.fail("POST", r"/commit/main", status=503, times=2, retry_after=0)
    env = hub.environment(home, token="hf_me")

Xet is not spoken, so clients run with ``HF_HUB_DISABLE_XET=1``.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml

LFS_SUFFIXES = (".safetensors", ".bin", ".parquet", ".zip", ".npy")
NEVER = "0" * 40


@dataclass(frozen=True)
class Blob:
    """A file at a commit."""

    content: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.content).hexdigest()

    @property
    def pointer(self) -> bytes:
        return (
            f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(self.content)}\n"
        ).encode()

    @property
    def git_oid(self) -> str:
        stored = self.pointer if self.lfs else self.content
        return hashlib.sha1(b"blob %d\0" % len(stored) + stored).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.lfs else self.git_oid


@dataclass(frozen=True)
class Commit:
    """A snapshot of all files."""

    sha: str
    parent: str
    title: str
    files: Mapping[str, Blob]


@dataclass
class Repo:
    """A repository: commits, and the names that point at them."""

    id: str
    type: str
    private: bool = False
    gated: bool = False
    allowed: set[str] = field(default_factory=set)
    commits: dict[str, Commit] = field(default_factory=dict)
    refs: dict[str, str] = field(default_factory=dict)

    def at(self, revision: str) -> Commit | None:
        return self.commits.get(self.refs.get(revision, revision))

    @property
    def head(self) -> Commit:
        return self.commits[self.refs["main"]]

    def history(self, revision: str = "main") -> list[Commit]:
        """Commits from the newest to the first."""
        found, commit = [], self.at(revision)
        while commit is not None:
            found.append(commit)
            commit = self.commits.get(commit.parent)
        return found

    def commit(self, files: Mapping[str, Blob], title: str, ref: str, parent: str = NEVER) -> Commit:
        tree = sorted((path, blob.git_oid) for path, blob in files.items())
        sha = hashlib.sha1(json.dumps([tree, title, parent, len(self.commits)]).encode()).hexdigest()
        self.commits[sha] = Commit(sha, parent, title, dict(files))
        self.refs[ref] = sha
        return self.commits[sha]


@dataclass
class Fault:
    """What is to go wrong, and how often.

    Attributes:
        method: of the request.
        path: a regular expression searched for in the path and query.
        times: how many requests fail.
        status: answer with this status; None to cut the connection instead.
        headers: of the answer.
        cut: ``"request"`` in the middle of what the client sends, ``"answer"`` in the middle of what the server sends,
            ``"after"`` when everything was done and the client waits for the answer.
    """

    method: str
    path: str
    times: int
    status: int | None
    headers: dict[str, str]
    cut: str


@dataclass(frozen=True)
class Request:
    """A request that came, for tests to look at."""

    method: str
    path: str
    headers: Mapping[str, str]
    host: str
    status: int


class Answer(Exception):  # noqa: N818  # it may be a good one
    """An answer, raised from wherever it is known."""

    def __init__(
        self, status: int, body: bytes | dict[str, Any] | list[Any] = b"", headers: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(status)
        self.status = status
        self.body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.headers = dict(headers or {})
        if not isinstance(body, bytes):
            self.headers["Content-Type"] = "application/json; charset=utf-8"


def error(status: int, message: str, code: str | None = None, **headers: str) -> Answer:
    """An error as the Hub sends it: a message in the body and in a header, and a code."""
    named = {"X-Error-Code": code} if code else {}
    return Answer(status, {"error": message}, {"X-Error-Message": message, **named, **headers})


class Hub:
    """The server; see the module's docstring.

    Attributes:
        repos: by type (``"models"``, ``"datasets"``) and id.
        stored: LFS objects by their sha256.
        requests: all that came, in order.
    """

    page = 100  # entries of one page of a tree
    storage_query = ""  # of the addresses of large files, such as a signature

    def __init__(self) -> None:
        self.repos: dict[tuple[str, str], Repo] = {}
        self.stored: dict[str, bytes] = {}
        self.users: dict[str, tuple[str, str]] = {}
        self.requests: list[Request] = []
        self.faults: list[Fault] = []
        self.lock = threading.RLock()
        self._servers: list[ThreadingHTTPServer] = []

    def start(self) -> Hub:
        """Listen on two ports of the loopback device: the Hub, and the storage that large files are on."""
        for kind in (HubHandler, StorageHandler):
            server = Server(("127.0.0.1", 0), type(kind.__name__, (kind,), {"hub": self}))
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            self._servers.append(server)
        self.url, self.storage_url = (f"http://127.0.0.1:{server.server_address[1]}" for server in self._servers)
        return self

    def stop(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()

    def __enter__(self) -> Hub:
        return self.start()

    def __exit__(self, *_: object) -> None:
        self.stop()

    def environment(self, home: Path, token: str | None = None, **more: str) -> dict[str, str]:
        """The environment of a client process: this Hub, caches under ``home``, none of the user's own settings."""
        env = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "HFTL_", "HUGGING"))}
        env |= {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home / "hf"),
            "HFTL_CACHE": str(home / "hftl"),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "NO_PROXY": "127.0.0.1",
        }
        return env | ({"HF_TOKEN": token} if token else {}) | more

    def user(self, name: str, token: str, role: str = "write") -> None:
        """Let a token speak for a user, whose namespace is their name."""
        self.users[token] = (name, role)

    def add(
        self, repo_id: str, files: Mapping[str, bytes] | Path, type: str = "models", ref: str = "main", **options: Any
    ) -> Repo:
        """Add a repository, or a commit to it, from contents or from a folder."""
        if isinstance(files, Path):
            files = {p.relative_to(files).as_posix(): p.read_bytes() for p in files.rglob("*") if p.is_file()}
        with self.lock:
            repo = self.repos.setdefault((type, repo_id), Repo(repo_id, type))
            for name, value in options.items():
                setattr(repo, name, value)
            parent = repo.at(ref) or repo.at("main")
            blobs = {path: Blob(content, path.endswith(LFS_SUFFIXES)) for path, content in files.items()}
            self.stored |= {blob.sha256: blob.content for blob in blobs.values() if blob.lfs}
            repo.commit((dict(parent.files) if parent else {}) | blobs, "add", ref, parent.sha if parent else NEVER)
        return repo

    def fail(
        self,
        method: str,
        path: str,
        *,
        times: int = 1,
        status: int | None = None,
        cut: str = "answer",
        retry_after: int | None = None,
        **headers: str,
    ) -> None:
        """Let the next requests that match go wrong."""
        if retry_after is not None:
            headers["Retry-After"] = str(retry_after)
        self.faults.append(Fault(method, path, times, status, headers, cut))

    def count(self, method: str, path: str) -> int:
        """How many requests matched."""
        return sum(r.method == method and re.search(path, r.path) is not None for r in self.requests)

    def take_fault(self, method: str, path: str) -> Fault | None:
        with self.lock:
            for fault in self.faults:
                if fault.times > 0 and fault.method == method and re.search(fault.path, path):
                    fault.times -= 1
                    return fault
        return None


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that a fault cut is no news."""


class Handler(BaseHTTPRequestHandler):
    """What both hosts share: reading a request, answering it or failing as asked."""

    protocol_version = "HTTP/1.1"
    hub: ClassVar[Hub]

    def handle_any(self) -> None:
        parts = urlsplit(self.path)
        self.query = {name: values[-1] for name, values in parse_qs(parts.query).items()}
        self.where = unquote(parts.path)
        fault = self.hub.take_fault(self.command, self.path)
        if fault and fault.status is None and fault.cut == "request":
            self.rfile.read(min(1024, int(self.headers.get("Content-Length") or 1024)))
            return self.hang_up(0)
        self.body = self.read_body()
        if fault and fault.status is not None:
            return self.send(error(fault.status, "asked to fail", **fault.headers))
        try:
            answer = self.answer(parts.path)
        except Answer as raised:
            answer = raised
        if fault and fault.cut == "after":
            return self.hang_up(answer.status)
        return self.send(answer, cut=fault is not None)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = handle_any  # noqa: N815  # the base class calls them so

    def answer(self, path: str) -> Answer:
        raise NotImplementedError

    def read_body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline(), 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def send(self, answer: Answer, cut: bool = False) -> None:
        self.log(answer.status)
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        if "Content-Length" not in answer.headers:
            self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body[: len(answer.body) // 2] if cut else answer.body)
        if cut:
            self.hang_up(None)

    def hang_up(self, status: int | None) -> None:
        """Close without a word; with a reset, as a lost connection looks to the client."""
        if status is not None:
            self.log(status)
        self.wfile.flush()
        if status is not None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def log(self, status: int) -> None:
        host = "storage" if isinstance(self, StorageHandler) else "hub"
        self.hub.requests.append(Request(self.command, self.path, dict(self.headers), host, status))

    def log_message(self, *_: object) -> None:
        """Keep quiet."""


class StorageHandler(Handler):
    """Where large files lie: signed addresses, so no token is due here."""

    def answer(self, path: str) -> Answer:
        sha256 = path.rsplit("/", 1)[-1]
        if self.command == "PUT":
            if hashlib.sha256(self.body).hexdigest() != sha256:
                raise Answer(400, b"<Error>BadDigest</Error>")
            self.hub.stored[sha256] = self.body
            return Answer(200, b"", {"ETag": f'"{sha256}"'})
        if sha256 not in self.hub.stored:
            raise Answer(404)
        return ranged(self.hub.stored[sha256], self.headers.get("Range"), {"ETag": f'"{sha256}"'})


Route = Callable[["HubHandler", re.Match[str]], Answer]
ROUTES: list[tuple[str, re.Pattern[str], Route]] = []
TYPE, ID, REV = r"(?P<type>models|datasets|spaces)", r"(?P<id>[\w.-]+/[\w.-]+?|[\w.-]+)", r"(?P<rev>[^/]+)"


def route(method: str, pattern: str) -> Callable[[Route], Route]:
    def add(function: Route) -> Route:
        ROUTES.append((method, re.compile(pattern), function))
        return function

    return add


class HubHandler(Handler):
    """The Hub's interface."""

    def answer(self, path: str) -> Answer:
        # Revisions come with their slashes quoted, so paths are matched as they are sent and unquoted part by part.
        method = "GET" if self.command == "HEAD" else self.command
        for wanted, pattern, function in ROUTES:
            if wanted == method and (match := pattern.fullmatch(path)):
                with self.hub.lock:
                    return function(self, match)
        raise error(404, f"no such route: {self.command} {path}")

    def caller(self) -> tuple[str, str] | None:
        """The user's name and the token's role; None without a token."""
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        if not token:
            return None
        if token not in self.hub.users:
            raise error(401, "Invalid credentials in Authorization header")
        return self.hub.users[token]

    def repo(self, match: re.Match[str], *, contents: bool = False, write: bool = False) -> Repo:
        """The repository of a request, if the caller may see it, read its ``contents``, or ``write`` to it."""
        caller, repo = self.caller(), self.hub.repos.get((match["type"] or "models", match["id"]))
        name = caller[0] if caller else None
        mine = repo is not None and repo.id.split("/")[0] == name
        if repo is None or (repo.private and not mine):
            # The Hub tells strangers 401 and users 404, of what is private and of what is not there alike.
            raise error(404 if caller else 401, "Repository not found", "RepoNotFound")
        if contents and repo.gated and not mine and name not in repo.allowed:
            message = f"Access to {repo.type[:-1]} {repo.id} is restricted."
            raise error(403 if caller else 401, message, "GatedRepo")
        if write and not (mine and caller and caller[1] == "write"):
            raise error(403, "You don't have the rights to create or change this repository")
        return repo

    def commit_of(self, repo: Repo, revision: str) -> Commit:
        commit = repo.at(unquote(revision))
        if commit is None:
            raise error(404, f"Invalid rev id: {unquote(revision)}", "RevisionNotFound")
        return commit


# ── reading ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@route("GET", "/api/whoami-v2")
def whoami(self: HubHandler, match: re.Match[str]) -> Answer:
    caller = self.caller()
    if caller is None:
        raise error(401, "Invalid credentials in Authorization header")
    role = {"type": "access_token", "accessToken": {"displayName": "test", "role": caller[1]}}
    return Answer(200, {"type": "user", "name": caller[0], "orgs": [], "auth": role})


@route("GET", f"/api/{TYPE}/{ID}(/revision/{REV})?")
def info(self: HubHandler, match: re.Match[str]) -> Answer:
    repo = self.repo(match)
    commit = self.commit_of(repo, match["rev"] or "main")
    readme = commit.files.get("README.md")
    found = re.match(r"---\n(.*?)\n---\n", readme.content.decode(), re.DOTALL) if readme else None
    told = {
        "id": repo.id,
        "sha": commit.sha,
        "private": repo.private,
        "gated": "auto" if repo.gated else False,
        "disabled": False,
        "tags": [],
        "siblings": [{"rfilename": path} for path in sorted(commit.files)],
        "cardData": yaml.safe_load(found[1]) if found else None,
    }
    return Answer(200, told)


def described(path: str, blob: Blob) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "oid": blob.git_oid, "size": len(blob.content), "path": path}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.content), "pointerSize": len(blob.pointer)}
    return entry


def entries(commit: Commit, folder: str = "") -> Iterator[dict[str, Any]]:
    """Everything below a folder, folders first seen first."""
    prefix, seen = folder and f"{folder}/", set()
    for path, blob in sorted(commit.files.items()):
        if not path.startswith(prefix):
            continue
        parts = path.removeprefix(prefix).split("/")
        for depth in range(1, len(parts)):
            inner = prefix + "/".join(parts[:depth])
            if inner not in seen:
                seen.add(inner)
                oid = hashlib.sha1(inner.encode()).hexdigest()
                yield {"type": "directory", "oid": oid, "size": 0, "path": inner}
        yield described(path, blob)


@route("GET", f"/api/{TYPE}/{ID}/tree/{REV}(/(?P<path>.*))?")
def tree(self: HubHandler, match: re.Match[str]) -> Answer:
    repo = self.repo(match, contents=True)
    commit = self.commit_of(repo, match["rev"])
    folder = unquote(match["path"] or "").strip("/")
    found = list(entries(commit, folder))
    if folder and not found:
        raise error(404, f"{folder} does not exist on {match['rev']}", "EntryNotFound")
    if self.query.get("recursive", "").lower() != "true":
        found = [e for e in found if "/" not in e["path"].removeprefix(folder and f"{folder}/")]
    start = int(self.query.get("cursor", 0))
    headers = {}
    if start + self.hub.page < len(found):
        query = "&".join(f"{k}={quote(v)}" for k, v in self.query.items() if k != "cursor")
        following = f"{self.hub.url}{urlsplit(self.path).path}?{query}&cursor={start + self.hub.page}"
        headers["Link"] = f'<{following}>; rel="next"'
    return Answer(200, found[start : start + self.hub.page], headers)


@route("POST", f"/api/{TYPE}/{ID}/paths-info/{REV}")
def paths_info(self: HubHandler, match: re.Match[str]) -> Answer:
    commit = self.commit_of(self.repo(match, contents=True), match["rev"])
    wanted = set(parse_qs(self.body.decode()).get("paths", []))
    return Answer(200, [entry for entry in entries(commit) if entry["path"] in wanted])


@route("GET", f"/api/{TYPE}/{ID}/refs")
def refs(self: HubHandler, match: re.Match[str]) -> Answer:
    repo = self.repo(match)
    branches = [
        {"name": name, "ref": f"refs/heads/{name}", "targetCommit": sha}
        for name, sha in repo.refs.items()
        if not name.startswith("refs/")
    ]
    pulls = [
        {"name": name, "ref": name, "targetCommit": sha} for name, sha in repo.refs.items() if name.startswith("refs/")
    ]
    return Answer(200, {"branches": branches, "converts": [], "tags": [], "pullRequests": pulls})


@route("GET", f"/((?P<type>datasets|spaces)/)?{ID}/resolve/{REV}/(?P<path>.+)")
def resolve(self: HubHandler, match: re.Match[str]) -> Answer:
    repo = self.repo(match, contents=True)
    commit = self.commit_of(repo, match["rev"])
    path = unquote(match["path"])
    headers = {"X-Repo-Commit": commit.sha}
    if path not in commit.files:
        raise error(404, "Entry not found", "EntryNotFound", **headers)
    blob = commit.files[path]
    if blob.lfs:
        headers |= {"X-Linked-Etag": f'"{blob.sha256}"', "X-Linked-Size": str(len(blob.content))}
        return Answer(302, b"", headers | {"Location": f"{self.hub.storage_url}/{blob.sha256}{self.hub.storage_query}"})
    return ranged(blob.content, self.headers.get("Range"), headers | {"ETag": f'"{blob.etag}"'})


def ranged(content: bytes, asked: str | None, headers: dict[str, str]) -> Answer:
    """The whole of a content, or the range that is asked for."""
    headers["Accept-Ranges"] = "bytes"
    found = re.fullmatch(r"bytes=(\d+)-(\d*)", asked or "")
    if found is None:
        return Answer(200, content, headers)
    start, end = int(found[1]), min(int(found[2] or len(content) - 1), len(content) - 1)
    if start > end:
        raise Answer(416, b"", {"Content-Range": f"bytes */{len(content)}"})
    return Answer(206, content[start : end + 1], headers | {"Content-Range": f"bytes {start}-{end}/{len(content)}"})


# ── writing ──────────────────────────────────────────────────────────────────────────────────────────────────────────


@route("POST", "/api/repos/create")
def create(self: HubHandler, match: re.Match[str]) -> Answer:
    caller, asked = self.caller(), json.loads(self.body)
    if caller is None:
        raise error(401, "Invalid username or password.")
    owner = asked.get("organization") or caller[0]
    if owner != caller[0] or caller[1] != "write":
        raise error(403, f'You don\'t have the rights to create a model under the namespace "{owner}"')
    repo_type, repo_id = asked.get("type", "model") + "s", f"{owner}/{asked['name']}"
    url = f"{self.hub.url}/{'' if repo_type == 'models' else repo_type + '/'}{repo_id}"
    if (repo_type, repo_id) in self.hub.repos:
        raise Answer(409, {"error": f"You already created this {repo_type[:-1]} repo", "url": url})
    repo = Repo(repo_id, repo_type, private=asked.get("visibility") == "private" or bool(asked.get("private")))
    repo.commit({".gitattributes": Blob(b"*.safetensors filter=lfs\n", False)}, "initial commit", "main")
    self.hub.repos[repo_type, repo_id] = repo
    return Answer(200, {"url": url, "name": repo_id, "id": repo_id})


@route("POST", "/api/validate-yaml")
def validate_yaml(self: HubHandler, match: re.Match[str]) -> Answer:
    found = re.match(r"---\n(.*?)\n---\n", json.loads(self.body)["content"], re.DOTALL)
    try:
        metadata = yaml.safe_load(found[1]) if found else None
    except yaml.YAMLError as problem:
        raise Answer(400, {"errors": [{"message": str(problem)}], "warnings": []}) from problem
    warnings = [] if isinstance(metadata, dict) else [{"message": "empty or missing yaml metadata in repo card"}]
    return Answer(200, {"errors": [], "warnings": warnings})


@route("POST", f"/api/{TYPE}/{ID}/branch/{REV}")
def branch(self: HubHandler, match: re.Match[str]) -> Answer:
    repo, name = self.repo(match, write=True), unquote(match["rev"])
    if name in repo.refs:
        raise error(409, f"Reference already exists: refs/heads/{name}")
    start = json.loads(self.body or b"{}").get("startingPoint", "main")
    repo.refs[name] = self.commit_of(repo, start).sha
    return Answer(201, b"Created")


@route("POST", f"/api/{TYPE}/{ID}/preupload/{REV}")
def preupload(self: HubHandler, match: re.Match[str]) -> Answer:
    repo = self.repo(match, contents=True, write="create_pr" not in self.query)
    commit = self.commit_of(repo, match["rev"])
    ignored = commit.files[".gitignore"].content.decode().split() if ".gitignore" in commit.files else []
    told = []
    for file in json.loads(self.body)["files"]:
        mode = "lfs" if file["path"].endswith(LFS_SUFFIXES) or file["size"] > 5_000_000 else "regular"
        now = commit.files.get(file["path"])
        entry = {"path": file["path"], "uploadMode": mode, "shouldIgnore": file["path"] in ignored}
        told.append(entry | {"oid": now and now.etag})
    return Answer(200, {"files": told, "commitOid": commit.sha})


@route("POST", f"/((?P<type>datasets|spaces)/)?{ID}\\.git/info/lfs/objects/batch")
def lfs_batch(self: HubHandler, match: re.Match[str]) -> Answer:
    self.repo(match, contents=True)
    if self.caller() is None:
        raise error(401, "Invalid username or password.")
    told = []
    for thing in json.loads(self.body)["objects"]:
        entry = {"oid": thing["oid"], "size": thing["size"]}
        if thing["oid"] not in self.hub.stored:
            entry["actions"] = {
                "upload": {"href": f"{self.hub.storage_url}/{thing['oid']}"},
                "verify": {"href": f"{self.hub.url}/lfs-verify"},
            }
        told.append(entry)
    return Answer(200, {"transfer": "basic", "objects": told})


@route("POST", "/lfs-verify")
def lfs_verify(self: HubHandler, match: re.Match[str]) -> Answer:
    thing = json.loads(self.body)
    if len(self.hub.stored.get(thing["oid"], b"")) != thing["size"]:
        raise error(404, "Object not found")
    return Answer(200, {})


@route("POST", f"/api/{TYPE}/{ID}/commit/{REV}")
def commit(self: HubHandler, match: re.Match[str]) -> Answer:
    pull = self.query.get("create_pr") == "1"
    repo = self.repo(match, contents=True, write=not pull)
    if self.caller() is None:
        raise error(401, "Invalid username or password.")
    revision = unquote(match["rev"])
    head = self.commit_of(repo, revision)
    lines = [json.loads(line) for line in self.body.splitlines()]
    header = lines[0]["value"]
    if not pull and header.get("parentCommit") not in (None, head.sha):
        raise error(412, "A commit has happened since. Please refresh and try again.")
    parent = self.commit_of(repo, header.get("parentCommit") or head.sha)
    files = dict(parent.files)
    for line in lines[1:]:
        apply(self.hub, files, line["key"], line["value"])
    ref = f"refs/pr/{1 + sum(name.startswith('refs/pr/') for name in repo.refs)}" if pull else revision
    made = repo.commit(files, header["summary"], ref, parent.sha)
    where = f"{self.hub.url}/{'' if repo.type == 'models' else repo.type + '/'}{repo.id}"
    told = {"success": True, "commitOid": made.sha, "commitUrl": f"{where}/commit/{made.sha}", "hookOutput": ""}
    return Answer(200, told | ({"pullRequestUrl": f"{where}/discussions/{ref.rsplit('/', 1)[-1]}"} if pull else {}))


def apply(hub: Hub, files: dict[str, Blob], key: str, value: dict[str, Any]) -> None:
    """Do one operation of a commit."""
    path = value["path"]
    if ".." in path.split("/") or path.startswith("/"):
        raise error(400, f"Invalid path: {path}")
    if key == "file":
        files[path] = Blob(base64.b64decode(value["content"]), False)
    elif key == "lfsFile":
        if value["oid"] not in hub.stored:
            raise error(400, f"LFS pointer pointed to a file that does not exist: {path}")
        files[path] = Blob(hub.stored[value["oid"]], True)
    elif key in ("deletedFile", "deletedFolder"):
        gone = [name for name in files if name == path or name.startswith(path.rstrip("/") + "/")]
        if not gone:
            raise error(404, "A file with this name doesn't exist", "EntryNotFound")
        for name in gone:
            del files[name]
    else:
        raise error(400, f"Unknown operation {key}")
