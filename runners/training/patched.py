"""The larger models that a student is trained in: layers of its teacher stand in the place of some of its own.

Which model a step trains follows from the seed and the number of the step (`boomspec.core.tasks.training.Patched`), so
an interrupted training goes on with the same ones, and how a batch is cut changes nothing. The teacher's layers, and
its embedding and head where they are the model's ends, are shared and stay what they are. Losses that read logits are
those of the whole model; those that read states compare the states behind the student's layers, each with the same
state of the teacher as in the student, and take the mean over the pairs that are there; where there are none, the
metrics do not have the loss.
"""

from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from transformers import PreTrainedModel

from boomspec.core.layers import STUDENT, TEACHER, LayerPlan, Owner, ends_of
from boomspec.core.losses.loss import Read
from boomspec.core.tasks.training import Patched
from boomspec.models.facts import read_facts
from runners.modeling.attention import AttentionPart
from runners.modeling.hidden_states import EMBEDDING, FINAL_NORM
from runners.modeling.rewired import rewired
from runners.training.distillation import Alignment
from runners.training.parallel import with_checkpointing_or_compile
from runners.training.sites import Site, Where, is_teachers


class PatchedModels:
    """The models by their layer plans, each made when it is first asked for.

    `folders`: of teacher and student, whose headers say what their tensors are. `checkpointing`: as of the student.
    """

    def __init__(
        self,
        patched: Patched,
        kept: tuple[int, ...],
        models: Mapping[Owner, PreTrainedModel],
        folders: Mapping[Owner, Path],
        *,
        seed: int,
        checkpointing: bool = False,
    ) -> None:
        self._patched, self._kept, self._models, self._seed = patched, kept, models, seed
        self._facts = {owner: read_facts(folder) for owner, folder in folders.items()}
        self._checkpointing, self._held = checkpointing, ExitStack()
        self._made: dict[LayerPlan, PreTrainedModel] = {}

    def plan_of(self, step: int) -> LayerPlan | None:
        """What a step trains; None: the student itself."""
        return self._patched.drawn(self._seed, step, self._kept, self._facts[TEACHER].count)

    def row(self, step: int) -> dict[str, int]:
        """What the metrics say of a step: whether its losses are those of a larger model, not of the student."""
        return {"patched": int(self.plan_of(step) is not None)}

    def model(self, plan: LayerPlan) -> PreTrainedModel:
        if plan not in self._made:
            first, last = ends_of(plan)
            tied = first == last and self._facts[first].tied
            made = rewired(self._models, self._facts, plan, tied=tied).eval()
            self._held.enter_context(with_checkpointing_or_compile(made, checkpointing=self._checkpointing))
            self._made[plan] = made
        return self._made[plan]

    def close(self) -> None:
        self._made.clear()
        self._held.close()


def in_plan(aligned: Alignment, plan: LayerPlan) -> Alignment:
    """The pairs of which a model of this plan has all that is the student's, with the places where it has it."""
    layers = {layer.index: place for place, layer in enumerate(plan) if layer.owner == STUDENT}
    first, last = ends_of(plan)

    def placed(site: Site) -> Site | None:
        found: dict[Read, Where] = {}
        for read, where in site.items():
            if is_teachers(read):
                found[read] = where
            elif isinstance(where, int):
                if where not in layers:
                    return None
                found[read] = layers[where]
            else:
                assert not isinstance(where, AttentionPart)  # such losses are refused
                if {EMBEDDING: first, FINAL_NORM: last}[where] != STUDENT:
                    return None
                found[read] = where
        return found

    sites = {
        kind: [site for one in of_term if (site := placed(one)) is not None] for kind, of_term in aligned.sites.items()
    }
    return Alignment(aligned.losses, sites)
