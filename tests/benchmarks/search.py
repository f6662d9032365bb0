"""Patch order searches over 8 blocks: with shared prefixes, and by running every candidate model from scratch.

    python tests/benchmarks/search.py

A Llama of 16 layers and its student of 8, random weights, one thread, fp32. Both ways compute the teacher's
log-probabilities once, take the same sets and give the same values (checked). From scratch, each candidate is
written to disk, loaded, and run as an ordinary model; the time of running alone, without writing and loading, is
what the search is compared with. The two ways take turns; medians. How much greedy search shares depends on the
order that comes out: the two bounds are those of last to first and first to last.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"  # before torch reads it

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from boomspec.core.layers import LayerPlan, plan_of, teacher_layers
from boomspec.core.tasks import PatchOrder
from runners.assembly.assemble import assemble
from runners.modeling.models import load_frozen
from runners.search.patch_order import search_patch_order

LAYERS, BLOCKS, HIDDEN, VOCABULARY = 16, 8, 128, 1024
BATCHES, SEQUENCES, LENGTH = 2, 4, 128
KEPT = tuple(range(0, LAYERS, 2))
ROUNDS = {"klpatch": 5, "beam": 3}
WIDTH = 4


def make_pair(folder: Path) -> dict[str, Path]:
    torch.manual_seed(0)
    config = LlamaConfig(
        num_hidden_layers=LAYERS,
        hidden_size=HIDDEN,
        intermediate_size=384,
        num_attention_heads=4,
        vocab_size=VOCABULARY,
        tie_word_embeddings=True,
        initializer_range=0.08,
    )
    sources = {"t": folder / "teacher", "s": folder / "student"}
    LlamaForCausalLM(config).save_pretrained(sources["t"])
    assemble({"t": sources["t"]}, teacher_layers(KEPT), sources["s"], tied=True)
    student = AutoModelForCausalLM.from_pretrained(sources["s"])
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)
    student.save_pretrained(sources["s"])
    return sources


class FromScratch:
    """Values of sets of blocks, each from a model of its own."""

    def __init__(self, sources: dict[str, Path], batches: list[Tensor], folder: Path) -> None:
        self.sources, self.batches, self.folder = sources, batches, folder
        self.values: dict[tuple[int, ...], float] = {}
        self.layers = 0
        self.running = 0.0  # seconds, without writing and loading
        self.teacher_BTV = self._log_probs(load_frozen(sources["t"], dtype=torch.float32))

    @torch.no_grad()
    def _log_probs(self, model: Any) -> list[Tensor]:
        self.layers += model.config.num_hidden_layers
        started = time.perf_counter()
        found = [model(tokens_BT, use_cache=False).logits.log_softmax(-1) for tokens_BT in self.batches]
        self.running += time.perf_counter() - started
        return found

    def value(self, blocks: tuple[int, ...]) -> float:
        if blocks not in self.values:
            owners = [i in blocks for i in range(BLOCKS)]
            plan = plan_of(KEPT, LAYERS, owners)
            target = self.folder / "candidate"
            assemble(self.sources, plan, target, tied=owners[0] == owners[-1])
            candidate = self._log_probs(load_frozen(target, dtype=torch.float32))
            started = time.perf_counter()
            kls = [(p.exp() * (p - q)).sum(-1) for p, q in zip(self.teacher_BTV, candidate, strict=True)]
            self.values[blocks] = float(torch.cat(kls).mean())
            self.running += time.perf_counter() - started
        return self.values[blocks]

    def search(self, method: str) -> list[tuple[int, ...]]:
        """The best set of each size."""
        beam: list[tuple[int, ...]] = [()]
        best = beam[:]
        self.value(())
        for _ in range(BLOCKS):
            larger = {tuple(sorted({*blocks, b})) for blocks in beam for b in range(BLOCKS) if b not in blocks}
            ranked = sorted(larger, key=lambda blocks: (self.value(blocks), blocks))
            beam = ranked[: WIDTH if method == "beam" else 1]
            best.append(beam[0])
        return best


def greedy_bounds() -> dict[str, tuple[int, int]]:
    """Layers that greedy search runs, shared and from scratch, for the two sequential outcomes."""
    found = {}
    for name, order in {"first to last": range(BLOCKS), "last to first": range(BLOCKS - 1, -1, -1)}.items():
        seen: set[LayerPlan] = set()
        alone, patched = LAYERS + BLOCKS, []  # teacher and student
        for block in order:
            for other in set(range(BLOCKS)) - set(patched):
                plan = plan_of(KEPT, LAYERS, [i in {*patched, other} for i in range(BLOCKS)])
                alone += len(plan)
                if len(plan) < LAYERS:
                    seen |= {plan[:length] for length in range(1, len(plan) + 1)}
            patched.append(block)
        student = plan_of(KEPT, LAYERS, [False] * BLOCKS)
        seen |= {student[:length] for length in range(1, BLOCKS + 1)}
        found[name] = (LAYERS + len(seen), alone)
    return found


def main() -> None:
    transformers.logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        sources = make_pair(folder)
        batches = [torch.randint(VOCABULARY, (SEQUENCES, LENGTH)) for _ in range(BATCHES)]
        pair = {"teacher": load_frozen(sources["t"], dtype=torch.float32)}
        pair["student"] = load_frozen(sources["s"], dtype=torch.float32)
        print(f"{LAYERS} layers, {BLOCKS} blocks of two, hidden {HIDDEN}, vocabulary {VOCABULARY}, ", end="")
        print(f"{BATCHES * SEQUENCES} x {LENGTH} tokens, fp32, one thread")
        for method, rounds in ROUNDS.items():
            seconds: dict[str, list[float]] = {"shared": [], "run": [], "built and run": []}
            choice = PatchOrder(
                method=method,
                kept=KEPT,
                width=WIDTH if method == "beam" else None,
                direction="teacher_to_candidate",
                positions="all",
                reduction="token_mean",
            )
            for _ in range(rounds):
                started = time.perf_counter()
                found = search_patch_order(choice, **pair, batches=batches)
                seconds["shared"].append(time.perf_counter() - started)
                started = time.perf_counter()
                plain = FromScratch(sources, batches, folder)
                best = plain.search(method)
                seconds["built and run"].append(time.perf_counter() - started)
                seconds["run"].append(plain.running)
            assert [tuple(sorted(blocks)) for blocks in found["sets"]] == best
            assert all(abs(plain.values[tuple(c["patched"])] - c["value"]) < 1e-5 for c in found["candidates"])
            assert plain.layers == found["layer_forwards_unshared"]
            median = {way: statistics.median(values) for way, values in seconds.items()}
            layers, alone = found["layer_forwards"], found["layer_forwards_unshared"]
            print(f"\n{method}: {len(found['candidates'])} candidates, order {found['sets'][-1]}")
            print(f"  layer-forwards  shared {layers:5}  from scratch {alone:5}  ratio {layers / alone:.2f}")
            ratio = median["shared"] / median["run"]
            print(f"  seconds         shared {median['shared']:5.2f}  from scratch {median['run']:5.2f}", end="")
            print(f"  ratio {ratio:.2f}  (medians of {rounds}; built and run {median['built and run']:.2f})")
            print(f"                  shared {min(seconds['shared']):.2f} to {max(seconds['shared']):.2f},", end="")
            print(f" from scratch {min(seconds['run']):.2f} to {max(seconds['run']):.2f}")
    print("\ngreedy search by the order that comes out:")
    for order, (layers, alone) in greedy_bounds().items():
        print(f"  {order}: {layers} of {alone} layer-forwards, {layers / alone:.2f}")


if __name__ == "__main__":
    main()
