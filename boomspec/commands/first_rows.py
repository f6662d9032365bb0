"""Look at the first rows of text files: what they hold, in which fields, and about how much.

    files --look--> Seen(documents, columns) --chosen--> Fields of `data`

Of rows (jsonl, json) the beginning of the first file is read, and the first row of some others. Of parquet files the
footers say all of it.
"""

import gzip
import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from boomspec.compile import text_files
from boomspec.core.errors import BoomspecError, did_you_mean
from boomspec.core.files import unreadable
from boomspec.core.machine import install_line
from boomspec.plan.repetition import PACKED

Kind = Literal["text", "messages", "other"]
_SAMPLES = (1 << 20, 1 << 26)  # bytes of a file; the second where a row is longer than the first
_MOST_ROWS = 500
_MOST_FILES = 8  # whose first row is looked at
_TEMPLATE_BYTES = 24  # of a chat template around a message: <|im_start|>user, <|im_end|>
_TEXT = ("text", "content", "document", "body", "markdown")
_MESSAGES = ("messages", "conversation", "conversations", "chat", "dialogue")
_PAIRS = (
    ("prompt", "response"), ("prompt", "completion"), ("prompt", "answer"), ("prompt", "output"),
    ("instruction", "response"), ("instruction", "output"), ("question", "answer"), ("question", "response"),
    ("query", "response"), ("query", "answer"), ("user", "assistant"), ("input", "output"),
)  # fmt: skip
_ROWS_HOLD = "a row holds a text, or messages (a list of {role, content}), or a prompt and a response"


@dataclass(frozen=True)
class Column:
    """A field of the rows; `bytes`: of its text in all files, about."""

    kind: Kind
    bytes: float


@dataclass(frozen=True)
class Seen:
    """What the files hold. `columns` is empty for files that are documents themselves, of `bytes` in all."""

    documents: int
    bytes: float
    columns: Mapping[str, Column] = field(default_factory=dict)


@dataclass(frozen=True)
class Fields:
    """Fields of `data`, and the bytes of the text that they name."""

    fields: Mapping[str, str]
    bytes: float

    @property
    def is_chat(self) -> bool:
        return bool(self.fields.keys() & {"messages", "prompt"})


def format_of(files: Sequence[Path]) -> tuple[str, bool]:
    """The format of files, and whether their names say it. Raises BoomspecError for several, or what is no text."""
    by_name = {text_files.format_of(path): path for path in files}
    if len(by_name) > 1:
        found = ", ".join(f"{name or 'unknown'}: {path.name}" for name, path in by_name.items())
        message = f"files of several formats ({found})"
        raise BoomspecError(message, hint="give files of one format, such as --data 'texts/*.jsonl'")
    [(name, path)] = by_name.items()
    if name is not None:
        return name, True
    start = _start(path, 1 << 12).lstrip()
    if start.startswith(b"PAR1"):
        return "parquet", False
    if b"\0" in start:
        raise BoomspecError(f"{path}: no text", hint="give text, jsonl, json or parquet files, also as .gz or .zst")
    if start.startswith((b"{", b"[")):
        return ("jsonl" if start.startswith(b"{") else "json"), False
    return "text", False


def look(files: Sequence[Path], format: str) -> Seen:
    """What files of a format hold. Raises BoomspecError for files that cannot be read, or hold nothing."""
    size = sum(path.stat().st_size * PACKED.get(path.suffix, 1.0) for path in files)
    if not size:
        raise BoomspecError(f"{files[0]}: empty" if len(files) == 1 else f"{len(files)} files, all of them empty")
    if format == "parquet":
        return _parquet(files)
    _check_encoding(files[0])
    if format == "text":
        return Seen(len(files), size)
    filled = [path for path in files if path.stat().st_size]
    rows, read = _rows(filled[0], format)
    names, bytes_of = defaultdict[str, set[Kind]](set), defaultdict[str, float](float)
    for row in rows:
        for name, value in row.items():
            kind, amount = _held(value)
            names[name] |= {kind} if value is not None else set()
            bytes_of[name] += amount
    columns = {
        name: Column(next(iter(kinds)) if len(kinds) == 1 else "other", bytes_of[name] * size / read)
        for name, kinds in names.items()
    }
    for other in filled[1:_MOST_FILES]:
        more, _ = _rows(other, format, most=1)
        if lost := next((name for name in columns if name not in more[0] and columns[name].kind != "other"), None):
            columns.pop(lost)  # not a field of all files
    return Seen(max(len(rows), round(len(rows) * size / read)), size, columns)


def chosen(seen: Seen, files: Sequence[Path], *, template: bool) -> Fields:
    """Which fields of the rows are trained on. `template`: whether the tokenizer can render conversations."""
    if not seen.columns:
        return Fields({}, seen.bytes)
    columns = seen.columns
    texts = {name: column for name, column in columns.items() if column.kind == "text" and column.bytes}
    chats = [name for name, column in columns.items() if column.kind == "messages"]
    pair = next((both for both in _PAIRS if all(name in texts for name in both)), None)
    chat: Fields | None = None
    if chats:
        name = next((known for known in _MESSAGES if known in chats), chats[0])
        tools = {"tools": "tools"} if "tools" in columns else {}
        chat = Fields({"messages": name, **tools}, columns[name].bytes)
    elif pair is not None and "text" not in texts:
        extra = 2 * _TEMPLATE_BYTES * seen.documents
        chat = Fields(dict(zip(("prompt", "response"), pair, strict=True)), sum(texts[n].bytes for n in pair) + extra)
    if chat is not None and template:
        return chat
    name = next((known for known in _TEXT if known in texts), "")
    if not name and chat is None and texts:
        name = max(texts, key=lambda own: texts[own].bytes)
    if name:
        return Fields({} if name == "text" else {"text_field": name}, texts[name].bytes)
    if chat is not None:
        held = " and ".join(chat.fields.values())
        message = f"{files[0]}: its rows hold conversations ({held}), and the teacher's tokenizer has no chat template"
        raise BoomspecError(message, hint="put one beside it (chat_template.jinja), or give rows with a field 'text'")
    close = did_you_mean("text", list(columns)) or _ROWS_HOLD
    raise BoomspecError(f"{files[0]}: no text in its first rows (fields: {', '.join(columns) or 'none'})", hint=close)


def _parquet(files: Sequence[Path]) -> Seen:
    whole: dict[str, Column] = {}
    documents = 0
    for number, path in enumerate(files):
        found, rows = text_files.parquet_columns(path), text_files.parquet_rows(path)
        if found is None or rows is None:
            raise BoomspecError(f"{path}: no readable parquet file", hint="is it whole? Copy it again")
        documents += rows
        kinds = {name: _kind(column) for name, column in found.items()}
        common = [name for name in found if number == 0 or name in whole]
        before = {name: whole[name].bytes if number else 0.0 for name in common}
        whole = {name: Column(kinds[name], before[name] + found[name].bytes) for name in common}
    if not documents:
        raise BoomspecError(f"{files[0]}: no rows")
    return Seen(documents, sum(column.bytes for column in whole.values()), whole)


def _kind(column: text_files.ParquetColumn) -> Kind:
    parts: Any = column.parts
    while isinstance(parts, dict) and len(parts) == 1:  # messages: {list: {element: {role, content}}}
        [parts] = parts.values()
    if isinstance(parts, dict) and {"role", "content"} <= parts.keys():
        return "messages"
    return "text" if column.is_text else "other"


def _held(value: Any) -> tuple[Kind, float]:
    """What a value is, and the bytes of its text."""
    if isinstance(value, str):
        return "text", len(value.encode(errors="replace"))
    if (
        isinstance(value, list)
        and value
        and all(isinstance(v, dict) and {"role", "content"} <= v.keys() for v in value)
    ):
        return "messages", sum(len(str(v["content"]).encode(errors="replace")) + _TEMPLATE_BYTES for v in value)
    return "other", 0.0


def _rows(path: Path, format: str, *, most: int = _MOST_ROWS) -> tuple[list[dict[str, Any]], int]:
    """The first rows of a file, and the bytes that they take."""
    for limit in _SAMPLES:
        data = _start(path, limit)
        found: list[dict[str, Any]] = []
        read = 0
        for row, end in _listed(path, data, whole=len(data) < limit) if format == "jsonl" else _array(path, data):
            if not isinstance(row, dict):
                what = "a list" if isinstance(row, list) else type(row).__name__
                raise BoomspecError(f"{path}: row {len(found) + 1} is {what}, not an object", hint=_ROWS_HOLD)
            found.append(row)
            read = end
            if len(found) == most:
                break
        if found:
            return found, read
    raise BoomspecError(f"{path}: no rows", hint=_ROWS_HOLD)


def _listed(path: Path, data: bytes, *, whole: bool) -> Iterator[tuple[Any, int]]:
    """Each line as JSON, and where it ends. The last line of a part of a file is left out."""
    lines = data.split(b"\n")
    end = 0
    for number, line in enumerate(lines if whole else lines[:-1], start=1):
        end += len(line) + 1
        if text := line.strip():
            try:
                yield json.loads(text.decode("utf-8-sig")), min(end, len(data))
            except UnicodeDecodeError as error:
                raise BoomspecError(f"{path}:{number}: not UTF-8", hint="save it as UTF-8: see iconv") from error
            except ValueError as error:
                hint = "jsonl has an object a line; an array of objects is .json"
                raise BoomspecError(f"{path}:{number}: not JSON: {error}", hint=hint) from error


def _array(path: Path, data: bytes) -> Iterator[tuple[Any, int]]:
    """Each item of the array that the text begins with, as far as it is whole, and where it ends."""
    text = data.decode("utf-8-sig", errors="ignore")
    if not text.lstrip().startswith("["):
        hint = "rename it to .jsonl where it has an object a line"
        raise BoomspecError(f"{path}: not an array of objects", hint=hint)
    place, decoder = text.index("[") + 1, json.JSONDecoder()
    while match := re.compile(r"[\s,]*(?=[^\s,\]])").match(text, place):
        try:
            item, place = decoder.raw_decode(text, match.end())
        except ValueError:
            return  # the part of the file ends in it
        yield item, len(text[:place].encode())


def _start(path: Path, size: int) -> bytes:
    """The first bytes of a file, unpacked."""
    try:
        if path.suffix.lower() == ".gz":
            with gzip.open(path) as packed:
                return packed.read(size)
        if path.suffix.lower() == ".zst":
            import zstandard  # which comes with the runners

            with path.open("rb") as raw:
                return zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(raw).read(size)
        with path.open("rb") as plain:
            return plain.read(size)
    except ImportError as error:
        raise BoomspecError(f"{path}: zstandard is not installed", hint=install_line("run")) from error
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # of the two packers, which have errors of their own
        raise BoomspecError(f"{path}: cannot be unpacked: {error}") from error


def _check_encoding(path: Path) -> None:
    start = _start(path, 1 << 12)
    if start[:2] in text_files.UTF_16:
        hint = f"save it as UTF-8: iconv -f UTF-16 -t UTF-8 {path.name}"
        raise BoomspecError(f"{path}: UTF-16, not UTF-8", hint=hint)
    if b"\0" in start:
        raise BoomspecError(f"{path}: no text", hint="give text, jsonl, json or parquet files, also as .gz or .zst")
