"""lm-eval on a model of ours: the real harness, with a guard against re-tied heads, progress, and a count of cuts.

Importing this module takes seconds (lm-eval imports its Hugging Face model): import it only where an
lm-eval task is to run.
"""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from lm_eval import evaluate
from lm_eval.api import metrics
from lm_eval.models.huggingface import HFLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from tokenizers.processors import TemplateProcessing
from transformers import LogitsProcessor, LogitsProcessorList

from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Source
from boomspec.core.tasks import LmEval
from runners.data.text_tokenizer import around
from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.lm_eval_tasks import guard, loaded_tasks, prepare, replaced, said
from runners.runtime.context import Progress

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_ANY_NUMBER = 1000  # of resamples, of a task of which none is bootstrapped: standard errors with a formula need not 0
_CHUNK = 1000  # resamples that lm-eval draws with one seed
_OF_TASKS = (AssertionError, ValueError, IndexError, KeyError, TypeError, AttributeError)


class Harness(HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM that leaves an untied head untied, reports how many requests are done, and counts in `counts` what it cuts.

    What lm-eval would stop at with an assertion is a BoomspecError that names the task and the document.
    """

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
        self.progress, self.counts = progress, Counted()
        self._done, self._requests = 0, 0
        self._asked: list[Any] = []  # the requests that are being answered, in their order
        self._waiting: dict[str, list[Any]] = defaultdict(list)  # those of them that want text, by their prompt
        self._batch: list[Any] = []
        keep_head(model)
        before = model.get_output_embeddings().weight.data_ptr()
        super().__init__(pretrained=model, tokenizer=str(tokenizer), batch_size=batch_size, trust_remote_code=trusted)
        if model.get_output_embeddings().weight.data_ptr() != before:
            raise RuntimeError("lm-eval replaced the model's head")
        if ending := end_no_text(self.tokenizer):
            progress.note(f"the tokenizer puts {ending} behind every text: left out, as more text follows")

    def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        for request in requests:
            context, answer = request.args[:2]
            # Spaces at the end of a context are scored with the answer.
            if not isinstance(context, str) or not isinstance(answer, str) or not (answer or context[-1:].isspace()):
                raise _refused(request, f"an answer to be scored is {answer!r}", "give it a text that is not empty")
        answers = self._counted(super().loglikelihood, requests)
        for request, (value, _) in zip(requests, answers, strict=True):
            self._check_number(request, value)
        return answers

    def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        answers = self._counted(super().loglikelihood_rolling, requests)
        for request, value in zip(requests, answers, strict=True):
            self._check_number(request, value)
        return answers

    def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
        self._waiting.clear()
        for request in requests:
            prompt, options = request.args[:2]
            budget = normalize_gen_kwargs(options, self.max_gen_toks)["max_gen_toks"]
            if budget >= self.max_length:
                message = f"{budget} tokens are to be generated, and the model has {self.max_length} positions"
                raise _refused(request, message, "set max_gen_toks in the task's generation_kwargs")
            if not prompt and not self.tok_encode(prompt):  # some tokenizers begin even that with a token
                raise _refused(request, "its prompt is empty", "mend its doc_to_text")
            self._waiting[prompt].append(request)
            self.counts[request.task_name].generations += 1
        return self._counted(super().generate_until, requests)

    def _counted(self, answer: Any, requests: list[Any]) -> Any:
        self._done, self._requests, self._asked = 0, len(requests), requests
        try:
            answers = answer(requests, disable_tqdm=True)
        except _OF_TASKS as error:
            tasks = ", ".join(dict.fromkeys(str(request.task_name) for request in requests))
            message = f"lm-eval task '{tasks}': its {len(requests)} requests cannot be answered: {said(error)}"
            raise BoomspecError(message) from error
        self.progress.update(self._requests, self._requests, unit="requests")
        return answers

    def _check_number(self, request: Any, value: float) -> None:
        if math.isnan(value):
            self.counts[request.task_name].no_number.add(request.doc_id)

    def _loglikelihood_tokens(self, requests: Any, *arguments: Any, **options: Any) -> Any:
        requests = list(requests)
        if requests and requests[0][0] is not None:  # else the windows of a long text, of which none is cut
            for request, (_, context, answer) in zip(self._asked, requests, strict=True):
                if not context or not answer:
                    what = "context" if not context else f"answer {request.args[1]!r}"
                    raise _refused(request, f"its {what} has no tokens", "mend the document or the templates")
                if len(answer) > self.max_length:
                    message = f"an answer has {len(answer)} tokens, and the model has {self.max_length} positions"
                    raise _refused(request, message, "leave the document out, or take a model with more positions")
                if len(context) + len(answer) > self.max_length + 1:  # the last token is not put in
                    self.counts[request.task_name].contexts_cut.add(request.doc_id)
        return super()._loglikelihood_tokens(requests, *arguments, **options)

    def tok_batch_encode(
        self, strings: Any, padding_side: str = "left", left_truncate_len: int | None = None, truncation: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As lm-eval's, [B, T] tokens and mask; counts the prompts that lose their beginning."""
        self._batch = [self._waiting[text].pop(0) if self._waiting[text] else None for text in strings]
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
        output_BT = super()._model_generate(
            context, max_length, stop, logits_processor=LogitsProcessorList([watch]), **options
        )
        full = output_BT.shape[1] >= max_length
        for request, tokens, bad in zip(self._batch, output_BT[:, context.shape[1] :].tolist(), watch.bad, strict=True):
            if request is not None:
                counts = self.counts[request.task_name]
                counts.generations_cut += full and not self._ended(tokens, stop)
                if bad:
                    counts.no_number.add(request.doc_id)
        self._advance(len(context))
        return output_BT

    def _ended(self, tokens: list[int], stop: Sequence[str]) -> bool:
        """Whether generated tokens hold the end of a text, or what the task says ends it."""
        generation = getattr(self.model, "generation_config", None)
        ends = getattr(generation, "eos_token_id", None)
        known = {self.eot_token_id, *(ends if isinstance(ends, (list, tuple)) else [ends])}
        if known & set(tokens):
            return True
        text = self.tokenizer.decode(tokens, skip_special_tokens=False)
        return any(end and end in text for end in handle_stop_sequences(list(stop), eos=None))

    def _advance(self, requests: int) -> None:
        # One request of a long text is many forward passes: the bar waits just before its end.
        self._done = min(self._done + requests, self._requests - 1)
        self.progress.update(self._done, self._requests, unit="requests")


class _Watch(LogitsProcessor):  # type: ignore[misc]
    """Sees whether a model's scores are numbers; changes none. Greedy decoding takes some token of any scores."""

    def __init__(self, rows: int) -> None:
        self.seen: torch.Tensor | None = None
        self.rows = rows

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        bad_B = torch.isnan(scores).any(-1)
        self.seen = bad_B if self.seen is None else self.seen | bad_B
        return scores

    @property
    def bad(self) -> list[bool]:
        found = [False] * self.rows if self.seen is None else self.seen.tolist()
        return found if len(found) == self.rows else [any(found)] * self.rows  # beams are more rows


def _refused(request: Any, message: str, hint: str) -> BoomspecError:
    return BoomspecError(f"lm-eval task '{request.task_name}', document {request.doc_id}: {message}", hint=hint)


def keep_head(model: PreTrainedModel) -> None:
    """Make the config say "untied" where embedding and head are two tensors.

    HFLM calls `tie_weights()`, which follows the config and would silently overwrite an untied head.
    """
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    if embedding.weight.data_ptr() != head.weight.data_ptr():
        model.config.tie_word_embeddings = False
        model.config.get_text_config().tie_word_embeddings = False


def end_no_text(tokenizer: Any) -> str:
    """Let a tokenizer put nothing behind a text any more; returns what it put there.

    lm-eval takes the tokens of a prompt for the first ones of prompt and answer together: behind an end-of-text it
    would score that in the place of the answer, and every choice of one token alike.
    """
    try:
        front, behind = around(tokenizer)
    except BoomspecError:
        return ""  # it is not of the kind that puts tokens around a text
    if not behind:
        return ""
    first, last = (tokenizer.convert_ids_to_tokens(list(ids)) for ids in (front, behind))
    if not tokenizer.is_fast:
        message = f"the tokenizer puts {' '.join(last)} behind every text, where lm-eval goes on with the answer"
        raise BoomspecError(message, hint="set add_eos_token: false in its tokenizer_config.json")
    special = [(token, tokenizer.convert_tokens_to_ids(token)) for token in dict.fromkeys(first)]
    single, pair = [*first, "$A"], [*first, "$A", "$B"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(single=single, pair=pair, special_tokens=special)
    return " ".join(last)


def run_task(lm: Harness, *, measure: LmEval, source: Source) -> dict[str, Any]:
    """Run one lm-eval task, group or tag. Returns lm-eval's own results, with its samples; `lm` has counted.

    Does what lm-eval's `simple_evaluate` does before it calls `evaluate`, without its look at git and machine.
    """
    seed = measure.seed or 0  # a record without one is of a task that draws nothing
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    with loaded_tasks(measure, source) as loaded:
        prepare(loaded, measure)
        guard(loaded, lm.counts, _Scored(lm))
        resamples = _ANY_NUMBER if measure.bootstrap_iters is None else measure.bootstrap_iters
        try:
            with bootstrapping(lm.progress):
                results: dict[str, Any] = evaluate(
                    lm=lm, task_dict=loaded, limit=measure.limit, bootstrap_iters=resamples
                )
        except _OF_TASKS as error:
            message = f"lm-eval task '{measure.task}': lm-eval stopped at it: {said(error)}"
            raise BoomspecError(message) from error
    lm.counts.count_unscored(results["samples"])
    for name, counts in lm.counts.items():
        if counts.no_choice and counts.no_choice == counts.documents:
            message = f"lm-eval task '{name}': no document has an answer that is among its choices"
            raise BoomspecError(message, hint="doc_to_target is the index of a choice, or its text")
    return results


class _Scored:
    """Progress of the scoring, which comes behind the requests: as many documents as the counts know."""

    def __init__(self, lm: Harness) -> None:
        self.lm, self.done = lm, 0

    def __call__(self) -> None:
        self.done += 1
        total = max(self.done, sum(len(counts.documents) for counts in self.lm.counts.values()))
        self.lm.progress.update(self.done, total, unit="documents scored")


@contextmanager
def bootstrapping(progress: Progress) -> Iterator[None]:
    """lm-eval's standard errors by resampling, in this process and with progress: the same numbers.

    lm-eval itself starts as many processes as the machine has CPUs, whatever the task claims of them.
    """

    def bootstrap_stderr(metric: Callable[[Any], float], values: Sequence[Any], iters: int) -> float:
        found: list[float] = []
        while len(found) < iters:
            draw = random.Random(len(found) // _CHUNK)
            for _ in range(min(_CHUNK, iters - len(found))):
                found.append(metric(draw.choices(values, k=len(values))))
                progress.update(len(found), iters, unit="resamples")
        return float(metrics.sample_stddev(found))

    with replaced(metrics, "bootstrap_stderr", bootstrap_stderr):
        yield
