"""lm-eval's Hugging Face model, for models that are in memory: with progress, an untied head, and prompts of chats.

Importing this module takes seconds (lm-eval imports its Hugging Face model): import it only to run an lm-eval task.
"""

from pathlib import Path
from typing import Any

from lm_eval.models.huggingface import HFLM
from tokenizers.processors import TemplateProcessing

from boomspec.core.errors import BoomspecError
from boomspec.core.tasks import LmEval
from runners.data.text_tokenizer import special_tokens_around
from runners.evaluation.chat_prompts import ChatPrompts
from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.lm_eval_tasks import one_line
from runners.runtime.context import Progress

OF_TASKS = (AssertionError, ValueError, IndexError, KeyError, TypeError, AttributeError)
ANY_TASK = LmEval(task="")


class Model(ChatPrompts, HFLM):  # type: ignore[misc]  # lm-eval has no types
    """HFLM that leaves an untied head untied, and reports how many requests are done.

    `trusted`: whether the tokenizer's own code may run. `measure`: how it is asked.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Path,
        batch_size: int,
        progress: Progress,
        trusted: bool = False,
        measure: LmEval = ANY_TASK,
    ) -> None:
        self.progress, self.counts, self.measure = progress, Counted(), measure
        self._done = 0
        self._current: list[Any] = []  # the requests that are being answered, in their order
        before = model.get_output_embeddings().weight.data_ptr()
        if model.get_input_embeddings().weight.data_ptr() != before:
            # HFLM calls `tie_weights()`, which follows the config and would silently overwrite an untied head.
            model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = False
        super().__init__(pretrained=model, tokenizer=str(tokenizer), batch_size=batch_size, trust_remote_code=trusted)
        if model.get_output_embeddings().weight.data_ptr() != before:
            raise RuntimeError("lm-eval replaced the model's head")
        if ending := _end_no_text(self.tokenizer):
            progress.note(f"the tokenizer puts {ending} after every text: left out, as more text follows")

    def _answer(self, answer: Any, requests: list[Any]) -> Any:
        """What lm-eval's own method answers. Raises BoomspecError where it stops."""
        self._done, self._current = 0, requests
        try:
            answers = answer(requests, disable_tqdm=True)
        except OF_TASKS as error:
            tasks = ", ".join(dict.fromkeys(str(request.task_name) for request in requests))
            message = f"lm-eval task '{tasks}': its {len(requests)} requests cannot be answered: {one_line(error)}"
            raise BoomspecError(message) from error
        self.progress.update(len(requests), len(requests), unit="requests")
        return answers

    def _advance(self, requests: int) -> None:
        # One request of a long text is many forward passes: the bar waits at the last request.
        self._done = min(self._done + requests, len(self._current) - 1)
        self.progress.update(self._done, len(self._current), unit="requests")


def refused(request: Any, message: str, hint: str) -> BoomspecError:
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
