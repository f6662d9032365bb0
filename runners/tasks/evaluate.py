"""Measure models: held-out text or one lm-eval task, one model or many layer plans at once.

Writes for each model what `runners.evaluation.results` says, and for lm-eval tasks
    samples.jsonl  lm-eval's record of every document
"""

from collections.abc import Iterator, Sequence
from typing import Any

from boomspec.core.errors import BoomspecError
from boomspec.core.json_text import json_text
from boomspec.core.layers import LayerPlan
from boomspec.core.tasks import Evaluate, HeldOut, LmEval
from runners.data.text_tokenizer import tokenizer_folder
from runners.data.tokens import TOKENIZER, TokenStream
from runners.evaluation import held_out
from runners.evaluation.family import Loaded, load
from runners.evaluation.lm_eval_counts import Counted
from runners.evaluation.members import WHOLE
from runners.evaluation.results import Item, items_of, portable, write_results
from runners.modeling.foreign_code import prepare_custom_code, tokenizer_of
from runners.modeling.hidden_states import check_apart
from runners.modeling.models import model_folder
from runners.runtime.context import Context, Together
from runners.runtime.device import deterministic_mode

Measured = tuple[dict[str, Any], list[Item], Counted]


def run(context: Context[Evaluate]) -> None:
    for _, error in run_together([context]):
        if error is not None:
            raise error


def run_together(contexts: Sequence[Context[Evaluate]]) -> Iterator[tuple[int, BoomspecError | None]]:
    """Measure models of one family on the same measure, sharing what they have in common.

    Yields the number of a context when its files are written, or when its model could not be measured.
    """
    first, progress = contexts[0], Together([context.progress for context in contexts])
    measure = first.record.measure
    with deterministic_mode(first.record.determinism, progress.note):
        loaded = None if first.record.backend == "vllm" else load(contexts)
        plans = (WHOLE,) if loaded is None else loaded.plans
        measured: Iterator[tuple[LayerPlan, Measured | BoomspecError]]
        if isinstance(measure, HeldOut):
            assert loaded is not None
            measured = _held_out(first, measure, loaded, progress)
        else:
            measured = _lm_eval(first, measure, loaded, progress)
        for plan, found in measured:
            for number in (number for number, own in enumerate(plans) if own == plan):
                if isinstance(found, BoomspecError):
                    yield number, found
                    continue
                results, items, counts = found
                context = contexts[number]
                if (samples := results.get("samples")) is not None:
                    with (context.path / "samples.jsonl").open("w", encoding="utf-8") as file:
                        for task, documents in samples.items():
                            file.writelines(json_text({"task": task, **sample}) + "\n" for sample in documents)
                without = {name: value for name, value in results.items() if name != "samples"}
                write_results(context.path, without, items, counts, context.progress)
                yield number, None


def _held_out(
    context: Context[Evaluate], measure: HeldOut, loaded: Loaded, progress: Together
) -> Iterator[tuple[LayerPlan, Measured]]:
    folder = context.inputs["tokens"].folder
    split = TokenStream(folder, "held_out", apart=bool(measure.isolate))
    if measure.isolate:
        for model in loaded.members.models:
            check_apart(model)
    tokens, text_bytes = split.tokens, split.bytes
    labelled = None if split.labelled is None else split.labels(0, len(split))
    if measure.max_tokens is not None and measure.max_tokens < len(tokens):
        tokens, labelled = tokens[: measure.max_tokens], None if labelled is None else labelled[: measure.max_tokens]
        tokenizer = tokenizer_of(folder / TOKENIZER, context.code_of("tokens"))
        of_text = None if labelled is None else labelled[1:]
        text_bytes = held_out.text_bytes(
            tokens, eos=split.eos, prefix=split.prefix, tokenizer=tokenizer, labels=of_text
        )
    if text_bytes == 0:
        raise BoomspecError(f"{split.file}: there is no text to measure", hint="hold out more of the data")
    found = held_out.window_losses(
        loaded.members,
        tokens=tokens,
        eos=split.eos,
        prefix=split.prefix,
        labelled=labelled,
        sequence_length=measure.sequence_length,
        begins=split.begins if measure.isolate else None,
        batch_size=context.batch_size,
        progress=progress,
        kept={plan: folder / "losses.jsonl" for plan, folder in loaded.kept.items()},
    )
    original = held_out.windows(len(split), measure.sequence_length, split.prefix)
    name = measure.type
    apart = {"isolate_documents": True} if measure.isolate else {}
    for plan, losses in found.items():
        windows = len(losses.tokens)
        metrics = held_out.metrics(losses, text_bytes=text_bytes)
        counted = {"tokens": int(losses.tokens.sum()), "bytes": text_bytes}
        results = {
            "results": {name: {"name": name, "alias": name, "sample_len": windows, **metrics}},
            "group_subtasks": {},
            "configs": {name: {"task": name, **measure.model_dump(exclude={"type", "isolate"}), **apart, **counted}},
            "versions": {name: Evaluate.version},
            "n-shot": {name: 0},
            "higher_is_better": {name: {"loss": False, "perplexity": False, "bits_per_byte": False}},
            "n-samples": {name: {"original": original, "effective": windows}},
        }
        pairs = enumerate(zip(losses.tokens, losses.means, strict=True))
        items = [Item(name, "loss", "none", i, int(n), float(mean)) for i, (n, mean) in pairs]
        yield plan, (results, items, Counted())


def _lm_eval(
    context: Context[Evaluate], measure: LmEval, loaded: Loaded | None, progress: Together
) -> Iterator[tuple[LayerPlan, Measured | BoomspecError]]:
    """`loaded` is None for one model whose text vLLM writes."""
    # Seconds of import that others need not pay.
    from runners.evaluation.lm_eval_family import Harness
    from runners.evaluation.lm_eval_runner import run_task

    source = context.inputs["tasks"].source
    assert source is not None
    given = context.inputs.get("tokenizer")
    folder = model_folder(context.inputs["model"]) if loaded is None else loaded.folder
    code = context.code_of("model" if given is None else "tokenizer") if loaded is None or given else loaded.code
    with tokenizer_folder(given, folder) as tokenizer:
        if loaded is None:
            from runners.evaluation.vllm_backend import vllm_harness

            lm = vllm_harness(
                folder,
                tokenizer=tokenizer,
                precision=context.record.precision,
                measure=measure,
                gpus=context.execution.gpus,
                trusted=prepare_custom_code(folder, "model", context.code_of("model")),
                progress=context.progress,
            )
        else:
            lm = Harness(
                loaded.members,
                tokenizer=tokenizer,
                trusted=prepare_custom_code(tokenizer, "tokenizer", code),
                batch_size=context.batch_size,
                progress=progress,
                measure=measure,
                kept=loaded.kept,
            )
        for plan, found, counts in run_task(lm, measure=measure, source=source):
            if isinstance(found, BoomspecError):
                yield plan, found
                continue
            results = portable(found, source.location.get("folder"))
            results["config"] = {
                "model": context.record.backend or "hf",
                "model_dtype": context.record.precision,
                "limit": measure.limit,
                "bootstrap_iters": measure.bootstrap_iters,
                **{f"{kind}_seed": measure.seed for kind in ("random", "numpy", "torch", "fewshot")},
                **measure.model_dump(include={"chat", "generation", "thinking", "samples"}, exclude_none=True),
            }
            yield plan, (results, items_of(results, results["samples"]), counts)
