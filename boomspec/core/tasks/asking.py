"""How a model is asked to write text: as a chat, with which settings, and what of its text is its answer.

Every field that is None is left as the lm-eval task says it.
"""

from collections.abc import Mapping
from typing import Any

from boomspec.core.types import Strict

# lm-eval's names of the largest number of new tokens, in its order; and its default.
BUDGETS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
BUDGET = 256
TRUNCATING = ("top_p", "top_k", "min_p")  # what they cut off is never drawn; a greedy text draws nothing


class Chat(Strict):
    """Prompts are turns of a chat, rendered by the tokenizer's chat template."""

    system: str | None = None  # in front of what the task says itself
    multiturn: bool | None = None  # whether few-shot examples are turns of their own; None: there are none
    template: dict[str, bool | int | float | str] | None = None  # variables of the template


class Generation(Strict):
    """How the next token is found.

    The penalties are those of vLLM's sampler: `repetition_penalty` divides the positive logits of tokens of prompt and
    text by it, and multiplies the negative ones (arXiv 1909.05858); `presence_penalty` is subtracted from the logits of
    tokens of the text. Then temperature, top_k, top_p, and min_p (arXiv 2407.01082).
    """

    temperature: float | None = None  # 0: the most probable token
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None

    @classmethod
    def of(cls, own: Mapping[str, Any]) -> "Generation":
        """What lm-eval's `generation_kwargs` say."""
        given = {name: own[name] for name in _NUMBERS if own.get(name) is not None}
        stop = own.get("until")
        stops = None if stop is None else tuple(map(str, stop)) if isinstance(stop, list | tuple) else (str(stop),)
        temperature = float(given.get("temperature", 0.0)) if sampled(own) else 0.0
        if sampled(own) and not temperature:
            temperature = 1.0
        most = int(given.get("top_k", 0))
        whole = {"top_k": most} if most > 0 else {}  # 0 and -1 are others' ways to say all
        others = {name: float(value) for name, value in given.items() if name not in ("temperature", "top_k")}
        return cls(temperature=temperature, max_tokens=budget(own), stop=stops, **others, **whole)

    def over(self, own: Mapping[str, Any]) -> dict[str, Any]:
        """lm-eval's `generation_kwargs` of a task, with what is said here in their place."""
        found = dict(own)
        if self.max_tokens is not None:
            found = {name: value for name, value in found.items() if name not in BUDGETS}
            found["max_gen_toks"] = self.max_tokens
        if self.stop is not None:
            found["until"] = list(self.stop)
        if self.temperature is not None:
            found |= {"temperature": self.temperature, "do_sample": self.temperature > 0}
        given = self.model_dump(include=_NUMBERS - {"temperature"}, exclude_none=True)
        found |= given
        if not sampled(found):  # of the task itself
            found = {name: value for name, value in found.items() if name not in TRUNCATING or name in given}
        return found


_NUMBERS = {"temperature", *TRUNCATING, "presence_penalty", "repetition_penalty"}


class Thinking(Strict):
    """A model's text up to its last end marker is its thought, and no part of its answer.

    A thought that was begun and does not end leaves an empty answer. Without a start marker every text begins one.
    """

    end: str
    start: str | None = None

    def answer(self, text: str, *, prompt: str = "") -> str | None:
        """What follows the thought; the whole text where none was begun, None where it does not end."""
        _, ended, rest = text.rpartition(self.end)
        if ended:
            return rest.lstrip()
        if self.start is None:
            return None
        begun = self.start in text or self.start in prompt.rpartition(self.end)[2]
        return None if begun else text


def sampled(own: Mapping[str, Any]) -> bool:
    """Whether lm-eval's `generation_kwargs` have tokens drawn at random, as its models read them."""
    try:
        warm = float(own.get("temperature") or 0.0) > 0
    except (TypeError, ValueError):
        return True
    return warm if own.get("do_sample") is None else own["do_sample"] is not False


def budget(own: Mapping[str, Any]) -> int:
    """How many tokens are written at most, as lm-eval reads it."""
    found = next((own[name] for name in BUDGETS if own.get(name) is not None), BUDGET)
    try:
        return int(found)
    except (TypeError, ValueError):
        return BUDGET
