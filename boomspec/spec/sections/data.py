"""The section `data`: where the text comes from, how it is cut, which documents are held out."""

from typing import Annotated, Literal

from pydantic import Field

from boomspec.core.types import AlsoText, Count, Strict, about
from boomspec.spec.sections.training import NotNegative, Positive
from boomspec.spec.validate import FieldError, goes_with, only_one

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


class DataSpec(Strict):
    """The text that models are trained on and measured with."""

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
    on_bad_row: Literal["error", "skip"] = "error"
    """What happens to a row without text: no such field, null, another type, broken JSON or UTF-8. error ends the
    task and names file and line; skip leaves it out and counts it."""
    bos: Literal["auto"] | bool = Field("auto", examples=["auto", True, False])
    """Whether every document, and every training sequence, begins with the beginning-of-sequence token. auto: as
    the teacher's tokenizer itself begins a text."""
    sequence_length: Count = about("Tokens of one training sequence.", ge=8)
    skip: NotNegative = about("So many documents at the start are passed over.", default=0)
    max_tokens: Positive | None = Field(None, examples=["10M"])
    """Read so many training tokens. Default: all files; of a data set it has to be given. A training that is longer
    goes through them more than once."""
    held_out: HeldOutSplit | None = Field(None, examples=[{"every": 20}])
    """Which documents are set apart for evaluation. Default: none."""

    def model_post_init(self, _: object) -> None:
        only_one(self, "dataset", "files", "corpus")
        goes_with(self, "dataset", "config", "split", "revision")
        if self.text_field is not None and self.corpus is not None:
            raise FieldError("text_field goes with files of rows and with data sets", at=("text_field",))
        if self.held_out is None or self.held_out.files is None:
            goes_with(self, "files", "format")


class CalibrationSpec(Strict):
    """Training text that a choice is measured on, in windows of the data's sequence length."""

    sequences: int = about("So many sequences, drawn with the seed.", default=64, ge=1)


Calibration = Annotated[CalibrationSpec, about("The text that it is decided on.")]
