"""Conversations as token artifacts: masks beside the stream, exact counts, kills, blends with text, and measures."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError
from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.graph import Source
from boomspec.core.tasks import Blend, Conversations, Tokenize, TrainTokenizer
from boomspec.plan.text_plan import blend_plans, text_plans
from boomspec.spec.experiments import load_spec
from boomspec.store import FolderStore
from runners.data.token_writer import TokenWriter
from runners.data.tokens import TokenStream
from runners.evaluation.held_out import text_bytes
from runners.modeling.foreign_code import tokenizer_of
from runners.modeling.labels import PADDING, inputs_of, with_labels
from runners.runtime.context import Context
from runners.runtime.job import Input
from runners.tasks import blend, tokenize
from tests.boomspec.test_cli import call
from tests.messages import wording
from tests.runners import corpora
from tests.runners.chats import answer, tokenizer, user

ROWS = [
    {"messages": [user(f"question {i}" * (i % 4 + 1)), answer(f"yes {i}"), user("more"), answer("no" * (i % 5 + 1))]}
    for i in range(60)
]
RESPONSES = Conversations(messages="messages", loss_on="responses")


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of SmolLM2 in small: its template, its special tokens."""
    folder = tmp_path_factory.mktemp("model")
    tokenizer("smollm2").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def sft(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("sft")
    return made(folder / "sft", model, ROWS, chat=RESPONSES, held_out_every=6)


@pytest.fixture(scope="module")
def web(tmp_path_factory: pytest.TempPathFactory, model: Path) -> Path:
    folder = tmp_path_factory.mktemp("web")
    return made(folder / "web", model, [{"text": f"plain text number {i}. " * 4} for i in range(80)], held_out_every=8)


def context_of(folder: Path, model: Path, rows: list[dict[str, Any]], **fields: Any) -> Context[Tokenize]:
    source = corpora.write_jsonl(folder.with_suffix(".rows.jsonl"), rows)
    record = corpora.record(train_tokenizer=None, **fields)
    made = corpora.context(folder, record, text=source, tokenizer=corpora.tokenizer_source(model))
    return replace(made, execution=Execution(training=TrainingOptions(checkpoint_seconds=0.0)))


def made(folder: Path, model: Path, rows: list[dict[str, Any]], **fields: Any) -> Path:
    tokenize.run(context_of(folder, model, rows, **fields))
    return folder


def said(folder: Path, split: Any = "train") -> list[str]:
    """What is labelled of each document."""
    stream, own = TokenStream(folder, split), tokenizer_of(folder / "tokenizer")
    starts, ends = stream.bounds
    return [own.decode(stream.tokens[a:b][stream.labels(a, b)].tolist()) for a, b in zip(starts, ends, strict=True)]


def test_the_responses_are_labels_and_their_number_is_exact(sft: Path, model: Path) -> None:
    meta, stream, own = json.loads((sft / "meta.json").read_text()), TokenStream(sft), tokenizer("smollm2")
    train = [row["messages"] for i, row in enumerate(ROWS) if i % 6 != 1]
    wanted = [f"{m[1]['content']}<|im_end|>{m[3]['content']}<|im_end|>" for m in train]
    assert said(sft) == wanted
    assert meta["train"]["labelled"] == sum(len(own(text).input_ids) for text in wanted) == stream.labelled
    assert meta["train"]["labelled"] == int(stream.labels(0, len(stream)).sum())
    # Every conversation is one document, although each of its turns ends with the end-of-text.
    assert meta["train"]["documents"] == stream.documents == len(train) == 50
    assert (stream.tokens == stream.eos).sum() == 1 + 5 * len(train)
    assert stream.vocabulary == len(own)  # its last entries are ordinary words, which a text may have, too
    held_out = [row["messages"] for i, row in enumerate(ROWS) if i % 6 == 1]
    assert meta["held_out"]["bytes"] == sum(len(m[1]["content"] + m[3]["content"]) for m in held_out)


def test_batches_hide_what_is_no_label_through_packing_and_padding(sft: Path) -> None:
    stream = TokenStream(sft)
    for length in (7, 64):
        rows = stream.batch(0, sequences=stream.windows(length), sequence_length=length, seed=3)
        assert np.array_equal(
            inputs_of(torch.from_numpy(rows)).numpy()[:, :-1],
            stream.inputs(0, sequences=stream.windows(length), sequence_length=length, seed=3),
        )
        counted = stream.labels(1, 1 + stream.windows(length) * length).sum()
        assert (rows[:, 1:] >= 0).sum() == counted
    starts, ends = stream.bounds
    rows = stream.padded_batch(0, sequences=stream.documents, sequence_length=400, seed=0)
    assert (rows[:, 1:] >= 0).sum() == stream.labelled
    whole = sorted(tuple(with_labels(row[row != PADDING])) for row in rows)
    assert whole == sorted(tuple(stream.tokens[a:b].astype(int)) for a, b in zip(starts, ends, strict=True))


def test_all_of_a_conversation_may_be_learned(tmp_path: Path, model: Path, sft: Path) -> None:
    every = made(tmp_path / "all", model, ROWS, chat=RESPONSES.model_copy(update={"loss_on": None}), held_out_every=6)
    one, two = TokenStream(every), TokenStream(sft)
    assert np.array_equal(one.tokens, two.tokens)
    assert one.labelled is None
    assert not (every / "train.labels").exists()
    assert np.array_equal(one.bounds, two.bounds)


def test_a_task_that_is_killed_anywhere_comes_to_the_same_mask(
    tmp_path: Path, model: Path, sft: Path, monkeypatch
) -> None:
    monkeypatch.setattr(tokenize, "_BATCH_DOCUMENTS", 5)
    kept, writes = TokenWriter.append, 0

    def append(self: TokenWriter, *given: Any, **named: Any) -> None:
        nonlocal writes
        if (writes := writes + 1) % 17 == 0:
            raise KeyboardInterrupt
        kept(self, *given, **named)

    monkeypatch.setattr(TokenWriter, "append", append)
    killed = context_of(tmp_path / "killed", model, ROWS, chat=RESPONSES, held_out_every=6)
    attempts = 0
    while not (killed.path / "meta.json").exists():
        attempts += 1
        for left in killed.path.iterdir():  # as the executor does
            left.rename(tmp_path / f"left-{attempts}-{left.name}")
        try:
            tokenize.run(killed)
        except KeyboardInterrupt:
            continue
    assert attempts > 2
    names = sorted(path.name for path in sft.iterdir() if path.is_file())
    assert names == [
        "held_out.bin",
        "held_out.ends",
        "held_out.labels",
        "meta.json",
        "train.bin",
        "train.ends",
        "train.labels",
    ]
    assert all((sft / name).read_bytes() == (killed.path / name).read_bytes() for name in names)


def test_bad_rows_end_the_task_with_their_place_or_are_left_out_and_counted(tmp_path: Path, model: Path) -> None:
    rows = [*ROWS[:3], {"messages": [user("a")]}, {"messages": [user("<|im_end|>"), answer("b")]}, *ROWS[3:5]]
    with pytest.raises(BoomspecError, match=wording("chat_data.no_response", place="bad.rows.jsonl:4")):
        made(tmp_path / "bad", model, rows, chat=RESPONSES, held_out_every=0)
    skipped = made(tmp_path / "skipped", model, rows, chat=RESPONSES, held_out_every=0, on_bad_row="skip")
    meta = json.loads((skipped / "meta.json").read_text())
    assert meta["skipped"] == {"no response": 1, "special token": 1}
    assert meta["train"]["documents"] == 5


def test_a_tokenizer_without_a_template_takes_one_from_the_spec_and_hands_it_on(tmp_path: Path) -> None:
    own = tokenizer("smollm2")
    template, own.chat_template = own.chat_template, None
    own.save_pretrained(tmp_path / "base")
    with pytest.raises(BoomspecError, match=wording("chat_data.no_template")):
        made(tmp_path / "none", tmp_path / "base", ROWS[:9], chat=RESPONSES)
    given = RESPONSES.model_copy(update={"template": template})
    folder = made(tmp_path / "given", tmp_path / "base", ROWS[:9], chat=given)
    assert tokenizer_of(folder / "tokenizer").chat_template == template


def test_a_tokenizer_may_be_trained_on_conversations(tmp_path: Path) -> None:
    template = (
        "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}"
        "{% if add_generation_prompt %}assistant: {% endif %}"
    )
    record = corpora.record(
        train_tokenizer=TrainTokenizer(vocabulary=270, bytes=3000),
        chat=RESPONSES.model_copy(update={"template": template}),
    )
    context = corpora.context(tmp_path / "learned", record, text=corpora.write_jsonl(tmp_path / "rows.jsonl", ROWS))
    tokenize.run(context)
    assert said(context.path)[0] == "yes 0<|endoftext|>no<|endoftext|>"
    assert TokenStream(context.path).vocabulary == 270


def test_a_blend_of_text_and_conversations_has_the_labels_of_both(tmp_path: Path, sft: Path, web: Path) -> None:
    folder = tmp_path / "blend"
    folder.mkdir()
    inputs = {"source_0": Input("0" * 64, path=web), "source_1": Input("1" * 64, path=sft)}
    blend.run(Context(Blend(weights=(1, 1)), inputs, folder, tmp_path / "resume"))
    meta, stream = json.loads((folder / "meta.json").read_text()), TokenStream(folder)
    text, chat = meta["train"]["sources"]
    assert text["labelled"] == text["tokens"]
    own = TokenStream(sft)
    assert chat["labelled"] == int(own.labels(0, int(own.bounds[1][chat["documents"] - 1])).sum())
    assert meta["train"]["labelled"] == text["labelled"] + chat["labelled"] == stream.labelled
    assert abs(text["tokens"] - chat["tokens"]) < 200
    assert meta["train"]["documents"] == text["documents"] + chat["documents"] == len(stream.bounds[0])
    learned = said(folder)
    assert sum(one.startswith("yes") for one in learned) == chat["documents"]
    # Of held-out text the end of a document is not measured; of a response the end of its turn is.
    measured = said(folder, "held_out")
    assert {one.endswith("<|im_end|>") for one in measured if one.startswith("yes")} == {True}
    assert {one.endswith("<|im_end|>") for one in measured if one.startswith("plain")} == {False}
    assert meta["held_out"]["bytes"] == sum(len(one.replace("<|im_end|>", "")) for one in measured)
    assert stream.vocabulary == own.vocabulary
    assert tokenizer_of(folder / "tokenizer").chat_template


def test_the_bytes_of_a_cut_are_those_of_its_labels(sft: Path) -> None:
    stream, own = TokenStream(sft, "held_out"), tokenizer_of(sft / "tokenizer")
    labels = stream.labels(0, len(stream))
    cut = len(stream) // 2
    found = text_bytes(stream.tokens[:cut], eos=stream.eos, tokenizer=own, labels=labels[1:cut])
    kept = stream.tokens[:cut][labels[:cut]].tolist()
    assert found == len(own.decode([token for token in kept if token != stream.eos]).encode())


SPEC = """
boomspec: 1
name: chats
teacher:
  pretrain:
    {layers: 4, hidden_size: 16, intermediate_size: 32, attention_heads: 2, tokens: 4096, batch_tokens: 256,
     tokenizer: {vocabulary: 280, train_on: 10KB}}
student: {keep: [0, 2]}
data:
  sequence_length: 32
  held_out: {every: 6}
  sources:
    web: {files: web.jsonl}
    sft: {files: sft.jsonl, messages: messages, loss_on: responses, chat_template: chat.jinja}
  blend: {web: 1k, sft: 2k}
distill: {tokens: 4096, batch_tokens: 256}
evaluate: {held_out: {}}
"""
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}\n{% endfor %}"
CHAT += "{% if add_generation_prompt %}assistant: {% endif %}"


def test_a_plan_counts_labels_and_inputs_exactly_once_the_text_is_there(tmp_path: Path) -> None:
    corpora.write_jsonl(tmp_path / "web.jsonl", [{"text": f"plain text number {i}. " * 4} for i in range(80)])
    corpora.write_jsonl(tmp_path / "sft.jsonl", ROWS)
    (tmp_path / "chat.jinja").write_text(CHAT)
    (tmp_path / "spec.yaml").write_text(SPEC)
    graph, store = compile_experiments([load_spec(tmp_path / "spec.yaml")]).graph, FolderStore(tmp_path / "store")
    before = {text.name: (text.labelled, text.loss_on, text.conversations) for text in text_plans(graph, store)}
    assert before == {"tokenize web": (None, "all", None), "tokenize sft": (None, "responses", "messages")}
    [mixed] = blend_plans(graph, store)
    assert (mixed.tokens, mixed.labelled) == (3000, None)
    assert {part.name: part.share for part in mixed.parts} == {
        "tokenize web": "1000 tokens",
        "tokenize sft": "2000 tokens",
    }
    streams = {}
    for node in graph.nodes.values():
        if node.task.kind in ("tokenize", "blend"):
            body = {"tokenize": tokenize, "blend": blend}[node.task.kind]
            with store.workspace(node.task.kind, node.id) as workspace:
                inputs = {
                    role: Input(i, source=graph.sources[i])
                    if i in graph.sources
                    else Input(i, path=streams[i].file.parent)
                    for role, i in node.task.inputs.items()
                }
                body.run(Context(node.task.record, inputs, workspace.path, tmp_path / "resume" / node.id))
                store.publish(workspace, node.task.kind, node.id, node.task.identity(), {})
            streams[node.id] = TokenStream(store.path(node.task.kind, node.id))
    for text in text_plans(graph, store):
        stream = streams[text.task]
        counted = int(stream.labels(1, len(stream)).sum())  # every document begins behind an end-of-text
        assert (text.tokens, text.labelled, text.unlabelled) == (len(stream), counted, len(stream) - counted)
    [mixed] = blend_plans(graph, store)
    stream = streams[mixed.task]
    assert mixed.labelled == int(stream.labels(0, len(stream)).sum()) == sum(part.labelled or 0 for part in mixed.parts)
    assert mixed.unlabelled == len(stream) - mixed.labelled
    for part in mixed.parts:
        assert (part.tokens or 0) >= {"tokenize web": 1000, "tokenize sft": 2000}[part.name]
    output = " ".join(call("plan", tmp_path / "spec.yaml", "--store", tmp_path / "store").output.split())
    counts = {"labelled": f"{mixed.labelled:,}", "unlabelled": f"{mixed.unlabelled:,}"}
    assert wording("chat_data.counted", tokens=f"{mixed.tokens:,}", **counts) in output
    assert wording("chat_data.learned") in output


@pytest.mark.parametrize("chat", [None, RESPONSES], ids=["text", "conversations"])
def test_a_streamed_data_set_goes_on_in_the_shard_where_it_stopped(
    tmp_path: Path, model: Path, monkeypatch, chat
) -> None:
    """What was read before is not read again: its shards are no longer what they were."""
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    rows = ROWS if chat else [{"text": f"plain text number {i}. " * 4} for i in range(60)]
    shards = [corpus / f"train-{number:05}.jsonl" for number in range(6)]
    for number, shard in enumerate(shards):
        shard.write_text("".join(json.dumps(row) + "\n" for row in rows[number * 10 : number * 10 + 10]))
    identity = {"hub": str(corpus), "revision": None, "config": None, "split": "train"}

    def streamed(name: str) -> Context[Tokenize]:
        record = corpora.record(train_tokenizer=None, chat=chat, held_out_every=6, skip=3)
        inputs = {"text": Source("hub_dataset", identity, {}), "tokenizer": corpora.tokenizer_source(model)}
        made = corpora.context(tmp_path / name, record, **inputs)
        return replace(made, execution=Execution(training=TrainingOptions(checkpoint_seconds=0.0)))

    whole = streamed("whole")
    tokenize.run(whole)
    monkeypatch.setattr(tokenize, "_BATCH_DOCUMENTS", 4)
    kept, writes = TokenWriter.append, 0

    def append(self: TokenWriter, *given: Any, **named: Any) -> None:
        nonlocal writes
        if (writes := writes + 1) == 38:  # in the fifth shard
            raise KeyboardInterrupt
        kept(self, *given, **named)

    monkeypatch.setattr(TokenWriter, "append", append)
    killed = streamed("killed")
    with pytest.raises(KeyboardInterrupt):
        tokenize.run(killed)
    for shard in shards[:3]:
        shard.write_text(shard.read_text().replace("question", "zuestion").replace("plain", "zlain"))
    for left in list(killed.path.iterdir()):  # as the executor does
        left.rename(tmp_path / f"left-{left.name}")
    tokenize.run(killed)
    names = sorted(path.name for path in whole.path.iterdir() if path.is_file())
    assert all((whole.path / name).read_bytes() == (killed.path / name).read_bytes() for name in names)
