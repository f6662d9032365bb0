"""Distillation on one GPU: tokens a second, model FLOPs utilisation, the best chunk of the head, peak memory.

    python -m tests.benchmarks.gpu                       on a machine with CUDA: under ten minutes
    python -m tests.benchmarks.gpu --device cpu --tiny   the same code on a tiny model, to see that it works

The teacher has the widths of Qwen3-1.7B (28 layers, 2048 wide, vocabulary 151,936, tied) and random weights, the
student half of its layers. CE, KL and hidden cosine, in bf16, over sequences of 2,048 tokens. First the head alone runs
in chunks of several sizes; then real steps of the training loop run, plain and with compiled layers, with the fastest
chunk. The aim is an MFU of 35 % on one H100. Without CUDA one line says so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from boomspec.compile.cost.shapes import model_of
from boomspec.core.execution import Execution, TrainingOptions
from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from boomspec.core.tasks import Architecture, Recipe
from boomspec.core.tasks.record import Optimizer, Schedule
from boomspec.models.facts import llama_config, llama_facts
from runners.modeling.hidden_states import LMHead
from runners.runtime.context import Context
from runners.runtime.device import autocast, device
from runners.runtime.peak import device_peak
from runners.tasks.distill import distillation_loss
from runners.training import head
from runners.training.loop import train
from runners.training.losses import weights
from runners.training.parallel import with_checkpointing_or_compile

LOSSES = Losses(cross_entropy=CrossEntropy(), kl=KL(weight=0.1), hidden_cosine=HiddenCosine())
FULL = {
    "layers": 28,
    "hidden_size": 2048,
    "intermediate_size": 6144,
    "attention_heads": 16,
    "key_value_heads": 8,
    "vocabulary": 151_936,
    "context": 2048,
}
TINY = {
    "layers": 4,
    "hidden_size": 64,
    "intermediate_size": 160,
    "attention_heads": 4,
    "key_value_heads": 2,
    "vocabulary": 1024,
    "context": 64,
}
CHUNKS = (256, 512, 1024, 2048, 4096, 8192)


class Size:
    """The models and batches of one run."""

    def __init__(self, *, tiny: bool) -> None:
        self.architecture = Architecture(**(TINY if tiny else FULL), tied=True, initializer_range=0.02)
        self.micro_batch, self.sequences, self.steps = (2, 4, 3) if tiny else (8, 32, 8)
        self.chunks = (32, 64) if tiny else CHUNKS
        self.length = self.architecture.context
        self.kept = tuple(range(0, self.architecture.layers, 2))

    def model(self, layers: int, dtype: torch.dtype) -> Any:
        torch.manual_seed(layers)
        config = LlamaConfig(**{**llama_config(self.architecture), "num_hidden_layers": layers})
        with torch.device(device()):
            return LlamaForCausalLM(config).to(dtype).eval()

    def flops_per_token(self) -> int:
        teacher = model_of(llama_facts(self.architecture))
        student = model_of(llama_facts(self.architecture.model_copy(update={"layers": len(self.kept)})))
        own = student.training(self.length, head=True, frozen=False)
        return own + teacher.forward(self.length) + teacher.head()

    def recipe(self) -> Recipe:
        return Recipe(
            seed=0,
            steps=self.steps,
            sequences=self.sequences,
            sequence_length=self.length,
            optimizer=Optimizer(lr=1e-5, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1, clip=1.0),
            schedule=Schedule(kind="constant", warmup_steps=0, final=1.0),
            precision="bf16",
        )


def seconds_of(work: Callable[[], object], times: int = 3) -> float:
    """The median time of some calls, after one that does not count."""
    found = []
    for _ in range(times + 1):
        started = time.perf_counter()
        work()
        if device().type == "cuda":
            torch.cuda.synchronize()
        found.append(time.perf_counter() - started)
    return statistics.median(found[1:])


def peak_bytes() -> int | None:
    """The most memory of the GPU that tensors took since the last call."""
    if device().type != "cuda":
        return None
    found = torch.cuda.max_memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    return int(found)


def memory() -> str:
    return "" if (found := peak_bytes()) is None else f"  peak {found / 2**30:6.2f} GiB"


def best_chunk(size: Size) -> int:
    """The chunk with which the head's losses and gradients are fastest, over the tokens of one micro batch."""
    student, teacher = size.model(1, torch.float32), size.model(1, torch.bfloat16).requires_grad_(False)
    shape = size.micro_batch, size.length, size.architecture.hidden_size
    hidden_BTD = torch.randn(shape, device=device(), dtype=torch.bfloat16, requires_grad=True)
    teacher_BTD = torch.randn(shape, device=device(), dtype=torch.bfloat16)
    labels_BT = torch.randint(size.architecture.vocabulary, shape[:2], device=device())
    heads, tokens, found = (LMHead(student), LMHead(teacher)), labels_BT.numel(), dict[int, float]()
    print(f"head, CE + KL, forward and backward, {tokens:,} tokens")
    for chunk in size.chunks:

        def work(chunk: int = chunk) -> None:
            with autocast("bf16"):
                total, _ = head.head_loss(
                    hidden_BTD,
                    labels_BT,
                    head=heads[0],
                    losses=LOSSES,
                    count=tokens,
                    teacher_hidden_BTD=teacher_BTD,
                    teacher_head=heads[1],
                    chunk=chunk,
                )
            total.backward()
            student.zero_grad(set_to_none=True)
            hidden_BTD.grad = None

        try:
            peak_bytes()
            found[chunk] = seconds_of(work)
            print(f"  chunk {chunk:5}  {tokens / found[chunk]:12,.0f} tokens/s{memory()}")
        except torch.OutOfMemoryError:
            print(f"  chunk {chunk:5}  does not fit")
    return min(found, key=found.__getitem__)


def trained_line(size: Size, *, chunk: int, compiled: bool) -> str | None:
    """A line about real steps of the training loop; None where they do not fit into the GPU."""
    try:
        return train_steps(size, chunk=chunk, compiled=compiled)
    except torch.OutOfMemoryError:
        return None


def train_steps(size: Size, *, chunk: int, compiled: bool) -> str:
    """Run real steps of the training loop. Returns a line about them."""
    student = size.model(len(size.kept), torch.float32)
    teacher = size.model(size.architecture.layers, torch.bfloat16).requires_grad_(False)

    def batch(step: int) -> Any:
        shape = size.sequences, size.length + 1
        return np.random.default_rng(step).integers(0, size.architecture.vocabulary, size=shape)

    with tempfile.TemporaryDirectory() as folder, chunks_of(chunk):
        place = Path(folder)
        options = TrainingOptions(micro_batch=size.micro_batch, checkpoint_seconds=1e9, compile=compiled)
        context = Context(None, {}, place, place / "resume", execution=Execution(training=options))  # type: ignore[type-var,var-annotated]
        peak_bytes()
        with with_checkpointing_or_compile(teacher, compiled=compiled):
            loss = distillation_loss(student, [teacher], LOSSES, size.kept)
            train(student, recipe=size.recipe(), batch=batch, loss=loss, weights=weights(LOSSES), context=context)
    rate, peak = context.measured["tokens_per_second"], device_peak("bf16")
    mfu = "unknown" if peak.flops is None else f"{rate * size.flops_per_token() / peak.flops:.1%}"
    return f"  {'compiled' if compiled else 'plain':8}  {rate:10,.0f} tokens/s  MFU {mfu}{memory()}"


@contextmanager
def chunks_of(tokens: int) -> Iterator[None]:
    """Within the context the head works on so many tokens at a time."""
    with patch.multiple(head, LEAST_CHUNK={device().type: tokens}, CHUNK_LOGITS=0):
        yield


def main() -> None:
    parser = argparse.ArgumentParser(description="Distillation on one GPU.")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a tiny model and few tokens")
    parser.add_argument("--no-compile", action="store_true", help="plain layers alone")
    options = parser.parse_args()
    if options.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    elif not torch.cuda.is_available():
        print("no CUDA device here: nothing is measured")
        return
    size, started, peak = Size(tiny=options.tiny), time.perf_counter(), device_peak("bf16")
    known = "unknown" if peak.flops is None else f"{peak.flops / 1e12:.3g} TFLOP/s ({peak.origin})"
    print(f"{peak.device}, torch {torch.__version__}, bf16 peak {known}")
    chunk = best_chunk(size)
    layers, of_token = f"{size.architecture.layers} layers into {len(size.kept)}", size.flops_per_token() / 1e9
    print(f"distillation of {layers}, {size.sequences} x {size.length} tokens a step, micro batches of", end=" ")
    print(f"{size.micro_batch}, chunks of {chunk}, {of_token:.3g} GFLOP a token", flush=True)
    for compiled in (False,) if options.no_compile else (False, True):
        while (line := trained_line(size, chunk=chunk, compiled=compiled)) is None and size.micro_batch > 1:
            print(f"  micro batches of {size.micro_batch} do not fit: half of that")
            size.micro_batch //= 2
        print(line or "  one sequence does not fit", flush=True)
    print(f"{time.perf_counter() - started:.0f} s in all")


if __name__ == "__main__":
    main()
