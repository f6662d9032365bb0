"""Check the losses of a distillation, and what they read, against the models that it trains and runs."""

from collections.abc import Iterator

from boomspec.core.errors import Problem
from boomspec.core.losses import Losses, StateLoss
from boomspec.models.facts import ModelFacts
from boomspec.spec.spec_file import SpecFile


def check_losses(file: SpecFile, layers: int) -> None:
    """Raise SpecError where a loss asks for what a student of so many layers has not."""
    if problems := list(_problems(file, layers)):
        raise file.error(*problems)


def check_outputs(file: SpecFile, teacher: ModelFacts) -> None:
    """Raise SpecError where more is to be stored of the teacher's outputs than it has."""
    outputs = None if file.spec.distill is None else file.spec.distill.teacher_outputs
    if outputs is None or outputs.top_k is None:
        return
    projections = [tensor for tensor in teacher.head if len(tensor.shape) == 2] or [teacher.token_embedding]
    rows = projections[-1].shape[0]
    if outputs.top_k > rows:
        message = f"the teacher has {rows:,} tokens, fewer than {outputs.top_k:,}"
        raise file.error_at(("distill", "teacher_outputs", "top_k"), message)


def _problems(file: SpecFile, layers: int) -> Iterator[Problem]:
    if file.spec.distill is None:
        return
    blockwise = file.spec.distill.blockwise
    sections: dict[tuple[str, ...], Losses] = {("distill",): file.spec.distill.losses}
    if blockwise is not None and blockwise.polish is not None:
        sections["distill", "blockwise", "polish"] = blockwise.polish.losses
    for place, losses in sections.items():
        for kind, term in losses.terms().items():
            if isinstance(term, StateLoss):
                try:
                    term.layers(layers)
                except ValueError as error:
                    yield file.problem((*place, "losses", kind, "pairs"), str(error))
