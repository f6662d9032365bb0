"""Students of post-trained teachers that others have published, in the shape of ADAPT's (arXiv 2608.22854).

Teacher and student are chat models with tied embeddings, the student names its layers in student_config.json. It has no
generation config, and a tokenizer that is the teacher's, or none, or one with another chat template.
"""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

import boomspec
from boomspec.compile.compiler import compile_experiments
from boomspec.core.graph import TaskGraph
from boomspec.core.layers import layers_text, teacher_layers
from boomspec.models.folder import is_tokenizer_file
from boomspec.spec.experiments import load_spec
from boomspec.store import FolderStore
from runners.assembly.assemble import assemble
from tests.runners import small, tiny
from tests.runners.lm_eval_tasks import WRITTEN, chat_model, row, task

COPIED, PRUNED = [0, 2, 4, 5], [1, 3]  # every second layer, and the last two
SPEC = """\
boomspec: 1
name: published
teacher: {model: ./teacher}
student: {model: ./student}
interpolate: {order: last_to_first, singletons: reference, sizes: all}
evaluate:
  tasks: [own]
  tasks_folder: tasks
  chat: CHAT
  bootstrap_iters: 0
  precision: fp32
  texts: {prompts: ["11 12 13"], max_tokens: 4}
execution: {store: store}
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher, and a student that was moved away from it at random."""
    folder = tmp_path_factory.mktemp("pair")
    shutil.move(chat_model(folder / "made") / "model", folder / "teacher")
    tiny.model("qwen3", layers=6, tie_word_embeddings=True, use_sliding_window=False).save_pretrained(
        folder / "teacher"
    )
    assemble({"t": folder / "teacher"}, teacher_layers(COPIED), folder / "student", tied=True)
    student = AutoModelForCausalLM.from_pretrained(folder / "student")
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    student.save_pretrained(folder / "student")
    (folder / "student" / "generation_config.json").unlink()
    mapping = {"pruned_teacher_layers": PRUNED, "copied_teacher_layers": COPIED}
    (folder / "student" / "student_config.json").write_text(json.dumps(mapping))
    (folder / "tasks").mkdir()
    task(folder / "tasks", [row(3 + i % 3, answer=str(i)) for i in range(6)], WRITTEN)
    return folder


def with_tokenizer(pair: Path, folder: Path, which: str, *, chat: bool = True) -> TaskGraph:
    shutil.copytree(pair, folder, dirs_exist_ok=True)
    if which == "none":
        for path in [path for path in (folder / "student").iterdir() if is_tokenizer_file(path.name)]:
            path.unlink()
    if which == "other":
        tokenizer = AutoTokenizer.from_pretrained(folder / "student")
        tokenizer.chat_template = "59 {{ messages[0].content }}"
        tokenizer.save_pretrained(folder / "student")
    (folder / "spec.yaml").write_text(SPEC.replace("CHAT", "true" if chat else "false"))
    return compile_experiments([load_spec(folder / "spec.yaml")]).graph


def measured(folder: Path, graph: TaskGraph) -> dict[str, tuple[list[dict[str, object]], str]]:
    """By the model's label its samples and its text."""
    store, found = FolderStore(folder / "store"), {}
    small.execute(graph, store)
    names = {node.name: store.path(node.task.kind, node.id) for node in graph.nodes.values()}
    for name, path in names.items():
        if name.startswith("evaluate "):
            label = name.removeprefix("evaluate ").removesuffix(": own")
            samples = [json.loads(line) for line in (path / "samples.jsonl").read_text().splitlines()]
            texts = json.loads((names[f"texts of {label}"] / "texts.json").read_text())
            assert texts["chat"] is True
            found[label] = samples, texts["texts"][0]["text"]
    return found


@pytest.fixture(scope="module")
def same(pair: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, TaskGraph]:
    folder = tmp_path_factory.mktemp("same")
    return folder, with_tokenizer(pair, folder, "same")


def test_every_size_is_asked_the_same_prompts_whatever_tokenizer_lies_beside_the_student(pair, same, tmp_path):
    expected = measured(*same)
    assert set(expected) == {"student", "interpolated 4 layers", "interpolated 5 layers", "teacher"}
    prompts = {label: [sample["arguments"][0][0] for sample in samples] for label, (samples, _) in expected.items()}
    assert all(asked == prompts["teacher"] for asked in prompts.values())
    assert prompts["student"][0].startswith("<bos> 52 ")  # the teacher's template
    assert len({samples[0]["resps"][0][0] for samples, _ in expected.values()}) > 1
    for which in ("none", "other"):
        found = measured(tmp_path / which, with_tokenizer(pair, tmp_path / which, which))
        for label, (samples, text) in expected.items():
            own, own_text = found[label]
            assert [sample["arguments"] for sample in own] == [sample["arguments"] for sample in samples], (
                which,
                label,
            )
            assert [sample["resps"] for sample in own] == [sample["resps"] for sample in samples], (which, label)
            assert own_text == text


def test_only_a_student_whose_tokenizer_is_not_the_teacher_s_is_given_one(pair, same, tmp_path):
    graphs = {which: with_tokenizer(pair, tmp_path / which, which, chat=False) for which in ("same", "none", "other")}
    for which, graph in graphs.items():
        given = {node.name for node in graph.nodes.values() if "tokenizer" in node.task.inputs}
        assert given == (set() if which == "same" else {"evaluate student: own", "texts of student"})
        (source,) = [source for source in graph.sources.values() if source.kind == "tokenizer"] or [None]
        assert source is None or source.location["folder"].endswith("teacher")


def test_the_family_of_a_published_student_is_one_like_any_other(same):
    folder, graph = same
    small.execute(graph, FolderStore(folder / "store"))
    family = boomspec.family(folder / "spec.yaml", store=folder / "store")
    assert [layers_text(size.plan) for size in family] == ["s0 s1 t4 t5", "s0 t2 t3 t4 t5", "t0 t1 t2 t3 t4 t5"]
    assert family.lineage.kept == tuple(COPIED)
    assert [size.model.config.tie_word_embeddings for size in family] == [False, False, True]
    assert set(family.results["size"]) == {"student", *(size.label for size in family)}
    texts = family.texts.set_index("size")["text"]
    for size in (family["student"], *family):
        assert size.generate("11 12 13", chat=True, max_tokens=4) == texts[size.label]
        assert sum(parameter.numel() for parameter in size.model.parameters()) == size.parameters
