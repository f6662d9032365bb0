"""What a spec reads and does not make: its paths checked, its contents digested, its revisions pinned.

The identity of a file is its content, the identity of something on the hub is its commit. Where a thing
lies is only its location.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import re
from pathlib import Path

from boomspec.architecture import llama_facts
from boomspec.checkpoint import checkpoint_files
from boomspec.corpus import python_stdlib
from boomspec.errors import BoomspecError, Problem, did_you_mean
from boomspec.facts import ModelFacts, read_facts
from boomspec.graph import Source
from boomspec.hub import cached_model, pinned_dataset, pinned_model
from boomspec.identity import digest, file_digest
from boomspec.language import PretrainSpec
from boomspec.spec import SpecFile
from boomspec.tasks import Architecture

_FORMATS = {".jsonl": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet"}  # every other ending is text
_TOKENIZER_FILES = re.compile(
    r"(tokenizer.*|special_tokens_map\.json|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.model|chat_template.*)"
)
_HUB_ID = re.compile(r"[\w.-]{1,96}(/[\w.-]{1,96})?")


def check_paths(file: SpecFile) -> list[Problem]:
    """Problems of what a spec names, without reading what it holds."""
    problems = []
    spec = file.spec
    if spec.evaluate is not None and spec.evaluate.held_out is not None and spec.data.held_out is None:
        hint = "set documents apart: data: {held_out: {every: 20}}"
        problems.append(file.problem(("evaluate", "held_out"), "there is no held-out text to measure", hint))
    if spec.teacher.model is not None and model_folder(file) is None and not _HUB_ID.fullmatch(spec.teacher.model):
        problems.append(
            file.problem(("teacher", "model"), f"'{spec.teacher.model}' is neither a folder nor a hub id (owner/name)")
        )
    if spec.data.files is not None:
        for i, pattern in enumerate(spec.data.files):
            if not _matches(file, pattern):
                message, hint = f"no file matches '{pattern}'", f"paths are relative to {file.folder}"
                problems.append(file.problem(("data", "files", i), message, hint))
        formats = sorted({_format(path) for path in data_files(file)})
        if spec.data.format is None and len(formats) > 1:
            problems.append(
                file.problem(("data", "files"), f"files of several formats ({', '.join(formats)})", "give files of one")
            )
    if spec.evaluate is not None and spec.evaluate.tasks_folder is not None:
        folder = _resolve(file, spec.evaluate.tasks_folder)
        if not _is_folder(folder):
            problems.append(file.problem(("evaluate", "tasks_folder"), f"'{folder}' is not a folder"))
    return problems


def model_folder(file: SpecFile) -> Path | None:
    """The teacher's folder where it is local; None where it is on the hub or trained by the spec."""
    name = file.spec.teacher.model
    if name is None:
        return None
    folder = _resolve(file, name)
    local = _is_folder(folder) or name.startswith((".", "/", "~"))
    if local and not _is_folder(folder):
        raise file.error(file.problem(("teacher", "model"), f"folder '{folder}' does not exist"))
    return folder if local else None


def local_facts(file: SpecFile) -> ModelFacts | None:
    """The teacher's facts where no network is needed to know them, else None."""
    teacher = file.spec.teacher
    if teacher.pretrain is not None:
        return llama_facts(architecture(teacher.pretrain, file.spec.data.sequence_length))
    folder = model_folder(file)
    if folder is None and teacher.model is not None:
        cached = cached_model(teacher.model, teacher.revision)
        folder = cached if cached and any(cached.glob("*.safetensors")) else None
    return None if folder is None else read_facts(folder)


def architecture(pretrain: PretrainSpec, context: int) -> Architecture:
    return Architecture(
        layers=pretrain.layers,
        hidden_size=pretrain.hidden_size,
        intermediate_size=pretrain.intermediate_size,
        attention_heads=pretrain.attention_heads,
        key_value_heads=pretrain.key_value_heads or pretrain.attention_heads,
        vocabulary=pretrain.tokenizer.vocabulary,
        context=context,
        tied=pretrain.tied_embeddings,
        initializer_range=pretrain.initializer_range,
    )


def teacher_sources(file: SpecFile) -> tuple[ModelFacts, Source, Source]:
    """Facts, model and tokenizer of a teacher that exists. Reads a local model's bytes once, for their digests."""
    name = file.spec.teacher.model
    assert name is not None
    folder = model_folder(file)
    if folder is None:
        commit, facts = pinned_model(name, file.spec.teacher.revision)
        identity = {"hub": name, "revision": commit}
        return facts, Source("model", identity, {"hub": name}), Source("tokenizer", identity, {"hub": name})
    facts = read_facts(folder)
    tokenizer = sorted(path for path in folder.iterdir() if _TOKENIZER_FILES.fullmatch(path.name) and path.is_file())
    if not tokenizer:
        hint = "save one there: tokenizer.save_pretrained(folder)"
        raise file.error(file.problem(("teacher", "model"), f"{folder} holds no tokenizer", hint))
    weights = [folder / "config.json", *checkpoint_files(folder)]
    return (
        facts,
        Source("model", {"sha256": {p.name: file_digest(p) for p in weights}}, {"folder": str(folder)}),
        Source("tokenizer", {"sha256": {p.name: file_digest(p) for p in tokenizer}}, {"folder": str(folder)}),
    )


def data_files(file: SpecFile) -> list[Path]:
    """The local files that hold the text, in their order, each once."""
    if file.spec.data.corpus == "python_stdlib":
        return python_stdlib()
    matches = [path for pattern in file.spec.data.files or () for path in _matches(file, pattern)]
    return list(dict.fromkeys(matches))


def text_source(file: SpecFile) -> Source:
    """The text: digests of its files, or a pinned data set."""
    data = file.spec.data
    if data.dataset is not None:
        commit = pinned_dataset(data.dataset, data.revision)
        identity = {"hub": data.dataset, "revision": commit, "config": data.config, "split": data.split or "train"}
        return Source("hub_dataset", identity, {})
    files = data_files(file)
    return Source(
        "text",
        {
            "format": data.format or _format(files[0]),
            "files": [{"sha256": file_digest(path), "bytes": path.stat().st_size} for path in files],
        },
        {"files": [str(path) for path in files]},
    )


def task_source(file: SpecFile, task: str, index: int) -> Source:
    """Where an lm-eval task comes from: the spec's own folder, or the installed lm-eval.

    Raises SpecError now, before anything is trained, when no such task exists.
    """
    assert file.spec.evaluate is not None
    own: dict[str, Path] = {}
    if file.spec.evaluate.tasks_folder is not None:
        folder = _resolve(file, file.spec.evaluate.tasks_folder)
        own = _task_names(folder)
        if task in own:
            contents = {
                path.relative_to(folder).as_posix(): file_digest(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file() and "__pycache__" not in path.parts
            }
            return Source("lm_eval_tasks", {"folder": digest(contents)}, {"folder": str(folder)})
    location = importlib.util.find_spec("lm_eval")
    if location is None or not location.submodule_search_locations:
        raise BoomspecError("lm-eval is not installed, so its tasks are not known", hint="pip install 'boomspec[run]'")
    stock = _task_names(Path(location.submodule_search_locations[0]) / "tasks")
    if task not in stock:
        hint = did_you_mean(task, [*own, *stock]) or "list them with: lm-eval ls tasks"
        raise file.error(file.problem(("evaluate", "tasks", index), f"lm-eval knows no task '{task}'", hint))
    return Source("lm_eval_tasks", {"lm_eval": importlib.metadata.version("lm-eval")}, {})


_TASK_LINE = re.compile(r"^(?:task|group|tag)\s*:\s*[\"']?([\w.:/+-]+)", re.MULTILINE)


def _task_names(folder: Path) -> dict[str, Path]:
    """Names of the tasks and groups that YAML files under a folder define, without importing lm-eval."""
    names: dict[str, Path] = {}
    for path in folder.rglob("*.yaml"):
        for name in _TASK_LINE.findall(path.read_text(encoding="utf-8", errors="replace")):
            names.setdefault(name, path)
    return names


def _resolve(file: SpecFile, path: str) -> Path:
    try:
        return (file.folder / Path(path).expanduser()).resolve()
    except RuntimeError:  # "~nobody": no such user
        return file.folder / path


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except OSError:  # a name that is too long
        return False


def _matches(file: SpecFile, pattern: str) -> list[Path]:
    absolute = _resolve(file, pattern)
    try:
        found = Path(absolute.anchor).glob(str(absolute.relative_to(absolute.anchor)))
        return sorted(path.resolve() for path in found if path.is_file())
    except (OSError, ValueError, NotImplementedError):  # a name that is too long, "**" inside a name, no name at all
        return []


def _format(path: Path) -> str:
    return _FORMATS.get(path.suffix.lower(), "text")
