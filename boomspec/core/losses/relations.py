"""Losses on relations between positions: RKD, SPKD, correlation congruence, NST, CKA, and attention transfer.

`relation_loss.py` says which positions are related, and what the papers relate. Shapes: P positions of one sequence, D
hidden size.
"""

from math import exp, factorial
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from boomspec.core.losses.pairs import PairShape
from boomspec.core.losses.relation_loss import Positions, RelationLoss
from boomspec.core.types import Number

if TYPE_CHECKING:
    from torch import Tensor

_TINY = 1e-12  # a square, or its root, below it counts as it


class RKD(RelationLoss):
    """Relational distillation (arXiv 1904.05068): smooth L1 between the distances of positions, and between angles.

    Distances are divided by their mean over the sequence (eq. 5, 6). The angle at j of i, j, k is the cosine of x_i -
    x_j and x_k - x_j (eq. 7, 8). Means are over all pairs, and all triples, as in the authors' code: those with equal
    positions are 0. Triples cost the cube of the positions: 64 by default.
    """

    kind, title, unit = "rkd", "relational distillation", "smooth L1"
    reads = ("states", "teacher_states")
    description = "On the distances and angles between the teacher's hidden states of a sequence."
    equation, source = "a smooth L1 of distances + b smooth L1 of angles", "arXiv 1904.05068"
    elsewhere = ("relational",)
    power, working = 3, 8

    positions: Positions = 64
    distance: Annotated[Number, Field(ge=0, description="Factor of the distances.")] = 1.0
    angle: Annotated[Number, Field(ge=0, description="Factor of the angles.")] = 2.0

    def model_post_init(self, _: object) -> None:
        if self.distance == self.angle == 0:
            raise ValueError("distances and angles both count 0: set the term to null to leave it out")

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """One number: the factors times the means over P x P distances and P x P x P angles."""
        from torch.nn.functional import smooth_l1_loss

        edges = [states_PD.unsqueeze(0) - states_PD.unsqueeze(1) for states_PD in (student_PD, teacher_PD)]
        lengths = [_lengths(edges_PPD) for edges_PPD in edges]
        value = student_PD.new_zeros(())
        if self.distance:
            means = [d_PP.sum() / (d_PP > 0).sum().clamp(min=1) for d_PP in lengths]
            scaled = [d_PP / mean.clamp(min=_TINY) for d_PP, mean in zip(lengths, means, strict=True)]
            value = value + self.distance * smooth_l1_loss(scaled[0], scaled[1])
        if self.angle:
            directions = [
                e_PPD / d_PP.clamp(min=_TINY).unsqueeze(-1) for e_PPD, d_PP in zip(edges, lengths, strict=True)
            ]
            student_PPP, teacher_PPP = (e_PPD @ e_PPD.transpose(1, 2) for e_PPD in directions)
            value = value + self.angle * smooth_l1_loss(student_PPP, teacher_PPP)
        return value

    def pair_flops(self, shape: PairShape) -> int:
        taken = self.taken(shape)
        return 8 * taken**3 * shape.hidden // shape.length if self.angle else 0

    def block_bytes(self, shape: PairShape, tile: int) -> int:
        taken = self.taken(shape)
        # Differences and directions of both, and their gradients; angles of both, and their gradient.
        return 4 * (6 * taken**2 * shape.hidden + 4 * taken**3)


class SPKD(RelationLoss):
    """Similarity-preserving distillation (arXiv 1907.09682, eq. 2 to 4): the mean square between matrices x x^T.

    Each row of the matrix of products is divided by its length.
    """

    kind, title, unit = "spkd", "similarity-preserving", "squared difference"
    reads = ("states", "teacher_states")
    description = "On the similarities of the teacher's hidden states of a sequence."
    equation, source = "mean (S - R)^2 of the row-normalised x x^T, y y^T", "arXiv 1907.09682"
    elsewhere = ("sp", "similarity_preserving")

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """One number: the mean over P x P."""
        from torch.nn.functional import normalize

        student_PP, teacher_PP = (normalize(x_PD @ x_PD.T, dim=1, eps=_TINY) for x_PD in (student_PD, teacher_PD))
        return (student_PP - teacher_PP).square().mean()


class CorrelationCongruence(RelationLoss):
    """Correlation congruence (arXiv 1904.01802, eq. 6 to 8): the mean square between matrices of a Gaussian kernel.

    The kernel exp(-g |x - x'|^2) of states of length 1 is its Taylor series in their product, as far as `order`:
    sum over p of exp(-2 g) (2 g)^p / p! (x . x')^p.
    """

    kind, title, unit = "cc", "correlation congruence", "squared difference"
    reads = ("states", "teacher_states")
    description = "On the correlations, by a Gaussian kernel, of the teacher's hidden states of a sequence."
    equation, source = "mean (K(x, x') - K(y, y'))^2", "arXiv 1904.01802"
    elsewhere = ("cckd", "correlation_congruence")

    gamma: Annotated[Number, Field(gt=0, description="Of the kernel: exp(-gamma |x - x'|^2).")] = 0.4
    order: Annotated[int, Field(ge=1, le=20, description="Terms of its series beside the constant.")] = 2

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """One number: the mean over P x P."""
        student_PP, teacher_PP = (self._kernel(states_PD) for states_PD in (student_PD, teacher_PD))
        return (student_PP - teacher_PP).square().mean()

    def _kernel(self, states_PD: "Tensor") -> "Tensor":
        import torch
        from torch.nn.functional import normalize

        unit_PD = normalize(states_PD, dim=1, eps=_TINY)
        products_PP = unit_PD @ unit_PD.T
        *lower, highest = [(2 * self.gamma) ** power / factorial(power) for power in range(self.order + 1)]
        kernel_PP = torch.full_like(products_PP, highest)
        for factor in reversed(lower):  # Horner's rule
            kernel_PP = kernel_PP * products_PP + factor
        return exp(-2 * self.gamma) * kernel_PP


class NST(RelationLoss):
    """Neuron selectivity transfer (arXiv 1707.01219, eq. 5 to 8): the squared MMD between channels, as samples.

    A sample is a channel: its activations at P positions, of length 1. The kernel is (f . f')^2, with which the squared
    MMD is the square of the difference of the matrices sum f f^T / D, of P x P.
    """

    kind, title, unit = "nst", "neuron selectivity", "squared MMD"
    reads = ("states", "teacher_states")
    description = "On where in a sequence the teacher's channels are active."
    equation, source = "MMD^2 of the normalised channels, kernel (f . f')^2", "arXiv 1707.01219"
    elsewhere = ("neuron_selectivity", "mmd")

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """One number: the sum over P x P."""
        from torch.nn.functional import normalize

        channels = (normalize(states_PD, dim=0, eps=_TINY) for states_PD in (student_PD, teacher_PD))
        student_PP, teacher_PP = (f_PD @ f_PD.T / f_PD.shape[1] for f_PD in channels)
        return (student_PP - teacher_PP).square().sum()


class CKA(RelationLoss):
    """`1 - CKA` of the linear kernel (arXiv 1905.00414, eq. 3 with HSIC of eq. 2): 0 for equal similarities.

    It is the same for a student that is rotated, or scaled as a whole. With fewer positions than channels the estimate
    of CKA is biased upwards: compare its values at equal `positions` only.
    """

    kind, title, unit = "cka", "centred kernel alignment", "1 - CKA"
    reads = ("states", "teacher_states")
    description = "On the centred similarities of the teacher's hidden states of a sequence."
    equation, source = "1 - HSIC(x, y) / sqrt(HSIC(x, x) HSIC(y, y))", "arXiv 1905.00414"
    elsewhere = ("linear_cka",)

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """One number, from P x P similarities of states whose mean over the positions is taken away."""
        centred = (states_PD - states_PD.mean(dim=0) for states_PD in (student_PD, teacher_PD))
        student_PP, teacher_PP = (x_PD @ x_PD.T for x_PD in centred)
        # Of length 1: their product is CKA, and 1 - CKA half the square of their difference, which cancels nothing.
        student_PP, teacher_PP = (x_PP / x_PP.norm().clamp(min=_TINY) for x_PP in (student_PP, teacher_PP))
        difference_PP: Tensor = student_PP - teacher_PP
        return difference_PP.square().sum() / 2


class AttentionTransfer(RelationLoss):
    """Attention transfer (arXiv 1612.03928, eq. 2): the square between maps of activation, each of length 1.

    The map has one number for each position: the mean over channels of the state's squares. The paper's positions are
    those of an image; the square is averaged over them, as in the authors' code.
    """

    kind, title, unit = "attention_transfer", "attention transfer", "squared difference"
    reads = ("states", "teacher_states")
    description = "On where in a sequence the teacher's hidden states are large."
    equation, source = "mean (a / |a| - b / |b|)^2, a = mean x^2 of a position", "arXiv 1612.03928"
    elsewhere = ("at",)
    power, working = 1, 6

    def formula(self, student_PD: "Tensor", teacher_PD: "Tensor", **trained: "Tensor") -> "Tensor":
        """One number: the mean over P."""
        from torch.nn.functional import normalize

        student_P, teacher_P = (
            normalize(states_PD.square().mean(dim=1), dim=0, eps=_TINY) for states_PD in (student_PD, teacher_PD)
        )
        return (student_P - teacher_P).square().mean()

    def products(self) -> int:
        return 0


def _lengths(edges_PPD: "Tensor") -> "Tensor":
    """Of each difference; 0 where it is 0, with a gradient of 0 there."""
    squares_PP = edges_PPD.square().sum(dim=-1)
    return squares_PP.clamp(min=_TINY**2).sqrt() * (squares_PP > 0)
