"""Score the answers of questions with many layer plans at once: log-likelihoods, as lm-eval asks for them.

Answers to one question share its context, which is run once. A row of a batch is a context and the answers to it, one
after the other:

    tokens      c0 c1 c2 | a0 a1 | b0        the last token of an answer is predicted, never read
    positions   0  1  2  | 3  4  | 3         each answer follows the context
    may see     the context; the earlier tokens of the same answer

A model that cannot be run on such rows (its own check says so: attention without a mask, positions that it counts by
itself) gets one row for every answer, as in lm-eval's own Hugging Face model.

Shapes: B rows, T positions, D hidden size, N predicted tokens, V vocabulary.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import starmap
from pathlib import Path
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from boomspec.core.layers import LayerPlan
from boomspec.core.work_sizes import MEASURED_LOGITS
from runners.evaluation.members import Members
from runners.evaluation.scores import scores
from runners.modeling.hidden_states import LMHead, trunk
from runners.modeling.masks import additive_masks
from runners.modeling.shared_forward import Inputs

_CONTEXT = 0  # the segment of a context; the answers to it are 1, 2, ...
_PADDING = -1  # the segment of padding


class Request(NamedTuple):
    """Tokens, and the tokens whose probability after them is wanted. Neither is empty."""

    context: tuple[int, ...]
    answer: tuple[int, ...]


class Answer(NamedTuple):
    """Of one request: log p(answer | context) in nats, and whether each of its tokens is the most likely one."""

    log_likelihood: float
    greedy: bool


@dataclass(frozen=True)
class Question:
    """A context and distinct answers to it. `requests`: for each answer, which requests it is the answer of."""

    context: tuple[int, ...]
    answers: tuple[tuple[int, ...], ...]
    requests: tuple[tuple[int, ...], ...]

    def length(self, share: bool) -> int:
        """Positions of its row: all answers are in it if `share`, else one stands for all."""
        read = [len(answer) - 1 for answer in self.answers]
        return len(self.context) + (sum(read) if share else read[0])


def questions(requests: Sequence[Request], *, positions: int, share: bool) -> list[Question]:
    """The requests by context, the longest rows first. `positions`: what a model can read; more is cut from the left.

    `share`: whether a row may hold several answers; where it may not, only those of one token share their context.
    """
    found: dict[Any, dict[tuple[int, ...], list[int]]] = {}
    for number, (context, answer) in enumerate(requests):
        context = (*context, *answer)[-(positions + 1) : -len(answer)]
        found.setdefault((context, () if share else answer[:-1]), {}).setdefault(answer, []).append(number)
    made = []
    for (context, _), answers in found.items():
        part: dict[tuple[int, ...], list[int]] = {}
        length = len(context)
        for answer, numbers in answers.items():
            read = len(answer) - 1 if share else 0
            if (
                part and length + read > positions
            ):  # masks grow with the square of a row: none is longer than a model reads
                made.append(Question(context, tuple(part), tuple(map(tuple, part.values()))))
                part, length = {}, len(context)
            part[answer] = numbers
            length += read
        made.append(Question(context, tuple(part), tuple(map(tuple, part.values()))))
    return sorted(made, key=lambda question: (-question.length(share), question.context, question.answers))


@dataclass(frozen=True)
class Rows(Inputs):
    """Questions as one batch. Predicted token n is `labels_N[n]`, read off the state at (`rows_N`, `columns_N`)."""

    positions_BT: Tensor
    segments_BT: Tensor
    rows_N: Tensor
    columns_N: Tensor
    labels_N: Tensor
    lengths: tuple[int, ...]  # tokens of each answer, question by question
    questions: int
    share: bool

    @classmethod
    def of(cls, asked: Sequence[Question], *, share: bool) -> Self:
        """Rows of one answer each, or of several that see the context and not each other, if `share`."""
        tokens, positions, segments = [], [], []
        rows: list[int] = []
        columns: list[int] = []
        labels: list[int] = []
        lengths: list[int] = []
        for row, question in enumerate(asked):
            start = len(question.context)
            ids, places, owners = [*question.context], [*range(start)], [_CONTEXT] * start
            for segment, answer in enumerate(question.answers, start=1):
                read = answer[:-1]
                if share or segment == 1:  # else all answers are alike but for their last tokens
                    first = len(ids)
                    ids += read
                    places += range(start, start + len(read))
                    owners += [segment] * len(read)
                rows += [row] * len(answer)
                columns += [start - 1, *range(first, first + len(read))]
                labels += answer
                lengths.append(len(answer))
            tokens.append(torch.tensor(ids))
            positions.append(torch.tensor(places))
            segments.append(torch.tensor(owners))

        def padded(values: list[Tensor], value: int) -> Tensor:
            return pad_sequence(values, batch_first=True, padding_value=value)

        rows_N, columns_N, labels_N = (torch.tensor(values) for values in (rows, columns, labels))
        return cls(
            tokens_BT=padded(tokens, 0),
            positions_BT=padded(positions, 0),
            segments_BT=padded(segments, _PADDING),
            rows_N=rows_N,
            columns_N=columns_N,
            labels_N=labels_N,
            lengths=tuple(lengths),
            questions=len(asked),
            share=share,
        )

    def arguments(self, model: Any) -> dict[str, Any]:
        if not self.share:
            return {}
        of_BTT = self.segments_BT[:, None, :].expand(-1, self.segments_BT.shape[1], -1)
        seen_BTT = ((of_BTT == _CONTEXT) | (of_BTT == self.segments_BT[:, :, None])).tril()
        return {"position_ids": self.positions_BT, "attention_mask": additive_masks(model, seen_BTT, self.positions_BT)}

    def answers(self, head: LMHead, hidden_BTD: Tensor) -> list[Answer]:
        """The answers of a model with this `head`, question by question, from what its head reads."""
        hidden_ND, all_labels_N = hidden_BTD[self.rows_N, self.columns_N], self.labels_N.to(hidden_BTD.device)
        values_N, best_N = torch.empty(len(hidden_ND)), torch.empty(len(hidden_ND), dtype=torch.bool)
        size = max(1, MEASURED_LOGITS // head.vocabulary)
        for part in (slice(first, first + size) for first in range(0, len(hidden_ND), size)):
            labels_N = all_labels_N[part]
            log_p_NV = head(hidden_ND[part]).float().log_softmax(-1)
            values_N[part] = log_p_NV.gather(1, labels_N[:, None]).squeeze(1).cpu()
            best_N[part] = (log_p_NV.argmax(-1) == labels_N).cpu()
        pairs = zip(torch.split(values_N, [*self.lengths]), torch.split(best_N, [*self.lengths]), strict=True)
        return [Answer(float(values.sum()), bool(best.all())) for values, best in pairs]


def answers_of(
    members: Members,
    requests: Sequence[Request],
    *,
    positions: int,
    tokens_at_once: int,
    kept: Mapping[LayerPlan, Path] | None = None,
    done: Callable[[float], None] = lambda share: None,
) -> dict[LayerPlan, list[Answer]]:
    """The answers of each member, in the order of the requests.

    `positions`: how many tokens a model can read; more are cut from the left. `tokens_at_once`: of one batch, at most.
    `kept`: as of `scores`.
    """
    shared = questions(requests, positions=positions, share=True)
    share = _can_share(members, shared)
    asked = shared if share else questions(requests, positions=positions, share=False)
    batches: list[Rows] = []
    while (first := sum(batch.questions for batch in batches)) < len(asked):
        rows = max(1, tokens_at_once // asked[first].length(share))  # no row of the batch is longer than its first
        batches.append(Rows.of(asked[first : first + rows], share=share))

    def score(number: int, head: LMHead, hidden_BTD: Tensor) -> list[Any]:
        return batches[number].answers(head, hidden_BTD)

    found = scores(members, batches, score, kept=kept, done=done)
    order = [numbers for question in asked for numbers in question.requests]
    return {plan: _in_order(list(starmap(Answer, values)), order, len(requests)) for plan, values in found.items()}


@torch.no_grad()
def _can_share(members: Members, asked: Sequence[Question]) -> bool:
    """Whether rows of several answers give what rows of one answer give, tried on the question of longest context."""
    several = [question for question in asked if len(question.answers) > 1]
    if not several:
        return True
    question = max(several, key=lambda one: len(one.context))
    alone = [Question(question.context, (answer,), ((0,),)) for answer in question.answers]
    together = Rows.of([question], share=True).to(members.device)
    apart = Rows.of(alone, share=False).to(members.device)
    for model in members.models:
        try:
            actual_BTD = trunk(model, together.tokens_BT, **together.arguments(model))
        except Exception:  # a model that takes no such mask or positions says so in its own way
            return False
        actual_ND = actual_BTD[together.rows_N, together.columns_N].float()
        expected_ND = trunk(model, apart.tokens_BT)[apart.rows_N, apart.columns_N].float()
        # Kernels for other shapes differ by rounding; a model that ignores the mask, by the size of its states.
        tolerance = torch.finfo(model.dtype).eps ** 0.5 * float(expected_ND.nan_to_num(0.0, 0.0, 0.0).abs().max())
        if not torch.allclose(actual_ND, expected_ND, rtol=0.0, atol=tolerance, equal_nan=True):
            return False
    return True


def _in_order(answers: Sequence[Answer], order: Sequence[Sequence[int]], count: int) -> list[Answer]:
    found: list[Answer | None] = [None] * count
    for answer, numbers in zip(answers, order, strict=True):
        for number in numbers:
            found[number] = answer
    return [answer for answer in found if answer is not None]
