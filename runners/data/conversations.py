"""Read a conversation from a row: its messages and tools, checked and cleaned, or why there is none.

    messages: FIELD            a list of {role, content, ...}, in OpenAI's form, with tools: FIELD beside it
    prompt, response: FIELDS   two texts: what the user says, and the assistant's answer

A list may also be written as JSON text. Keys without a value (null) are left out, as transformers does it; all else of
a message goes to the chat template as it is.
"""

import json
from collections.abc import Iterator
from typing import Any, NamedTuple

from boomspec.core.tasks.tokenize import Conversations
from runners.data.rows import BadRow, field_of, whole_text

RESPONDS = "assistant"
_ROLES = ("system", "developer", "user", RESPONDS, "tool", "function", "ipython")
_MANY = "a list of {role, content}"


class Conversation(NamedTuple):
    messages: list[dict[str, Any]]
    tools: list[Any] | None

    def row(self) -> str:
        """The conversation as canonical JSON: what a digest of rows covers, whatever the template makes of it."""
        return json.dumps(
            {"messages": self.messages, "tools": self.tools}, sort_keys=True, ensure_ascii=False, allow_nan=False
        )


def read_conversation(row: Any, fields: Conversations, place: str) -> Conversation | BadRow:
    """The conversation of a row."""
    if fields.messages is None:
        pair = (("data.prompt", fields.prompt), ("data.response", fields.response))
        found = [field_of(row, name, place, setting=setting) for setting, name in pair if name is not None]
        for value, name in zip(found, (fields.prompt, fields.response), strict=True):
            if isinstance(value, BadRow):
                return value
            if not isinstance(value, str):
                return _bad("not text", place, f"field '{name}' is {_kind(value)}, not text")
        prompt, response = map(whole_text, map(str, found))
        if not response.strip():
            return _bad("no response", place, f"field '{fields.response}' is empty: there is no response")
        return Conversation([{"role": "user", "content": prompt}, {"role": RESPONDS, "content": response}], None)
    value = _listed(field_of(row, fields.messages, place, setting="data.messages"))
    if isinstance(value, BadRow):
        return value
    if not isinstance(value, list) or not value:
        what = "is empty" if value == [] else f"is {_kind(value)}, not {_MANY}"
        return _bad("no messages", place, f"field '{fields.messages}' {what}")
    messages: list[dict[str, Any]] = []
    for number, message in enumerate(value, start=1):
        where = f"message {number}"
        if not isinstance(message, dict) or not isinstance(message.get("role"), str):
            return _bad("no role", place, f"{where} has no 'role': messages are {_MANY}")
        if message["role"] not in _ROLES:
            return _bad("unknown role", place, f"{where} has the role '{message['role']}' ({', '.join(_ROLES)})")
        kept = {key: _clean(part) for key, part in message.items() if part is not None}
        if not isinstance(kept.get("content", ""), str | list):
            return _bad("not text", place, f"the content of {where} is {_kind(message['content'])}, not text")
        if "content" not in kept and not kept.get("tool_calls"):
            return _bad("not text", place, f"{where} has neither content nor tool calls")
        messages.append(kept)
    if not any(message["role"] == RESPONDS for message in messages):
        return _bad("no response", place, f"no message is of the {RESPONDS}: there is no response")
    if messages[0]["role"] == RESPONDS:
        return _bad("no prompt", place, f"the first message is of the {RESPONDS}: nothing was asked")
    tools = None
    if fields.tools is not None:
        tools = _listed(field_of(row, fields.tools, place)) if _has(row, fields.tools) else None
        if isinstance(tools, BadRow):
            return tools
        if tools is not None and not isinstance(tools, list):
            return _bad("no tools", place, f"field '{fields.tools}' is {_kind(tools)}, not a list of tools")
        tools = None if not tools else [_clean(tool) for tool in tools]
    return Conversation(messages, tools)


def texts_in(value: Any) -> Iterator[str]:
    """Every text in a JSON value, keys excepted."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for part in value.values() if isinstance(value, dict) else value:
            yield from texts_in(part)


def _has(row: Any, field: str) -> bool:
    """Whether a row has a field, and not null; tools may be left out."""
    found = field_of(row, field, "")
    return not isinstance(found, BadRow) and found is not None


def _listed(value: Any) -> Any:
    """A list that is written as JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value
    return value


def _clean(value: Any) -> Any:
    """A JSON value without nulls in its objects and without half characters in its texts."""
    if isinstance(value, str):
        return whole_text(value)
    if isinstance(value, list):
        return [_clean(part) for part in value]
    if isinstance(value, dict):
        return {key: _clean(part) for key, part in value.items() if part is not None}
    return value


def _kind(value: Any) -> str:
    return "null" if value is None else type(value).__name__


def _bad(kind: str, place: str, what: str) -> BadRow:
    return BadRow(kind, f"{place}: {what}")
