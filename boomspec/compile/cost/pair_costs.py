"""What the losses on pairs of places take: operations, memory, parameters of their own."""

from dataclasses import dataclass

from boomspec.core.losses import Losses, PairLoss
from boomspec.core.losses.pairs import PairShape, Place
from boomspec.core.model_costs import ModelCosts
from boomspec.core.work_sizes import TILE_LOGITS


@dataclass(frozen=True)
class PairCosts:
    flops: int = 0  # for each token, with gradients
    kept: int = 0  # bytes for each token until the backward pass
    teacher: int = 0  # elements of one token that are held of the teacher
    block: int = 0  # bytes of the largest block whose gradients are taken in the forward pass
    parameters: int = 0  # that are trained beside the student


def shape_of(model: ModelCosts, length: int) -> PairShape:
    layer = model.layers[0]
    return PairShape(
        depth=model.depth,
        hidden=model.hidden,
        length=length,
        heads=layer.heads,
        queries=layer.queries,
        keys=layer.keys,
    )


def pair_costs(losses: Losses, model: ModelCosts, length: int, *, on_gpu: bool) -> PairCosts:
    """Of a student on sequences of so many tokens."""
    shape, tile = shape_of(model, length), TILE_LOGITS["cuda" if on_gpu else "cpu"]
    terms = [term for term in losses.terms().values() if isinstance(term, PairLoss)]
    counted = [(term, len(term.sites(model.depth))) for term in terms]
    widths: dict[tuple[str, Place], int] = {}
    for term in terms:
        widths |= term.teacher_widths(shape)  # what several read is held once
    of_pair = ((count, of.elements) for term, count in counted for of in term.trained(model.hidden).values())
    return PairCosts(
        flops=sum(count * term.pair_flops(shape) for term, count in counted),
        kept=sum(count * term.kept_bytes(shape) for term, count in counted),
        teacher=sum(widths.values()),
        block=max((term.block_bytes(shape, tile) for term in terms), default=0),
        parameters=sum(count * elements for count, elements in of_pair),
    )
