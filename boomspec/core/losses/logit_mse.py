"""The squared distance of the logits themselves (Ba and Caruana, arXiv 1312.6184)."""

from typing import TYPE_CHECKING

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.losses.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor


class LogitMSE(Loss):
    """`mean (z_p - z_q)^2` over the vocabulary."""

    kind, title, unit = "logit_mse", "MSE of logits", "squared logits"
    reads = ("logits", "teacher_logits")
    description = "On the teacher's logits themselves."
    equation, source = "1/V sum (z_p - z_q)^2", "arXiv 1312.6184"
    elsewhere = ("mse_logits", "logits_mse", "logit_matching")
    working, kept = 2, 0

    def formula(self, logits_NV: "Tensor", teacher_logits_NV: "Tensor") -> "Tensor":
        """The mean square of the difference, at each of N positions."""
        return (logits_NV.float() - teacher_logits_NV.float()).square().mean(dim=-1)

    def closed_form(self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor", t: float = 0.0) -> ClosedForm:
        """The gradient is 2 / V times the difference."""
        from torch.linalg import vecdot

        assert teacher is not None
        difference_NV = student.logits_NV - teacher.logits_NV
        vocabulary = difference_NV.shape[-1]
        return ClosedForm(vecdot(difference_NV, difference_NV) / vocabulary, ((2 / vocabulary, difference_NV),))
