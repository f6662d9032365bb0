"""Check that two models can be interpolated, and list the tensors of a model made of both, from headers alone.

The first one, the base, is the teacher where there is one: a result has its config and, place by place, its dtypes.
Where the teacher has other parts than its text decoder (an image encoder, a projector) and they are kept, the decoder
is put back: under the names, and in the config, that it has in the teacher.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, ends_of
from boomspec.models.checkpoint import FLOAT_BYTES, TensorEntry
from boomspec.models.code import DECODER_CONFIGS
from boomspec.models.facts import ModelFacts, decoder_name, read_as
from boomspec.models.families import row_of, unwrapped

# Each tensor of a result, as it is stored, with the one that it is made of; None: it is zeros.
Made = tuple[TensorEntry, TensorEntry | None]
_TRUNK, _HEAD = "model.", "lm_head."  # how the names of a decoder begin


def plan_entries(base: ModelFacts, other: ModelFacts, plan: LayerPlan, *, tied: bool) -> list[TensorEntry]:
    """The tensors of a plan of layers of `base` (t) and `other` (s), as stored; BoomspecError where they do not fit."""
    zeros = zeros_of(other, base)
    models: dict[Owner, ModelFacts] = {TEACHER: base, STUDENT: read_as(other, base.model_type, "the student")}
    check_fit(base, models[STUDENT], zeros)
    found = tensors_of_plan(models, plan, tied=tied, zeros=zeros if ends_of(plan)[0] == STUDENT else ())
    return [tensor for tensor, _ in found]


def tensors_of_plan(
    models: Mapping[Owner, ModelFacts], plan: LayerPlan, *, tied: bool, zeros: Sequence[TensorEntry] = ()
) -> list[Made]:
    """The tensors of a model of `plan`, and what of `models` they are made of.

    The embedding comes from the owner of the first layer, final norm and head from the owner of the last one. A tensor
    is stored in the dtype that the teacher stores the tensor of the same place in.
    """
    base: Owner = TEACHER if TEACHER in models else STUDENT
    dtypes, first, last = dtypes_of(models[base]), *ends_of(plan)

    def made(entry: TensorEntry, owner: Owner, name: str, place: str) -> Made:
        # The base's own tensors are never converted, should one layer be stored unlike another.
        dtype = entry.dtype if owner == base else dtypes.get(place, models[base].dtype)
        return replace(entry, name=name, dtype=dtype), entry

    found = [made(entry, first, entry.name, entry.name) for entry in models[first].embedding]
    found += [(entry, None) for entry in zeros]
    for new, layer in enumerate(plan):
        prefix = models[layer.owner].prefix
        for entry in models[layer.owner].layers[layer.index]:
            place = place_of(entry.name, prefix)
            found.append(made(entry, layer.owner, f"{prefix}.{new}.{place}".lstrip("."), f"*.{place}"))
    after = (*models[last].norm, *(models[last].head if tied else models[last].untied_head))
    return found + [made(entry, last, entry.name, entry.name) for entry in after]


def zeros_of(model: ModelFacts, base: ModelFacts) -> list[TensorEntry]:
    """The embeddings of `base` that a model of another family lacks, without a file."""
    rows = row_of(model.model_type).read_as.get(base.model_type)
    missing = rows.zeros if rows else frozenset[str]()
    return [TensorEntry(entry.name, entry.dtype, entry.shape) for entry in base.embedding if entry.name in missing]


def check_fit(base: ModelFacts, other: ModelFacts, zeros: Sequence[TensorEntry]) -> None:
    """Raise BoomspecError unless each part of `other` can stand in for the same part of `base`."""
    if other.prefix != base.prefix:
        raise BoomspecError(f"the models' layers have different names: {base.prefix}.* and {other.prefix}.*")
    if other.token_embedding.shape != base.token_embedding.shape:
        shapes = f"{base.token_embedding.shape} and {other.token_embedding.shape}"
        raise BoomspecError(f"the models' embeddings differ in shape (vocabulary x width): {shapes}")
    for part in ("embedding", "norm", "untied_head"):
        mine = {entry.name: entry.shape for entry in getattr(base, part)}
        theirs = {entry.name: entry.shape for entry in (*getattr(other, part), *(zeros if part == "embedding" else ()))}
        if mine != theirs:
            raise BoomspecError(f"the models' {part.removeprefix('untied_')}s differ: {_difference(mine, theirs)}")
    kinds = [_shapes(layer, base) for layer in base.layers]
    for i, layer in enumerate(other.layers):
        theirs = _shapes(layer, other)
        if theirs not in kinds:
            nearest = min(kinds, key=lambda mine: len(mine.items() ^ theirs.items()))
            raise BoomspecError(f"layer {i} is like no layer of the other model: {_difference(nearest, theirs)}")
    dtypes = dtypes_of(base)
    for place, entry in places_of(other):
        wanted = dtypes.get(place, base.dtype)
        if entry.dtype != wanted and not {entry.dtype, wanted} <= set(FLOAT_BYTES):
            message = f"tensor '{entry.name}' is stored as {entry.dtype}, in the other model as {wanted}"
            raise BoomspecError(message, hint=f"only {', '.join(FLOAT_BYTES)} are converted into each other")


def _difference(mine: Mapping[str, object], theirs: Mapping[str, object]) -> str:
    name = min(name for name in {*mine, *theirs} if mine.get(name) != theirs.get(name))
    return f"'{name}' is {mine.get(name, 'missing')} and {theirs.get(name, 'missing')}"


def _shapes(layer: Iterable[TensorEntry], model: ModelFacts) -> dict[str, tuple[int, ...]]:
    return {place_of(entry.name, model.prefix): entry.shape for entry in layer}


def place_of(name: str, prefix: str) -> str:
    """What is after the layer's index in the name of a layer's tensor."""
    return name[len(prefix) + bool(prefix) :].split(".", 1)[1]


def places_of(model: ModelFacts) -> list[tuple[str, TensorEntry]]:
    """Every tensor with what it is called in any layer ("*.mlp.up_proj.weight") or outside the layers."""
    rest = [(entry.name, entry) for entry in (*model.embedding, *model.norm, *model.untied_head)]
    return rest + [(f"*.{place_of(e.name, model.prefix)}", e) for layer in model.layers for e in layer]


def dtypes_of(base: ModelFacts) -> dict[str, str]:
    return {place: entry.dtype for place, entry in reversed(places_of(base))}  # of equal places the first


def other_tensors(facts: ModelFacts) -> tuple[TensorEntry, ...]:
    """What a model holds beside its decoder, without what no class loads; empty for a model that is a decoder."""
    row = row_of(facts.model_type)
    return tuple(entry for entry in facts.left_out if row.canonical_name(entry.name) is not None)


def with_rest(facts: ModelFacts, plan: LayerPlan, tensors: Sequence[TensorEntry]) -> list[TensorEntry]:
    """The tensors of a model of this plan, where the rest is kept: a model of the student's layers alone has none."""
    return [*tensors, *(other_tensors(facts) if has_other_tensors(plan) else ())]


def has_other_tensors(plan: LayerPlan) -> bool:
    """Whether the teacher's other parts are in a model of this plan, where they are kept."""
    return any(layer.owner == TEACHER for layer in plan)


def whole_names(facts: ModelFacts) -> Callable[[str], str]:
    """What a tensor of the decoder is called in the whole model; BoomspecError where its names do not say it."""
    if not other_tensors(facts):
        raise BoomspecError("the teacher is a text decoder alone: it has no other parts to keep")
    trunks, heads, names = set(), set(), set()
    for own in (unwrapped(stored.name) for stored in facts.stored):
        if (name := decoder_name(own)) is None:
            continue
        names.add(name)
        if name.startswith(_TRUNK):
            trunks.add(own.removesuffix(name.removeprefix(_TRUNK)))
        else:
            heads.add(own.removesuffix(name))
    missing = {entry.name for entry in facts.tensors(range(facts.count), tied=True)} - names
    if len(trunks) != 1 or len(heads) > 1 or missing:
        raise BoomspecError(
            f"a {facts.written.get('model_type')} model like this cannot be put together again: the names of its"
            f" decoder are not under one other ({', '.join(sorted({*trunks, *heads, *sorted(missing)[:1]}))})"
        )
    [trunk] = trunks
    head = heads.pop() if heads else trunk.removesuffix(_TRUNK) if trunk.endswith(f".{_TRUNK}") else ""
    return lambda name: head + name if name.startswith(_HEAD) else trunk + name.removeprefix(_TRUNK)


def whole_config(facts: ModelFacts, config: Mapping[str, Any]) -> dict[str, Any]:
    key = next(key for key in DECODER_CONFIGS if isinstance(facts.written.get(key), dict))
    own = facts.written[key]
    inner = {name: value for name, value in config.items() if name != "architectures" or name in own}
    tied = {name: value for name, value in config.items() if name == "tie_word_embeddings"}
    return {**facts.written, key: inner, **tied}


def described(facts: ModelFacts, *, keep: bool) -> str | None:
    """What becomes of a teacher's other parts, in one line; None for a teacher without any."""
    if not (rest := other_tensors(facts)):
        return None
    parts = dict.fromkeys(entry.name.removeprefix(_TRUNK).split(".")[0] for entry in rest)
    what = f"{sum(entry.elements for entry in rest) / 1e6:,.3g} M parameters of {', '.join(parts)}"
    if keep:
        return f"Kept: {what} (teacher.rest: keep); part of every size but the student's, which is the decoder alone."
    return f"Left out: {what} (teacher.rest: drop)."
