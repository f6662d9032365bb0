"""On-policy distillation: in some of its steps a student is trained on what it has written itself (arXiv 2306.13649).

    batch(step) -> tokens [B, T + 1] of the text; or [B, P + N], prompts without labels and what the student wrote

Which steps these are is a function of the seed and the step; what is written, of the seed, the step, the row and the
weights that the student has at the beginning of the step. So a training that was interrupted goes on to the same bits.
Rows are written with the micro batch's size, each worker its own; all get all of them.

The teacher reads what the student wrote, and losses that read the teacher are computed on it. Those that do not are
left out of such a step: the cross entropy of a model with its own samples has no gradient in expectation.

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
from runners.modeling.labels import inputs_of, without_label
from runners.modeling.sampling import Ends, Writer, uniforms
from runners.runtime.device import autocast, device
from runners.training.moment import Moment
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
        tokens_BT = self.group.all_rows(mine_BT, first, len(prompts_BP)).numpy()
        prompted = prompts_BP.shape[1]
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

    def loss(self, loss: _Loss, losses: Losses) -> _Loss:
        """The loss of a micro batch; where the student wrote it, without the terms that read no teacher."""
        silent = {kind: 0.0 for kind, term in losses.terms().items() if not term.reads_teacher}

        def of_batch(inputs_BT: Tensor, labels_BT: Tensor, count: int, moment: Moment) -> Any:
            if self.is_written(moment.step):
                moment = replace(moment, weights={**moment.weights, **silent})
            return loss(inputs_BT, labels_BT, count, moment)

        return of_batch

    def row(self, step: int) -> dict[str, int]:
        """What the metrics say of a step: whether the student wrote its batch."""
        return {"on_policy": int(self.is_written(step))}


def _blocks(rows: Tensor, size: int) -> list[tuple[int, Tensor]]:
    return [(start, rows[start : start + size]) for start in range(0, len(rows), size)]
