"""Measure the speed of one model, and the memory that it takes, on the device of this process.

Nothing else of the run is computed meanwhile (`runners/executor/ready.py`); what else the machine does, nobody here
knows. The kernels are the fastest ones, whatever the spec says of determinism. Writes `speed.json`:

    {"device", "threads" (of a CPU), "engine", "precision", "prompt_tokens", "new_tokens", "batch", "repeats",
     "runs": [{"first_token", "decode"}] in seconds, "memory": how it was measured,
     "metrics": {name: {"value", "unit", "higher_is_better", "note"}}}; a value that nobody knows is null
"""

from typing import Any

import torch
import transformers

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import json_text
from boomspec.core.tasks import Speed
from boomspec.models.facts import read_facts
from runners.evaluation.speed import (
    METRICS,
    cache_bytes,
    check_device,
    device_name,
    time_runs,
    times_of,
    weight_bytes,
)
from runners.modeling.models import load_frozen, model_folder
from runners.runtime.context import Context
from runners.runtime.device import device, frozen_dtype
from runners.runtime.memory_use import measuring

SPEED = "speed.json"


def run(context: Context[Speed]) -> None:
    record, folder = context.record, model_folder(context.inputs["model"])
    check_device(record.device)
    values, notes = dict[str, float | None](), dict[str, str]()
    model: Any = load_frozen(folder, dtype=frozen_dtype(record.precision), code=context.code_of("model"))
    values["weight_bytes"], attention = weight_bytes(model), model.config._attn_implementation
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    if positions is not None and (length := record.prompt_tokens + record.new_tokens) > positions:
        message = f"{length:,} tokens are more than the model's {positions:,} positions"
        raise BoomspecError(message, hint="give fewer evaluate.speed.prompt_tokens")
    with measuring() as used:
        runs = time_runs(model, record, lambda done: context.progress.update(done, 1 + record.repeats, unit="runs"))
    del model
    values |= {**times_of(runs, record), "peak_memory_bytes": used.settled()}
    try:
        values["cache_bytes"] = cache_bytes(read_facts(folder), record)
    except BoomspecError as error:
        values["cache_bytes"], notes["cache_bytes"] = None, error.message
    if values["peak_memory_bytes"] is None:
        notes["peak_memory_bytes"] = used.how
    metrics = {
        metric.name: {
            "value": values[metric.name],
            "unit": metric.unit,
            "higher_is_better": metric.higher_is_better,
            "note": notes.get(metric.name, ""),
        }
        for metric in METRICS
    }
    on_cpu = device().type == "cpu"
    how = {
        "device": device_name(),
        **({"threads": torch.get_num_threads()} if on_cpu else {}),
        "engine": f"transformers {transformers.__version__}, {attention} attention",
        **record.model_dump(mode="json", exclude={"device"}),
    }
    found = {**how, "runs": [run._asdict() for run in runs], "memory": used.how, "metrics": metrics}
    (context.path / SPEED).write_text(json_text(found, indent=1) + "\n", encoding="utf-8")
