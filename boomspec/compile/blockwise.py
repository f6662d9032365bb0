"""Add the blockwise distillation of a student to an experiment's task graph.

    block_states     at every boundary of a block that is trained, each from the one before it
    distill_block    for each of these blocks, which waits for nothing but its two states
    join_blocks      the student
    distill          with a polish: of the whole student, from the joined one on

A block of one layer is the teacher's layer: there is nothing to train, unless layers begin at random. A block is known
by its layers, so students of one teacher that share a block share its task.
"""

from boomspec.compile import records
from boomspec.compile.builder import Builder
from boomspec.core.layers import blocks
from boomspec.core.tasks.blockwise import block_role

_STUDENT = "student"  # the experiment's own


def add_blockwise(
    build: Builder,
    kept: tuple[int, ...],
    name: str,
    *,
    layers: int,
    initial: records.Initial = "teacher",
    tokens: int | None = None,
) -> str:
    """Add what trains a student of `kept` of the teacher's `layers`; the id of the task that has its model.

    `initial`: what its layers begin as. `tokens`: of the training, where they are not those of the section.
    """
    section = build.resolved.spec.distill
    assert section is not None
    assert section.blockwise is not None
    inputs = {"teacher": build.teacher, "tokens": build.tokens}
    of = "" if name == _STUDENT else f" of {name}"
    trained = {i: block for i, block in enumerate(blocks(kept, layers)) if len(block) > 1 or initial == "random"}
    joined = {"teacher": build.teacher}
    for i, block in trained.items():
        record = records.distill_block(build.resolved, block, initial=initial, tokens=tokens)
        read = dict(inputs)
        if section.blockwise.stored:
            read |= {
                role: _states(build, at, of, layers=layers, tokens=tokens)
                for role, at in (("states", block.start), ("targets", block.stop))
            }
        joined[block_role(i)] = build.add(f"distill layers {block.start} to {block.stop - 1}{of}", record, read)
    student = build.add(f"join {name}", records.join_blocks(kept), joined)
    if section.blockwise.polish is None:
        return student
    if name == _STUDENT:
        build.trainings["student, block by block"] = student
    polish = records.polish(build.resolved, kept, tokens=tokens)
    return build.add(f"distill {name}", polish, {**inputs, "start": student})


def _states(build: Builder, at: int, of: str, *, layers: int, tokens: int | None) -> str:
    """Add the states that layer `at` reads, and those before them that they are computed from.

    At the boundaries of the experiment's own student, of which those of every other student here are some.
    """
    assert build.kept is not None
    own = sorted({at for block in blocks(build.kept, layers) if len(block) > 1 for at in (block.start, block.stop)})
    earlier = [boundary for boundary in own if boundary < at]
    inputs = {"teacher": build.teacher, "tokens": build.tokens}
    if earlier:
        inputs["states"] = _states(build, earlier[-1], of, layers=layers, tokens=tokens)
    record = records.block_states(build.resolved, at, begin=earlier[-1] if earlier else None, tokens=tokens)
    name = f"states before layer {at}" if at < layers else f"states after layer {at - 1}"
    return build.add(f"{name}{of}", record, inputs)
