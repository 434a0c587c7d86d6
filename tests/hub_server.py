"""A small Hub for tests, in memory: the HTTP interface that huggingface_hub, transformers and datasets use.

Clients are unmodified. They need `HF_ENDPOINT` (or `HfApi(endpoint=...)`), a token for writing, and
`HF_HUB_DISABLE_XET=1`, so that
large files go through plain Git LFS. Faults are switched on with `HubServer.fail`.
"""

import base64
import hashlib
import json
import re
import socket
import struct
import threading
import time
from collections.abc import Iterable
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, quote, unquote, urlsplit

import yaml


TOKEN = "hf_of_the_tests"
DATE = "2026-01-01T00:00:00.000Z"
LFS_SUFFIXES = (".safetensors", ".parquet", ".png", ".bin")
KINDS = {"models": "model", "datasets": "dataset", "spaces": "space", None: "model"}
STATUS_FAULTS = {
    "401": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}, "Invalid username or password."),
    "403": (403, {"X-Error-Code": "GatedRepo"}, "Access to this repository is restricted."),
    "409": (409, {}, "You already created this repository"),
    "429": (429, {"Retry-After": "0"}, "Too many requests"),
    "500": (500, {}, "Internal error"),
    "503": (503, {"Retry-After": "0"}, "Service unavailable"),
    "507": (507, {}, "Insufficient storage"),
}


@dataclass
class Blob:
    """A file: `data`, kept in Git LFS or as a regular blob."""

    data: bytes
    lfs: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_oid(self) -> str:
        """sha1 of the Git object; of an LFS file that is its pointer."""
        data = self.data
        if self.lfs:
            data = f"version https://git-lfs.github.com/spec/v1\noid sha256:{self.sha256}\nsize {len(data)}\n".encode()
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def oid(self) -> str:
        """What pre-upload and ETag state: the sha256 of an LFS file, else the Git object's sha1."""
        return self.sha256 if self.lfs else self.git_oid


@dataclass
class Repo:
    """Commits by sha (path -> Blob), branches and tags as names of commits."""

    private: bool = False
    commits: dict[str, dict[str, Blob]] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    branches: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, files: dict[str, Blob], title: str) -> str:
        parent = self.branches.get(branch, "")
        listing = "".join(f"{path} {blob.oid}\n" for path, blob in sorted(files.items()))
        sha = hashlib.sha1(f"{parent} {len(self.commits)} {title}\n{listing}".encode()).hexdigest()
        self.commits[sha], self.titles[sha], self.branches[branch] = files, title, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        named = self.branches.get(revision) or self.tags.get(revision)
        return named or (revision if revision in self.commits else None)


@dataclass
class Fault:
    """What goes wrong, and at which request.

    kind: "reset" (the connection breaks before the request is done), "lost" (it is done, but the connection breaks
        instead of the answer), "slow" (the body comes in pieces), "truncated" (half of the body comes), or a key of
        STATUS_FAULTS.
    pattern: regular expression, searched in "METHOD /path".
    skip, times: so many matching requests are answered properly first; so many fail then.
    """

    kind: str
    pattern: str = ""
    skip: int = 0
    times: int = 1


class HubServer:
    """Use as a context manager; `endpoint` is its address.

    Args:
        collections: False: the server offers no collections (404).
    """

    def __init__(self, collections: bool = True):
        self.offers_collections = collections
        self.repos: dict[tuple[str, str], Repo] = {}
        self.collections: dict[str, dict] = {}
        self.objects: dict[str, bytes] = {}
        self.gated: set[str] = set()
        self.faults: list[Fault] = []
        self.requests: list[str] = []
        self.lock = threading.RLock()
        self._server = _Listener(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": self}))
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> "HubServer":
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def environment(self, home: object) -> dict[str, str]:
        """Variables of a client process with a cache of its own in `home`."""
        return {
            "HF_ENDPOINT": self.endpoint,
            "HF_HOME": str(home),
            "HF_TOKEN": TOKEN,
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def files(self, repo_id: str, revision: str = "main", kind: str = "model") -> dict[str, bytes]:
        """Content of a repository at a revision, without what the server adds itself."""
        repo = self.repos[kind, repo_id]
        files = repo.commits[repo.resolve(revision)]
        return {path: blob.data for path, blob in files.items() if path != ".gitattributes"}

    def content(self) -> dict[tuple[str, str], dict[str, bytes]]:
        """`files` of every repository's main branch."""
        with self.lock:
            return {(kind, name): self.files(name, kind=kind) for kind, name in self.repos}

    @contextmanager
    def fail(self, kind: str, pattern: str = "", skip: int = 0, times: int = 1) -> Iterable[Fault]:
        """Requests fail inside the block; see `Fault`."""
        fault = Fault(kind, pattern, skip, times)
        with self.lock:
            self.faults.append(fault)
        try:
            yield fault
        finally:
            with self.lock:
                self.faults.remove(fault)

    def next_fault(self, request: str) -> str | None:
        with self.lock:
            self.requests.append(request)
            for fault in self.faults:
                if fault.times > 0 and re.search(fault.pattern, request):
                    if fault.skip > 0:
                        fault.skip -= 1
                        continue
                    fault.times -= 1
                    return fault.kind
        return None


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def handle_error(self, request: object, client_address: object) -> None:
        """Broken connections are part of the tests."""


class _Reply(Exception):  # noqa: N818 - it carries any answer, also good ones
    def __init__(self, status: int, body: object = None, headers: dict[str, str] | None = None):
        self.status, self.body, self.headers = status, body, headers or {}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    hub: HubServer

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        address = urlsplit(self.path)
        path, self.query = address.path, parse_qs(address.query)
        fault = self.hub.next_fault(f"{method} {path}")
        if fault == "reset":
            return self._reset()
        self.body = self._read_body()
        if fault in STATUS_FAULTS:
            status, headers, message = STATUS_FAULTS[fault]
            return self._send(
                _Reply(status, {"error": message, "url": f"{self.hub.endpoint}/org/name"}, headers), method
            )
        try:
            self._check_token(method)
            with self.hub.lock:
                self._route(method, path)
            reply = _Reply(404, {"error": f"no such address: {path}"})
        except _Reply as answer:
            reply = answer
        if fault == "lost":
            return self._reset()
        self._send(reply, method, fault)

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length", 0)))
        body = b""
        while size := int(self.rfile.readline().split(b";")[0], 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _reset(self) -> None:
        """The client sees 'connection reset by peer'."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.connection.close()

    def _send(self, reply: _Reply, method: str, fault: str | None = None) -> None:
        is_json = not isinstance(reply.body, bytes)
        body = json.dumps(reply.body).encode() if is_json else reply.body
        self.send_response(reply.status)
        self.send_header("Content-Type", "application/json" if is_json else "application/octet-stream")
        for name, value in reply.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if method == "HEAD":
            return
        if fault == "truncated":
            self.wfile.write(body[: len(body) // 2])
            self.close_connection = True
        elif fault == "slow":
            for start in range(0, len(body), max(1, len(body) // 5)):
                time.sleep(0.05)
                self.wfile.write(body[start : start + max(1, len(body) // 5)])
        else:
            self.wfile.write(body)

    def _check_token(self, method: str) -> None:
        given = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.signed_in = given == TOKEN
        writes = method in ("POST", "PUT") and not self.path.startswith("/lfs/") and "paths-info" not in self.path
        if (given and not self.signed_in) or (writes and not self.signed_in and "validate-yaml" not in self.path):
            status, headers, message = STATUS_FAULTS["401"]
            raise _Reply(status, {"error": message}, headers)

    # Every route ends with raising its _Reply.

    def _route(self, method: str, path: str) -> None:
        if path == "/api/whoami-v2":
            raise _Reply(200 if self.signed_in else 401, {"type": "user", "name": "tester", "orgs": [{"name": "org"}]})
        if path == "/api/validate-yaml":
            self._validate_card()
        if path == "/api/repos/create":
            self._create_repo()
        if path.startswith("/api/collections"):
            self._collection(method, path)
        if match := re.fullmatch(r"/lfs/(\w+)(/verify)?", path):
            if not match[2]:
                if hashlib.sha256(self.body).hexdigest() != match[1]:
                    raise _Reply(400, {"error": "the body has another sha256"})
                self.hub.objects[match[1]] = self.body
            raise _Reply(200, {})
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)\.git/info/lfs/objects/batch", path):
            self._lfs_batch()
        if match := re.fullmatch(r"/(?:(datasets|spaces)/)?([^/]+/[^/]+)/(?:resolve|raw)/([^/]+)/(.+)", path):
            kind, name, revision, file = match.groups()
            repo = self._repo(KINDS[kind], name)
            self._resolve(name, repo, unquote(revision), unquote(file))
        if match := re.fullmatch(
            r"/api/(models|datasets|spaces)/([^/]+/[^/]+)(?:/([^/]+))?(?:/([^/]+))?(?:/(.+))?", path
        ):
            kind, name, action, revision, rest = match.groups()
            repo = self._repo(KINDS[kind], name)
            self._repo_action(repo, KINDS[kind], name, action, unquote(revision or "main"), unquote(rest or ""))

    def _repo(self, kind: str, name: str) -> Repo:
        repo = self.hub.repos.get((kind, name))
        if repo is None or (repo.private and not self.signed_in):
            status = 404 if self.signed_in else 401
            raise _Reply(status, {"error": "Repository not found"}, {"X-Error-Code": "RepoNotFound"})
        return repo

    def _commit_of(self, repo: Repo, revision: str) -> str:
        sha = repo.resolve(revision)
        if sha is None:
            raise _Reply(404, {"error": f"Invalid rev id: {revision}"}, {"X-Error-Code": "RevisionNotFound"})
        return sha

    def _json(self) -> dict:
        return json.loads(self.body or b"{}")

    def _validate_card(self) -> None:
        front = re.match(r"---\n(.*?)\n---", self._json()["content"], re.DOTALL)
        try:
            data = yaml.safe_load(front[1]) if front else None
        except yaml.YAMLError as error:
            raise _Reply(400, {"errors": [{"message": str(error)}], "warnings": []}) from error
        warnings = [] if isinstance(data, dict) else [{"message": "empty or missing yaml metadata in repo card"}]
        raise _Reply(200, {"errors": [], "warnings": warnings})

    def _create_repo(self) -> None:
        values = self._json()
        kind, name = values.get("type") or "model", f"{values.get('organization') or 'tester'}/{values['name']}"
        address = f"{self.hub.endpoint}/{'' if kind == 'model' else kind + 's/'}{name}"
        if (kind, name) in self.hub.repos:
            raise _Reply(409, {"error": f"You already created this {kind} repo", "url": address})
        repo = Repo(private=values.get("visibility") == "private")
        repo.commit("main", {".gitattributes": Blob(b"*.safetensors filter=lfs\n", lfs=False)}, "initial commit")
        self.hub.repos[kind, name] = repo
        raise _Reply(200, {"url": address, "name": name, "id": name})

    def _collection(self, method: str, path: str) -> None:
        if not self.hub.offers_collections:
            return
        values = self._json()
        if path == "/api/collections":
            slug = f"{values['namespace']}/{re.sub(r'[^a-z0-9]+', '-', values['title'].lower())}-0123"
            if slug in self.hub.collections:
                raise _Reply(409, {"error": "already exists", "slug": slug})
            times = {"lastUpdated": DATE, "position": 0, "theme": "green", "upvotes": 0}
            owner = {"name": values["namespace"], "type": "org"}
            self.hub.collections[slug] = {
                "slug": slug,
                "title": values["title"],
                "owner": owner,
                "items": [],
                "description": values.get("description"),
                "private": values.get("private", False),
                **times,
            }
            raise _Reply(200, self.hub.collections[slug])
        match = re.fullmatch(r"/api/collections/([^/]+/[^/]+?)(/items?)?", path)
        if match is None or match[1] not in self.hub.collections:
            raise _Reply(404, {"error": "Collection not found"})
        collection = self.hub.collections[match[1]]
        if method == "POST":
            item = values["item"]
            if any(known["id"] == item["id"] for known in collection["items"]):
                raise _Reply(409, {"error": "already in this collection"})
            collection["items"].append({"_id": item["id"], "position": len(collection["items"]), **item})
        raise _Reply(200, collection)

    def _lfs_batch(self) -> None:
        answers = []
        for item in self._json()["objects"]:
            address = f"{self.hub.endpoint}/lfs/{item['oid']}"
            actions = {"upload": {"href": address}, "verify": {"href": address + "/verify"}}
            known = {} if item["oid"] in self.hub.objects else {"actions": actions}
            answers.append({"oid": item["oid"], "size": item["size"], **known})
        raise _Reply(200, {"transfer": "basic", "objects": answers})

    def _resolve(self, name: str, repo: Repo, revision: str, path: str) -> None:
        if name in self.hub.gated:
            status, headers, message = STATUS_FAULTS["403"]
            raise _Reply(status, {"error": message}, headers)
        sha = self._commit_of(repo, revision)
        blob = repo.commits[sha].get(path)
        if blob is None:
            headers = {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": sha}
            raise _Reply(404, {"error": "Entry not found"}, headers)
        headers = {"X-Repo-Commit": sha, "ETag": f'"{blob.oid}"', "Accept-Ranges": "bytes"}
        if blob.lfs:
            headers |= {"X-Linked-Etag": f'"{blob.oid}"', "X-Linked-Size": str(len(blob.data))}
        wanted = re.fullmatch(r"bytes=(\d*)-(\d*)", self.headers.get("Range", ""))
        if wanted is None:
            raise _Reply(200, blob.data, headers)
        size = len(blob.data)
        start = int(wanted[1]) if wanted[1] else max(0, size - int(wanted[2]))
        stop = min(size, int(wanted[2]) + 1) if wanted[1] and wanted[2] else size
        headers["Content-Range"] = f"bytes {start}-{stop - 1}/{size}"
        raise _Reply(206, blob.data[start:stop], headers)

    def _repo_action(self, repo: Repo, kind: str, name: str, action: str | None, revision: str, rest: str) -> None:
        if action in (None, "revision"):
            self._info(repo, kind, name, revision)
        if action == "tree":
            files = repo.commits[self._commit_of(repo, revision)]
            found = {path: blob for path, blob in files.items() if path.startswith(rest + "/" if rest else "")}
            if rest and not found:
                raise _Reply(404, {"error": "Entry not found"}, {"X-Error-Code": "EntryNotFound"})
            recursive = self.query.get("recursive", ["false"])[0].lower() in ("true", "1")
            raise _Reply(200, _tree(found, rest, recursive))
        if action == "paths-info":
            files = repo.commits[self._commit_of(repo, revision)]
            if self.headers.get("Content-Type", "").startswith("application/json"):
                paths = self._json()["paths"]
            else:
                paths = parse_qs(self.body.decode())["paths"]
            raise _Reply(200, [_entry(path, files[path]) for path in paths if path in files])
        if action == "refs":
            listed = [
                [{"name": ref, "ref": f"refs/{group}/{ref}", "targetCommit": sha} for ref, sha in refs.items()]
                for group, refs in (("heads", repo.branches), ("tags", repo.tags))
            ]
            raise _Reply(200, {"branches": listed[0], "tags": listed[1], "converts": []})
        if action == "commits":
            self._commit_of(repo, revision)
            shas = list(repo.commits)[::-1]
            listed = [
                {"id": sha, "authors": [{"user": "tester"}], "date": DATE, "title": repo.titles[sha], "message": ""}
                for sha in shas
            ]
            raise _Reply(200, listed)
        if action in ("branch", "tag"):
            refs = repo.branches if action == "branch" else repo.tags
            new = revision if action == "branch" else self._json()["tag"]
            if new in refs:
                raise _Reply(409, {"error": f"Reference {new} already exists"})
            start = self._json().get("startingPoint", "main") if action == "branch" else revision
            refs[new] = self._commit_of(repo, start)
            raise _Reply(200, {})
        if action == "preupload":
            files = repo.commits[self._commit_of(repo, revision)]
            answers = [
                {
                    "path": item["path"],
                    "uploadMode": "lfs" if item["path"].endswith(LFS_SUFFIXES) else "regular",
                    "shouldIgnore": False,
                    "oid": files[item["path"]].oid if item["path"] in files else None,
                }
                for item in self._json()["files"]
            ]
            raise _Reply(200, {"files": answers})
        if action == "commit":
            self._commit(repo, name, revision)

    def _info(self, repo: Repo, kind: str, name: str, revision: str) -> None:
        sha = self._commit_of(repo, revision)
        files = repo.commits[sha]
        raise _Reply(
            200,
            {
                "_id": "0",
                "id": name,
                f"{kind}Id": name,
                "sha": sha,
                "private": repo.private,
                "gated": "manual" if name in self.hub.gated else False,
                "tags": [],
                "siblings": [{"rfilename": path} for path in sorted(files)],
                "lastModified": DATE,
                "createdAt": DATE,
                "downloads": 0,
                "likes": 0,
            },
        )

    def _commit(self, repo: Repo, name: str, branch: str) -> None:
        """All lines are applied to a copy, which becomes the branch's head in one step."""
        if branch not in repo.branches:
            raise _Reply(404, {"error": f"Invalid rev id: {branch}"}, {"X-Error-Code": "RevisionNotFound"})
        files = dict(repo.commits[repo.branches[branch]])
        title = ""
        for line in self.body.decode().splitlines():
            entry = json.loads(line)
            key, value = entry["key"], entry["value"]
            if key == "header":
                title = value["summary"]
                if value.get("parentCommit") not in (None, repo.branches[branch]):
                    raise _Reply(412, {"error": "A commit has happened since. Please refresh and try again."})
            elif key == "file":
                files[value["path"]] = Blob(base64.b64decode(value["content"]), lfs=False)
            elif key == "lfsFile":
                if value["oid"] not in self.hub.objects:
                    raise _Reply(400, {"error": f"LFS object {value['oid']} was not uploaded"})
                files[value["path"]] = Blob(self.hub.objects[value["oid"]], lfs=True)
            elif key == "deletedFile":
                if value["path"] not in files:
                    raise _Reply(
                        404, {"error": "A file with this name doesn't exist"}, {"X-Error-Code": "EntryNotFound"}
                    )
                del files[value["path"]]
            elif key == "deletedFolder":
                files = {p: blob for p, blob in files.items() if not p.startswith(value["path"])}
        sha = repo.commit(branch, files, title)
        address = f"{self.hub.endpoint}/{quote(name)}/commit/{sha}"
        raise _Reply(200, {"commitOid": sha, "commitUrl": address, "pullRequestUrl": None, "success": True})


def _entry(path: str, blob: Blob) -> dict:
    entry = {"type": "file", "path": path, "size": len(blob.data), "oid": blob.git_oid}
    if blob.lfs:
        entry["lfs"] = {"oid": blob.sha256, "size": len(blob.data), "pointerSize": 130}
    return entry


def _tree(files: dict[str, Blob], folder: str, recursive: bool) -> list[dict]:
    entries = {}
    for path, blob in sorted(files.items()):
        parts = path[len(folder) :].strip("/").split("/")
        if len(parts) == 1 or recursive:
            entries[path] = _entry(path, blob)
        for depth in range(1, len(parts) if recursive else min(2, len(parts))):
            parent = "/".join([*folder.split("/"), *parts[:depth]] if folder else parts[:depth])
            entries.setdefault(parent, {"type": "directory", "path": parent, "size": 0, "oid": "0" * 40})
    return list(entries.values())
