"""Have one model write texts behind prompts, to be read beside those of the other sizes.

Each text is written alone, and is a function of the prompt, of its number and of the seed (`runners/modeling/
generation.py`): one prompt more changes none of the others. Writes `texts.json`:

    {"chat": whether the chat template was used, "system", "precision", "settings",
     "texts": [{"prompt", "sample", "text", "tokens", "ended"}]}

`tokens` says how many were written, and `ended` whether the model ended the text; else it was cut after
`settings.max_tokens`, or at the last position that the model has.
"""

from pathlib import Path
from typing import Any

import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import json_text
from boomspec.core.tasks import Texts
from runners.data.text_tokenizer import tokenizer_folder
from runners.modeling.foreign_code import tokenizer_of
from runners.modeling.generation import write
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import deterministic_mode, frozen_dtype

TEXTS = "texts.json"


def run(context: Context[Texts]) -> None:
    record, found, samples = context.record, list[dict[str, Any]](), context.record.samples or 1
    with deterministic_mode(record.determinism, context.progress.note), torch.inference_mode():
        folder, code = model_folder(context.inputs["model"]), context.code_of("model")
        given = context.inputs.get("tokenizer")
        with tokenizer_folder(given, folder) as own:
            tokenizer = tokenizer_of(own, code if given is None else context.code_of("tokenizer"))
        chat = uses_chat(record, tokenizer, folder)
        model = load_frozen(folder, dtype=frozen_dtype(record.precision), code=code)
        for number, prompt in enumerate(record.prompts):
            tokens = prompt_tokens(tokenizer, prompt, record, chat=chat)
            room = _room(model, len(tokens), record.settings.max_tokens or 0)
            if not tokens or room < 1:
                why = "has no tokens" if not tokens else f"has {len(tokens):,} tokens, all that the model has room for"
                raise BoomspecError(f"prompt {number + 1} {why}", hint="change evaluate.texts.prompts")
            settings = record.settings.model_copy(update={"max_tokens": room})
            for sample in range(samples):
                place = (prompt, sample)
                (one,) = write(model, tokenizer, [tokens], settings=settings, seed=record.seed or 0, places=[place])
                of = {"prompt": prompt, "sample": sample, "text": one.text, "tokens": len(one.tokens)}
                found.append({**of, "ended": not one.cut})
                context.progress.update(len(found), len(record.prompts) * samples, unit="texts")
    how = {"chat": chat, "system": record.system if chat else None, "precision": record.precision}
    used = record.settings.model_dump(mode="json", exclude_none=True)
    text = json_text({**how, "settings": used, "texts": found}, indent=1, ensure_ascii=False)
    (context.path / TEXTS).write_text(text + "\n", encoding="utf-8")


def uses_chat(record: Texts, tokenizer: Any, folder: Path) -> bool:
    """Whether prompts are put into the chat template. Raises BoomspecError where one is asked for and there is none."""
    has = bool(getattr(tokenizer, "chat_template", None))
    if record.chat and not has:
        hint = "leave out evaluate.texts.chat and what goes with it: the prompts are then text as they stand"
        raise BoomspecError(f"{folder}: the tokenizer has no chat template", hint=hint)
    return has if record.chat is None else record.chat


def prompt_tokens(tokenizer: Any, prompt: str, record: Texts, *, chat: bool) -> list[int]:
    """The tokens that the model reads: the turn of a user, or a text that goes on."""
    if chat:
        messages = [{"role": "system", "content": record.system}] if record.system is not None else []
        messages.append({"role": "user", "content": prompt})
        options = {"tokenize": False, "add_generation_prompt": True, **(record.template or {})}
        text = tokenizer.apply_chat_template(messages, **options)
        return list(tokenizer(text, add_special_tokens=False).input_ids)
    tokens = list(tokenizer(prompt).input_ids)
    while tokens and tokens[-1] == tokenizer.eos_token_id:  # some tokenizers end every text
        tokens.pop()
    return tokens


def _room(model: Any, read: int, most: int) -> int:
    """How many tokens may follow so many."""
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    return most if positions is None else min(most, positions - read)
