"""List the files of a model folder beside its weights: those of the tokenizer, and those copied with a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError

CONFIG, INDEX, SINGLE = "config.json", "model.safetensors.index.json", "model.safetensors"
CONTEXT = "config"  # of a tokenizer's identity: see `tokenizer_context`
CHAT_TEMPLATES = "additional_chat_templates"  # a folder
# What tokenizers of transformers read, by whatever class: its `VOCAB_FILES_NAMES`, and what all of them read.
_TOKENIZER = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|chat_template.*|merges\.txt|dict\.txt"
    r"|(.*_)?vocab([-_.].*)?\.(json|txt|bpe)|vocab\.bpe|encoder\.json|bpe\.codes|(normalizer|emoji|byte_maps|tekken)\.json"
    r"|word_(shape|pronunciation)\.json|.*\.(model|spm|tiktoken|jinja|tokenizer))"
    rf"|{CHAT_TEMPLATES}/[^/]*\.jinja"
)
# Of a model that sees or hears, what its processor reads; a model of its layers needs it just as much.
_PROCESSOR = re.compile(r"((video_|image_|audio_)?(pre)?processor_config|audio_tokenizer_config)\.json")
# Of a model's config, what decides which class its tokenizer is: transformers mends classes that are known to be wrong.
_DECIDES = ("model_type", "model_name", "tokenizer_class")
_REGEX = ("fix_mistral_regex", "transformers_version")  # a tokenizer that asks for the one is mended by the other
# All that a model folder may need, without the weights in other formats that many repositories also hold.
HUB_FILES = (
    *("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"),
    *("*.spm", "*.bpe", "*.codes", "*.tokenizer"),
)
NOT_HUB_FILES = ("consolidated*.safetensors", "original/*")  # the same weights once more, as their makers read them
_GENERATION = "generation_config.json"


def is_tokenizer_file(name: str) -> bool:
    """`name`: relative to the model's folder."""
    return _TOKENIZER.fullmatch(name) is not None


def is_travelling_file(name: str) -> bool:
    """Whether a file goes along when a model is built from the one that it is beside."""
    return is_tokenizer_file(name) or name == _GENERATION or _PROCESSOR.fullmatch(name) is not None


def is_hub_file(name: str) -> bool:
    """Whether a file of a model on the hub is fetched."""
    return any(fnmatch(name, pattern) for pattern in HUB_FILES)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that make up a folder's tokenizer, sorted."""
    return [path for path in _files(folder) if is_tokenizer_file(path.relative_to(folder).as_posix())]


def tokenizer_context(config: Mapping[str, Any], tokenizer: Mapping[str, Any]) -> dict[str, Any]:
    """What a tokenizer takes from the model's config when it is loaded from the model's folder.

    Written as config.json beside the tokenizer alone, it is loaded the same way.
    """
    keys = (*_DECIDES, _REGEX[1]) if _REGEX[0] in tokenizer else _DECIDES
    return {key: config[key] for key in keys if config.get(key) is not None}


def travelling_files(folder: Path) -> list[Path]:
    """The files that go along when a model is built from this one: of tokenizer and processor, generation config."""
    tokenizer = tokenizer_files(folder)
    others = [path for path in _files(folder) if is_travelling_file(path.relative_to(folder).as_posix())]
    return [*tokenizer, *(path for path in others if path not in tokenizer)]


def _files(folder: Path) -> list[Path]:
    found = [*folder.iterdir(), *(folder / CHAT_TEMPLATES).glob("*.jinja")]
    return sorted(path for path in found if path.is_file())


_LFS_POINTER = b"version https://git-lfs.github.com/spec/"  # how a file begins that git-lfs has not fetched


def check_fetched(file: Path) -> None:
    """Raise BoomspecError for a file that is only a pointer of git-lfs."""
    with file.open("rb") as stream:
        start = stream.read(len(_LFS_POINTER))
    if start == _LFS_POINTER:
        raise BoomspecError(
            f"{file}: is a pointer of git-lfs, not the file itself",
            hint="fetch the files: `git lfs install`, then `git lfs pull` in the repository",
        )
