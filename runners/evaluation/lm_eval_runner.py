"""Run lm-eval on a model: its own harness, with progress, counts of what it cuts, and an untied head left untied.

Importing this module takes seconds (lm-eval imports its Hugging Face model): import it only to run an lm-eval task.
"""

import math
import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api import metrics
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tokenizers.processors import TemplateProcessing
from transformers import LogitsProcessor, LogitsProcessorList, PreTrainedModel

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.core.tasks import LmEval
from runners.data.text_tokenizer import special_tokens_around
from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.lm_eval_tasks import guard, loaded_tasks, one_line, prepare
from runners.runtime.context import Progress

_ANY_NUMBER = 1000  # of resamples where none is bootstrapped: 0 would leave out the standard errors with a formula
_CHUNK = 1000  # resamples that lm-eval draws with one seed
_OF_TASKS = (AssertionError, ValueError, IndexError, KeyError, TypeError, AttributeError)


class Harness(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM that leaves an untied head untied, reports how many requests are done, and counts in `counts` what it cuts.

    Where lm-eval would fail with an assertion it raises a BoomspecError that names the task and the document.
    `trusted`: whether the tokenizer's own code may run.
    """

    def __init__(
        self, model: PreTrainedModel, *, tokenizer: Path, batch_size: int, progress: Progress, trusted: bool = False
    ) -> None:
        self.progress, self.counts = progress, Counted()
        self._done = 0
        self._current: list[Any] = []  # the requests that are being answered, in their order
        self._generating: dict[str, list[Any]] = defaultdict(list)  # those of them that generate text, by prompt
        self._batch: list[Any] = []
        before = model.get_output_embeddings().weight.data_ptr()
        if model.get_input_embeddings().weight.data_ptr() != before:
            # HFLM calls `tie_weights()`, which follows the config and would silently overwrite an untied head.
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
        super().__init__(pretrained=model, tokenizer=str(tokenizer), batch_size=batch_size, trust_remote_code=trusted)
        if model.get_output_embeddings().weight.data_ptr() != before:
            raise RuntimeError("lm-eval replaced the model's head")
        if ending := _end_no_text(self.tokenizer):
            progress.note(f"the tokenizer puts {ending} after every text: left out, as more text follows")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        for request in requests:
            context, answer = request.args[:2]
            # Spaces at the end of a context are scored with the answer.
            if not isinstance(context, str) or not isinstance(answer, str) or not (answer or context[-1:].isspace()):
                raise _refused(request, f"an answer to be scored is {answer!r}", "give it a text that is not empty")
        answers = self._answer(super().loglikelihood, requests)
        self._count_nan(requests, [value for value, _ in answers])
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        answers = self._answer(super().loglikelihood_rolling, requests)
        self._count_nan(requests, answers)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        self._generating.clear()
        for request in requests:
            prompt, options = request.args[:2]
            budget = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if budget >= self.max_length:
                message = f"{budget} tokens are to be generated, and the model has {self.max_length} positions"
                raise _refused(request, message, "set max_gen_toks in the task's generation_kwargs")
            if not prompt and not self.tok_encode(prompt):  # some tokenizers begin even that with a token
                raise _refused(request, "its prompt is empty", "mend its doc_to_text")
            self._generating[prompt].append(request)
            self.counts[request.task_name].generations += 1
        return self._answer(super().generate_until, requests)

    def _answer(self, answer: Any, requests: list[Any]) -> Any:
        self._done, self._current = 0, requests
        try:
            answers = answer(requests, disable_tqdm=True)
        except _OF_TASKS as error:
            tasks = ", ".join(dict.fromkeys(str(request.task_name) for request in requests))
            message = f"lm-eval task '{tasks}': its {len(requests)} requests cannot be answered: {one_line(error)}"
            raise BoomspecError(message) from error
        self.progress.update(len(requests), len(requests), unit="requests")
        return answers

    def _count_nan(self, requests: list[Any], values: list[float]) -> None:
        for request, value in zip(requests, values, strict=True):
            if math.isnan(value):
                self.counts[request.task_name].answers_that_are_no_number.add(request.doc_id)

    def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **options: Any) -> Any:
        requests = list(requests)
        if requests and requests[0][0] is not None:  # windows of a long text are None, and none is cut
            for request, (_, context, answer) in zip(self._current, requests, strict=True):
                if not context or not answer:
                    what = "context" if not context else f"answer {request.args[1]!r}"
                    raise _refused(request, f"its {what} has no tokens", "mend the document or the templates")
                if len(answer) > self.max_length:
                    message = f"an answer has {len(answer)} tokens, and the model has {self.max_length} positions"
                    raise _refused(request, message, "leave the document out, or take a model with more positions")
                if len(context) + len(answer) > self.max_length + 1:  # the last token is no input
                    self.counts[request.task_name].contexts_cut.add(request.doc_id)
        return super()._loglikelihood_tokens(requests, *arguments, **options)

    def tok_batch_encode(
        self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As lm-eval's: tokens and mask, [B, T]. Counts the prompts that lose their beginning."""
        self._batch = [self._generating[text].pop(0) if self._generating[text] else None for text in strings]
        tokens_BT, mask_BT = super().tok_batch_encode(strings, padding_side, None, truncation)
        if left_truncate_len is None or tokens_BT.shape[1] <= left_truncate_len:
            return tokens_BT, mask_BT
        for request, length in zip(self._batch, mask_BT.sum(1).tolist(), strict=True):
            if request is not None and length > left_truncate_len:
                self.counts[request.task_name].contexts_cut.add(request.doc_id)
        return tokens_BT[:, -left_truncate_len:], mask_BT[:, -left_truncate_len:]

    def _model_call(self, inps: torch.Tensor, **arguments: Any) -> Any:
        output = super()._model_call(inps, **arguments)
        self._advance(len(inps))
        return output

    def _model_generate(self, context: torch.Tensor, max_length: int, stop: list[str], **options: Any) -> Any:
        watch = _Watch(len(context))
        options["logits_processor"] = LogitsProcessorList([watch])
        output_BT = super()._model_generate(context, max_length, stop, **options)
        full = output_BT.shape[1] >= max_length
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        known = {self.eot_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])}
        stops = [end for end in handle_stop_sequences(list(stop), eos=None) if end]
        for request, tokens, bad in zip(self._batch, output_BT[:, context.shape[1] :].tolist(), watch.bad, strict=True):
            if request is not None:
                counts = self.counts[request.task_name]
                if full and not known & set(tokens):  # without an end-of-text token: it may hold a stop string
                    text = self.tokenizer.decode(tokens, skip_special_tokens=False)
                    counts.generations_cut += not any(end in text for end in stops)
                if bad:
                    counts.answers_that_are_no_number.add(request.doc_id)
        self._advance(len(context))
        return output_BT

    def _advance(self, requests: int) -> None:
        # One request of a long text is many forward passes: the bar waits at the last request.
        self._done = min(self._done + requests, len(self._current) - 1)
        self.progress.update(self._done, len(self._current), unit="requests")


class _Watch(LogitsProcessor):  # type: ignore[misc]  # transformers has no types here
    """Notes for which rows of a batch a model's scores are NaN, of which greedy decoding takes some token."""

    def __init__(self, rows: int) -> None:
        self.bad = [False] * rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad = torch.isnan(scores).any(-1).tolist()
        if len(bad) != len(self.bad):  # beams are more rows
            bad = [any(bad)] * len(self.bad)
        self.bad = [old or new for old, new in zip(self.bad, bad, strict=True)]
        return scores


def _refused(request: Any, message: str, hint: str) -> BoomspecError:
    return BoomspecError(f"lm-eval task '{request.task_name}', document {request.doc_id}: {message}", hint=hint)


def _end_no_text(tokenizer: Any) -> str:
    """Stop a tokenizer from adding tokens after a text; returns those that it added.

    lm-eval takes the tokens of a prompt for the first ones of prompt and answer together: with an end-of-text token
    there it would score that instead of the answer, and every choice of one token alike.
    """
    try:
        before, after = special_tokens_around(tokenizer)
    except BoomspecError:
        return ""  # it does not add tokens around a text
    if not after:
        return ""
    first, last = (tokenizer.convert_ids_to_tokens(list(ids)) for ids in (before, after))
    if not tokenizer.is_fast:
        message = f"the tokenizer puts {' '.join(last)} after every text, where lm-eval continues with the answer"
        raise BoomspecError(message, hint="set add_eos_token: false in its tokenizer_config.json")
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(first)]
    single, pair = [*first, "$A"], [*first, "$A", "$B"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return " ".join(last)


def run_task(lm: Harness, *, measure: LmEval, source: Source) -> dict[str, Any]:
    """Run one lm-eval task, group or tag. Returns lm-eval's own results with its samples; counts in `lm.counts`.

    Does what lm-eval's `simple_evaluate` does before it calls `evaluate`, but does not look at git and machine.
    """
    seed = measure.seed or 0  # a task that draws nothing has none
    scored = 0

    def count_scored() -> None:
        nonlocal scored
        scored += 1
        total = max(scored, sum(len(counts.documents) for counts in lm.counts.values()))
        lm.progress.update(scored, total, unit="documents scored")

    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with loaded_tasks(measure, source) as loaded:
        for name, task in loaded["tasks"].items():
            prepare(name, task, measure)
            guard(name, task, lm.counts, count_scored)
        resamples = _ANY_NUMBER if measure.bootstrap_iters is None else measure.bootstrap_iters
        try:
            with bootstrapping(lm.progress):
                found = evaluate(lm=lm, task_dict=loaded, limit=measure.limit, bootstrap_iters=resamples)
        except _OF_TASKS as error:
            raise BoomspecError(f"lm-eval task '{measure.task}': lm-eval stopped at it: {one_line(error)}") from error
    results: dict[str, Any] = found
    lm.counts.count_unscored(results["samples"])
    for name, counts in lm.counts.items():
        if counts.answers_that_are_no_choice and counts.answers_that_are_no_choice == counts.documents:
            message = f"lm-eval task '{name}': no document has an answer that is among its choices"
            raise BoomspecError(message, hint="doc_to_target is the index of a choice, or its text")
    return results


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
