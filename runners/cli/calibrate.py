"""`python -m runners.cli.calibrate --folder DIR`: how fast this machine is, as JSON on the standard output.

    matmul      operations a second of a matrix product in fp32, one core: what the core can do
    training    of a training step of a small Llama, forward, backward and update: what a task gets of it
    measuring   of its forward pass without gradients
    startup     seconds until the libraries of a task are loaded
    copying     bytes a second, read and written, of a file that is copied and flushed in DIR

Operations are counted as in `boomspec.compile.cost.shapes`. The model is small, so a larger one may get more of a core.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

_SECONDS = 2.5  # of each measurement
_FILE_BYTES = 64 << 20
_VOCABULARY, _HIDDEN, _INNER, _LAYERS, _LENGTH, _ROWS = 2048, 256, 704, 4, 128, 4


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m runners.cli.calibrate", description="Measure this machine.")
    parser.add_argument("--folder", type=Path, required=True, metavar="DIR", help="where files are copied")
    parser.add_argument("--seconds", type=float, default=_SECONDS, help="of each measurement")
    options = parser.parse_args(arguments)
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"
    print(json.dumps(measured(options.folder, seconds=options.seconds), indent=1, allow_nan=False))
    return 0


def measured(folder: Path, *, seconds: float) -> dict[str, float]:
    """All rates of one core, and the seconds of the imports, which counts only in a fresh process."""
    started = time.perf_counter()
    # Here, because their import is what is measured.
    import torch
    import transformers  # noqa: F401 - used by nothing here

    from boomspec.core.losses import CrossEntropy, Losses
    from boomspec.core.tasks import Architecture
    from runners.modeling.hidden_states import LMHead, trunk
    from runners.tasks.pretrain import llama
    from runners.training.head import head_loss

    startup = time.perf_counter() - started
    from torch.utils.benchmark import Timer

    torch.set_num_threads(1)
    one = torch.rand(512, 512)
    sizes = {"layers": _LAYERS, "hidden_size": _HIDDEN, "intermediate_size": _INNER, "vocabulary": _VOCABULARY}
    heads = {"attention_heads": 4, "key_value_heads": 4}
    architecture = Architecture(**sizes, **heads, context=_LENGTH, tied=True, initializer_range=0.02)
    model = llama(architecture, eos=0, seed=0).eval()
    head, optimizer = LMHead(model), torch.optim.AdamW(model.parameters(), lr=1e-4)
    tokens_BT = torch.randint(_VOCABULARY, (_ROWS, _LENGTH), generator=torch.Generator().manual_seed(0))

    def train() -> None:
        optimizer.zero_grad(set_to_none=True)
        losses = Losses(cross_entropy=CrossEntropy())
        loss, _ = head_loss(trunk(model, tokens_BT), tokens_BT, head=head, losses=losses, count=tokens_BT.numel())
        loss.backward()  # type: ignore[no-untyped-call]  # of torch
        optimizer.step()

    @torch.inference_mode()
    def measure() -> None:
        head(trunk(model, tokens_BT))

    def per_second(work: Callable[[], object]) -> float:
        return float(1 / Timer("work()", globals={"work": work}).blocked_autorange(min_run_time=seconds).mean)

    forward, step = step_flops()
    return {
        "matmul": 2 * 512**3 * per_second(lambda: one @ one),
        "training": step * per_second(train),
        "measuring": forward * per_second(measure),
        "startup": startup,
        "copying": _copying(folder),
    }


def step_flops() -> tuple[int, int]:
    """Operations of the forward pass, and of the training step, of the model that is measured."""
    matrices = _LAYERS * (4 * _HIDDEN**2 + 3 * _HIDDEN * _INNER) + _HIDDEN * _VOCABULARY
    attention = _LAYERS * _LENGTH * _HIDDEN
    tokens = _ROWS * _LENGTH
    return tokens * (2 * matrices + 4 * attention), tokens * (6 * matrices + 14 * attention)


def _copying(folder: Path) -> float:
    with tempfile.TemporaryDirectory(dir=folder) as place:
        source, target = Path(place) / "source", Path(place) / "target"
        source.write_bytes(os.urandom(1 << 20) * (_FILE_BYTES >> 20))
        started = time.perf_counter()
        shutil.copyfile(source, target)
        with target.open("rb") as file:
            os.fsync(file.fileno())
        return 2 * _FILE_BYTES / (time.perf_counter() - started)


if __name__ == "__main__":
    sys.exit(main())
