"""How long a training stands still for a checkpoint: written at once, and written in a thread beside it.

    python -m tests.benchmarks.checkpoints [--layers 8] [--rounds 3]

A Llama of SmolLM2-135M's widths trains with AdamW on 64 tokens a step, on one thread. The ways take turns:

    at once    safetensors' save_file, a flush, and a second reading for the checksum, as one would write it plainly
    beside     `runners.training.checkpoint_writer`: the step waits for the copy in main memory, the rest is a thread's

held up: seconds in which no step goes on. meanwhile: by how much the steps that run until the checkpoint is there take
longer in all, for the thread takes processor and disk from them. The checkpoint holds 12 bytes a parameter.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from boomspec.core.files import flush
from boomspec.core.identity import file_digest
from runners.training.checkpoint import SavedCheckpoint
from runners.training.checkpoint_writer import CheckpointWriter

TOKENS = 64
WIDTHS = {"hidden_size": 576, "intermediate_size": 1536, "num_attention_heads": 9, "num_key_value_heads": 3}
VOCABULARY = 49_152


class Training:
    """A model with AdamW, and one step of it."""

    def __init__(self, layers: int) -> None:
        torch.manual_seed(0)
        config = LlamaConfig(**WIDTHS, num_hidden_layers=layers, vocab_size=VOCABULARY, tie_word_embeddings=True)
        self.model = LlamaForCausalLM(config).eval()
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-5, foreach=True)
        self.tokens = torch.randint(VOCABULARY, (1, TOKENS))
        self.step()

    def step(self) -> float:
        """Seconds of one step."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.model(input_ids=self.tokens, labels=self.tokens).loss.backward()
        self.optimizer.step()
        return time.perf_counter() - started

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        named = dict(self.model.named_parameters())
        moments = {
            f"{moment}.{name}": self.optimizer.state[parameter][moment]
            for name, parameter in named.items()
            for moment in ("exp_avg", "exp_avg_sq")
        }
        return {"weights": {name: parameter.detach() for name, parameter in named.items()}, "moments": moments}


def at_once(folder: Path, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
    part = folder / "part"
    part.mkdir()
    for kind, of_kind in tensors.items():
        file = part / f"{kind}.safetensors"
        save_file(dict(of_kind), file)
        flush(file)
        file_digest(file)
    shutil.rmtree(folder / "whole", ignore_errors=True)
    part.rename(folder / "whole")


def main() -> None:
    parser = argparse.ArgumentParser(description="How long a training stands still for a checkpoint.")
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)  # several wait for one another where the machine is busy, and then that is measured
    training = Training(options.layers)
    held: dict[str, list[float]] = {"at once": [], "beside": []}
    until, slower, plain = list[float](), list[float](), list[float]()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        writer = CheckpointWriter(folder)
        for number in range(1, options.rounds + 1):
            plain += [training.step() for _ in range(3)]
            started = time.perf_counter()
            at_once(folder, training.tensors())
            held["at once"].append(time.perf_counter() - started)
            plain += [training.step() for _ in range(3)]
            started = time.perf_counter()
            writer.begin([{}] * number, training.tensors(), {})
            held["beside"].append(time.perf_counter() - started)
            steps = list[float]()
            while writer.poll() is None:
                steps.append(training.step())
            until.append(time.perf_counter() - started)
            slower.append(sum(steps) - len(steps) * statistics.median(plain))
            SavedCheckpoint(folder / f"step-{number:08}", check=True)
    size = 12 * sum(parameter.numel() for parameter in training.model.parameters())
    usual, (once, beside) = statistics.median(plain), map(statistics.median, held.values())
    print(f"checkpoint of {size / 1e9:.2f} GB, {options.layers} layers, step of {usual:.2f} s, {options.rounds} rounds")
    print(f"  at once    held up {once:5.2f} s")
    print(f"  beside     held up {beside:5.2f} s    meanwhile {statistics.median(slower):5.2f} s", end="")
    print(f"    there after {statistics.median(until):.2f} s    at once / beside: {once / beside:.1f}x")


if __name__ == "__main__":
    main()
