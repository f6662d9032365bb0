"""What the compiler asks of the Hugging Face hub: a pinned commit, config.json and safetensors headers.

A few kilobytes each, no weights. Without a network the local cache answers, where it can.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from boomspec.checkpoint import TensorEntry
from boomspec.errors import BoomspecError
from boomspec.facts import ModelFacts, model_facts, read_facts

_OFFLINE_HINT = "check the name and the network; a private or gated repository needs HF_TOKEN"


def cached_model(model: str, revision: str | None) -> tuple[str, Path] | None:
    """Commit and folder of a model whose config is in the local cache, or None."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, "config.json", revision=revision)
    if not isinstance(found, str):
        return None
    folder = Path(found).parent
    return folder.name, folder


def pinned_model(model: str, revision: str | None) -> tuple[str, ModelFacts]:
    """The commit that a revision names now, and the facts of that commit. Raises BoomspecError if unreachable."""
    # huggingface_hub is slow to import, and most specs with a local teacher never need it.
    from huggingface_hub import HfApi, hf_hub_download
    from huggingface_hub.errors import HfHubHTTPError, NotASafetensorsRepoError, OfflineModeIsEnabled

    api = HfApi()
    try:
        commit = api.model_info(model, revision=revision).sha
        if commit is None:
            raise BoomspecError(f"model '{model}': the hub names no commit")
        config = json.loads(Path(hf_hub_download(model, "config.json", revision=commit)).read_text(encoding="utf-8"))
        metadata = api.get_safetensors_metadata(model, revision=commit)
    except NotASafetensorsRepoError as error:
        raise BoomspecError(
            f"model '{model}' has no safetensors files", hint="convert it with model.save_pretrained(folder)"
        ) from error
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        return _from_cache(model, revision, error)
    tensors = {
        name: TensorEntry(name, str(info.dtype), tuple(info.shape))
        for file in metadata.files_metadata.values()
        for name, info in file.tensors.items()
    }
    return commit, model_facts(config, tensors, model)


def _from_cache(model: str, revision: str | None, error: Exception) -> tuple[str, ModelFacts]:
    cached = cached_model(model, revision)
    if cached is None:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise BoomspecError(f"model '{model}': cannot be read from the hub: {reason}", hint=_OFFLINE_HINT) from error
    commit, folder = cached
    return commit, read_facts(folder)


def pinned_dataset(dataset: str, revision: str | None) -> str:
    """The commit that a data set's revision names now."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    try:
        commit: Any = HfApi().dataset_info(dataset, revision=revision).sha
    except (HfHubHTTPError, OfflineModeIsEnabled, OSError, ValueError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        message = f"data set '{dataset}': cannot be found on the hub: {reason}"
        raise BoomspecError(message, hint=_OFFLINE_HINT) from error
    return str(commit)
