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

from boomspec.core.losses import Losses, StateLoss
from runners.modeling.hidden_states import LMHead, Pair, Point, capture, hidden_pairs, trunk
from runners.training.head import head_loss
from runners.training.losses import state_loss
from runners.training.moment import START, Moment
from runners.training.output_files import StoredRows
from runners.training.stored_outputs import StoredOutputs
from runners.training.teachers import ONE_TEACHER, Teachers

TermValues = tuple[Tensor, dict[str, Tensor]]  # the loss, and the values of its terms without their weights
StudentLoss = Callable[[Tensor, Tensor, int, "Targets", Moment], TermValues]  # see `student_loss`
TargetsOf = Callable[[Tensor, Moment], "Targets"]  # inputs_BT, where the training stands -> targets


@dataclass(frozen=True)
class Alignment:
    """Which terms one student's loss has, and which of its hidden states each compares with which of the teacher's."""

    losses: Losses
    pairs: Mapping[str, Sequence[Pair]]  # by term

    def points(self, side: int) -> list[Point]:
        """Of the student (side 0) or the teacher (side 1)."""
        return list(dict.fromkeys(pair[side] for of_term in self.pairs.values() for pair in of_term))


@dataclass(frozen=True)
class Targets:
    """What teachers say about the tokens of one micro batch, without a graph."""

    # Of each teacher after its final norm, for its head to read; nothing where no term reads the teacher.
    hidden_BTD: tuple[Tensor, ...] = ()
    states_BTD: Mapping[Point, Tensor] = field(default_factory=dict)
    stored: StoredOutputs | None = None  # at B x T positions: in place of what a teacher says


def alignment(losses: Losses, kept: Sequence[int], layers: int) -> Alignment:
    """Of a student that keeps these of the teacher's `layers`."""
    pairs = {
        kind: hidden_pairs(
            kept, layers, chosen=term.layers(len(kept)), embedding=term.embedding, final_norm=term.final_norm
        )
        for kind, term in losses.terms().items()
        if isinstance(term, StateLoss)
    }
    return Alignment(losses, pairs)


def teacher_targets(teachers: Sequence[Any], alignments: Collection[Alignment]) -> TargetsOf:
    """A forward of each teacher that gives what the losses of these students read."""
    points = dict.fromkeys(point for each in alignments for point in each.points(1))
    is_read = any(each.losses.reads_teacher for each in alignments)
    by_logits = any(each.losses.reading("teacher_logits") for each in alignments)

    def targets(inputs_BT: Tensor, moment: Moment = START) -> Targets:
        if not is_read:
            return Targets()
        own, *others = teachers
        with torch.no_grad(), capture(own, points) as states_BTD:
            hidden_BTD = trunk(own, inputs_BT)
            of_others = [trunk(other, inputs_BT) for other in others] if by_logits else []
        return Targets((hidden_BTD, *of_others), states_BTD)

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
) -> StudentLoss:
    """(inputs_BT, labels_BT, labelled positions of the effective batch, targets, moment) -> loss, values of its terms.

    `everywhere`: all positions of the effective batch, padding, too, where terms that read no label count them all.
    """
    losses, head, points = aligned.losses, LMHead(student), aligned.points(0)
    passes = [(losses, 0)]
    if everywhere:  # another mask, so another pass through the head
        labelled = losses.each(lambda term: term if "labels" in term.reads else None)
        others = losses.each(lambda term: term if "logits" in term.reads and "labels" not in term.reads else None)
        passes = [(labelled, 0), (others, everywhere)]

    def loss(inputs_BT: Tensor, labels_BT: Tensor, count: int, targets: Targets, moment: Moment) -> TermValues:
        with capture(student, points) as states_BTD:
            hidden_BTD = trunk(student, inputs_BT)
        total, terms = state_loss(
            states_BTD, targets.states_BTD, labels_BT, pairs=aligned.pairs, losses=losses, count=count, moment=moment
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
        return total, {name: terms[name] for name in losses.terms()}

    return loss
