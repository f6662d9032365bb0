"""A small spec with data beside it, for tests of the compiler. Nothing here is trained."""

import textwrap
from pathlib import Path

import pytest
import yaml

from boomspec.compile.compiler import Compiled, compile_experiments
from boomspec.spec.experiments import load_spec

SPEC = """\
boomspec: 1
name: tiny
seed: 0
teacher:
  pretrain:
    layers: 6
    hidden_size: 16
    intermediate_size: 32
    attention_heads: 2
    tokenizer: {vocabulary: 300, train_on: 10KB}
    tokens: 4096
    batch_tokens: 256
    optimizer: {lr: 3e-3}
student:
  keep: [0, 2, 4]
data:
  files: "*.txt"
  sequence_length: 32
  held_out: {every: 4}
distill:
  tokens: 2048
  batch_tokens: 256
  losses:
    cross_entropy: {weight: 1.0}
    kl: {weight: 0.1}
    hidden_cosine: {weight: 2.0}
evaluate:
  held_out: {}
baselines: [naive_pruning, random_init]
execution:
  store: store
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with eight text files."""
    write_texts(tmp_path)
    return tmp_path


def write_texts(folder: Path) -> None:
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"document {i}\n" * 40)


class Writer:
    """Writes specs into a folder and compiles them."""

    SPEC = SPEC

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.found: dict[str, dict[str, object]] = {}  # what searches found, by task id

    def answers(self, search: str) -> dict[str, object] | None:
        return self.found.get(search)

    def text(self, text: str, name: str = "spec.yaml") -> Path:
        path = self.folder / name
        path.write_text(textwrap.dedent(text))
        return path

    def edited(self, *edits: tuple[str, object]) -> Compiled:
        """Compile SPEC with fields set: ("distill.losses.kl.weight", 0.2); None removes the field."""
        data = yaml.safe_load(SPEC)
        for path, value in edits:
            *parents, last = path.split(".")
            place = data
            for part in parents:
                place = place.setdefault(part, {})
            if value is None:
                del place[last]
            else:
                place[last] = value
        return compile_experiments([load_spec(self.text(yaml.safe_dump(data, sort_keys=False)))], self.answers)

    def compiled(self, text: str = SPEC) -> Compiled:
        return compile_experiments([load_spec(self.text(text))])


@pytest.fixture
def specs(folder: Path) -> Writer:
    return Writer(folder)
