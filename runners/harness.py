"""lm-eval on a model of ours: the real harness, with a guard against re-tied heads and a progress bar.

Importing this module takes seconds (lm-eval imports its Hugging Face model): import it only where an
lm-eval task is to run.
"""

from __future__ import annotations

import random
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager

from boomspec.errors import BoomspecError, did_you_mean
from boomspec.graph import Source
from boomspec.identity import folder_digest
from boomspec.tasks import LmEval
from runners.context import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel


_ANY_NUMBER = 1000  # of resamples, of a task of which none is bootstrapped: standard errors with a formula need not 0


class Harness(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM that leaves an untied head untied and reports how many requests are done."""

    def __init__(
        self,
        model: PreTrainedModel,
        *,
        tokenizer: Path,
        batch_size: int,
        progress: Progress,
        trusted: bool = False,
    ) -> None:
        """`trusted`: whether the tokenizer's own code may run."""
        self._progress, self._done, self._requests = progress, 0, 0
        keep_head(model)
        before = model.get_output_embeddings().weight.data_ptr()
        super().__init__(pretrained=model, tokenizer=str(tokenizer), batch_size=batch_size, trust_remote_code=trusted)
        if model.get_output_embeddings().weight.data_ptr() != before:
            raise RuntimeError("lm-eval replaced the model's head")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return self._counted(super().loglikelihood, requests)

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return self._counted(super().loglikelihood_rolling, requests)

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        return self._counted(super().generate_until, requests)

    def _counted(self, answer: Any, requests: list[Any]) -> Any:
        self._done, self._requests = 0, len(requests)
        answers = answer(requests, disable_tqdm=True)
        self._progress.update(self._requests, self._requests, unit="requests")
        return answers

    def _model_call(self, inps: torch.Tensor, **arguments: Any) -> Any:
        output = super()._model_call(inps, **arguments)
        self._advance(len(inps))
        return output

    def _model_generate(self, context: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        output = super()._model_generate(context, *arguments, **options)
        self._advance(len(context))
        return output

    def _advance(self, requests: int) -> None:
        # One request of a long text is many forward passes: the bar waits just before its end.
        self._done = min(self._done + requests, self._requests - 1)
        self._progress.update(self._done, self._requests, unit="requests")


def keep_head(model: PreTrainedModel) -> None:
    """Make the config say "untied" where embedding and head are two tensors.

    HFLM calls `tie_weights()`, which follows the config and would silently overwrite an untied head.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight.data_ptr() != head.weight.data_ptr():
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def run_task(lm: Harness, *, measure: LmEval, source: Source) -> dict[str, Any]:
    """Run one lm-eval task, group or tag. Returns lm-eval's own results, with its samples.

    Does what lm-eval's `simple_evaluate` does before it calls `evaluate`, without its look at git and machine.
    """
    seed = measure.seed or 0  # a record without one is of a task that draws nothing
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    loaded = _load(measure.task, source)
    for name, task in loaded["tasks"].items():
        if getattr(task, "UNSAFE_CODE", False):
            raise BoomspecError(f"lm-eval task '{name}' runs code that the model writes: boomspec does not")
        fixed = task.get_config("num_fewshot")
        if measure.num_fewshot is not None:
            if fixed == 0 and measure.num_fewshot != 0:
                raise BoomspecError(
                    f"lm-eval task '{name}' fixes num_fewshot at 0, but the spec asks for {measure.num_fewshot}",
                    hint="leave num_fewshot out for this task",
                )
            task.set_config(key="num_fewshot", value=measure.num_fewshot)
        elif fixed is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=seed)
    resamples = _ANY_NUMBER if measure.bootstrap_iters is None else measure.bootstrap_iters
    results: dict[str, Any] = evaluate(lm=lm, task_dict=loaded, limit=measure.limit, bootstrap_iters=resamples)
    return results


def _load(task: str, source: Source) -> dict[str, Any]:
    folder = source.location.get("folder")
    compiled, installed = source.identity.get("lm_eval"), metadata.version("lm-eval")
    if compiled not in (None, installed):
        raise BoomspecError(
            f"lm-eval {installed} is installed here, the graph was compiled for {compiled}",
            hint="compile the spec again",
        )
    if folder is not None and folder_digest(Path(folder)) != source.identity["folder"]:
        # What is in it is run: templates and Python.
        raise BoomspecError(f"{folder}: has changed since the spec was compiled", hint="compile the spec again")
    manager = TaskManager(include_path=folder, include_defaults=folder is None)
    if task not in manager.all_tasks:
        place = f"in {folder}" if folder else "of lm-eval"
        names = manager.all_tasks
        hint = did_you_mean(task, names) or (f"there are: {', '.join(names)}" if len(names) <= 20 else None)
        raise BoomspecError(f"'{task}' is no task {place}", hint=hint)
    try:
        loaded: dict[str, Any] = manager.load([task])
    except OSError as error:  # the hub cannot be reached, or the data set is not there
        raise BoomspecError(f"lm-eval task '{task}': its data cannot be loaded: {error}") from error
    return loaded
