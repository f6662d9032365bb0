"""Ask the Hugging Face hub for what a plan needs: a pinned commit, config.json and safetensors headers.

A few kilobytes each, no weights. Without a network the local cache answers, where it can, and at once: the hub's client
asks again for half a minute before it gives up, so whether there is a network is looked at first.
"""

import importlib
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from boomspec.core.errors import BoomspecError
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.code import CODE_FILES, CONFIGS
from boomspec.models.facts import ModelFacts, Same, read_config
from boomspec.models.folder import (
    CHAT_TEMPLATES,
    CONFIG,
    check_config,
    is_hub_file,
    is_tokenizer_file,
    names_in,
    refusal,
)
from boomspec.models.quantized import check_quantization, whole_facts

# A few kilobytes need no progress bar; what the person has set wins. Read when huggingface_hub is imported.
os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
_COMMIT, _BLOB = re.compile("[0-9a-f]{40}"), re.compile("[0-9a-f]{40}|[0-9a-f]{64}")
_REFUSALS = (401, 403, 404)  # the hub has answered, and there is nothing for us
_OFFLINE_HINT = "check the name and the network; a private or gated repository needs HF_TOKEN"
_BYTES = 1 << 14  # of each place
_CONNECT_SECONDS = 5.0
_PLACES = (0.0, 1.0, 0.5, 0.25, 0.75)  # from the first rows to the last ones, which are of added tokens


@dataclass(frozen=True)
class HubEntry(TensorEntry):
    """A tensor of which the header is known, and where its bytes are: [start, end) of `hub_file` after its header."""

    hub_file: str = ""


class UnreachableError(BoomspecError):
    """The hub gave no answer."""


def _hub() -> Any:
    return importlib.import_module("huggingface_hub")  # it is slow, and a spec with a local teacher needs none of it


@cache
def _connects(endpoint: str) -> bool:
    import socket  # these two take a tenth of the time that a spec is validated in
    from urllib.request import getproxies, proxy_bypass

    address = urlsplit(endpoint)
    if {address.scheme, "all"} & getproxies().keys() and not proxy_bypass(address.hostname or ""):
        return True  # it is for the proxy to find the machine
    port = address.port or {"http": 80}.get(address.scheme, 443)
    try:
        socket.create_connection((address.hostname, port), timeout=_CONNECT_SECONDS).close()
    except OSError:
        return False
    return True


def _reachable() -> bool:
    constants = importlib.import_module("huggingface_hub.constants")
    return constants.HF_HUB_OFFLINE or _connects(constants.ENDPOINT)  # offline, the client fails by itself, and at once


def _api() -> Any:
    """The client for what is not cached. Raises UnreachableError where the hub cannot be asked."""
    if not _reachable():
        endpoint = importlib.import_module("huggingface_hub.constants").ENDPOINT
        raise UnreachableError(f"{urlsplit(endpoint).hostname} cannot be reached", hint=_OFFLINE_HINT)
    return _hub().HfApi()


def _download(model: str, file: str, revision: str | None) -> Path:
    """A file in the local cache, fetched where the hub can be reached."""
    local = {} if _reachable() else {"local_files_only": True}
    return Path(_hub().hf_hub_download(model, file, revision=revision, **local))


def cached_model(model: str, revision: str | None) -> Path | None:
    """Folder of a model in the local hub cache, by its documented layout; its name is the commit. None without one."""
    repository = _repository("models", model)
    commit = _referenced(repository, revision)
    folder = repository / "snapshots" / commit if commit else repository
    return folder if (folder / CONFIG).is_file() else None


def cached_dataset(dataset: str, revision: str | None) -> str | None:
    """The commit that the local hub cache knows a data set's revision as; a commit stands for itself."""
    found = _referenced(_repository("datasets", dataset), revision)
    return found if found is not None and _COMMIT.fullmatch(found) else None


def cached_checksums(model: str, commit: str) -> dict[str, str]:
    """Checksums of a model's files that are in the local hub cache, as the hub states them (see `_checksums`)."""
    folder = _repository("models", model) / "snapshots" / commit
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    # The cache names what it keeps by the checksum that the hub gave.
    blobs = {name: path.resolve().name for name, path in files.items()}
    return _checksums({name: blob for name, blob in blobs.items() if _BLOB.fullmatch(blob)})


def _repository(kind: str, name: str) -> Path:
    home = Path(os.environ.get("HF_HOME", Path(os.environ.get("XDG_CACHE_HOME", "~/.cache"), "huggingface")))
    cache = Path(os.environ.get("HF_HUB_CACHE", home / "hub")).expanduser()
    return cache / (f"{kind}--" + name.replace("/", "--"))


def _referenced(repository: Path, revision: str | None) -> str | None:
    reference = repository / "refs" / (revision or "main")
    return reference.read_text(encoding="utf-8").strip() if reference.is_file() else revision


def _checksums(blobs: Mapping[str, str | None]) -> dict[str, str]:
    """By file name, as the hub states them: "sha256:..." of large files, "git:..." (a blob's id) of the others."""
    known = {name: blob for name, blob in sorted(blobs.items()) if blob and is_hub_file(name)}
    return {name: f"{'sha256' if len(blob) == 64 else 'git'}:{blob}" for name, blob in known.items()}


def pinned_model(model: str, revision: str | None) -> tuple[str, ModelFacts]:
    """The commit that a revision names now, and the facts of that commit. Raises BoomspecError if unreachable."""
    from huggingface_hub.errors import EntryNotFoundError, NotASafetensorsRepoError  # slow to import

    where = f"model '{model}'"

    def check_names(names: Collection[str]) -> None:
        if names and (other := refusal(names, where, local=False)) is not None:
            raise other

    with _asking(f"{where}: cannot be read from the hub"):
        try:
            folder = _download(model, CONFIG, revision).parent
        except EntryNotFoundError:
            check_names(_listed(model, revision))
            raise
    commit = folder.name  # the cache has one folder a commit
    is_here = any(folder.glob("*.safetensors"))
    check_names(_listed(model, commit) or (list(names_in(folder)) if is_here else []))
    config = read_config(folder)
    check_config(config, where)
    check_quantization(config, where)
    try:
        metadata = _api().get_safetensors_metadata(model, revision=commit)
    except NotASafetensorsRepoError as error:
        hint = "convert it with model.save_pretrained(folder)"
        raise BoomspecError(f"{where} has no safetensors files", hint=hint) from error
    except Exception as error:  # a failed connection raises what the HTTP library of the day has for it
        if not is_here:
            message = f"{where}: its headers cannot be read from the hub: {_reason(error)}"
            raise BoomspecError(message, hint=_OFFLINE_HINT) from error
        return commit, whole_facts(folder, model)
    tensors = {
        name: HubEntry(name, str(info.dtype), tuple(info.shape), None, start, end, file_name)
        for file_name, file in metadata.files_metadata.items()
        for name, info in file.tensors.items()
        for start, end in [info.data_offsets]
    }
    equal, asked = same_on_hub(model, commit), False

    def same(one: TensorEntry, other: TensorEntry) -> bool | None:
        nonlocal asked
        asked = True
        return equal(one, other)

    facts = whole_facts(folder, model, tensors, same=same)
    if not (facts.tied and asked):
        return commit, facts
    try:  # where the weights are here, too, they are read whole
        return commit, whole_facts(folder, model)
    except BoomspecError:
        return commit, replace(facts, believed=True)


def has_tokenizer(model: str, commit: str) -> bool:
    """Whether a repository holds a tokenizer, as its listing or else its folder in the cache says."""
    names = _listed(model, commit)
    if not names and (folder := cached_model(model, commit)) is not None:
        names = list(names_in(folder))
    return any(is_tokenizer_file(name) for name in names)


def hub_header(model: str, commit: str, file: str) -> list[TensorEntry]:
    """The tensors of one file of a repository, from its header alone."""
    with _asking(f"'{model}': the header of {file} cannot be read from the hub"):
        header = _hub().HfApi().parse_safetensors_file_metadata(model, file, revision=commit)
    return [
        HubEntry(name, str(info.dtype), tuple(info.shape), None, start, end, file)
        for name, info in header.tensors.items()
        for start, end in [info.data_offsets]
    ]


def _listed(model: str, revision: str | None) -> list[str]:
    """The names of a repository's files; none where the hub does not say."""
    try:
        found = _api().model_info(model, revision=revision)
    except Exception:  # as above; what is missing then shows when it is read
        return []
    return [file.rfilename for file in found.siblings or []]


def hub_folder(model: str, revision: str | None, *, file: str) -> Path:
    """The cached folder of a hub model, with a file of it fetched. Raises BoomspecError without it."""
    with _asking(f"model '{model}': cannot fetch {file}"):
        return _download(model, file, revision).parent


def hub_code(model: str, commit: str) -> Path:
    """The cached folder of a hub model's commit, with its code and its configs fetched; no weights."""
    with _asking(f"model '{model}': cannot fetch its code"):
        local = {} if _reachable() else {"local_files_only": True}
        patterns = [CODE_FILES, *CONFIGS.values()]
        return Path(_hub().snapshot_download(model, revision=commit, allow_patterns=patterns, **local))


def hub_templates(model: str, commit: str) -> Path:
    """The cached folder of a hub model's commit, with the config and the chat templates of its tokenizer fetched."""
    with _asking(f"model '{model}': cannot fetch its chat template"):
        patterns = [CONFIGS["tokenizer"], "chat_template*", f"{CHAT_TEMPLATES}/*"]
        return Path(_hub().snapshot_download(model, revision=commit, allow_patterns=patterns))


def _reason(error: Exception) -> str:
    constants = importlib.import_module("huggingface_hub.constants")
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set, and the local cache does not have it"
    if not _reachable():
        return f"{urlsplit(constants.ENDPOINT).hostname} cannot be reached"
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def pinned_dataset(dataset: str, revision: str | None) -> str:
    """The commit that a data set's revision names now; where the hub cannot be reached, the local cache's."""
    try:
        with _asking(f"data set '{dataset}': its commit cannot be found"):
            return str(_api().dataset_info(dataset, revision=revision).sha)
    except UnreachableError:
        if (cached := cached_dataset(dataset, revision)) is None:
            raise
        return cached


def stated_checksums(model: str, commit: str) -> dict[str, str]:
    """What the hub says of a model's files (see `_checksums`)."""
    with _asking(f"model '{model}': the hub's checksums cannot be read"):
        files = _api().model_info(model, revision=commit, files_metadata=True).siblings or []
    return _checksums({file.rfilename: file.lfs.sha256 if file.lfs else file.blob_id for file in files})


@contextmanager
def _asking(failure: str) -> Iterator[None]:
    """Turn what a request raises into an UnreachableError, or a BoomspecError where the hub has answered."""
    try:
        yield
    except UnreachableError as error:
        raise UnreachableError(f"{failure}: {error.message}", hint=error.hint) from error
    except BoomspecError:
        raise
    except Exception as error:  # a failed connection raises what the HTTP library of the day has for it
        status = getattr(getattr(error, "response", None), "status_code", None)
        kind = BoomspecError if status in _REFUSALS else UnreachableError
        raise kind(f"{failure}: {_reason(error)}", hint=_OFFLINE_HINT) from error


def same_on_hub(model: str, commit: str) -> Same:
    """Compares two tensors of a commit: False where they differ, True where no place shows it, None without answer.

    Matrices that were trained apart differ nearly everywhere, so one place mostly tells. Those that are equal wherever
    they are looked at count as one; `runners.modeling.models.model_folder` looks again at the fetched files.
    """

    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # documented, not in __all__

    def read(file: str, start: int, length: int) -> bytes:
        url, asked = _hub().hf_hub_url(model, file, revision=commit), {"range": f"bytes={start}-{start + length - 1}"}
        answer = _hub().get_session().get(url, headers={**build_hf_headers(), **asked}, timeout=10)
        answer.raise_for_status()
        found: bytes = answer.content
        if len(found) != length:
            raise ValueError(f"{len(found)} bytes of {length}")
        return found

    @cache
    def header(file: str) -> int:
        return 8 + int.from_bytes(read(file, 0, 8), "little")

    def part(entry: HubEntry, at: int, length: int) -> bytes:
        return read(entry.hub_file, header(entry.hub_file) + entry.start + at, length)

    def same(one: TensorEntry, other: TensorEntry) -> bool | None:
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        if not isinstance(one, HubEntry) or not isinstance(other, HubEntry):
            return None
        length = min(_BYTES, one.bytes)
        try:
            places = [round((one.bytes - length) * place) for place in _PLACES]
            return all(part(one, at, length) == part(other, at, length) for at in dict.fromkeys(places))
        except Exception:  # as above
            return None

    return same
