"""Conversations in a spec: what is hashed of them, and what is refused with its place."""

import json
from pathlib import Path
from typing import Any

import pytest

from boomspec.core.errors import SpecError
from tests.boomspec.model_folders import llama
from tests.boomspec.test_blends import DATA, built, compiled, folder, problems, tasks
from tests.messages import wording

__all__ = ["folder"]
CHAT = {"files": "chat.jsonl", "messages": "messages"}
TEXT = {"messages": None, "chat_template": None}
PAIRS = {"messages": None, "prompt": "a", "response": "b"}
TEMPLATE = "{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture(autouse=True)
def rows(folder: Path) -> None:
    (folder / "chat.jsonl").write_text('{"messages": []}\n' * 9)
    (folder / "chat.jinja").write_text(TEMPLATE)
    (folder / "other.jinja").write_text(TEMPLATE + "\n")


def data(**fields: Any) -> dict[str, Any]:
    chat = {
        name: value for name, value in (CHAT | {"chat_template": "chat.jinja"} | fields).items() if value is not None
    }
    return DATA | {"sources": {"web": {"files": "web/*.txt"}, "sft": chat}, "blend": {"web": 1, "sft": 1}}


def test_what_is_learned_and_rendered_is_part_of_the_task(folder) -> None:
    plain = tasks(compiled(folder, data()))["tokenize sft"]
    assert tasks(compiled(folder, data(loss_on="all")))["tokenize sft"] == plain
    pairs = {"messages": None, "prompt": "question", "response": "answer"}
    (folder / "same.jinja").write_text(TEMPLATE)
    assert tasks(compiled(folder, data(chat_template="same.jinja")))["tokenize sft"] == plain
    changed = [{"loss_on": "responses"}, {"tools": "tools"}, {"messages": "turns"}, {"chat_template": "other.jinja"}]
    found = [
        tasks(compiled(folder, data(**fields)))["tokenize sft"]
        for fields in (*changed, pairs, pairs | {"response": "b"})
    ]
    assert len({plain, *found}) == 1 + len(found)


def test_a_flat_text_may_hold_conversations_and_the_meaning_says_what_is_learned(folder) -> None:
    flat = {"sequence_length": 32, "held_out": {"every": 4}, **CHAT, "chat_template": "chat.jinja"}
    found = compiled(folder, flat)
    record = found.graph.nodes[tasks(found)["tokenize"]].task.record
    assert (record.chat.messages, record.chat.loss_on, record.chat.template) == ("messages", None, TEMPLATE)
    meaning = found.graph.experiments[0].meaning["data"]
    assert meaning["loss_on"] == "all"
    assert "text_field" not in meaning


def test_a_source_can_be_had_with_other_tokens_labelled(folder) -> None:
    build = built(folder, data())
    plain, other = build.tokens_of("sft"), build.tokens_of("sft", loss_on="responses")
    assert plain != other
    assert build.nodes[other].name == "tokenize sft, loss on responses"
    assert build.tokens_of("sft", loss_on="all") == plain
    assert build.nodes[other].task.record.chat.loss_on == "responses"
    mixed = build.tokens_of(build.resolved.data.blend, loss_on="responses")
    assert set(build.nodes[mixed].task.inputs.values()) == {build.tokens_of("web"), other}
    with pytest.raises(SpecError, match=wording("chat_data.no_conversations")):
        build.tokens_of("web", loss_on="responses")


@pytest.mark.parametrize(
    ("fields", "place", "message"),
    [
        ({"chat_template": None}, "data.sources.sft", wording("chat_data.trained_without")),
        ({"chat_template": "none.jinja"}, "data.sources.sft.chat_template", wording("chat_data.cannot_be_read")),
        ({"prompt": "a", "response": "b"}, "data.sources.sft.prompt", wording("chat_data.messages_or_pairs")),
        ({"messages": None, "prompt": "a"}, "data.sources.sft.prompt", wording("chat_data.goes_with_response")),
        (PAIRS | {"tools": "c"}, "sft.tools", wording("chat_data.goes_with_messages")),
        ({"text_field": "text"}, "data.sources.sft.text_field", wording("chat_data.no_text_field")),
        (TEXT | {"loss_on": "all"}, "sft.loss_on", wording("chat_data.goes_with_conversations")),
        ({"files": "web/*.txt"}, "data.sources.sft.files", wording("chat_data.no_rows")),
    ],
)  # fmt: skip
def test_wrong_fields_of_conversations_are_errors_at_their_places(folder, fields, place: str, message: str) -> None:
    text = problems(folder, data(**fields))
    assert message in text
    assert place in text


def test_two_sources_have_one_template(folder) -> None:
    found = data()
    found["sources"]["more"] = CHAT | {"chat_template": "other.jinja"}
    found["blend"]["more"] = 1
    assert wording("chat_data.not_the_template") in problems(folder, found)
    found["sources"]["more"]["chat_template"] = "chat.jinja"
    compiled(folder, found)
    del found["sources"]["more"]["chat_template"]  # it would be rendered by the teacher's
    assert wording("chat_data.brings_another") in problems(folder, found)


def test_a_teacher_without_a_template_is_an_error_where_the_source_brings_none(folder) -> None:
    teacher = llama(folder / "teacher", layers=6)
    bare = data(chat_template=None)
    assert wording("chat_data.teacher_without") in problems(folder, bare, teacher={"model": "./teacher"})
    compiled(folder, data(), teacher={"model": "./teacher"})
    for name, text in (
        ("chat_template.jinja", TEMPLATE),
        ("additional_chat_templates/default.jinja", TEMPLATE),
        ("tokenizer_config.json", json.dumps({"chat_template": TEMPLATE})),
    ):
        file = teacher / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        compiled(folder, bare, teacher={"model": "./teacher"})
        file.unlink()
