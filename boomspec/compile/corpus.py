"""Text that is on every machine: the source code of Python's own standard library.

The small experiment trains and measures on it, so that nothing has to be downloaded. It changes with the
Python version, which is harmless: a data artifact is identified by the digests of its files.
"""

from __future__ import annotations

import os
import sysconfig
from pathlib import Path

# Tests repeat themselves, encodings are tables, and lib2to3 and pydoc_data are written by programs.
# site-packages and dist-packages lie inside the folder but are not the standard library.
_LEFT_OUT = frozenset(
    {"test", "tests", "idle_test", "encodings", "lib2to3", "pydoc_data", "__pycache__"}
    | {"site-packages", "dist-packages"}
)


def python_stdlib() -> list[Path]:
    """The library modules of the running interpreter (*.py), sorted by their path inside the library."""
    files: list[Path] = []
    for folder, subfolders, names in os.walk(Path(sysconfig.get_path("stdlib")).resolve()):
        subfolders[:] = [name for name in subfolders if name not in _LEFT_OUT]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda file: file.parts)
