"""fsspec's filesystem of a URL, opened once in a process."""

from __future__ import annotations

import os
import threading
from typing import Any

PARALLEL = 32  # requests at a time
_SETTINGS = ("AWS_", "GOOGLE_", "AZURE_", "FSSPEC_")  # environment variables
_opened: dict[tuple[Any, ...], tuple[Any, str]] = {}
_opening = threading.Lock()
_forks = 0  # between the first process and this one; process numbers are used again


def filesystem(url: str) -> tuple[Any, str]:
    """fsspec's filesystem of a URL, and what it calls the URL's place.

    Settings come from the environment, and from fsspec's own configuration files; who has changed them gets another
    one. So does a forked process, which does not have the threads of the first one.
    """
    settings = sorted(item for item in os.environ.items() if item[0].startswith(_SETTINGS))
    key = (_forks, url, *settings)
    with _opening:
        if key not in _opened:
            _opened[key] = _new_filesystem(url)
        return _opened[key]


def _new_filesystem(url: str) -> tuple[Any, str]:
    from fsspec.core import url_to_fs  # here: a third of a second that a store in a folder does without

    options: dict[str, Any] = {"use_listings_cache": False, "skip_instance_cache": True}
    is_s3 = url.startswith("s3://")
    if is_s3:
        # botocore's own retries would keep from a person for a minute that nothing answers.
        retries = {"mode": "standard", "total_max_attempts": 2}
        connections = {"max_pool_connections": 2 * PARALLEL, "connect_timeout": 10, "read_timeout": 60}
        options["config_kwargs"] = {"retries": retries, **connections}
    made, place = url_to_fs(url, **options)
    if is_s3:
        made.retries = 2
    return made, place.rstrip("/")


def _start_anew() -> None:
    global _opening, _forks
    _opening = threading.Lock()
    _forks += 1


os.register_at_fork(after_in_child=_start_anew)  # a thread of the parent may hold it
