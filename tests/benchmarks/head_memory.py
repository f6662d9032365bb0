"""Peak memory and time of the head losses (CE + KL, forward and backward): in chunks, and by plain autograd.

    python tests/benchmarks/head_memory.py

At a vocabulary of 50,000, 2 x 512 tokens, hidden size 256, fp32. Every run is a process of its own; the
two ways take turns. Memory is the process's highest resident size minus its size before the loss, when
models and hidden states are there; it holds the logits, all that is made of them, and the gradients.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

VOCABULARY, SEQUENCES, TOKENS, HIDDEN = 50_000, 2, 512, 256
RUNS = 3
WAYS = ("chunked", "plain")
ROOT = Path(__file__).parents[2]


class HeadOnly:
    """As much of a transformers model as `Head` looks at; loading transformers would take most of the time."""

    def __init__(self, output: Any) -> None:
        self.config = SimpleNamespace(model_type="linear", get_text_config=lambda: None)
        self.get_output_embeddings = lambda: output


def measure(way: str) -> dict[str, float]:
    """Run one way in this process. Returns {"megabytes", "seconds", "loss"}."""
    import torch

    from boomspec.core.losses import KL, CrossEntropy, Losses
    from runners.modeling.hidden_states import LMHead
    from runners.training.head import head_loss

    torch.manual_seed(0)
    student, teacher = (LMHead(HeadOnly(torch.nn.Linear(HIDDEN, VOCABULARY, bias=False))) for _ in range(2))
    losses = Losses(cross_entropy=CrossEntropy(), kl=KL(weight=0.1))
    hidden_BTD = torch.randn(SEQUENCES, TOKENS, HIDDEN, requires_grad=True)
    teacher_BTD = torch.randn(SEQUENCES, TOKENS, HIDDEN)
    labels_BT = torch.randint(VOCABULARY, (SEQUENCES, TOKENS))
    count = labels_BT.numel()

    before, started = resident_bytes(), time.perf_counter()
    if way == "chunked":
        loss, _ = head_loss(
            hidden_BTD,
            labels_BT,
            head=student,
            losses=losses,
            count=count,
            teacher_hidden_BTD=teacher_BTD,
            teacher_head=teacher,
        )
    else:
        with torch.no_grad():
            teacher_NV = teacher(teacher_BTD.flatten(0, 1))
        read = {
            "logits": student(hidden_BTD.flatten(0, 1)),
            "teacher_logits": teacher_NV,
            "labels": labels_BT.flatten(),
        }
        terms = losses.terms().values()
        values = [term.weight * term.formula(*(read[what] for what in term.reads)).sum() for term in terms]
        loss = torch.stack(values).sum() / count
    loss.backward()
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024  # Linux counts in KiB
    return {"megabytes": (peak - before) / 1e6, "seconds": seconds, "loss": loss.item()}


def resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    results: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
    for _ in range(RUNS):
        for way in WAYS:
            command = [sys.executable, __file__, way]
            output = subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout
            results[way].append(json.loads(output.splitlines()[-1]))
    print(
        f"CE + KL, forward and backward, vocabulary {VOCABULARY}, {SEQUENCES} x {TOKENS} tokens, hidden {HIDDEN}, fp32"
    )
    print(f"medians of {RUNS} runs, each in its own process; one copy of the logits is", end=" ")
    print(f"{VOCABULARY * SEQUENCES * TOKENS * 4 / 1e6:.0f} MB")
    medians = {
        way: {key: statistics.median(run[key] for run in runs) for key in runs[0]} for way, runs in results.items()
    }
    for way, median in medians.items():
        spread = [run["megabytes"] for run in results[way]]
        print(f"  {way:8} {median['megabytes']:7.0f} MB ({min(spread):.0f} to {max(spread):.0f})", end="")
        print(f"  {median['seconds']:6.2f} s  loss {median['loss']:.6f}")
    print(f"  plain / chunked: {medians['plain']['megabytes'] / medians['chunked']['megabytes']:.1f}x the memory")


if __name__ == "__main__":
    if len(sys.argv) > 1:
        print(json.dumps(measure(sys.argv[1])))
    else:
        main()
