"""Have a teacher write the text that its students are trained on (arXiv 1606.07947), as a token artifact.

Row r of `sequence_length` tokens is the beginning of a window of the text, the r-th of the seeded order, and what the
teacher writes behind it; or, without a prompt, behind what every text begins with. Rows follow one another such that
the windows of the stream are the rows (`runners/data/tokens.py`); `meta.json` says which of their tokens are no labels.

Rows are a function of the seed and their numbers. A task that is killed goes on after its last whole part:

    <resume>/train.bin      rows that are written; what follows the checkpoint is cut off
    <resume>/written.json   the checkpoint: how many rows, and the crc of the file

Writes `train.bin`, an empty `held_out.bin`, `tokenizer/` and `meta.json`.
"""

import json
import shutil
import time
import zlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.files import flush, write_atomically
from boomspec.core.tasks.generate import Generate
from runners.data.tokens import DTYPES, META, TOKENIZER, TokenStream, stride
from runners.modeling.models import load_frozen, model_folder
from runners.modeling.sampling import Ends, Writer, uniforms
from runners.runtime.context import Context
from runners.runtime.device import autocast, deterministic_mode, device, frozen_dtype

_STATE = "written.json"
_SAVE_SECONDS = 10.0  # between checkpoints


def run(context: Context[Generate]) -> None:
    with deterministic_mode(context.record.determinism, context.progress.note):
        _generate(context)


def _generate(context: Context[Generate]) -> None:
    record, source = context.record, context.inputs["tokens"].folder
    stream, length = TokenStream(source), record.sequence_length
    meta = json.loads((source / META).read_text(encoding="utf-8"))
    dtype, before = DTYPES[meta["dtype"]], len(stream.prefix)
    teacher = load_frozen(
        model_folder(context.inputs["teacher"]), dtype=frozen_dtype(record.precision), code=context.code_of("teacher")
    )
    if stream.vocabulary > (rows := teacher.get_input_embeddings().weight.shape[0]):
        raise BoomspecError(f"the tokens have a vocabulary of {stream.vocabulary}, but the teacher embeds {rows}")
    ends = Ends(stream.eos, stream.prefix, stream.vocabulary)
    writer = Writer([(teacher, 1.0)], record.sampling, ends)
    # A window is a row; where no text begins with tokens of its own, it has the next row's first token, too.
    own = length + 1 if before else length
    row_size = stride(length, stream.prefix)

    def prompt(row: int) -> npt.NDArray[np.int64]:
        if record.prompt_tokens == 0:
            return np.asarray(ends.start, np.int64)
        window = stream.inputs(row, sequences=1, sequence_length=length, seed=record.seed)
        return window[0, : max(record.prompt_tokens, before)]

    context.resume.mkdir(parents=True, exist_ok=True)
    file = context.resume / "train.bin"
    done, crc = _resume(context, file, row_size * dtype.itemsize)
    saved = began = time.monotonic()
    first = done
    with file.open("r+b" if done else "w+b") as out:
        out.truncate(done * row_size * dtype.itemsize)
        out.seek(0, 2)
        while done < record.rows:
            numbers = range(done, min(record.rows, done + context.batch_size))
            prompts_BP = torch.from_numpy(np.stack([prompt(row) for row in numbers])).to(device())
            drawn = [uniforms(record.seed, row, count=own - prompts_BP.shape[1]) for row in numbers]
            with autocast(record.precision):
                rows_BT = writer.write(prompts_BP, torch.from_numpy(np.stack(drawn)).to(device()))
            data = rows_BT[:, before:].cpu().numpy().astype(dtype).tobytes()
            out.write(data)
            done, crc = numbers.stop, zlib.crc32(data, crc)
            now = time.monotonic()
            speed = (done - first) * length / max(now - began, 1e-9)
            context.progress.update(
                done * length, record.tokens, unit="tokens", tokens_per_second=float(f"{speed:.4g}")
            )
            if now - saved >= _SAVE_SECONDS:
                out.flush()
                flush(file)
                write_atomically(context.resume / _STATE, json.dumps({"rows": done, "crc": crc}, allow_nan=False))
                saved = now
        closing = max(1, before)  # the last row's last label, where it is the first token of the next
        out.write(np.full(closing, stream.eos, dtype).tobytes())
    shutil.move(file, context.path / "train.bin")
    (context.path / "held_out.bin").touch()
    shutil.copytree(source / TOKENIZER, context.path / TOKENIZER)
    unlabelled = 0 if record.label_prompts else max(len(ends.start), record.prompt_tokens) - before
    new = {key: meta[key] for key in ("dtype", "eos", "prefix", "vocabulary") if key in meta}
    # How long the text is in bytes nobody asks: measures are of text that people wrote.
    new["train"] = {"tokens": record.rows * row_size + closing, "documents": record.rows, "bytes": 0}
    new["held_out"] = {"tokens": 0, "documents": 0, "bytes": 0}
    new["rows_written"] = {"tokens": row_size, "unlabelled": unlabelled}
    (context.path / META).write_text(json.dumps(new, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    (context.resume / _STATE).unlink(missing_ok=True)


def _resume(context: Context[Generate], file: Path, row_bytes: int) -> tuple[int, int]:
    """How many rows are written, and their crc. A checkpoint that does not match its file is ignored with a note."""
    state = context.resume / _STATE
    if not state.is_file():
        return 0, 0
    try:
        found = json.loads(state.read_text(encoding="utf-8"))
        rows, crc = int(found["rows"]), int(found["crc"])
        with file.open("rb") as written:
            if zlib.crc32(written.read(rows * row_bytes)) != crc:
                raise ValueError(f"{file.name} does not match its checksum")
    except (OSError, ValueError, KeyError, TypeError) as error:
        context.progress.note(f"the checkpoint is damaged and ignored: {error}")
        return 0, 0
    context.progress.note(f"goes on after row {rows:,} of {context.record.rows:,}")
    return rows, crc
