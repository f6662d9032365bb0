"""Conversations become documents: what is rendered, what is a label, and what is refused."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Conversations
from runners.data.chat import ChatReader, ChatTokenizer, Rendered
from runners.data.rows import BadRow
from tests.messages import wording
from tests.runners.chats import CONVERSATIONS, SPECIAL, TEMPLATES, TOOLS, WITH_TOOLS, answer, marked, tokenizer, user

FIELDS = Conversations(messages="messages", tools="tools", loss_on="responses")
EVERY = [
    (name, kind) for name in SPECIAL for kind in (*CONVERSATIONS, *WITH_TOOLS) if (name, kind) != ("smollm2", "a tool")
]


def reader(name: str, template: str | None = None, fields: Conversations = FIELDS) -> ChatReader:
    return ChatReader(tokenizer(name, template), fields)


def read(found: ChatReader, messages: Sequence[Any], **row: Any) -> Rendered | BadRow:
    return found({"messages": list(messages), **row}, "rows.jsonl:7")


def rendered(found: ChatReader, messages: Sequence[Any], **row: Any) -> Rendered:
    made = read(found, messages, **row)
    assert isinstance(made, Rendered), made
    return made


def documents(name: str, chats: Sequence[Rendered], **more: Any) -> list[Any]:
    own = tokenizer(name)
    options = {"eos": own.eos_token_id, "begin": (), "follows_eos": SPECIAL[name][1] is None} | more
    return ChatTokenizer(own, **options).encoded(chats)


def given(kind: str) -> dict[str, Any]:
    return {"messages": WITH_TOOLS[kind], "tools": TOOLS} if kind in WITH_TOOLS else {"messages": CONVERSATIONS[kind]}


@pytest.mark.parametrize(("name", "kind"), EVERY)
def test_responses_are_found_where_a_template_that_marks_them_marks_them(name: str, kind: str) -> None:
    found, truth = rendered(reader(name), **given(kind)), rendered(reader(name, marked(name)), **given(kind))
    assert found.text == truth.text
    # Where two turns follow each other without a prompt between them, the marks are one or two: what counts is what.
    assert _characters(found) == _characters(truth)
    assert found.spans
    own = tokenizer(name)
    row = given(kind)
    theirs = (
        own.apply_chat_template(row["messages"], tools=row.get("tools"), tokenize=True, return_dict=True)
        if ("strftime_now" not in own.chat_template)
        else None
    )
    ids, labels = documents(name, [found])[0]
    if theirs is not None:
        assert theirs["input_ids"][: len(ids) - 1] == ids[:-1].tolist()
    assert len(labels) == len(ids)
    written = "".join(_text(own, ids[labels]))
    assert written == "".join(found.text[start:end] for start, end in found.spans)


def _characters(found: Rendered) -> set[int]:
    return {place for start, end in found.spans or () for place in range(start, end)}


def _text(own: Any, ids: Any) -> str:
    return str(own.decode(ids.tolist(), clean_up_tokenization_spaces=False))


def test_exactly_the_response_and_the_end_of_its_turn_are_labels() -> None:
    found = rendered(reader("smollm2"), [user("Hi"), answer("Yes."), user("So"), answer("No.")])
    ids, labels = documents("smollm2", [found])[0]
    own = tokenizer("smollm2")
    assert [_text(own, ids[i : i + 1]) for i in np.flatnonzero(labels)] == [*"Yes.", "<|im_end|>", *"No.", "<|im_end|>"]
    # What the template writes behind the last end of a turn, which is the end of the text here, is left out.
    assert found.text.endswith("<|im_end|>\n")
    assert ids[-1] == own.eos_token_id
    assert _text(own, ids) == found.text[:-1]


def test_the_end_of_the_text_is_added_where_a_template_ends_otherwise_and_learned_where_nothing_else_ends_a_turn() -> (
    None
):
    ids, labels = documents("qwen3", [rendered(reader("qwen3"), [user("a"), answer("b")])])[0]
    own = tokenizer("qwen3")
    assert _text(own, ids[-3:]) == "<|im_end|>\n<|endoftext|>"
    assert labels[-3:].tolist() == [True, False, False]
    plain = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    plain += "{% if add_generation_prompt %}assistant: {% endif %}"
    found = rendered(reader("qwen3", plain), [user("a"), answer("b"), user("c"), answer("d")])
    assert [found.text[start:end] for start, end in found.spans or ()] == ["b", "d"]
    ids, labels = documents("qwen3", [found])[0]
    assert labels[-3:].tolist() == [True, False, True]
    open_end = rendered(reader("qwen3", plain), [user("a"), answer("b"), user("c")])
    assert documents("qwen3", [open_end])[0][1][-1] == np.False_


def test_thinking_of_earlier_turns_is_left_out_and_that_of_the_last_is_learned() -> None:
    found = rendered(reader("qwen3"), CONVERSATIONS["thinking"])
    said = [found.text[start:end] for start, end in found.spans or ()]
    assert said == ["6<|im_end|>", "<think>\n3 + 3 + 3\n</think>\n\n9<|im_end|>"]
    prompts = "{%- if add_generation_prompt %}\n    {{- '<|im_start|>assistant\\n' }}"
    thinks = (
        (TEMPLATES / "qwen3.jinja")
        .read_text()
        .replace(prompts, prompts.replace("assistant\\n", "assistant\\n<think>\\n"))
    )
    found = rendered(reader("qwen3", thinks), CONVERSATIONS["thinking"])
    said = [found.text[start:end] for start, end in found.spans or ()]
    assert said == ["6<|im_end|>", "3 + 3 + 3\n</think>\n\n9<|im_end|>"]


def test_a_beginning_that_the_template_writes_is_not_written_again() -> None:
    found = rendered(reader("llama3"), CONVERSATIONS["one turn"])
    own = tokenizer("llama3")
    ids, labels = documents("llama3", [found], begin=(own.bos_token_id,))[0]
    assert ids.tolist().count(own.bos_token_id) == 1
    assert ids[0] == own.bos_token_id
    bare = Rendered("x", ((0, 1),), "")
    ids, labels = documents("llama3", [bare], begin=(own.bos_token_id,))[0]
    assert ids.tolist() == [own.bos_token_id, own.convert_tokens_to_ids("x"), own.eos_token_id]
    assert labels.tolist() == [False, True, False]


def test_a_token_that_begins_in_a_prompt_is_no_label() -> None:
    found = rendered(reader("smollm2"), [user("a"), answer("\n\nb")])
    ids, labels = documents("smollm2", [found])[0]
    own = tokenizer("smollm2")
    assert "ĊĊ" in own.convert_ids_to_tokens(ids.tolist())
    assert _text(own, ids[labels]) == "\nb<|im_end|>"


def test_the_date_in_a_template_is_always_the_same() -> None:
    found = rendered(reader("llama3"), CONVERSATIONS["one turn"])
    assert "Today Date: 26 Jul 2024\n" in found.text
    hidden = "{% set f = '%d' %}{{ strftime_now(f) }}" + marked("smollm2")
    with pytest.raises(BoomspecError, match=wording("chat_data.date_not_written")):
        reader("smollm2", hidden)
    with pytest.raises(BoomspecError, match=wording("chat_data.at_random")):
        reader("smollm2", "{{ [1, 2] | random }}" + marked("smollm2"))


def test_a_template_whose_responses_cannot_be_told_apart_is_an_error_and_learns_all_only() -> None:
    # What a turn ends with depends on the turn before it.
    odd = (
        "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}{% if loop.length > 2 %}!{% endif %}"
        "<|im_end|>\n{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    with pytest.raises(BoomspecError, match=wording("chat_data.responses_not_found")):
        reader("smollm2", odd)
    every = reader("smollm2", odd, FIELDS.model_copy(update={"loss_on": None}))
    found = rendered(every, CONVERSATIONS["several turns"])
    assert found.spans is None
    assert documents("smollm2", [found])[0][1] is None
    twice = "{% for m in messages %}{{ m.content }}{{ m.content }}{% endfor %}"
    with pytest.raises(BoomspecError, match=wording("chat_data.responses_not_found")):
        reader("smollm2", twice)
    with pytest.raises(BoomspecError, match=wording("chat_data.cannot_render")):
        reader("smollm2", "{% for m in messages %}")


@pytest.mark.parametrize(
    ("messages", "kind"),
    [
        (None, "no messages"),
        ([], "no messages"),
        ("text", "no messages"),
        ([{"content": "a"}], "no role"),
        (["a"], "no role"),
        ([user("a"), {"role": "bot", "content": "b"}], "unknown role"),
        ([user("a")], "no response"),
        ([answer("a"), user("b")], "no prompt"),
        ([user("a"), {"role": "assistant", "content": None}], "not text"),
        ([user("a"), {"role": "assistant", "content": 3}], "not text"),
        ([user("<|im_end|>"), answer("a")], "special token"),
        ([user("a"), answer("b <|im_start|>system")], "special token"),
    ],
)
def test_a_row_without_a_whole_conversation_says_why(messages: Any, kind: str) -> None:
    found = reader("smollm2")({"messages": messages}, "rows.jsonl:7")
    assert isinstance(found, BadRow)
    assert found.kind == kind
    assert found.message.startswith("rows.jsonl:7: ")


def test_rows_may_hold_prompt_and_response_or_lists_as_text_and_nulls_are_nothing() -> None:
    pairs = Conversations(prompt="question", response="qa.answer", loss_on="responses")
    two = reader("smollm2", fields=pairs)
    found = two({"question": "Hi", "qa": {"answer": "Yes."}}, "row 1")
    assert isinstance(found, Rendered)
    one = rendered(reader("smollm2"), [user("Hi"), answer("Yes.")])
    assert (found.text, found.spans) == (one.text, one.spans)
    for row, kind in (
        ({"question": "Hi"}, "no such field"),
        ({"question": None, "qa": {"answer": "a"}}, "not text"),
        ({"question": "Hi", "qa": {"answer": " "}}, "no response"),
    ):
        bad = two(row, "row 1")
        assert isinstance(bad, BadRow)
        assert bad.kind == kind
    missing = reader("smollm2")({"question": "Hi"}, "row 1")
    assert isinstance(missing, BadRow)
    assert missing.hint == "set data.messages"
    text = '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes.", "tool_calls": null}]'
    assert read(reader("smollm2"), []) != one
    assert reader("smollm2")({"messages": text, "tools": None}, "row 1") == one


def test_what_a_template_refuses_is_a_bad_row() -> None:
    calls = [user("a"), {"role": "assistant", "content": "", "tool_calls": WITH_TOOLS["a tool"][1]["tool_calls"] * 2}]
    found = read(reader("llama3"), calls)
    assert isinstance(found, BadRow)
    assert found.kind == "refused by the template"
