"""Turn documents into a token artifact: two flat streams, a tokenizer folder and `meta.json`.

Each stream is `EOS d1 EOS d2 EOS ... dn EOS`, or `B d1 EOS B d2 EOS ... B dn EOS` where texts begin with tokens of
their own (see `runners/data/tokens.py`). Text inside a document that looks like a special token is ordinary text:
only the end of a document makes an EOS, and only its beginning a B.

A conversation is a document that the tokenizer's chat template renders, with the special tokens of the template, and
which ends with EOS; it may have a mask of labels (`runners/data/chat.py`).

Documents are numbered after the first `skip`; empty and bad ones are counted, not written. Document i is held out when
i % held_out_every == held_out_offset, or when it is in a source of its own. `meta.json` has a digest of the documents
of each stream; where a lock expects another one (`rows` of the execution), the task fails. Memory holds one batch of
documents. The result depends neither on the batches nor on how often the task was killed (`TokenWriter`).
"""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from boomspec.core.errors import BoomspecError
from boomspec.core.files import replace_folder
from boomspec.core.graph import Source
from boomspec.core.tasks import Conversations, Tokenize
from runners.data.chat import ChatReader, ChatTokenizer, add_template
from runners.data.documents import Document, Documents, TextField
from runners.data.text_tokenizer import (
    TextTokenizer,
    copy_tokenizer,
    load_tokenizer,
    train_tokenizer,
    unlearned_tokenizer,
)
from runners.data.token_writer import Count, Place, TokenWriter, write_meta
from runners.data.tokens import DTYPES, TOKENIZER
from runners.evaluation.held_out import labelled_bytes
from runners.modeling.foreign_code import tokenizer_of
from runners.runtime.context import Context

_BATCH_DOCUMENTS, _BATCH_CHARACTERS = 256, 1 << 20
_PARTS = ("text", "held_out")  # inputs, in the order in which they are read


def run(context: Context[Tokenize]) -> None:
    """Write `train.bin`, `held_out.bin`, `tokenizer/` and `meta.json` into the payload folder."""
    record, folder, note = context.record, context.path / TOKENIZER, context.progress.note
    if record.train_tokenizer is not None:
        _learn(context, folder)
    else:
        given = context.inputs["tokenizer"]
        if given.source is None:  # that of another text
            shutil.copytree(given.folder / TOKENIZER, folder)
        else:
            copy_tokenizer(given.source, folder)
    if record.chat is not None and record.chat.template is not None:
        add_template(folder, record.chat.template)
    tokenizer = load_tokenizer(folder, context.code, bos=record.bos)
    chat = None if record.chat is None else _chat(context, folder, record.chat, tokenizer)
    ids = tokenizer.vocabulary if chat is None else max(tokenizer.vocabulary, chat.tokenizer.largest + 1)
    dtype, seconds = "uint16" if ids <= 1 << 16 else "uint32", context.training.checkpoint_seconds
    masked = record.chat is not None and record.chat.loss_on is not None
    place = context.resume, DTYPES[dtype], tokenizer.eos, tokenizer.prefix, note
    writer = TokenWriter(*place, seconds=seconds, masked=masked, ends=chat is not None)
    try:
        writer.open()
        while writer.place.part < len(_PARTS):
            if _PARTS[writer.place.part] in context.inputs:
                _write_part(context, tokenizer, writer, chat)
            writer.place = Place(part=writer.place.part + 1)
        if count := sum(writer.bad.values()):
            listed = ", ".join(f"{n:,} {kind}" for kind, n in sorted(writer.bad.items()))
            note(f"{count:,} rows without text were skipped ({listed})")
    finally:
        writer.close()
    train, held_out = writer.counts["train"], writer.counts["held_out"]
    rows = {"train": train.read(), "held_out": held_out.read()}
    _check(context, train, held_out, rows)
    meta: dict[str, Any] = {
        "dtype": dtype,
        "eos": tokenizer.eos,
        "prefix": list(tokenizer.prefix),
        "vocabulary": tokenizer.vocabulary,
    }
    meta |= {"train": train.size(masked=masked), "held_out": held_out.size(masked=masked), "rows": rows}
    if chat is not None:
        meta |= {"vocabulary": max(tokenizer.vocabulary, train.largest + 1, held_out.largest + 1), "ends": True}
    if writer.bad:  # else the artifact is that of a text in which none may be skipped
        meta["skipped"] = dict(sorted(writer.bad.items()))
    writer.finish(context.path)
    write_meta(context.path, meta)
    if chat is not None and held_out.documents:
        meta["held_out"]["bytes"] = labelled_bytes(context.path, context.code)
        write_meta(context.path, meta)


def _source(context: Context[Tokenize], role: str) -> Source:
    source = context.inputs[role].source
    assert source is not None
    return source


class _Chat(NamedTuple):
    reader: ChatReader
    tokenizer: ChatTokenizer


def _chat(context: Context[Tokenize], folder: Path, fields: Conversations, text: TextTokenizer) -> _Chat:
    """How conversations are rendered and tokenized, by the tokenizer in a folder."""
    own = tokenizer_of(folder, context.code)
    if not own.chat_template:
        hint = "give one: data.chat_template, a file with a Jinja template"
        raise BoomspecError("the tokenizer has no chat template, by which conversations become text", hint=hint)
    begin = text.prefix if context.record.bos else ()
    follows = list(text.prefix) in ([], [text.eos])
    return _Chat(ChatReader(own, fields), ChatTokenizer(own, eos=text.eos, begin=begin, follows_eos=follows))


def _learn(context: Context[Tokenize], folder: Path) -> None:
    """Learn the tokenizer, unless a task that was killed has done so."""
    record, made = context.record, context.resume / TOKENIZER
    assert record.train_tokenizer is not None
    if not made.is_dir():
        part = made.with_name(f"{TOKENIZER}.part")
        shutil.rmtree(part, ignore_errors=True)
        chat = record.chat
        reader = None if chat is None else ChatReader(unlearned_tokenizer(str(chat.template)), chat)
        indexed = enumerate(_documents(context, Place(), reader))
        texts = (d.text for i, d in indexed if _has_text(d) and not _is_held_out(record, i))
        train_tokenizer(record.train_tokenizer, texts, part, context.progress)
        replace_folder(part, made)
    shutil.copytree(made, folder)


def _documents(context: Context[Tokenize], place: Place, chat: ChatReader | None) -> Documents:
    record, role = context.record, _PARTS[place.part]
    source, skip, lenient = _source(context, role), record.skip if role == "text" else 0, record.on_bad_row == "skip"
    return Documents(
        source,
        chat or TextField(record.text_field),
        skip=skip,
        lenient=lenient,
        done=place.documents,
        state=place.state,
    )


def _has_text(document: Document) -> bool:
    return document.bad is None and bool(document.text.strip())


def _is_held_out(record: Tokenize, index: int) -> bool:
    return record.held_out_every > 0 and index % record.held_out_every == record.held_out_offset


def _write_part(context: Context[Tokenize], tokenizer: TextTokenizer, writer: TokenWriter, chat: _Chat | None) -> None:
    record, place = context.record, writer.place
    apart = _PARTS[place.part] == "held_out"
    files = _source(context, _PARTS[place.part]).identity.get("files", ())
    all_bytes = sum(file["bytes"] for file in files)  # 0 where they are not known
    train = writer.counts["train"]
    source = _documents(context, place, None if chat is None else chat.reader)
    for batch, index in _batches(source, place.documents):
        texts = [document for _, document in batch if _has_text(document)]
        encoded: Iterator[Any]
        if chat is None:
            encoded = iter(tokenizer.encoded([document.text for document in texts]))
        else:
            encoded = iter(chat.tokenizer.encoded([document.chat for document in texts if document.chat is not None]))
        for i, document in batch:
            if document.bad is not None:
                if not writer.bad:
                    context.progress.note(f"skipped: {document.bad.message}")
                writer.bad[document.bad.kind] += 1
            if not _has_text(document):
                continue
            split = "held_out" if apart or _is_held_out(record, i) else "train"
            if document.chat is None:
                writer.add(split, document.text, next(encoded))
            else:
                tokens, labels = next(encoded)
                writer.append(split, tokens, labels=labels, row=document.chat.row.encode("utf-8"))
            if record.max_tokens is None or apart:
                context.progress.update(document.bytes_read, all_bytes, unit="bytes", tokens=train.tokens)
                continue
            context.progress.update(train.tokens, max(train.tokens, record.max_tokens), unit="tokens")
            if train.tokens >= record.max_tokens:
                return
        writer.reached(Place(place.part, index, source.reached()))


def _batches(documents: Documents, start: int) -> Iterator[tuple[list[tuple[int, Document]], int]]:
    """Numbered documents, in batches for the tokenizer's threads; each batch with the number of the next document."""
    batch: list[tuple[int, Document]] = []
    characters = 0
    for index, document in enumerate(documents, start=start):
        batch.append((index, document))
        characters += len(document.text)
        if len(batch) == _BATCH_DOCUMENTS or characters >= _BATCH_CHARACTERS:
            yield batch, index + 1
            batch, characters = [], 0
    if batch:
        yield batch, batch[-1][0] + 1


def _check(context: Context[Tokenize], train: Count, held_out: Count, found: dict[str, dict[str, Any]]) -> None:
    """Raise BoomspecError where a stream has no documents, or a lock expects other rows than were `found`."""
    record = context.record
    if train.documents == 0:
        skipped = f" after the first {record.skip} that are skipped" if record.skip else ""
        raise BoomspecError(f"the corpus has no training documents{skipped}", hint="see data.skip and data.held_out")
    if record.held_out_every and held_out.documents == 0:
        asked = f"every {record.held_out_every}th, from {record.held_out_offset}"
        message = f"no document was held out ({asked}) among the {train.documents} that were read"
        raise BoomspecError(message, hint="give more documents, or a smaller data.held_out.every")
    if "held_out" in context.inputs and not held_out.documents:
        raise BoomspecError("the files of data.held_out hold no text")
    for stream, rows in (context.execution.rows or {}).items():
        if found[stream] != rows:
            was, now = (f"{r['documents']} documents, sha256 {r['sha256'][:12]}" for r in (rows, found[stream]))
            message = f"the rows of the {stream.replace('_', '-')} text are not those of the lock: {was} -> {now}"
            hint = "the same commit gave other rows: look for another version of `datasets` or of what it reads"
            raise BoomspecError(message, hint=hint)
