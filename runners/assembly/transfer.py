"""Weight-delta transfer: write the student of a variant, a few hundred kilobytes of a tensor in memory at a time.

    student = init_from(variant) + (distilled - init_from(base))                                   (arXiv 2608.22854)

init_from is assembled, then each tensor is read back, added to, and written in its place: in fp32, with one rounding
to the dtype that it is stored in, which is the variant's. Rows of embedding and head that only the variant's
vocabulary has stay as they are. What travels (tokenizer, chat template, generation config) is the variant's.

Shapes: n weights of a tensor that are added up at once.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import TEACHER, teacher_layers
from boomspec.core.work_sizes import COPY_BUFFER
from boomspec.models.checkpoint import FLOAT_BYTES, TensorEntry, read_checkpoint
from boomspec.models.facts import read_facts
from boomspec.models.transfer import Agreement, Deltas, Summed, Sums, summed_tensors
from runners.assembly.assemble import assemble
from runners.assembly.checkpoint_writer import convert

Floats = NDArray[np.float32]
_AT_ONCE = COPY_BUFFER // 4  # weights
Report = Callable[[float, float], None]


def transfer(
    variant: Path,
    base: Path,
    distilled: Path,
    target: Path,
    *,
    kept: Sequence[int],
    report: Report = lambda done, of: None,
) -> Deltas:
    """Write the student into the folder `target`; how far the deltas agree.

    Raises BoomspecError where the models do not fit together, and after all was read where one was not made from the
    base.
    """
    facts = read_facts(variant)
    tensors = summed_tensors(facts, read_facts(base), read_facts(distilled), kept)
    assemble({TEACHER: variant}, teacher_layers(kept), target, tied=facts.tied)
    places, found = read_checkpoint(target), Deltas()
    total, done = sum(tensor.base.elements for tensor in tensors), 0
    for tensor in tensors:
        _add(tensor, places[tensor.name], found)
        done += tensor.base.elements
        report(done, total)
    found.check()
    return found


def _add(tensor: Summed, place: TensorEntry, found: Deltas) -> None:
    """Add the delta to a tensor where it lies, and note what the deltas are."""
    assert place.file is not None
    files = [os.open(str(entry.file), os.O_RDONLY) for entry in (tensor.variant, tensor.base, tensor.distilled)]
    write = os.open(place.file, os.O_WRONLY)
    try:
        for start in range(0, tensor.base.elements, _AT_ONCE):
            count = min(_AT_ONCE, tensor.base.elements - start)
            entries = (tensor.variant, tensor.base, tensor.distilled)
            v_n, b_n, d_n = (_read(file, entry, start, count) for file, entry in zip(files, entries, strict=True))
            with np.errstate(over="ignore", invalid="ignore"):
                delta_n = d_n - b_n
                data = convert((v_n + delta_n).tobytes(), "F32", place.dtype)
            _write(write, data, place.start + start * FLOAT_BYTES[place.dtype])
            varied_n = v_n - b_n
            products = (_dot(delta_n, delta_n), _dot(varied_n, varied_n), _dot(delta_n, varied_n))
            found.groups[tensor.group] += Sums(count, *products)
            if tensor.layer is not None:
                _agree(found.distilled[tensor.layer], d_n, b_n)
                _agree(found.variant[tensor.layer], v_n, b_n)
    except BoomspecError as error:
        raise BoomspecError(f"'{tensor.name}': {error.message}", hint=error.hint) from error
    finally:
        for file in (*files, write):
            os.close(file)


def _agree(agreement: Agreement, one_n: Floats, other_n: Floats) -> None:
    agreement.product += _dot(one_n, other_n)
    agreement.one += _dot(one_n, one_n)
    agreement.other += _dot(other_n, other_n)


def _dot(one_n: Floats, other_n: Floats) -> float:
    return float(np.dot(one_n.astype(np.float64), other_n.astype(np.float64)))


def _read(file: int, entry: TensorEntry, start: int, count: int) -> Floats:
    """`count` weights of a tensor from the `start`-th on, in fp32."""
    width = FLOAT_BYTES[entry.dtype]
    data = os.pread(file, count * width, entry.start + start * width)
    if len(data) < count * width:
        raise BoomspecError(f"{entry.file}: became shorter while it was read")
    return np.frombuffer(convert(data, entry.dtype, "F32"), "<f4")


def _write(file: int, data: bytes, place: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(file, view, place)
        view, place = view[written:], place + written
