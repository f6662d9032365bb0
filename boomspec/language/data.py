"""The section of the spec language about text: where it comes from, how it is cut, what is set apart."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from boomspec.language.fields import AlsoText, Count, Strict
from boomspec.language.training import NotNegative, Positive
from boomspec.reading.validation import FieldError, only_one


class HeldOutSplit(Strict):
    """Documents set apart for evaluation: every `every`-th, starting at `offset`."""

    every: Annotated[int, Field(ge=2, description="Hold out one of so many documents.", examples=[20, 1000])]
    offset: Annotated[int, Field(ge=0, description="Index of the first one.")] = 0

    @model_validator(mode="after")
    def _offset_below_every(self) -> Self:
        if self.offset >= self.every:
            raise FieldError(f"must be below every ({self.every}), not {self.offset}", at=("offset",))
        return self


def _as_tuple(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


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
        # The length stands inside: behind a before-validator pydantic would measure None.
        Annotated[tuple[str, ...], Field(min_length=1)] | None,
        BeforeValidator(_as_tuple),
        AlsoText(),
        Field(
            description="Files or glob patterns, relative to the spec: text (a document each), jsonl or parquet.",
            examples=["notes.txt", ["texts/*.jsonl", "more/**/*.jsonl"]],
        ),
    ] = None
    format: Annotated[
        Literal["text", "jsonl", "parquet"] | None,
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
        Field(description="Where jsonl, parquet and data sets hold the text. Default: text.", examples=["content"]),
    ] = None
    sequence_length: Annotated[Count, Field(ge=8, description="Tokens of one training sequence.")]
    skip: Annotated[NotNegative, Field(description="So many documents at the start are passed over.")] = 0
    max_tokens: Annotated[
        Positive | None,
        Field(
            description="Stop after so many training tokens. Default: all files; of a data set what training needs.",
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
            raise FieldError("text_field goes with jsonl and parquet files and with data sets", at=("text_field",))
        if self.format is not None and self.files is None:
            raise FieldError("format goes with files", at=("format",))
        return self
