"""One family of 15 sizes, measured in one pass and by one lm-eval run per size.

    python -m tests.benchmarks.family [TEACHER]

TEACHER: the folder of a Llama-like model with its tokenizer; without it, random weights in the shape of SmolLM2-135M
(30 layers). The student has 16 of its layers. Measured: held-out text, and two tasks of multiple choice, with four
short answers to a question (as in ARC easy) and with two long ones (as in PIQA). One after the other, in one process:

    per size   each size is written, loaded by lm-eval's own Hugging Face model, and measured by it
    one pass   teacher and student are loaded, and all sizes are measured together

fp32, two threads. The numbers of both ways are compared. Peak memory is that of a process of its own for the pass.
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
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from boomspec.core.graph import Source
from boomspec.core.identity import folder_digest
from boomspec.core.layers import ORDERS, STUDENT, TEACHER, LayerPlan, patchable, plan_of, teacher_layers
from boomspec.core.tasks import LmEval
from boomspec.core.work_sizes import BATCH_SIZE
from runners.assembly.assemble import assemble
from runners.evaluation.held_out import window_losses
from runners.evaluation.lm_eval_runner import Harness, run_task
from runners.evaluation.members import WHOLE, LayerPlans, WholeModel
from runners.modeling.models import load_frozen
from runners.runtime.context import Progress

LAYERS, STUDENT_LAYERS = 30, 16
QUESTIONS, HELD_OUT, LENGTH = 40, 4096, 512
TASKS = ("four_answers", "two_answers")
WORDS = [f"w{number}" for number in range(2000)]


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
    tokenizer = Tokenizer(WordLevel({"<eos>": 0, **{word: i for i, word in enumerate(WORDS, 1)}}, unk_token="<eos>"))
    tokenizer.pre_tokenizer = Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>").save_pretrained(folder)


def make_tasks(folder: Path) -> None:
    """Questions of the lengths that ARC easy and PIQA have, in words."""
    draw = random.Random(0)

    def text(least: int, most: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(least, most)))

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


def family(order: str) -> list[LayerPlan]:
    """The 15 plans from student to teacher."""
    kept = tuple(dict.fromkeys([*range(0, LAYERS, 2), LAYERS - 1]))
    blocks = patchable(kept, LAYERS)
    patched = ORDERS[order](blocks)
    return [plan_of(kept, LAYERS, [i in patched[:n] for i in range(len(kept))]) for n in range(len(blocks) + 1)]


def held_out(members: Any) -> dict[LayerPlan, Any]:
    tokens = torch.randint(1, 2000, (HELD_OUT,), generator=torch.Generator().manual_seed(1)).numpy()
    return window_losses(
        members, tokens=tokens, eos=0, sequence_length=LENGTH, batch_size=BATCH_SIZE, progress=Progress(None)
    )


def per_size(sources: dict[Any, Path], plans: list[LayerPlan], tasks: Path) -> list[dict[str, Any]]:
    found = []
    manager = TaskManager(include_path=str(tasks), include_defaults=False)
    for plan in plans:
        with tempfile.TemporaryDirectory() as folder:
            assemble(sources, plan, Path(folder, "model"), tied=True)
            lm = HFLM(pretrained=f"{folder}/model", dtype="float32", device="cpu", batch_size=BATCH_SIZE)
            results = simple_evaluate(lm, tasks=list(TASKS), task_manager=manager, bootstrap_iters=0, verbosity="ERROR")
            loss = held_out(WholeModel(lm.model.requires_grad_(False)))[WHOLE].loss
        found.append({"held_out": loss, **{name: results["results"][name]["acc,none"] for name in TASKS}})
    return found


def one_pass(sources: dict[Any, Path], plans: list[LayerPlan], tasks: Path) -> list[dict[str, Any]]:
    models = {owner: load_frozen(folder, dtype=torch.float32) for owner, folder in sources.items()}
    members = LayerPlans(models, plans)
    found: dict[LayerPlan, dict[str, Any]] = {p: {"held_out": losses.loss} for p, losses in held_out(members).items()}
    for name in TASKS:
        source = Source("lm_eval_tasks", {"folder": folder_digest(tasks)}, {"folder": str(tasks)})
        lm = Harness(members, tokenizer=sources[TEACHER], batch_size=BATCH_SIZE, progress=Progress(None))
        for plan, results, _ in run_task(lm, measure=LmEval(task=name, bootstrap_iters=0), source=source):
            assert isinstance(results, dict), results
            found[plan][name] = results["results"][name]["acc,none"]
    return [found[plan] for plan in plans]


def main(teacher: Path | None) -> None:
    transformers.utils.logging.set_verbosity_error()
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        if teacher is None:
            make_teacher(folder / "teacher")
        sources = {TEACHER: teacher or folder / "teacher", STUDENT: folder / "student"}
        kept = tuple(dict.fromkeys([*range(0, LAYERS, 2), LAYERS - 1]))
        assemble({TEACHER: sources[TEACHER]}, teacher_layers(kept), sources[STUDENT], tied=True)
        (folder / "tasks").mkdir()
        make_tasks(folder / "tasks")
        weights = sum(file.stat().st_size for source in sources.values() for file in source.glob("*.safetensors"))
        for order in ORDERS:
            plans = family(order)
            started = time.perf_counter()
            shared = one_pass(sources, plans, folder / "tasks")
            passed = time.perf_counter() - started
            started = time.perf_counter()
            alone = per_size(sources, plans, folder / "tasks")
            took = time.perf_counter() - started
            apart = max(abs(one["held_out"] - other["held_out"]) for one, other in zip(shared, alone, strict=True))
            same = all(one[name] == other[name] for one, other in zip(shared, alone, strict=True) for name in TASKS)
            print(f"{order}: {len(plans)} sizes, per size {took:.1f} s, one pass {passed:.1f} s: {took / passed:.2f}x;")
            print(f"  held-out losses differ by {apart:.1e} at most; accuracies {'are the same' if same else 'DIFFER'}")
        alone_there = [
            sys.executable,
            "-m",
            "tests.benchmarks.family",
            "--pass",
            str(sources[TEACHER]),
            str(sources[STUDENT]),
            str(folder / "tasks"),
        ]
        peak = int(subprocess.run(alone_there, check=True, capture_output=True, text=True).stdout.split()[-1])
        print(f"peak memory of a pass: {peak / 2**30:.2f} GiB; teacher and student hold {weights / 2**30:.2f} GiB")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--pass"]:
        teacher_folder, student_folder, tasks_folder = map(Path, sys.argv[2:])
        one_pass({TEACHER: teacher_folder, STUDENT: student_folder}, family("first_to_last"), tasks_folder)
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
    else:
        main(Path(sys.argv[1]) if sys.argv[1:] else None)
