"""Run one lm-eval task for the members of a family: lm-eval's own harness, with progress and errors that have places.

Importing this module takes seconds (lm-eval imports its Hugging Face model): import it only to run an lm-eval task.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api import metrics

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.core.layers import LayerPlan
from boomspec.core.tasks import LmEval
from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.lm_eval_model import OF_TASKS
from runners.evaluation.lm_eval_tasks import guard, loaded_tasks, one_line, prepare
from runners.evaluation.sample_means import add_unfinished, mean_of_samples
from runners.runtime.context import Progress

_ANY_NUMBER = 1000  # of resamples where none is bootstrapped: 0 would leave out the standard errors with a formula
_CHUNK = 1000  # resamples that lm-eval draws with one seed


def run_task(
    lm: Any, *, measure: LmEval, source: Source
) -> Iterator[tuple[LayerPlan, dict[str, Any] | BoomspecError, Counted]]:
    """Run one lm-eval task, group or tag for every member of `lm`, which is a `Harness` or does what one does.

    Yields lm-eval's own results with its samples, or what went wrong, and the counts. Does what lm-eval's
    `simple_evaluate` does before it calls `evaluate`, but does not look at git and machine.
    """
    seed = measure.seed or 0  # a task that draws nothing has none
    scored = 0

    def count_scored() -> None:
        nonlocal scored
        scored += 1
        documents = sum(len(counts.documents) for counts in lm.counts.values()) * (measure.samples or 1)
        lm.progress.update(scored, max(scored, documents), unit="documents scored")

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with loaded_tasks(measure, source) as loaded:
        for name, task in loaded["tasks"].items():
            prepare(name, task, measure)
            guard(name, task, lm.counts, count_scored)
        for plan in lm.plans:
            scored = 0
            lm.turn_to(plan)
            try:
                results = _measured(lm, measure, loaded)
                lm.counts.count_unscored(results["samples"])
                _check_choices(lm.counts)
            except BoomspecError as error:
                yield plan, error, lm.counts.taken()
            except OF_TASKS as error:
                message = f"lm-eval task '{measure.task}': lm-eval stopped at it: {one_line(error)}"
                failure = BoomspecError(message)
                failure.__cause__ = error  # where lm-eval stopped, for the log
                yield plan, failure, lm.counts.taken()
            else:
                yield plan, results, lm.counts.taken()
            lm.ask_again(loaded)


def _measured(lm: Any, measure: LmEval, loaded: Mapping[str, Any]) -> dict[str, Any]:
    """lm-eval's results for one member; where documents have several texts, of the means over them."""
    resamples = _ANY_NUMBER if measure.bootstrap_iters is None else measure.bootstrap_iters
    errors, chat = resamples > 0, measure.chat
    if measure.samples is not None:
        resamples = 0  # the texts of a document go together: the standard errors are worked out over documents
    turned: dict[str, Any] = {}
    if chat is not None:
        multiturn = chat.multiturn is not False
        turned = {"apply_chat_template": True, "system_instruction": chat.system, "fewshot_as_multiturn": multiturn}
    found: list[dict[str, Any]] = []
    for number in range(measure.samples or 1):
        if number:
            lm.ask_again(loaded)
        with bootstrapping(lm.progress):
            found.append(evaluate(lm=lm, task_dict=loaded, limit=measure.limit, bootstrap_iters=resamples, **turned))
    results = found[0] if measure.samples is None else mean_of_samples(found, loaded, errors=errors)
    add_unfinished(results, lm.counts, errors=errors)
    return results


def _check_choices(counted: Counted) -> None:
    for name, counts in counted.items():
        if counts.answers_that_are_no_choice and counts.answers_that_are_no_choice == counts.documents:
            message = f"lm-eval task '{name}': no document has an answer that is among its choices"
            raise BoomspecError(message, hint="doc_to_target is the index of a choice, or its text")


def bootstrapping(progress: Progress) -> AbstractContextManager[object]:
    """Compute lm-eval's bootstrapped standard errors in this process and with progress: the same numbers.

    lm-eval itself starts as many processes as the machine has CPUs, however many the task may use.
    """

    def bootstrap_stderr(metric: Callable[[Any], float], values: Sequence[Any], iters: int) -> float:
        found: list[float] = []
        while len(found) < iters:
            draw = random.Random(len(found) // _CHUNK)
            for _ in range(min(_CHUNK, iters - len(found))):
                found.append(metric(draw.choices(values, k=len(values))))
                progress.update(len(found), iters, unit="resamples")
        return float(metrics.sample_stddev(found))

    return patch.object(metrics, "bootstrap_stderr", bootstrap_stderr)
