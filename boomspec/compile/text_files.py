"""Find the text files that an entry of `files` means: a file, those of a folder, or those that match a pattern.

    folder of the spec x entry --matching--> files, sorted

A name that exists as it is written wins over what it would match as a pattern. Hidden files and folders are left out
unless the entry writes their dot, and links to folders are not followed.

The rows of parquet files are counted from their footers, a few kB each: a thrift struct in the compact protocol, whose
third field is the number of rows. Own code because no base dependency reads parquet: pyarrow comes with the runners.
"""

import errno
import fnmatch
import os
import sysconfig
from collections import Counter
from collections.abc import Iterator, Sequence
from glob import has_magic
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

FORMATS = {
    **dict.fromkeys((".txt", ".text", ".md", ".rst", ".py", ".c", ".h", ".cpp", ".rs", ".go", ".java", ".tex"), "text"),
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
}
COMPRESSED = (".gz", ".zst")
UTF_16 = (b"\xff\xfe", b"\xfe\xff")  # byte order marks
# Of Python's standard library: tests repeat themselves, encodings are tables, lib2to3 and pydoc_data are generated.
# site-packages and dist-packages lie inside the folder but are not the standard library.
_NO_CORPUS = {
    "test", "tests", "idle_test", "encodings", "lib2to3", "pydoc_data", "__pycache__", "site-packages", "dist-packages",
}  # fmt: skip
_SCHEMA, _ROWS, _GROUPS = 2, 3, 4  # of FileMetaData of a parquet file: schema, num_rows, row_groups
_BYTE_ARRAY = 6  # the physical type of text
_LARGEST = 1 << 26  # bytes of its footer


def format_of(path: Path) -> str | None:
    """The format of a file by its ending; None for an ending that says nothing about it."""
    if path.suffix.lower() in COMPRESSED:
        inner = FORMATS.get(Path(path.stem).suffix.lower())
        return None if inner == "parquet" else inner  # which compresses its columns itself
    return FORMATS.get(path.suffix.lower())


def python_stdlib() -> list[Path]:
    """The library modules of the running interpreter (*.py), sorted by their path: a text that every machine has."""
    files: list[Path] = []
    for folder, subfolders, names in os.walk(Path(sysconfig.get_path("stdlib")).resolve()):
        subfolders[:] = [name for name in subfolders if name not in _NO_CORPUS]
        files += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(files, key=lambda file: file.parts)


def matching(folder: Path, entry: str, *, format: str | None = None) -> list[Path]:
    """The files that an entry means. Of a folder those whose ending says a format, or `format` where it is given."""
    try:
        path = home_path(entry)
        start, parts = (Path(path.anchor), path.parts[1:]) if path.is_absolute() else (folder, path.parts)
        if (start / path).is_dir():
            below = _files_below(start / path)
            return sorted(f for f in below if format_of(f) is not None and format in (None, format_of(f)))
        return sorted(found for found in _found(start, parts) if found.is_file())
    except (OSError, ValueError, RuntimeError):
        return []  # too long a name, a NUL in it, "~nobody"


def home_path(text: str) -> Path:
    """The path with the home that it begins with. "./~x" is a folder of that name, which pathlib forgets."""
    return Path(text).expanduser() if text.startswith("~") else Path(text)


def plain_part(entry: Path) -> Path:
    """The folders of an entry in front of its first pattern, and not its last part."""
    plain = Path()
    for part in entry.parts[:-1]:
        if has_magic(part) and not (plain / part).exists():
            break
        plain /= part
    return plain


def _found(start: Path, parts: Sequence[str]) -> Iterator[Path]:
    if not parts:
        yield start
        return
    part, rest = parts[0], parts[1:]
    if not has_magic(part) or os.path.lexists(start / part):
        yield from _found(start / part, rest)
    elif part == "**":
        if not rest:
            yield from _files_below(start)
            return
        yield from _found(start, rest)
        for name in _names(start, hidden=False):
            if (start / name).is_dir() and not (start / name).is_symlink():
                yield from _found(start / name, parts)
    else:
        for name in _names(start, hidden=part.startswith(".")):
            if fnmatch.fnmatchcase(name, part):
                yield from _found(start / name, rest)


def _files_below(folder: Path) -> Iterator[Path]:
    for path in (folder / name for name in _names(folder, hidden=False)):
        if path.is_file():
            yield path
        elif path.is_dir() and not path.is_symlink():
            yield from _files_below(path)


def _names(folder: Path, *, hidden: bool) -> list[str]:
    try:
        return sorted(path.name for path in folder.iterdir() if hidden or not path.name.startswith("."))
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
            return []  # not everything that a pattern matches holds what the rest of it says
        raise


def parquet_rows(path: Path) -> int | None:
    """The rows of a parquet file; None where its footer cannot be read."""
    try:
        rows = next(value for field, value in _footer(path) if field == _ROWS)
        return rows if type(rows) is int else None
    except (OSError, IndexError, ValueError, RecursionError, StopIteration):
        return None


class ParquetColumn(NamedTuple):
    """A column: its bytes before compression, and what it holds: None for a plain value, else its parts by name."""

    bytes: int
    parts: dict[str, Any] | None
    is_text: bool


def parquet_columns(path: Path) -> dict[str, ParquetColumn] | None:
    """The columns of a parquet file by name; None where its footer cannot be read."""
    try:
        footer = dict(_footer(path))
        elements = iter(footer[_SCHEMA])
        _, root = _element(next(elements), elements)
        sizes: Counter[str] = Counter()
        for group in footer[_GROUPS]:
            for chunk in group[1]:  # columns; of each meta_data: path_in_schema, total_uncompressed_size
                sizes[chunk[3][3][0].decode()] += chunk[3][6]
        return {
            name: ParquetColumn(sizes[name], parts if isinstance(parts, dict) else None, parts == _BYTE_ARRAY)
            for name, parts in root.items()
        }
    except (OSError, LookupError, ValueError, RecursionError, StopIteration, AttributeError, TypeError):
        return None


def _element(element: dict[int, Any], rest: Iterator[dict[int, Any]]) -> tuple[str, Any]:
    """A SchemaElement: its name, and its physical type, or the parts that follow it."""
    name = element[4].decode()
    if not (children := element.get(5)):
        return name, element.get(1)
    return name, dict(_element(next(rest), rest) for _ in range(children))


def _footer(path: Path) -> Iterator[tuple[int, Any]]:
    with path.open("rb") as file:
        file.seek(-8, 2)
        size, magic = int.from_bytes(file.read(4), "little"), file.read(4)
        if magic != b"PAR1" or size > _LARGEST:
            raise ValueError("no parquet file")
        file.seek(-8 - size, 2)
        footer = BytesIO(file.read(size))
    yield from _fields(footer)


def _fields(data: BytesIO) -> Iterator[tuple[int, Any]]:
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
