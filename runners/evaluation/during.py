"""Measure the held-out loss while a student is trained: its own, and that of sizes which are made with it as it is.

A size shares the weights of teacher and student in memory (`runners/modeling/rewired.py`), so that it is at every step
what interpolation would make of the student of that step; weights that are fitted at seams it does not have. Models are
run without gradients, between the gradients and the update of a step, and nothing is drawn at random: the training
comes out the same, bit for bit, whether it is measured or not.

The numbers are columns of the metrics: "held_out.student" and "held_out.24 layers", nats per token, with the weights in
front of the row's step. After the last step there is a row of these columns alone.

The windows are those of `runners/evaluation/held_out.py`, as many as there are in `max_tokens`. Precision and kernels
are those of the training: an evaluation of the stored student in bf16 gives another number in the third digit or so.

Shapes: W windows, B windows at a time, T positions.
"""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import STUDENT, TEACHER, Owner, teacher_layers
from boomspec.core.tasks import During, Recipe
from boomspec.core.tasks.training import HELD_OUT
from boomspec.models.facts import read_facts
from runners.data.tokens import TokenStream
from runners.evaluation.held_out import token_losses, windows_of
from runners.modeling.hidden_states import LMHead, trunk
from runners.modeling.rewired import rewired
from runners.runtime.device import autocast, device
from runners.training.losses import NO_LABEL
from runners.training.parallel import with_checkpointing_or_compile
from runners.training.process_group import ALONE, ProcessGroup


class HeldOutDuring:
    """The losses of a training. `folders`: of the models, whose headers say what their tensors are.

    Raises BoomspecError where there is no held-out text, or no teacher for the sizes.
    """

    def __init__(
        self,
        during: During,
        recipe: Recipe,
        text: Path,  # a token artifact
        models: Mapping[Owner, Any],  # the student, and the teacher where it is there
        folders: Mapping[Owner, Path],
        *,
        rows_at_once: int,
        group: ProcessGroup = ALONE,
    ) -> None:
        self._during, self._recipe, self._rows, self._group = during, recipe, rows_at_once, group
        if during.sizes and TEACHER not in models:
            raise BoomspecError("the held-out loss of sizes is measured with their teacher, which is not there")
        self._windows_WS, self._labels_WT = _windows(text, during, recipe)
        facts = {owner: read_facts(folder) for owner, folder in folders.items()}
        student = facts[STUDENT]
        # A model of its own modules: those of the student may be compiled, or wrapped.
        whole = teacher_layers(range(student.count))
        own = rewired({TEACHER: models[STUDENT]}, {TEACHER: student}, whole, tied=student.tied)
        self._models = {"student": own}
        names = Counter(f"{len(size.plan)} layers" for size in during.sizes)
        for number, size in enumerate(during.sizes):
            name = f"{len(size.plan)} layers"
            name = name if names[name] == 1 else f"{name} ({number + 1})"
            self._models[name] = rewired(models, facts, size.plan, tied=size.tied)
        self._held = ExitStack()
        for model in self._models.values():
            model.eval()
            self._held.enter_context(with_checkpointing_or_compile(model))

    def row(self, step: int) -> dict[str, float]:
        """The columns in front of a step; none where it is not measured there."""
        return self._losses() if step % self._during.every == 0 else {}

    def last_row(self) -> dict[str, float]:
        """The columns after the last step."""
        return self._losses()

    def close(self) -> None:
        self._models.clear()
        self._held.close()

    def _losses(self) -> dict[str, float]:
        """A collective: each worker of a group measures its share of the windows."""
        first, windows_WS = self._group.own_rows(self._windows_WS)
        labels_WT = self._labels_WT[first : first + len(windows_WS)]
        found, count = dict[str, float](), int((self._labels_WT >= 0).sum())
        for name, model in self._models.items():
            head, sums = LMHead(model), [torch.zeros(0, dtype=torch.float64)]
            for start in range(0, len(windows_WS), self._rows):
                rows_BS = windows_WS[start : start + self._rows].to(device())
                labels_BT = labels_WT[start : start + self._rows].to(device())
                # What is cast here is used once, and must not serve the training, which needs its graph.
                with torch.no_grad(), autocast(self._recipe.precision, cache=False):
                    losses_BT = token_losses(head, trunk(model, rows_BS[:, :-1]), labels_BT)
                sums.append(losses_BT.double().sum(1).cpu())
            every_W = self._group.all_rows(torch.cat(sums), first, len(self._windows_WS))
            found[HELD_OUT + name] = float(every_W.sum()) / count
        return found


def _windows(text: Path, during: During, recipe: Recipe) -> tuple[Tensor, Tensor]:
    """windows_WS, S = T + 1, of held-out text, and labels_WT. A shorter last one is padded at its end."""
    split, length = TokenStream(text, "held_out"), recipe.sequence_length
    tokens = split.tokens[: during.max_tokens]
    if len(tokens) > 1:
        labelled = None if split.labelled is None else split.labels(0, len(tokens))
        shape = {"sequence_length": length, "batch_size": 1}
        begins = split.begins if recipe.isolate else None
        found = windows_of(tokens, eos=split.eos, prefix=split.prefix, labelled=labelled, begins=begins, **shape)
        windows_WS, labels_WT = (
            torch.cat([pad(row, (0, size - row.shape[1]), value=value) for row in rows])
            for rows, size, value in zip(found, (length + 1, length), (split.eos, NO_LABEL), strict=True)
        )
        if int((labels_WT >= 0).sum()):
            return windows_WS, labels_WT
    raise BoomspecError(f"{split.file}: there is no text to measure", hint="hold out more of the data")
