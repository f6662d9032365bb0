"""One family of 15 sizes, measured in one pass, beside one run of lm-eval's Hugging Face model for each size.

    python -m tests.benchmarks.family [TEACHER]

TEACHER: the folder of a Llama-like model with its tokenizer; without it, random weights in the shape of SmolLM2-135M
(30 layers). The student has 16 of its layers. Measured: held-out text, and two tasks of multiple choice, with four
short answers to a question (as in ARC easy) and with two long ones (as in PIQA). Each is a process of its own:

    per size   the size is written to a folder, and lm-eval measures it with its own model; of the 15 sizes three
               are timed, a small, a middle and a large one, and the time of all is that of these times five
    one pass   teacher and student are loaded, and all sizes are measured together

fp32, two threads, eight rows a batch on both sides, which take turns. The numbers of the three sizes are compared.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "2")  # before torch reads it

import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import transformers
import yaml
from lm_eval import simple_evaluate
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from boomspec.core.graph import Source
from boomspec.core.identity import folder_digest
from boomspec.core.layers import ORDERS, STUDENT, TEACHER, LayerPlan, Owner, patchable, plan_of, teacher_layers
from boomspec.core.tasks import LmEval
from boomspec.core.work_sizes import BATCH_SIZE
from runners.assembly.assemble import assemble
from runners.evaluation.lm_eval_family import Harness, run_task
from runners.evaluation.members import LayerPlans
from runners.modeling.models import load_frozen
from runners.runtime.context import Progress

LAYERS = 30
KEPT = (*range(0, LAYERS, 2), LAYERS - 1)
QUESTIONS, DOCUMENTS, DOCUMENT = 24, 3, 512  # documents of held-out text, and words of each
TASKS = ("held_out_text", "four_answers", "two_answers")
TIMED = slice(2, None, 5)  # of the sizes: three, whose mean is that of all
# Each is one token for most tokenizers, with the space before it.
WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand"
    " part place case week company system program question work government number night point home water room mother"
    " area money story fact month lot right study book eye job word business issue side kind head house service friend"
    " father power hour game line end member law car city community name president team minute idea body information"
    " back parent face others level office door health person art war history party result change morning reason"
)


def make_teacher(folder: Path) -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=LAYERS,
        num_attention_heads=9,
        num_key_value_heads=3,
        vocab_size=49152,
        tie_word_embeddings=True,
        max_position_embeddings=2048,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer = Tokenizer(
        WordLevel({"<eos>": 0, **{word: i for i, word in enumerate(WORDS.split(), 1)}}, unk_token="<eos>")
    )
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def make_tasks(folder: Path) -> None:
    """Questions of the lengths that ARC easy and PIQA have, in words."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(WORDS.split()) for _ in range(draw.randint(least, most)))

    for name, question, choices, answer in (
        ("four_answers", (15, 35), 4, (1, 6)),
        ("two_answers", (6, 14), 2, (10, 30)),
    ):
        rows = [
            {"question": text(*question), "choices": [text(*answer) for _ in range(choices)], "label": 0}
            for _ in range(QUESTIONS)
        ]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "Question: {{question}}\nAnswer:",
            "doc_to_choice": "choices",
            "doc_to_target": "label",
            "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
        }
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))
    rows = [{"text": text(DOCUMENT, DOCUMENT)} for _ in range(DOCUMENTS)]
    (folder / "held_out_text.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    held_out = {
        "task": "held_out_text",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / "held_out_text.jsonl")}},
        "output_type": "loglikelihood_rolling",
        "test_split": "test",
        "doc_to_text": "",
        "doc_to_target": "{{text}}",
        "metric_list": [{"metric": "bits_per_byte"}],
    }
    (folder / "held_out_text.yaml").write_text(yaml.safe_dump(held_out))


def family(order: str) -> list[LayerPlan]:
    """The 15 plans from student to teacher."""
    blocks = patchable(KEPT, LAYERS)
    patched = ORDERS[order](blocks)
    return [plan_of(KEPT, LAYERS, [i in patched[:n] for i in range(len(KEPT))]) for n in range(len(blocks) + 1)]


Numbers = dict[str, float]  # by task


def per_size(sources: dict[Owner, Path], plan: LayerPlan, tasks: Path) -> Numbers:
    """One size in a folder of its own, and by lm-eval in a process of its own."""
    with tempfile.TemporaryDirectory() as place:
        assemble(sources, plan, Path(place, "model"), tied=True)
        command = [sys.executable, "-m", "tests.benchmarks.family", "--size", f"{place}/model", str(tasks)]
        found = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1]
        return dict(json.loads(found))


def by_lm_eval(folder: Path, tasks: Path) -> Numbers:
    """What `lm-eval run --model hf` does, without standard errors."""
    model = {"pretrained": str(folder), "dtype": "float32", "device": "cpu"}
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    measured = {"tasks": list(TASKS), "task_manager": manager, "batch_size": BATCH_SIZE, "bootstrap_iters": 0}
    return numbers(simple_evaluate("hf", model_args=model, **measured)["results"])


def numbers(results: dict[str, Any]) -> Numbers:
    return {task: results[task].get("acc,none", results[task].get("bits_per_byte,none")) for task in TASKS}


def one_pass(sources: dict[Owner, Path], order: str, tasks: Path) -> list[Numbers]:
    """All sizes, in this process."""
    members = LayerPlans({owner: load_frozen(at, dtype=torch.float32) for owner, at in sources.items()}, family(order))
    found: dict[LayerPlan, Numbers] = {plan: {} for plan in members.plans}
    source = Source("lm_eval_tasks", {"folder": folder_digest(tasks)}, {"folder": str(tasks)})
    for name in TASKS:
        lm = Harness(members, tokenizer=sources[TEACHER], batch_size=BATCH_SIZE, progress=Progress(None))
        for plan, results, _ in run_task(lm, measure=LmEval(task=name, bootstrap_iters=0), source=source):
            assert isinstance(results, dict), results
            values = results["results"][name]
            found[plan][name] = values.get("acc,none", values.get("bits_per_byte,none"))
    return list(found.values())


def passed(sources: dict[Owner, Path], order: str, tasks: Path) -> tuple[list[Numbers], int]:
    """The same in a process of its own, and the peak of its memory in bytes."""
    folders = [str(folder) for folder in (sources[TEACHER], sources[STUDENT], tasks)]
    command = [sys.executable, "-m", "tests.benchmarks.family", "--pass", order, *folders]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
    return found["numbers"], found["peak"]


def compare(sources: dict[Owner, Path], order: str, tasks: Path) -> None:
    plans = family(order)[TIMED]
    alone: list[Numbers] = []
    took = 0.0

    def measure_sizes(count: int) -> None:
        nonlocal took
        for plan in plans[len(alone) : len(alone) + count]:
            started = time.perf_counter()
            alone.append(per_size(sources, plan, tasks))
            took += time.perf_counter() - started

    measure_sizes(1)
    started = time.perf_counter()
    together, peak = passed(sources, order, tasks)
    once = time.perf_counter() - started
    measure_sizes(len(plans))
    every = took / len(plans) * len(family(order))
    pairs = list(zip(together[TIMED], alone, strict=True))
    apart = max(abs(one["held_out_text"] / other["held_out_text"] - 1) for one, other in pairs)
    same = all(one[name] == other[name] for one, other in pairs for name in TASKS[1:])
    weights = sum(file.stat().st_size for source in sources.values() for file in source.glob("*.safetensors"))
    print(f"{order}: one lm-eval run for each size {every:.0f} s, one pass {once:.0f} s: {every / once:.2f}x")
    print(f"  bits per byte differ by {apart:.0e} at most, accuracies {'are the same' if same else 'DIFFER'}")
    print(f"  peak memory {peak / 2**30:.2f} GiB, of which teacher and student {weights / 2**30:.2f} GiB", flush=True)


def main(teacher: Path | None) -> None:
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if teacher is None:
            make_teacher(folder / "teacher")
        sources: dict[Owner, Path] = {TEACHER: teacher or folder / "teacher", STUDENT: folder / "student"}
        assemble({TEACHER: sources[TEACHER]}, teacher_layers(KEPT), sources[STUDENT], tied=True)
        (folder / "tasks").mkdir()
        make_tasks(folder / "tasks")
        for order in ORDERS:
            compare(sources, order, folder / "tasks")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--size"]:
        print(json.dumps(by_lm_eval(*map(Path, sys.argv[2:]))))
    elif sys.argv[1:2] == ["--pass"]:
        teacher_folder, student_folder, tasks_folder = map(Path, sys.argv[3:])
        found = one_pass({TEACHER: teacher_folder, STUDENT: student_folder}, sys.argv[2], tasks_folder)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"numbers": found, "peak": peak}))
    else:
        main(Path(sys.argv[1]) if sys.argv[1:] else None)
