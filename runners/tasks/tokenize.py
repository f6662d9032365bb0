"""Documents to a token artifact: two flat streams, a tokenizer folder and `meta.json`.

Each stream is `EOS d1 EOS d2 EOS ... dn EOS` (see `runners/tokens.py`). Text inside a document that looks
like a special token is ordinary text: only the end of a document makes an EOS.

Documents are numbered behind the first `skip`, empty ones included (they are counted, not written);
document i is held out when i % held_out_every == held_out_offset. `meta.json` has a digest of the documents of each
stream; the execution's option `rows` says what it must be where a lock knows it. Memory holds one batch of documents,
whatever the size of the corpus; the result does not depend on how documents are batched.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import cached_file

from boomspec.errors import BoomspecError
from boomspec.graph import Source
from boomspec.identity import file_digest
from boomspec.models.code import CODE, CONFIGS, check_native
from boomspec.models.files import CONFIG, CONTEXT, is_tokenizer_file
from boomspec.tasks import Tokenize, TrainTokenizer
from runners.context import Context, Input, Progress
from runners.corpus import Document, documents, source_bytes
from runners.foreign_code import forget_code, tokenizer_of
from runners.models import model_folder
from runners.tokens import DTYPES, META, TOKENIZER

EOS = "<|endoftext|>"
_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 1 << 20


_ROWS = "rows"
# A repository need not have the file, and the answer to that comes with the tokenizer itself.
_OPTIONAL: dict[str, Any] = {
    "_raise_exceptions_for_missing_entries": False,
    "_raise_exceptions_for_connection_errors": False,
    "_raise_exceptions_for_gated_repo": False,
}


@dataclass
class _Count:
    """What one stream holds. `rows`: sha256 over each document's length (8 bytes, little-endian) and UTF-8 text."""

    tokens: int = 0
    documents: int = 0
    bytes: int = 0
    rows: Any = field(default_factory=hashlib.sha256)

    def add(self, text: str, tokens: int) -> None:
        data = text.encode("utf-8")
        self.tokens += tokens
        self.documents += 1
        self.bytes += len(data)
        self.rows.update(len(data).to_bytes(8, "little"))
        self.rows.update(data)

    def size(self) -> dict[str, int]:
        return {"tokens": self.tokens, "documents": self.documents, "bytes": self.bytes}

    def read(self) -> dict[str, Any]:
        return {"documents": self.documents, "sha256": self.rows.hexdigest()}


def run(context: Context[Tokenize]) -> None:
    """Write `train.bin`, `held_out.bin`, `tokenizer/` and `meta.json` into the payload folder."""
    record, text = context.record, _source(context, "text")
    folder = context.path / TOKENIZER
    if record.train_tokenizer is not None:
        _train_tokenizer(record.train_tokenizer, _training_texts(record, text), folder, context.progress)
    else:
        _copy_tokenizer(_source(context, "tokenizer"), folder)
    tokenizer, eos = _load_tokenizer(folder, context.code)
    vocabulary = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    dtype = "uint16" if vocabulary <= 1 << 16 else "uint32"
    train, held_out = _write_streams(context, tokenizer, eos=eos, dtype=DTYPES[dtype], text=text)
    rows = {"train": train.read(), "held_out": held_out.read()}
    _check_rows(rows, context.options.get(_ROWS))
    meta = {"dtype": dtype, "eos": eos, "vocabulary": vocabulary, "train": train.size(), "held_out": held_out.size()}
    meta[_ROWS] = rows
    (context.path / META).write_text(json.dumps(meta, indent=1) + "\n", encoding="utf-8")


def _source(context: Context[Tokenize], role: str) -> Source:
    source = context.inputs[role].source
    if source is None:
        raise TypeError(f"input {role} is an artifact, not a source")
    return source


def _parts(record: Tokenize, text: Source) -> Iterator[tuple[bool, Document]]:
    """Yield (is held out, document) for every document that is not empty."""
    for index, document in enumerate(documents(text, text_field=record.text_field, skip=record.skip)):
        if document.text.strip():
            yield record.held_out_every > 0 and index % record.held_out_every == record.held_out_offset, document


def _write_streams(
    context: Context[Tokenize], tokenizer: Tokenizer, *, eos: int, dtype: np.dtype[Any], text: Source
) -> tuple[_Count, _Count]:
    """Append every document to its stream. Returns what the training and the held-out stream hold."""
    record, all_bytes = context.record, source_bytes(text)
    counts = {False: _Count(), True: _Count()}
    paths = {False: context.path / "train.bin", True: context.path / "held_out.bin"}
    with paths[False].open("wb") as train_file, paths[True].open("wb") as held_out_file:
        for is_held_out, document, ids in _encoded(tokenizer, _parts(record, text)):
            count, file = (counts[True], held_out_file) if is_held_out else (counts[False], train_file)
            row = [*ids, eos] if count.documents else [eos, *ids, eos]
            file.write(np.asarray(row, dtype).tobytes())
            count.add(document.text, len(row))
            tokens = counts[False].tokens
            if record.max_tokens is None:
                context.progress.update(document.bytes_read, all_bytes, unit="bytes", tokens=tokens)
                continue
            context.progress.update(tokens, max(tokens, record.max_tokens), unit="tokens")
            if tokens >= record.max_tokens:
                break
    _check_counts(record, counts[False], counts[True])
    return counts[False], counts[True]


def _encoded(
    tokenizer: Tokenizer, parts: Iterator[tuple[bool, Document]]
) -> Iterator[tuple[bool, Document, list[int]]]:
    """Tokenize in batches, so that the tokenizer's threads have something to share."""
    batch: list[tuple[bool, Document]] = []
    characters = 0
    for part in parts:
        batch.append(part)
        characters += len(part[1].text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield from _encode(tokenizer, batch)
            batch, characters = [], 0
    yield from _encode(tokenizer, batch)


def _encode(tokenizer: Tokenizer, batch: list[tuple[bool, Document]]) -> Iterator[tuple[bool, Document, list[int]]]:
    encodings = tokenizer.encode_batch_fast([document.text for _, document in batch], add_special_tokens=False)
    for (is_held_out, document), encoding in zip(batch, encodings, strict=True):
        yield is_held_out, document, encoding.ids


def _check_counts(record: Tokenize, train: _Count, held_out: _Count) -> None:
    if train.documents == 0:
        skipped = f" after the first {record.skip} that are skipped" if record.skip else ""
        raise BoomspecError(f"the corpus has no training documents{skipped}", hint="see data.skip and data.held_out")
    if record.held_out_every and held_out.documents == 0:
        asked = f"every {record.held_out_every}th, from {record.held_out_offset}"
        raise BoomspecError(
            f"no document was held out ({asked}) among the {train.documents} that were read",
            hint="give more documents, or a smaller data.held_out.every",
        )


def _check_rows(found: dict[str, dict[str, Any]], expected: dict[str, dict[str, Any]] | None) -> None:
    """Raise BoomspecError where a lock expects other rows."""
    for stream, rows in (expected or {}).items():
        if found[stream] != rows:
            was, now = (f"{r['documents']} documents, sha256 {r['sha256'][:12]}" for r in (rows, found[stream]))
            raise BoomspecError(
                f"the rows of the {stream.replace('_', '-')} text are not those of the lock: {was} -> {now}",
                hint="the same commit gave other rows: look for another version of `datasets` or of what it reads",
            )


# --- the tokenizer ---------------------------------------------------------------------------------


def _training_texts(record: Tokenize, text: Source) -> Iterator[str]:
    return (document.text for is_held_out, document in _parts(record, text) if not is_held_out)


def _first_bytes(texts: Iterator[str], limit: int, progress: Progress) -> Iterator[str]:
    """Yield texts until `limit` UTF-8 bytes; the last one is cut."""
    done = 0
    for text in texts:
        data = text.encode("utf-8")[: limit - done]
        done += len(data)
        progress.update(done, limit, unit="bytes", phase="learning the tokenizer")
        yield data.decode("utf-8", errors="ignore")  # a character cut in two is dropped
        if done == limit:
            return


def _train_tokenizer(wanted: TrainTokenizer, texts: Iterator[str], folder: Path, progress: Progress) -> None:
    """Learn a byte-level BPE vocabulary; the same text gives the same tokenizer."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    if wanted.vocabulary < len(alphabet) + 1:
        raise BoomspecError(f"a byte-level vocabulary needs {len(alphabet) + 1} entries, not {wanted.vocabulary}")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=wanted.vocabulary, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_first_bytes(texts, wanted.bytes, progress), trainer)
    if tokenizer.get_vocab_size() < wanted.vocabulary:
        progress.note(f"the text gives {tokenizer.get_vocab_size()} of the {wanted.vocabulary} entries asked for")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=EOS).save_pretrained(folder)


def _copy_tokenizer(source: Source, folder: Path) -> None:
    """Copy a tokenizer's files; those of a folder are compared with the digests in the source's identity."""
    code = source.identity.get(CODE, {})
    if "hub" in source.identity:
        _fetch_tokenizer(source, code, folder)
        return
    origin = Path(source.location["folder"])
    if not code:
        check_native(origin, "tokenizer", str(origin))
    folder.mkdir()
    for name, sha256 in sorted({**source.identity["sha256"], **code}.items()):
        if not is_tokenizer_file(name) and name not in code:
            continue
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            shutil.copyfile(origin / name, folder / name)
        except OSError as error:
            raise BoomspecError(f"{origin / name}: cannot be read: {error.strerror}") from error
        if file_digest(folder / name) != sha256:
            raise BoomspecError(
                f"{origin / name}: the file has changed since the spec was compiled",
                hint="compile the spec again: another tokenizer makes new artifacts",
            )
    if not any(folder.iterdir()):
        raise BoomspecError(f"{origin}: has no tokenizer files", hint="tokenizer.save_pretrained(folder)")
    if not code:
        forget_code(folder)
    if context := source.identity.get(CONTEXT):  # what decides, beside its files, which class it is
        (folder / CONFIG).write_text(json.dumps(context, indent=2) + "\n", encoding="utf-8")


def _fetch_tokenizer(source: Source, code: dict[str, str], folder: Path) -> None:
    """Save a tokenizer of the hub. Its own code runs if it is trusted, and is that of the commit."""
    hub, revision = source.identity["hub"], source.identity["revision"]
    if code:
        tokenizer_of(model_folder(Input(source.id, source=source)), code.values()).save_pretrained(folder)
        return
    if (config := cached_file(hub, CONFIGS["tokenizer"], revision=revision, **_OPTIONAL)) is not None:
        check_native(Path(config).parent, "tokenizer", hub)
    AutoTokenizer.from_pretrained(hub, revision=revision, trust_remote_code=False).save_pretrained(folder)
    forget_code(folder)


def _load_tokenizer(folder: Path, code: Collection[str]) -> tuple[Tokenizer, int]:
    """The fast tokenizer and its end-of-text id, as everyone who reads the artifact will load it."""
    tokenizer = tokenizer_of(folder, code)
    if tokenizer.eos_token_id is None:
        raise BoomspecError(
            "the tokenizer has no end-of-text token (eos_token), which separates documents",
            hint="set eos_token in its tokenizer_config.json",
        )
    if not tokenizer.is_fast:
        raise BoomspecError(f"the tokenizer ({type(tokenizer).__name__}) is not a fast one of the tokenizers library")
    fast: Tokenizer = tokenizer.backend_tokenizer
    fast.no_truncation()
    fast.no_padding()
    fast.encode_special_tokens = True  # "<|endoftext|>" inside a text is text
    return fast, int(tokenizer.eos_token_id)
