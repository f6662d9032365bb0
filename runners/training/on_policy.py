"""On-policy distillation: in some of its steps a student is trained on what it has written itself (arXiv 2306.13649).

    batch(step) -> tokens [B, T + 1] of the text; or [B, P + N], prompts without labels and what the student wrote

Which steps these are is a function of the seed and the step; what is written, of the seed, the step, the row and the
weights that the student has at the beginning of the step. So a training that was interrupted goes on to the same bits.
Rows are written with the micro batch's size, each worker its own; all get all of them.

The teacher reads what the student wrote, and losses that read the teacher are computed on it. Those that do not are
left out of such a step: the cross entropy of a model with its own samples has no gradient in expectation.

With `long_range` the other half of the gradient of the reverse KL of sequences is added (`policy_gradient.py`).

With `teacher_share` a the next token comes from a x teacher + (1 - a) x student, so that a weak student does not run
away from text (teacher-mixed sampling, arXiv 2306.08543, equation 6).

Shapes: B sequences, P tokens of a prompt, N tokens that are written.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from boomspec.core.losses import Losses
from boomspec.core.tasks import OnPolicy, Recipe
from runners.modeling.hidden_states import FINAL_NORM, LMHead, capture
from runners.modeling.labels import inputs_of, without_label
from runners.modeling.sampling import Ends, Writer, uniforms
from runners.runtime.device import autocast, device
from runners.training.moment import Moment
from runners.training.policy_gradient import credits, log_probabilities, long_range
from runners.training.process_group import ProcessGroup

_CHOICE = 0x63686F6F  # apart from the random numbers that the same seed gives for other things
_Loss = Callable[[Tensor, Tensor, int, Moment], Any]


@lru_cache(1 << 10)
def is_on_policy(seed: int, step: int, share: float) -> bool:
    """Whether the student writes the batch of a step: of all steps so large a share does."""
    return bool(np.random.Generator(np.random.PCG64([seed, _CHOICE, step])).random() < share)


@dataclass
class StudentText:
    """The batches of a student that writes: `draw` are those of the text."""

    settings: OnPolicy
    recipe: Recipe
    draw: Callable[[int], npt.NDArray[np.int64]]
    ends: Ends
    student: Any
    teacher: Any
    group: ProcessGroup
    rows_at_once: int
    _credits: tuple[int, Tensor] | None = None  # of this worker's rows, whose first has this number

    def is_written(self, step: int) -> bool:
        return is_on_policy(self.recipe.seed, step, self.settings.share)

    def batch(self, step: int) -> npt.NDArray[np.int64]:
        """The tokens of one optimiser step. A collective where the student writes them."""
        text_BT = self.draw(step)
        if not self.is_written(step):
            return text_BT
        prompts_BP = self._prompts(torch.from_numpy(text_BT))
        first, own = self.group.own_rows(prompts_BP)
        parts = [self._written(step, first + start, rows) for start, rows in _blocks(own, self.rows_at_once)]
        width = prompts_BP.shape[1] + self.settings.new_tokens
        mine_BT = torch.cat(parts) if parts else torch.zeros((0, width), dtype=torch.int64)
        prompted = prompts_BP.shape[1]
        if self.settings.long_range is not None:
            self._credits = first, self._credited(mine_BT, prompted)
        tokens_BT = self.group.all_rows(mine_BT, first, len(prompts_BP)).numpy()
        return np.concatenate([without_label(tokens_BT[:, :prompted]), tokens_BT[:, prompted:]], axis=1)

    def _prompts(self, text_BT: Tensor) -> Tensor:
        if self.settings.prompt_tokens:
            return inputs_of(text_BT[:, : max(self.settings.prompt_tokens, len(self.ends.prefix))])
        return torch.tensor(self.ends.start).expand(len(text_BT), -1)

    def _written(self, step: int, first: int, prompts_BP: Tensor) -> Tensor:
        count, share = self.settings.new_tokens, self.settings.teacher_share or 0.0
        models = [(self.student, 1.0 - share), *([(self.teacher, share)] if share else [])]
        numbers = range(first, first + len(prompts_BP))
        drawn_BN = np.stack([uniforms(self.recipe.seed, step, row, count=count) for row in numbers])
        # What is cast of the weights goes with the context: they are others in the next step.
        with torch.no_grad(), autocast(self.recipe.precision):
            tokens_BT = Writer(models, self.settings.sampling, self.ends).write(
                prompts_BP.to(device()), torch.from_numpy(drawn_BN).to(device())
            )
        return tokens_BT.cpu()

    def _credited(self, tokens_BT: Tensor, prompted: int) -> Tensor:
        """credits_BT of the positions of own rows, in whose places the labels are; 0 at prompts."""
        share, parts = self.settings.teacher_share or 0.0, [torch.zeros((0, tokens_BT.shape[1] - 1))]
        for _, rows_BT in _blocks(tokens_BT, self.rows_at_once):
            with autocast(self.recipe.precision):
                of_student, of_teacher = (
                    log_probabilities(model, rows_BT.to(device()), prompted) for model in (self.student, self.teacher)
                )
            # As in `TokenStream.unlabelled`: what a text begins with is no label, and was not drawn.
            drawn_BN = ~torch.isin(rows_BT[:, prompted:], torch.tensor(self.ends.unlabelled, dtype=torch.int64))
            credits_BN = credits(of_student, of_teacher, share, drawn_BN)
            parts.append(torch.nn.functional.pad(credits_BN, (prompted - 1, 0)).float())
        return torch.cat(parts)

    def _credits_of(self, first_row: int, rows: int) -> Tensor:
        """Of a micro batch; it has none where it does not count (`ProcessGroup.micro_batches`)."""
        assert self._credits is not None
        first, own_BT = self._credits
        found_BT = own_BT[max(0, first_row - first) :][:rows]
        return found_BT if len(found_BT) == rows and first_row >= first else own_BT.new_zeros((rows, own_BT.shape[1]))

    def loss(self, loss: _Loss, losses: Losses) -> _Loss:
        """The loss of a micro batch; where the student wrote it, without the terms that read no teacher."""
        single, more = losses.terms().get("reverse_kl"), self.settings.long_range
        silent = {kind: 0.0 for kind, term in losses.terms().items() if not term.reads_teacher}

        def of_batch(inputs_BT: Tensor, labels_BT: Tensor, count: int, moment: Moment) -> Any:
            if self.is_written(moment.step):
                moment = replace(moment, weights={**moment.weights, **silent})
            if single is None or more is None:
                return loss(inputs_BT, labels_BT, count, moment)
            with capture(self.student, [FINAL_NORM]) as states:
                total, terms = loss(inputs_BT, labels_BT, count, moment)
            term = total.new_zeros(())
            if self.is_written(moment.step):
                credits_BT = self._credits_of(moment.first_row, len(labels_BT))
                term = long_range(LMHead(self.student), states[FINAL_NORM], labels_BT, credits_BT, count)
                total = total + more * moment.weight(single) * term
            return total, {**terms, "long_range": term.detach()}

        return of_batch

    def row(self, step: int) -> dict[str, int]:
        """What the metrics say of a step: whether the student wrote its batch."""
        return {"on_policy": int(self.is_written(step))}


def _blocks(rows: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]
