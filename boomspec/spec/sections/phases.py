"""Phases of a distillation: parts of one training, under one schedule, each a task of its own."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Discriminator, Field, Tag

from boomspec.core.losses import Loss, Losses, PairLoss
from boomspec.core.types import Count, Strict, about
from boomspec.spec.sections.schemes import some_loss
from boomspec.spec.sections.shares import Blend
from boomspec.spec.validate import FieldError

_NAME = "[A-Za-z0-9][A-Za-z0-9._-]{0,31}"


def _plain(name: str) -> str:
    if not re.fullmatch(_NAME, name):
        raise ValueError(f"'{name}' is not a plain name: use letters, digits, dots, dashes, underscores")
    return name


def _data_form(value: Any) -> str:
    return "name" if isinstance(value, str) else "blend"


class PhaseSpec(Strict):
    """A part of the training. Schedule and optimiser go on through all phases."""

    data: Annotated[Annotated[str, Tag("name")] | Annotated[Blend, Tag("blend")], Discriminator(_data_form)] | None = (
        Field(None, examples=["web", {"web": 0.7, "code": 0.3}])
    )
    """The text: a source of data.sources, or how several are mixed. Default: the data as a whole."""
    tokens: Annotated[Count, Field(gt=0)]
    """Training tokens of this phase, rounded to whole steps."""
    loss_on: Literal["all", "responses"] | None = Field(None, examples=["responses"])
    """What is learned of conversations in this phase. Default: as each source says."""
    losses: Annotated[Losses, AfterValidator(some_loss)] | None = Field(
        None, examples=[{"cross_entropy": {}, "kl": {"weight": 0.1}}]
    )
    """Terms of the loss in this phase; the key is the kind. Default: distill.losses."""
    name: Annotated[str, AfterValidator(_plain)] | None = about(
        "What the report calls it. Default: its source, or its number.", ["web"], default=None
    )


def _some_phase(phases: tuple[PhaseSpec, ...]) -> tuple[PhaseSpec, ...]:
    if not phases:
        raise FieldError("must have at least 1 item, not 0")
    twice = Counter(names(phases))
    for i, (name, phase) in enumerate(zip(names(phases), phases, strict=True)):
        if twice[name] > 1 and phase.name is not None:
            raise FieldError(f"'{name}' is the name of two phases", at=(i, "name"))
    return phases


Phases = Annotated[tuple[PhaseSpec, ...], AfterValidator(_some_phase)]


def names(phases: Sequence[PhaseSpec]) -> tuple[str, ...]:
    """What the phases are called: as they say, else as the source that they alone have, else by their numbers."""
    sources = Counter(phase.data for phase in phases if isinstance(phase.data, str))
    found = []
    for number, phase in enumerate(phases, start=1):
        source = phase.data if isinstance(phase.data, str) and sources[phase.data] == 1 else ""
        found.append(phase.name or (str(number) if source.isdecimal() else source) or str(number))
    return tuple(found)


def check_terms(losses: Sequence[Losses], *, balanced: bool) -> None:
    """Raise FieldError, as below `phases`, for a term that not all phases can have alike.

    A term that trains parameters of its own, or reads a number that changes over the steps, is one thing from the first
    step to the last. `balanced`: the sizes of the terms at the first step are those of all phases.
    """
    first = losses[0].terms()
    for i, own in enumerate(losses):
        if balanced and own.terms().keys() != first.keys():
            message = "with balance all phases have the same terms: their sizes are those of the first step"
            raise FieldError(message, hint="give the losses weights, and no balance", at=(i, "losses"))
        for kind in dict.fromkeys([*first, *own.terms()]):
            one, other = first.get(kind), own.terms().get(kind)
            if any(_is_lasting(term) for term in (one, other)) and _unweighted(one) != _unweighted(other):
                what = "trains parameters of its own" if _trains(one) or _trains(other) else "changes over the steps"
                message = f"{kind} {what}: all phases have it, with the same settings, or none"
                place = (i, "losses", kind) if other is not None else (i, "losses")
                raise FieldError(message, hint="its weight may differ", at=place)


def _trains(term: Loss | None) -> bool:
    return isinstance(term, PairLoss) and bool(term.trained(1))


def _is_lasting(term: Loss | None) -> bool:
    return _trains(term) or (term is not None and term.course(1) is not None)


def _unweighted(term: Loss | None) -> Loss | None:
    return None if term is None else term.model_copy(update={"weight": 1.0})
