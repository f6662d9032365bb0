"""The section `data`: where the text comes from, how it is cut, which documents are held out.

A spec has one text, whose fields stand in `data` itself, or several named sources (`SourceSpec`) and a blend of them.
"""

import re
from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field

from boomspec.core.errors import did_you_mean
from boomspec.core.types import AlsoText, Count, Strict, about
from boomspec.spec.sections.shares import Blend, BlendPart
from boomspec.spec.sections.training import NotNegative, Positive
from boomspec.spec.validate import FieldError, goes_with, only_one
from boomspec.spec.yaml_reader import Location

LossOn = Literal["all", "responses"]

Files = Annotated[
    # The limit is inside: after a before-validator pydantic would take the length of None.
    Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None,
    AlsoText(lambda name: (name,)),
]


class HeldOutSplit(Strict):
    """Documents set apart for evaluation: every `every`-th, starting at `offset`; or those of files of their own."""

    every: int | None = about("Hold out one of so many documents.", [20, 1000], default=None, ge=2)
    offset: int = about("Index of the first one.", default=0, ge=0)
    files: Files = Field(None, examples=["test.jsonl", ["validation/*.jsonl"]])
    """Files, folders or glob patterns of their own; all other documents are trained on."""

    def model_post_init(self, _: object) -> None:
        only_one(self, "every", "files")
        goes_with(self, "every", "offset")
        if self.every is not None and self.offset >= self.every:
            raise FieldError(f"must be below every ({self.every}), not {self.offset}", at=("offset",))


class SourceSpec(Strict):
    """One text: where it comes from, and which of its documents are read and held out."""

    dataset: str | None = Field(None, examples=["EleutherAI/the_pile_deduplicated"], min_length=1)
    """Hub id of a data set."""
    config: str | None = about("Configuration of the data set, where it has several.", ["en"], default=None)
    split: str | None = about("Split of the data set; default: train.", ["train", "validation"], default=None)
    revision: str | None = about("Branch, tag or commit of the data set. Default: main.", ["main"], default=None)
    files: Files = Field(None, examples=["notes.txt", ["texts/*.jsonl", "more/**/*.jsonl.gz"], ["${DATA}/texts"]])
    """Files, folders or glob patterns, relative to the spec: text (a document each), jsonl, json (an array of
    objects) or parquet; text, jsonl and json also as .gz and .zst. ${NAME} is an environment variable. Hidden files
    are left out unless they are named."""
    format: Literal["text", "jsonl", "json", "parquet"] | None = Field(None, examples=["jsonl"])
    """Of the files; default: by their ending."""
    corpus: Literal["python_stdlib"] | None = Field(None, examples=["python_stdlib"])
    """Text that is always at hand: the source code of Python's own standard library."""
    text_field: str | None = Field(None, examples=["content", "meta.text"])
    """Where jsonl, json, parquet and data sets hold the text: a field, or one inside of another. Default: text."""
    messages: str | None = Field(None, examples=["messages"], min_length=1)
    """The field that holds a conversation: a list of {role, content}, which the teacher's chat template renders."""
    tools: str | None = Field(None, examples=["tools"], min_length=1)
    """The field that holds the tools of that conversation, as JSON schemas; a row may have none."""
    prompt: str | None = Field(None, examples=["question"], min_length=1)
    """The field that holds what a user says, of rows with an answer (`response`) in the place of messages."""
    response: str | None = Field(None, examples=["answer"], min_length=1)
    """The field that holds the assistant's answer to `prompt`."""
    loss_on: LossOn | None = Field(None, examples=["responses"])
    """What is learned of conversations: all of it (the default), or the assistant's responses, each with the tokens
    that end its turn."""
    chat_template: str | None = Field(None, examples=["chatml.jinja"], min_length=1)
    """A file with the chat template, relative to the spec. Default: that of the teacher's tokenizer."""
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a row without text, or without a whole conversation: no such field, null, another type, broken
    JSON or UTF-8, an unknown role, no response. error ends the task and names file and line; skip leaves it out and
    counts it."""
    skip: NotNegative = about("So many documents at the start are passed over.", default=0)
    max_tokens: Positive | None = Field(None, examples=["10M"])
    """Read so many training tokens. Default: all files; of a data set it has to be given. A training that is longer
    goes through them more than once."""
    held_out: HeldOutSplit | None = Field(None, examples=[{"every": 20}])
    """Which documents are set apart for evaluation. Default: none."""

    def model_post_init(self, _: object) -> None:
        self.check_text()

    def check_text(self) -> None:
        """Raise FieldError for fields that do not go together."""
        only_one(self, "dataset", "files", "corpus")
        goes_with(self, "dataset", "config", "split", "revision")
        if self.text_field is not None and self.corpus is not None:
            raise FieldError("text_field goes with files of rows and with data sets", at=("text_field",))
        if self.held_out is None or self.held_out.files is None:
            goes_with(self, "files", "format")
        goes_with(self, "messages", "tools")
        goes_with(self, "response", "prompt")
        goes_with(self, "prompt", "response")
        if self.is_chat:
            for name, reason in (
                ("prompt", "a conversation is given by messages, or by prompt and response"),
                ("text_field", "a conversation is no text field"),
                ("corpus", "this corpus has no conversations"),
            ):
                if (name != "prompt" or self.messages is not None) and getattr(self, name) is not None:
                    raise FieldError(reason, at=(name,))
            if self.format == "text":
                raise FieldError("a text file has no rows with conversations", at=("format",))
        for name in ("loss_on", "chat_template") if not self.is_chat else ():
            if getattr(self, name) is not None:
                raise FieldError(f"{name} goes with conversations: messages, or prompt and response", at=(name,))

    @property
    def is_chat(self) -> bool:
        """Whether its rows hold conversations."""
        return self.messages is not None or self.prompt is not None


_SOURCE_NAME = re.compile("[A-Za-z0-9][A-Za-z0-9._-]{0,31}")


def check_blend(blend: Mapping[str, BlendPart], sources: Mapping[str, SourceSpec], *, at: Location = ()) -> None:
    """Raise FieldError at the first part of a blend that cannot be made of the sources. `at`: where the blend is."""
    units = {part.unit for part in blend.values()}
    for name, part in blend.items():
        if (source := sources.get(name)) is None:
            hint = did_you_mean(name, list(sources)) or f"data.sources has {', '.join(sources)}"
            raise FieldError(f"there is no source '{name}'", hint=hint, at=(*at, name))
        if len(units) > 1 and part.unit == "weight":
            hint = "write budgets, such as 500M, or weights, such as 0.7, of all of them"
            raise FieldError("this is a weight, others are budgets of tokens", hint=hint, at=(*at, name))
        if part.unit == "tokens" and source.max_tokens is not None and part.value > source.max_tokens:
            message = f"{part.written()} tokens are more than the source has (max_tokens: {source.max_tokens:,})"
            raise FieldError(message, at=(*at, name))


class DataSpec(SourceSpec):
    """The text that models are trained on and measured with: one text, or named sources and how they are mixed."""

    bos: Literal["auto"] | bool = Field("auto", examples=["auto", True, False])
    """Whether every document, and every training sequence, begins with the beginning-of-sequence token. auto: as
    the teacher's tokenizer itself begins a text."""
    sequence_length: Count = about("Tokens of one training sequence.", ge=8)
    isolate_documents: bool = False
    """Documents that share a training sequence do not see each other: each has attention and positions of its own. Of
    students and teachers, in trainings, searches and on held-out text. Default: they see what is before them."""
    sources: Annotated[dict[str, SourceSpec], Field(min_length=1)] | None = Field(
        None, examples=[{"web": {"files": "web/*.jsonl"}, "code": {"files": "code/*.parquet", "skip": 1000}}]
    )
    """Several texts by name, in the place of the fields of one. `held_out` beside them is the default of each."""
    blend: Blend | None = Field(None, examples=[{"web": 0.7, "code": 0.3}, {"web": "0.5B", "code": "0.5B"}])
    """How the sources are mixed, document by document: weights, of as many tokens as there are, or budgets of tokens.
    Needed where several sources are there and something reads the data as a whole."""

    def model_post_init(self, _: object) -> None:
        if self.sources is None:
            goes_with(self, "sources", "blend")
            self.check_text()
            return
        for name in self.model_fields_set & SourceSpec.model_fields.keys() - {"held_out"}:
            if getattr(self, name) is not None:
                raise FieldError(f"{name} belongs to a source", hint=f"data.sources.NAME.{name}", at=(name,))
        if self.held_out is not None and self.held_out.files is not None:
            hint = "data.sources.NAME.held_out.files"
            raise FieldError("files of held-out text belong to a source", hint=hint, at=("held_out", "files"))
        for name in self.sources:
            if not _SOURCE_NAME.fullmatch(name):
                hint = "use letters, digits, dots, dashes, underscores, 32 at most"
                raise FieldError(f"'{name}' is not a plain name", hint=hint, at=("sources", name))
        check_blend(self.blend or {}, self.sources, at=("blend",))

    @property
    def texts(self) -> dict[str, SourceSpec]:
        """The sources by name; the one text of a spec without names is called ""."""
        return {"": self} if self.sources is None else dict(self.sources)


class CalibrationSpec(Strict):
    """Training text that a choice is measured on, in windows of the data's sequence length."""

    sequences: int = about("So many sequences, drawn with the seed.", default=64, ge=1)


Calibration = Annotated[CalibrationSpec, about("The text that it is decided on.")]
