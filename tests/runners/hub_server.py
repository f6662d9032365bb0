"""A model hub on loopback: just what huggingface_hub asks for, so that its real client can be used in tests."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"
_HASHED = 2**24  # bytes; larger files are sparse ones of tests, whose content does not matter


def hub(model: str, folder: Path) -> AbstractContextManager[tuple[str, list[str]]]:
    """Serve `folder` as the model `model`; yields the endpoint and the list of requests that it answers."""
    return hub_of({model: folder})


@contextmanager
def hub_of(
    models: Mapping[str, Path],
    datasets: Collection[str] = (),
    *,
    heads: Mapping[str, str] | None = None,
    versions: Mapping[str, Path] | None = None,
) -> Iterator[tuple[str, list[str]]]:
    """Serve folders as models, and data sets of which there is nothing but the commit.

    `heads`: the commit of main by name, where it is not COMMIT; a test moves a branch by changing it. `versions`: the
    folder of a model at a commit, where it is another one.
    """
    log: list[str] = []

    def commit_of(name: str, path: str, before: str) -> str:
        """The commit that a request means: the one that it names, or the head of main."""
        named = path.split(before)[1].split("/")[0] if before in path else "main"
        return named if len(named) == 40 else (heads or {}).get(name, COMMIT)

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            log.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            path = self.path.split("?")[0]
            for model, folder in models.items():
                if path == f"/api/models/{model}" or path.startswith(f"/api/models/{model}/"):
                    return self.model(model, folder, path)
                commit = commit_of(model, path, f"/{model}/resolve/")
                if path.startswith(f"/{model}/resolve/"):
                    file = (versions or {}).get(commit, folder) / path.split("/resolve/")[1].split("/", 1)[1]
                    if file.is_file():
                        return self.file(file, commit)
            for dataset in datasets:
                if path == f"/api/datasets/{dataset}" or path.startswith(f"/api/datasets/{dataset}/revision/"):
                    commit = commit_of(dataset, path, "/revision/")
                    return self.json({"id": dataset, "sha": commit, "siblings": []})
            return self.answer(404, b'{"error": "not found"}', "application/json", {"X-Error-Code": "EntryNotFound"})

        def model(self, model: str, folder: Path, path: str) -> None:
            commit = commit_of(model, path, "/revision/")
            folder = (versions or {}).get(commit, folder)
            files = {f.relative_to(folder).as_posix(): f for f in sorted(folder.rglob("*")) if f.is_file()}
            if path.startswith(f"/api/models/{model}/tree/"):
                listed = [
                    {"type": "file", "path": name, "size": f.stat().st_size, "oid": f.name} for name, f in files.items()
                ]
                return self.json(listed)
            siblings = [{"rfilename": name, **_sibling(file)} for name, file in files.items()]
            return self.json({"id": model, "sha": commit, "siblings": siblings})

        def file(self, path: Path, commit: str) -> None:
            """A file or a range of it, read piece by piece: a sparse file of gigabytes is a header's work."""
            size = path.stat().st_size
            headers = {"ETag": f'"{_blob(path)}"', "X-Repo-Commit": commit}
            start, end, code = 0, size, 200
            if wanted := self.headers.get("Range"):
                first, last = wanted.removeprefix("bytes=").split("-")
                start, end, code = int(first), min(int(last) + 1 if last else size, size), 206
                headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
            self.head(code, end - start, "application/octet-stream", headers)
            if self.command == "HEAD":
                return
            with path.open("rb") as stream:
                stream.seek(start)
                while start < end:
                    part = stream.read(min(end - start, 2**20))
                    self.wfile.write(part)
                    start += len(part)

        def json(self, value: object) -> None:
            self.answer(200, json.dumps(value).encode(), "application/json")

        def answer(self, code: int, body: bytes, kind: str, headers: Mapping[str, str] | None = None) -> None:
            self.head(code, len(body), kind, headers or {})
            if self.command != "HEAD":
                self.wfile.write(body)

        def head(self, code: int, length: int, kind: str, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": kind, "Content-Length": str(length), **headers}.items():
                self.send_header(name, value)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()


def _sibling(file: Path) -> dict[str, object]:
    """A file as the hub lists it when it is asked for blobs: large ones with their sha256."""
    entry: dict[str, object] = {"size": file.stat().st_size, "blobId": _git_blob(file)}
    if _is_large(file):
        entry["lfs"] = {"size": file.stat().st_size, "sha256": _blob(file), "pointerSize": 130}
    return entry


def _blob(file: Path) -> str:
    """What the hub calls a file's content: the sha256 of a large file, else the id of its git blob."""
    if not _is_large(file):
        return _git_blob(file)
    if file.stat().st_size > _HASHED:
        return hashlib.sha256(f"{file}:{file.stat().st_size}:{file.stat().st_mtime_ns}".encode()).hexdigest()
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _git_blob(file: Path) -> str:
    data = b"" if _is_large(file) else file.read_bytes()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


def _is_large(file: Path) -> bool:
    return file.suffix == ".safetensors"
