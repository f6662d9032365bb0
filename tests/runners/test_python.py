"""A family in Python: the page docs/python.md, word for word, and what it does not show.

The run: the quickstart's own spec, with a teacher of its shape that was never trained and a student that was moved at
random, and the numbers that a run of the quickstart has measured.
"""

import contextlib
import csv
import doctest
import json
import math
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import boomspec
from boomspec.commands.cli import main as command_line
from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import TaskGraph
from boomspec.core.layers import layers_text, teacher_layers
from boomspec.core.sizes import Lineage, Member
from boomspec.core.tasks import Cell, Evaluate
from boomspec.models.facts import llama_config
from boomspec.plan.run import Run
from boomspec.spec.experiments import load_spec
from boomspec.store import FolderStore
from runners.api.family import Family
from runners.api.origin import FromRun
from runners.api.results import Axis, axis_of, deployment_frame, pareto_frame
from runners.api.sizes import html_table
from runners.assembly.assemble import assemble
from runners.cli.export import export
from runners.modeling import family as modeling
from runners.report.page import publish_run
from runners.report.study import Missing, Row, Study, Text, Trial, Written
from runners.report.study import Size as Place
from tests.messages import wording
from tests.runners.experiments import Experiments, Made
from tests.runners.family import PROVENANCE, artifact, training
from tests.runners.hub_server import hub

ORDER = ["size", "series", "measure", "metric"]
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "python.md"
TASK = "stdlib_continuation"
# Loss and accuracy by model, as the quickstart gives them.
NUMBERS = {
    "student": (3.920203, 0.7375),
    "interpolated 5 layers": (3.897856, 0.7575),
    "interpolated 6 layers": (3.807080, 0.76),
    "interpolated 7 layers": (3.726070, 0.775),
    "teacher": (3.598457, 0.8225),
    "naive_pruning 4 layers": (4.349880, 0.68),
    "naive_pruning 5 layers": (4.134763, 0.735),
    "naive_pruning 6 layers": (3.971856, 0.695),
    "naive_pruning 7 layers": (3.775437, 0.7875),
}
TEMPLATE = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}{{ name or 'assistant' }}:{% endif %}"
)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("clone")
    shutil.copytree(ROOT / "specs", folder / "specs", ignore=shutil.ignore_patterns("*.lock.json", "*.png"))
    graph, store = graph_of(folder), FolderStore(folder / "boomspec-store")
    for node in graph.nodes.values():
        label, _, measure = node.name.removeprefix("evaluate ").rpartition(": ")
        is_number = isinstance(node.task.record, Evaluate) and label in NUMBERS
        if not is_number and node.name not in ("pretrain teacher", "distill student"):
            continue
        with store.workspace(node.task.kind, node.id) as workspace:
            for name, text in (measured(measure, *NUMBERS[label]) if is_number else training()).items():
                (workspace.path / name).write_text(text)
            if node.name == "pretrain teacher":
                save_teacher(workspace.path / "model", node.task.record.architecture)
            elif node.name == "distill student":
                save_student(store.path("pretrain", graph.family.teacher) / "model", workspace.path / "model")
            store.publish(workspace, node.task.kind, node.id, node.task.identity(), PROVENANCE)
    run_folder = store.run_folder(graph.name, graph.id)
    run_folder.mkdir(parents=True)
    graph.write(run_folder / "graph.json")
    return folder


def graph_of(folder: Path) -> TaskGraph:
    return compile_experiments([load_spec(folder / "specs" / "quickstart.yaml")]).graph


def measured(measure: str, loss: float, accuracy: float) -> dict[str, str]:
    if measure == TASK:
        return artifact([(TASK, "acc_mutual_info", accuracy, 0.02, True)], [(TASK, "acc_mutual_info", 0, 1, accuracy)])
    table = [("held_out", "loss", loss, 0.0132, False), ("held_out", "perplexity", math.exp(loss), None, False)]
    return artifact(table, [("held_out", "loss", 0, 1, loss)])


def save_teacher(folder: Path, architecture) -> None:
    torch.manual_seed(0)
    config = {key: value for key, value in llama_config(architecture).items() if key != "model_type"}
    LlamaForCausalLM(LlamaConfig(**config, bos_token_id=0, eos_token_id=0)).eval().save_pretrained(folder)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=["<end>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([Path(json.__file__).read_text(), Path(csv.__file__).read_text()], trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>")
    fast.chat_template = TEMPLATE
    fast.save_pretrained(folder)


def save_student(teacher: Path, folder: Path) -> None:
    assemble({"t": teacher}, teacher_layers((0, 2, 4, 6)), folder, tied=True)
    student = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            parameter.add_(torch.randn_like(parameter) * (0.05 if ".layers." in name else 0.0))
    student.save_pretrained(folder)


@pytest.fixture
def family(clone: Path) -> Family:
    return boomspec.family(clone / "specs" / "quickstart.yaml", store=clone / "boomspec-store")


def test_the_page_shows_what_is_printed(clone, capsys):
    blocks = re.findall(r"^```pycon\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    assert len(blocks) >= 6
    case = doctest.DocTestParser().get_doctest("\n".join(blocks), {}, "python.md", str(PAGE), 0)
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    with contextlib.chdir(clone):
        runner.run(case)
    assert runner.summarize(verbose=False).failed == 0, capsys.readouterr().out


def test_no_weights_are_read_and_no_torch_imported_for_sizes_and_results(clone):
    code = """
import sys, boomspec
family = boomspec.family("specs/quickstart.yaml")
family.results, family.pareto("memory", "held_out"), repr(family), family._repr_html_()
print([name for name in ("torch", "transformers", "ray") if name in sys.modules])
"""
    environment = {"PYTHONPATH": str(ROOT), "PATH": ""}
    done = subprocess.run([sys.executable, "-c", code], cwd=clone, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_the_student_is_had_without_the_teacher_and_each_is_read_once(family, monkeypatch):
    read = []
    load = modeling.load
    monkeypatch.setattr(
        modeling, "load", lambda folder, **options: read.append(folder.parts[-3]) or load(folder, **options)
    )
    assert family["student"].model.config.num_hidden_layers == 4
    assert read == ["distill"]
    for size in family:
        assert size.model.config.num_hidden_layers == size.layers
        assert sum(p.numel() for p in size.model.parameters()) == size.parameters
    assert read == ["distill", "pretrain"]
    assert family.student is family.student
    with torch.no_grad():
        tokens_BT = torch.arange(12)[None]
        assert torch.equal(family["student"].model(tokens_BT).logits, family.student(tokens_BT).logits)


def test_the_numbers_are_those_of_the_reports_results(clone, family, tmp_path, no_figures):
    graph = graph_of(clone)
    publish_run(graph, FolderStore(clone / "boomspec-store"), tmp_path, {})
    with (tmp_path / "report" / "results.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    frame = family.results
    assert list(frame.columns) == ["size", *lines[0]]
    assert len(frame) == len(lines) == 3 * len(NUMBERS)
    for line, row in zip(lines, frame.to_dict("records"), strict=True):
        assert row["size"] == f"{line['layers']} layers"
        for name in ("series", "measure", "metric"):
            assert row[name] == line[name]
        for name in ("layers", "parameters", "bytes", "value"):
            assert row[name] == float(line[name])
        assert math.isnan(row["stderr"]) if line["stderr"] == "" else row["stderr"] == float(line["stderr"])
        assert str(row["higher_is_better"]) == line["higher_is_better"]


def test_a_run_is_found_by_its_spec_its_folder_and_its_name(clone, monkeypatch):
    monkeypatch.chdir(clone)
    graph, store = graph_of(clone), FolderStore(clone / "boomspec-store")
    folder = store.run_folder(graph.name, graph.id)
    frames = [boomspec.family(run).results for run in ("specs/quickstart.yaml", folder, folder.name)]
    assert frames[0].equals(frames[1])
    assert frames[0].equals(frames[2])


def test_a_family_in_one_folder_is_the_same_family(clone, family, tmp_path):
    export(graph_of(clone), FolderStore(clone / "boomspec-store"), None, tmp_path / "family", shared=True)
    read = boomspec.family(tmp_path / "family")
    assert repr(read) == repr(family)
    own, numbers = ([*frame.sort_values(ORDER).itertuples(index=False)] for frame in (read.results, family.results))
    assert list(map(str, own)) == list(map(str, numbers))
    assert [size.memory(100, 2) for size in read] == [size.memory(100, 2) for size in family]
    axes = "memory", "held_out perplexity"
    assert read.pareto(*axes).equals(family.pareto(*axes))
    assert read.generate("def f(", max_tokens=9) == family.generate("def f(", max_tokens=9)
    assert read.model(["s0", "t1"]).config.num_hidden_layers == 2
    with torch.no_grad():
        tokens_BT = torch.arange(12)[None]
        model = boomspec.load(tmp_path / "family", "80%", dtype="float32")
        assert torch.equal(model(tokens_BT).logits, family["80%"].model(tokens_BT).logits)


def test_a_family_on_the_hub_is_read_as_far_as_it_is_needed(clone, family, tmp_path):
    export(graph_of(clone), FolderStore(clone / "boomspec-store"), None, tmp_path / "family", shared=True)
    code = """
import sys, boomspec
family = boomspec.family("maker/family")
print(family["80%"].memory(100), family.pareto("memory", "held_out")["size"].tolist())
print(family["student"].model.config.num_hidden_layers)
"""
    with hub("maker/family", tmp_path / "family") as (endpoint, log):
        variables = {"HF_ENDPOINT": endpoint, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
        command, environment = [sys.executable, "-c", code], {**os.environ, **variables}
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    sizes = family.pareto("memory", "held_out")["size"].tolist()
    assert done.stdout.splitlines() == [f"{family['80%'].memory(100)} {sizes}", "4"]
    asked = [line for line in log if "/shards/" in line and line.startswith("GET")]
    assert {line.split("/shards/")[1].split("-")[0] for line in asked if "bytes=" not in line} == {"student"}
    assert any("/shards/teacher" in line and "bytes=" in line for line in asked)  # its header


def test_sizes_are_found_by_number_slice_and_name(family):
    assert len(family) == 5
    assert [size.label for size in family] == [f"{n} layers" for n in range(4, 9)]
    assert family[0] is family["student"] is family["4 layers"]
    assert family[-1] is family["teacher"] is family["100%"]
    assert [size.layers for size in family[1:3]] == [5, 6]
    assert family["79%"].layers == 6
    assert layers_text(family["6 layers"].plan) == "s0 s1 t4 t5 t6 t7"
    assert [size.kind for size in family] == ["student", *["interpolated"] * 3, "teacher"]
    assert "80%" in family
    assert family[1] in family
    assert "9 layers" not in family
    assert 3 not in family
    with pytest.raises(IndexError, match="this family has 5"):
        family[5]


def test_memory_is_that_of_weights_and_of_keys_and_values(family):
    heads_and_width = 2 * 64 * 4  # keys and values, hidden_size, bytes of fp32
    for size in family:
        assert size.memory(100, batch=3) == size.bytes + 3 * 100 * size.layers * heads_and_width
        assert size.memory() == size.memory(family.teacher.config.max_position_embeddings)
    with pytest.raises(BoomspecError, match=r"context=4,096: the model has \d+ positions"):
        family[0].memory(4096)
    with pytest.raises(BoomspecError, match="batch=0"):
        family[0].memory(100, batch=0)


def test_text_is_that_of_transformers_and_of_the_chat_template(family):
    tokenizer, size = family.tokenizer, family["6 layers"]
    tokens_BT = torch.tensor([tokenizer("def f(")["input_ids"]])
    expected_BT = size.model.generate(tokens_BT, max_new_tokens=9, do_sample=False, pad_token_id=0)
    text = family.generate("def f(", size="80%", max_tokens=9)
    assert text == tokenizer.decode(expected_BT[0, tokens_BT.shape[1] :], skip_special_tokens=True)
    assert size.generate("def f(", max_tokens=9) == text
    assert family.generate("def f(", max_tokens=9)["6 layers"] == text
    asked = {"max_tokens": 9, "size": -1, "temperature": 1.5}
    chat = family.generate("user: hello\nassistant:", **asked)
    assert family.generate("hello", chat=True, **asked) == chat
    assert family.generate([{"role": "user", "content": "hello"}], **asked) == chat
    assert family.generate("hello", chat=True, **asked | {"seed": 1}) != chat
    system = family.generate("system: brief\nuser: hello\nbot:", **asked)
    assert family.generate("hello", chat=True, system="brief", template={"name": "bot"}, **asked) == system


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_p": 0.9}, wording("python.cuts_what_is_drawn")),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p=1.5"),
        ({"temperature": -1}, "temperature=-1"),
        ({"max_tokens": 0}, "max_tokens=0"),
        ({"max_tokens": 5000}, wording("python.positions")),
        ({"system": "brief"}, "say chat=True"),
        ({"prompt": [{"role": "user", "content": "x"}], "chat": False}, wording("python.messages_are_for_a_chat")),
        ({"prompt": ""}, "has no tokens"),
        ({"size": "3 layers"}, wording("python.no_such_size")),
    ],
)
def test_what_cannot_be_written_is_an_error(family, options, message):
    with pytest.raises(BoomspecError, match=message):
        family.generate(**{"prompt": "def f(", "size": "80%", "max_tokens": 2} | options)


def test_a_tokenizer_without_a_chat_template_cannot_chat(family):
    family.tokenizer.chat_template = None
    with pytest.raises(BoomspecError, match="has no chat template"):
        family.generate("hello", chat=True)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        (["memory", "gsm9k"], wording("python.nothing_was_measured")),
        (["held_out f1"], "has no metric 'f1'"),
        ([], "at least one axis"),
    ],
)
def test_what_was_not_measured_is_no_axis(family, axes, message):
    with pytest.raises(BoomspecError, match=message):
        family.pareto(*axes)


def test_what_has_not_been_measured_yet_is_said_to_be_so():
    cell = Cell(series="student", layers=1, parameters=1, bytes=1, measure="gsm8k", input="student/gsm8k")
    lost = Missing(cell, Place(1), "gsm8k", "it has not been run")
    study = Study([Trial("", {}, {cell: Place(1)}, (), (lost,))], {})
    with pytest.raises(BoomspecError, match=wording("python.no_result_yet")):
        axis_of(study, "gsm8k", lambda cell: "1 layers")


def frontier(*values: tuple[float, float]) -> list[int]:
    """By hand: fewer of the first, more of the second."""
    return [
        i
        for i, (cost, gain) in enumerate(values)
        if not any(c <= cost and g >= gain and (c < cost or g > gain) for c, g in values)
    ]


@pytest.mark.parametrize("gains", [(1, 2, 3, 4), (4, 3, 2, 1), (1, 3, 2, 3), (2, 2, 2, 2), (1, 4, 4, 2)])
def test_sizes_that_no_other_beats_are_kept(gains):
    labels = [f"{n} layers" for n in range(4)]
    cost = Axis("memory", dict(zip(labels, (1.0, 2.0, 3.0, 4.0), strict=True)), higher=False)
    gain = Axis("acc", dict(zip(labels, map(float, gains), strict=True)), higher=True)
    sizes = {label: SimpleNamespace(layers=n, parameters=n) for n, label in enumerate(labels)}
    kept = pareto_frame([cost, gain], labels, sizes, every=False)
    assert list(kept["layers"]) == frontier(*zip((1, 2, 3, 4), gains, strict=True))
    whole = pareto_frame([cost, gain], labels, sizes, every=True)
    assert [row["size"] for row in whole.to_dict("records") if not row["dominated_by"]] == list(kept["size"])
    twin = Axis("acc", dict.fromkeys(labels, 1.0), higher=True)
    assert len(pareto_frame([twin], labels, sizes, every=False)) == 4  # equals do not beat each other
    assert len(pareto_frame([Axis("acc", {"1 layers": 1.0}, higher=True)], labels, sizes, every=False)) == 1


def test_speed_and_texts_are_frames_and_speed_is_an_axis():
    cells = [
        Cell(series=series, layers=n, parameters=n, bytes=n, measure=measure, input=f"{series} {n}/{measure}")
        for series, n in (("student", 1), ("teacher", 2), ("naive_pruning", 1))
        for measure in ("speed", "texts")
    ]
    fast = [cell for cell in cells if cell.measure == "speed"]

    def speeds(*machines: str) -> tuple[Row, ...]:
        numbers = zip(fast, (9.0, 3.0, 10.0), machines, strict=True)
        return tuple(
            Row(cell, Place(cell.layers), Path(), machine, "speed", "decode_tokens_per_second", value, None, True)
            for cell, value, machine in numbers
        )

    written = Written(cells[1], Place(1), False, (Text("p", 0, "text", 2, True),))

    def study(*machines: str) -> Study:
        return Study([Trial("", {}, {c: Place(c.layers) for c in cells}, (), (), speeds(*machines), (written,))], {})

    def label(cell: Cell) -> str:
        return f"{cell.layers} layers"

    one = study("cpu", "cpu", "cpu")
    frame = deployment_frame(one, "deployment", label)
    assert list(frame["size"]) == ["1 layers", "2 layers", "1 layers"]
    assert list(frame["value"]) == [9.0, 3.0, 10.0]
    assert deployment_frame(one, "texts", label)[["size", "prompt", "text"]].values.tolist() == [
        ["1 layers", "p", "text"]
    ]
    for name in ("decode_tokens_per_second", "speed decode_tokens_per_second"):
        axis = axis_of(one, name, label)
        assert (axis.values, axis.higher) == ({"1 layers": 9.0, "2 layers": 3.0}, True)
    with pytest.raises(BoomspecError, match=wording("python.two_machines")):
        axis_of(study("cpu", "gpu", "cpu"), "decode_tokens_per_second", label)
    assert deployment_frame(Study([], {}), "texts", label).empty


def test_one_experiment_of_several_has_its_own_results(tmp_path):
    store = FolderStore(tmp_path / "store")
    made = Experiments(store, Made({"variant": "base"}), Made({"variant": "worse"}, worse=0.5))
    graph, member = made.graph, Member(0, teacher_layers(range(8)), 8000, 32000, tied=False)
    lineage = Lineage(
        graph.nodes[made.node.task.inputs["base/teacher 8/held_out"]].task.inputs["model"], "s", (0,), member, (member,)
    )
    graph = replace(graph, experiments=tuple(replace(e, family=lineage) for e in graph.experiments))
    for label, loss in (("base", 3.75), ("worse", 4.25)):
        run = Run(graph.only(label), store, Path("run"), graph)
        frame = Family(FromRun(run)).results
        own = frame[(frame.series == "student") & (frame.metric == "loss")]
        assert list(own.value) == [loss]
        assert list(own["size"]) == ["4 layers"]


@pytest.mark.parametrize("arguments", [("load", "80%"), ("family",)])
def test_without_the_runners_the_functions_say_what_to_install(clone, monkeypatch, arguments):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    name, *size = arguments
    with pytest.raises(BoomspecError, match=wording("python.not_installed")) as caught:
        getattr(boomspec, name)(clone / "specs" / "quickstart.yaml", *size)
    assert str(caught.value.hint).startswith("pip install -c")  # from this clone
    done = CliRunner().invoke(command_line, ["export", str(clone / "specs" / "quickstart.yaml"), "80%", "model"])
    assert done.exit_code == 2
    assert wording("python.not_installed") in done.output


def test_one_axis_is_drawn_against_another(family, tmp_path):
    plot = family.plot("memory", "held_out")
    assert list(plot.data["held_out"]) == [round(NUMBERS[name][0], 6) for name in list(NUMBERS)[:5]]
    assert list(plot.data["memory"]) == [size.memory() for size in family]
    svg = plot._repr_svg_()
    for shown in (*(size.label for size in family), "held_out ↓", "memory", "MiB"):
        assert shown in svg
    plot.save(tmp_path / "figure.png")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.pdf", "figure.png", "figure.svg"]
    assert "dominated_by" not in plot.data
    with pytest.raises(BoomspecError, match=wording("python.nothing_was_measured")):
        family.plot("memory", "gsm9k")


def test_a_size_is_shown_as_a_table_in_a_notebook(family):
    page = family._repr_html_()
    assert page.count("<tr>") == 6
    assert "<td>348,992</td>" in page
    assert family["80%"]._repr_html_().count("<tr>") == 2
    assert html_table([("<b>",)]).count("<td>&lt;b&gt;</td>") == 1
