"""Cross-entropy on the text itself."""

from typing import TYPE_CHECKING, ClassVar

from boomspec.core.losses.loss import Loss, Read

if TYPE_CHECKING:
    from torch import Tensor


class CrossEntropy(Loss):
    """Negative log-likelihood of the next token under the student, in nats per token."""

    kind: ClassVar[str] = "cross_entropy"
    title: ClassVar[str] = "cross-entropy"
    unit: ClassVar[str] = "nats per token"
    reads: ClassVar[tuple[Read, ...]] = ("logits", "labels")
    description: ClassVar[str] = "On the text itself."
    example: ClassVar = {"weight": 1.0}
    usual: ClassVar[bool] = True
    working: ClassVar[int] = 1  # the log-softmax
    kept: ClassVar[int] = 1

    def formula(self, logits_NV: "Tensor", labels_N: "Tensor") -> "Tensor":
        """-log p(label) at each of N positions."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(logits_NV.float(), labels_N, reduction="none")
