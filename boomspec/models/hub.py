"""What the compiler asks of the Hugging Face hub: a pinned commit, config.json and safetensors headers.

A few kilobytes each, no weights. Without a network the local cache answers, where it can.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.models.checkpoint import TensorEntry, read_checkpoint, same_bytes
from boomspec.models.code import CODE_FILES, CONFIGS
from boomspec.models.contents import check_config, names_in, refusal
from boomspec.models.facts import ModelFacts, Same, model_facts, read_config
from boomspec.models.files import is_hub_file
from boomspec.models.hub_bytes import HubEntry, same_on_hub
from boomspec.models.quantized import check_quantization, foreseen

# A few kilobytes need no progress bar; what the person has set wins. Read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

_COMMIT, _BLOB = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_REFUSALS = (401, 403, 404)  # the hub has answered, and there is nothing for us
_OFFLINE_HINT = "check the name and the network; a private or gated repository needs HF_TOKEN"


class UnreachableError(BoomspecError):
    """The hub gave no answer."""


def cached_model(model: str, revision: str | None) -> Path | None:
    """Folder of a model in the local hub cache, or None; its name is the commit.

    Looks by the cache's documented layout: importing huggingface_hub would double the time of `validate`.
    """
    repository = _repository("models", model)
    commit = _referenced(repository, revision)
    folder = repository / "snapshots" / commit if commit else repository
    return folder if (folder / "config.json").is_file() else None


def cached_dataset(dataset: str, revision: str | None) -> str | None:
    """The commit that the local hub cache knows a data set's revision as; a commit stands for itself."""
    found = _referenced(_repository("datasets", dataset), revision)
    return found if found is not None and _COMMIT.fullmatch(found) else None


def cached_checksums(model: str, commit: str) -> dict[str, str]:
    """Checksums of a model's files that are in the local hub cache, as the hub states them (see `stated_checksums`)."""
    folder = _repository("models", model) / "snapshots" / commit
    files = [path for path in folder.rglob("*") if is_hub_file(path.name) and path.is_file()]
    # The cache names what it keeps by the checksum that the hub gave.
    named = {path.relative_to(folder).as_posix(): path.resolve().name for path in files}
    return {name: _checksum(blob) for name, blob in sorted(named.items()) if _BLOB.fullmatch(blob)}


def _repository(kind: str, name: str) -> Path:
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return cache / (f"{kind}--" + name.replace("/", "--"))


def _referenced(repository: Path, revision: str | None) -> str | None:
    reference = repository / "refs" / (revision or "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision


def _checksum(blob: str) -> str:
    return f"sha256:{blob}" if len(blob) == 64 else f"git:{blob}"


def pinned_model(model: str, revision: str | None) -> tuple[str, ModelFacts]:
    """The commit that a revision names now, and the facts of that commit. Raises BoomspecError if unreachable."""
    # huggingface_hub is slow to import, and a spec with a local teacher never needs it.
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError

    try:
        folder = Path(hf_hub_download(model, "config.json", revision=revision)).parent
    except EntryNotFoundError as error:
        names = _listed(model, revision)
        other = refusal(names, f"model '{model}'", local=False) if names else None
        raise other or _failure(f"model '{model}': cannot be read from the hub", error) from error
    except Exception as error:  # a failed connection raises what the HTTP library of the day has for it
        raise _failure(f"model '{model}': cannot be read from the hub", error) from error
    commit = folder.name  # the cache has one folder a commit
    names = _listed(model, commit)
    if not names and any(folder.glob("*.safetensors")):  # it has been fetched
        names = list(names_in(folder))
    if names and (other := refusal(names, f"model '{model}'", local=False)) is not None:
        raise other
    config = read_config(folder)
    check_config(config, f"model '{model}'")
    check_quantization(config, f"model '{model}'")
    try:
        metadata = HfApi().get_safetensors_metadata(model, revision=commit)
    except NotASafetensorsRepoError as error:
        message = f"model '{model}' has no safetensors files"
        raise BoomspecError(message, hint="convert it with model.save_pretrained(folder)") from error
    except Exception as error:  # as above; the weights may be here all the same
        if not any(folder.glob("*.safetensors")):
            message = f"model '{model}': its headers cannot be read from the hub: {_reason(error)}"
            raise BoomspecError(message, hint=_OFFLINE_HINT) from error
        return commit, _facts(folder, read_checkpoint(folder), model)
    tensors = {
        name: HubEntry(name, str(info.dtype), tuple(info.shape), None, *info.data_offsets, hub_file=file_name)
        for file_name, file in metadata.files_metadata.items()
        for name, info in file.tensors.items()
    }
    equal = same_on_hub(model, commit)
    asked: list[bool | None] = []

    def same(one: TensorEntry, other: TensorEntry) -> bool | None:
        asked.append(equal(one, other))
        return asked[-1]

    facts = _facts(folder, tensors, model, same)
    if not (facts.tied and asked):
        return commit, facts
    try:  # where the weights are here, too, they are read whole
        return commit, _facts(folder, read_checkpoint(folder), model)
    except BoomspecError:
        return commit, replace(facts, believed=True)


def _facts(folder: Path, tensors: Mapping[str, TensorEntry], model: str, same: Same = same_bytes) -> ModelFacts:
    """The facts of a model as it is when it is dequantised."""
    return model_facts(*foreseen(read_config(folder), tensors, model), model, same=same)


def _listed(model: str, revision: str | None) -> list[str]:
    """The names of a repository's files; none where the hub does not say."""
    from huggingface_hub import HfApi

    try:
        found = HfApi().model_info(model, revision=revision)
    except Exception:  # as above; what is missing then shows when it is read
        return []
    return [file.rfilename for file in found.siblings or []]


def hub_folder(model: str, revision: str | None, *, file: str) -> Path:
    """The cached folder of a hub model, with a file of it fetched. Raises BoomspecError without it."""
    from huggingface_hub import hf_hub_download  # as above

    try:
        return Path(hf_hub_download(model, file, revision=revision)).parent
    except Exception as error:  # as above
        raise _failure(f"model '{model}': no {file} to be had", error) from error


def hub_code(model: str, commit: str) -> Path:
    """The cached folder of a hub model's commit, with its code and its configs fetched; no weights."""
    from huggingface_hub import snapshot_download  # as above

    try:
        return Path(snapshot_download(model, revision=commit, allow_patterns=[*CODE_FILES, *CONFIGS.values()]))
    except Exception as error:  # as above
        raise _failure(f"model '{model}': its code cannot be had", error) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def pinned_dataset(dataset: str, revision: str | None) -> str:
    """The commit that a data set's revision names now; where the hub cannot be reached, the local cache's."""
    from huggingface_hub import HfApi

    try:
        commit: Any = HfApi().dataset_info(dataset, revision=revision).sha
    except Exception as error:  # as above
        failure = _failure(f"data set '{dataset}': its commit cannot be found", error)
        cached = cached_dataset(dataset, revision) if isinstance(failure, UnreachableError) else None
        if cached is None:
            raise failure from error
        return cached
    return str(commit)


def stated_checksums(model: str, commit: str) -> dict[str, str]:
    """What the hub says of a model's files: "sha256:..." of large files, "git:..." (a blob's id) of the others."""
    from huggingface_hub import HfApi

    try:
        files = HfApi().model_info(model, revision=commit, files_metadata=True).siblings or []
    except Exception as error:  # as above
        raise _failure(f"model '{model}': the hub's checksums cannot be read", error) from error
    stated = {file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in files}
    return {name: _checksum(blob) for name, blob in sorted(stated.items()) if blob and is_hub_file(name)}


def _failure(message: str, error: Exception) -> BoomspecError:
    status = getattr(getattr(error, "response", None), "status_code", None)
    kind = BoomspecError if status in _REFUSALS else UnreachableError
    return kind(f"{message}: {_reason(error)}", hint=_OFFLINE_HINT)
