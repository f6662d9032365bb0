"""Retries of requests to a store at a URL, and errors for people about what retries cannot mend.

Transient: no connection, a broken connection, no answer in time, HTTP 408, 409, 425, 429 and 5xx but 501. All else
(permissions, credentials, no such bucket, a wrong request) is an error at once. The retries of s3fs, gcsfs and adlfs
are not enough: each differs, gives up within a minute, and can neither report an outage nor be stopped by another
thread. tenacity does the waiting.
"""

import errno
import os
import re
import socket
import sys
from collections.abc import Callable
from functools import partial
from threading import Event, Lock
from typing import Any, Literal, TypeVar

from boomspec.core.errors import BoomspecError, first_line
from boomspec.store.opening import first_answer_seconds
from boomspec.store.record import Report

SECONDS = "BOOMSPEC_STORE_PATIENCE"  # environment variable
_DEFAULT_SECONDS = 600.0
_LONGEST_WAIT = 15.0  # seconds between two attempts
_TRANSIENT_CODES = {408, 409, 425, 429}  # and 500 to 599
_FINAL = {errno.EINVAL, errno.EPERM, errno.ENOSYS, errno.EACCES, errno.ENOSPC, errno.ENAMETOOLONG, errno.EDQUOT}
# By name, for not all of these libraries are installed. None of the classes derives from ConnectionError.
_LOST_CONNECTION = {
    "botocore.exceptions": {"ConnectionError", "HTTPClientError", "ResponseStreamingError", "IncompleteReadError"},
    "aiohttp.client_exceptions": {"ClientConnectionError", "ClientPayloadError"},
    "azure.core.exceptions": {"ServiceRequestError", "ServiceResponseError"},
    "google.auth.exceptions": {"TransportError"},
    "fsspec.exceptions": {"FSTimeoutError"},
}
_UNREACHED = {errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH, errno.ETIMEDOUT, errno.ECONNRESET}
# Error codes of S3 that are about the credentials, not about a permission.
_BAD_CREDENTIALS = {
    *("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "SignatureDoesNotMatch"),
    *("RequestTimeTooSkewed", "UnrecognizedClientException", "AuthFailure", "NotSignedUp", "AccountProblem"),
}
Operation = Literal["list", "read", "write", "delete"]  # planning lists and reads; a run does all four
_NEEDED = {  # on S3, Google Cloud Storage and Azure
    "list": ("s3:ListBucket", "storage.objects.list", "blobs/read"),
    "read": ("s3:GetObject", "storage.objects.get", "blobs/read"),
    "write": ("s3:PutObject", "storage.objects.create (and storage.objects.delete, to overwrite)", "blobs/write"),
    "delete": ("s3:DeleteObject", "storage.objects.delete", "blobs/delete"),
}
_AZURE_PREFIX = "Microsoft.Storage/storageAccounts/blobServices/containers/"
_T = TypeVar("_T")


class DeniedError(BoomspecError):
    """The store refuses us: no credentials, or none that permit the operation."""


class Retries:
    """Repeat requests to the store at `address` for at most `seconds`; report an outage once, and its end.

    seconds: default BOOMSPEC_STORE_PATIENCE, else ten minutes, or in `answering_at_once` that limit for the first
    answer. Raises FileNotFoundError and FileExistsError as they are, and BoomspecError for anything else.
    """

    def __init__(self, address: str, *, report: Report | None = None, seconds: float | None = None) -> None:
        self._address = address
        self._report: Report = report or partial(print, file=sys.stderr, flush=True)
        configured = _configured_seconds()
        self._first = first_answer_seconds.get() if seconds is None and configured is None else None
        self._seconds = next(s for s in (seconds, configured, _DEFAULT_SECONDS) if s is not None)
        self._lock, self._out = Lock(), False

    def __call__(self, ask: Callable[[], _T], *, doing: Operation | None = None, stopped: Event | None = None) -> _T:
        """The result of `ask`, an operation named by `doing`. Nothing is repeated once `stopped` is set."""
        seconds = self._seconds if self._first is None else self._first
        import tenacity  # only stores at a URL need it installed

        stop: Any = tenacity.stop_after_delay(seconds)
        sleep: Any = tenacity.nap.sleep
        if stopped is not None:
            stop, sleep = stop | tenacity.stop_when_event_set(stopped), tenacity.sleep_using_event(stopped)
        retrying = tenacity.Retrying(
            stop=stop,
            sleep=sleep,
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=_LONGEST_WAIT),
            retry=tenacity.retry_if_exception(is_transient),
            before_sleep=self._failed,
            reraise=True,
        )
        try:
            result = retrying(ask)
        except (FileNotFoundError, FileExistsError) as error:
            self._first = None
            if _code(error) == "NoSuchBucket":
                hint = "make it, or name another one with --store"
                raise BoomspecError(f"store {self._address}: there is no such bucket", hint=hint) from error
            raise
        except Exception as error:
            raise self._final(error, seconds, doing) from error
        self._first = None
        if self._changes(out=False):
            self._report(f"the store {self._address} answers again")
        return result

    def _failed(self, state: Any) -> None:
        # Within a first answer's seconds an error follows.
        if self._first is None and self._changes(out=True):
            error = state.outcome.exception() if state.outcome is not None else None
            reason = f"the store {self._address} does not answer: {error_text(error)}"
            self._report(f"{reason}; trying for {_shown(self._seconds)}")

    def _changes(self, *, out: bool) -> bool:
        with self._lock:
            before, self._out = self._out, out
        return before != out

    def _final(self, error: Exception, seconds: float, doing: Operation | None) -> Exception:
        if is_transient(error):
            hint = "run again when it does"
            if _system_error(error) is not None:
                of_s3 = ", which is AWS_ENDPOINT_URL or Amazon's, and whether it can be reached"
                here = of_s3 if self._address.startswith("s3") else " and can be reached from here"
                hint = f"see whether its address is right{here}"
            message = f"store {self._address} has not answered for {_shown(seconds)}: {error_text(error)}"
            return BoomspecError(message, hint=f"{hint}; {SECONDS} says for how many seconds to try")
        if isinstance(error, BoomspecError):
            return error
        if _is_denied(error):
            return _denied(self._address, doing, error)
        if isinstance(error, OSError) and error.filename is not None:
            return error  # of a file on this machine, such as a full disk
        return BoomspecError(f"store {self._address}: {error_text(error)}")


def is_transient(error: BaseException) -> bool:
    """Whether an error of a filesystem's library may be gone the next time."""
    if _is_denied(error):
        return False
    if (status := _status(error)) is not None:
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


def exists_already(error: BaseException) -> bool:
    """Whether a conditional write failed because there is an object already."""
    return isinstance(error, FileExistsError) or _code(error) in ("PreconditionFailed", "412") or _status(error) == 412


def has_no_range(error: BaseException) -> bool:
    """Whether a range was requested of an object that is empty, or shorter."""
    return _code(error) == "InvalidRange" or _status(error) == 416


def cannot_be_conditional(error: BaseException) -> bool:
    """Whether a store, or its library, has no conditional writes."""
    return isinstance(error, TypeError | NotImplementedError) or _status(error) == 501


def error_text(error: BaseException | None) -> str:
    """An error as one line, with the system's reason where a library names only the address."""
    first = first_line(error)
    if first.endswith(":"):  # botocore's line on an invalid bucket name says nothing; the next one does
        first = first_line(" ".join(str(error).split()))
    text, reason = first or type(error).__name__, _system_error(error)
    return text if reason is None or reason in text else f"{text}: {reason}"


def _status(error: BaseException) -> int | None:
    for found in (error, error.__cause__):
        own = (getattr(found, "status_code", None), getattr(found, "code", None))
        for status in (_response(found, "ResponseMetadata").get("HTTPStatusCode"), *own):
            if isinstance(status, int) or (isinstance(status, str) and status.isdigit()):
                return int(status)
    return None


def _code(error: BaseException) -> str:
    """S3's name of an error, such as "NoSuchBucket"; "" where there is none."""
    found = (_response(found, "Error").get("Code") for found in (error, error.__cause__))
    return str(next(filter(None, found), ""))


def _response(error: BaseException | None, part: str) -> dict[str, Any]:
    response = getattr(error, "response", None)
    found = response.get(part) if isinstance(response, dict) else None
    return found if isinstance(found, dict) else {}


def _system_error(error: BaseException | None) -> str | None:
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, socket.gaierror):
            return f"this name is not known ({error.strerror})"
        if isinstance(error, OSError) and error.errno in _UNREACHED:
            return os.strerror(error.errno)
        inner = getattr(error, "kwargs", None)  # botocore keeps the original error there
        inner = inner.get("error") if isinstance(inner, dict) else None
        error = inner if isinstance(inner, BaseException) else error.__cause__ or error.__context__
    return None


def _shown(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 120 else f"{seconds:g} seconds"


def _configured_seconds() -> float | None:
    text = os.environ.get(SECONDS)
    try:
        seconds = None if text is None else float(text)
    except ValueError:
        seconds = -1.0
    if seconds is not None and not 0 <= seconds < float("inf"):
        raise BoomspecError(f"{SECONDS}={text}: not a number of seconds", hint=f"{SECONDS}=600")
    return seconds


def _is_denied(error: BaseException) -> bool:
    name = type(error).__name__
    # gcsfs turns a 403 into an OSError that begins with "Forbidden: ".
    named = "Credential" in name or "Token" in name or "Profile" in name or str(error).startswith("Forbidden: ")
    return isinstance(error, PermissionError) or _status(error) in (401, 403) or named


def _denied(address: str, operation: Operation | None, error: BaseException) -> DeniedError:
    name, text = type(error).__name__, str(error)
    reason = " ".join(line.strip() for line in text.splitlines()[:2]) if text.startswith("Forbidden: ") else text
    reason = first_line(reason) or name
    on_s3 = "AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    on_azure = "AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
    variables = {"s": on_s3, "g": "GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth"}.get(address[0], on_azure)
    hint = f"credentials come from the environment: {variables}"
    if operation is None or _code(error) in _BAD_CREDENTIALS or "Credential" in name or "Profile" in name:
        return DeniedError(f"store {address}: access denied: {reason}", hint=hint)
    call = getattr(error.__cause__, "operation_name", None) or getattr(error, "operation_name", None)
    by = f" ({call})" if call and call not in reason else ""
    message = f"store {address}: access denied: these credentials may not {operation} objects{by}: {reason}"
    return DeniedError(message, hint=f"{_needed_permissions(address, operation, text)}; {hint}")


def _needed_permissions(address: str, operation: Operation, text: str) -> str:
    scheme, _, rest = address.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme == "s3":
        objects = f"arn:aws:s3:::{bucket}/{path}/*" if path else f"arn:aws:s3:::{bucket}/*"
        resource = f"arn:aws:s3:::{bucket}" if operation == "list" else objects
        also = " and s3:ListBucket, without which an object that is not there is denied" if operation == "read" else ""
        every = f"{', '.join(s3 for s3, *_ in _NEEDED.values())}, s3:AbortMultipartUpload"
        on_s3 = f"that needs {_NEEDED[operation][0]} on {resource}{also}; a run needs"
        return f"{on_s3} {every} and s3:ListBucketMultipartUploads"
    if scheme in ("gs", "gcs"):
        named = re.search(r"storage\.(objects|buckets|multipartUploads)\.\w+", text)
        return f"that needs {named[0] if named else _NEEDED[operation][1]}; a run needs the role Storage Object User"
    return f"that needs {_AZURE_PREFIX}{_NEEDED[operation][2]}; a run needs the role Storage Blob Data Contributor"
