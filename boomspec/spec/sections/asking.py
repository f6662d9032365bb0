"""Fields of the section `evaluate`: how a model is asked, and what of its text is its answer."""

from typing import Annotated, Literal

from pydantic import Field

from boomspec.core.tasks.asking import TRUNCATING
from boomspec.core.types import Count, Number, Strict, about
from boomspec.spec.validate import FieldError


class ChatSpec(Strict):
    """Prompts are turns of a chat, as the teacher's chat template renders them."""

    system: str | None = Field(None, examples=["Answer briefly."], min_length=1)
    """System prompt. What a task itself describes follows it."""
    fewshot_as_multiturn: bool = Field(True, examples=[False])
    """Examples of a prompt are turns of their own; false: they are all in one turn of the user."""
    template: dict[str, bool | int | float | str] = Field({}, examples=[{"enable_thinking": False}])
    """Variables of the chat template."""


class GenerationSpec(Strict):
    """How text is generated; what is left out is as the task says."""

    temperature: Number | None = Field(None, examples=[0, 0.7], ge=0)
    """0: the most probable token. Above 0 tokens are drawn, from the seed of the spec."""
    top_p: Number | None = Field(None, examples=[0.8], gt=0, le=1)
    """Draw from the fewest most probable tokens that have so much of the probability together."""
    top_k: int | None = about("Draw from the so many most probable tokens.", [20], default=None, ge=1)
    min_p: Number | None = Field(None, examples=[0.05], ge=0, lt=1)
    """Draw from tokens with at least this share of the probability of the most probable one."""
    presence_penalty: Number | None = Field(None, examples=[0.5], ge=-2, le=2)
    """Subtracted from the logits of tokens that the text has already."""
    repetition_penalty: Number | None = Field(None, examples=[1.05], gt=0)
    """Divides the logits of tokens that prompt or text have already (multiplies them where they are negative)."""
    max_tokens: Annotated[Count, Field(gt=0)] | None = about("Of a text, at most.", [1024, "32k"], default=None)
    stop: tuple[str, ...] | None = Field(None, examples=[["Question:"]])
    """Texts that end a text, in the place of the task's."""

    def model_post_init(self, _: object) -> None:
        given = [name for name in TRUNCATING if getattr(self, name) is not None]
        if self.temperature == 0 and given:
            raise FieldError("nothing is drawn at temperature 0", at=(given[0],), hint="leave it out")
        if "" in (self.stop or ()):
            raise FieldError("an empty text ends nothing", at=("stop",))

    def over(self, other: "GenerationSpec | None") -> "GenerationSpec":
        """These fields, with those of `other` where they say nothing."""
        if other is None:
            return self
        below = other.model_dump(exclude_none=True)
        if self.temperature == 0:
            below = {name: value for name, value in below.items() if name not in TRUNCATING}
        return GenerationSpec.model_validate(below | self.model_dump(exclude_none=True))


class ThinkingSpec(Strict):
    """What a model thinks before it answers. Text up to the last end marker is no part of the answer."""

    end: str = about("The text that ends a thought.", ["</think>"], min_length=1)
    start: str | None = Field(None, examples=["<think>"], min_length=1)
    """The text that begins one. A text without it, and without an end, is all answer. Default: all texts have a
    thought."""


ChatField = bool | ChatSpec | None
ThinkingField = Literal["strip", "keep"] | ThinkingSpec | None


class AskingSpec(Strict):
    """Fields that both `evaluate`, for all tasks that they fit, and a task have; a task's own come first."""

    chat: ChatField = Field(None, examples=[True, {"system": "Answer briefly."}])
    """Prompts as turns of a chat: true, or {system: ..., fewshot_as_multiturn: false, template: {...}}."""
    generation: GenerationSpec | None = Field(None, examples=[{"temperature": 0.7, "top_p": 0.8, "top_k": 20}])
    """How tasks generate text, over what they say themselves."""
    thinking: ThinkingField = Field(None, examples=["strip", {"end": "</think>"}])
    """strip: what a model thinks is taken out of its text before it is scored; a thought without an end leaves an empty
    answer. {end: ...} names the marker; keep: the whole text is scored."""
    samples: int | None = Field(None, examples=[4], ge=1)
    """Texts for each document; numbers are means over them, called mean@4. They need a temperature above 0."""
