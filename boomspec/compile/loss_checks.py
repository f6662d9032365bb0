"""Check the losses of a distillation, and what they read, against the models that it trains and runs."""

from collections.abc import Iterator
from contextlib import suppress

from boomspec.compile.cost.shapes import UnknownCostError, model_of
from boomspec.core.errors import Problem
from boomspec.core.losses import Losses, PairLoss
from boomspec.core.losses.attention_loss import AttentionLoss
from boomspec.core.losses.pairs import PROJECTION
from boomspec.models.facts import ModelFacts
from boomspec.models.families import OWN_ATTENTION
from boomspec.spec.sections.student import KeepChoice
from boomspec.spec.spec_file import SpecFile
from boomspec.spec.yaml_reader import Location


def check_losses(file: SpecFile, teacher: ModelFacts, kept: tuple[int, ...]) -> None:
    """Raise SpecError where a loss asks for what a student of these layers, its teacher or the training has not."""
    if problems := [*_problems(file, teacher, len(kept)), *_unbalanced(file, teacher, kept)]:
        raise file.error(*problems)


def check_balance(file: SpecFile, teacher: ModelFacts, kept: tuple[int, ...]) -> None:
    """Raise SpecError where `balance` would divide by a loss that is 0 at step 0, of a student of these layers."""
    if problems := list(_unbalanced(file, teacher, kept)):
        raise file.error(*problems)


def _unbalanced(file: SpecFile, teacher: ModelFacts, kept: tuple[int, ...]) -> Iterator[Problem]:
    """Losses on pairs whose places are all equal, as below the first block of more than one layer.

    What is left of them at step 0 is rounding, by which no term can be divided.
    """
    distill = file.spec.distill
    if distill is None or distill.balance is None or distill.assistants is not None:
        return
    if isinstance(file.spec.student.keep, KeepChoice):  # not known yet
        return
    losses, first = distill.losses_of_phases[0], (distill.phases or (None,))[0]
    place: Location = ("distill",) if first is None or first.losses is None else ("distill", "phases", 0)
    starts = zip((*kept[1:], teacher.count), range(1, len(kept) + 1), strict=True)
    equal = next((i for i, (block_end, own_end) in enumerate(starts) if block_end != own_end), len(kept))
    for kind, term in losses.terms().items():
        with suppress(ValueError):  # no such layer: a problem of its own
            if isinstance(term, PairLoss) and max(term.layers(len(kept))) < equal:
                message = (
                    f"{kind} is 0 at step 0 for a student of {len(kept)} layers, whose first {equal} are the teacher's "
                    "first: no weight makes it as large as the others"
                )
                yield file.problem((*place, "losses", kind, "pairs"), message, "higher layers, or no balance")


def check_outputs(file: SpecFile, teacher: ModelFacts) -> None:
    """Raise SpecError where more is to be stored of the teacher's outputs than it has."""
    outputs = None if file.spec.distill is None else file.spec.distill.teacher_outputs
    if outputs is None or outputs.top_k is None:
        return
    if outputs.top_k > teacher.logits:
        message = f"the teacher has {teacher.logits:,} tokens, fewer than {outputs.top_k:,}"
        raise file.error_at(("distill", "teacher_outputs", "top_k"), message)


def _problems(file: SpecFile, teacher: ModelFacts, layers: int) -> Iterator[Problem]:
    if file.spec.distill is None:
        return
    blockwise = file.spec.distill.blockwise
    sections: dict[Location, Losses] = {("distill",): file.spec.distill.losses}
    if blockwise is not None and blockwise.polish is not None:
        sections["distill", "blockwise", "polish"] = blockwise.polish.losses
    for i, phase in enumerate(file.spec.distill.phases or ()):
        if phase.losses is not None:
            sections["distill", "phases", i] = phase.losses
    for section, losses in sections.items():
        for kind, term in losses.terms().items():
            if isinstance(term, PairLoss):
                yield from _of_pairs(file, (*section, "losses", kind), term, layers)
            if isinstance(term, AttentionLoss):
                yield from _of_attention(file, (*section, "losses", kind), term, teacher)
        resources = file.spec.execution.of("distill")
        if _cuts(resources) and (above := _attention_above_all_else(losses, layers)) is not None:
            message = (
                f"the losses read of the student's layer {above} its attention alone: no gradient passes its output, "
                "where a cut layer is made whole"
            )
            hint = "parallel: ddp, or a loss such as cross_entropy, too"
            yield file.problem(("execution", "distill", "parallel"), message, hint)


def _attention_above_all_else(losses: Losses, layers: int) -> int | None:
    """The topmost layer of which a loss reads anything, where it reads the attention alone."""
    if losses.reading("logits"):
        return None
    top = {"attention": -1, "states": -1}
    for term in losses.terms().values():
        if isinstance(term, PairLoss):
            what = "attention" if isinstance(term, AttentionLoss) else "states"
            with suppress(ValueError):  # no such layer: a problem of its own
                top[what] = max(top[what], *term.layers(layers))
    return top["attention"] if top["attention"] > top["states"] else None


def _cuts(resources: object) -> bool:
    """Whether a training cuts its student over workers."""
    return getattr(resources, "parallel", "ddp") == "fsdp"


def _of_pairs(file: SpecFile, place: Location, term: PairLoss, layers: int) -> Iterator[Problem]:
    try:
        term.layers(layers)
    except ValueError as error:
        yield file.problem((*place, "pairs"), str(error))
    resources, trained = file.spec.execution.of("distill"), term.trained(1)
    if isinstance(term, AttentionLoss) and getattr(resources, "compile", False):
        message = f"{term.kind} reads inside of attention, which a compiled layer does not show"
        yield file.problem(("execution", "distill", "compile"), message, f"compile: false, or {term.kind}: null")
    if trained and _cuts(resources):
        message = f"{term.kind} trains parameters of its own, which are not cut over workers"
        without = "projection: false" if PROJECTION in trained else f"{term.kind}: null"
        yield file.problem(("execution", "distill", "parallel"), message, f"parallel: ddp, or {without}")


def _of_attention(file: SpecFile, place: Location, term: AttentionLoss, teacher: ModelFacts) -> Iterator[Problem]:
    config = {**(teacher.config.get("text_config") or {}), **teacher.config}
    reason = None
    if teacher.model_type in OWN_ATTENTION:
        reason = f"a {teacher.model_type} computes its attention without transformers' attention interface"
    elif config.get("attn_logit_softcapping"):
        reason = "its scores are capped: they are not products of queries and keys alone"
    if reason is not None:
        yield file.problem(place, f"it cannot be read inside of this teacher's attention: {reason}", "leave it out")
        return
    with suppress(UnknownCostError):
        layer = model_of(teacher).layers[0]
        widths = {"queries": layer.queries, "keys": layer.keys, "values": layer.keys}
        for relation in term.relations:
            heads, width = term.heads(relation), widths[relation[0]]
            if heads is not None and width % heads:
                message = f"{heads} do not divide the {width} {relation[0]} of a token"
                yield file.problem((*place, "relation_heads"), message)
                return
