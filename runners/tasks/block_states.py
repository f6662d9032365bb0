"""A teacher's hidden states at one boundary of blocks, with one layer in memory at a time; see `runners.blockwise`."""

from boomspec.core.tasks import BlockStates
from runners.blockwise.states import write_states
from runners.runtime.context import Context
from runners.runtime.device import deterministic_mode


def run(context: Context[BlockStates]) -> None:
    with deterministic_mode(context.record.determinism, context.progress.note):
        write_states(context)
