"""Cross-entropy on the text itself."""

from typing import TYPE_CHECKING

from boomspec.core.losses.loss import Loss

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Loss):
    """Negative log-likelihood of the next token under the student, in nats per token."""

    kind, title, unit = "cross_entropy", "cross-entropy", "nats per token"
    reads = ("logits", "labels")
    description = "On the text itself."
    usual = True
    working = 1  # the log-softmax
    kept = 1

    def formula(self, logits_NV: "Tensor", labels_N: "Tensor") -> "Tensor":
        """-log p(label) at each of N positions."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_NV.float(), labels_N, reduction="none")
