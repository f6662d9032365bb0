"""Of the section `evaluate`: what a size is like where it is used: what it writes, its speed, its memory."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field

from boomspec.core.tasks.asking import TRUNCATING
from boomspec.core.types import Number, Strict, about
from boomspec.spec.sections.training import Positive
from boomspec.spec.validate import FieldError, goes_with, only_one


def _prompts(prompts: tuple[str, ...]) -> tuple[str, ...]:
    for i, prompt in enumerate(prompts):
        if not prompt.strip():
            raise FieldError("an empty prompt", at=(i,))
        if prompt in prompts[:i]:
            raise FieldError("the same prompt twice", at=(i,), hint="for several texts of one prompt: samples: 2")
    return prompts


class TextsSpec(Strict):
    """Texts that every model writes behind the same prompts, to be read side by side. They are no measure."""

    prompts: Annotated[tuple[str, ...], AfterValidator(_prompts)] | None = Field(
        None, examples=[["What is the capital of France?"]], min_length=1
    )
    """What the models are asked, or go on from. Or give `file`."""
    file: str | None = Field(None, examples=["prompts.txt", "prompts.jsonl"], min_length=1)
    """A file with the prompts, relative to the spec: a line each, or of .jsonl the field `prompt` of each line."""
    chat: Literal["auto"] | bool = Field("auto", examples=[False])
    """true: a prompt is the turn of a user, in the tokenizer's chat template; false: it is text as it stands;
    auto: true where the tokenizer has a chat template. The result says which it was."""
    system: str | None = Field(None, examples=["Answer in one sentence."], min_length=1)
    """The system prompt of the chat. Default: what the template itself has."""
    template: dict[str, bool | int | float | str] = Field({}, examples=[{"enable_thinking": False}])
    """Variables of the chat template."""
    max_tokens: Positive = about("New tokens at most; a model may end its text sooner.", default=64)
    temperature: Number = about("0: the likeliest token. Above 0 tokens are drawn.", default=0.0, ge=0)
    top_k: int | None = about("Draw from the so many likeliest tokens. Default: from all.", [20], default=None, ge=1)
    top_p: Number | None = Field(None, examples=[0.8], gt=0, le=1)
    """Draw from the fewest likeliest tokens that have so much of the probability together. Default: from all."""
    min_p: Number | None = Field(None, examples=[0.05], ge=0, lt=1)
    """Draw from tokens with at least this share of the likeliest one's probability. Default: from all."""
    presence_penalty: Number | None = Field(None, examples=[0.5], ge=-2, le=2)
    """Subtracted from the logits of tokens that the text has already. Default: none."""
    repetition_penalty: Number | None = Field(None, examples=[1.05], gt=0)
    """Divides the logits of tokens that prompt or text have already. Default: none."""
    stop: tuple[str, ...] | None = about("Texts that end a text.", [["Question:"]], default=None)
    samples: int = about("Texts for each prompt, drawn with the spec's seed.", default=1, ge=1, le=100)

    def model_post_init(self, _: object) -> None:
        only_one(self, "prompts", "file")
        goes_with(self, "temperature", *TRUNCATING, "samples")
        if "" in (self.stop or ()):
            raise FieldError("an empty text ends nothing", at=("stop",))
        if self.chat is False and (self.system is not None or self.template):
            place = "template" if self.system is None else "system"
            raise FieldError(f"without the chat template there is no {place}", at=(place,))

    @property
    def with_chat(self) -> bool | None:
        """None: where the tokenizer has a chat template. A chat that has something of its own needs one."""
        asked = self.system is not None or bool(self.template)
        return (True if asked else None) if self.chat == "auto" else self.chat


class SpeedSpec(Strict):
    """Tokens a second and memory of every size, on the machine where the task runs.

    These numbers differ from run to run and from machine to machine. A result says what it was measured on, and stays
    until it is removed; `device` makes another kind of device another task.
    """

    prompt_tokens: Positive = about("Tokens of each prompt.", default=512)
    new_tokens: int = about("Tokens that are written behind it.", default=64, ge=2)
    batch: int = about("Sequences at a time.", default=1, ge=1)
    repeats: int = about("Measured so often, after one run to warm up; the median counts.", default=3, ge=1)
    device: str | None = Field(None, examples=["NVIDIA H200"], min_length=1)
    """The kind of device, as the result of a run calls it: elsewhere the task fails, and measures nothing. Default:
    whichever it runs on."""
