"""Which store a text means: a folder, or a URL.

A URL is handed on as text: `Path` would make s3:/bucket of s3://bucket.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Callable
from pathlib import Path
from urllib.parse import unquote, urlsplit

from boomspec.core.errors import BoomspecError, did_you_mean, redact
from boomspec.core.files import ABSENT, unreadable
from boomspec.store.folder import FolderStore

Where = str | Path  # a folder, or a URL
URL_FILE = ".url"  # in this machine's folder of a store at a URL
_SCHEMES = {"s3": ("s3fs", "s3"), "gs": ("gcsfs", "gcs"), "gcs": ("gcsfs", "gcs"), "az": ("adlfs", "azure")}
_SCHEMES |= {"abfs": ("adlfs", "azure"), "abfss": ("adlfs", "azure")}

# A scheme and something like "://"; a folder "s3/x" may be meant.
_MISSPELT = re.compile(
    rf"\s*(?P<scheme>{'|'.join([*_SCHEMES, 'file'])})\s*(?:[:;]+\s*[/\\]*|[/\\]{{2,}}:?[/\\]*|/:/+)(?P<rest>[^/\\].*)",
    re.I,
)


def is_url(where: str | os.PathLike[str]) -> bool:
    """Whether this is a URL, and so no path of this machine."""
    return isinstance(where, str) and re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", where) is not None


def open_store(
    where: str | os.PathLike[str], *, tell: Callable[[str], None] | None = None, patience: float | None = None
) -> FolderStore:
    """The store at a path or URL; nothing is read or asked for yet.

    Of a store at a URL: `tell` is told when it does not answer, and when it does again (default: stderr); it is tried
    for `patience` seconds (default: BOOMSPEC_STORE_PATIENCE, else ten minutes).
    Raises BoomspecError for a URL that names no store, or that has credentials in it, and where what reads it is not
    installed.
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
    _check_installed(url)
    from boomspec.store.remote import RemoteStore  # here: who has a folder needs none of it

    return RemoteStore(url, tell=tell, patience=patience)


def check_spelling(where: str) -> None:
    """Raise BoomspecError for a text that was to be a URL, and would be taken for a folder: "s3//x", "s3:/x"."""
    found = None if is_url(where) else _MISSPELT.match(where)
    if found is None:
        return
    scheme = found["scheme"].lower()
    meant = f"{scheme}:///{found['rest']}" if scheme == "file" else f"{scheme}://{found['rest']}"
    message = f"store '{redact(where)}': is neither a URL nor, most likely, the folder that was meant"
    raise BoomspecError(message, hint=f"did you mean '{redact(meant)}'? a folder of that name is './{redact(where)}'")


def packages_of(url: str) -> tuple[str, ...]:
    """The packages that read and write at this URL, where stores can be."""
    return ("fsspec", "tenacity", _SCHEMES[url.partition("://")[0]][0])


def store_of_run(folder: Path) -> FolderStore:
    """The store that a run's folder is in; at its URL, where it was brought here from one."""
    root = folder.resolve().parents[1]
    try:
        return open_store((root / URL_FILE).read_text(encoding="utf-8").strip())
    except ABSENT:
        return FolderStore(root)
    except OSError as error:
        raise unreadable(root / URL_FILE, error) from error


def _check_installed(url: str) -> None:
    extra = _SCHEMES[url.partition("://")[0]][1]
    for needed in packages_of(url):
        if importlib.util.find_spec(needed) is None:
            message = f"store '{url}': what reads it is not installed here: {needed}"
            raise BoomspecError(message, hint=f"pip install 'boomspec[{extra}]'")


def check_url(url: str) -> None:
    """Raise BoomspecError unless this is the URL of a store, without credentials."""
    scheme = url.partition("://")[0]
    parts = urlsplit(url)
    before, at, _ = parts.netloc.rpartition("@")
    if at and (":" in before or scheme not in ("abfs", "abfss")):  # there it is container@account
        raise BoomspecError(
            f"store '{scheme}://...': has credentials in it", hint="leave them to the environment, such as AWS_PROFILE"
        )
    if scheme == "file":
        if parts.netloc not in ("", "localhost") or not parts.path.startswith("/"):
            raise BoomspecError(f"store '{url}': is no absolute path", hint="file:///folder, or the path alone")
        return
    if scheme not in _SCHEMES:
        allowed = ", ".join(f"{name}://" for name in ("s3", "gs", "az", "file"))
        hint = did_you_mean(scheme, list(_SCHEMES)) or f"a folder, or one of {allowed}"
        raise BoomspecError(f"store '{redact(url)}': there are no stores at {scheme}://", hint=hint)
    if not parts.netloc or parts.query or parts.fragment:
        raise BoomspecError(f"store '{redact(url)}': names no bucket and path", hint=f"{scheme}://bucket/boomspec")
