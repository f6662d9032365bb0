"""Clusters that ask for no token: refused beyond loopback, and never shown one."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import grpc
import psutil
import pytest

from boomspec.core.errors import BoomspecError
from runners.cluster.access import check_cluster, check_http, is_loopback, token
from runners.cluster.job_server import connect
from tests.messages import wording
from tests.runners.grid import own_address
from tests.runners.ports import free_ports

TOKEN = "0123456789abcdef" * 4


@pytest.fixture(autouse=True)
def with_token(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN_PATH", raising=False)


Call = dict[str, str]  # the headers, or metadata, that came with it


@contextmanager
def dashboard(status: int = 200, **headers: str) -> Iterator[tuple[int, list[Call]]]:
    """What answers like the dashboard of an open cluster, on every interface: its port, and the calls it saw."""
    seen: list[Call] = []

    class Dashboard(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            seen.append(dict(self.headers))
            content = json.dumps({"version": "4", "ray_version": "2.60.0"}).encode()
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("0.0.0.0", 0), Dashboard) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server.server_address[1], seen
        server.shutdown()
        thread.join()


@contextmanager
def head(*, token: str | None = None, refusal: str = "UNAUTHENTICATED") -> Iterator[tuple[int, list[Call]]]:
    """What answers like a cluster's head, with or without a token, on every interface: its port, the calls it saw."""
    seen: list[Call] = []

    class Everything(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
            call = dict(details.invocation_metadata)
            seen.append(call)
            if token is None or call.get("authorization") == f"Bearer {token}":
                return grpc.unary_unary_rpc_method_handler(lambda request, context: b"")
            code = grpc.StatusCode[refusal]
            return grpc.unary_unary_rpc_method_handler(lambda request, context: context.abort(code, "not like this"))

    server = grpc.server(ThreadPoolExecutor(1), handlers=[Everything()])
    port = server.add_insecure_port("0.0.0.0:0")
    server.start()
    yield port, seen
    server.stop(None).wait()


def as_somebody(code: str, *arguments: str, **variables: str) -> str:
    """What a process prints that has the token of some cluster in its environment, and nothing else of Ray's."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment = clean | {"RAY_AUTH_TOKEN": TOKEN, **variables}
    process = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(process, env=environment, capture_output=True, text=True, timeout=240)
    return done.stdout + done.stderr


def test_an_open_job_server_beyond_loopback_is_refused_and_sees_no_token() -> None:
    with dashboard() as (port, seen):
        outside = f"http://{own_address()}:{port}"
        with pytest.raises(BoomspecError, match=wording("access.asks_no_token_whoever")) as caught:
            connect(outside)
        assert "--insecure" in str(caught.value)
        assert len(seen) == 1
        assert "Authorization" not in seen[0]
        assert TOKEN not in str(seen)
        assert check_http(outside, insecure=True)
        assert check_http(f"http://127.0.0.1:{port}", insecure=False)


_CONNECT = """
import sys
from runners.cluster.job_server import connect
for address in sys.argv[1:]:
    print("open" if connect(address, insecure=True)[1] else "asks for a token")
"""


@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_MODE": "token"}])
def test_rays_client_shows_an_open_job_server_no_token_of_another_cluster(variables: Call) -> None:
    with dashboard() as (port, seen):
        addresses = [f"http://{host}:{port}" for host in ("127.0.0.1", own_address())]
        assert as_somebody(_CONNECT, *addresses, **variables).splitlines() == ["open", "open"]
    assert len(seen) > 2
    assert TOKEN not in str(seen)


@pytest.mark.parametrize("status", [401, 403])
def test_a_job_server_that_refuses_asks_for_a_token(status: int) -> None:
    with dashboard(status) as (port, _):
        assert not check_http(f"http://{own_address()}:{port}", insecure=False)


@pytest.mark.parametrize("host", ["127.0.0.1", own_address()])
@pytest.mark.parametrize(
    ("status", "headers", "said"),
    [
        (307, {"Location": "https://login.example/ray"}, wording("access.temporary_redirect_location_https")),
        (404, {}, "404 Not Found"),
        (503, {}, "503 Service Unavailable"),
    ],
)
def test_what_neither_answers_nor_refuses_is_no_cluster_and_sees_no_token(
    host: str, status: int, headers: dict[str, str], said: str
) -> None:
    with dashboard(status, **headers) as (port, seen):
        for insecure in (False, True):
            with pytest.raises(BoomspecError) as caught:
                connect(f"http://{host}:{port}", insecure=insecure)
            assert caught.value.message == wording("access.no_ray_cluster_answers", host=host, port=port, said=said)
    assert len(seen) == 2
    assert TOKEN not in str(seen)


@pytest.mark.parametrize("scheme", ["", "ray://"])
def test_a_run_joins_no_open_cluster_beyond_loopback(scheme: str) -> None:
    with head() as (port, _):
        with pytest.raises(BoomspecError, match=wording("access.asks_no_token")):
            check_cluster(f"{scheme}{own_address()}:{port}", insecure=False)
        assert check_cluster(f"{scheme}{own_address()}:{port}", insecure=True)
        assert check_cluster(f"{scheme}127.0.0.1:{port}", insecure=False)


def test_a_head_that_neither_answers_nor_refuses_is_none_and_sees_no_token() -> None:
    said = r"no Ray cluster at 127\.0\.0\.1:\d+: UNIMPLEMENTED: not like this"
    with head(token=TOKEN, refusal="UNIMPLEMENTED") as (port, seen), pytest.raises(BoomspecError, match=said):
        check_cluster(f"127.0.0.1:{port}", insecure=True)
    assert TOKEN not in str(seen)


_JOIN = """
import sys
from runners.cluster.ray_cluster import cluster
with cluster(sys.argv[1], insecure=True):
    pass
"""
_NAMED = ["{place}", "ray://{place}", "auto"]  # the last: the one that RAY_ADDRESS names


@pytest.mark.parametrize("named", _NAMED)
@pytest.mark.parametrize("variables", [{}, {"RAY_AUTH_MODE": "token"}])
def test_ray_shows_an_open_head_no_token_of_another_cluster(named: str, variables: Call) -> None:
    with head() as (port, seen):
        place = f"127.0.0.1:{port}"
        # Behind the first calls it is no head after all.
        assert wording("access.no_ray_cluster") in as_somebody(
            _JOIN, named.format(place=place), RAY_ADDRESS=place, **variables
        )
    assert len(seen) > 1
    assert TOKEN not in str(seen)


@pytest.mark.parametrize("named", _NAMED)
def test_ray_shows_a_head_that_asks_for_it_the_token(named: str) -> None:
    with head(token=TOKEN) as (port, seen):
        place = f"127.0.0.1:{port}"
        assert wording("access.no_ray_cluster") in as_somebody(_JOIN, named.format(place=place), RAY_ADDRESS=place)
    first, *others = [call.get("authorization") for call in seen]
    assert first is None
    assert len(others) > 1
    assert set(others) == {f"Bearer {TOKEN}"}


def test_where_nothing_listens_is_said_at_once() -> None:
    [port] = free_ports(1)
    with pytest.raises(BoomspecError, match=wording("access.no_ray_cluster_answers_http", port=port)):
        connect(f"http://127.0.0.1:{port}")
    with pytest.raises(BoomspecError, match=wording("access.no_ray_cluster_2", port=port)):
        check_cluster(f"127.0.0.1:{port}", insecure=False)


@pytest.mark.parametrize("address", ["ray://head:10001", "head:8265", "os://head", "http://", "http://me:hunter2@head"])
def test_an_address_that_is_none_of_a_job_server_is_refused_without_its_password(address: str) -> None:
    with pytest.raises(BoomspecError, match=wording("access.not_address_job_server")) as caught:
        connect(address)
    assert "hunter2" not in str(caught.value)


def test_the_token_is_looked_for_where_ray_looks(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("of-the-file\n")
    path = str(tmp_path / "token")
    assert token({"RAY_AUTH_TOKEN": "own", "RAY_AUTH_TOKEN_PATH": path}) == "own"
    assert token({"RAY_AUTH_TOKEN_PATH": path}) == "of-the-file"
    assert token({"RAY_AUTH_TOKEN_PATH": f"{path}-gone"}) is None
    assert token({}) is None
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("of-the-home")
    assert token({}) == "of-the-home"


def test_loopback_is_this_machine_only() -> None:
    assert all(is_loopback(host) for host in ("localhost", "127.0.0.1", "127.8.8.8", "::1"))
    assert not any(is_loopback(host) for host in (own_address(), "192.0.2.7", "nowhere.invalid"))


_SERVICES = (
    "/ray.rpc.NodeInfoGcsService/CheckAlive",
    "/ray.rpc.JobInfoGcsService/GetAllJobInfo",
    "/ray.rpc.NodeManagerService/RequestWorkerLease",
    "/ray.rpc.ObjectManagerService/Pull",
    "/ray.rpc.CoreWorkerService/PushTask",
)


def answers(host: str, ports: set[int], token: str | None) -> dict[str, set[str]]:
    """With which codes the services of a cluster answer, each at the ports that have it."""
    found: dict[str, set[str]] = {}
    credentials = () if token is None else (("authorization", f"Bearer {token}"),)
    for port in ports:
        with grpc.insecure_channel(f"{host}:{port}") as channel:
            for service in _SERVICES:
                try:
                    channel.unary_unary(service)(b"", timeout=5, metadata=credentials)
                    code = "OK"
                except grpc.RpcError as error:
                    code = error.code().name
                    if code == "UNAVAILABLE":
                        break  # it speaks HTTP
                if code != "UNIMPLEMENTED":
                    found.setdefault(service, set()).add(code)
    return found


def test_nobody_enters_an_embedded_cluster_without_its_token(connected: None) -> None:
    import ray

    ray.get(ray.remote(lambda: None).remote())  # a worker is there, too
    here = psutil.Process()
    sockets = [c for p in [here, *here.children(recursive=True)] for c in p.net_connections("tcp")]
    ports = {c.laddr.port for c in sockets if c.status == psutil.CONN_LISTEN}
    address = ray.get_runtime_context().gcs_address
    host = address.rpartition(":")[0]
    for wrong in (None, TOKEN):
        found = answers(host, ports, wrong)
        assert found.keys() == set(_SERVICES)
        assert all(codes <= {"UNAUTHENTICATED", "PERMISSION_DENIED"} for codes in found.values()), found

    code = f"from runners.cluster.access import check_cluster; check_cluster({address!r}, insecure=False)"
    clean = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    for variables, says in ({}, "asks for a token"), ({"RAY_AUTH_TOKEN": TOKEN}, "does not take this token"):
        stranger = subprocess.run([sys.executable, "-c", code], env=clean | variables, capture_output=True, text=True)
        assert wording("access.boomspecerror_cluster", address=address, says=says) in stranger.stderr


def test_an_embedded_cluster_has_no_process_that_nobody_asks(connected: None) -> None:
    """Dashboard, autoscaler and reader of logs would take as long to start as all else together."""
    import psutil

    running = [" ".join(process.cmdline()) for process in psutil.Process().children(recursive=True)]
    assert any("raylet" in line for line in running)
    assert not [line for line in running if "dashboard.py" in line or "monitor.py" in line]
