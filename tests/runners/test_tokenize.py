"""Documents to token streams: what is written, that it is the same every time, and what is refused."""

import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from transformers import AutoTokenizer

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.core.tasks import Tokenize, TrainTokenizer
from runners.data.tokens import TokenStream
from runners.tasks import tokenize
from tests.messages import wording
from tests.runners.corpora import (
    TEXTS,
    context,
    progress_lines,
    record,
    text_source,
    tokenizer_source,
    write_jsonl,
    write_texts,
)

Run = Callable[..., Path]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run the body with the given record and sources; returns its payload folder."""
    count = 0

    def run(record: Tokenize, **sources: Source) -> Path:
        nonlocal count
        count += 1
        made = context(tmp_path / f"payload-{count}", record, **sources)
        tokenize.run(made)
        return made.path

    return run


@pytest.fixture(scope="module")
def tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained tokenizer, for the tests that are given one."""
    folder = tmp_path_factory.mktemp("tokenizer")
    source = write_texts(folder / "texts")
    tokenize.run(context(folder / "payload", record(), text=source))
    return folder / "payload" / "tokenizer"


def decoded(folder: Path, split: Any) -> list[str]:
    """The documents of a stream, decoded; checks that it is EOS d1 EOS ... dn EOS."""
    stream = TokenStream(folder, split)
    tokens = stream.tokens.tolist()
    if not tokens:
        return []
    assert tokens[0] == tokens[-1] == stream.eos
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    ends = [place for place, token in enumerate(tokens) if token == stream.eos]
    assert len(ends) == stream.documents + 1
    return [tokenizer.decode(tokens[a + 1 : b]) for a, b in pairwise(ends)]


def content(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_every_document_is_in_its_stream_and_decodes_to_itself(run: Run, tmp_path: Path) -> None:
    folder = run(record(), text=write_texts(tmp_path / "texts"))
    held_out = [text for index, text in enumerate(TEXTS) if index % 4 == 1 and text]
    train = [text for index, text in enumerate(TEXTS) if index % 4 != 1 and text]
    assert decoded(folder, "train") == train
    assert decoded(folder, "held_out") == held_out
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["dtype"] == "uint16"
    assert meta["train"]["bytes"] == sum(len(text.encode()) for text in train)
    assert meta["held_out"]["documents"] == len(held_out)


def test_a_special_token_inside_a_text_does_not_end_the_document(run: Run, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts", ["one <|endoftext|> document", "another"])
    folder = run(record(held_out_every=0), text=source)
    assert decoded(folder, "train") == ["one <|endoftext|> document", "another"]


def test_the_same_text_gives_the_same_bytes_however_it_is_batched(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_texts(tmp_path / "texts")
    first = content(run(record(), text=source))
    monkeypatch.setattr(tokenize, "_BATCH_DOCUMENTS", 2)
    assert content(run(record(), text=source)) == first


def test_text_jsonl_and_parquet_of_the_same_documents_give_the_same_streams(run: Run, tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": range(len(TEXTS)), "body": TEXTS}), tmp_path / "rows.parquet", row_group_size=3)
    (tmp_path / "a.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS[:5]) + "\n")
    (tmp_path / "b.jsonl").write_text("".join(json.dumps({"body": text}) + "\n" for text in TEXTS[5:]))
    from_text = run(record(), text=write_texts(tmp_path / "texts"))
    from_jsonl = run(record(text_field="body"), text=text_source([tmp_path / "a.jsonl", tmp_path / "b.jsonl"], "jsonl"))
    from_parquet = run(record(text_field="body"), text=text_source([tmp_path / "rows.parquet"], "parquet"))
    assert content(from_text) == content(from_jsonl) == content(from_parquet)


def test_a_data_set_is_streamed_by_its_name_configuration_and_split(run: Run, tmp_path: Path) -> None:
    (tmp_path / "corpus").mkdir()
    rows = "".join(json.dumps({"text": text}) + "\n" for text in TEXTS)
    (tmp_path / "corpus" / "train.jsonl").write_text(rows)
    identity = {"hub": str(tmp_path / "corpus"), "revision": None, "config": None, "split": "train"}
    folder = run(record(skip=2), text=Source("hub_dataset", identity, {}))
    assert content(folder) == content(run(record(skip=2), text=write_texts(tmp_path / "texts")))


def test_skipped_documents_are_neither_trained_on_nor_counted(run: Run, tmp_path: Path) -> None:
    folder = run(record(skip=3), text=write_texts(tmp_path / "texts"))
    rest = TEXTS[3:]
    assert decoded(folder, "held_out") == [text for index, text in enumerate(rest) if index % 4 == 1 and text]
    assert decoded(folder, "train") == [text for index, text in enumerate(rest) if index % 4 != 1 and text]


def test_max_tokens_ends_behind_the_document_that_reaches_it(run: Run, tmp_path: Path) -> None:
    source = write_texts(tmp_path / "texts")
    everything = TokenStream(run(record(), text=source))
    ends = np.flatnonzero(everything.tokens == everything.eos)
    folder = run(record(max_tokens=int(ends[1]) + 2), text=source)  # one token into the second document
    stream = TokenStream(folder)
    assert stream.documents == 2
    np.testing.assert_array_equal(stream.tokens, everything.tokens[: ends[2] + 1])
    assert TokenStream(folder, "held_out").documents == 1  # what came before


def test_without_a_held_out_part_its_stream_is_empty(run: Run, tmp_path: Path) -> None:
    folder = run(record(held_out_every=0), text=write_texts(tmp_path / "texts"))
    stream = TokenStream(folder, "held_out")
    assert (len(stream), stream.documents, stream.windows(1)) == (0, 0, 0)


def test_a_trained_tokenizer_has_the_size_that_was_asked_for_and_never_sees_held_out_text(
    run: Run, tmp_path: Path
) -> None:
    texts = ["plain words in the text " * 20, "zzzzzzzz" * 50, "plain words again " * 20, "zzzzzzzz" * 50]
    fields = {"held_out_every": 2, "train_tokenizer": TrainTokenizer(vocabulary=270, bytes=10_000)}
    folder = run(record(**fields), text=write_texts(tmp_path / "texts", texts))
    vocabulary = AutoTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    assert len(vocabulary) == TokenStream(folder).vocabulary == 270
    assert "zz" not in vocabulary


def test_a_tokenizer_is_trained_on_no_more_than_the_bytes_that_were_asked_for(run: Run, tmp_path: Path) -> None:
    texts = ["ab" * 500, "xyz" * 500]
    fields = {"held_out_every": 0, "train_tokenizer": TrainTokenizer(vocabulary=300, bytes=900)}
    folder = run(record(**fields), text=write_texts(tmp_path / "texts", texts))
    vocabulary = AutoTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    assert "abab" in vocabulary
    assert "xy" not in vocabulary


def test_a_text_too_small_for_the_vocabulary_is_said(tmp_path: Path) -> None:
    made = context(tmp_path / "payload", record(held_out_every=0), text=write_texts(tmp_path / "texts", ["abc abc"]))
    tokenize.run(made)
    notes = [line["note"] for line in progress_lines(made) if "note" in line]
    assert len(notes) == 1
    assert notes[0].endswith(wording("tokenize.entries_asked"))


def test_a_given_tokenizer_is_copied_file_by_file(run: Run, tmp_path: Path, tokenizer_folder: Path) -> None:
    origin = tmp_path / "model"
    origin.mkdir()
    for file in tokenizer_folder.iterdir():
        (origin / file.name).write_bytes(file.read_bytes())
    (origin / "model.safetensors").write_text("weights")
    given = run(record(train_tokenizer=None), text=write_texts(tmp_path / "texts"), tokenizer=tokenizer_source(origin))
    assert content(given / "tokenizer") == content(tokenizer_folder)
    assert decoded(given, "train")


def test_progress_counts_bytes_of_the_files_or_tokens_up_to_the_limit(tmp_path: Path, tokenizer_folder: Path) -> None:
    given = tokenizer_source(tokenizer_folder)
    source = write_texts(tmp_path / "texts")
    all_bytes = sum(len(text.encode()) for text in TEXTS)
    made = context(tmp_path / "all", record(train_tokenizer=None), text=source, tokenizer=given)
    tokenize.run(made)
    lines = progress_lines(made)
    assert [line["done"] for line in lines] == sorted(line["done"] for line in lines)
    assert (lines[-1]["done"], lines[-1]["total"], lines[-1]["unit"]) == (all_bytes, all_bytes, "bytes")
    made = context(tmp_path / "some", record(train_tokenizer=None, max_tokens=300), text=source, tokenizer=given)
    tokenize.run(made)
    last = progress_lines(made)[-1]
    assert last["unit"] == "tokens"
    assert last["done"] == last["total"] >= 300


# --- what is refused -------------------------------------------------------------------------------


def refusal(run: Run, record: Tokenize, **sources: Source) -> str:
    with pytest.raises(BoomspecError) as caught:
        run(record, **sources)
    return str(caught.value)


@pytest.mark.parametrize("format", ["text", "jsonl", "parquet"])
def test_a_file_that_changed_since_it_was_compiled_is_refused(run: Run, tmp_path: Path, format: str) -> None:
    file = tmp_path / "corpus"
    file.write_text("before")
    source = text_source([file], format)
    file.write_text("behind")
    message = refusal(run, record(), text=source)
    assert message.startswith(wording("tokenize.file_changed_since_spec", file=file))
    file.unlink()
    assert wording("tokenize.cannot_read_no_such", file=file) in refusal(run, record(), text=source)


def test_a_missing_text_field_names_the_line_and_the_fields_that_there_are(run: Run, tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "rows.jsonl", [{"text": "one"}, {"txt": "two", "id": 2}])
    message = refusal(run, record(), text=source)
    assert wording("tokenize.rows_jsonl_no_field", tmp_path=tmp_path, name="text") in message
    assert wording("cli.did_you_mean", name="txt") in message
    pq.write_table(pa.table({"body": ["one"]}), tmp_path / "rows.parquet")
    message = refusal(run, record(), text=text_source([tmp_path / "rows.parquet"], "parquet"))
    assert wording("tokenize.rows_parquet_no_field", tmp_path=tmp_path, name="text") in message


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"text": null}', wording("tokenize.field_null_not_text", name="text")),
        ('{"text": 3}', wording("tokenize.field_int_not_text", name="text")),
        ("[1]", wording("tokenize.expected_object_field_not", name="text")),
        ('{"text": "cut', "not a JSON line"),
    ],
)
def test_a_line_that_is_no_document_is_refused_with_its_number(
    run: Run, tmp_path: Path, line: str, message: str
) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "one"}\n' + line + "\n")
    assert f"{file}:2: {message}" in refusal(run, record(), text=text_source([file], "jsonl"))


def test_a_null_in_a_parquet_file_is_refused_with_its_row(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "rows.parquet"
    pq.write_table(pa.table({"text": ["one", None]}), file)
    assert wording("tokenize.row_field_null", file=file, name="text") in refusal(
        run, record(), text=text_source([file], "parquet")
    )


def test_files_of_another_format_are_refused(run: Run, tmp_path: Path) -> None:
    file = tmp_path / "corpus"
    file.write_bytes(b"first\nsecond \xff\n")
    assert f"{file}:2: not UTF-8 text" in refusal(run, record(), text=text_source([file]))
    assert f"{file}: not a parquet file" in refusal(run, record(), text=text_source([file], "parquet"))


def test_a_corpus_without_training_or_held_out_documents_is_refused(run: Run, tmp_path: Path) -> None:
    few = write_texts(tmp_path / "texts", ["one", "two", "three"])
    assert wording("tokenize.no_training_documents_after") in refusal(run, record(skip=3), text=few)
    empty = write_texts(tmp_path / "empty", ["", " \n"])
    assert "no training documents" in refusal(run, record(), text=empty)
    message = refusal(run, record(held_out_every=5, held_out_offset=4), text=few)
    assert wording("tokenize.no_document_held_out") in message


def test_a_tokenizer_without_an_end_of_text_token_is_refused(run: Run, tmp_path: Path, tokenizer_folder: Path) -> None:
    origin = tmp_path / "tokenizer"
    origin.mkdir()
    (origin / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    config = json.loads((tokenizer_folder / "tokenizer_config.json").read_text())
    del config["eos_token"]
    (origin / "tokenizer_config.json").write_text(json.dumps(config))
    sources = {"text": write_texts(tmp_path / "texts"), "tokenizer": tokenizer_source(origin)}
    assert "no end-of-text token" in refusal(run, record(train_tokenizer=None), **sources)


def test_a_tokenizer_that_changed_or_is_none_is_refused(run: Run, tmp_path: Path, tokenizer_folder: Path) -> None:
    text = write_texts(tmp_path / "texts")
    source = tokenizer_source(tokenizer_folder)
    other = {**source.identity["sha256"], "tokenizer.json": "0" * 64}
    changed = Source("tokenizer", {"sha256": other}, source.location)
    assert wording("tokenize.file_changed") in refusal(run, record(train_tokenizer=None), text=text, tokenizer=changed)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "model.safetensors").write_text("weights")
    none = tokenizer_source(tmp_path / "folder")
    assert wording("tokenize.no_tokenizer_files") in refusal(
        run, record(train_tokenizer=None), text=text, tokenizer=none
    )
