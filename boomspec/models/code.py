"""Find the code of a model: Python files that the `auto_map` of its configs names in place of transformers' classes.

    "auto_map": {"AutoModelForCausalLM": "modeling_x.XForCausalLM"}      in config.json; modeling_x.py lies beside it
    "auto_map": {"AutoTokenizer": ["tokenization_x.X", null]}            in tokenizer_config.json: slow, fast

Nothing here imports such code or transformers.
"""

import importlib.util
import re
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from boomspec.core.errors import BoomspecError
from boomspec.core.identity import file_digest
from boomspec.models.folder import CONFIG, read_object

Part = Literal["model", "tokenizer"]
CONFIGS: Mapping[Part, str] = {"model": CONFIG, "tokenizer": "tokenizer_config.json"}
AUTO_MAP = "auto_map"
USED = ("AutoConfig", "AutoModelForCausalLM", "AutoTokenizer")  # what tasks load by
CODE_FILES = "*.py"
DECODER_CONFIGS = ("text_config", "llm_config", "language_config")  # of a text decoder among other parts
_NOT_NAMED = frozenset({".py", ".safetensors", ".bin", ".pt", ".pth", ".gguf", ".md"})
# Where transformers lists the classes that it has itself, by model type or by name: module and lists.
_LISTS: Mapping[Part, tuple[str, tuple[str, ...]]] = {
    "model": ("modeling_auto", ("MODEL_FOR_CAUSAL_LM_MAPPING_NAMES", "MODEL_FOR_MASKED_LM_MAPPING_NAMES")),
    "tokenizer": ("tokenization_auto", ("TOKENIZER_MAPPING_NAMES",)),
}
_GENERAL = {"PreTrainedTokenizerFast", "PreTrainedTokenizer", "TokenizersBackend", "PythonBackend"}


def named_classes(folder: Path, part: Part) -> dict[str, tuple[str, ...]]:
    """Auto class -> the classes ("module.Class") that a model folder names for it; BoomspecError for no `auto_map`."""
    where, found = folder / CONFIGS[part], read_object(folder / CONFIGS[part]).get(AUTO_MAP) or {}
    found = {"AutoTokenizer": found} if isinstance(found, list) else found  # as older tokenizers have it
    if not isinstance(found, dict):
        raise BoomspecError(f"{where}: '{AUTO_MAP}' is not an object")
    classes = {}
    for auto, names in found.items():
        listed = tuple(name for name in (names if isinstance(names, list) else [names]) if name is not None)
        if not all(isinstance(name, str) and "." in name for name in listed):
            raise BoomspecError(f"{where}: '{AUTO_MAP}.{auto}' names no class: {names!r}")
        if listed:
            classes[str(auto)] = listed
    return classes


def code_files(folder: Path) -> dict[str, Path]:
    """The Python files below a model folder, by their names in it; nothing hidden, and not what Python compiled."""
    found = {path.relative_to(folder): path for path in sorted(folder.rglob(CODE_FILES)) if path.is_file()}
    hidden = {name for name in found if any(part == "__pycache__" or part.startswith(".") for part in name.parts)}
    return {name.as_posix(): path for name, path in found.items() if name not in hidden}


def code_digests(folder: Path) -> dict[str, str]:
    return {name: file_digest(path) for name, path in code_files(folder).items()}


def files_of_code(folder: Path) -> list[Path]:
    """The files beside a model's code that it names, such as a vocabulary in a format of its own; weights left out."""
    texts = [path.read_text(encoding="utf-8", errors="replace") for path in code_files(folder).values()]
    return [
        path
        for path in sorted(folder.iterdir())
        if path.is_file()
        and path.name not in CONFIGS.values()
        and path.suffix not in _NOT_NAMED
        and any(f"{quote}{path.name}{quote}" in text for text in texts for quote in "\"'")
    ]


def check_named(classes: Iterable[str], files: Iterable[str], where: object) -> None:
    """Raise BoomspecError unless every class is in one of the `files`."""
    known = set(files)
    for name in classes:
        module = name.rpartition(".")[0]
        if "--" in name:  # "owner/name--module.Class"
            hint = "no commit of that is pinned: put the file into the model's own folder and name it there"
            raise BoomspecError(f"{where}: '{AUTO_MAP}' names code of another repository: {name}", hint=hint)
        if f"{module.replace('.', '/')}.py" not in known:
            raise BoomspecError(f"{where}: '{AUTO_MAP}' names {name}, and there is no {module}.py beside it")


def check_native(folder: Path, part: Part, name: str) -> None:
    """Raise BoomspecError where a model, or its tokenizer, cannot be loaded without code of its own."""
    named = [cls for auto, names in named_classes(folder, part).items() if auto in USED for cls in names]
    config = read_object(folder / CONFIGS[part])
    if named and is_native(config, part) is False:
        what = config.get("model_type") if part == "model" else config.get("tokenizer_class")
        raise BoomspecError(
            f"'{name}' needs code of its own: '{AUTO_MAP}' of its {CONFIGS[part]} names {', '.join(named)}, and "
            f"transformers has no {part} '{what}'",
            hint="nothing of that is run; read it, and if you trust it: `trust_remote_code: true` beside the model",
        )
    whole = part == "model" and not any(isinstance(config.get(key), dict) for key in DECODER_CONFIGS)
    if whole and config and not named and is_native(config, part) is False:
        unknown = f"no causal language model of the type that {CONFIGS[part]} says: '{config.get('model_type')}'"
        raise BoomspecError(
            f"'{name}': transformers has {unknown}", hint="a newer version of transformers may have one"
        )


def is_native(config: Mapping[str, Any], part: Part) -> bool | None:
    """Whether transformers has a class of its own for it; None where transformers is not installed here."""
    if (known := _native_names(part)) is None:
        return None
    if part == "model":
        return config.get("model_type") in known
    asked = str(config.get("tokenizer_class") or "")
    return not asked or asked in _GENERAL or asked.removesuffix("Fast") in {name.removesuffix("Fast") for name in known}


@cache
def _native_names(part: Part) -> frozenset[str] | None:
    """The texts in transformers' own lists, read from their source: importing it takes seconds."""
    found = importlib.util.find_spec("transformers")
    if found is None or not found.submodule_search_locations:
        return None
    module, names = _LISTS[part]
    source = Path(found.submodule_search_locations[0], "models", "auto", f"{module}.py")
    text = source.read_text(encoding="utf-8") if source.is_file() else ""
    lists = [match[0] for name in names if (match := re.search(rf"(?ms)^{name}\b.*?^\)", text))]
    return frozenset(re.findall(r"\"([\w.-]+)\"", "".join(lists))) if len(lists) == len(names) else None
