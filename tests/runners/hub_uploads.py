"""A hub on loopback that can be written to: what huggingface_hub's own client asks while it uploads, and reads back.

It keeps repositories as folders, and large files by their sha256 as the hub does, so that what has arrived once is not
asked for again. `Hub.refuse` makes it turn down large files, as a connection that breaks in the middle would.
"""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from tests.runners.hub_server import COMMIT

LARGE = (".safetensors", ".gguf")


@dataclass
class Hub:
    folder: Path
    endpoint: str = ""
    token: str = "hf_secret_of_the_test"
    private: dict[str, bool] = field(default_factory=dict)  # by repository
    log: list[str] = field(default_factory=list)
    refuse: int | None = None  # large files are taken until so many have arrived

    @property
    def blobs(self) -> Path:
        return self.folder / ".blobs"

    def asked(self, method: str) -> list[str]:
        return [line for line in self.log if line.startswith(method)]


@contextmanager
def writable_hub(folder: Path) -> Iterator[Hub]:
    hub = Hub(folder)
    hub.blobs.mkdir(parents=True)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = self.begin()
            if path == "/api/whoami-v2":
                if self.headers.get("Authorization") != f"Bearer {hub.token}":
                    return self.json({"error": "Invalid credentials in Authorization header"}, 401)
                return self.json({"type": "user", "name": "me", "orgs": [{"name": "lab"}], "auth": {}})
            if (found := re.match(r"/api/models/([^/]+/[^/]+)(/revision/\w+|/tree/.*)?$", path)) is not None:
                if found[1] not in hub.private:
                    return self.json({"error": "Repository not found"}, 404, {"X-Error-Code": "RepoNotFound"})
                root = hub.folder / found[1]
                files = sorted(file for file in root.rglob("*") if file.is_file())
                if (found[2] or "").startswith("/tree/"):
                    rows = [
                        {"type": "file", "path": name(f, root), "size": f.stat().st_size, "oid": "0"} for f in files
                    ]
                    return self.json(rows)
                siblings = [{"rfilename": name(file, root)} for file in files]
                about = {"id": found[1], "sha": COMMIT, "private": hub.private[found[1]], "siblings": siblings}
                return self.json(about)
            found = re.match(r"/([^/]+/[^/]+)/resolve/\w+/(.+)$", path)
            file = hub.folder / found[1] / found[2] if found is not None else hub.folder / "none"
            if file.is_file():
                digest = hashlib.sha256(file.read_bytes()).hexdigest()
                return self.send(file.read_bytes(), 200, {"ETag": f'"{digest}"', "X-Repo-Commit": COMMIT})
            return self.json({"error": "not found"}, 404, {"X-Error-Code": "EntryNotFound"})

        def do_PUT(self) -> None:
            path, data = self.begin(), self.body()
            if hub.refuse is not None and len(list(hub.blobs.iterdir())) >= hub.refuse:
                return self.json({"error": "the line is cut"}, 403)
            digest = path.rsplit("/", 1)[1]
            assert hashlib.sha256(data).hexdigest() == digest
            (hub.blobs / digest).write_bytes(data)
            return self.send(b"", 200)

        def do_POST(self) -> None:
            path, data = self.begin(), self.body()
            if path == "/api/validate-yaml":
                return self.json({"errors": [], "warnings": []})
            if path == "/api/repos/create":
                wanted = json.loads(data)
                repository = f"{wanted['organization']}/{wanted['name']}"
                hub.private[repository] = wanted.get("visibility") != "public"
                return self.json({"url": f"{hub.endpoint}/{repository}", "name": repository})
            if path.endswith("/preupload/main"):
                files = [
                    {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(LARGE) else "regular"}
                    | {"shouldIgnore": False, "oid": None}
                    for f in json.loads(data)["files"]
                ]
                return self.json({"files": files})
            if path.endswith("/info/lfs/objects/batch"):
                objects = []
                for wanted in json.loads(data)["objects"]:
                    place = {"href": f"{hub.endpoint}/blobs/{wanted['oid']}"}
                    there = (hub.blobs / wanted["oid"]).is_file()
                    objects.append({**wanted, **({} if there else {"actions": {"upload": place}})})
                return self.json({"transfer": "basic", "objects": objects})
            found = re.match(r"/api/models/([^/]+/[^/]+)/commit/main", path)
            assert found is not None, path
            for line in map(json.loads, data.splitlines()):
                value = line["value"]
                if line["key"] == "header":
                    continue
                target = hub.folder / found[1] / value["path"]
                target.parent.mkdir(parents=True, exist_ok=True)
                large = line["key"] == "lfsFile"
                content = (hub.blobs / value["oid"]).read_bytes() if large else base64.b64decode(value["content"])
                target.write_bytes(content)
            answer = {"success": True, "commitOid": COMMIT, "commitUrl": f"{hub.endpoint}/{found[1]}/commit/{COMMIT}"}
            return self.json(answer)

        def begin(self) -> str:
            hub.log.append(f"{self.command} {self.path}")
            return self.path.split("?")[0]

        def body(self) -> bytes:
            if self.headers.get("Transfer-Encoding") != "chunked":
                return self.rfile.read(int(self.headers.get("Content-Length") or 0))
            parts = []
            while (size := int(self.rfile.readline(), 16)) > 0:
                parts.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            return b"".join(parts)

        def json(self, value: Any, code: int = 200, headers: dict[str, str] | None = None) -> None:
            self.send(json.dumps(value).encode(), code, {"Content-Type": "application/json", **(headers or {})})

        def send(self, data: bytes, code: int, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
                self.send_header(key, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, daemon=True).start()
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()


def name(file: Path, root: Path) -> str:
    return file.relative_to(root).as_posix()
