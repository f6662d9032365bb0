"""Being patient with a store that does not answer, and telling at once what patience cannot mend.

Transient: no connection, a connection that broke, an answer that did not come, 408, 409, 429, 5xx. Everything else
(not permitted, no credentials, no such bucket, a request that is wrong) is an error at once.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

from boomspec.core.errors import BoomspecError, first_line
from boomspec.store.first_answer import first_answer
from boomspec.store.permissions import Operation, denied, is_denied

SECONDS = "BOOMSPEC_STORE_PATIENCE"
_DEFAULT_SECONDS = 600.0
_LONGEST_WAIT = 15.0  # seconds between two attempts
_TRANSIENT_CODES = {408, 409, 425, 429}  # and 500 to 599
_FINAL = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EACCES, errno.ENOSPC, errno.ENAMETOOLONG, errno.EDQUOT}
# By name: which of these libraries is there depends on the store. None of them derives from ConnectionError.
_LOST_CONNECTION = {
    "botocore.exceptions": {"ConnectionError", "HTTPClientError", "ResponseStreamingError", "IncompleteReadError"},
    "aiohttp.client_exceptions": {"ClientConnectionError", "ClientPayloadError"},
    "azure.core.exceptions": {"ServiceRequestError", "ServiceResponseError"},
    "google.auth.exceptions": {"TransportError"},
    "fsspec.exceptions": {"FSTimeoutError"},
}
_UNREACHED = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET}
_T = TypeVar("_T")


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class Patience:
    """Repeats what a store at `address` did not answer, for `seconds` at most; tells of an outage once, and of its end.

    What it does not repeat it raises: FileNotFoundError and FileExistsError as they are, else BoomspecError.
    """

    def __init__(
        self, address: str, *, tell: Callable[[str], None] | None = None, seconds: float | None = None
    ) -> None:
        self._address, self._tell = address, tell or _to_stderr
        asked = _asked_for()
        self._first = first_answer() if seconds is None and asked is None else None
        self._seconds = seconds if seconds is not None else _DEFAULT_SECONDS if asked is None else asked
        self._lock, self._out = threading.Lock(), False

    def __call__(
        self, action: Callable[[], _T], *, doing: Operation | None = None, until: threading.Event | None = None
    ) -> _T:
        """What `action` returns, which is `doing` that. Where `until` is set nothing is repeated any more."""
        seconds = self._seconds if self._first is None else self._first
        stop: Any = tenacity.stop_after_delay(seconds)
        sleep: Any = tenacity.nap.sleep
        if until is not None:
            stop, sleep = stop | tenacity.stop_when_event_set(until), tenacity.sleep_using_event(until)
        patient = tenacity.Retrying(
            stop=stop,
            sleep=sleep,
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
            retry=tenacity.retry_if_exception(is_transient),
            before_sleep=self._failed,
            reraise=True,
        )
        try:
            result = patient(action)
        except (FileNotFoundError, FileExistsError) as error:
            self._first = None
            if _code(error) == "NoSuchBucket":
                message = f"store {self._address}: there is no such bucket"
                raise BoomspecError(message, hint="make it, or name another one with --store") from error
            raise
        except Exception as error:
            raise self._refused(error, seconds, doing) from error
        self._first = None
        self._succeeded()
        return result

    def _failed(self, state: tenacity.RetryCallState) -> None:
        if self._first is not None:
            return  # in a moment it will be an error
        error = state.outcome.exception() if state.outcome is not None else None
        with self._lock:
            first, self._out = not self._out, True
        if first:
            said = f"the store {self._address} does not answer: {_text(error)}"
            self._tell(f"{said}; trying for {_shown(self._seconds)}")

    def _succeeded(self) -> None:
        if self._out:
            with self._lock:
                ended, self._out = self._out, False
            if ended:
                self._tell(f"the store {self._address} answers again")

    def _refused(self, error: Exception, seconds: float, doing: Operation | None) -> Exception:
        """What to raise for an error that is not repeated, or was repeated long enough."""
        if isinstance(error, BoomspecError | FileNotFoundError):
            return error
        if is_transient(error):
            return BoomspecError(
                f"store {self._address} has not answered for {_shown(seconds)}: {_text(error)}",
                hint=f"{_hint_for_address(error, self._address)}; {SECONDS} says for how many seconds to try",
            )
        if is_denied(error, _status(error)):
            return denied(self._address, doing, error, _code(error))
        if isinstance(error, OSError) and error.filename is not None:
            return error  # of a file of this machine: a full disk, say
        return BoomspecError(f"store {self._address}: {_text(error)}")


def is_transient(error: BaseException) -> bool:
    """Whether an error of a filesystem's library may be gone the next time."""
    status = _status(error)
    if is_denied(error, status):
        return False
    if status is not None:
        return status in _TRANSIENT_CODES or (500 <= status < 600 and status != 501)
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    kinds = ((kind.__module__, kind.__name__) for kind in type(error).__mro__)
    if any(name in _LOST_CONNECTION.get(module, ()) for module, name in kinds):
        return True
    known = FileNotFoundError | FileExistsError | PermissionError | IsADirectoryError | NotADirectoryError
    if not isinstance(error, OSError) or isinstance(error, known):
        return False
    return error.errno not in _FINAL and error.filename is None


def _status(error: BaseException) -> int | None:
    """The HTTP status that an error was made of; None where there is none, or it is no number."""
    for found in (error, error.__cause__):
        response = getattr(found, "response", None)
        metadata = response.get("ResponseMetadata") if isinstance(response, dict) else None
        status = metadata.get("HTTPStatusCode") if isinstance(metadata, dict) else None
        status = status or getattr(found, "status_code", None) or getattr(found, "code", None)
        if isinstance(status, int) or (isinstance(status, str) and status.isdigit()):
            return int(status)
    return None


def _code(error: BaseException) -> str:
    """The name that S3 gives to an error: "NoSuchBucket", "PreconditionFailed"."""
    for found in (error, error.__cause__):
        response = getattr(found, "response", None)
        if isinstance(response, dict) and isinstance(response.get("Error"), dict):
            return str(response["Error"].get("Code", ""))
    return ""


def exists_already(error: BaseException) -> bool:
    """Whether a conditional write failed because there is something already."""
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412") or _status(error) == 412


def has_no_range(error: BaseException) -> bool:
    """Whether a part was asked for of an object that is empty, or shorter."""
    return _code(error) == "InvalidRange" or _status(error) == 416


def cannot_be_conditional(error: BaseException) -> bool:
    """Whether a store, or its library, knows no conditional writes."""
    return isinstance(error, TypeError | NotImplementedError) or _status(error) == 501


def _text(error: BaseException | None) -> str:
    # botocore says of a name that no bucket has on the first line only that there is something wrong.
    said = (
        first_line(" ".join(str(error).split()) if first_line(error).endswith(":") else error) or type(error).__name__
    )
    why = _system_error(error)
    return said if why is None or why in said else f"{said}: {why}"


def _system_error(error: BaseException | None) -> str | None:
    """What the system said of a connection: libraries name the address alone."""
    found: set[int] = set()
    while error is not None and id(error) not in found:
        found.add(id(error))
        if isinstance(error, socket.gaierror):
            return f"this name is not known ({error.strerror})"
        if isinstance(error, OSError) and error.errno in _UNREACHED:
            return os.strerror(error.errno)
        inner = getattr(error, "kwargs", None)  # of botocore: the error that its own one was made of
        inner = inner.get("error") if isinstance(inner, dict) else None
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None


def _hint_for_address(error: BaseException, address: str) -> str:
    if _system_error(error) is None:
        return "run again when it does"
    if address.startswith("s3"):
        return "see whether its address is right, which is AWS_ENDPOINT_URL or Amazon's, and whether it can be reached"
    return "see whether its address is right and can be reached from here"


def _shown(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"


def _asked_for() -> float | None:
    text = os.environ.get(SECONDS)
    if text is None:
        return None
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise BoomspecError(f"{SECONDS}={text}: not a number of seconds", hint=f"{SECONDS}=600")
    return seconds
