"""Write the Hugging Face folders of layer plans straight from safetensors files.

New headers are computed from the sources' headers and the tensors' bytes are copied range by range:
no tensor is loaded, no model is built, memory stays constant whatever the model's size.

    ownership   as `boomspec.models.fit.tensors_of_plan` says. An untied result of a tied model gets its head written
                out, from the embedding of the head's owner. Every layer keeps its attributes (`model_config`).
    dtype       each tensor has the dtype of the teacher's tensor of the same place, rounded to nearest even
                (`checkpoint_writer`); integers and types below 16 bits are not converted.
    family      the result is of the teacher's family; a student of another one is read as that (`families`). What
                such a student does not have and the teacher's family adds up (token types) is zeros.

What is wrong with the sources is found from headers and configs, before anything is written. Only a weight that is
too large for the teacher's dtype shows while it is converted: then no config is written.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import transformers_floats
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, ends_of
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts, read_as, read_facts
from boomspec.models.families import unwrapped
from boomspec.models.fit import check_fit, tensors_of_plan, zeros_of
from boomspec.models.nested import has_other_tensors, other_tensors, prefixes_in, whole_config, whole_name
from runners.assembly.checkpoint_writer import Piece, write_checkpoints
from runners.modeling.foreign_code import copy_travelling, runs_code, without_code
from runners.modeling.model_config import plan_config

_SHARD_BYTES = 5 * 10**9


def assemble(
    sources: Mapping[Owner, Path],
    plan: LayerPlan,
    target: Path,
    *,
    tied: bool,
    code: Collection[str] = (),
    rest: bool = False,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write the model of `plan` into the folder `target`.

    Tokenizer, chat template and generation config come from the teacher where there is one, and so does its own
    code, where all of that is in `code` (sha256 of each file); else the result names none. With `rest` the result has
    the teacher's other parts, too (`boomspec.models.nested`), if layers of the teacher are in it. Raises BoomspecError,
    before anything is written, where the sources do not fit together.
    """
    assemble_family(sources, {target: (plan, tied)}, code=code, rest=rest, shard_bytes=shard_bytes)


def assemble_family(
    sources: Mapping[Owner, Path],
    plans: Mapping[Path, tuple[LayerPlan, bool]],
    *,
    code: Collection[str] = (),
    rest: bool = False,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Write many models of the same sources, {target: (plan, tied)}, reading each tensor of the sources once.

    Each target is exactly what `assemble` writes. On a file system with reflinks the targets share the blocks of
    the tensors they have in common (`copying` says which).
    """
    base: Owner = TEACHER if TEACHER in sources else STUDENT
    stored = {owner: read_facts(folder) for owner, folder in sources.items()}
    facts = {owner: read_as(model, stored[base].model_type, str(sources[owner])) for owner, model in stored.items()}
    zeros = {owner: zeros_of(stored[owner], stored[base]) for owner in sources}
    for owner, model in facts.items():
        check_fit(facts[base], model, zeros[owner])
    pieces, configs = {}, {}
    trusted = runs_code(sources[base], "model", code)
    for target, (plan, tied) in plans.items():
        _check_plan(facts, plan, tied)
        if any(target.resolve() == folder.resolve() for folder in sources.values()):
            raise BoomspecError(f"{target}: a model cannot be written over one that it is made of")
        config = plan_config(facts, plan, tied=tied, base=base)
        pieces[target] = _pieces(facts, plan, tied=tied, zeros=zeros[ends_of(plan)[0]])
        if rest and has_other_tensors(plan):
            pieces[target] = _whole(pieces[target], facts[base])
            config = whole_config(facts[base], config)
        configs[target] = config if trusted else without_code(config)

    for target in plans:
        target.mkdir(parents=True, exist_ok=True)
    write_checkpoints(pieces, shard_bytes=shard_bytes)
    for target, config in configs.items():  # last: what was left unfinished has no config, and no one can load it
        copy_travelling(sources[base], target, code)
        (target / "config.json").write_text(
            json.dumps(transformers_floats(config), indent=2, sort_keys=True, allow_nan=False) + "\n", encoding="utf-8"
        )


def _whole(pieces: Sequence[Piece], teacher: ModelFacts) -> list[Piece]:
    """The tensors of a decoder among the teacher's other parts."""
    prefixes = prefixes_in(teacher)
    named = [replace(piece, name=whole_name(prefixes, piece.name)) for piece in pieces]
    return named + [Piece(unwrapped(e.name), e.dtype, e.shape, e) for e in other_tensors(teacher)]


def _check_plan(facts: Mapping[Owner, ModelFacts], plan: LayerPlan, tied: bool) -> None:
    for layer in plan:
        count = facts[layer.owner].count
        if layer.index >= count:
            raise BoomspecError(f"layer plan: {layer} does not exist: that model has {count} layers")
    if tied and not all(facts[owner].tied for owner in ends_of(plan)):
        raise BoomspecError("a tied model cannot be made of models whose head is not tied")


def _pieces(
    facts: Mapping[Owner, ModelFacts], plan: LayerPlan, *, tied: bool, zeros: Sequence[TensorEntry]
) -> list[Piece]:
    found = tensors_of_plan(facts, plan, tied=tied, zeros=zeros)
    for name, count in Counter(tensor.name for tensor, _ in found).items():
        if count > 1:
            raise BoomspecError(f"two tensors of the model would be called '{name}'")
    return [Piece(tensor.name, tensor.dtype, tensor.shape, source) for tensor, source in found]
