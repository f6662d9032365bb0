"""Store what a teacher says about the text of a training, for students that then never run it.

Writes shards `outputs-*.safetensors` and `meta.json` (runners/training/output_files.py). A killed task goes on after
its last whole shard, to the same bytes.
"""

import shutil
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Samples, TeacherOutputs
from boomspec.core.tasks.tokenize import token_bytes
from runners.data.tokens import TokenStream
from runners.modeling.hidden_states import LMHead, check_apart, check_head, trunk
from runners.modeling.labels import inputs_of
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import autocast, deterministic_mode, frozen_dtype
from runners.training.output_files import is_whole, rows_of_shard, shard_name, write_meta, write_shard
from runners.training.parallel import with_checkpointing_or_compile
from runners.training.teacher_outputs import numbers_of, stored_of


def run(context: Context[TeacherOutputs]) -> None:
    with deterministic_mode(context.record.determinism, context.progress.note):
        _store(context)


@torch.no_grad()
def _store(context: Context[TeacherOutputs]) -> None:
    record, progress, length = context.record, context.progress, context.record.sequence_length
    stream = TokenStream(context.inputs["tokens"].folder, apart=bool(record.isolate))
    folder = model_folder(context.inputs["teacher"])
    teacher = load_frozen(folder, dtype=frozen_dtype(record.precision), code=context.code)
    if stream.vocabulary > (embedded := teacher.get_input_embeddings().weight.shape[0]):
        raise BoomspecError(f"the tokens have a vocabulary of {stream.vocabulary}, but the teacher embeds {embedded}")
    check_head(teacher)
    if record.isolate:
        check_apart(teacher)
    head = LMHead(teacher)
    rows = min(record.rows, max(1, stream.windows(length)))
    ids = np.uint16 if token_bytes(head.vocabulary) == 2 else np.uint32
    shard_rows = rows_of_shard(record.stored.bytes(head.vocabulary), length)
    names = [shard_name(number) for number in range(-(-rows // shard_rows))]

    context.resume.mkdir(parents=True, exist_ok=True)
    done = next((i for i, name in enumerate(names) if not is_whole(context.resume / name)), len(names))
    if done:
        progress.note(f"continues after {min(rows, done * shard_rows):,} of {rows:,} sequences")
    with with_checkpointing_or_compile(teacher):
        for number in range(done, len(names)):
            first, end = number * shard_rows, min(rows, (number + 1) * shard_rows)
            parts: list[dict[str, npt.NDArray[Any]]] = []
            for start in range(first, end, context.batch_size):
                count = min(context.batch_size, end - start)
                drawn = stream.drawn(start, count, sequence_length=length, seed=record.seed)
                tokens_BT = inputs_of(torch.from_numpy(drawn[:, :-1])).to(teacher.device)
                numbers_NK = None
                if isinstance(record.stored, Samples):
                    draws = record.stored.count
                    of_rows = [numbers_of(record.seed, row, length, draws) for row in range(start, start + count)]
                    numbers_NK = torch.cat(of_rows).to(teacher.device)
                with autocast(record.precision):
                    hidden_ND = trunk(teacher, tokens_BT).flatten(0, 1)
                    found = stored_of(head, hidden_ND, record.stored, numbers_NK)
                arrays = {
                    name: values.reshape(count, length, *values.shape[1:]).cpu().numpy()
                    for name, values in found.items()
                }
                if not all(np.isfinite(array).all() for array in arrays.values()):
                    raise BoomspecError("the teacher's logits are not finite", hint="try precision: fp32")
                parts.append({**arrays, "ids": arrays["ids"].astype(ids)})
                progress.update((start + count) * length, rows * length, unit="tokens")
            whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
            write_shard(context.resume / names[number], whole)
    for name in names:
        shutil.move(context.resume / name, context.path / name)
    write_meta(context.path, rows=rows, shard_rows=shard_rows)
