"""What a training step costs with each loss, beside that of cross-entropy, KL and hidden cosine.

    python -m tests.benchmarks.losses [KIND ...] [--rounds 3] [--sequences 1] [--length 256]

The models have the shape of SmolLM2-135M with random weights: a teacher of 30 layers, a student of 16. A step is one
micro batch: forward of both, the loss, backward, in fp32. Each side trains on cross-entropy and one other term; all
take turns in this process, the order reversed in every second round. Medians. The optimiser, which is the same for all,
is left out.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from boomspec.core.losses import LOSSES, CrossEntropy, Losses, usual_losses
from runners.tasks.distill import distillation_loss
from runners.training.parallel import with_checkpointing_or_compile
from tests.benchmarks.distill import KEPT, SHAPE, models

USUAL = "cross_entropy + kl + hidden_cosine"


def sides(kinds: list[str]) -> dict[str, Losses]:
    alone = {kind: Losses(cross_entropy=CrossEntropy(), **{kind: LOSSES[kind]()}) for kind in kinds}
    return {USUAL: usual_losses(), "cross_entropy": Losses(cross_entropy=CrossEntropy()), **alone}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("kinds", nargs="*", help="all by default")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sequences", type=int, default=1)
    parser.add_argument("--length", type=int, default=128)
    options = parser.parse_args()
    kinds = options.kinds or [kind for kind in LOSSES if kind != "cross_entropy"]
    teacher, student = models(None, "fp32")
    numbers = torch.Generator().manual_seed(0)
    tokens_BT = torch.randint(SHAPE["vocab_size"], (options.sequences, options.length + 1), generator=numbers)
    inputs_BT, labels_BT = tokens_BT[:, :-1], tokens_BT[:, 1:]

    def step(losses: Losses) -> Callable[[], Tensor]:
        loss = distillation_loss(student, [teacher], losses, KEPT)

        def run() -> Tensor:
            student.zero_grad(set_to_none=True)
            total, _ = loss(inputs_BT, labels_BT, labels_BT.numel())
            total.backward()
            return total

        return run

    taken: dict[str, list[float]] = {}
    with with_checkpointing_or_compile(student), with_checkpointing_or_compile(teacher):
        steps = {name: step(losses) for name, losses in sides(kinds).items()}
        steps[USUAL]()
        for index in range(options.rounds):
            for name in list(steps) if index % 2 else list(steps)[::-1]:
                started = time.process_time()
                assert steps[name]().isfinite()
                taken.setdefault(name, []).append(time.process_time() - started)
    medians = {name: statistics.median(times) for name, times in taken.items()}
    sizes = f"{options.sequences} x {options.length} tokens, vocabulary {SHAPE['vocab_size']:,}, fp32"
    print(f"a step with cross-entropy and one other loss, {sizes}, processor time, medians of {options.rounds}")
    for name in (USUAL, "cross_entropy", *sorted(kinds, key=medians.__getitem__)):
        print(f"  {name:36} {medians[name]:6.2f} s   {medians[name] / medians[USUAL]:.2f}x")


if __name__ == "__main__":
    main()
