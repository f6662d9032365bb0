"""Write the Hugging Face folders of layer plans straight from safetensors files.

New headers are computed from the sources' headers and the tensors' bytes are copied range by range:
no tensor is loaded, no model is built, memory stays constant whatever the model's size.

    ownership   (arXiv 2510.05064) the embedding comes from the owner of the FIRST layer, final norm and head from
                the owner of the LAST one. An untied result of a tied model gets its head written out, from that
                owner's embedding. Every layer keeps its attributes (`model_config`).
    dtype       each tensor is stored in the dtype that the teacher stores the tensor of the same place in, rounded
                to nearest even (`conversion`); integers and types below 16 bits are not converted.
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
from boomspec.core.layers import STUDENT, TEACHER, Owner, Plan
from boomspec.models.checkpoint import TensorEntry
from boomspec.models.facts import ModelFacts, read_as, read_facts
from boomspec.models.families import unwrapped
from boomspec.models.fit import check_fit, dtypes_of, place_of, zeros_of
from boomspec.models.whole import has_rest, prefixes_in, rest_of, whole_config, whole_name
from runners.assembly.checkpoint_writer import Piece, write_checkpoints
from runners.modeling.foreign_code import copy_travelling, runs_code, without_code
from runners.modeling.model_config import plan_config

_SHARD_BYTES = 5 * 10**9


def assemble(
    sources: Mapping[Owner, Path],
    plan: Plan,
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
    the teacher's other parts, too (`boomspec.models.whole`), if layers of the teacher are in it. Raises BoomspecError,
    before anything is written, where the sources do not fit together.
    """
    assemble_family(sources, {target: (plan, tied)}, code=code, rest=rest, shard_bytes=shard_bytes)


def assemble_family(
    sources: Mapping[Owner, Path],
    plans: Mapping[Path, tuple[Plan, bool]],
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
        pieces[target] = _pieces(facts, plan, tied=tied, base=facts[base], zeros=zeros[plan[0].owner])
        if rest and has_rest(plan):
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
    return named + [Piece(unwrapped(e.name), e.dtype, e.shape, e) for e in rest_of(teacher)]


def _check_plan(facts: Mapping[Owner, ModelFacts], plan: Plan, tied: bool) -> None:
    for layer in plan:
        count = facts[layer.owner].count
        if layer.index >= count:
            raise BoomspecError(f"layer plan: {layer} does not exist: that model has {count} layers")
    if tied and not all(facts[layer.owner].tied for layer in (plan[0], plan[-1])):
        raise BoomspecError("a tied model cannot be made of models whose head is not tied")


def _pieces(
    facts: Mapping[Owner, ModelFacts],
    plan: Plan,
    *,
    tied: bool,
    base: ModelFacts,
    zeros: Sequence[TensorEntry],
) -> list[Piece]:
    dtypes = dtypes_of(base)

    def piece(name: str, place: str, entry: TensorEntry, owner: ModelFacts) -> Piece:
        # The teacher's own tensors are never converted, should one layer be stored unlike another.
        dtype = entry.dtype if owner is base else dtypes.get(place, base.dtype)
        return Piece(name, dtype, entry.shape, entry)

    first, last = facts[plan[0].owner], facts[plan[-1].owner]
    pieces = [piece(entry.name, entry.name, entry, first) for entry in first.embedding]
    pieces += [Piece(entry.name, entry.dtype, entry.shape, None) for entry in zeros]
    for new, layer in enumerate(plan):
        model = facts[layer.owner]
        for entry in model.layers[layer.index]:
            place = place_of(entry.name, model.prefix)
            name = f"{model.prefix}.{new}.{place}" if model.prefix else f"{new}.{place}"
            pieces.append(piece(name, f"*.{place}", entry, model))
    behind = (*last.norm, *(last.head if tied else last.untied_head))
    pieces += [piece(entry.name, entry.name, entry, last) for entry in behind]
    for name, count in Counter(piece.name for piece in pieces).items():
        if count > 1:
            raise BoomspecError(f"two tensors of the model would be called '{name}'")
    return pieces
