"""The loss of one micro batch of a distillation, in two parts: what the teacher says, and what the student makes of it.

    targets = teacher_targets([teacher], [alignment])(inputs_BT, moment)
    total, terms = student_loss(student, alignment, [LMHead(teacher)])(inputs_BT, labels_BT, count, targets, moment)

They are apart because students that train on the same tokens can share the first: `teacher_targets` is given the
alignments of all of them. What no term reads is not computed: the teacher's forward, its head, states. Of several
teachers the first is the family's own: the others give logits alone.

Shapes: B sequences, T positions, D hidden size.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from boomspec.core.losses import Losses, PairLoss
from runners.modeling.attention import AttentionPart
from runners.modeling.hidden_states import LMHead, trunk
from runners.training.head import head_loss
from runners.training.loss_parameters import LossParameters
from runners.training.losses import pair_loss
from runners.training.moment import START, Moment
from runners.training.output_files import StoredRows
from runners.training.sites import Site, Where, capture_all, is_teachers, sites_of
from runners.training.stored_outputs import StoredOutputs
from runners.training.teachers import ONE_TEACHER, Teachers

TermValues = tuple[Tensor, dict[str, Tensor]]  # the loss, and the values of its terms without their weights
StudentLoss = Callable[[Tensor, Tensor, int, "Targets", Moment], TermValues]  # see `student_loss`
TargetsOf = Callable[[Tensor, Moment], "Targets"]  # inputs_BT, where the training stands -> targets


@dataclass(frozen=True)
class Alignment:
    """Which terms one student's loss has, and where those on pairs read student and teacher."""

    losses: Losses
    sites: Mapping[str, Sequence[Site]]  # by term

    def places(self, *, teacher: bool) -> list[Where]:
        """Those of the student, or of the teacher."""
        every = (site.items() for of_term in self.sites.values() for site in of_term)
        return list(dict.fromkeys(place for site in every for what, place in site if is_teachers(what) == teacher))

    def attention(self, *, teacher: bool) -> list[int]:
        """The layers whose attention is read."""
        places = self.places(teacher=teacher)
        return sorted({place.layer for place in places if isinstance(place, AttentionPart)})


@dataclass(frozen=True)
class Targets:
    """What teachers say about the tokens of one micro batch, without a graph."""

    # Of each teacher after its final norm, for its head to read; nothing where no term reads the teacher.
    hidden_BTD: tuple[Tensor, ...] = ()
    captured: Mapping[Where, Any] = field(default_factory=dict)  # states and attention, by place
    stored: StoredOutputs | None = None  # at B x T positions: in place of what a teacher says


def alignment(losses: Losses, kept: Sequence[int], layers: int) -> Alignment:
    """Of a student that keeps these of the teacher's `layers`."""
    terms = losses.terms().items()
    return Alignment(losses, {kind: sites_of(term, kept, layers) for kind, term in terms if isinstance(term, PairLoss)})


def teacher_targets(teachers: Sequence[Any], alignments: Collection[Alignment]) -> TargetsOf:
    """A forward of each teacher that gives what the losses of these students read."""
    places = dict.fromkeys(place for each in alignments for place in each.places(teacher=True))
    is_read = any(each.losses.reads_teacher for each in alignments)
    by_logits = any(each.losses.reading("teacher_logits") for each in alignments)

    def targets(inputs_BT: Tensor, moment: Moment = START) -> Targets:
        if not is_read:
            return Targets()
        own, *others = teachers
        with torch.no_grad(), capture_all(own, places) as captured:
            hidden_BTD = trunk(own, inputs_BT)
            of_others = [trunk(other, inputs_BT) for other in others] if by_logits else []
        return Targets((hidden_BTD, *of_others), captured)

    return targets


def stored_targets(outputs: StoredRows, row_of: Callable[[int], int], sequences: int) -> TargetsOf:
    """What is stored about the rows of a micro batch. `row_of`: the stored row of each row of the training."""

    def targets(inputs_BT: Tensor, moment: Moment = START) -> Targets:
        first = moment.step * sequences + moment.first_row
        rows = [row_of(row) for row in range(first, first + len(inputs_BT))]
        return Targets(stored=outputs(rows, inputs_BT.device))

    return targets


def student_loss(
    student: Any,
    aligned: Alignment,
    teacher_heads: Sequence[LMHead],
    everywhere: int = 0,
    teachers: Teachers = ONE_TEACHER,
    parameters: LossParameters | None = None,
) -> StudentLoss:
    """(inputs_BT, labels_BT, labelled positions of the effective batch, targets, moment) -> loss, values of its terms.

    `everywhere`: all positions of the effective batch, padding, too, where terms that read no label count them all.
    `parameters`: those that the losses train.
    """
    losses, head, places = aligned.losses, LMHead(student), aligned.places(teacher=False)
    passes = [(losses, 0)]
    if everywhere:  # another mask, so another pass through the head
        labelled = losses.each(lambda term: term if "labels" in term.reads else None)
        others = losses.each(lambda term: term if "logits" in term.reads and "labels" not in term.reads else None)
        passes = [(labelled, 0), (others, everywhere)]

    def loss(inputs_BT: Tensor, labels_BT: Tensor, count: int, targets: Targets, moment: Moment) -> TermValues:
        with capture_all(student, places) as captured:
            hidden_BTD = trunk(student, inputs_BT)
        total, terms = pair_loss(
            captured,
            targets.captured,
            labels_BT,
            sites=aligned.sites,
            losses=losses,
            count=count,
            moment=moment,
            parameters=parameters,
        )
        for part, positions in passes:
            by_logits, logit_terms = head_loss(
                hidden_BTD,
                torch.zeros_like(labels_BT) if positions else labels_BT,
                head=head,
                losses=part,
                count=positions or count,
                moment=moment,
                teacher_hidden_BTD=targets.hidden_BTD,
                teacher_head=teacher_heads,
                teachers=teachers,
                stored=targets.stored,
            )
            total, terms = by_logits + total, {**logit_terms, **terms}
        return total, {name: terms[name] for name in losses.terms() if name in terms}

    return loss
