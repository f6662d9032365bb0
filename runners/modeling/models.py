"""Find, load and save model folders: of an input, and of a family's models. Only safetensors are read.

Of the code that a model brings along only what the spec trusts is run: `code`, the sha256 of each file.
"""

from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import CODE, TaskGraph
from boomspec.core.identity import file_digest
from boomspec.core.layers import TEACHER, Owner
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import Seam
from boomspec.core.tasks.seam import SEAM_FILE
from boomspec.models.checkpoint import checkpoint_files, read_header
from boomspec.models.code import CODE_FILES
from boomspec.models.facts import DECODERS, decoder_config, read_config, read_facts
from boomspec.models.families import WRAPPERS, unwrapped
from boomspec.models.folder import HUB_FILES, NOT_HUB_FILES, check_folder
from boomspec.models.quantized import check_plain, whole_facts
from boomspec.store import Store
from runners.modeling.foreign_code import prepare_custom_code
from runners.modeling.model_config import config_object
from runners.runtime.device import device
from runners.runtime.job import Input

MODEL = "model"  # the folder of the model inside an artifact
Code = Collection[str]  # sha256 of each file that may run
_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}


def model_folder(source: Input) -> Path:
    """The Hugging Face folder of an input: inside its artifact, on this machine, or fetched from the hub."""
    if source.source is None:
        return source.folder / MODEL
    location, code = source.source.location, source.source.identity.get(CODE, {})
    if "folder" in location:
        return _unchanged(Path(location["folder"]), {**source.source.identity["sha256"], **code})
    hub, revision = location["hub"], source.source.identity["revision"]
    try:
        patterns, ignored = [*HUB_FILES, *([CODE_FILES] if code else [])], list(NOT_HUB_FILES)
        fetched = snapshot_download(hub, revision=revision, allow_patterns=patterns, ignore_patterns=ignored)
    except Exception as error:  # a failed connection raises what the HTTP library of the day has for it
        message = f"model '{hub}' at {revision[:12]}: cannot be fetched from the hub: {error}"
        hint = "check the network, the disk, and (for gated models) that HF_TOKEN is set"
        raise BoomspecError(message, hint=hint) from error
    folder = _unchanged(Path(fetched), code)
    # Some places on the hub showed the head to be the embedding: now it is read whole.
    if location.get("tied") and not whole_facts(folder, hub).tied:
        differs = "its head differs from its embedding in a few rows, which was not seen on the hub"
        hint = f"it is fetched now, so a new plan reads it whole: run again; or give the folder {folder}"
        message = f"model '{hub}': its config says `tie_word_embeddings: true`, and {differs}"
        raise BoomspecError(message, hint=hint)
    return folder


def _unchanged(folder: Path, digests: dict[str, str]) -> Path:
    """The folder, unless a file of it is not what was compiled. Weights are not read for that: they may be large."""
    for name, sha256 in digests.items():
        if not (folder / name).is_file():
            raise BoomspecError(f"{folder / name}: the file is gone since the spec was compiled")
        if not name.endswith(".safetensors") and file_digest(folder / name) != sha256:
            raise BoomspecError(f"{folder / name}: the file has changed since the spec was compiled", hint="run again")
    return folder


def lineage_of(graph: TaskGraph) -> Lineage:
    """The family of a graph. Raises BoomspecError where the graph ends at a search."""
    if graph.family is None:
        raise BoomspecError(f"{graph.name}: its layers or their order are still to be searched for")
    return graph.family


def owner_folders(graph: TaskGraph, store: Store, owners: Iterable[Owner]) -> dict[Owner, Path]:
    """Model folders of teacher and student, fetched from the hub where they are there."""
    lineage, folders = lineage_of(graph), {}
    for owner in owners:
        task = lineage.teacher if owner == TEACHER else lineage.student
        if task in graph.sources:
            folders[owner] = model_folder(Input(task, source=graph.sources[task]))
            continue
        node = graph.nodes[task]
        if not store.has(node.task.kind, task):
            raise BoomspecError(f"{graph.name}: '{node.name}' is not in the store {store.address}")
        folders[owner] = store.fetch(node.task.kind, task) / MODEL
    return folders


def fitted_weights(graph: TaskGraph, store: Store, member: Member) -> Path | None:
    """The weights that a size has of its own; None where it has none. Raises BoomspecError where they are not there."""
    if not lineage_of(graph).is_fitted(member):
        return None
    task = graph.task_of(member)
    seam = None if task is None else graph.nodes[task].task.inputs["seam"]
    if seam is None or not store.is_whole(Seam.kind, seam):
        message = (
            f"{graph.name}: what was fitted at the seams of the size of {member.layers} layers is not in the store"
        )
        raise BoomspecError(message, hint="name the size in interpolate.sizes and run the spec")
    return store.fetch(Seam.kind, seam) / SEAM_FILE


def built_folder(graph: TaskGraph, store: Store, member: Member) -> Path | None:
    """The folder of a model that is in the store already, whole."""
    task = graph.task_of(member)
    if task is None or task not in graph.nodes:
        return None
    kind = graph.nodes[task].task.kind
    return store.fetch(kind, task) / MODEL if store.is_whole(kind, task) else None


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype that a model folder's weights are stored in. Raises BoomspecError for one that is not trained in."""
    name = read_facts(folder).dtype
    if name not in _DTYPES:
        raise BoomspecError(f"{folder}: its weights are stored as {name} (supported: {', '.join(_DTYPES)})")
    return _DTYPES[name]


def load(folder: Path, *, dtype: torch.dtype, place: torch.device | None = None, code: Code = ()) -> PreTrainedModel:
    """The model of a folder, in evaluation mode, on `place` or this process's device; all weights must be there."""
    check_folder(folder)  # transformers would load an adapter, too
    check_plain(read_config(folder), str(folder))
    options = loading_options(folder, dtype, trusts=prepare_custom_code(folder, "model", code))
    model, found = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True, **options)
    if found["missing_keys"]:  # transformers would draw them at random
        name = min(found["missing_keys"])
        raise BoomspecError(
            f"{folder}: {len(found['missing_keys'])} weights of a {type(model).__name__} are not in it, such as {name}"
        )
    loaded: PreTrainedModel = model.to(place or device()).eval()
    return loaded


def loading_options(folder: Path, dtype: torch.dtype, *, trusts: bool) -> dict[str, Any]:
    """Options of `from_pretrained`, with the names that a wrapper, or other parts beside a text decoder, have changed.

    Raises BoomspecError where there are no safetensors: transformers would look for weights in other formats.
    """
    fixed = {"local_files_only": True, "output_loading_info": True}
    names = [tensor.name for file in checkpoint_files(folder) for tensor in read_header(file)]
    wrapped = any(unwrapped(name) != name for name in names)
    decoder = decoder_config(read_config(folder))
    renamed = {**(dict(WRAPPERS) if wrapped else {}), **(dict(DECODERS) if decoder else {})}
    config = {"config": config_object(CONFIG_MAPPING[decoder["model_type"]], decoder)} if decoder else {}
    return {"dtype": dtype, "trust_remote_code": trusts, "key_mapping": renamed or None, **fixed, **config}


def load_frozen(
    folder: Path, *, dtype: torch.dtype, place: torch.device | None = None, code: Code = ()
) -> PreTrainedModel:
    return load(folder, dtype=dtype, place=place, code=code).requires_grad_(False)


def save_weights(model: PreTrainedModel, folder: Path, *, dtype: torch.dtype) -> None:
    """Write weights and config into `folder`, in place of the weights that are there. Casts `model` to `dtype`."""
    for old in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        old.unlink()
    model.to(dtype).save_pretrained(folder)
