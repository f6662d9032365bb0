"""One layer of a student, trained alone on the teacher's states around its block. Writes `model/`, `metrics.jsonl`."""

from boomspec.core.tasks import DistillBlock
from runners.blockwise.train import train_block
from runners.runtime.context import Context
from runners.runtime.device import deterministic_mode


def run(context: Context[DistillBlock]) -> None:
    with deterministic_mode(context.record.determinism, context.progress.note):
        train_block(context)
