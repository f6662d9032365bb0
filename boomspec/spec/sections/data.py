"""The section of the spec language about text: where it comes from, how it is cut, what is set apart."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from boomspec.core.types import AlsoText, Count, Strict
from boomspec.spec.sections.training import NotNegative, Positive
from boomspec.spec.validate import FieldError, only_one


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Files = Annotated[
    # The length stands inside: behind a before-validator pydantic would measure None.
    Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)] | None,
    BeforeValidator(_as_tuple),
    AlsoText(),
]


class HeldOutSplit(Strict):
    """Documents set apart for evaluation: every `every`-th, starting at `offset`; or those of files of their own."""

    every: Annotated[int | None, Field(ge=2, description="Hold out one of so many documents.", examples=[20, 1000])] = (
        None
    )
    offset: Annotated[int, Field(ge=0, description="Index of the first one.")] = 0
    files: Annotated[
        Files,
        Field(
            description="Files, folders or glob patterns of their own; all other documents are trained on.",
            examples=["test.jsonl", ["validation/*.jsonl"]],
        ),
    ] = None

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        only_one(self, "every", "files")
        if self.every is None and "offset" in self.model_fields_set:
            raise FieldError("offset goes with every", at=("offset",))
        if self.every is not None and self.offset >= self.every:
            raise FieldError(f"must be below every ({self.every}), not {self.offset}", at=("offset",))
        return self


class DataSpec(Strict):
    """The text that models are trained on and measured with."""

    dataset: Annotated[
        str | None,
        Field(min_length=1, description="Hub id of a data set.", examples=["EleutherAI/the_pile_deduplicated"]),
    ] = None
    config: Annotated[
        str | None, Field(description="Configuration of the data set, where it has several.", examples=["en"])
    ] = None
    split: Annotated[
        str | None, Field(description="Split of the data set; default: train.", examples=["train", "validation"])
    ] = None
    revision: Annotated[
        str | None, Field(description="Branch, tag or commit of the data set. Default: main.", examples=["main"])
    ] = None
    files: Annotated[
        Files,
        Field(
            description="Files, folders or glob patterns, relative to the spec: text (a document each), jsonl, json "
            "(an array of objects) or parquet; text, jsonl and json also as .gz and .zst. ${NAME} is an environment "
            "variable. Hidden files are left out unless they are named.",
            examples=["notes.txt", ["texts/*.jsonl", "more/**/*.jsonl.gz"], ["${DATA}/texts"]],
        ),
    ] = None
    format: Annotated[
        Literal["text", "jsonl", "json", "parquet"] | None,
        Field(description="Of the files; default: by their ending.", examples=["jsonl"]),
    ] = None
    corpus: Annotated[
        Literal["python_stdlib"] | None,
        Field(
            description="Text that is always at hand: the source code of Python's own standard library.",
            examples=["python_stdlib"],
        ),
    ] = None
    text_field: Annotated[
        str | None,
        Field(
            description="Where jsonl, json, parquet and data sets hold the text: a field, or one inside of another. "
            "Default: text.",
            examples=["content", "meta.text"],
        ),
    ] = None
    on_bad_row: Annotated[
        Literal["error", "skip"],
        Field(
            description="What happens to a row without text: no such field, null, another type, broken JSON or UTF-8. "
            "error ends the task and names file and line; skip leaves it out and counts it."
        ),
    ] = "error"
    bos: Annotated[
        Literal["auto"] | bool,
        Field(
            description="Whether every document, and every training sequence, begins with the beginning-of-sequence "
            "token. auto: as the teacher's tokenizer itself begins a text.",
            examples=["auto", True, False],
        ),
    ] = "auto"
    sequence_length: Annotated[Count, Field(ge=8, description="Tokens of one training sequence.")]
    skip: Annotated[NotNegative, Field(description="So many documents at the start are passed over.")] = 0
    max_tokens: Annotated[
        Positive | None,
        Field(
            description="Read so many training tokens. Default: all files; of a data set it has to be given. A "
            "training that is longer goes through them more than once.",
            examples=["10M"],
        ),
    ] = None
    held_out: Annotated[
        HeldOutSplit | None,
        Field(description="Which documents are set apart for evaluation. Default: none.", examples=[{"every": 20}]),
    ] = None

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        only_one(self, "dataset", "files", "corpus")
        for name in ("config", "split", "revision"):
            if getattr(self, name) is not None and self.dataset is None:
                raise FieldError(f"{name} goes with dataset", at=(name,))
        if self.text_field is not None and self.corpus is not None:
            raise FieldError("text_field goes with files of rows and with data sets", at=("text_field",))
        own = self.held_out is not None and self.held_out.files is not None
        if self.format is not None and self.files is None and not own:
            raise FieldError("format goes with files", at=("format",))
        return self


class CalibrationSpec(Strict):
    """Training text that a choice is measured on, in windows of the data's sequence length."""

    sequences: Annotated[int, Field(ge=1, description="So many sequences, drawn with the seed.")] = 64
