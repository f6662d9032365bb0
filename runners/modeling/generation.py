"""Have one model write text behind prompts of any lengths: in batches, with a cache, seeds for each row.

    written = write(model, tokenizer, prompts, settings=settings, seed=0, places=[("gsm8k", 0), ("gsm8k", 1)])

What is drawn is a function of a row's prompt, the seed, and the row's place (`runners.modeling.sampling`), so it does
not matter which rows are written together, but for the last digits of a model's probabilities. transformers'
`generate` runs the model, and its own processors cut the distribution; the draw is the last of the processors, which
leaves one token, so that the rest is greedy decoding.

Shapes: B rows, P positions of the padded prompts, N new tokens, T = P + N, V vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinPLogitsWarper,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from boomspec.core.tasks import Generation
from runners.modeling.sampling import draw, uniforms

Place = tuple[str | int, ...]  # what tells the texts of one seed apart: a task's name, a document's number, ...
_STREAM = 0x74657874  # apart from the random numbers of training text that models write
_LOOK_BACK = 2  # tokens more than a stop has by itself: text may hold it in other tokens


class Written(NamedTuple):
    """One text. `text`: up to the stop, without special tokens. `cut`: it ended at its budget of tokens."""

    tokens: tuple[int, ...]
    text: str
    cut: bool


def write(
    model: Any,
    tokenizer: Any,
    prompts: Sequence[Sequence[int]],
    *,
    settings: Generation,
    seed: int,
    places: Sequence[Place],
) -> list[Written]:
    """The text of each prompt, as one batch. A temperature that is None or 0 takes the most probable token.

    Without a repetition penalty in `settings` there is none, whatever the model's generation_config.json says.
    """
    assert settings.max_tokens is not None
    padding = tokenizer.eos_token_id if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    tokens_BP, mask_BP = padded(prompts, padding=padding)
    numbers = numbers_of(settings, seed, places)
    stops = [stop for stop in settings.stop or () if stop]
    tokens_BT = model.generate(
        input_ids=tokens_BP.to(model.device),
        attention_mask=mask_BP.to(model.device),
        max_new_tokens=settings.max_tokens,
        pad_token_id=padding,
        stopping_criteria=StoppingCriteriaList([Stops(tokenizer, stops, tokens_BP.shape[1])] if stops else []),
        **{"repetition_penalty": 1.0, **options(settings, numbers, mask_BP)},
    )
    config = model.generation_config.eos_token_id
    ends = {tokenizer.eos_token_id, *(config if isinstance(config, (list, tuple)) else [config])}
    found = []
    for row in tokens_BT[:, tokens_BP.shape[1] :].tolist():
        length = next((number for number, token in enumerate(row) if token in ends), len(row))
        text = tokenizer.decode(row[:length], skip_special_tokens=True)
        stopped = min((text.index(stop) for stop in stops if stop in text), default=None)
        cut = length == settings.max_tokens and stopped is None
        found.append(Written(tuple(row[:length]), text[:stopped], cut))
    return found


def padded(prompts: Sequence[Sequence[int]], *, padding: int) -> tuple[Tensor, Tensor]:
    """The prompts, padded at their beginnings, and a mask that is 1 where a token is one of a prompt; [B, P] each."""
    longest = max(map(len, prompts))
    tokens = [[*[padding] * (longest - len(prompt)), *prompt] for prompt in prompts]
    mask = [[*[0] * (longest - len(prompt)), *[1] * len(prompt)] for prompt in prompts]
    return torch.tensor(tokens), torch.tensor(mask)


def numbers_of(settings: Generation, seed: int, places: Sequence[Place]) -> Tensor | None:
    """The numbers in [0, 1) that the rows at these places are drawn with, [B, N]; None where nothing is drawn."""
    if not settings.temperature:
        return None
    assert settings.max_tokens is not None
    rows = [uniforms(seed, _STREAM, *map(_number, place), count=settings.max_tokens) for place in places]
    return torch.from_numpy(np.stack(rows))


def seed_of(seed: int, place: Place) -> int:
    """A seed for the text at a place, for a program that draws by itself; below 2^31."""
    return int(uniforms(seed, _STREAM, *map(_number, place), count=1)[0] * 2**31)


def _number(part: str | int) -> int:
    return part if isinstance(part, int) else int.from_bytes(hashlib.sha256(part.encode()).digest()[:8], "big")


def options(settings: Generation, numbers_BN: Tensor | None, mask_BP: Tensor) -> dict[str, Any]:
    """Options of transformers' `generate`: the most probable token, or those that the numbers draw.

    What a drawn text's settings leave out is off, whatever the model's generation_config.json says.
    """
    found: dict[str, Any] = {"do_sample": False, "logits_processor": processors(settings, numbers_BN, mask_BP)}
    if numbers_BN is not None or settings.repetition_penalty is not None:
        found["repetition_penalty"] = 1.0  # it is among the processors, which leave padding out
    return found


def processors(settings: Generation, numbers_BN: Tensor | None, mask_BP: Tensor) -> LogitsProcessorList:
    """From logits to what is taken, in the order of transformers: penalties, temperature, what is cut, the draw."""
    found = LogitsProcessorList()
    if settings.repetition_penalty is not None and settings.repetition_penalty != 1:
        found.append(RepetitionPenalty(settings.repetition_penalty, mask_BP))
    if settings.presence_penalty:
        found.append(PresencePenalty(settings.presence_penalty, mask_BP.shape[1]))
    if numbers_BN is None:
        return found
    assert settings.temperature
    if settings.temperature != 1:
        found.append(TemperatureLogitsWarper(float(settings.temperature)))
    if settings.top_k:
        found.append(TopKLogitsWarper(settings.top_k))
    if settings.top_p is not None and settings.top_p < 1:
        found.append(TopPLogitsWarper(settings.top_p))
    if settings.min_p:
        found.append(MinPLogitsWarper(settings.min_p))
    found.append(_Draw(numbers_BN, mask_BP.shape[1]))
    return found


class PresencePenalty(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Subtract a constant from the logits of all tokens that the text holds already, however often.

    logits[v] -= penalty * (v is among the new tokens): the definition of OpenAI's API, and of vLLM
    (vllm/model_executor/layers/utils.py, apply_penalties). The prompt does not count.
    """

    def __init__(self, penalty: float, prompt: int) -> None:
        self._penalty, self._prompt = penalty, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        new_BN = input_ids[:, self._prompt :]
        present_BV = torch.zeros_like(scores, dtype=torch.bool).scatter_(1, new_BN, True)
        return torch.where(present_BV, scores - self._penalty, scores)


class RepetitionPenalty(LogitsProcessor):  # type: ignore[misc]
    """CTRL's penalty (arXiv 1909.05858, section 4.1) on all tokens of prompt and text.

    transformers' own counts the padding, too, so that what a row writes would depend on the rows beside it.
    """

    def __init__(self, penalty: float, mask_BP: Tensor) -> None:
        self._penalty, self._mask_BP = penalty, mask_BP

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        known_BT = torch.ones_like(input_ids)
        known_BT[:, : self._mask_BP.shape[1]] = self._mask_BP.to(input_ids.device)
        counts_BV = torch.zeros_like(scores, dtype=torch.long).scatter_add_(1, input_ids, known_BT)
        punished_BV = torch.where(scores > 0, scores / self._penalty, scores * self._penalty)
        return torch.where(counts_BV > 0, punished_BV, scores)


class _Draw(LogitsProcessor):  # type: ignore[misc]
    """Leave of each row the one token that its next number draws."""

    def __init__(self, numbers_BN: Tensor, prompt: int) -> None:
        self._numbers_BN, self._prompt = numbers_BN, prompt

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        numbers_B = self._numbers_BN[:, input_ids.shape[1] - self._prompt].to(scores.device)
        # A model whose numbers are not finite draws some token: who runs it looks for such rows.
        tokens_B = draw(scores.softmax(-1).nan_to_num(0.0), numbers_B).clamp(0, scores.shape[1] - 1)
        return torch.full_like(scores, -torch.inf).scatter_(1, tokens_B.unsqueeze(1), 0.0)


class Stops(StoppingCriteria):  # type: ignore[misc]
    """Stops a row once one of these texts is among its newest tokens."""

    def __init__(self, tokenizer: Any, stops: Sequence[str], prompt: int) -> None:
        self._tokenizer, self._stops, self._prompt = tokenizer, stops, prompt
        longest = max(len(tokenizer.encode(stop, add_special_tokens=False)) for stop in stops)
        self._last = longest + _LOOK_BACK

    def __call__(self, input_ids: Tensor, scores: Tensor, **more: Any) -> Tensor:
        texts = self._tokenizer.batch_decode(input_ids[:, self._prompt :][:, -self._last :])
        done = [any(stop in text for stop in self._stops) for text in texts]
        return torch.tensor(done, device=input_ids.device)
