"""Have vLLM (https://docs.vllm.ai) write the text of lm-eval tasks, through lm-eval's own model for it.

vLLM is installed on the machines that have GPUs, and nowhere else: only `import_vllm` imports it.
"""

from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.layers import LayerPlan
from boomspec.core.tasks import Precision
from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.lm_eval_runner import checked_budget
from runners.evaluation.members import WHOLE
from runners.runtime.context import Progress

_DTYPES = {"bf16": "bfloat16", "fp32": "float32"}
_MEMORY_SHARE = 0.9  # of the GPU's memory, or of the task's share of it: vLLM fills what it may with its cache


def vllm_harness(
    folder: Path, *, precision: Precision, seed: int, gpus: float, trusted: bool, progress: Progress
) -> Any:
    """A model in a folder, for `run_task`. Raises BoomspecError where vLLM is not installed."""
    if find_spec("vllm") is None:
        hint = "pip install vllm there, or set evaluate.backend: transformers"
        raise BoomspecError("vllm is not installed on this machine", hint=hint)
    from lm_eval.models.vllm_causallms import VLLM

    class VllmHarness(VLLM):  # type: ignore[misc]  # lm-eval has no types
        """lm-eval's model, which reports how many requests are done, and counts in `counts` what it cuts."""

        plans: tuple[LayerPlan, ...] = (WHOLE,)

        def __init__(self) -> None:
            self.progress, self.counts = progress, Counted()
            self._asked: dict[tuple[int, ...], list[Any]] = defaultdict(list)  # requests by the tokens that are read
            self._done = self._requests = 0
            share = _MEMORY_SHARE * min(1.0, gpus or 1.0)
            options = {"gpu_memory_utilization": share, "trust_remote_code": trusted, "seed": seed}
            super().__init__(pretrained=str(folder), dtype=_DTYPES[precision], batch_size="auto", **options)

        def turn_to(self, plan: LayerPlan) -> None:
            pass  # there is one

        def ask_again(self, loaded: Any) -> None:
            pass

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            self._asked.clear()
            self._done, self._requests = 0, len(requests)
            for request in requests:
                budget = checked_budget(request, default=self.max_gen_toks, positions=self.max_length)
                tokens = self.tok_encode(request.args[0])
                counts, room = self.counts[request.task_name], self.max_length - budget
                counts.generations += 1
                if len(tokens) > room:
                    counts.contexts_cut.add(request.doc_id)
                self._asked[tuple(tokens[-room:])].append(request)
            answers = super().generate_until(requests, disable_tqdm=True)
            progress.update(len(requests), len(requests), unit="requests")
            return answers

        def _model_generate(self, requests: list[list[int]], *arguments: Any, **options: Any) -> Any:
            outputs = super()._model_generate(requests, *arguments, **options)
            for tokens, output in zip(requests, outputs, strict=True):
                request = self._asked[tuple(tokens)].pop(0)
                self.counts[request.task_name].generations_cut += output.outputs[0].finish_reason == "length"
            self._done += len(requests)
            progress.update(min(self._done, self._requests - 1), self._requests, unit="requests")
            return outputs

    return VllmHarness()
