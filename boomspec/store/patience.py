"""Being patient with a store that does not answer, and telling at once what patience cannot mend.

Transient: no connection, a connection that broke, an answer that did not come, 408, 409, 429, 5xx. Everything else
(not permitted, no credentials, no such bucket, a request that is wrong) is an error at once.
"""

from __future__ import annotations

import errno
import os
import sys
import threading
from collections.abc import Callable
from typing import Any, TypeVar

import tenacity

from boomspec.errors import BoomspecError, first_line

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
_T = TypeVar("_T")


def _to_stderr(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


class DeniedError(BoomspecError):
    """The store does not let us: no credentials, or none that permit it."""


class Patience:
    """Repeats what a store at `address` did not answer, for `seconds` at most; tells of an outage once, and of its end.

    What it does not repeat it raises: FileNotFoundError and FileExistsError as they are, else BoomspecError.
    """

    def __init__(
        self, address: str, *, tell: Callable[[str], None] | None = None, seconds: float | None = None
    ) -> None:
        self._address, self._tell = address, tell or _to_stderr
        self._seconds = _asked_for() if seconds is None else seconds
        self._lock, self._out = threading.Lock(), False

    def __call__(self, action: Callable[[], _T], *, until: threading.Event | None = None) -> _T:
        """What `action` returns. Where `until` is set nothing is repeated any more."""
        stop: Any = tenacity.stop_after_delay(self._seconds)
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
            if _code(error) == "NoSuchBucket":
                message = f"store {self._address}: there is no such bucket"
                raise BoomspecError(message, hint="make it, or name another one with --store") from error
            raise
        except Exception as error:
            raise self._refused(error) from error
        self._succeeded()
        return result

    def _failed(self, state: tenacity.RetryCallState) -> None:
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

    def _refused(self, error: Exception) -> Exception:
        """What to raise for an error that is not repeated, or was repeated long enough."""
        if isinstance(error, BoomspecError | FileNotFoundError):
            return error
        if is_transient(error):
            return BoomspecError(
                f"store {self._address} has not answered for {_shown(self._seconds)}: {_text(error)}",
                hint=f"run again when it does; {SECONDS} says for how many seconds to try",
            )
        name = type(error).__name__
        if isinstance(error, PermissionError) or "Credential" in name or "Token" in name or "Profile" in name:
            message = f"store {self._address}: access denied: {_text(error)}"
            return DeniedError(message, hint=_hint_for_access(self._address))
        if isinstance(error, OSError) and error.filename is not None:
            return error  # of a file of this machine: a full disk, say
        return BoomspecError(f"store {self._address}: {_text(error)}")


def is_transient(error: BaseException) -> bool:
    """Whether an error of a filesystem's library may be gone the next time."""
    status = _status(error)
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
    return first_line(error) or type(error).__name__


def _hint_for_access(address: str) -> str:
    if address.startswith("s3"):
        return "credentials come from the environment: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if address.startswith("g"):
        return "credentials come from the environment: GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth"
    return "credentials come from the environment: AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"


def _shown(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"


def _asked_for() -> float:
    text = os.environ.get(SECONDS)
    if text is None:
        return _DEFAULT_SECONDS
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise BoomspecError(f"{SECONDS}={text}: not a number of seconds", hint=f"{SECONDS}=600")
    return seconds
