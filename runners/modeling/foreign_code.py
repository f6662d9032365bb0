"""Allow `trust_remote_code` only for files whose sha256 the spec trusts.

A task's options name the sha256 of every file that the spec trusts (`boomspec.models.code`). The code travels with what
is made of a model, so a folder in the store is looked at as the teacher's own one is: an unknown file means no code, as
does a class that is in none of the files.
transformers copies code into a folder of its own before it imports it; only one process at a time does that.
"""

import json
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer
from transformers.dynamic_module_utils import get_class_from_dynamic_module
from transformers.utils import HF_MODULES_CACHE

from boomspec.core.errors import BoomspecError
from boomspec.core.files import exclusive_lock
from boomspec.core.json_text import transformers_floats
from boomspec.models import code as own_code
from boomspec.models.code import AUTO_MAP, CONFIGS, Part, named_classes
from boomspec.models.folder import travelling_files


def runs_code(folder: Path, part: Part, code: Collection[str]) -> bool:
    """Whether transformers may run the code in a model folder: the model's, or the tokenizer's.

    It may where each file of code in the folder is trusted, and each class that would be imported is in one of them: of
    another repository nothing is pinned. BoomspecError where only some files are trusted: the folder was changed.
    """
    if not code or not named_classes(folder, part):
        return False
    digests = own_code.code_digests(folder)
    unknown = [name for name, digest in digests.items() if digest not in code]
    if 0 < len(unknown) < len(digests):
        raise BoomspecError(f"{folder / unknown[0]}: is not the code that the spec trusts", hint="run again")
    try:
        own_code.check_named(_imported(folder, part), digests, folder)
    except BoomspecError:
        return False
    return bool(digests) and not unknown


def prepare_custom_code(folder: Path, part: Part, code: Collection[str]) -> bool:
    """`runs_code`, whose classes are then imported; BoomspecError where it may not and transformers has no class."""
    if not runs_code(folder, part, code):
        own_code.check_native(folder, part, str(folder))
        return False
    with exclusive_lock(Path(HF_MODULES_CACHE, ".boomspec.lock")):
        for name in _imported(folder, part):
            get_class_from_dynamic_module(name, str(folder))
    return True


def _imported(folder: Path, part: Part) -> list[str]:
    """The classes that transformers imports for a part: for a tokenizer that of the model's config, too."""
    classes = named_classes(folder, part)
    if part == "tokenizer":
        classes["AutoConfig"] = named_classes(folder, "model").get("AutoConfig", ())
    return [name for auto in own_code.USED for name in classes.get(auto, ())]


def copy_travelling(source: Path, target: Path, code: Collection[str]) -> None:
    """Copy what goes along when a model is built from the one in `source`; its code only if that is trusted."""
    trusted = {part: runs_code(source, part, code) for part in CONFIGS}
    files = travelling_files(source)
    if any(trusted.values()):
        files += [*own_code.code_files(source).values(), *own_code.files_of_code(source)]
    for file in files:
        copied = target / file.relative_to(source)
        copied.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(file, copied)
    if not trusted["tokenizer"]:
        forget_code(target)


def forget_code(folder: Path) -> None:
    if named_classes(folder, "tokenizer"):
        path = folder / CONFIGS["tokenizer"]
        config = transformers_floats(without_code(json.loads(path.read_text(encoding="utf-8"))))
        text = json.dumps(config, indent=2, ensure_ascii=False, allow_nan=False)
        path.write_text(text + "\n", encoding="utf-8")


def without_code(config: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if key != AUTO_MAP}


def tokenizer_of(folder: Path, code: Collection[str] = ()) -> Any:
    return AutoTokenizer.from_pretrained(folder, trust_remote_code=prepare_custom_code(folder, "tokenizer", code))
