"""What the compiler asks of the Hugging Face hub: a pinned commit, config.json and safetensors headers.

A few kilobytes each, no weights. Without a network the local cache answers, where it can.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from boomspec.checkpoint import TensorEntry
from boomspec.errors import BoomspecError
from boomspec.facts import ModelFacts, model_facts, read_config, read_facts

# A few kilobytes need no progress bar; what the person has set wins. Read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")

_OFFLINE_HINT = "check the name and the network; a private or gated repository needs HF_TOKEN"


def cached_model(model: str, revision: str | None) -> Path | None:
    """Folder of a model in the local hub cache, or None; its name is the commit.

    Looks by the cache's documented layout: importing huggingface_hub would double the time of `validate`.
    """
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    repository = cache / ("models--" + model.replace("/", "--"))
    reference = repository / "refs" / (revision or "main")
    commit = reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision
    folder = repository / "snapshots" / commit if commit else repository
    return folder if (folder / "config.json").is_file() else None


def pinned_model(model: str, revision: str | None) -> tuple[str, ModelFacts]:
    """The commit that a revision names now, and the facts of that commit. Raises BoomspecError if unreachable."""
    # huggingface_hub is slow to import, and a spec with a local teacher never needs it.
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import NotASafetensorsRepoError

    try:
        folder = Path(hf_hub_download(model, "config.json", revision=revision)).parent
    except Exception as error:  # a failed connection raises what the HTTP library of the day has for it
        message = f"model '{model}': cannot be read from the hub: {_reason(error)}"
        raise BoomspecError(message, hint=_OFFLINE_HINT) from error
    commit = folder.name  # the cache has one folder a commit
    try:
        metadata = HfApi().get_safetensors_metadata(model, revision=commit)
    except NotASafetensorsRepoError as error:
        message = f"model '{model}' has no safetensors files"
        raise BoomspecError(message, hint="convert it with model.save_pretrained(folder)") from error
    except Exception as error:  # as above; the weights may be here all the same
        if not any(folder.glob("*.safetensors")):
            message = f"model '{model}': its headers cannot be read from the hub: {_reason(error)}"
            raise BoomspecError(message, hint=_OFFLINE_HINT) from error
        return commit, read_facts(folder)
    tensors = {
        name: TensorEntry(name, str(info.dtype), tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }
    return commit, model_facts(read_config(folder), tensors, model)


def hub_folder(model: str, revision: str | None, name: str) -> Path:
    """The cached folder of a hub model, with the file `name` fetched into it. Raises BoomspecError without it."""
    from huggingface_hub import hf_hub_download  # as above

    try:
        return Path(hf_hub_download(model, name, revision=revision)).parent
    except Exception as error:  # as above
        raise BoomspecError(f"model '{model}': no {name} to be had: {_reason(error)}", hint=_OFFLINE_HINT) from error


def _reason(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def pinned_dataset(dataset: str, revision: str | None) -> str:
    """The commit that a data set's revision names now."""
    from huggingface_hub import HfApi

    try:
        commit: Any = HfApi().dataset_info(dataset, revision=revision).sha
    except Exception as error:  # as above
        message = f"data set '{dataset}': cannot be found on the hub: {_reason(error)}"
        raise BoomspecError(message, hint=_OFFLINE_HINT) from error
    return str(commit)
