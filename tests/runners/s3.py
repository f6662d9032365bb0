"""A real S3 server on this machine, and a wire to it that can be cut, slowed down and counted.

    with s3_server() as server, server.bucket("name") as url: ...

The server is moto's, in a process of its own, which keeps its objects in memory; so it is the wire that fails in tests
and not the server. Everything that is in the environment reaches it: AWS_ENDPOINT_URL and what else botocore reads.
"""

from __future__ import annotations

import os
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.client import HTTPConnection

import boto3

from tests.runners.ports import free_ports

_CHUNK = 1 << 16
_REQUEST = re.compile(rb"(GET|PUT|POST|HEAD|DELETE) (\S+) HTTP/1\.[01]\r\n")
_START_SECONDS = 60.0


@dataclass
class Wire:
    """Passes bytes on between clients and the server, as long as it is whole."""

    server: tuple[str, int]
    port: int
    requests: Counter[str] = field(default_factory=Counter)  # "GET /bucket/key" -> how often
    seconds_per_chunk: float = 0.0  # every 64 KiB waits so long
    hold_at: str = ""  # a request with this in it gets no further, and `holding` is set
    holding: threading.Event = field(default_factory=threading.Event)
    whole: bool = True
    open: set[socket.socket] = field(default_factory=set)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def counted(self, method: str, part: str = "") -> int:
        """The requests with this method whose path and query have this in them."""
        with self.lock:
            return sum(n for said, n in self.requests.items() if said.startswith(f"{method} ") and part in said)

    def forget(self) -> None:
        with self.lock:
            self.requests.clear()


class _Connection(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        wire: Wire = self.server.wire  # type: ignore[attr-defined]
        if not wire.whole:
            return
        try:
            server = socket.create_connection(wire.server)
        except OSError:
            return
        with server:
            client: socket.socket = self.request
            with wire.lock:
                wire.open |= {client, server}
            back = threading.Thread(target=_pass_on, args=(wire, server, client, False), daemon=True)
            back.start()
            _pass_on(wire, client, server, True)
            back.join()
            with wire.lock:
                wire.open -= {client, server}


def _pass_on(wire: Wire, source: socket.socket, target: socket.socket, asks: bool) -> None:
    with suppress(OSError):
        while data := source.recv(_CHUNK):
            if wire.seconds_per_chunk:
                time.sleep(wire.seconds_per_chunk)
            if not wire.whole:
                break
            if asks and (found := _REQUEST.match(data)) is not None:
                said = f"{found[1].decode()} {found[2].decode()}"
                with wire.lock:
                    wire.requests[said] += 1
                if wire.hold_at and wire.hold_at in said:
                    _hold(wire)
                    break
            target.sendall(data)
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)


def _hold(wire: Wire) -> None:
    wire.holding.set()
    while wire.hold_at and wire.whole:
        time.sleep(0.05)


class _Listener(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128


@dataclass
class S3:
    """A server: where it is, what reaches it, and its wire."""

    endpoint: str
    direct: str  # past the wire: for tests that look at, or into, the objects
    wire: Wire

    @property
    def environment(self) -> dict[str, str]:
        """What a process needs to reach it."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": "testing",
            "AWS_SECRET_ACCESS_KEY": "testing-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
        }

    def client(self):
        """A client of the server itself, which no cut wire stops."""
        keys = {"aws_access_key_id": "testing", "aws_secret_access_key": "testing-secret"}
        return boto3.client("s3", endpoint_url=self.direct, region_name="us-east-1", **keys)

    def make_bucket(self, name: str) -> str:
        """A new bucket. Returns the URL of a store in it."""
        self.client().create_bucket(Bucket=name)
        return f"s3://{name}/boomspec"

    def put_many(self, bucket: str, objects: Mapping[str, bytes]) -> None:
        """Write many small objects, as quickly as the server takes them: it asks for no signature."""
        connection = HTTPConnection(self.direct.removeprefix("http://"))
        for name, data in objects.items():
            connection.request("PUT", f"/{bucket}/{name}", data)
            answer = connection.getresponse()
            answer.read()
            assert answer.status == 200, answer.status
        connection.close()

    def objects(self, bucket: str, prefix: str = "") -> dict[str, int]:
        """The objects of a bucket, and how large they are."""
        pages = self.client().get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        return {found["Key"]: found["Size"] for page in pages for found in page.get("Contents", ())}

    def cut(self) -> None:
        """Break every connection, and refuse new ones."""
        self.wire.whole = False
        with self.wire.lock:
            for end in self.wire.open:
                with suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        self.wire.whole = True

    def hold(self, request: str) -> threading.Event:
        """Let requests that have this in them, such as "PUT /bucket/x", get no further. Set as soon as there is one."""
        self.wire.holding.clear()
        self.wire.hold_at = request
        return self.wire.holding

    def let_go(self) -> None:
        """Break the connections of what was held; others pass again."""
        self.wire.hold_at = ""

    def slow(self, seconds_per_chunk: float) -> None:
        """Let every 64 KiB, and every request, wait so long; 0 for as fast as it can."""
        self.wire.seconds_per_chunk = seconds_per_chunk


@contextmanager
def s3_server(*, host: str = "127.0.0.1", more: Mapping[str, str] | None = None) -> Iterator[S3]:
    """A server with its wire, reached at `host`.

    `more`: environment variables of the server, such as INITIAL_NO_AUTH_ACTION_COUNT.
    """
    inner, outer = free_ports(2)
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(inner)]
    environment = {**os.environ, **(more or {}), "PYTHONWARNINGS": "ignore"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(process, inner)
        wire = Wire(("127.0.0.1", inner), outer)
        with _Listener((host, outer), _Connection) as listener:
            listener.wire = wire  # type: ignore[attr-defined]
            thread = threading.Thread(target=listener.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
            thread.start()
            server = S3(f"http://{host}:{outer}", f"http://127.0.0.1:{inner}", wire)
            try:
                yield server
            finally:
                server.cut()
                listener.shutdown()
                thread.join()
    finally:
        process.kill()
        process.wait()


def _wait_for(process: subprocess.Popen[bytes], port: int) -> None:
    until = time.monotonic() + _START_SECONDS
    while time.monotonic() < until:
        if process.poll() is not None:
            raise RuntimeError(f"moto's server has ended with {process.returncode}")
        with suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1):
            return
        time.sleep(0.05)
    raise RuntimeError("moto's server has not started")
