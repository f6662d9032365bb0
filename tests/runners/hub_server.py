"""A model hub on loopback: just what huggingface_hub asks for, so that its real client can be used in tests."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@contextmanager
def hub(model: str, folder: Path) -> Iterator[tuple[str, list[str]]]:
    """Serve `folder` as the model `model`; yields the endpoint and the list of requests that it answers."""
    log: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            log.append(f"{self.command} {self.path} {self.headers.get('Range', '')}".strip())
            path = self.path.split("?")[0]
            if path.startswith(f"/api/models/{model}/tree/"):
                files = [
                    {"type": "file", "path": f.name, "size": f.stat().st_size, "oid": f.name} for f in folder.iterdir()
                ]
                self.answer(200, json.dumps(files).encode(), "application/json")
            elif path.startswith(f"/api/models/{model}"):
                siblings = [{"rfilename": file.name} for file in sorted(folder.iterdir())]
                body = json.dumps({"id": model, "sha": COMMIT, "siblings": siblings}).encode()
                self.answer(200, body, "application/json")
            elif path.startswith(f"/{model}/resolve/") and (folder / path.rsplit("/", 1)[1]).is_file():
                self.file((folder / path.rsplit("/", 1)[1]).read_bytes())
            else:
                self.answer(404, b'{"error": "not found"}', "application/json", {"X-Error-Code": "EntryNotFound"})

        def file(self, data: bytes) -> None:
            etag = {"ETag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Repo-Commit": COMMIT}
            if wanted := self.headers.get("Range"):
                start, end = wanted.removeprefix("bytes=").split("-")
                part = data[int(start) : int(end) + 1] if end else data[int(start) :]
                self.answer(206, part, "application/octet-stream", {**etag, "Content-Range": f"bytes */{len(data)}"})
            else:
                self.answer(200, data, "application/octet-stream", etag)

        def answer(self, code: int, body: bytes, kind: str, headers: dict[str, str] | None = None) -> None:
            self.send_response(code)
            for name, value in {"Content-Type": kind, "Content-Length": str(len(body)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", log
    finally:
        server.shutdown()
        server.server_close()
