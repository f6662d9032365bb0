"""One optimiser step of a distillation: as a usual trainer makes it, and ours; the same tokens, losses and gradients.

    python -m tests.benchmarks.distill [MODEL FOLDER] [--precision fp32|bf16] [--sequences 4] [--length 512] ...

The teacher is SmolLM2-135M (or random weights of its shape: a model folder is not needed), the student every second of
its layers: 30 -> 16. The usual step is written from the paper's description (arXiv 2510.05064), for Hugging Face's
Trainer: whole logits of both models, `output_hidden_states=True`, cross-entropy + KL + cosine over all aligned states,
autocast, a fused AdamW. Both sides take turns in this process; the peak memory of each is that of a process of its own,
as the kernel counts it. bf16 on a CPU without instructions for it says nothing about one that has them: the first line
tells.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

from boomspec.core.losses import KL, CrossEntropy, HiddenCosine, Losses
from runners.modeling.hidden_states import decoder_layers
from runners.runtime.device import autocast, frozen_dtype
from runners.tasks.distill import distillation_loss
from runners.training.loop import _Training
from runners.training.losses import NO_LABEL
from runners.training.parallel import ParallelModel, with_checkpointing_or_compile
from runners.training.weighting import weighting
from tests.runners import tiny

LAYERS = 30
KEPT = (*range(0, LAYERS - 2, 2), LAYERS - 2, LAYERS - 1)  # 16 of them
SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "head_dim": 64,
    "max_position_embeddings": 8192,
    "tie_word_embeddings": True,
    "rope_theta": 100000.0,
}
KL_WEIGHT, COSINE_WEIGHT = 0.1, 2.0
SIDES = ("usual", "ours")


def models(folder: str | None, precision: Any) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Teacher and student, in the dtypes in which they are trained."""
    torch.manual_seed(0)
    if folder:
        teacher = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    else:
        teacher = AutoModelForCausalLM.from_config(LlamaConfig(**SHAPE), dtype=torch.float32)
    student = AutoModelForCausalLM.from_config(copy.deepcopy(teacher.config), dtype=torch.float32)
    layers = decoder_layers(student)
    with torch.no_grad():
        student.load_state_dict(teacher.state_dict())
    student.model.layers = torch.nn.ModuleList(layers[index] for index in KEPT)
    student.config.num_hidden_layers = len(KEPT)
    for index, layer in enumerate(student.model.layers):
        layer.self_attn.layer_idx = index
    return teacher.to(frozen_dtype(precision)).eval().requires_grad_(False), student.eval()


class Usual:
    """A step of a usual trainer."""

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, options: Any) -> None:
        self.teacher, self.student, self.options = teacher, student, options
        recipe = tiny.recipe().optimizer
        self.optimizer = torch.optim.AdamW(student.parameters(), fused=True, **recipe.model_dump(include={*_ADAM}))
        self.pairs = [(0, 0), *((i + 1, end + 1) for i, end in enumerate([*(k - 1 for k in KEPT[1:]), LAYERS - 1]))]

    def __call__(self, tokens: Tensor) -> float:
        self.optimizer.zero_grad(set_to_none=True)
        count, total = int((tokens[:, 1:] >= 0).sum()), 0.0
        for rows in tokens.split(self.options.micro_batch):
            with autocast(self.options.precision):
                loss = self.loss(rows, count)
            loss.backward()
            total += loss.item()
        torch.nn.utils.clip_grad_norm_(self.student.parameters(), 1.0)
        self.optimizer.step()
        return total

    def loss(self, rows: Tensor, count: int) -> Tensor:
        """The part of one micro batch in the mean over the `count` labelled positions of the batch."""
        inputs, labels = rows[:, :-1].clamp(min=0), rows[:, 1:].masked_fill(rows[:, 1:] < 0, NO_LABEL)
        call = {"input_ids": inputs, "attention_mask": (rows[:, :-1] >= 0).long(), "output_hidden_states": True}
        student = self.student(**call, use_cache=False)
        with torch.no_grad():
            teacher = self.teacher(**call, use_cache=False)
        mask = labels != NO_LABEL
        logits, flat = student.logits.float().flatten(0, 1), labels.flatten()
        ce = F.cross_entropy(logits, flat, ignore_index=NO_LABEL, reduction="sum")
        log_q, p = student.logits.float().log_softmax(-1), teacher.logits.float().softmax(-1)
        kl = (F.kl_div(log_q, p, reduction="none").sum(-1) * mask).sum()
        states = ((student.hidden_states[i].float(), teacher.hidden_states[j].float()) for i, j in self.pairs)
        cosines = [((1 - F.cosine_similarity(*pair, dim=-1)) * mask).sum() for pair in states]
        return (ce + KL_WEIGHT * kl + COSINE_WEIGHT * torch.stack(cosines).mean()) / count


class Ours:
    """A step of the training loop of this project."""

    def __init__(self, teacher: PreTrainedModel, student: PreTrainedModel, options: Any) -> None:
        losses = Losses(
            cross_entropy=CrossEntropy(), kl=KL(weight=KL_WEIGHT), hidden_cosine=HiddenCosine(weight=COSINE_WEIGHT)
        )
        self.folder = tempfile.TemporaryDirectory()
        context = tiny.context(Path(self.folder.name))
        tiny.set_training(context, micro_batch=options.micro_batch)
        recipe = tiny.recipe(
            sequences=options.sequences, sequence_length=options.length, precision=options.precision, steps=1000
        )
        self.loss = distillation_loss(student, [teacher], losses, KEPT)
        self.training = _Training(ParallelModel(student), recipe, context, 1.0, (), weighting(losses, recipe.steps))
        self.around = ExitStack()  # as `micro_batches` and the task do
        for model in (student, teacher):
            self.around.enter_context(with_checkpointing_or_compile(model))
        self.steps = 0

    def __call__(self, tokens: Tensor) -> float:
        turns = self.training.step(self.steps, tokens, self.loss)
        self.steps += 1
        while True:
            try:
                next(turns)  # a micro batch
            except StopIteration as end:
                return float(end.value["loss"])


_ADAM = ("lr", "betas", "eps", "weight_decay")
MAKERS: dict[str, Callable[..., Callable[[Tensor], float]]] = {"usual": Usual, "ours": Ours}


def batch(step: int, options: Any) -> Tensor:
    """tokens_BT of `length` + 1, of which a share is padding at the ends of rows."""
    numbers = torch.Generator().manual_seed(step)
    tokens = torch.randint(SHAPE["vocab_size"], (options.sequences, options.length + 1), generator=numbers)
    for row in tokens[1::2]:  # every second row is twice as much padding as the mean
        row[round((options.length + 1) * (1 - min(1.0, 2 * options.padding))) :] = -1
    return tokens


def peak_megabytes(options: Any) -> float:
    """Of a process that makes two steps on one side; its models are in memory before."""
    teacher, student = models(options.folder, options.precision)
    step = MAKERS[options.peak](teacher, student, options)
    for index in range(2):
        step(batch(index, options))
    lines = Path("/proc/self/status").read_text().splitlines()  # the kernel's; rusage also counts who started it
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) * 1024 / 1e6


def peak_of(side: str, argv: list[str], options: Any) -> float:
    sized = ["--sequences", str(options.peak_sequences), "--length", str(options.peak_length)]
    sized += ["--micro-batch", str(options.peak_sequences), "--peak", side]
    command = [sys.executable, "-m", "tests.benchmarks.distill", *argv, *sized]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(json.loads(output.splitlines()[-1]))


def gradients(model: PreTrainedModel) -> Tensor:
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--precision", default="fp32", choices=["fp32", "bf16"])
    parser.add_argument("--sequences", type=int, default=4)
    parser.add_argument("--length", type=int, default=512)
    parser.add_argument("--micro-batch", type=int, default=2)
    parser.add_argument("--padding", type=float, default=0.0, help="share of positions without a token, at most 0.5")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--peak", choices=SIDES, help="only print the peak memory of a process with one side, in MB")
    parser.add_argument("--peak-sequences", type=int, default=2, help="0: no memory is measured")
    parser.add_argument("--peak-length", type=int, default=2048)
    options = parser.parse_args()
    if options.peak:
        print(json.dumps(peak_megabytes(options)))
        return
    instructions = torch.backends.cpu.get_cpu_capability()
    sizes = f"{options.sequences} x {options.length} tokens in micro batches of {options.micro_batch}"
    print(f"{options.precision}, {sizes}, {torch.get_num_threads()} threads, {instructions}")
    sides, losses, found = {}, {}, {}
    for side in SIDES:
        teacher, student = models(options.folder, options.precision)
        sides[side] = MAKERS[side](teacher, student, options)
        losses[side] = sides[side](batch(0, options))
        found[side] = gradients(student)
    apart = float((found["ours"] - found["usual"]).norm() / found["usual"].norm())
    print(f"  first step: loss {losses['usual']:.6f} and {losses['ours']:.6f}, gradients {apart:.1e} apart")
    del found
    clocks = {"seconds": time.perf_counter, "CPU seconds": time.process_time}
    taken: dict[str, dict[str, list[float]]] = {clock: {side: [] for side in SIDES} for clock in clocks}
    for index in range(1, options.steps + 1):
        tokens = batch(index, options)
        for side in SIDES if index % 2 else SIDES[::-1]:
            started = {clock: now() for clock, now in clocks.items()}
            sides[side](tokens)
            for clock, now in clocks.items():
                taken[clock][side].append(now() - started[clock])
    real = int((batch(1, options)[:, 1:] >= 0).sum())
    for clock, by_side in taken.items():
        medians = {side: statistics.median(times) for side, times in by_side.items()}
        shown = [
            f"{side} {medians[side]:.2f} ({min(times):.2f} to {max(times):.2f}), {real / medians[side]:.0f} tokens each"
            for side, times in by_side.items()
        ]
        print(f"  {clock} a step: {'; '.join(shown)}; {medians['usual'] / medians['ours']:.2f}x")
    if options.peak_sequences:
        peaks = {side: peak_of(side, sys.argv[1:], options) for side in SIDES}
        print(f"  peak memory of a micro batch of {options.peak_sequences} x {options.peak_length}: ", end="")
        print(f"usual {peaks['usual']:.0f} MB, ours {peaks['ours']:.0f} MB, {peaks['ours'] / peaks['usual']:.2f}")


if __name__ == "__main__":
    main()
