"""A student, put together of layers that were trained alone. Writes `model/`, `metrics.jsonl`, `blocks.json`."""

from boomspec.core.tasks import JoinBlocks
from runners.blockwise.join import join
from runners.runtime.context import Context


def run(context: Context[JoinBlocks]) -> None:
    join(context)
