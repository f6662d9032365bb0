"""How long 1,000 experiments take to plan, beside one: whole `boomspec plan` commands.

Run: python tests/benchmarks/sweep.py. Two specs, each with a sweep over learning rate, KL weight and seed (10 x 10 x
10): the quickstart, and specs/qwen3-4b.yaml with a teacher of 36 layers in a local folder. The commands take turns; the
medians of whole processes are printed, and of their processor time, which depends less on what else the machine does.
Their modules are compiled, as Python and pip leave them.
"""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))

from boomspec.models.checkpoint import TensorEntry, encode_header  # noqa: E402
from boomspec.models.folder import SINGLE  # noqa: E402
from tests.boomspec.public_hub import FIXTURES, headers  # noqa: E402

TEACHER = FIXTURES / "Qwen--Qwen3-4B-Base"
SMALLER = 16
ROUNDS = 5
SWEEP = f"""\
sweep:
  distill.optimizer.lr: [{", ".join(f"{i}e-4" for i in range(1, 11))}]
  distill.losses.kl.weight: [{", ".join(f"0.{i:02}" for i in range(1, 11))}]
  seed: [{", ".join(map(str, range(10)))}]
"""
QUICKSTART = f"extends: {ROOT}/specs/quickstart.yaml\nname: quickstart-sweep\n{SWEEP}"
LAYERS_36 = f"""\
extends: {ROOT}/specs/qwen3-4b.yaml
name: layers-36-sweep
teacher: {{model: ./teacher}}
data: {{dataset: null, files: text.jsonl}}
{SWEEP}"""


def write_inputs(folder: Path) -> None:
    """The specs, a text, and a teacher with the layers of Qwen3-4B, each of its sizes a sixteenth and all weights 0."""
    (folder / "quickstart.yaml").write_text(QUICKSTART)
    (folder / "layers-36.yaml").write_text(LAYERS_36)
    (folder / "text.jsonl").write_text('{"text": "a document"}\n' * 2000)
    teacher = folder / "teacher"
    teacher.mkdir()
    config = json.loads((TEACHER / "config.json").read_text())
    small = {key: config[key] // SMALLER for key in ("hidden_size", "intermediate_size", "head_dim", "vocab_size")}
    (teacher / "config.json").write_text(json.dumps(config | small))
    (teacher / "tokenizer.json").write_text("{}")
    entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    end = 0
    for tensors in headers(TEACHER).values():
        for name, (dtype, shape) in tensors.items():
            smaller = tuple(size // SMALLER for size in shape)
            start, end = end, end + TensorEntry(name, dtype, smaller).bytes
            entries[name] = (dtype, smaller, start, end)
    path = teacher / SINGLE
    path.write_bytes(encode_header(entries))
    os.truncate(path, path.stat().st_size + end)


def main() -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_inputs(folder)
        specs = {
            f"{name}, {experiments}": f"{name}.yaml{label}"
            for name in ("quickstart", "layers-36")
            for experiments, label in (("one experiment", "#lr=3e-4,weight=0.10,seed=0"), ("1,000 experiments", ""))
        }
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": str(folder / "compiled")}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        seconds: dict[str, list[float]] = {name: [] for name in specs}
        cpu: dict[str, list[float]] = {name: [] for name in specs}
        for _ in range(ROUNDS + 1):
            for name, spec in specs.items():
                command = [sys.executable, "-m", "boomspec", "plan", spec, "--store", "store"]
                started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL, cwd=folder, env=environment)
                seconds[name].append(time.perf_counter() - started)
                after = resource.getrusage(resource.RUSAGE_CHILDREN)
                cpu[name].append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
        medians = {name: statistics.median(times[1:]) for name, times in seconds.items()}  # the first one warms up
        for name, median in medians.items():
            print(f"{name:30} {median:5.2f} s, CPU {statistics.median(cpu[name][1:]):5.2f} s (medians of {ROUNDS})")
        for name in ("quickstart", "layers-36"):
            print(f"{name}: ratio {medians[f'{name}, 1,000 experiments'] / medians[f'{name}, one experiment']:.1f}")


if __name__ == "__main__":
    main()
