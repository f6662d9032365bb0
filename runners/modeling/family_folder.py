"""Read the folder of a whole family (`boomspec.models.family_file`): any size, from the tensors that it needs alone.

Files are mapped into memory: a tensor is read when it is used, and two sizes that are loaded from one folder in the
dtype that it stores share the memory of what they have in common.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from safetensors import safe_open
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, GenerationConfig, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner
from boomspec.core.sizes import Member, compact_plan
from boomspec.models import fit
from boomspec.models.checkpoint import read_header
from boomspec.models.facts import DECODERS, ModelFacts, decoder_config, model_facts, read_config
from boomspec.models.family_file import (
    FAMILY_FILE,
    KEY_MAPPING,
    OWNERS,
    SHARDS,
    FamilyFile,
    named_by,
    read_family_file,
)
from boomspec.models.folder import INDEX, read_object
from runners.modeling.family import Dtype, Family, floating_dtype
from runners.modeling.model_config import config_object, plan_config
from runners.runtime.device import device

_GENERATION = "generation_config.json"
_NOT_WEIGHTS = [f"{SHARDS}/*", "*.gguf"]


def open_family_folder(folder: Path, *, dtype: Dtype = None) -> Family:
    """The family in a folder that `boomspec export --family` has written. Nothing else is needed: no spec, no store.

    `dtype`: None means as stored. Raises BoomspecError where the folder holds no family.
    """
    file = read_family_file(folder)
    return Family(file.lineage, FolderWeights(folder, file, floating_dtype(dtype)))


def open_hub_family(name: str, *, revision: str | None = None, dtype: Dtype = None) -> Family:
    """The family in a repository of the hub: of its weights only the files that a size needs are fetched, when it is
    asked for. Raises BoomspecError where there is none."""
    folder, file = fetch_family(name, revision)
    return Family(file.lineage, FolderWeights(folder, file, floating_dtype(dtype), hub=name))


def fetch_family(name: str, revision: str | None = None) -> tuple[Path, FamilyFile]:
    """A repository of the hub without its weights, in a folder that is called as its commit, and its family.json."""
    folder = _fetched(name, revision, ignore_patterns=_NOT_WEIGHTS)
    if not (folder / FAMILY_FILE).is_file():
        message = f"'{name}' on the hub holds no {FAMILY_FILE}, so it is no family"
        hint = "a single model loads with transformers; a spec or a run is named by its path"
        raise BoomspecError(message, hint=hint)
    return folder, read_family_file(folder)


def _fetched(name: str, revision: str | None, **patterns: Any) -> Path:
    try:
        return Path(snapshot_download(name, revision=revision, **patterns))
    except Exception as error:  # a failed connection raises what the HTTP library of the day has for it
        message = f"family '{name}': cannot be fetched from the hub: {error}"
        hint = "there is no such path here, so it was looked for on the hub; a private one needs HF_TOKEN"
        raise BoomspecError(message, hint=hint) from error


@dataclass(frozen=True)
class FolderWeights:
    """The weights of a family in its folder, here or on the hub."""

    folder: Path
    file: FamilyFile
    dtype: torch.dtype | None = None
    hub: str | None = None
    _opened: dict[str, Any] = field(default_factory=dict)

    fitted = True

    @property
    def counts(self) -> Mapping[Owner, int]:
        return self.file.counts

    def owned(self, owner: Owner) -> PreTrainedModel:
        member: Member = self.file.lineage.members[-1] if owner == TEACHER else self.file.lineage.trained
        return self.model(member.plan, tied=member.tied)

    def model(self, plan: LayerPlan, *, tied: bool) -> PreTrainedModel:
        """The model of a plan. Of a plan that is no size of the family every file of the weights is looked into."""
        size = self.file.files_of(plan)
        if size is None:
            return self._other(plan, tied=tied)
        rules = read_object(self.folder / size.folder / KEY_MAPPING)
        self._fetch(size.shards)
        places = read_object(self.folder / size.folder / INDEX)["weight_map"].items()
        tensors = {named_by(rules, stored): self._tensor(Path(path).name, stored) for stored, path in places}
        return self._built(read_config(self.folder / size.folder), tensors)

    def _other(self, plan: LayerPlan, *, tied: bool) -> PreTrainedModel:
        if self.file.lineage.rest:
            message = f"{compact_plan(plan)} is no size of this family, whose sizes have other parts than layers"
            raise BoomspecError(message, hint="load one of its sizes")
        facts = self._facts
        config = plan_config(facts, plan, tied=tied, base=TEACHER)
        made = fit.tensors_of_plan(facts, plan, tied=tied)
        tensors = {}
        for tensor, source in made:
            assert source is not None  # no zeros: they were refused
            assert source.file is not None
            shard, stored = self._stored[source.file, source.start]
            tensors[tensor.name] = self._tensor(shard, stored)
        return self._built(config, tensors)

    @cached_property
    def _stored(self) -> dict[tuple[Path, int], tuple[str, str]]:
        """Shard and name of each stored tensor, by where it lies."""
        self._fetch(sorted({shard for size in self.file.sizes for shard in size.shards}))
        entries = [entry for file in sorted((self.folder / SHARDS).iterdir()) for entry in read_header(file)]
        return {(entry.file, entry.start): (entry.file.name, entry.name) for entry in entries if entry.file}

    @cached_property
    def _facts(self) -> dict[Owner, ModelFacts]:
        """Teacher and student, as they would be read from folders of their own."""
        lineage, files = self.file.lineage, {shard for shard, _ in self._stored.values()}
        found: dict[Owner, ModelFacts] = {}
        ends: dict[Owner, Member] = {TEACHER: lineage.members[-1], STUDENT: lineage.trained}
        for owner, member in ends.items():
            size, begin = self.file.files_of(member.plan), f"{OWNERS[owner]}."
            assert size is not None
            config = read_config(self.folder / size.folder)
            entries = [entry for file in sorted(files) for entry in read_header(self.folder / SHARDS / file)]
            if any(entry.name.startswith("zeros.") for entry in entries):
                message = "the student of this family is of another kind than its teacher: only its sizes can be loaded"
                raise BoomspecError(message)
            own = {e.name.removeprefix(begin): e for e in entries if e.name.startswith(begin)}
            named = {name: replace(entry, name=name) for name, entry in own.items()}
            found[owner] = model_facts(config, named, str(self.folder / size.folder))
        return found

    def _fetch(self, shards: Iterable[str]) -> None:
        missing = [shard for shard in shards if not (self.folder / shard).is_file()]
        if missing and self.hub is not None:
            _fetched(self.hub, self.folder.name, allow_patterns=missing)  # the folder is called as the commit
        elif missing:
            hint = "copy the whole folder, or write it again: boomspec export RUN FOLDER --family"
            raise BoomspecError(f"{self.folder / missing[0]}: the file is not there", hint=hint)

    def _tensor(self, shard: str, stored: str) -> torch.Tensor:
        if shard not in self._opened:
            self._opened[shard] = safe_open(self.folder / SHARDS / shard, framework="pt")
        try:
            tensor: torch.Tensor = self._opened[shard].get_tensor(stored)
        except Exception as error:  # of safetensors, which are not all of one class
            message = f"{self.folder / SHARDS / shard}: '{stored}' cannot be read: {error}"
            raise BoomspecError(message, hint="the folder is damaged: copy it, or write it, again") from error
        return tensor

    def _built(self, config: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> PreTrainedModel:
        inner = decoder_config(config)
        config = config if inner is None else inner
        if (model_type := config["model_type"]) not in CONFIG_MAPPING:
            message = f"this transformers does not know a {model_type} model"
            raise BoomspecError(message, hint="pip install -U transformers")
        made = config_object(CONFIG_MAPPING[model_type], config)
        renamed = None if inner is None else dict(DECODERS)
        options = {"config": made, "dtype": self.dtype or _dtype_of(tensors.values()), "key_mapping": renamed}
        cls: Any = MODEL_FOR_CAUSAL_LM_MAPPING[type(made)]
        model, found = cls.from_pretrained(
            None, state_dict=dict(tensors), output_loading_info=True, use_safetensors=True, **options
        )
        if found["missing_keys"]:  # transformers would draw them at random
            raise BoomspecError(f"{self.folder}: weights are not in it, such as {min(found['missing_keys'])}")
        if (self.folder / _GENERATION).is_file():
            model.generation_config = GenerationConfig.from_pretrained(self.folder)
        loaded: PreTrainedModel = model.to(device()).eval()
        return loaded


def _dtype_of(tensors: Iterable[torch.Tensor]) -> torch.dtype:
    """The floating-point dtype that most bytes are in."""
    found: Counter[torch.dtype] = Counter()
    for tensor in tensors:
        if tensor.is_floating_point():
            found[tensor.dtype] += tensor.nbytes
    return found.most_common(1)[0][0]
