"""The code that a model brings along, where tasks load it: it runs if the spec trusts each of its files, else not.

A task's options name the sha256 of every file that the spec trusts (`boomspec.models.code`). The code travels with what
is made of a model, so a folder in the store is looked at as the teacher's own one is: an unknown file means no code.
transformers copies code into a folder of its own before it imports it; only one process at a time does that.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import HF_MODULES_CACHE

from boomspec.errors import BoomspecError
from boomspec.identity import file_digest
from boomspec.models.code import AUTO_MAP, CONFIGS, USED, Part, check_native, code_files, named_classes
from boomspec.models.files import travelling_files


def runs_code(folder: Path, part: Part, code: Collection[str]) -> bool:
    """Whether transformers may run the code in a model folder: the model's, or the tokenizer's.

    Raises BoomspecError where some of the files are trusted and others are not: the folder was changed.
    """
    if not code or not named_classes(folder, part):
        return False
    unknown = [name for name, file in code_files(folder).items() if file_digest(file) not in code]
    if not unknown:
        return True
    if len(unknown) < len(code_files(folder)):
        raise BoomspecError(f"{folder / unknown[0]}: is not the code that the spec trusts", hint="run again")
    return False


def ready(folder: Path, part: Part, code: Collection[str]) -> bool:
    """`runs_code`; where it may run, its classes are imported when this returns.

    Raises BoomspecError where it may not, and transformers has no class of its own.
    """
    if not runs_code(folder, part, code):
        check_native(folder, part, str(folder))
        return False
    with _one_at_a_time():
        for auto, names in named_classes(folder, part).items():
            for name in names if auto in USED else ():
                get_class_from_dynamic_module(name, str(folder))
    return True


def copy_travelling(source: Path, target: Path, code: Collection[str]) -> None:
    """Copy what goes along when a model is built from the one in `source`; its code only if that is trusted."""
    for file in travelling_files(source):
        shutil.copyfile(file, target / file.name)
    if not runs_code(source, "tokenizer", code):
        forget_code(target)
    if runs_code(source, "model", code) or runs_code(source, "tokenizer", code):
        for name, file in code_files(source).items():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target / name)


def forget_code(folder: Path) -> None:
    """Make a tokenizer's config name no code."""
    path = folder / CONFIGS["tokenizer"]
    if named_classes(folder, "tokenizer"):
        config = without_code(json.loads(path.read_text(encoding="utf-8")))
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    """A config that names no code."""
    return {key: value for key, value in config.items() if key != AUTO_MAP}


def tokenizer_of(folder: Path, code: Collection[str] = ()) -> Any:
    """transformers' tokenizer of a folder."""
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=ready(folder, "tokenizer", code))


@contextmanager
def _one_at_a_time() -> Iterator[None]:
    place = Path(HF_MODULES_CACHE)
    place.mkdir(parents=True, exist_ok=True)
    handle = os.open(place / ".boomspec.lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
