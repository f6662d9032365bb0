"""Where the losses of a distillation read student and teacher, and the capture of what they read.

The compiler's losses name places in the student's numbers (`boomspec.core.losses.pairs`). Here they become places of
the models: an output of the student's layer i, and of the teacher's at the END of block i, which is layer kept[i + 1] -
1, and its last layer for the last block. The attention of block i is that of its last layer.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, get_args

from boomspec.core.losses import PairLoss
from boomspec.core.losses.loss import Read
from boomspec.core.losses.pairs import Place
from runners.modeling.attention import AttentionPart, Part, record_attention
from runners.modeling.hidden_states import Point, capture

Where = Point | AttentionPart
Site = Mapping[Read, Where]  # where each argument of a formula is read, for one pair


def is_teachers(read: str) -> bool:
    """Whether an argument of a formula is read of the teacher."""
    return read.startswith("teacher_")


def sites_of(term: PairLoss, kept: Sequence[int], layers: int) -> list[Site]:
    """Of each pair of a student that keeps these of the teacher's `layers`, from the lowest upwards."""
    ends = [*(start - 1 for start in kept[1:]), layers - 1]

    def where(read: Read, place: Place) -> Where:
        point: Point = ends[place] if is_teachers(read) and isinstance(place, int) else place
        part = read.removeprefix("teacher_")
        if part in get_args(Part):
            assert isinstance(point, int)
            return AttentionPart(point, part)  # type: ignore[arg-type]  # it is one of them
        return point

    return [{read: where(read, place) for read, place in site.items()} for site in term.sites(len(kept))]


@contextmanager
def capture_all(model: Any, places: Collection[Where]) -> Iterator[dict[Where, Any]]:
    """Within the context, each forward puts what is at these places into the dict that is yielded."""
    parts = [place for place in places if isinstance(place, AttentionPart)]
    with capture(model, [place for place in places if not isinstance(place, AttentionPart)]) as states:
        found: dict[Where, Any] = states  # type: ignore[assignment]  # the same dict, which takes both
        with record_attention(model, parts, found):
            yield found
