"""Render conversations by a tokenizer's chat template, and find what the model itself would have written of them.

What is rendered is one text, by transformers' `apply_chat_template`. A *response* is what follows the generation prompt
(`<|im_start|>assistant\\n`) of an assistant's turn, with the special tokens by which the template closes it, such as
`<|im_end|>`. Where the template itself marks responses ({% generation %}), its marks are taken. Else they are found by
rendering parts of the conversation, each of which must agree with the whole character by character:

    start   the messages before the turn, with a generation prompt, are the beginning of the whole text
    end     the messages up to the turn are so, too, and end with what the template closes a turn with

Templates that leave out the thinking of earlier turns disagree; then the turn is rendered once more with a marker in
its place, which shows where it begins and ends. Where even that is not unambiguous, there is no mask, but a `BadRow`.

A template may ask for today's date. The same text would have other tokens tomorrow: it is told 26 July 2024, the date
that Llama's templates name where they know no other. Shapes: S tokens of one conversation.
"""

import re
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from jinja2 import TemplateError
from tokenizers import processors
from transformers.utils.chat_template_utils import render_jinja_template

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks.tokenize import Conversations
from runners.data.conversations import RESPONDS, Conversation, read_conversation, texts_in
from runners.data.rows import BadRow

TODAY = datetime(2024, 7, 26)
_MARKERS = range(0xE000, 0xF8FF)  # private use: no text has them all
_GENERATION = re.compile(r"\{%-?\s*generation\s*-?%\}")
_CLOCK = re.compile(r"strftime_now\(\s*(\"[^\"]*\"|'[^']*')\s*\)")
_RANDOM = re.compile(r"\|\s*random\b")
_THINKING = "<think>"
_WRONG = (TemplateError, TypeError, ValueError, KeyError, AttributeError, IndexError)
_HINT = "mark the responses in the template ({% generation %}), see data.chat_template; or learn all: loss_on: all"
Span = tuple[int, int]  # characters of a rendered text


class Rendered(NamedTuple):
    """A rendered conversation. `spans`: its responses; None where all of it is learned. `row`: see `Conversation.row`.

    closes: whether the last response ends with the text, and with no token of its own.
    """

    text: str
    spans: tuple[Span, ...] | None
    row: str
    closes: bool = False


class _AmbiguousError(Exception):
    """Where a response begins or ends does not follow from what the template renders."""


class ChatReader:
    """Reads rows as conversations, and renders them. Raises BoomspecError for a template that cannot be used."""

    def __init__(self, tokenizer: Any, fields: Conversations) -> None:
        self.fields = fields
        self._tokenizer, self._responses = tokenizer, fields.loss_on == "responses"
        self._special = _special_tokens(tokenizer)
        self._templates: dict[bool, str] = {}  # by whether there are tools
        probe = [{"role": role, "content": text} for role, text in (("user", "a"), (RESPONDS, "b")) * 2]
        try:
            self._close = self._after(probe[:1])
            whole = self._render(probe)
            if self._responses:
                self._spans(probe, None, whole)
        except _AmbiguousError as error:
            raise BoomspecError(f"the responses of this chat template cannot be found: {error}", hint=_HINT) from error
        except _WRONG as error:
            message = f"the chat template cannot render a conversation of user and assistant: {error}"
            raise BoomspecError(message, hint="see data.chat_template") from error

    @property
    def columns(self) -> tuple[str, ...]:
        fields = self.fields
        return tuple(n for n in (fields.messages, fields.tools, fields.prompt, fields.response) if n is not None)

    @property
    def optional(self) -> tuple[str, ...]:
        return () if self.fields.tools is None else (self.fields.tools,)

    def __call__(self, row: Any, place: str) -> Rendered | BadRow:
        """The rendered conversation of a row."""
        found = read_conversation(row, self.fields, place)
        if isinstance(found, BadRow):
            return found
        if (special := self._written_special(found)) is not None:
            return BadRow("special token", f"{place}: {special} is a special token of the tokenizer, and no text")
        try:
            text = self._render(found.messages, found.tools)
            if not self._responses:
                return Rendered(text, None, found.row())
            spans, closes = self._spans(found.messages, found.tools, text)
        except _AmbiguousError as error:
            return BadRow("responses not found", f"{place}: where its responses are is not clear: {error}", _HINT)
        except _WRONG as error:
            return BadRow("refused by the template", f"{place}: the chat template does not take it: {error}")
        return Rendered(text, spans, found.row(), closes)

    def _written_special(self, found: Conversation) -> str | None:
        """A special token that is written out in a message: rendered, it could not be told from the template's own."""
        texts = list(texts_in([found.messages, found.tools]))
        return next((special for special in self._special if any(special in text for text in texts)), None)

    def _template(self, tools: Any) -> str:
        key = tools is not None
        if key not in self._templates:
            self._templates[key] = dated(self._tokenizer.get_chat_template(None, tools))
        return self._templates[key]

    def _render(self, messages: Sequence[dict[str, Any]], tools: Any = None, *, prompt: bool = False) -> str:
        text: str = self._tokenizer.apply_chat_template(
            list(messages),
            tools=tools,
            chat_template=self._template(tools),
            tokenize=False,
            add_generation_prompt=prompt,
        )
        return text

    def _spans(self, messages: list[dict[str, Any]], tools: Any, text: str) -> tuple[tuple[Span, ...], bool]:
        """The responses in a rendered text, and whether the last one ends with it and with no token of its own."""
        if _GENERATION.search(template := self._template(tools)):
            (again,), (marked,) = render_jinja_template(
                [messages],
                tools=tools,
                chat_template=template,
                return_assistant_tokens_mask=True,
                **self._tokenizer.special_tokens_map,
            )
            if again != text or not any(start < end for start, end in marked):
                raise _AmbiguousError("the template marks no response")
            spans = [(start, end) for start, end in marked if start < end]
            return tuple(spans), spans[-1][1] >= len(text.rstrip()) and not self._ends_special(text.rstrip())
        found: list[Span] = []
        ended = ""
        for number, message in enumerate(messages):
            if message["role"] == RESPONDS:
                before = found[-1][1] if found else 0
                span, ended = self._span(messages, tools, text, number, before)
                if not before <= span[0] < span[1] <= len(text):
                    raise _AmbiguousError(f"message {number + 1} is not rendered, or not in its place")
                found.append(span)
        last = messages[-1]["role"] == RESPONDS
        return tuple(found), last and not self._closing(ended)

    def _span(
        self, messages: list[dict[str, Any]], tools: Any, text: str, number: int, before: int
    ) -> tuple[Span, str]:
        """One response, and what the template closes its turn with. `before`: where the response before it ends."""
        asked = self._render(messages[:number], tools, prompt=True)
        until = text if number + 1 == len(messages) else self._render(messages[: number + 1], tools)
        if text.startswith(asked) and text.startswith(until) and until.endswith(self._close):
            return (len(asked), len(until) - len(self._close) + self._closing(self._close)), self._close
        # The same with a marker in the place of the turn: what it begins and ends with is then seen.
        marker = next(char for char in map(chr, _MARKERS) if char not in text)
        marked = [*messages[:number], {"role": RESPONDS, "content": marker}, *messages[number + 1 :]]
        other = self._render(marked, tools)
        if other.count(marker) != 1:
            raise _AmbiguousError(f"message {number + 1} is rendered {other.count(marker)} times")
        place = other.index(marker)
        if not text.endswith(behind := other[place + 1 :]):
            raise _AmbiguousError(f"what follows message {number + 1} depends on what it says")
        end = len(text) - len(behind)
        close = self._after(messages[:number], tools)
        if not behind.startswith(close):
            raise _AmbiguousError(f"message {number + 1} ends otherwise than the last message")
        if other.startswith(asked):
            start = len(asked)
        else:
            plain = self._render(messages[:number], tools)
            if not asked.startswith(plain) or not (prompt := asked[len(plain) :]).strip():
                raise _AmbiguousError("the generation prompt is not added to the messages before it")
            start = _behind_prompt(other, prompt, before, place)
        if text[:start] != other[:start]:
            raise _AmbiguousError(f"message {number + 1} changes what stands before it")
        return (start, end + self._closing(close)), close

    def _after(self, messages: Sequence[dict[str, Any]], tools: Any = None) -> str:
        """What the template writes after a response that is the last message, behind these messages."""
        marker = chr(_MARKERS[0])
        text = self._render([*messages, {"role": RESPONDS, "content": marker}], tools)
        if text.count(marker) != 1:
            raise _AmbiguousError(f"a response is rendered {text.count(marker)} times")
        return text[text.index(marker) + 1 :]

    def _closing(self, close: str) -> int:
        """How much of what closes a turn is part of the response: as far as its last special token."""
        return max((close.rfind(special) + len(special) for special in self._special if special in close), default=0)

    def _ends_special(self, text: str) -> bool:
        return any(text.endswith(special) for special in self._special)


def _behind_prompt(text: str, prompt: str, before: int, place: int) -> int:
    """The end of the last generation prompt before a place. It may begin the thinking, which was left out there."""
    if (found := text.rfind(prompt, before, place)) >= 0:
        return found + len(prompt)
    plain, thinking, _ = prompt.partition(_THINKING)
    if thinking and text[before:place].endswith(plain):
        return place
    raise _AmbiguousError("the generation prompt does not stand in front of it")


def dated(template: str) -> str:
    """A template in which it is always `TODAY`. Raises BoomspecError where it draws at random, or where that fails."""
    if _RANDOM.search(template):
        raise BoomspecError("the chat template draws at random: the same text would have other tokens every time")
    formats = {found[1:-1] for found in _CLOCK.findall(template)}
    rest = _CLOCK.sub("", template)
    if re.search(r"strftime_now\s*\(", rest):
        message = "the chat template asks for the date in a form that is not written in it"
        raise BoomspecError(message, hint="give a template with a fixed date: data.chat_template")
    if not formats:
        return template
    known = ", ".join(f"{text!r}: {TODAY.strftime(text)!r}" for text in sorted(formats))
    return f"{{%- macro strftime_now(format) -%}}{{{{ {{{known}}}[format] }}}}{{%- endmacro -%}}{template}"


def _special_tokens(tokenizer: Any) -> tuple[str, ...]:
    added = (token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
    return tuple(dict.fromkeys([*tokenizer.all_special_tokens, *added]))


class ChatTokenizer:
    """Turns rendered conversations into documents of a token stream.

    A document ends with EOS. Where the text ends with it already, but for white space, it is the document's own.
    `begin`: the tokens that a document begins with, unless the template has put them there.
    """

    def __init__(self, tokenizer: Any, *, eos: int, begin: Sequence[int], follows_eos: bool) -> None:
        self._fast, self._eos, self._begin, self._follows_eos = (
            tokenizer.backend_tokenizer,
            eos,
            list(begin),
            follows_eos,
        )
        self._fast.no_truncation()
        self._fast.no_padding()
        self._fast.encode_special_tokens = False  # those of the template are meant
        # A tokenizer's own post-processor takes white space out of offsets; it adds no tokens here.
        self._fast.post_processor = processors.ByteLevel(trim_offsets=False)
        self.largest = max(self._fast.get_vocab(with_added_tokens=True).values())

    def encoded(self, chats: Sequence[Rendered]) -> list[tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]]:
        """The tokens of each document, [S], and which of them are labels, [S]; None where all are learned."""
        found = self._fast.encode_batch([chat.text for chat in chats], add_special_tokens=False)
        return [self._document(chat, encoding) for chat, encoding in zip(chats, found, strict=True)]

    def _document(self, chat: Rendered, encoding: Any) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.bool_] | None]:
        ids = np.asarray(encoding.ids, np.int64)
        places = np.asarray(encoding.offsets, np.int64).reshape(-1, 2)
        ends = np.flatnonzero(ids == self._eos)
        own = len(ends) > 0 and not chat.text[places[ends[-1], 1] :].strip()
        labels = None
        if chat.spans is not None:
            # Of a token that reaches out of a response nobody would write that part.
            starts_S, ends_S = places[:, 0], places[:, 1]
            labels = np.zeros(len(ids), np.bool_)
            for start, end in chat.spans:
                labels |= (starts_S >= start) & (ends_S <= end) & (ends_S > starts_S)
        if own:
            ids, labels = ids[: ends[-1] + 1], None if labels is None else labels[: ends[-1] + 1]
        else:
            ids = np.append(ids, self._eos)
            labels = None if labels is None else np.append(labels, chat.closes)
        if self._follows_eos and len(ids) > 1 and ids[0] == self._eos:  # the document before ends with it
            ids, labels = ids[1:], None if labels is None else labels[1:]
        if self._begin and ids[: len(self._begin)].tolist() != self._begin:
            ids = np.concatenate([np.asarray(self._begin, np.int64), ids])
            labels = None if labels is None else np.concatenate([np.zeros(len(self._begin), np.bool_), labels])
        return ids, labels


def add_template(folder: Path, template: str) -> None:
    """Make a template that of the tokenizer in a folder, in the place of all that it has."""
    for file in folder.glob("additional_chat_templates/*"):
        file.unlink()
    (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
