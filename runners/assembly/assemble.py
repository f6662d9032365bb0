"""Write the Hugging Face folders of layer plans straight from safetensors files.

New headers are computed from the sources' headers and the tensors' bytes are copied range by range:
no tensor is loaded, no model is built, memory stays constant whatever the model's size.

    ownership   as `boomspec.models.fit.tensors_of_plan` says; every layer keeps its attributes (`model_config`)
    dtype       each tensor has the dtype of the teacher's tensor of the same place, rounded to nearest even
                (`checkpoint_writer`); integers and types below 16 bits are not converted
    family      the result is of the teacher's family; a student of another one is read as that (`families`); what
                such a student does not have and the teacher's family adds up (token types) is zeros

What is wrong with the sources is found from headers and configs, before anything is written. Only a weight that is
too large for the teacher's dtype shows while it is converted: then no config is written.
"""

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import transformers_floats
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, ends_of
from boomspec.models import fit
from boomspec.models.checkpoint import read_header
from boomspec.models.config_rules import Config
from boomspec.models.facts import read_as, read_facts
from boomspec.models.families import unwrapped
from boomspec.models.folder import CONFIG
from runners.assembly.checkpoint_writer import write_checkpoints
from runners.modeling.foreign_code import copy_travelling, runs_code, without_code
from runners.modeling.model_config import plan_config

Sources = Mapping[Owner, Path]  # teacher and student, or one of them


def assemble(
    sources: Sources,
    plan: LayerPlan,
    target: Path,
    *,
    tied: bool,
    code: Collection[str] = (),
    rest: bool = False,
    fitted: Path | None = None,
) -> None:
    """Write the model of `plan` into the folder `target`.

    What travels comes from the teacher where there is one, with its code where all of that is in `code` (sha256 of each
    file). `rest`: with the teacher's other parts (`boomspec.models.fit`), if layers of it are in the plan. `fitted`: a
    safetensors file of weights that take the place of others, by their names in the layer stack. Raises BoomspecError,
    before anything is written, where the sources do not fit together.
    """
    assemble_family(sources, {target: (plan, tied)}, code=code, rest=rest, fitted={target: fitted})


def assemble_family(
    sources: Sources,
    plans: Mapping[Path, tuple[LayerPlan, bool]],
    *,
    code: Collection[str] = (),
    rest: bool = False,
    fitted: Mapping[Path, Path | None] = MappingProxyType({}),
) -> None:
    """Write many models of the same sources, {target: (plan, tied)}, as `assemble` does, reading each tensor once."""
    base = base_of(sources)
    made, configs = planned(sources, plans, code=code, rest=rest, fitted=fitted)
    for target in plans:
        target.mkdir(parents=True, exist_ok=True)
    write_checkpoints(made)
    for target, config in configs.items():  # last: what was left unfinished has no config, and no one can load it
        copy_travelling(sources[base], target, code)
        write_config(target, config)


def base_of(sources: Sources) -> Owner:
    """Of whose family a result is, and whose tokenizer it has."""
    return TEACHER if TEACHER in sources else STUDENT


def write_config(folder: Path, config: Config) -> None:
    text = json.dumps(transformers_floats(config), indent=2, sort_keys=True, allow_nan=False)
    (folder / CONFIG).write_text(text + "\n", encoding="utf-8")


def planned(
    sources: Sources,
    plans: Mapping[Path, tuple[LayerPlan, bool]],
    *,
    code: Collection[str] = (),
    rest: bool = False,
    fitted: Mapping[Path, Path | None] = MappingProxyType({}),
) -> tuple[dict[Path, list[fit.Made]], dict[Path, Config]]:
    """The tensors and the config of each model that `assemble_family` writes. Nothing is written."""
    base = base_of(sources)
    stored = {owner: read_facts(folder) for owner, folder in sources.items()}
    facts = {owner: read_as(model, stored[base].model_type, str(sources[owner])) for owner, model in stored.items()}
    zeros = {owner: fit.zeros_of(stored[owner], stored[base]) for owner in sources}
    for owner, model in facts.items():
        fit.check_fit(facts[base], model, zeros[owner])
    made, configs = {}, {}
    trusted = runs_code(sources[base], "model", code)
    for target, (plan, tied) in plans.items():
        if outside := [layer for layer in plan if layer.index >= facts[layer.owner].count]:
            count = facts[outside[0].owner].count
            raise BoomspecError(f"layer plan: {outside[0]} does not exist: that model has {count} layers")
        if tied and not all(facts[owner].tied for owner in ends_of(plan)):
            raise BoomspecError("a tied model cannot be made of models whose head is not tied")
        if any(target.resolve() == folder.resolve() for folder in sources.values()):
            raise BoomspecError(f"{target}: a model cannot be written over one that it is made of")
        config = plan_config(facts, plan, tied=tied, base=base)
        made[target] = fit.tensors_of_plan(facts, plan, tied=tied, zeros=zeros[ends_of(plan)[0]])
        if (own := fitted.get(target)) is not None:
            made[target] = _with_fitted(made[target], own, facts[base].prefix)
        name, times = Counter(tensor.name for tensor, _ in made[target]).most_common(1)[0]
        if times > 1:
            raise BoomspecError(f"two tensors of the model would be called '{name}'")
        if rest and fit.has_other_tensors(plan):  # the decoder among the teacher's other parts
            in_whole, others = fit.whole_names(facts[base]), fit.other_tensors(facts[base])
            made[target] = [(replace(tensor, name=in_whole(tensor.name)), of) for tensor, of in made[target]]
            made[target] += [(replace(entry, name=unwrapped(entry.name)), entry) for entry in others]
            config = fit.whole_config(facts[base], config)
        configs[target] = config if trusted else without_code(config)
    return made, configs


def _with_fitted(made: Sequence[fit.Made], file: Path, prefix: str) -> list[fit.Made]:
    """The tensors of a model, some of them made of those in a file, which are named as in the layer stack."""
    own = {f"{prefix}.{entry.name}".lstrip("."): entry for entry in read_header(file)}
    shapes = {tensor.name: tensor.shape for tensor, _ in made}
    if wrong := next((name for name, entry in own.items() if shapes.get(name) != entry.shape), None):
        raise BoomspecError(f"{file}: '{wrong}' is not a tensor of this model, or has another shape there")
    return [(tensor, own.get(tensor.name, source)) for tensor, source in made]
