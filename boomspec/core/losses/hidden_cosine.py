"""The cosine distance of the student's hidden states from the teacher's."""

from typing import TYPE_CHECKING

from boomspec.core.losses.pairs import Projection
from boomspec.core.losses.state_loss import StateLoss
from boomspec.core.losses.weight import Weight

if TYPE_CHECKING:
    from torch import Tensor


class HiddenCosine(StateLoss):
    """`1 - cos(student state, teacher state)`, averaged over the pairs of aligned hidden states."""

    kind, title, unit = "hidden_cosine", "hidden cosine", "1 - cosine"
    reads = ("states", "teacher_states")
    description = "On the teacher's hidden states, layer by layer."
    usual = True
    equation, source = "1 - cos(x, y)", "arXiv 1910.01108, 2510.05064"
    elsewhere = ("hs_cosine", "cosine", "cos")
    working = 1  # the teacher's state in fp32, normalised
    kept = 1

    weight: Weight = 2.0
    projection: Projection = None

    def formula(self, student_BTD: "Tensor", teacher_BTD: "Tensor") -> "Tensor":
        """1 - cos(student state, teacher state) at each of B x T positions, for one pair."""
        return 1 - cosine(student_BTD, teacher_BTD)


def cosine(one_BTD: "Tensor", other_BTD: "Tensor") -> "Tensor":
    """Cosine similarity of two hidden states at each of B x T positions."""
    from torch.nn.functional import cosine_similarity

    return cosine_similarity(one_BTD.float(), other_BTD.float(), dim=-1)
