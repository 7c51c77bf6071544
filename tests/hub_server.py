"""A Hub on 127.0.0.1: as much of the Hub's protocol as huggingface_hub uses to make, fill and read repositories.

What is stored is by commit: a repository has branches, a branch the hash of a commit, a commit its files. Files called
*.safetensors go by LFS, all others inside the commit, as on the Hub.
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import huggingface_hub.hf_api
import pytest
import transformers.utils.hub
from huggingface_hub import constants


@dataclass
class Repository:
    private: bool = False
    gated: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, bytes]] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def add(self, branch: str, files: dict[str, bytes], message: str) -> str:
        said = f"{len(self.commits)}{branch}{message}{sorted(files)}"
        commit = hashlib.sha1(said.encode()).hexdigest()
        self.commits[commit], self.branches[branch] = files, commit
        self.messages.append(message)
        return commit

    def commit_of(self, revision: str) -> str | None:
        return self.branches.get(revision, revision if revision in self.commits else None)


class HubServer:
    """The server and what it stores.

    Attributes:
        endpoint: its address, for HF_ENDPOINT.
        repositories: by id.
        users: token -> user; what a repository of a user holds only that user may change, or, if private, see.
        damaged: path -> bytes that are sent in place of what is stored (as many as there should be).
        requests: "METHOD path" of everything asked.
        portal: somebody else answers in its place, by a page to log in to a network.
    """

    def __init__(self) -> None:
        self.repositories: dict[str, Repository] = {}
        self.users = {"hf_of_me": "me", "hf_of_you": "you"}
        self.objects: dict[str, bytes] = {}
        self.damaged: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.portal = False
        server = self

        class Handler(_Handler):
            hub = server

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def files(self, repo_id: str, revision: str = "main") -> dict[str, bytes]:
        repository = self.repositories[repo_id]
        return repository.commits[repository.commit_of(revision) or ""]

    def put(self, repo_id: str, files: dict[str, bytes], branch: str = "main", message: str = "put") -> str:
        """Stores a commit as if somebody had uploaded it by another way."""
        return self.repositories.setdefault(repo_id, Repository()).add(branch, files, message)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    """A Hub with the user "me" logged in, and an empty cache. What huggingface_hub reads from the environment when it
    is imported is set here as if it had been there; `fresh` is the environment of another process."""
    server = HubServer()
    template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    settings = {
        **{"ENDPOINT": server.endpoint, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False},
        **{"HF_HUB_CACHE": str(tmp_path / "cache"), "HF_HUB_DISABLE_XET": True},
        **{"HF_HUB_DISABLE_PROGRESS_BARS": True},
    }
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setattr(huggingface_hub.hf_api.api, "endpoint", server.endpoint)
    monkeypatch.setattr(transformers.utils.hub, "_hf_api", None)
    monkeypatch.setenv("HF_TOKEN", "hf_of_me")
    yield server
    server.close()


def fresh(hub: HubServer, home: Path, **more: str) -> dict[str, str]:
    """The environment of a process that talks to `hub` and has its cache in `home`."""
    online = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(home), "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    return os.environ | online | {"HF_TOKEN": "hf_of_me"} | more


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # an answer in one piece: the system would hold a second one back for 40 ms

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def log_message(self, *_: Any) -> None:
        """Nothing on the terminal."""

    # --- answers ---

    def _answer(self, method: str) -> None:
        self.body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        path = unquote(urlsplit(self.path).path)
        self.hub.requests.append(f"{method} {path}")
        if self.hub.portal:
            return self._raw(200, b"<html>", {"Content-Type": "text/html"}, method == "HEAD")
        try:
            self._route(method, [part for part in path.split("/") if part])
        except _RefusedError as refused:
            self._send(refused.status, {"error": refused.message}, refused.code)

    def _route(self, method: str, parts: list[str]) -> None:
        if parts == ["api", "whoami-v2"]:
            return self._json({"name": self._user(), "type": "user", "orgs": []})
        if parts == ["api", "validate-yaml"]:
            return self._json({"errors": [], "warnings": []})
        if parts == ["api", "repos", "create"]:
            return self._create(json.loads(self.body))
        if parts[:1] == ["objects"]:
            return self._store(parts[1])
        if parts[:2] == ["api", "models"]:
            return self._model("/".join(parts[2:4]), parts[4:])
        if parts[2:6] == ["info", "lfs", "objects", "batch"]:
            return self._batch(json.loads(self.body))
        if len(parts) > 4 and parts[2] == "resolve":
            return self._resolve("/".join(parts[:2]), parts[3], "/".join(parts[4:]), method)
        raise _RefusedError(404, f"no such endpoint: {method} {parts}")

    def _user(self) -> str | None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ")
        if token and token not in self.hub.users:
            raise _RefusedError(401, "Invalid credentials in Authorization header")
        return self.hub.users.get(token)

    def _seen(self, repo_id: str, writes: bool = False) -> Repository:
        repository, user, owner = self.hub.repositories.get(repo_id), self._user(), repo_id.partition("/")[0]
        if repository is None or (repository.private and user != owner):
            raise _RefusedError(404 if user else 401, "Repository not found", "RepoNotFound")
        if repository.gated and user != owner:
            raise _RefusedError(403, "Access is restricted", "GatedRepo")
        if writes and user != owner:
            raise _RefusedError(403, "Forbidden: you do not have the rights")
        return repository

    def _create(self, asked: dict[str, Any]) -> None:
        user = self._user()
        owner = asked.get("organization") or user
        repo_id = f"{owner}/{asked['name']}"
        if user is None or owner != user:
            raise _RefusedError(401 if user is None else 403, "you may not create a repository here")
        url = f"{self.hub.endpoint}/{repo_id}"
        if repo_id in self.hub.repositories:
            return self._json({"url": url, "error": "You already created this model repo"}, 409)
        private = asked.get("visibility") == "private" or asked.get("private") is True
        self.hub.repositories[repo_id] = Repository(private)
        self.hub.put(repo_id, {".gitattributes": b"*.safetensors filter=lfs\n"}, message="initial commit")
        return self._json({"url": url})

    def _model(self, repo_id: str, rest: list[str]) -> None:
        verb, where = (rest[0], "/".join(rest[1:])) if rest else ("revision", "main")
        repository = self._seen(repo_id, verb in ("preupload", "commit", "branch"))
        if verb == "branch":
            if where in repository.branches:
                raise _RefusedError(409, "Reference already exists")
            repository.branches[where] = repository.branches["main"]
            return self._json({})
        if verb == "tree":
            where = where.split("/")[0]
        commit = repository.commit_of(where)
        if commit is None:
            raise _RefusedError(404, f"Invalid rev id: {where}", "RevisionNotFound")
        files = repository.commits[commit]
        if verb == "revision":
            siblings = [{"rfilename": path} for path in sorted(files)]
            known = {"id": repo_id, "sha": commit, "private": repository.private, "siblings": siblings, "tags": []}
            return self._json({**known, "downloads": 0, "likes": 0, "gated": repository.gated})
        if verb == "tree":
            return self._json([_entry(path, content) for path, content in sorted(files.items())])
        if verb == "preupload":
            named = [entry["path"] for entry in json.loads(self.body)["files"]]
            mode = {True: "lfs", False: "regular"}
            told = [{"path": path, "uploadMode": mode[_is_large(path)], "shouldIgnore": False} for path in named]
            for entry in told:
                if entry["path"] in files:
                    entry["oid"] = _etag(entry["path"], files[entry["path"]])
            return self._json({"files": told})
        if verb == "commit":
            return self._commit(repo_id, repository, where, dict(files))
        raise _RefusedError(404, f"no such endpoint: {verb}")

    def _commit(self, repo_id: str, repository: Repository, branch: str, files: dict[str, bytes]) -> None:
        message = ""
        for line in self.body.splitlines():
            entry = json.loads(line)
            value = entry["value"]
            if entry["key"] == "header":
                message = value["summary"]
            elif entry["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif entry["key"] == "lfsFile":
                files[value["path"]] = self.hub.objects[value["oid"]]
            elif entry["key"] == "deletedFile":
                del files[value["path"]]
        commit = repository.add(branch, files, message)
        self._json({"commitUrl": f"{self.hub.endpoint}/{repo_id}/commit/{commit}", "commitOid": commit})

    def _batch(self, asked: dict[str, Any]) -> None:
        self._user()
        found = [{"oid": entry["oid"], "size": entry["size"]} for entry in asked["objects"]]
        for entry in found:
            if entry["oid"] not in self.hub.objects:
                entry["actions"] = {"upload": {"href": f"{self.hub.endpoint}/objects/{entry['oid']}"}}
        self._json({"transfer": "basic", "objects": found})

    def _store(self, oid: str) -> None:
        if hashlib.sha256(self.body).hexdigest() != oid:
            raise _RefusedError(400, "the object's SHA-256 is another")
        self.hub.objects[oid] = self.body
        self._json({})

    def _resolve(self, repo_id: str, revision: str, path: str, method: str) -> None:
        repository = self._seen(repo_id)
        commit = repository.commit_of(revision)
        if commit is None:
            raise _RefusedError(404, "Invalid rev id", "RevisionNotFound")
        content = repository.commits[commit].get(path)
        if content is None:
            raise _RefusedError(404, "Entry not found", "EntryNotFound", commit)
        headers = {"X-Repo-Commit": commit, "ETag": f'"{_etag(path, content)}"', "Accept-Ranges": "bytes"}
        if _is_large(path):
            headers |= {"X-Linked-Etag": f'"{_etag(path, content)}"', "X-Linked-Size": str(len(content))}
        sent, status = self.hub.damaged.get(path, content), 200
        asked = self.headers.get("Range")
        if method == "GET" and asked:
            first, _, last = asked.removeprefix("bytes=").partition("-")
            end = int(last) + 1 if last else len(sent)
            headers["Content-Range"], status = f"bytes {first}-{end - 1}/{len(sent)}", 206
            sent = sent[int(first) : end]
        self._raw(status, sent, headers, method == "HEAD")

    def _json(self, content: Any, status: int = 200) -> None:
        self._send(status, content)

    def _send(self, status: int, content: Any, code: str | None = None) -> None:
        headers = {"Content-Type": "application/json"}
        if code is not None:
            headers |= {"X-Error-Code": code}
        if isinstance(content, dict) and "error" in content and status >= 400:
            headers |= {"X-Error-Message": content["error"]}
        self._raw(status, json.dumps(content).encode(), headers, self.command == "HEAD")

    def _raw(self, status: int, content: bytes, headers: dict[str, str], bare: bool) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if not bare:
            self.wfile.write(content)


class _RefusedError(Exception):
    def __init__(self, status: int, message: str, code: str | None = None, commit: str | None = None) -> None:
        super().__init__(message)
        self.status, self.message, self.code, self.commit = status, message, code, commit


def _is_large(path: str) -> bool:
    return path.endswith(".safetensors")


def _etag(path: str, content: bytes) -> str:
    if _is_large(path):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": path, "size": len(content), "oid": _etag("", content)}
    if _is_large(path):
        entry["lfs"] = {"oid": _etag(path, content), "size": len(content), "pointerSize": 130}
    return entry
