"""Check the losses of a distillation against the student that it trains."""

from collections.abc import Iterator

from boomspec.core.errors import Problem
from boomspec.core.losses import StateLoss
from boomspec.spec.spec_file import SpecFile


def check_losses(file: SpecFile, layers: int) -> None:
    """Raise SpecError where a loss asks for what a student of so many layers has not."""
    if problems := list(_problems(file, layers)):
        raise file.error(*problems)


def _problems(file: SpecFile, layers: int) -> Iterator[Problem]:
    if file.spec.distill is None:
        return
    for kind, term in file.spec.distill.losses.terms().items():
        if isinstance(term, StateLoss):
            try:
                term.layers(layers)
            except ValueError as error:
                yield file.problem(("distill", "losses", kind, "pairs"), str(error))
