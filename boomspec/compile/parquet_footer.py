"""How many rows a parquet file has, from its footer alone: a few kB, and no library that takes long to load.

The footer is a thrift struct in the compact protocol; its third field is the number of rows.
"""

from __future__ import annotations

from pathlib import Path

_MAGIC = b"PAR1"
_ROWS = 3  # FileMetaData.num_rows
_LARGEST = 1 << 26  # bytes of a footer
_TRUE, _FALSE, _BYTE, _I16, _I32, _I64, _DOUBLE, _BINARY, _LIST, _SET, _MAP, _STRUCT = range(1, 13)


def parquet_rows(path: Path) -> int | None:
    """The rows of a parquet file; None where its footer cannot be read."""
    try:
        with path.open("rb") as file:
            file.seek(-8, 2)
            size, magic = int.from_bytes(file.read(4), "little"), file.read(4)
            if magic != _MAGIC or size > _LARGEST:
                return None
            file.seek(-8 - size, 2)
            return _Compact(file.read(size)).number(_ROWS)
    except (OSError, IndexError, ValueError, RecursionError):
        return None


class _Compact:
    """A reader of thrift's compact protocol, as far as it takes to pass over what stands before a field."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def number(self, wanted: int) -> int:
        """The integer in a field of the struct that begins here. Raises ValueError where it has none."""
        field = 0
        while (head := self._byte()) != 0:
            kind = head & 15
            field = field + (head >> 4) if head >> 4 else self._zigzag()
            if field == wanted and kind in (_I32, _I64):
                return self._zigzag()
            self._pass_over(kind)
        raise ValueError("no such field")

    def _byte(self) -> int:
        self._at += 1
        return self._data[self._at - 1]

    def _varint(self) -> int:
        value = shift = 0
        while (byte := self._byte()) & 0x80:
            value, shift = value | (byte & 0x7F) << shift, shift + 7
        return value | byte << shift

    def _zigzag(self) -> int:
        value = self._varint()
        return (value >> 1) ^ -(value & 1)

    def _pass_over(self, kind: int, *, inside: bool = False) -> None:
        """`inside`: of a list or map, where a boolean takes a byte."""
        if kind in (_TRUE, _FALSE):
            self._at += inside
        elif kind == _BYTE:
            self._at += 1
        elif kind in (_I16, _I32, _I64):
            self._varint()
        elif kind == _DOUBLE:
            self._at += 8
        elif kind == _BINARY:
            length = self._varint()
            self._at += length
        elif kind in (_LIST, _SET):
            head = self._byte()
            for _ in range(head >> 4 if head >> 4 != 15 else self._varint()):
                self._pass_over(head & 15, inside=True)
        elif kind == _MAP:
            if count := self._varint():
                kinds = self._byte()
                for _ in range(count):
                    self._pass_over(kinds >> 4, inside=True)
                    self._pass_over(kinds & 15, inside=True)
        elif kind == _STRUCT:
            while (head := self._byte()) != 0:
                if not head >> 4:
                    self._zigzag()
                self._pass_over(head & 15)
        else:
            raise ValueError(f"no type {kind}")
