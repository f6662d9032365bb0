"""The models that a spec names: their folders or commits, their facts, their tokenizers, their code.

The identity of a file is its content, that of a model on the hub its commit. Where a thing lies is only its location.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from boomspec.compile.foreign_code import check_alike, trusted_code
from boomspec.compile.places import digest_of, is_file, is_folder, path_text, resolve_path, shown_path, similar_folder
from boomspec.core.errors import BoomspecError, Problem, SpecError
from boomspec.core.graph import CODE, Source
from boomspec.core.tasks import Architecture, Dequantize
from boomspec.models.architecture import llama_facts
from boomspec.models.checkpoint import checkpoint_files, read_checkpoint
from boomspec.models.code import files_of_code, read_config_of
from boomspec.models.contents import check_config, check_folder
from boomspec.models.facts import ModelFacts, model_facts, read_config
from boomspec.models.files import CONFIG, CONTEXT, tokenizer_context, tokenizer_files, travelling_files
from boomspec.models.hub import UnreachableError, cached_model, hub_code, hub_folder, pinned_model
from boomspec.models.published import STUDENT_CONFIG, read_student_mapping
from boomspec.models.quantized import check_quantization, foreseen, quantization_of, target_dtype
from boomspec.models.vocabulary import needed_rows
from boomspec.spec.sections.student import StudentSpec
from boomspec.spec.sections.teacher import PretrainSpec, TeacherSpec
from boomspec.spec.spec_file import SpecFile

Role = Literal["teacher", "student"]
BELIEVED = "tied"  # of the location of a model whose head was taken for its embedding without being read whole
T = TypeVar("T")


def model_folder(file: SpecFile, role: Role) -> Path | None:
    """The folder of a model that exists; None where it is on the hub, or made by the spec."""
    return file.known("folder", (role,), lambda: _model_folder(file, role))


def _model_folder(file: SpecFile, role: Role) -> Path | None:
    section = _section(file, role)
    if section.model is None:
        return None
    name = path_text(file, (role, "model"), section.model)
    folder = resolve_path(file, (role, "model"), name)
    if is_folder(folder):
        return folder
    if is_file(folder):
        message = f"'{folder}' is a file, not the folder of a model"
        raise file.error(file.problem((role, "model"), message, f"give the folder that it is in: {folder.parent}"))
    if name.startswith((".", "/", "~")):
        message = f"folder '{folder}' does not exist"
        raise file.error(file.problem((role, "model"), message, similar_folder(folder)))
    return None


def folder_problems(file: SpecFile, role: Role, folder: Path) -> list[Problem]:
    """What keeps a folder from being read as a model. Looks at names, its config, and beginnings of its files."""

    def looked_at() -> BoomspecError | None:
        try:
            check_folder(folder)
            config = read_config(folder)
            check_config(config, str(folder))
            check_quantization(config, str(folder))
        except BoomspecError as error:
            return error
        return None

    error = file.once(("contents", folder), looked_at)
    return [] if error is None else [file.problem((role, "model"), error.message, error.hint)]


@contextmanager
def at_model(file: SpecFile, role: Role) -> Iterator[None]:
    """What is wrong with a model is an error at the line that names it; that the hub gives no answer is not."""
    try:
        yield
    except (SpecError, UnreachableError):
        raise
    except BoomspecError as error:
        raise file.error(file.problem((role, "model"), error.message, error.hint)) from error


def local_facts(file: SpecFile) -> ModelFacts | None:
    """The teacher's facts where no network is needed to know them, else None."""
    return file.known("facts", ("teacher", "data"), lambda: _local_facts(file))


def _local_facts(file: SpecFile) -> ModelFacts | None:
    teacher = file.spec.teacher
    if teacher.pretrain is not None:
        return llama_facts(architecture(teacher.pretrain))
    folder = model_folder(file, "teacher")
    if folder is None and teacher.model is not None:
        cached = cached_model(*_named_model(file, "teacher"))
        folder = cached if cached and any(cached.glob("*.safetensors")) else None
    if folder is None:
        return None
    with at_model(file, "teacher"):
        return _facts(file, folder)


def _facts(file: SpecFile, folder: Path) -> ModelFacts:
    """The facts of a folder, as it is when it is dequantised."""

    def read() -> ModelFacts:
        config, tensors = foreseen(read_config(folder), read_checkpoint(folder), str(folder))
        return model_facts(config, tensors, str(folder))

    return file.once(("facts", folder), read)


def dequantization(file: SpecFile, role: Role) -> Dequantize | None:
    """The task that a model which exists has to go through before it is read; None where it is not quantised."""
    with at_model(file, role):
        config = read_config(_config_folder(file, role))
    return None if quantization_of(config) is None else Dequantize(dtype=target_dtype(config))


def architecture(pretrain: PretrainSpec) -> Architecture:
    """The model that a complete `pretrain` section describes."""
    assert pretrain.key_value_heads is not None
    assert pretrain.positions is not None
    return Architecture(
        layers=pretrain.layers,
        hidden_size=pretrain.hidden_size,
        intermediate_size=pretrain.intermediate_size,
        attention_heads=pretrain.attention_heads,
        key_value_heads=pretrain.key_value_heads,
        vocabulary=pretrain.tokenizer.vocabulary,
        context=pretrain.positions,
        tied=pretrain.tied_embeddings,
        initializer_range=pretrain.initializer_range,
    )


def model_sources(file: SpecFile, role: Role) -> tuple[ModelFacts, Source, Source]:
    """Facts, model and tokenizer of a model that exists. Reads a local model's bytes once, for their digests."""
    with at_model(file, role):
        return file.known("model", (role, "data", "teacher"), lambda: _model_sources(file, role))


def _model_sources(file: SpecFile, role: Role) -> tuple[ModelFacts, Source, Source]:
    name, _ = _named_model(file, role)
    folder, written = model_folder(file, role), str(_section(file, role).model)
    if folder is not None and (problems := folder_problems(file, role, folder)):
        raise file.error(*problems)
    if folder is None:
        commit, facts = _of_hub(file, role, pinned_model)
        identity = {"hub": name, "revision": commit}
        location = {"hub": name, "asked": _section(file, role).revision}
        model, words = ({**identity, **code} for code in _code(file, role))
        of_model = {**location, BELIEVED: True} if facts.believed else location
        return facts, Source("model", model, of_model), Source("tokenizer", words, location)
    facts = _facts(file, folder)
    tokenizer = tokenizer_files(folder)
    if not tokenizer and role == "teacher" and file.spec.data is not None:
        hint = "save one there: tokenizer.save_pretrained(folder)"
        raise file.error(file.problem((role, "model"), f"{folder} holds no tokenizer", hint))
    if role == "teacher":
        _check_vocabulary(file, facts, folder)
    files = [folder / CONFIG, *checkpoint_files(folder), *travelling_files(folder)]
    location = {"folder": str(folder), "name": shown_path(written)}
    of_model, of_tokenizer = _code(file, role)
    if of_model:  # code reads what it likes; what it names is part of what it is
        named = files_of_code(folder)
        files += [path for path in named if path not in files]
        tokenizer += [path for path in named if of_tokenizer and path not in tokenizer]

    def digests(paths: list[Path]) -> dict[str, str]:
        return {path.relative_to(folder).as_posix(): digest_of(file, path) for path in paths}

    # A folder's tokenizer is not of its files alone; on the hub the commit says all.
    context = tokenizer_context(read_config(folder), read_config_of(folder, "tokenizer"))
    return (
        facts,
        Source("model", {"sha256": digests(files), **of_model}, location),
        Source("tokenizer", {"sha256": digests(tokenizer), CONTEXT: context, **of_tokenizer}, location),
    )


def _check_vocabulary(file: SpecFile, facts: ModelFacts, folder: Path) -> None:
    needed = needed_rows(folder)
    rows = facts.token_embedding.shape[0]
    if needed is not None and needed > rows:
        message = f"{folder}: its tokenizer has ids up to {needed - 1}, its embedding {rows} rows"
        hint = "give the tokenizer of the model, or resize the model: resize_token_embeddings(len(tokenizer))"
        raise file.error(file.problem(("teacher", "model"), message, hint))


def _code(file: SpecFile, role: Role) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the code that a model brings along adds to the identities of model and tokenizer; mostly nothing."""
    folder = _config_folder(file, role)
    found = trusted_code(file, role, folder)
    if role == "student" and file.spec.teacher.model is not None:
        above = _config_folder(file, "teacher")
        check_alike(file, (above, folder), (trusted_code(file, "teacher", above)[0], found[0]))
    model, tokenizer = ({CODE: digests} if digests else {} for digests in found)
    return model, tokenizer


def _config_folder(file: SpecFile, role: Role) -> Path:
    """Where a model's config.json is; of a model on the hub, in its pinned commit, with its code if that is trusted."""
    if (folder := model_folder(file, role)) is not None:
        return folder
    commit, _ = _of_hub(file, role, pinned_model)
    name, trusts = str(_section(file, role).model), _section(file, role).trust_remote_code
    fetch = hub_code if trusts else partial(hub_folder, file="config.json")
    return file.once(("configs", name, commit, trusts), lambda: fetch(name, commit))


def student_mapping(file: SpecFile, layers: int) -> tuple[int, ...]:
    """The kept layers, of a teacher of `layers`, that a student which exists says it was made from."""
    with at_model(file, "student"):
        folder = model_folder(file, "student") or _of_hub(file, "student", partial(hub_folder, file=STUDENT_CONFIG))
        return read_student_mapping(folder, layers=layers)


def _named_model(file: SpecFile, role: Role) -> tuple[str, str | None]:
    """The name of a model that exists, and the revision that is meant: what a lock says, else what was asked for."""
    section = _section(file, role)
    assert section.model is not None
    name = path_text(file, (role, "model"), section.model)
    settled = None if file.pins.only_offline else file.pins.model(name, section.revision)
    return name, settled or section.revision


def _of_hub(file: SpecFile, role: Role, ask: Callable[[str, str | None], T]) -> T:
    """What `ask` says of a hub model's name and revision; where the hub gives no answer, of the commit in the lock."""
    try:
        return _asked(file, role, ask)
    except BoomspecError as error:
        # What was meant as a folder looks like a name of the hub where there is no such folder.
        meant, hint = similar_folder(resolve_path(file, (role, "model"), str(_section(file, role).model))), error.hint
        if meant is not None and meant not in (hint or ""):
            hint = f"{meant} Else {hint}" if hint else meant
        raise file.error(file.problem((role, "model"), error.message, hint)) from error


def _asked(file: SpecFile, role: Role, ask: Callable[[str, str | None], T]) -> T:
    name, revision = _named_model(file, role)
    try:
        return file.once(("hub", ask, name, revision), lambda: ask(name, revision))
    except UnreachableError:
        settled = file.pins.model(name, _section(file, role).revision)
        if settled is None or settled == revision:
            raise
        return file.once(("hub", ask, name, settled), lambda: ask(name, settled))


def _section(file: SpecFile, role: Role) -> TeacherSpec | StudentSpec:
    return file.spec.teacher if role == "teacher" else file.spec.student
