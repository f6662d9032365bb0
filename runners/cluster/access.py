"""Access to a Ray cluster: refuse one that is open to everybody, and find the token for one that is not.

Everybody who reaches an open cluster can run any program on its machines, and Ray listens on every interface of them.
So boomspec gives work to an open cluster only over loopback, or with `--insecure`. A cluster is asked without a token
first. One that answers is open, and never gets one (`settle_token`): the person's token may be another cluster's.
"""

import ipaddress
import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boomspec.core.errors import BoomspecError, printable, redact

_SECONDS = 10
_OPEN = (
    "start it with a token (RAY_AUTH_MODE=token and RAY_AUTH_TOKEN on every machine), or, where nobody else can reach "
    "it, say --insecure"
)
_DASHBOARD = "--address takes that of the cluster's dashboard; it listens on port 8265 of the head"
_EMBED = "without --address a cluster is started on this machine"
_PING = b"\x08\x06"  # ClusterInfoRequest(type=PING): the one that the proxy in front of ray:// answers by itself
_NEEDS_TOKEN = "set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH to a file with it; it is what the cluster was started with"

# What ray.init("auto") calls.
_FIND = """
from ray._private.services import canonicalize_bootstrap_address_or_die as find
try:
    print(find("auto"))
except (ConnectionError, ValueError):
    raise SystemExit(1)
"""


def token(environment: Mapping[str, str]) -> str | None:
    """The token, from the places where Ray looks for one, in its order; None where there is none."""
    if environment.get("RAY_AUTH_TOKEN"):
        return environment["RAY_AUTH_TOKEN"]
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    try:
        found = Path(named) if named else Path.home() / ".ray" / "auth_token"
        return found.read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError, RuntimeError):  # the last: there is no home
        return None


def settle_token(*, is_open: bool) -> None:
    """Before Ray is imported: have it send the token, if any; to an open cluster none. What the person has set wins."""
    if is_open:
        os.environ["RAY_AUTH_MODE"] = "disabled"
        for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
            os.environ.pop(name, None)
    elif not os.environ.get("RAY_AUTH_MODE") and token(os.environ) is not None:
        os.environ["RAY_AUTH_MODE"] = "token"


def unwelcome(address: str) -> BoomspecError:
    """The error for a cluster that asks for a token and has not got the right one."""
    what = "asks for a token" if token(os.environ) is None else "does not take this token"
    return BoomspecError(f"the cluster at {address} {what}", hint=_NEEDS_TOKEN)


def check_http(address: str, *, insecure: bool) -> bool:
    """Ask the job server at `address` (http://head:8265) without a token; returns whether it answers, so is open.

    Raises BoomspecError for what is no such address, where nothing listens or something else answers, and, unless
    `insecure`, where an open cluster is beyond loopback.
    """
    import requests  # a tenth of a second, which a run on this machine does not need

    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        hint = "give that of the cluster's dashboard, as in http://head:8265"
        raise BoomspecError(f"{redact(address)}: not the address of a job server", hint=hint)
    # No credentials of ~/.netrc either, and no redirection: what stands there may ask for a login.
    bare = {"auth": lambda request: request, "allow_redirects": False}
    try:
        answer = requests.get(f"{address}/api/version", timeout=_SECONDS, **bare)
    except requests.exceptions.RequestException as error:
        raise BoomspecError(f"no Ray cluster answers at {address}: {reason(error)}", hint=_DASHBOARD) from error
    if answer.status_code in (401, 403):
        return False
    if answer.status_code != 200:
        there = answer.headers.get("Location")
        status = f"{answer.status_code} {answer.reason}" + ("" if there is None else f", Location: {there}")
        raise BoomspecError(f"no Ray cluster answers at {address}: HTTP status {printable(status)}", hint=_DASHBOARD)
    _refuse(address, parts.hostname, insecure=insecure)
    return True


def check_cluster(address: str, *, insecure: bool) -> bool:
    """The same for what a driver connects to: host:port or ray://host:port. The token must be right, too."""
    import grpc  # as above

    place = address.removeprefix("ray://")
    method, question = "/ray.rpc.NodeInfoGcsService/CheckAlive", b""
    if place != address:
        method, question = "/ray.rpc.RayletDriver/ClusterInfo", _PING

    def answer(*metadata: tuple[str, str]) -> Any:
        """The status and the details with which the cluster answers a harmless question."""
        try:
            with grpc.insecure_channel(place) as channel:
                channel.unary_unary(method)(question, timeout=_SECONDS, metadata=metadata)
        except grpc.RpcError as error:
            return error.code(), printable(error.details() or "")
        return grpc.StatusCode.OK, ""

    refusals = (grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED)
    code, details = answer()
    if code == grpc.StatusCode.OK:
        _refuse(address, place.rpartition(":")[0].strip("[]"), insecure=insecure)
        return True
    if code not in refusals:
        raise BoomspecError(f"no Ray cluster at {address}: {code.name}: {details}", hint=_EMBED)
    if os.environ.get("RAY_AUTH_MODE", "token") == "token":  # with a wrong one Ray itself tries for half a minute
        found = token(os.environ)
        if found is None or answer(("authorization", f"Bearer {found}"))[0] in refusals:
            raise unwelcome(address)
    return False


def address_here() -> str:
    """The address of the cluster that Ray finds on this machine. Another process looks: see `settle_token`."""
    looked = subprocess.run([sys.executable, "-P", "-c", _FIND], stdout=subprocess.PIPE, text=True)
    if looked.returncode != 0:
        raise BoomspecError("no Ray cluster runs on this machine", hint="without --address one is started on it")
    return looked.stdout.splitlines()[-1]


def reason(error: BaseException) -> str:
    """The innermost reason of a failed request."""
    while inner := error.__cause__ or error.__context__:
        error = inner
    return str(getattr(error, "strerror", None) or error)


def is_loopback(host: str) -> bool:
    """Whether a host is this machine and nothing but this machine."""
    try:
        found = {entry[4][0] for entry in socket.getaddrinfo(host, None)}
    except OSError:
        return False
    return bool(found) and all(ipaddress.ip_address(str(place).partition("%")[0]).is_loopback for place in found)


def _refuse(address: str, host: str, *, insecure: bool) -> None:
    if not insecure and not is_loopback(host):
        raise BoomspecError(f"the cluster at {address} asks for no token: whoever reaches it owns it", hint=_OPEN)
