"""Have vLLM (https://docs.vllm.ai) write the text of lm-eval tasks, through lm-eval's own model for it.

vLLM is installed on the machines that have GPUs, and nowhere else: only `import_vllm` imports it.
"""

import copy
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan
from boomspec.core.tasks import LmEval, Precision
from runners.evaluation.chat_prompts import ChatPrompts
from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.lm_eval_family import forget_answers
from runners.evaluation.lm_eval_text import Texts, checked_budget, count_asked
from runners.evaluation.members import WHOLE
from runners.runtime.context import Progress

_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_MEMORY_SHARE = 0.9  # of the GPU's memory, or of the task's share of it: vLLM fills what it may with its cache


def vllm_harness(
    folder: Path,
    *,
    tokenizer: Path,
    precision: Precision,
    measure: LmEval,
    gpus: float,
    trusted: bool,
    progress: Progress,
) -> Any:
    """A model in a folder, for `run_task`. Raises BoomspecError where vLLM is not installed."""
    if find_spec("vllm") is None:
        hint = "pip install vllm there, or set evaluate.backend: transformers"
        raise BoomspecError("vllm is not installed on this machine", hint=hint)
    from lm_eval.models.vllm_causallms import VLLM

    class VllmHarness(ChatPrompts, VLLM):  # type: ignore[misc]  # lm-eval has no types
        """lm-eval's model, which reports how many requests are done, and counts in `counts` what it cuts."""

        plans: tuple[LayerPlan, ...] = (WHOLE,)

        def __init__(self) -> None:
            self.progress, self.counts, self.measure = progress, Counted(), measure
            self._texts = Texts([], measure)
            self._rounds: list[list[str]] = []  # answers that lm-eval has not asked for yet
            self._asked: dict[tuple[int, ...], list[int]] = defaultdict(list)  # texts by the tokens that are read
            self._done = self._requests = 0
            share = _MEMORY_SHARE * min(1.0, gpus or 1.0)
            seed, thinking = measure.seed or 0, measure.thinking
            options: dict[str, Any] = {"gpu_memory_utilization": share, "trust_remote_code": trusted, "seed": seed}
            options |= {} if thinking is None else {"think_end_token": thinking.end}
            options |= {"tokenizer": str(tokenizer), "dtype": _DTYPES[precision], "batch_size": "auto"}
            super().__init__(pretrained=str(folder), **options)

        def turn_to(self, plan: LayerPlan) -> None:
            self._rounds = []  # there is one

        def ask_again(self, loaded: Any) -> None:
            forget_answers(loaded)

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            if self._rounds:
                return self._rounds.pop(0)
            self._asked.clear()
            self._texts = Texts(requests, measure)
            requests = self._texts.requests
            self._done, self._requests = 0, len(requests)
            for number, request in enumerate(requests):
                budget = checked_budget(request, default=self.max_gen_toks, positions=self.max_length)
                tokens = self.tok_encode(request.args[0])
                counts, room = self.counts[request.task_name], self.max_length - budget
                count_asked(self.counts, request, measure)
                if len(tokens) > room:
                    counts.contexts_cut.add(request.doc_id)
                self._asked[tuple(tokens[-room:])].append(number)
            if measure.drawn:
                requests = [self._seeded(number) for number in range(len(requests))]
            first, *self._rounds = self._texts.answers(super().generate_until(requests, disable_tqdm=True))
            progress.update(len(requests), len(requests), unit="requests")
            return first

        def _seeded(self, number: int) -> Any:
            """The request of a text with a seed of its own, for vLLM's own random numbers."""
            request = copy.copy(self._texts.texts[number].request)
            context, settings, *more = request.arguments
            request.arguments = (context, {**settings, "seed": self._texts.seed(number)}, *more)
            return request

        def _model_generate(self, requests: list[list[int]], *arguments: Any, **options: Any) -> Any:
            outputs = super()._model_generate(requests, *arguments, **options)
            for tokens, output in zip(requests, outputs, strict=True):
                number = self._asked[tuple(tokens)].pop(0)
                request, text = self._texts.texts[number].request, output.outputs[0].text
                self._texts.note_thought(number, text, self.counts)
                self.counts[request.task_name].generations_cut += output.outputs[0].finish_reason == "length"
            self._done += len(requests)
            progress.update(min(self._done, self._requests - 1), self._requests, unit="requests")
            return outputs

    return VllmHarness()
