"""Cross-entropy on the text itself."""

from typing import TYPE_CHECKING

from boomspec.core.losses.closed_form import ClosedForm, Softmax
from boomspec.core.losses.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Loss):
    """Negative log-likelihood of the next token under the student, in nats per token."""

    kind, title, unit = "cross_entropy", "cross-entropy", "nats per token"
    reads = ("logits", "labels")
    description = "On the text itself."
    usual = True
    equation, source = "-log q(y)", "maximum likelihood"
    elsewhere = ("ce", "nll", "hard_loss", "lm_loss")
    working = 1  # the softmax
    kept = 0

    def formula(self, logits_NV: "Tensor", labels_N: "Tensor") -> "Tensor":
        """-log p(label) at each of N positions."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_NV.float(), labels_N, reduction="none")

    def closed_form(self, student: Softmax, teacher: Softmax | None, labels_N: "Tensor", t: float = 0.0) -> ClosedForm:
        """The gradient is softmax(logits), less 1 at the label."""
        softmax_NV, log_sum_N = student.at()
        of_labels_N = student.logits_NV.gather(-1, labels_N.unsqueeze(-1)).squeeze(-1)
        return ClosedForm(log_sum_N - of_labels_N, ((1.0, softmax_NV),), at_label=-1.0)
