"""Estimate the deltas of a transfer from a sample of the weights, in seconds and without numpy: for a plan.

Of a tensor blocks of following weights are read, as far apart as there is room; sums are scaled up. A transfer of few
weights is read whole. The task itself reads every weight (`runners/assembly/transfer.py`).
"""

import struct
from collections.abc import Iterator, Sequence
from operator import mul, sub
from typing import BinaryIO

from boomspec.core.errors import BoomspecError
from boomspec.models.checkpoint import FLOAT_BYTES, TensorEntry
from boomspec.models.transfer import Agreement, Deltas, Summed, Sums

READ_WEIGHTS = 1_000_000  # of each model; about a second
_BLOCK = 1024  # weights
_LETTERS = {"F64": "d", "F32": "f", "F16": "e"}
_Floats = Sequence[float]


def sampled_deltas(tensors: Sequence[Summed], *, most: int = READ_WEIGHTS) -> tuple[Deltas, int]:
    """The deltas of about `most` weights of these tensors, scaled up to all, and how many were read."""
    found, read = Deltas(), 0
    total = sum(tensor.base.elements for tensor in tensors)
    for tensor in tensors:
        count = tensor.base.elements
        wanted = count if total <= most else min(count, max(_BLOCK, round(most * count / total)))
        starts = list(_starts(count, wanted))
        sums, distilled, variant, own = Sums(), Agreement(), Agreement(), 0
        for start, end in starts:
            v, b, d = (_values(entry, start, end) for entry in (tensor.variant, tensor.base, tensor.distilled))
            added, varied = list(map(sub, d, b)), list(map(sub, v, b))
            part = Sums(end - start, _dot(added, added), _dot(varied, varied), _dot(added, varied))
            sums, own = sums + part, own + end - start
            for agreement, values in ((distilled, d), (variant, v)):
                agreement.product += _dot(values, b)
                agreement.one += _dot(values, values)
                agreement.other += _dot(b, b)
        scale = count / own if own else 0.0
        scaled = Sums(count, sums.transferred * scale, sums.variant * scale, sums.product * scale)
        found.groups[tensor.group] += scaled
        read += own
        if tensor.layer is not None:
            pairs = ((found.distilled[tensor.layer], distilled), (found.variant[tensor.layer], variant))
            for whole, agreement in pairs:
                whole.product += agreement.product * scale
                whole.one += agreement.one * scale
                whole.other += agreement.other * scale
    return found, read


def _starts(count: int, wanted: int) -> Iterator[tuple[int, int]]:
    """Blocks of `wanted` of `count` weights, evenly spread."""
    blocks = -(-wanted // _BLOCK)
    for number in range(blocks):
        start = number * count // blocks
        yield start, min(start + _BLOCK, (number + 1) * count // blocks)


def _dot(one: _Floats, other: _Floats) -> float:
    return float(sum(map(mul, one, other)))


def _values(entry: TensorEntry, start: int, end: int) -> _Floats:
    assert entry.file is not None
    with entry.file.open("rb") as file:
        return _read(file, entry, start, end)


def _read(file: BinaryIO, entry: TensorEntry, start: int, end: int) -> _Floats:
    width = FLOAT_BYTES[entry.dtype]
    file.seek(entry.start + start * width)
    data = file.read((end - start) * width)
    if len(data) < (end - start) * width:
        raise BoomspecError(f"{entry.file}: became shorter while it was read")
    if entry.dtype == "BF16":  # the upper half of an fp32
        wide = bytearray(2 * len(data))
        wide[2::4], wide[3::4] = data[::2], data[1::2]
        return struct.unpack(f"<{end - start}f", wide)
    return struct.unpack(f"<{end - start}{_LETTERS[entry.dtype]}", data)
