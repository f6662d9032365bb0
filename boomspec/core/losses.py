"""The terms of the distillation loss: their fields. Their formulas are in `runners/training/losses.py`.

    L = w_ce * CE + w_kl * T^2 * KL(teacher || student) + w_cos * mean over pairs of (1 - cos)

(arXiv 2510.05064). Every term is the sum over the positions that have a label, divided by the number
of such positions in the whole effective batch; the cosine term is also divided by the number of pairs.
"""

from typing import Annotated

from pydantic import Field

from boomspec.core.types import Number, Strict

Weight = Annotated[Number, Field(gt=0, description="Factor of this term in the total loss.")]


class CrossEntropy(Strict):
    """Negative log-likelihood of the next token under the student, in nats per token."""

    weight: Weight = 1.0


class KL(Strict):
    """`T^2 * KL(teacher || student)` of the next-token distributions at temperature T, in nats per token."""

    weight: Weight = 0.1
    temperature: Annotated[Number, Field(gt=0, description="Both logits are divided by it before the softmax.")] = 1.0


class HiddenCosine(Strict):
    """`1 - cos(student state, teacher state)`, averaged over the pairs of aligned hidden states.

    Student layer i's output is paired with the teacher's output at the end of block i.
    """

    weight: Weight = 2.0
    embedding: Annotated[bool, Field(description="Also align the embedding output (a frozen one never counts).")] = True
    final_norm: Annotated[
        bool, Field(description="Take the last pair after the final norm (else the raw output of the last layer).")
    ] = True


class Losses(Strict):
    """The terms of the distillation loss; the key is the kind. A term set to null is left out."""

    cross_entropy: Annotated[
        CrossEntropy | None, Field(description="On the text itself.", examples=[{"weight": 1.0}])
    ] = None
    kl: Annotated[
        KL | None, Field(description="On the teacher's distribution.", examples=[{"weight": 0.1, "temperature": 1.0}])
    ] = None
    hidden_cosine: Annotated[
        HiddenCosine | None,
        Field(description="On the teacher's hidden states, layer by layer.", examples=[{"weight": 2.0}]),
    ] = None

    def terms(self) -> dict[str, Strict]:
        """The terms that are switched on, by kind."""
        return {name: term for name in type(self).model_fields if (term := getattr(self, name)) is not None}
