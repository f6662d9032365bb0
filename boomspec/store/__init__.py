"""Where artifacts are kept: in a folder (`folder.py`), or at a URL (`remote.py`)."""

from boomspec.store.file_locks import NoLocksError, check_locks, lock
from boomspec.store.files import flush, locked_folder, read_json, write_atomically
from boomspec.store.folder import Store, Workspace
from boomspec.store.opening import Where, check_spelling, check_url, is_url, open_store, packages_of, store_of_run
from boomspec.store.record import RECORD, RECORD_VERSION

__all__ = [
    "RECORD",
    "RECORD_VERSION",
    "NoLocksError",
    "Store",
    "Where",
    "Workspace",
    "check_locks",
    "check_spelling",
    "check_url",
    "flush",
    "is_url",
    "lock",
    "locked_folder",
    "open_store",
    "packages_of",
    "read_json",
    "store_of_run",
    "write_atomically",
]
