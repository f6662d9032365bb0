"""Describe a causal language model as far as costs go: what one token costs in its layers and its head.

`boomspec.compile.cost.shapes` finds these numbers in a model's tensor shapes, and says how operations are counted.
"""

from dataclasses import dataclass
from functools import cached_property

from boomspec.core.work_sizes import MEASURED_LOGITS


@dataclass(frozen=True)
class LayerCosts:
    """One decoder layer. Widths are in elements of one token."""

    matrices: int  # elements of all two-dimensional weights
    parameters: int
    bytes: int  # as stored
    largest: int  # elements of the largest tensor
    queries: int  # heads x size of a head
    keys: int  # heads that keep keys and values x size of a head
    heads: int
    fused: bool  # queries, keys and values come from one matrix
    inner: int  # width inside the MLP
    gated: bool
    inner_linears: int  # matrices that read the MLP's input
    norms: int  # over the whole width
    head_norms: bool  # queries and keys have norms of their own
    plain_norms: bool  # norms without a bias (RMSNorm) are computed in steps


@dataclass(frozen=True, eq=False)
class ModelCosts:
    """A causal language model as far as costs go. It is equal to itself alone: hashing all layers would take long."""

    layers: tuple[LayerCosts, ...]
    hidden: int
    vocabulary: int
    embedding: int  # elements of everything before the layers
    norm: int  # elements after the layers
    own_head: int  # elements of a head of its own; 0 where it is tied
    rest_bytes: int  # of embedding, norm and head, as stored
    width: int  # bytes of a stored element, of most
    rotary: bool
    parallel: bool  # attention and MLP read the same state
    kept_by_steps: int  # tensors that the MLP's activation keeps beyond a native one's

    @property
    def tied(self) -> bool:
        return self.own_head == 0

    @property
    def depth(self) -> int:
        return len(self.layers)

    @cached_property
    def parameters(self) -> int:
        return self.embedding + self.norm + self.own_head + sum(layer.parameters for layer in self.layers)

    @cached_property
    def bytes(self) -> int:
        return self.rest_bytes + sum(layer.bytes for layer in self.layers)

    @cached_property
    def matrices(self) -> int:
        """Elements of the weights that a token is multiplied with in the layers."""
        return sum(layer.matrices for layer in self.layers)

    @cached_property
    def queries(self) -> int:
        return sum(layer.queries for layer in self.layers)

    @cached_property
    def cache_elements(self) -> int:
        """Numbers that the layers keep of a token whose followers are still to be written: keys and values."""
        return 2 * sum(layer.keys for layer in self.layers)

    @property
    def projection(self) -> int:
        """Elements of the matrix from hidden states to logits."""
        return self.hidden * self.vocabulary

    def forward(self, length: int) -> int:
        return 2 * self.matrices + 4 * length * self.queries

    def head(self) -> int:
        return 2 * self.projection

    def training(self, length: int, *, head: bool, frozen: bool) -> int:
        """Operations that a token needs to be trained on: backward takes twice what forward takes.

        That is less than a training does where it computes something again, such as the scores of attention in the
        backward pass. `head`: some loss reads logits. `frozen`: the embedding is, and a head that is tied to it.
        """
        of_matrix = 0 if self.tied and frozen else self.head()
        return 3 * self.forward(length) + (2 * self.head() + of_matrix if head else 0)

    def measuring(self, *, bf16: bool, tokens: int) -> dict[str, int]:
        """Bytes at the largest moment of a forward pass over `tokens` tokens, without gradients, by what holds them."""
        width = 2 if bf16 else 4
        widest = max(3 * layer.inner + 2 * self.hidden for layer in self.layers)
        logits = min(tokens, max(1, MEASURED_LOGITS // self.vocabulary)) * self.vocabulary
        head = {"activations": tokens * self.hidden * width, "head": 8 * logits}  # in fp32, and their log-softmax
        largest = max({"activations": tokens * widest * width}, head, key=lambda moment: sum(moment.values()))
        return {"weights": self.parameters * width, **largest}
