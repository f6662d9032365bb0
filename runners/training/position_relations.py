"""Sums of the losses on relations between positions of one sequence: of attention, and of hidden states.

Relations are as many as the square of the positions. They exist for one sequence at a time, those of attention for a
few heads and rows of it, and the gradient of each such block is taken at once (`graded_blocks.py`).

Mask and reduction are those of `runners/training/losses.py`: a row of attention is a position; a relation of states
belongs to a sequence, which counts with all of its labelled positions.
Shapes: B sequences, T positions, N labelled ones of a sequence, P of these that are taken, D hidden size, H heads of
rows, G of columns, S = H / G heads of rows that share columns, E size of a head, R rows.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.losses.attention_loss import QUERIES_KEYS, AttentionLoss, Relation
from boomspec.core.losses.relation_loss import RelationLoss
from boomspec.core.work_sizes import TILE_LOGITS
from runners.training.graded_blocks import Block, sum_of_blocks


def attention_sum(
    term: AttentionLoss, read: Mapping[str, Any], has_label_BT: Tensor, *, tile: int | None = None
) -> Tensor:
    """The sum over positions that have a label and over relations, of the mean over heads. `tile`: scores at once."""
    tile = tile or TILE_LOGITS[read[term.relations[0][0]].device.type]
    total: Tensor | None = None
    for relation in term.relations:
        heads = term.heads(relation)
        sides = [
            _sides(relation, read[prefix + relation[0]], read[prefix + relation[1]], heads)
            for prefix in ("", "teacher_")
        ]
        frames = [read["frame"], read["teacher_frame"]]
        # Of queries and keys the model's own scale, of others that of their heads.
        scales = [
            frame.scaling if relation == QUERIES_KEYS else rows.shape[-1] ** -0.5
            for frame, (rows, _) in zip(frames, sides, strict=True)
        ]
        blocks = _attention_blocks(term, sides, frames, scales, has_label_BT, tile)
        summed = sum_of_blocks([tensor for side in sides for tensor in side], blocks)
        total = summed if total is None else total + summed
    assert total is not None
    return total


def _sides(relation: Relation, rows: Tensor, columns: Tensor, heads: int | None) -> tuple[Tensor, Tensor]:
    """Rows [B, G, S, T, E] and columns [B, G, T, E] of a relation, from what was recorded, [B, heads, T, E]."""
    if relation == QUERIES_KEYS:
        return rows.reshape(len(rows), columns.shape[1], -1, *rows.shape[2:]), columns
    if heads is not None:
        batch, own, length, size = rows.shape
        if own * size % heads:
            raise BoomspecError(f"{heads} relation heads do not divide the {own * size} {relation[0]} of a token")
        rows = rows.transpose(1, 2).reshape(batch, length, heads, -1).transpose(1, 2)
    return rows.unsqueeze(2), rows


def _attention_blocks(
    term: AttentionLoss,
    sides: Sequence[tuple[Tensor, Tensor]],
    frames: Sequence[Any],
    scales: Sequence[float],
    has_label_BT: Tensor,
    tile: int,
) -> Iterator[Block]:
    (rows, _), (teacher_rows, _) = sides
    if rows.shape != teacher_rows.shape:
        raise BoomspecError(
            f"the attention of student and teacher have other heads ({tuple(rows.shape[1:])} and "
            f"{tuple(teacher_rows.shape[1:])}: heads, those that share them, positions, size)"
        )
    batch, groups, shared, length, _ = rows.shape
    many = max(1, tile // length)  # rows at once, of all heads
    of_head = min(many, length)
    of_shared = max(1, min(shared, many // length))
    of_groups = max(1, min(groups, many // (length * shared)))

    def value(
        weights_R: Tensor, allowed_RT: Tensor, rows: Tensor, columns: Tensor, others: Tensor, their_columns: Tensor
    ) -> Tensor:
        scores, teacher_scores = (
            (r.float() @ c.float().unsqueeze(1).transpose(-1, -2) * scale).flatten(0, 1)
            for r, c, scale in zip((rows, others), (columns, their_columns), scales, strict=True)
        )
        values_HR = term.scores_formula(scores, teacher_scores, allowed_RT)
        return (values_HR * weights_R).sum() / (groups * shared)

    for sequence in range(batch):
        if not has_label_BT[sequence].any():
            continue
        weights_T = has_label_BT[sequence].to(rows.device, torch.float32, non_blocking=True)
        for start in range(0, length, of_head):
            part = slice(start, start + of_head)
            allowed_RT = frames[0].allowed(sequence, part, length, rows.device)
            allowed_RT = allowed_RT & frames[1].allowed(sequence, part, length, rows.device)
            function = partial(value, weights_T[part], allowed_RT)
            for group in range(0, groups, of_groups):
                of_columns = (sequence, slice(group, group + of_groups))
                for head in range(0, shared, of_shared):
                    of_rows = (*of_columns, slice(head, head + of_shared), part)
                    yield function, [(0, of_rows), (1, of_columns), (2, of_rows), (3, of_columns)]


def relation_sum(
    term: RelationLoss,
    student_BTD: Tensor,
    teacher_BTD: Tensor,
    has_label_BT: Tensor,
    trained: Mapping[str, Tensor],
) -> Tensor:
    """The sum over sequences of their loss, each times the number of its positions that have a label."""

    def value(count: int, student_PD: Tensor, teacher_PD: Tensor, *parameters: Tensor) -> Tensor:
        of_pair = dict(zip(trained, parameters, strict=True))
        return count * term.formula(student_PD.float(), teacher_PD.float(), **of_pair)

    def blocks() -> Iterator[Block]:
        whole = [(2 + number, ...) for number in range(len(trained))]
        for sequence, has_label_T in enumerate(has_label_BT):
            index_N = has_label_T.nonzero().squeeze(-1)
            if (count := len(index_N)) < 2:
                continue
            taken = min(term.positions, count)
            index_P = index_N[torch.arange(taken, device=index_N.device) * count // taken].to(student_BTD.device)
            yield partial(value, count), [(0, (sequence, index_P)), (1, (sequence, index_P)), *whole]

    return sum_of_blocks([student_BTD, teacher_BTD, *trained.values()], blocks())
