"""Losses on attention: the maps of TinyBERT, the relations of MiniLM and MiniLMv2."""

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from boomspec.core.losses.attention_loss import QUERIES_KEYS, AttentionLoss, Relation
from boomspec.core.losses.loss import Read
from boomspec.core.losses.pairs import LastPairs

if TYPE_CHECKING:
    from torch import Tensor

_OF_SCORES: tuple[Read, ...] = ("queries", "keys", "frame", "teacher_queries", "teacher_keys", "teacher_frame")
_OF_ALL: tuple[Read, ...] = (
    "queries", "keys", "values", "frame", "teacher_queries", "teacher_keys", "teacher_values", "teacher_frame",
)  # fmt: skip


class AttentionMaps(AttentionLoss):
    """The mean square of the difference of the attention maps, over the columns that a row sees, heads and rows.

    `scores`: before the softmax, as TinyBERT does it (arXiv 1909.10351, eq. 7; it averages over all pairs of positions,
    this over those that a causal mask leaves). `probabilities`: behind it. The map of states that attention transfer
    compares is `attention_transfer`.
    """

    kind, title, unit = "attention_maps", "attention maps", "squared difference"
    reads = _OF_SCORES
    description = "On the teacher's attention: scores, or probabilities, of every head."
    equation, source = "mean (a - b)^2 of attention scores a, b", "arXiv 1909.10351"
    elsewhere = ("tinybert", "attention_mse", "att_mse")
    relations = (QUERIES_KEYS,)

    maps: Annotated[Literal["scores", "probabilities"], Field(description="What is compared.")] = "scores"

    def scores_formula(self, scores_HRT: "Tensor", teacher_HRT: "Tensor", allowed_RT: "Tensor") -> "Tensor":
        """The mean over the allowed columns of (a - b)^2, for each head and row."""
        if self.maps == "probabilities":
            scores_HRT, teacher_HRT = (_log_softmax(scores, allowed_RT).exp() for scores in (scores_HRT, teacher_HRT))
        squares_HRT = (scores_HRT - teacher_HRT).square().masked_fill(~allowed_RT, 0.0)
        return squares_HRT.sum(dim=-1) / allowed_RT.sum(dim=-1)


class _Relations(AttentionLoss):
    reads = _OF_ALL

    pairs: LastPairs = "last"

    def scores_formula(self, scores_HRT: "Tensor", teacher_HRT: "Tensor", allowed_RT: "Tensor") -> "Tensor":
        """KL(teacher || student) over the allowed columns, for each head and row."""
        log_q_HRT, log_p_HRT = (_log_softmax(scores, allowed_RT) for scores in (scores_HRT, teacher_HRT))
        return (log_p_HRT.exp() * (log_p_HRT - log_q_HRT)).sum(dim=-1)


class MiniLM(_Relations):
    """KL(teacher || student) of the attention's distributions, and of the relations of values (arXiv 2002.10957).

    A row of a relation is softmax(v v^T / sqrt(size of a head)) over the columns. The paper takes the last layer alone,
    which is the default here, and all pairs of positions; here both see what the causal mask leaves.
    """

    kind, title, unit = "minilm", "MiniLM", "nats per row"
    description = "On the teacher's attention and the relations of its values."
    equation, source = "KL of softmax(q k^T) + KL of softmax(v v^T)", "arXiv 2002.10957"
    elsewhere = ("minilm_v1",)
    relations = (QUERIES_KEYS, ("values", "values"))


class MiniLMv2(_Relations):
    """KL(teacher || student) of the relations of queries, of keys and of values (arXiv 2012.15828), summed.

    All heads of a token are joined and cut again into `relation_heads`, so student and teacher may have other heads.
    The paper takes one layer of the teacher, an upper-middle one for large teachers: name it by `pairs`.
    """

    kind, title, unit = "minilmv2", "MiniLMv2", "nats per row"
    description = "On the relations of the teacher's queries, keys and values."
    equation, source = "KL of softmax(q q^T), softmax(k k^T), softmax(v v^T)", "arXiv 2012.15828"
    elsewhere = ("minilm_v2",)
    relations = (("queries", "queries"), ("keys", "keys"), ("values", "values"))

    relation_heads: Annotated[
        int | None,
        Field(
            gt=0,
            examples=[48],
            description="Heads of each relation; they must divide its width. Default: the model's own.",
        ),
    ] = None

    def heads(self, relation: Relation) -> int | None:
        return self.relation_heads


def _log_softmax(scores_HRT: "Tensor", allowed_RT: "Tensor") -> "Tensor":
    """Over the allowed columns; the others have a log-probability that is finite, and no probability."""
    from torch import finfo
    from torch.nn.functional import log_softmax

    return log_softmax(scores_HRT.masked_fill(~allowed_RT, finfo(scores_HRT.dtype).min / 2), dim=-1)
