"""Read how many rows a parquet file has from its footer, a few kB.

Own code because no base dependency reads parquet: pyarrow comes with the runners, and takes long to import. The footer
is a thrift struct in the compact protocol, whose third field is the number of rows.
"""

from __future__ import annotations

from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

_ROWS = 3  # FileMetaData.num_rows
_LARGEST = 1 << 26  # bytes of a footer


def parquet_rows(path: Path) -> int | None:
    """The rows of a parquet file; None where its footer cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(-8, 2)
            size, magic = int.from_bytes(file.read(4), "little"), file.read(4)
            if magic != b"PAR1" or size > _LARGEST:
                return None
            file.seek(-8 - size, 2)
            rows = next(value for field, value in _fields(BytesIO(file.read(size))) if field == _ROWS)
            return rows if type(rows) is int else None
    except (OSError, IndexError, ValueError, RecursionError, StopIteration):
        return None


def _fields(data: BytesIO) -> Iterator[tuple[int, Any]]:
    """The ids and values of a thrift struct."""
    field = 0
    while (head := data.read(1)[0]) != 0:
        field = field + (head >> 4) if head >> 4 else _integer(data)
        yield field, _value(data, head & 15)


def _value(data: BytesIO, kind: int, *, inside: bool = False) -> Any:
    """A value; `inside` of a list or map a boolean takes a byte."""
    match kind:
        case 1 | 2:  # true, false
            return data.read(inside)
        case 3 | 7:  # byte, double
            return data.read(1 if kind == 3 else 8)
        case 4 | 5 | 6:  # integers of 16, 32 and 64 bits
            return _integer(data)
        case 8:  # binary
            return data.read(_varint(data))
        case 9 | 10:  # list, set
            head = data.read(1)[0]
            return [_value(data, head & 15, inside=True) for _ in range(head >> 4 if head < 0xF0 else _varint(data))]
        case 11:  # map
            count = _varint(data)
            kinds = data.read(1)[0] if count else 0
            return [_value(data, kind, inside=True) for _ in range(count) for kind in (kinds >> 4, kinds & 15)]
        case 12:
            return dict(_fields(data))
    raise ValueError(f"no type {kind}")


def _varint(data: BytesIO) -> int:
    value = shift = 0
    while (byte := data.read(1)[0]) & 0x80:
        value, shift = value | (byte & 0x7F) << shift, shift + 7
    return value | byte << shift


def _integer(data: BytesIO) -> int:
    value = _varint(data)
    return (value >> 1) ^ -(value & 1)
