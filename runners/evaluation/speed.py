"""Measure how fast a model reads a prompt and writes behind it, as transformers runs it, and what memory that takes.

    first token   from the prompt to the first token: the forward pass over the prompt, the head, the choice
    prefill       tokens of all prompts over that time
    decode        tokens behind the first ones over the time that they took, one after the other, with a KV cache

Times are medians over the repeats, after one run that warms up. Every token is the likeliest one; texts do not end.
The bytes of weights and KV cache are counted, not measured.

Shapes: B sequences, P tokens of a prompt, N tokens that are written, V vocabulary.
"""

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch

from boomspec.core.errors import BoomspecError
from boomspec.core.machine import cpu_model
from boomspec.core.tasks import Speed
from boomspec.models.checkpoint import FLOAT_BYTES
from boomspec.models.facts import ModelFacts
from boomspec.models.kv_cache import layer_cache_bytes
from runners.modeling.sampling import Reader
from runners.runtime.device import device


class Metric(NamedTuple):
    """What is measured of a model where it is used."""

    name: str
    unit: str
    higher_is_better: bool


METRICS = (
    Metric("decode_tokens_per_second", "tokens/s", higher_is_better=True),
    Metric("prefill_tokens_per_second", "tokens/s", higher_is_better=True),
    Metric("first_token_seconds", "s", higher_is_better=False),
    Metric("peak_memory_bytes", "bytes", higher_is_better=False),
    Metric("weight_bytes", "bytes", higher_is_better=False),
    Metric("cache_bytes", "bytes", higher_is_better=False),
)


class Times(NamedTuple):
    """Of one run, in seconds: up to the first token, and from there to the last."""

    first_token: float
    decode: float


def device_name() -> str:
    """What results call the device of this process."""
    return torch.cuda.get_device_name() if device().type == "cuda" else cpu_model()


def check_device(wanted: str | None) -> None:
    """Raise BoomspecError where the speed of another kind of device is asked for."""
    if wanted is not None and wanted.lower() != (here := device_name()).lower():
        message = f"the speed on '{wanted}' is asked for, and this is '{here}'"
        raise BoomspecError(message, hint="run it there, or change evaluate.speed.device")


def time_runs(model: Any, record: Speed, done: Callable[[int], None] = lambda run: None) -> list[Times]:
    """The times of every repeat. `done` is told how many runs are over, the one that warms up included."""
    found = []
    for run in range(1 + record.repeats):
        found.append(_timed(model, record))
        done(run + 1)
    return found[1:]


@torch.inference_mode()
def _timed(model: Any, record: Speed) -> Times:
    vocabulary = int(model.get_input_embeddings().weight.shape[0])
    # Rows that differ, as those of users do; which tokens they are makes no difference.
    tokens_BP = torch.arange(record.batch * record.prompt_tokens, device=device()).view(record.batch, -1)
    reader = Reader(model)
    _wait()
    began = time.perf_counter()
    token_B1 = reader.next_logits(tokens_BP.mul(7919).remainder(vocabulary)).argmax(-1, keepdim=True)
    _wait()
    first = time.perf_counter()
    for _ in range(record.new_tokens - 1):
        token_B1 = reader.next_logits(token_B1).argmax(-1, keepdim=True)
    _wait()
    return Times(first - began, time.perf_counter() - first)


def _wait() -> None:
    """Until the GPU has done what it was given."""
    if device().type == "cuda":
        torch.cuda.synchronize()


def times_of(runs: list[Times], record: Speed) -> dict[str, float]:
    """The metrics that follow from times, by name."""
    first = statistics.median(run.first_token for run in runs)
    decode = statistics.median(run.decode for run in runs)
    return {
        "decode_tokens_per_second": record.batch * (record.new_tokens - 1) / decode,
        "prefill_tokens_per_second": record.batch * record.prompt_tokens / first,
        "first_token_seconds": first,
    }


def weight_bytes(model: torch.nn.Module) -> int:
    """Bytes of a model's parameters and stored buffers, as it is in memory; a tied matrix counts once."""
    tensors = {tensor.data_ptr(): tensor.nbytes for tensor in (*model.parameters(), *model.buffers())}
    return sum(tensors.values())


def cache_bytes(facts: ModelFacts, record: Speed) -> int:
    """Bytes of keys and values at the end of a run. Raises BoomspecError where a model keeps something else."""
    length = record.prompt_tokens + record.new_tokens
    stored = layer_cache_bytes(facts, context=length, batch=record.batch)
    return sum(stored) * (2 if record.precision == "bf16" else 4) // FLOAT_BYTES[facts.dtype]
