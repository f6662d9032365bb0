"""Open the store at a folder or URL. URLs stay text: `Path` would turn s3://bucket into s3:/bucket."""

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from urllib.parse import unquote, urlsplit

from boomspec.core.errors import BoomspecError, did_you_mean, redact
from boomspec.core.files import ABSENT, unreadable
from boomspec.core.machine import install_line
from boomspec.store.folder import FolderStore, Store
from boomspec.store.record import Report

Where = str | os.PathLike[str]  # a folder, or a URL
DEFAULT_STORE = "boomspec-store"  # in the current folder
STORE_VARIABLE = "BOOMSPEC_STORE"  # of the environment: the store where neither --store nor the spec names one
URL_FILE = ".url"  # in the local cache of a store at a URL
# By scheme: the package that reads it, and the extra of boomspec that installs that.
_SCHEMES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "az": ("adlfs", "azure")}
_SCHEMES |= {"abfs": ("adlfs", "azure"), "abfss": ("adlfs", "azure")}
# A scheme and something like "://"; "s3/x" may be a folder.
_MISSPELT = re.compile(
    rf"\s*(?P<scheme>{'|'.join([*_SCHEMES, 'file'])})\s*(?:[:;]+\s*[/\\]*|[/\\]{{2,}}:?[/\\]*|/:/+)(?P<rest>[^/\\].*)",
    re.I,
)
first_answer_seconds: ContextVar[float | None] = ContextVar("first_answer_seconds", default=None)


def usual_store() -> Where:
    """Where the store is when nobody says: the environment's, else a folder here."""
    return os.environ.get(STORE_VARIABLE) or DEFAULT_STORE


def is_url(where: Where) -> bool:
    """Whether this is a URL, not a path."""
    return isinstance(where, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", where) is not None


def open_store(where: Where, *, report: Report | None = None, retry_seconds: float | None = None) -> Store:
    """The store at a path or URL; nothing is read or requested yet.

    report: receives messages about outages of a URL (default: stderr). retry_seconds: how long to retry (default:
    BOOMSPEC_STORE_PATIENCE, else ten minutes). Raises BoomspecError for a URL that names no store or has credentials
    in it, and where the package that reads it is not installed.
    """
    if isinstance(where, str):
        check_spelling(where)
    if not is_url(where):
        if (scheme := str(where).partition(":/")[0]) in _SCHEMES and isinstance(where, Path):
            message = f"store '{redact(str(where))}': is a URL that was made a path, and has lost a slash"
            raise BoomspecError(message, hint=f"give it as text: '{scheme}://...'")
        return FolderStore(Path(where))
    url = str(where)
    check_url(url)
    if url.startswith("file://"):
        return FolderStore(Path(unquote(urlsplit(url).path)))
    for package in packages_of(url):
        if importlib.util.find_spec(package) is None:
            message = f"store '{url}': what reads it is not installed here: {package}"
            raise BoomspecError(message, hint=install_line(_SCHEMES[url.partition("://")[0]][1]))
    from boomspec.store.remote import RemoteStore  # imported here: a folder needs no library for URLs

    return RemoteStore(url, report=report, retry_seconds=retry_seconds)


def store_of_run(folder: Path) -> Store:
    """The store of a run's folder: its URL, where the folder lies in the local cache of one."""
    root = folder.resolve().parents[1]
    try:
        return open_store((root / URL_FILE).read_text(encoding="utf-8").strip())
    except ABSENT:
        return FolderStore(root)
    except OSError as error:
        raise unreadable(root / URL_FILE, error) from error


@contextmanager
def answering_at_once(seconds: float = 5.0) -> Iterator[None]:
    """Stores opened within must answer so soon: a person waits, and sees a wrong address at once. A run is patient."""
    token = first_answer_seconds.set(seconds)
    try:
        yield
    finally:
        first_answer_seconds.reset(token)


def packages_of(url: str) -> tuple[str, ...]:
    """The packages that read and write at this URL, whose scheme stores can have."""
    return ("fsspec", "tenacity", _SCHEMES[url.partition("://")[0]][0])


def check_spelling(where: str) -> None:
    """Raise BoomspecError for a misspelt URL that would be taken for a folder: "s3//x", "s3:/x"."""
    found = None if is_url(where) else _MISSPELT.match(where)
    if found is None:
        return
    scheme = found["scheme"].lower()
    meant = f"{scheme}:///{found['rest']}" if scheme == "file" else f"{scheme}://{found['rest']}"
    message = f"store '{redact(where)}': is neither a URL nor, most likely, the folder that was meant"
    raise BoomspecError(message, hint=f"did you mean '{redact(meant)}'? a folder of that name is './{redact(where)}'")


def check_url(url: str) -> None:
    """Raise BoomspecError unless this is the URL of a store, without credentials."""
    scheme, parts = url.partition("://")[0], urlsplit(url)
    before, at, _ = parts.netloc.rpartition("@")
    if at and (":" in before or scheme not in ("abfs", "abfss")):  # there it is container@account
        hint = "leave them to the environment, such as AWS_PROFILE"
        raise BoomspecError(f"store '{scheme}://...': has credentials in it", hint=hint)
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise BoomspecError(f"store '{url}': is no absolute path", hint="file:///folder, or the path alone")
    elif scheme not in _SCHEMES:
        hint = did_you_mean(scheme, list(_SCHEMES)) or "a folder, or one of s3://, gs://, az://, file://"
        raise BoomspecError(f"store '{redact(url)}': there are no stores at {scheme}://", hint=hint)
    elif not parts.netloc or parts.query or parts.fragment:
        raise BoomspecError(f"store '{redact(url)}': names no bucket and path", hint=f"{scheme}://bucket/boomspec")
