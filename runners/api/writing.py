"""Have one model write behind a text, or answer messages, through its tokenizer's chat template."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from transformers import PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import Generation
from boomspec.core.tasks.asking import TRUNCATING
from boomspec.models.facts import POSITIONS
from runners.modeling.generation import write

Message = Mapping[str, Any]  # {"role": "user", "content": "..."}
Prompt = str | Sequence[Message]
_PLACE = ("boomspec.family",)  # what is drawn here is drawn nowhere else


def settings_of(stop: str | Sequence[str] | None, **given: Any) -> Generation:
    """Raises BoomspecError for numbers that mean nothing, and for what a text that is not drawn does not read."""
    checks: dict[str, tuple[str, Callable[[float], bool]]] = {
        "max_tokens": ("at least 1", lambda value: value >= 1),
        "temperature": ("at least 0, which draws nothing", lambda value: value >= 0),
        "top_p": ("more than 0 and at most 1", lambda value: 0 < value <= 1),
        "top_k": ("at least 1", lambda value: value >= 1),
        "min_p": ("at least 0 and less than 1", lambda value: 0 <= value < 1),
        "repetition_penalty": ("more than 0", lambda value: value > 0),
    }
    for name, (allowed, holds) in checks.items():
        if given[name] is not None and not holds(given[name]):
            raise BoomspecError(f"{name}={given[name]}: {allowed} is allowed")
    if not given["temperature"] and (idle := [name for name in TRUNCATING if given[name] is not None]):
        raise BoomspecError(f"{idle[0]} cuts what is drawn from", hint="give a temperature, such as 0.7")
    stops = (stop,) if isinstance(stop, str) else tuple(stop or ())
    return Generation(stop=stops, **given)


def tokens_of(
    tokenizer: Any, prompt: Prompt, *, chat: bool | None, system: str | None, template: Mapping[str, Any]
) -> list[int]:
    """The tokens of a text, or of messages in the tokenizer's chat template with the beginning of an answer."""
    if not chat and (isinstance(prompt, str) or chat is not None):
        if not isinstance(prompt, str):
            raise BoomspecError("messages are for a chat", hint="leave out chat=False, or give one text")
        if system is not None or template:
            raise BoomspecError("a system prompt and what a template asks are for a chat", hint="say chat=True")
        plain: list[int] = tokenizer(prompt)["input_ids"]
        while plain and plain[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
            plain.pop()
        return plain
    if not getattr(tokenizer, "chat_template", None):
        raise BoomspecError("the tokenizer has no chat template", hint="give one text, and leave out chat")
    messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
    if system is not None:
        messages = [{"role": "system", "content": system}, *messages]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True, **template)
    rendered: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return rendered


def written(model: PreTrainedModel, tokenizer: Any, tokens: list[int], settings: Generation, seed: int) -> str:
    """What the model writes behind these tokens, without special tokens; BoomspecError where positions do not suffice.

    The same seed draws the same text, whatever else is written.
    """
    if not tokens:
        raise BoomspecError("the prompt has no tokens, so there is nothing to go on from")
    config: Any = model.config.get_text_config()
    positions = next((n for key in POSITIONS if isinstance(n := getattr(config, key, None), int)), None)
    wanted = settings.max_tokens or 0
    if positions is not None and len(tokens) + wanted > positions:
        needed = f"the prompt has {len(tokens):,} tokens and {wanted:,} may follow"
        raise BoomspecError(f"{needed}: the model has {positions:,} positions", hint="give a smaller max_tokens")
    found = write(model, tokenizer, [tokens], settings=settings, seed=seed, places=[_PLACE])
    return found[0].text
