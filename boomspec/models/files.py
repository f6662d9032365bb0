"""The files of a model folder beside its weights: what a tokenizer consists of, what goes along with a model."""

from __future__ import annotations

import re
from fnmatch import fnmatch
from pathlib import Path

_TOKENIZER = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.(model|tiktoken|jinja)"
    r"|chat_template.*)"
)
# All that a model folder may need, without the weights in other formats that many repositories also hold.
HUB_FILES = ("*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken")
_GENERATION = "generation_config.json"


def is_tokenizer_file(name: str) -> bool:
    return _TOKENIZER.fullmatch(name) is not None


def is_hub_file(name: str) -> bool:
    """Whether a file of a model on the hub is fetched."""
    return any(fnmatch(name, pattern) for pattern in HUB_FILES)


def tokenizer_files(folder: Path) -> list[Path]:
    """The files that make up a folder's tokenizer, sorted."""
    return sorted(path for path in folder.iterdir() if is_tokenizer_file(path.name) and path.is_file())


def travelling_files(folder: Path) -> list[Path]:
    """The files that go along when a model is built from this one: tokenizer, chat template, generation config."""
    generation = folder / _GENERATION
    return [*tokenizer_files(folder), *([generation] if generation.is_file() else [])]
