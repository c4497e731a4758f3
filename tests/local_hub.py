"""A Hub on loopback: as much of its HTTP API as making, pushing and loading a model, or a Space,
needs. A Space is kept as "spaces/owner/name".

Repositories are kept in memory, every commit whole. Failures can be ordered, and all requests are
kept, with what they carried.
"""

import base64
import hashlib
import json
import re
import threading
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_secretTokenOfTheTests"
LFS_SIZE = 20_000  # smaller than the Hub's, so that tiny weights go by LFS


@dataclass
class Commit:
    oid: str
    title: str
    files: dict[str, bytes]
    parent: str | None


@dataclass
class Repository:
    private: bool = False
    commits: list[Commit] = field(default_factory=list)
    branches: dict[str, str] = field(default_factory=dict)
    lfs: set[str] = field(default_factory=set)  # paths stored by LFS
    sdk: str | None = None  # of a Space

    def find(self, revision: str) -> Commit | None:
        oid = self.branches.get(revision, revision)
        return next((commit for commit in self.commits if commit.oid == oid), None)

    def add(self, branch: str, title: str, files: dict[str, bytes]) -> Commit:
        parent = self.branches.get(branch)
        names = repr((title, sorted(files), parent, len(self.commits)))
        commit = Commit(hashlib.sha1(names.encode()).hexdigest(), title, files, parent)
        self.commits.append(commit)
        self.branches[branch] = commit.oid
        return commit


class LocalHub:
    """The server; `url` is what HF_ENDPOINT is set to."""

    def __init__(self):
        self.repositories: dict[str, Repository] = {}
        self.objects: dict[str, bytes] = {}
        self.requests: list[tuple[str, str]] = []
        self.ranges: list[str] = []
        self.failures: list[list] = []
        self.lose_answer_of: str | None = None
        hub = self

        class Handler(_Handler):
            state = hub

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        # By default closing waits half a second, in every test.
        self.thread = threading.Thread(
            target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True
        )
        self.thread.start()

    def fail(self, pattern: str, status: int, times: int = 1) -> None:
        """Answers the next `times` requests "METHOD path" that match with `status`."""
        self.failures.append([re.compile(pattern), status, times])

    def repository(self, name: str, files: dict[str, bytes] | None = None) -> Repository:
        """A repository, made with one commit where it is not there."""
        if name not in self.repositories:
            made = self.repositories[name] = Repository()
            made.add("main", "initial commit", {".gitattributes": b"", **(files or {})})
        return self.repositories[name]

    def close(self) -> None:
        self.server.shutdown()
        self.server.server_close()
        self.thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    state: LocalHub

    API = r"/api/(?P<kind>models|spaces)/(?P<repo>[^/]+/[^/]+)"
    FILES = r"/(?P<repo>(?:spaces/)?[^/]+/[^/]+)"
    ROUTES = (
        ("POST", r"/api/repos/create", "create"),
        ("POST", r"/api/validate-yaml", "validate"),
        ("GET", API + r"(?:/revision/(?P<rev>[^/]+))?", "info"),
        ("POST", API + r"/branch/(?P<rev>[^/]+)", "branch"),
        ("POST", API + r"/preupload/(?P<rev>[^/]+)", "preupload"),
        ("POST", API + r"/commit/(?P<rev>[^/]+)", "commit"),
        ("GET", API + r"/tree/(?P<rev>[^/]+)(?:/(?P<under>.*))?", "tree"),
        ("POST", FILES + r"\.git/info/lfs/objects/batch", "lfs_batch"),
        ("PUT", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_put"),
        ("POST", r"/lfs/verify", "lfs_verify"),
        ("GET", r"/lfs/(?P<oid>[0-9a-f]{64})", "lfs_get"),
        ("GET", FILES + r"/resolve/(?P<rev>[^/]+)/(?P<path>.+)", "resolve"),
    )

    def _route(self):
        parts = urlsplit(self.path)
        self.query = parse_qs(parts.query)
        length = int(self.headers.get("Content-Length") or 0)
        if self.headers.get("Transfer-Encoding") == "chunked":
            self.body = b"".join(self._chunks())
        else:
            self.body = self.rfile.read(length)
        self.state.requests.append((self.command, parts.path))
        for failure in self.state.failures:
            if failure[2] and failure[0].search(f"{self.command} {parts.path}"):
                failure[2] -= 1
                return self._json({"error": "ordered by the test"}, failure[1])
        method = "GET" if self.command == "HEAD" else self.command
        for verb, pattern, name in self.ROUTES:
            match = re.fullmatch(pattern, parts.path)
            if verb == method and match:
                given = {key: unquote(v) if v else v for key, v in match.groupdict().items()}
                if given.pop("kind", None) == "spaces":
                    given["repo"] = f"spaces/{given['repo']}"
                if "repo" in given and name != "create":
                    repository = self.state.repositories.get(given["repo"])
                    if repository is None or (repository.private and not self._authorized()):
                        return self._missing("RepoNotFound")
                writes = self.command in ("POST", "PUT") and name not in ("validate", "lfs_put")
                if writes and not self._authorized():
                    return self._json({"error": "Invalid credentials"}, 401)
                return getattr(self, f"_{name}")(**given)
        return self._json({"error": f"no route for {self.path}"}, 404)

    do_GET = do_POST = do_PUT = do_HEAD = _route

    def _chunks(self):
        while size := int(self.rfile.readline(), 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def _authorized(self):
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    # -- repositories ------------------------------------------------------------------------------

    def _create(self):
        given = json.loads(self.body)
        prefix = "spaces" if given.get("type") == "space" else None
        owner = given.get("organization") or "me"
        name = "/".join(filter(None, (prefix, owner, given["name"])))
        url = f"{self.state.url}/{name}"
        if name in self.state.repositories:
            return self._json({"error": "You already created this repo", "url": url}, 409)
        made = self.state.repository(name)
        made.private = given.get("visibility") == "private" or given.get("private") is True
        if prefix is not None:
            made.sdk = given["sdk"]  # the Hub makes no Space without one
        self._json({"url": url, "name": name, "id": name})

    def _validate(self):
        content = json.loads(self.body)["content"]
        match = re.match(r"---\n(.*?)\n---\n", content, flags=re.DOTALL)
        try:
            metadata = yaml.safe_load(match.group(1)) if match else {}
            assert isinstance(metadata, dict)
            assert all(isinstance(tag, str) for tag in metadata.get("tags", []))
            for model in metadata.get("model-index", []):
                for result in model["results"]:
                    assert result["task"]["type"]
                    assert result["dataset"]["type"]
                    assert all(m["type"] and m["value"] is not None for m in result["metrics"])
        except (AssertionError, KeyError, TypeError, yaml.YAMLError) as error:
            return self._json({"errors": [{"message": f"bad metadata: {error!r}"}]}, 400)
        self._json({"errors": [], "warnings": []})

    def _info(self, repo, rev):
        repository = self.state.repositories[repo]
        commit = repository.find(rev or "main")
        if commit is None:
            return self._missing("RevisionNotFound")
        siblings = [{"rfilename": name} for name in sorted(commit.files)]
        repo = repo.removeprefix("spaces/")
        self._json(
            {"id": repo, "modelId": repo, "sha": commit.oid, "private": repository.private,
             "tags": [], "siblings": siblings, "author": repo.split("/")[0], "downloads": 0}
        )  # fmt: skip

    def _branch(self, repo, rev):
        repository = self.state.repositories[repo]
        if rev in repository.branches:
            return self._json({"error": "Reference already exists"}, 409)
        repository.branches[rev] = repository.branches["main"]
        self._json({})

    def _tree(self, repo, rev, under):
        repository = self.state.repositories[repo]
        commit = repository.find(rev)
        if commit is None:
            return self._missing("RevisionNotFound")
        rows = []
        for name, content in sorted(commit.files.items()):
            if under and not name.startswith(f"{under}/"):
                continue
            row = {"type": "file", "path": name, "size": len(content), "oid": _git_oid(content)}
            if name in repository.lfs:
                digest = hashlib.sha256(content).hexdigest()
                row["lfs"] = {"oid": digest, "size": len(content), "pointerSize": 130}
            rows.append(row)
        if under and not rows:
            return self._missing("EntryNotFound")
        self._json(rows)

    # -- uploading ---------------------------------------------------------------------------------

    def _preupload(self, repo, rev):
        files = []
        for given in json.loads(self.body)["files"]:
            large = given["size"] >= LFS_SIZE or given["path"].endswith(".safetensors")
            mode = "lfs" if large else "regular"
            files.append({"path": given["path"], "uploadMode": mode, "shouldIgnore": False})
        self._json({"files": files})

    def _lfs_batch(self, repo):
        objects = []
        for given in json.loads(self.body)["objects"]:
            entry = {"oid": given["oid"], "size": given["size"]}
            if given["oid"] not in self.state.objects:
                entry["actions"] = {
                    "upload": {"href": f"{self.state.url}/lfs/{given['oid']}", "header": {}},
                    "verify": {"href": f"{self.state.url}/lfs/verify", "header": {}},
                }
            objects.append(entry)
        self._json({"transfer": "basic", "objects": objects})

    def _lfs_put(self, oid):
        if hashlib.sha256(self.body).hexdigest() != oid:
            return self._json({"error": "wrong content"}, 400)
        self.state.objects[oid] = self.body
        self._json({})

    def _lfs_verify(self):
        given = json.loads(self.body)
        there = len(self.state.objects.get(given["oid"], b"")) == given["size"]
        self._json({}, 200 if there else 404)

    def _commit(self, repo, rev):
        repository = self.state.repositories[repo]
        lines = [json.loads(line) for line in self.body.splitlines()]
        header = lines[0]["value"]
        if header.get("parentCommit") not in (None, repository.branches.get(rev)):
            return self._json({"error": "A commit has happened since"}, 412)
        files = dict(repository.find(rev).files)
        for line in lines[1:]:
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                if value["oid"] not in self.state.objects:
                    return self._json({"error": f"no object {value['oid']}"}, 400)
                files[value["path"]] = self.state.objects[value["oid"]]
                repository.lfs.add(value["path"])
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        branch = "refs/pr/1" if self.query.get("create_pr") else rev
        if branch != rev:
            repository.branches[branch] = repository.branches[rev]
        commit = repository.add(branch, header["summary"], files)
        if self.state.lose_answer_of == "commit":
            self.state.lose_answer_of = None
            self.close_connection = True
            return
        self._json(
            {"success": True, "commitOid": commit.oid,
             "commitUrl": f"{self.state.url}/{repo}/commit/{commit.oid}",
             "pullRequestUrl": f"{self.state.url}/{repo}/discussions/1"}
        )  # fmt: skip

    # -- downloading -------------------------------------------------------------------------------

    def _resolve(self, repo, rev, path):
        repository = self.state.repositories[repo]
        commit = repository.find(rev)
        if commit is None:
            return self._missing("RevisionNotFound")
        if path not in commit.files:
            return self._missing("EntryNotFound", {"X-Repo-Commit": commit.oid})
        content = commit.files[path]
        known = {"X-Repo-Commit": commit.oid}
        if path in repository.lfs:
            oid = hashlib.sha256(content).hexdigest()
            known |= {"X-Linked-ETag": f'"{oid}"', "X-Linked-Size": str(len(content))}
            # Another host than the Hub's own, as its storage has: the client tells them apart.
            storage = self.state.url.replace("127.0.0.1", "localhost")
            return self._bytes(b"", 302, {**known, "Location": f"{storage}/lfs/{oid}"})
        self._content(content, {**known, "ETag": f'"{_git_oid(content)}"'})

    def _lfs_get(self, oid):
        self._content(self.state.objects[oid], {"ETag": f'"{oid}"'})

    def _content(self, content, headers):
        headers = {**headers, "Accept-Ranges": "bytes"}
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if wanted is None:
            return self._bytes(content, 200, headers)
        self.state.ranges.append(self.headers["Range"])
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        headers["Content-Range"] = f"bytes {start}-{end}/{len(content)}"
        self._bytes(content[start : end + 1], 206, headers)

    # -- answers -----------------------------------------------------------------------------------

    def _missing(self, code, headers=None):
        self._json({"error": code}, 404, {"X-Error-Code": code, **(headers or {})})

    def _json(self, value, status=200, headers=None):
        headers = {"Content-Type": "application/json", **(headers or {})}
        self._bytes(json.dumps(value).encode(), status, headers)

    def _bytes(self, content, status, headers):
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments):
        pass


def _git_oid(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
