"""A store that does not let us: which operation it was, and which permission that needs.

    list     names, sizes and times of objects      s3:ListBucket on the bucket itself
    read     their contents                         s3:GetObject on what lies below the store's path
    write    new ones, and in their place others    s3:PutObject
    delete   old ones                               s3:DeleteObject

`plan`, `show` and `diff` list and read; whatever runs something does all four.
"""

from __future__ import annotations

import re
from typing import Literal

from boomspec.core.errors import BoomspecError, first_line

Operation = Literal["list", "read", "write", "delete"]
_WHAT = {"list": "list objects", "read": "read objects", "write": "write objects", "delete": "delete objects"}
_S3 = {"list": "s3:ListBucket", "read": "s3:GetObject", "write": "s3:PutObject", "delete": "s3:DeleteObject"}
_GOOGLE = {
    "list": "storage.objects.list",
    "read": "storage.objects.get",
    "write": "storage.objects.create (and storage.objects.delete, to write one anew)",
    "delete": "storage.objects.delete",
}
_AZURE = {"list": "blobs/read", "read": "blobs/read", "write": "blobs/write", "delete": "blobs/delete"}
_AZURE_BEFORE = "Microsoft.Storage/storageAccounts/blobServices/containers/"
# Codes of S3 that speak of who asks, and not of what may be done.
_OF_KEYS = {
    *("ExpiredToken", "InvalidAccessKeyId", "InvalidToken", "InvalidClientTokenId", "SignatureDoesNotMatch"),
    *("RequestTimeTooSkewed", "UnrecognizedClientException", "AuthFailure", "NotSignedUp", "AccountProblem"),
}


class DeniedError(BoomspecError):
    """The store does not let us: no credentials, or none that permit it."""


def is_denied(error: BaseException, status: int | None) -> bool:
    """Whether an error of a filesystem's library says that something is not permitted."""
    name = type(error).__name__
    # gcsfs makes of a 403 an OSError that begins so.
    named = "Credential" in name or "Token" in name or "Profile" in name or str(error).startswith("Forbidden: ")
    return isinstance(error, PermissionError) or status in (401, 403) or named


def denied(address: str, operation: Operation | None, error: BaseException, code: str) -> DeniedError:
    """The error for people. `code`: what S3 calls it, "" where that is not known."""
    name, said = type(error).__name__, str(error)
    reason = " ".join(line.strip() for line in said.splitlines()[:2]) if said.startswith("Forbidden: ") else said
    reason = first_line(reason) or name
    if operation is None or code in _OF_KEYS or "Credential" in name or "Profile" in name:
        return DeniedError(f"store {address}: access denied: {reason}", hint=_of_keys(address))
    called = getattr(error.__cause__, "operation_name", None) or getattr(error, "operation_name", None)
    by = f" ({called})" if called and called not in reason else ""
    return DeniedError(
        f"store {address}: access denied: these credentials may not {_WHAT[operation]}{by}: {reason}",
        hint=f"{_needed(address, operation, said)}; {_of_keys(address)}",
    )


def _needed(address: str, operation: Operation, said: str) -> str:
    """Which permission an operation needs, and which ones a store needs in all."""
    scheme, _, rest = address.partition("://")
    bucket, _, path = rest.partition("/")
    if scheme == "s3":
        below = f"arn:aws:s3:::{bucket}/{path}/*" if path else f"arn:aws:s3:::{bucket}/*"
        where = f"arn:aws:s3:::{bucket}" if operation == "list" else below
        also = " and s3:ListBucket, without which an object that is not there is denied" if operation == "read" else ""
        every = ", ".join(_S3.values())
        return (
            f"that needs {_S3[operation]} on {where}{also}; a run needs {every}, s3:AbortMultipartUpload "
            "and s3:ListBucketMultipartUploads"
        )
    if scheme in ("gs", "gcs"):
        named = re.search(r"storage\.(objects|buckets|multipartUploads)\.\w+", said)
        return f"that needs {named[0] if named else _GOOGLE[operation]}; a run needs the role Storage Object User"
    return f"that needs {_AZURE_BEFORE}{_AZURE[operation]}; a run needs the role Storage Blob Data Contributor"


def _of_keys(address: str) -> str:
    if address.startswith("s3"):
        return "credentials come from the environment: AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    if address.startswith("g"):
        return "credentials come from the environment: GOOGLE_APPLICATION_CREDENTIALS, or gcloud auth"
    return "credentials come from the environment: AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY"
