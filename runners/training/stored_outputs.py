"""Losses against what was stored of a teacher's outputs, in place of its logits.

    top k     the log-probabilities of the k likeliest tokens, and that of all others together. A divergence of the two
              distributions is computed over these k + 1 bins: exact where k is the vocabulary, a lower bound else. The
              student's others are a bin, too, so that the k tokens need not add up to 1
    samples   n tokens drawn from a distribution s, each with its importance weight p / s. The KL divergence is
              estimated without bias (RS-KD, arXiv 2503.16870): sum p (log p - log q) = -H(p) - mean over draws of
              (p / s) log q, with the entropy H(p) as it was computed from all of p

Shapes: B sequences, T positions, N positions of any sequence, V vocabulary, K tokens that are stored of a position.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from boomspec.core.losses import Loss
from boomspec.core.losses.closed_form import Softmax
from runners.training.teachers import gradient_of

Pick = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TopTokens:
    """At each position the ids of the likeliest tokens and their log-probabilities, then that of the rest.

    There is no rest where the tokens are the whole vocabulary. `log_probs` are in fp32.
    """

    ids: Tensor  # [..., K]
    log_probs: Tensor  # [..., K + 1], or [..., K]

    def at(self, pick: Pick) -> "TopTokens":
        return TopTokens(pick(self.ids), pick(self.log_probs))

    def __getitem__(self, rows: slice) -> "TopTokens":
        return self.at(lambda values: values[rows])

    def loss(
        self, term: Loss, student: Softmax, labels_N: Tensor, t: float = 0.0, *, graded: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The sum of a term over N positions, and its gradient with respect to the student's logits."""
        rows_N1 = torch.arange(len(self.ids), device=self.ids.device).unsqueeze(-1)
        logits_NV, count = student.logits_NV, self.ids.shape[-1]
        bins_NK, others_NV = logits_NV[rows_N1, self.ids], None
        if self.log_probs.shape[-1] > count:
            others_NV = logits_NV.clone()
            others_NV[rows_N1, self.ids] = -torch.inf
            rest_N1 = others_NV.logsumexp(dim=-1, keepdim=True)
            bins_NK = torch.cat([bins_NK, rest_N1], dim=-1)
            others_NV.sub_(rest_N1).exp_()  # which share of the rest each token has
        value, of_bins_NK = _of_bins(term, Softmax(bins_NK), Softmax(self.log_probs), labels_N, t, graded=graded)
        if of_bins_NK is None:
            return value, None
        gradient_NV = torch.zeros_like(logits_NV) if others_NV is None else others_NV.mul_(of_bins_NK[:, count:])
        gradient_NV[rows_N1, self.ids] = of_bins_NK[:, :count]  # each token is there once
        return value, gradient_NV


@dataclass(frozen=True)
class SampledTokens:
    """At each position tokens that were drawn, their log importance weights (None: all are 0), and the entropy."""

    ids: Tensor  # [..., K]
    log_weights: Tensor | None  # [..., K], in fp32
    entropy: Tensor  # [...], of the teacher's distribution, in nats, in fp32

    def at(self, pick: Pick) -> "SampledTokens":
        log_weights = None if self.log_weights is None else pick(self.log_weights)
        return SampledTokens(pick(self.ids), log_weights, pick(self.entropy))

    def __getitem__(self, rows: slice) -> "SampledTokens":
        return self.at(lambda values: values[rows])

    def loss(
        self, term: Loss, student: Softmax, labels_N: Tensor, t: float = 0.0, *, graded: bool
    ) -> tuple[Tensor, Tensor | None]:
        """The estimate of the KL divergence, summed over N positions, and its gradient: W q - sum of w at the draws."""
        rows_N, count = torch.arange(len(self.ids), device=self.ids.device), self.ids.shape[-1]
        softmax_NV, log_sum_N = student.at()
        weights_NK = torch.full_like(self.ids, 1, dtype=softmax_NV.dtype)
        if self.log_weights is not None:
            weights_NK = self.log_weights.exp()
        weights_NK = weights_NK / count
        log_q_NK = student.logits_NV[rows_N.unsqueeze(-1), self.ids] - log_sum_N.unsqueeze(-1)
        value = -(weights_NK * log_q_NK).sum() - self.entropy.sum()
        if not graded:
            return value, None
        gradient_NV = softmax_NV * weights_NK.sum(dim=-1, keepdim=True)
        for k in range(count):  # a token may be drawn twice; of one draw at a time no two fall on one place
            gradient_NV[rows_N, self.ids[:, k]] -= weights_NK[:, k]
        return value, gradient_NV


StoredOutputs = TopTokens | SampledTokens


def _of_bins(
    term: Loss, student: Softmax, teacher: Softmax, labels_N: Tensor, t: float = 0.0, *, graded: bool
) -> tuple[Tensor, Tensor | None]:
    """The sum of a term over distributions of bins, and its gradient with respect to the logits of the student's."""
    form = term.closed_form(student, teacher, labels_N, t)
    if form is None:
        return gradient_of(term, student, teacher, labels_N, t, graded=graded)
    (factor, first_NK), *others = form.parts
    gradient_NK = factor * first_NK
    for factor, part_NK in others:
        gradient_NK = gradient_NK.add(part_NK, alpha=factor)
    return form.values_N.sum(), gradient_NK if graded else None
