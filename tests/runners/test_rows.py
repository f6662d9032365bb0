"""Rows of files: every format gives the same documents, compressed or not; what is bad is named, or counted."""

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import HELD_OUT_TEXT, Source
from runners.data.documents import Document, Documents, TextField
from runners.data.tokens import TokenStream
from runners.tasks import tokenize
from tests.messages import wording
from tests.runners import tiny
from tests.runners.corpora import TEXTS, context, progress_lines, record, text_source, write_texts

ROWS = [{"meta": {"text": text, "id": i}, "n": i} for i, text in enumerate(TEXTS)]
FIELD = "meta.text"
MARK = "\ufeff".encode()


def jsonl(rows: list[Any]) -> bytes:
    return "".join(json.dumps(row) + "\n" for row in rows).encode()


def parquet(path: Path) -> None:
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=3)


def frames(data: bytes) -> bytes:
    """Two zstd frames in one file, as parallel compressors write them."""
    half = len(data) // 2
    return b"".join(zstandard.ZstdCompressor().compress(part) for part in (data[:half], data[half:]))


FILES: dict[str, tuple[str, bytes]] = {
    "rows.jsonl": ("jsonl", jsonl(ROWS)),
    "marked.jsonl": ("jsonl", MARK + jsonl(ROWS)),
    "windows.jsonl": ("jsonl", jsonl(ROWS).replace(b"\n", b"\r\n") + b"\r\n"),
    "rows.jsonl.gz": ("jsonl", gzip.compress(jsonl(ROWS), mtime=0)),
    "two.jsonl.gz": ("jsonl", gzip.compress(jsonl(ROWS[:4]), mtime=0) + gzip.compress(jsonl(ROWS[4:]), mtime=0)),
    "rows.jsonl.zst": ("jsonl", frames(jsonl(ROWS))),
    "array.json": ("json", json.dumps(ROWS).encode()),
    "pretty.json": ("json", MARK + json.dumps(ROWS, indent=2).encode()),
    "lines.json": ("json", jsonl(ROWS)),
    "array.json.gz": ("json", gzip.compress(json.dumps(ROWS).encode())),
    "lines.json.zst": ("json", frames(jsonl(ROWS))),
}


def read(source: Source, **more: Any) -> list[Document]:
    return list(Documents(source, TextField(more.pop("text_field", FIELD)), **more))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("piece", [7, 1 << 20])
def test_every_format_gives_the_same_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, piece: int
) -> None:
    monkeypatch.setattr("runners.data.documents._PIECE", piece)
    format, data = FILES[name]
    (tmp_path / name).write_bytes(data)
    source = text_source([tmp_path / name], format)
    found = read(source)
    assert [document.text for document in found] == TEXTS
    assert [document.bytes_read for document in found] == sorted(document.bytes_read for document in found)
    assert found[-1].bytes_read <= len(data)
    for skip in (0, 3, len(TEXTS) - 1, len(TEXTS)):
        assert [document.text for document in read(source, skip=skip)] == TEXTS[skip:]
        assert [document.text for document in read(source, skip=1, done=max(0, skip - 1))] == TEXTS[max(1, skip) :]


def test_a_struct_of_a_parquet_file_has_fields(tmp_path: Path) -> None:
    parquet(tmp_path / "rows.parquet")
    source = text_source([tmp_path / "rows.parquet"], "parquet")
    assert [document.text for document in read(source)] == TEXTS
    assert [document.text for document in read(source, skip=5)] == TEXTS[5:]
    with pytest.raises(BoomspecError, match=wording("rows.row_no_field_meta")):
        read(source, text_field="meta.txt")
    with pytest.raises(BoomspecError, match=wording("rows.no_field_other_text")):
        read(source, text_field="other.text")


def test_a_field_whose_name_has_a_dot_is_that_field(tmp_path: Path) -> None:
    row = {"meta.text": "plain", "meta": {"text": "inner"}}
    (tmp_path / "rows.jsonl").write_bytes(jsonl([row]))
    assert read(text_source([tmp_path / "rows.jsonl"], "jsonl"))[0].text == "plain"
    pq.write_table(pa.Table.from_pylist([row]), tmp_path / "rows.parquet")
    assert read(text_source([tmp_path / "rows.parquet"], "parquet"))[0].text == "plain"


@pytest.mark.parametrize(
    "data", [b"one", MARK + b"one", gzip.compress(MARK + b"one", mtime=0), frames(b"one" + MARK)[:0] + b"one"]
)
def test_a_byte_order_mark_is_not_text(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.txt").write_bytes(data)
    assert [document.text for document in read(text_source([tmp_path / "a.txt"]))] == ["one"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
@pytest.mark.parametrize("format", ["text", "jsonl", "json"])
def test_utf_16_is_refused_with_what_to_do(tmp_path: Path, encoding: str, format: str) -> None:
    text = {"text": "one", "jsonl": '{"meta": {"text": "a"}}\n', "json": '[{"meta": {"text": "a"}}]'}[format]
    (tmp_path / "a").write_bytes(text.encode(encoding))
    with pytest.raises(BoomspecError) as caught:
        read(text_source([tmp_path / "a"], format))
    assert str(caught.value).startswith(f"{tmp_path}/a")
    if encoding == "utf-16" or format == "text":
        assert "iconv -f UTF-16 -t UTF-8" in f"{caught.value} {caught.value.hint}"


@pytest.mark.parametrize(
    ("data", "place"),
    [
        (b'[{"text": "a"},\n {"text": "b"}\n', "3: not a JSON array: its end is missing"),
        (b'[{"text": "a"}\n {"text": "b"}]', "2: not a JSON array: ',' or ']' is missing before '{'"),
        (b'[{"text": "a"},\n {"text" "b"}]', "2: not a JSON array: Expecting ':'"),
        (b'[{"text": "a"}] x', "1: not a JSON array: something follows its end"),
        (b'"text"', "1: not a JSON array: it does not begin with '['"),
        (b"", " not a JSON array"),
    ],
)
def test_an_array_that_is_broken_is_refused_with_its_line(tmp_path: Path, data: bytes, place: str) -> None:
    (tmp_path / "a.json").write_bytes(data)
    source = text_source([tmp_path / "a.json"], "json")
    for lenient in (False, True):  # where its rows begin and end cannot be told
        with pytest.raises(BoomspecError) as caught:
            read(source, text_field="text", lenient=lenient)
        assert place in str(caught.value)


WHOLE = zstandard.ZstdCompressor().compress(jsonl(ROWS))
SKIPPABLE = b"\x53\x2a\x4d\x18\x04\x00\x00\x00abcd"  # a frame without data
CUT = {
    "gzip": gzip.compress(jsonl(ROWS), mtime=0)[:-20],
    "no gzip": b"\x1f\x8bxxxxxxxxxxxx",
    "second frame": frames(jsonl(ROWS))[:-9],
    "only frame": WHOLE[:-9],
    "only frame, nearly nothing": WHOLE[:7],
    "behind a frame": WHOLE + WHOLE[:9],
    "no frame": WHOLE + b"something else",
}


@pytest.mark.parametrize("name", CUT)
def test_a_compressed_file_that_is_cut_is_refused(tmp_path: Path, name: str) -> None:
    """Also where bad rows may be skipped: what is missing is no row."""
    (tmp_path / "a.jsonl").write_bytes(CUT[name])
    for format in ("jsonl", "text"):
        for lenient in (False, True):
            with pytest.raises(BoomspecError, match=wording("rows.jsonl_cannot_decompressed")):
                read(text_source([tmp_path / "a.jsonl"], format), lenient=lenient)
    assert not [p for p in tmp_path.iterdir() if p.name != "a.jsonl"]


def test_a_zstd_file_cut_between_blocks_is_refused(tmp_path: Path) -> None:
    """Everything up to there can be read, and its last line is whole."""
    packer = zstandard.ZstdCompressor().compressobj()
    first = packer.compress(jsonl(ROWS[:5])) + packer.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)
    (tmp_path / "a.jsonl.zst").write_bytes(first)
    with pytest.raises(BoomspecError, match=wording("rows.ends_before_end_frame")):
        read(text_source([tmp_path / "a.jsonl.zst"], "jsonl"))


def test_frames_without_data_are_passed_over(tmp_path: Path) -> None:
    """As pzstd and seekable files have them, at the start and at the end."""
    (tmp_path / "a.jsonl.zst").write_bytes(SKIPPABLE + frames(jsonl(ROWS)) + SKIPPABLE)
    assert [d.text for d in read(text_source([tmp_path / "a.jsonl.zst"], "jsonl"))] == TEXTS


BAD = {
    "null": (b'{"text": null}', "field 'text' is null, not text"),
    "not text": (b'{"text": 3}', "field 'text' is int, not text"),
    "no such field": (b'{"txt": "x"}', "has no field 'text' (it has: txt)"),
    "not an object": (b"[1]", "expected an object with a field 'text', not list"),
    "not JSON": (b'{"text": "cut', "not a JSON line"),
    "not UTF-8": (b'{"text": "\xff"}', "not UTF-8 text"),
}


@pytest.mark.parametrize("kind", BAD)
def test_a_row_without_text_is_an_error_with_its_line_or_skipped_and_counted(tmp_path: Path, kind: str) -> None:
    line, message = BAD[kind]
    file = tmp_path / "rows.jsonl"
    good = [json.dumps({"text": text}).encode() for text in TEXTS]
    file.write_bytes(b"\n".join([*good[:3], line, *good[3:], line]))
    source = text_source([file], "jsonl")
    with pytest.raises(BoomspecError) as caught:
        tokenize.run(context(tmp_path / "refused", record(), text=source))
    assert f"{file}:4: {message}" in str(caught.value)
    assert "data.on_bad_row: skip" in str(caught.value.hint)

    made = context(tmp_path / "skipped", record(on_bad_row="skip"), text=source)
    tokenize.run(made)
    meta = json.loads((made.path / "meta.json").read_text())
    assert meta["skipped"] == {kind: 2}
    notes = [item["note"] for item in progress_lines(made) if "note" in item]
    assert any(f"{file}:4: {message}" in note for note in notes)
    assert notes[-1] == wording("rows.rows_without_text_skipped", kind=kind)
    # A bad row keeps its place: the documents that are held out are those that an empty one would leave.
    texts = [*TEXTS[:3], "", *TEXTS[3:], ""]
    as_empty = context(tmp_path / "empty", record(), text=write_texts(tmp_path / "texts", texts))
    tokenize.run(as_empty)
    for name in ("train.bin", "held_out.bin"):
        assert (made.path / name).read_bytes() == (as_empty.path / name).read_bytes()


def test_where_no_row_is_bad_allowing_for_one_changes_no_byte(tmp_path: Path) -> None:
    """So what was trained on the text stays as it is."""
    source = write_texts(tmp_path / "texts", TEXTS)
    made = [context(tmp_path / str(bad), record(on_bad_row=bad), text=source) for bad in (None, "skip")]
    for one in made:
        tokenize.run(one)
    [plain, lenient] = [{p.name: p.read_bytes() for p in one.path.rglob("*") if p.is_file()} for one in made]
    assert plain == lenient


def test_only_bad_rows_that_were_reached_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b'{"text": null}', *(json.dumps({"text": f"text {i} " * 9}).encode() for i in range(9)), b"{"] * 2
    (tmp_path / "rows.jsonl").write_bytes(b"\n".join(lines))
    source = text_source([tmp_path / "rows.jsonl"], "jsonl")
    found = set()
    for size in (1, 3, 256):
        monkeypatch.setattr(tokenize, "_BATCH_DOCUMENTS", size)
        made = context(tmp_path / str(size), record(on_bad_row="skip", held_out_every=0, max_tokens=60), text=source)
        tokenize.run(made)
        found.add((made.path / "meta.json").read_text())
    assert [json.loads(text)["skipped"] for text in found] == [{"null": 1}]  # however documents are batched


def test_a_null_of_a_parquet_file_and_a_text_file_that_is_none_are_skipped(tmp_path: Path) -> None:
    pq.write_table(pa.table({"text": ["one", None, "two"]}), tmp_path / "rows.parquet")
    made = context(
        tmp_path / "a",
        record(on_bad_row="skip", held_out_every=0),
        text=text_source([tmp_path / "rows.parquet"], "parquet"),
    )
    tokenize.run(made)
    assert TokenStream(made.path).documents == 2
    names = ["1.txt", "2.txt", "3.txt"]
    for name, data in zip(names, (b"good text", b"\xff\xfa bad", b"with \0 inside"), strict=True):
        (tmp_path / name).write_bytes(data)
    source = text_source([tmp_path / name for name in names])
    made = context(tmp_path / "b", record(on_bad_row="skip", held_out_every=0), text=source)
    tokenize.run(made)
    assert json.loads((made.path / "meta.json").read_text())["skipped"] == {"not UTF-8": 1, "not text": 1}


def test_what_is_held_out_may_be_in_files_of_its_own(tmp_path: Path) -> None:
    own = write_texts(tmp_path / "own", ["held out one", "", "held out two"])
    own = Source(HELD_OUT_TEXT, own.identity, own.location)
    made = context(
        tmp_path / "a", record(held_out_every=0, max_tokens=300), text=write_texts(tmp_path / "texts"), held_out=own
    )
    tokenize.run(made)
    train, held_out = TokenStream(made.path), TokenStream(made.path, "held_out")
    assert held_out.documents == 2
    assert held_out.bytes == len("held out one" + "held out two")
    assert len(train) >= 300
    alone = context(tmp_path / "b", record(held_out_every=0, max_tokens=300), text=write_texts(tmp_path / "texts"))
    tokenize.run(alone)
    assert (made.path / "train.bin").read_bytes() == (alone.path / "train.bin").read_bytes()
    empty = write_texts(tmp_path / "nothing", ["", " "])
    with pytest.raises(BoomspecError, match=wording("rows.files_data_held_out")):
        tokenize.run(
            context(
                tmp_path / "c",
                record(held_out_every=0),
                text=write_texts(tmp_path / "texts"),
                held_out=Source(HELD_OUT_TEXT, empty.identity, empty.location),
            )
        )


# --- a task that is killed -------------------------------------------------------------------------


class Killed(Exception):  # noqa: N818 - it is no error of the task
    """Stands for whatever ends a process in the middle."""


def sources(tmp_path: Path) -> dict[str, dict[str, Source]]:
    """The same documents from files of every kind, and as a data set of several shards."""
    texts = [f"{text} {i}" for i in range(6) for text in TEXTS]
    rows = [{"text": text} for text in texts]
    (tmp_path / "a.jsonl").write_bytes(jsonl(rows[:20]))
    (tmp_path / "b.jsonl.gz").write_bytes(gzip.compress(jsonl(rows[20:]), mtime=0))
    (tmp_path / "all.json").write_text(json.dumps(rows))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "all.parquet", row_group_size=7)
    (tmp_path / "set").mkdir()
    for i in range(3):
        (tmp_path / "set" / f"train-{i}.jsonl").write_bytes(jsonl(rows[22 * i : 22 * i + 22]))
    own = write_texts(tmp_path / "own", [f"held out {i}" for i in range(30)])
    identity = {"hub": str(tmp_path / "set"), "revision": None, "config": None, "split": "train"}
    return {
        "text": {"text": write_texts(tmp_path / "texts", texts)},
        "jsonl": {"text": text_source([tmp_path / "a.jsonl", tmp_path / "b.jsonl.gz"], "jsonl")},
        "json": {"text": text_source([tmp_path / "all.json"], "json")},
        "parquet": {"text": text_source([tmp_path / "all.parquet"], "parquet")},
        "data set": {"text": Source("hub_dataset", identity, {})},
        "own": {
            "text": write_texts(tmp_path / "texts", texts),
            "held_out": Source(HELD_OUT_TEXT, own.identity, own.location),
        },
    }


@pytest.mark.parametrize("kind", ["text", "jsonl", "json", "parquet", "data set", "own"])
def test_a_task_that_is_killed_goes_on_from_its_checkpoint_to_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr(tokenize, "_BATCH_DOCUMENTS", 4)
    given = sources(tmp_path)[kind]
    wanted = record(skip=2, held_out_every=0 if kind == "own" else 5)
    whole = context(tmp_path / "whole", wanted, **given)
    tokenize.run(whole)
    expected = {p.relative_to(whole.path): p.read_bytes() for p in whole.path.rglob("*") if p.is_file()}
    monkeypatch.setattr(tokenize, "train_tokenizer", _learns_once(tokenize.train_tokenizer))

    limits = (30, 9, 5, 9, 13, 10_000)  # documents; the first ones are read to learn the tokenizer
    resume, read, begun = tmp_path / "resume", 0, []
    original = Documents.__iter__

    def counted(self: Documents) -> Any:
        nonlocal read
        for document in original(self):
            read += 1
            if read == limit:
                raise Killed
            yield document

    monkeypatch.setattr(Documents, "__iter__", counted)
    for attempt in range(len(limits)):
        read, limit = 0, limits[attempt]
        made = context(tmp_path / f"attempt-{attempt}", wanted, **given)
        made.resume = resume
        tiny.set_training(made, checkpoint_seconds=0)
        try:
            tokenize.run(made)
        except Killed:
            begun.append(read)
            with (resume / "train.bin").open("ab") as file:
                file.write(b"what came behind the checkpoint")
            continue
        break
    assert len(begun) >= 3
    assert {p.relative_to(made.path): p.read_bytes() for p in made.path.rglob("*") if p.is_file()} == expected
    notes = [line["note"] for line in progress_lines(made) if "note" in line]
    assert [note for note in notes if note.startswith("resumes after document")]


def _learns_once(learn: Any) -> Any:
    done = []

    def once(*arguments: Any) -> None:
        assert not done, "the tokenizer was learned already"
        learn(*arguments)
        done.append(True)

    return once


def test_a_checkpoint_that_does_not_match_its_checksum_is_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokenize, "_BATCH_DOCUMENTS", 2)
    source = write_texts(tmp_path / "texts")
    whole = context(tmp_path / "whole", record(), text=source)
    tokenize.run(whole)
    first = context(tmp_path / "first", record(), text=source)
    tiny.set_training(first, checkpoint_seconds=0)
    monkeypatch.setattr(tokenize, "_check", lambda *_: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        tokenize.run(first)
    monkeypatch.undo()
    for damage in (lambda f: f.write_bytes(b"\1" + f.read_bytes()[1:]), lambda f: f.write_bytes(b""), Path.unlink):
        again = context(tmp_path / f"again-{damage.__name__}-{id(damage)}", record(), text=source)
        again.resume = first.resume
        damage(first.resume / "train.bin")
        state = (first.resume / "tokens.json").read_text()
        tokenize.run(again)
        for name in ("train.bin", "held_out.bin", "meta.json"):
            assert (again.path / name).read_bytes() == (whole.path / name).read_bytes()
        notes = [line["note"] for line in progress_lines(again) if "note" in line]
        assert any(note.startswith(wording("rows.checkpoint_damaged_ignored")) for note in notes)
        (first.resume / "tokens.json").write_text(state)
        for name in ("train.bin", "held_out.bin"):
            (first.resume / name).write_bytes((whole.path / name).read_bytes())
