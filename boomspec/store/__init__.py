"""Stores of artifacts and runs: in a folder (`folder.py`, where the interface is), or at a URL (`remote.py`)."""

from boomspec.store.folder import FolderStore, Store
from boomspec.store.opening import (
    DEFAULT_STORE,
    STORE_VARIABLE,
    Where,
    check_spelling,
    check_url,
    is_url,
    open_store,
    packages_of,
    store_of_run,
    usual_store,
)  # fmt: skip
from boomspec.store.record import RECORD, Workspace

__all__ = [
    "DEFAULT_STORE", "RECORD", "STORE_VARIABLE", "FolderStore", "Store", "Where", "Workspace", "check_spelling",
    "check_url", "is_url", "open_store", "packages_of", "store_of_run", "usual_store",
]  # fmt: skip
