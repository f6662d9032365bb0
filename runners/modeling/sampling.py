"""Have models write text: token after token, in batches, with a cache of keys and values.

    writer = Writer([(model, 1.0)], sampling, ends)
    tokens_BT = writer.write(prompts_BP, uniforms_BN)       T = P + N

What is drawn is a function of a row's prompt and of its uniform numbers alone, which come from a seed and the row's
number (`uniforms`). So it makes no difference which rows are written together, but for the last digits of a model's
probabilities. A token is found by whole numbers: each has floor(2^40 p) of them, and the one in whose share the drawn
number lies is taken. Sums of whole numbers are the same in any order, which sums of floats on a GPU are not; a token
whose probability is below 2^-40 is never drawn.

Writing goes on behind an end of text, as the stream of the training text does (`runners/data/tokens.py`): where texts
begin with tokens of their own, these follow it, and are not drawn.

Shapes: B sequences, P tokens of a prompt, N tokens that are written, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks.generate import Sampling
from runners.modeling.hidden_states import LMHead, base_model

_GRAINS = 2.0**40  # of the probability 1; a power of two, so that scaling rounds nothing
_STREAM = 0x77726974  # apart from the random numbers that the same seed gives for other things


def uniforms(seed: int, *place: int, count: int) -> npt.NDArray[np.float64]:
    """Numbers in [0, 1) for the tokens of one row. `place`: the row's number, behind others that tell rows apart."""
    return np.random.Generator(np.random.PCG64([seed, _STREAM, len(place), *place])).random(count)


@dataclass(frozen=True)
class Ends:
    """How texts end and begin in a stream, and how many token ids it knows."""

    eos: int
    prefix: tuple[int, ...]
    vocabulary: int

    @property
    def start(self) -> tuple[int, ...]:
        """What a text that nobody has begun begins with."""
        return self.prefix or (self.eos,)

    @property
    def unlabelled(self) -> tuple[int, ...]:
        """What a text begins with, beside the end of the one before: it follows that, and is not drawn."""
        return tuple(sorted(set(self.prefix) - {self.eos}))


@dataclass(frozen=True)
class Writer:
    """Models that write together: the next token comes from the mean of their distributions, with these shares."""

    models: Sequence[tuple[Any, float]]
    sampling: Sampling
    ends: Ends

    @torch.no_grad()
    def write(self, prompts_BP: Tensor, uniforms_BN: Tensor) -> Tensor:
        """tokens_BT: each prompt and what is written behind it. Runs where the models are; in evaluation mode."""
        readers = [Reader(model) for model, _ in self.models]
        tokens, read_BT = [prompts_BP], prompts_BP
        prefix = prompts_BP.new_tensor(self.ends.prefix if set(self.ends.prefix) != {self.ends.eos} else ())
        # How much of the prefix is written; all of it: none is due.
        at_B = torch.full_like(prompts_BP[:, 0], len(prefix))
        if len(prefix) and self.ends.prefix[-1] != self.ends.eos:
            at_B = torch.where(prompts_BP[:, -1] == self.ends.eos, 0, at_B)  # the prompt ends with a text
        for uniforms_B in uniforms_BN.unbind(1):
            mixed_BV = self.probabilities([reader.next_logits(read_BT) for reader in readers])
            token_B = draw(self.cut(mixed_BV), uniforms_B)
            if len(prefix):
                due_B = at_B < len(prefix)
                token_B = torch.where(due_B, prefix[at_B.clamp(max=len(prefix) - 1)], token_B)
                ended_B = (token_B == self.ends.eos) & ~due_B
                at_B = torch.where(ended_B, 0, at_B + due_B.long())
            read_BT = token_B.unsqueeze(1)
            tokens.append(read_BT)
        return torch.cat(tokens, dim=1)

    def probabilities(self, logits: Sequence[Tensor]) -> Tensor:
        """The mean of the models' distributions at the temperature, by their shares; [B, V] in fp32."""
        known = [
            (each_BV[:, : self.ends.vocabulary].float() / self.sampling.temperature).softmax(-1) for each_BV in logits
        ]
        if len(known) == 1:
            return known[0]
        mixed_BV = torch.zeros_like(known[0])
        for each_BV, (_, share) in zip(known, self.models, strict=True):
            mixed_BV += share * each_BV
        return mixed_BV

    def cut(self, probabilities_BV: Tensor) -> Tensor:
        """The same with 0 for what is not among the most probable. Tokens of equal probability stay or go together."""
        sampling, found_BV = self.sampling, probabilities_BV
        if sampling.top_k is not None and sampling.top_k < found_BV.shape[-1]:
            least_B1 = found_BV.topk(sampling.top_k, dim=-1).values[:, -1:]
            found_BV = torch.where(found_BV >= least_B1, found_BV, 0.0)
        if sampling.top_p is not None and sampling.top_p < 1:
            sorted_BV = found_BV.sort(dim=-1, descending=True).values
            grains_BV = _grains(sorted_BV)
            sums_BV = grains_BV.cumsum(-1)
            wanted_B1 = (sums_BV[:, -1:].double() * sampling.top_p).ceil()
            needed_B1 = (sums_BV.double() < wanted_B1).sum(-1, keepdim=True).clamp(max=sorted_BV.shape[-1] - 1)
            found_BV = torch.where(found_BV >= sorted_BV.gather(-1, needed_B1), found_BV, 0.0)
        return found_BV


def draw(weights_BV: Tensor, uniforms_B: Tensor) -> Tensor:
    """tokens_B: of each row the token in whose part of [0, 1) the number lies; parts are as large as weights."""
    sums_BV = _grains(weights_BV).cumsum(-1)
    total_B = sums_BV[:, -1]
    place_B = (uniforms_B.double() * total_B.double()).long().minimum(total_B - 1)
    return torch.searchsorted(sums_BV, place_B.unsqueeze(1), right=True).squeeze(1)


def _grains(weights_BV: Tensor) -> Tensor:
    return (weights_BV * _GRAINS).long()


class Reader:
    """A model that reads on: what it has read is in its cache."""

    def __init__(self, model: Any) -> None:
        self._trunk, self._head, self._cache = base_model(model), LMHead(model), None
        self._type = model.config.model_type

    def next_logits(self, tokens_BT: Tensor) -> Tensor:
        """logits_BV of the token behind these, which follow what it has read before."""
        output = self._trunk(input_ids=tokens_BT, past_key_values=self._cache, use_cache=True)
        self._cache = getattr(output, "past_key_values", None)
        if self._cache is None:
            message = f"model type '{self._type}': it keeps no keys and values, so it cannot write text here"
            raise BoomspecError(message, hint="leave out what has it write, such as distill.on_policy")
        logits_BV: Tensor = self._head(output[0][:, -1])
        return logits_BV
