"""The base class of losses that compare hidden states at each position."""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from boomspec.core.losses.loss import Read
from boomspec.core.losses.pairs import EMBEDDING, FINAL_NORM, PairLoss, Place, Site


class StateLoss(PairLoss):
    """The mean over pairs of hidden states: student layer i's output, and the teacher's at the end of block i."""

    embedding: Annotated[
        bool,
        Field(description="Also align the embedding output (a frozen one never counts). With chosen `pairs`: false."),
    ] = True
    final_norm: Annotated[
        bool, Field(description="Take the last pair after the final norm (else the raw output of the last layer).")
    ] = True

    @model_validator(mode="before")
    @classmethod
    def _chosen_pairs_alone(cls, given: Any) -> Any:
        """A choice of layers is that of the pairs: the embedding joins them only where it is named, too."""
        if isinstance(given, dict) and given.get("pairs") not in (None, "all"):
            return {"embedding": False, **given}
        return given

    def completed(self, *, train_embedding: bool, balanced: bool = False) -> Self:
        completed = super().completed(train_embedding=train_embedding, balanced=balanced)
        # A frozen embedding is the teacher's: its pair is always equal and would only dilute the mean.
        return completed if train_embedding else completed.model_copy(update={"embedding": False})

    def sites(self, count: int) -> tuple[Site, ...]:
        of_embedding: tuple[Site, ...] = (dict.fromkeys(self.reads, EMBEDDING),) if self.embedding else ()
        return of_embedding + super().sites(count)

    def place(self, read: Read, layer: int, count: int) -> Place:
        return FINAL_NORM if self.final_norm and layer == count - 1 else layer
