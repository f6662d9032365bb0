"""What the libraries of stores raise, made an error for people: tried again, or named with what it needs."""

import errno
import os
import socket

import pytest

from boomspec.store.retry import DeniedError, Retries, error_text, is_transient
from tests.messages import wording


class HttpError(Exception):
    """As gcsfs has it."""

    def __init__(self, code: int, message: str) -> None:
        self.code = code
        super().__init__(f"{message}, {code}")


class HttpResponseError(Exception):
    """As azure.core has it."""

    def __init__(self, status_code: int, message: str) -> None:
        self.status_code = status_code
        super().__init__(message)


class NoCredentialsError(Exception):
    pass


GOOGLE = OSError(
    "Forbidden: https://storage.googleapis.com/storage/v1/b/b/o\nme@p.iam does not have storage.objects.list access to "
    "the Google Cloud Storage bucket."
)
DENIED = [
    ("gs://b/x", GOOGLE, "list", ["may not list objects", "me@p.iam"], "that needs storage.objects.list; "),
    ("gs://b/x", HttpError(403, "no"), "write", ["may not write objects"], "that needs storage.objects.create (and "),
    ("gs://b/x", HttpError(401, "Invalid Credentials"), "read", ["may not read objects"], "storage.objects.get"),
    (
        "az://c/x",
        HttpResponseError(403, "AuthorizationPermissionMismatch"),
        "delete",
        ["delete"],
        "blobs/delete; a run",
    ),
    ("s3://b/x", PermissionError("Access Denied"), "write", ["may not write"], "s3:PutObject on arn:aws:s3:::b/x/*"),
    ("s3://b", PermissionError("Forbidden"), "read", ["may not read"], "s3:GetObject on arn:aws:s3:::b/* and s3:List"),
]


@pytest.mark.parametrize(("address", "error", "doing", "said", "hint"), DENIED, ids=[d[4][:30] for d in DENIED])
def test_a_denied_operation_is_named_at_once(address, error, doing, said, hint) -> None:
    times = []

    def refused() -> None:
        times.append(1)
        raise error

    with pytest.raises(DeniedError) as caught:
        Retries(address, seconds=60)(refused, doing=doing)
    assert times == [1]
    assert caught.value.message.startswith(f"store {address}: access denied: ")
    assert all(part in caught.value.message for part in said)
    assert hint in (caught.value.hint or "")


def test_credentials_that_are_not_there_need_no_permission() -> None:
    def refused() -> None:
        raise NoCredentialsError("Unable to locate credentials")

    with pytest.raises(DeniedError, match=wording("store_errors.access_denied_unable_locate")):
        Retries("s3://b/x", seconds=60)(refused, doing="list")


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed"), True),
        (socket.gaierror(socket.EAI_NONAME, "Name or service not known"), True),  # it may be a resolver that is down
        (HttpResponseError(503, "slow down"), True),
        (HttpResponseError(429, "slow down"), True),
        (GOOGLE, False),
        (PermissionError("Access Denied"), False),
        (HttpError(401, "Invalid Credentials"), False),
    ],
)
def test_what_is_tried_again(error: Exception, again: bool) -> None:
    assert is_transient(error) == again


def test_the_reason_of_the_system_is_in_the_message_whatever_the_library_makes_of_it() -> None:
    def refused() -> None:
        try:
            raise ConnectionRefusedError(errno.ECONNREFUSED, "Connect call failed ('10.0.0.1', 443)")
        except OSError as error:
            raise ConnectionError("Could not connect to the endpoint URL") from error

    with pytest.raises(Exception, match=f"the endpoint URL: {os.strerror(errno.ECONNREFUSED)}"):
        Retries("s3://b/x", seconds=0)(refused)


def test_what_a_library_says_on_its_second_line_is_in_the_message() -> None:
    error = ValueError('Parameter validation failed:\nInvalid bucket name "here:1"')
    assert error_text(error) == wording("store_errors.parameter_validation_failed_invalid")
