"""Search which blocks to patch at each size: the sets with the smallest KL to the teacher (arXiv 2607.08170).

    klpatch   greedy: to the best set of one size the block is added that leaves the smallest KL; m(m+1)/2 candidates
              for m blocks, beside the student
    beam      every extension of the `width` best sets of one size is a candidate of the next
    exact     every subset is a candidate

A candidate is the model in which the blocks of its set are the teacher's and all other layers the student's,
singletons among them; all blocks together are the teacher itself, whose KL is 0 and is not computed. Of equal
candidates the one with the lower block index comes first.

Shapes: B sequences, T positions, N positions of any sequence, D hidden size, V vocabulary.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import combinations
from math import comb
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from torch import Tensor

from boomspec.core import layers
from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, ends_of
from boomspec.core.losses.kl import kl_divergence
from boomspec.core.tasks import PatchOrder
from boomspec.core.work_sizes import HELD_LOGITS, SEARCHED_LOGITS
from runners.modeling.hidden_states import LMHead, decoder_layers
from runners.modeling.shared_forward import Report, SharedForward

Blocks = tuple[int, ...]  # a set of patched blocks, ascending


def search_patch_order(
    choice: PatchOrder, *, teacher: Any, student: Any, batches: Sequence[Tensor], report: Report = lambda *_: None
) -> dict[str, Any]:
    """The content of search.json. `batches`: calibration tokens_BT, all of one length.

    The values of the two sequential orders are neither chosen from nor counted. `layer_forwards` counts layers that
    were run on all batches, the teacher's own among them; `..._unshared` is what they would be if every candidate were
    run from its first layer to its last. Raises BoomspecError where teacher and student do not fit together or `exact`
    has too many blocks.
    """
    available = layers.patchable(choice.kept, len(decoder_layers(teacher)))
    if choice.method == "exact" and (refusal := layers.refuse_exact(len(available))):
        raise BoomspecError(refusal, hint=layers.EXACT_HINT)
    _check_pair(choice, teacher, student)
    candidates = _Candidates(choice, available, {TEACHER: teacher, STUDENT: student}, batches)
    sizes = range(len(available) + 1)
    if choice.method == "exact":
        every = [sets for size in sizes for sets in combinations(available, size)]
        candidates.evaluate(every, lambda done: report(done, len(every)))
    else:
        width = 1 if choice.method == "klpatch" else choice.width or 1
        # Some extensions of a beam are equal, so a beam may end below this.
        total = 1 + sum(min(width, comb(len(available), size)) * (len(available) - size) for size in sizes)
        new: list[Blocks] = [()]
        beam = new
        for size in sizes[1:]:  # all extensions of the `width` best sets of the size before
            new += sorted({tuple(sorted((*blocks, b))) for blocks in beam for b in available if b not in blocks})
            candidates.evaluate(new, lambda done: report(done, total), extended=True)
            new, beam = [], candidates.ranked(size)[:width]
    values = dict(candidates.values)
    report(len(values), len(values))
    runs = candidates.forward.layer_forwards, candidates.forward.unshared
    best = [candidates.ranked(size)[0] for size in sizes]
    # To compare with: they are often surprisingly good.
    sets = {
        name: [tuple(sorted(s)) for s in layers.prefixes(order(list(available)))]
        for name, order in layers.ORDERS.items()
    }
    candidates.evaluate(sorted({blocks for order in sets.values() for blocks in order} - values.keys()))
    return {
        "sets": _in_order(best),
        "values": [values[blocks] for blocks in best],
        "candidates": [{"patched": list(blocks), "value": value} for blocks, value in values.items()],
        "layer_forwards": runs[0],
        "layer_forwards_unshared": runs[1],
        "sequential": {name: [candidates.values[blocks] for blocks in order] for name, order in sets.items()},
    }


class _Candidates:
    """What has been evaluated: the value of each set. Holds the calibration text's states of the teacher."""

    def __init__(
        self, choice: PatchOrder, available: Sequence[int], models: Mapping[Owner, Any], batches: Sequence[Tensor]
    ) -> None:
        self.values: dict[Blocks, float] = {}
        self.forward = SharedForward(models, batches)
        self._kept, self._layers, self._all = choice.kept, len(decoder_layers(models[TEACHER])), tuple(available)
        hidden: list[Tensor] = []
        self.forward.run([self._plan(self._all)], lambda _number, _plan, hidden_BTD: hidden.append(hidden_BTD))
        self._divergence = Divergence(self.forward.parts[TEACHER].head, hidden, choice)

    def evaluate(
        self, sets: Sequence[Blocks], report: Callable[[float], None] = lambda done: None, *, extended: bool = False
    ) -> None:
        """Evaluate sets that have no value yet. `extended`: sets with one block more come in the next call."""
        plans = {self._plan(blocks): blocks for blocks in sets if blocks != self._all}
        measured: dict[LayerPlan, list[Tensor]] = {plan: [] for plan in plans}
        before = len(self.values)

        def visit(number: int, plan: LayerPlan, hidden_BTD: Tensor) -> None:
            head = self.forward.parts[ends_of(plan)[1]].head
            measured[plan].append(self._divergence.of_sequences(number, head, hidden_BTD))

        self.forward.run(
            plans,
            visit,
            keep=self._branches(plans.values()) if extended else (),
            done=lambda share: report(before + share * len(sets)),
        )
        self.values |= {blocks: self._divergence.mean(measured[plan]) for plan, blocks in plans.items()}
        if self._all in sets:
            self.values[self._all] = 0.0
            self.forward.unshared += self._layers

    def ranked(self, size: int) -> list[Blocks]:
        """The sets of `size` blocks, best first."""
        return sorted((blocks for blocks in self.values if len(blocks) == size), key=lambda b: (self.values[b], b))

    def _plan(self, blocks: Blocks) -> LayerPlan:
        owners = [blocks == self._all or i in blocks for i in range(len(self._kept))]
        return layers.plan_of(self._kept, self._layers, owners)

    def _branches(self, sets: Iterable[Blocks]) -> Iterator[LayerPlan]:
        """For each set and each block that it lacks: the layers in front of that block."""
        for blocks in sets:
            plan, length = self._plan(blocks), 0
            for i, block in enumerate(layers.blocks(self._kept, self._layers)):
                if i in self._all and i not in blocks:
                    yield plan[:length]
                length += len(block) if i in blocks else 1


def _in_order(sets: Sequence[Blocks]) -> list[list[int]]:
    """Each set in the order of patching, where it holds the one before it; else ascending."""
    ordered: list[list[int]] = [[]]
    for blocks in sets[1:]:
        added = [b for b in blocks if b not in ordered[-1]]
        ordered.append([*ordered[-1], *added] if len(added) == 1 else list(blocks))
    return ordered


def _check_pair(choice: PatchOrder, teacher: Any, student: Any) -> None:
    if (count := len(decoder_layers(student))) != len(choice.kept):
        raise BoomspecError(f"the student has {count} layers, but {len(choice.kept)} are kept of the teacher")
    types = teacher.config.model_type, student.config.model_type
    if types[0] != types[1]:
        raise BoomspecError(f"a {types[0]} and a {types[1]} model cannot be interpolated")
    shapes = [tuple(model.get_input_embeddings().weight.shape) for model in (teacher, student)]
    if shapes[0] != shapes[1]:
        raise BoomspecError(f"the models' embeddings differ in shape: {shapes[0]} and {shapes[1]}")


class Divergence:
    """KL between the next-token distributions of candidates and teacher, from the teacher's last hidden states.

    The teacher's distributions are held where they fit in `HELD_LOGITS`; where they do not, its hidden states are held
    and its head is applied again, chunk by chunk: then no more than a chunk of logits exists.

    direction   teacher_to_candidate: KL(teacher || candidate); candidate_to_teacher: KL(candidate || teacher)
    positions   all of them, or the last one of each sequence
    reduction   token_mean: the mean over all positions of all sequences; sequence_max: the largest of each
                sequence, then the mean of those
    """

    def __init__(self, head: LMHead, hidden: Sequence[Tensor], choice: PatchOrder) -> None:
        self._rows = max(1, SEARCHED_LOGITS // head.vocabulary)  # positions of a chunk
        self._head, self._choice = head, choice
        self._hidden = [self._measured(hidden_BTD) for hidden_BTD in hidden]
        count = sum(hidden_BTD.shape[0] * hidden_BTD.shape[1] for hidden_BTD in self._hidden)
        self._held: list[list[tuple[Tensor, Tensor]]] | None = None
        if 2 * count * head.vocabulary * torch.float32.itemsize <= HELD_LOGITS:
            self._held = [list(self._teacher(number)) for number in range(len(hidden))]

    def of_sequences(self, number: int, head: LMHead, hidden_BTD: Tensor) -> Tensor:
        """What batch `number` adds to `mean`, per sequence in fp64. `head` and hidden_BTD are a candidate's."""
        candidate_BTD = self._measured(hidden_BTD)
        teacher = self._teacher(number) if self._held is None else iter(self._held[number])
        values = []
        for log_q_NV, (log_p_NV, p_NV) in zip(self._log_probs(head, candidate_BTD), teacher, strict=True):
            if self._choice.direction == "teacher_to_candidate":
                values.append(kl_divergence(log_p_NV, log_q_NV, p_NV=p_NV))
            else:
                values.append(kl_divergence(log_q_NV, log_p_NV, p_NV=log_q_NV.exp()))
        values_BT = torch.cat(values).double().view(candidate_BTD.shape[:2]).cpu()
        return values_BT.sum(1) if self._choice.reduction == "token_mean" else values_BT.amax(1)

    def mean(self, of_sequences: Sequence[Tensor]) -> float:
        total = torch.cat(list(of_sequences))
        positions = 1 if self._choice.reduction == "sequence_max" else self._hidden[0].shape[1]
        return float(total.sum() / (len(total) * positions))

    def _measured(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD if self._choice.positions == "all" else hidden_BTD[:, -1:]

    def _teacher(self, number: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The teacher's log-probabilities and probabilities for batch `number`, some positions at a time."""
        for log_probs_NV in self._log_probs(self._head, self._hidden[number]):
            yield log_probs_NV, log_probs_NV.exp()

    def _log_probs(self, head: LMHead, hidden_BTD: Tensor) -> Iterator[Tensor]:
        """Log-probabilities of all positions in fp32, some positions at a time."""
        for hidden_ND in hidden_BTD.flatten(0, 1).split(self._rows):  # type: ignore[no-untyped-call]  # of torch
            yield F.log_softmax(head(hidden_ND).float(), dim=-1)
