"""Exported sizes: the folder, its card, and what `boomspec.load` and `boomspec.family` make of the same run.

The run: a real teacher in a folder, a spec compiled against it, a student that was moved at random in the place of
the distilled one, and evaluations of three models with numbers made up.
"""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner
from huggingface_hub.repocard_data import eval_results_to_model_index, model_index_to_eval_results
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import boomspec
from boomspec.commands.cli import main as command_line
from boomspec.compile.compiler import compile_experiments
from boomspec.core.errors import BoomspecError
from boomspec.core.graph import Node, Source, TaskGraph
from boomspec.core.layers import layers_text, read_layers, teacher_layers
from boomspec.core.tasks import Cell, Conversations, Evaluate, Tokenize, Transfer
from boomspec.models.checkpoint import read_checkpoint
from boomspec.models.family_file import size_folders
from boomspec.spec.experiments import load_spec
from boomspec.store import FolderStore, Store
from runners.assembly.assemble import assemble
from runners.assembly.gguf_file import check_known
from runners.cli.export import brought_template, export, main
from runners.modeling.family_folder import open_family_folder
from runners.modeling.models import lineage_of
from runners.report.card_metadata import evaluation_results, front_matter
from runners.report.family_card import family_card
from runners.report.model_card import fence, front_matter_of
from runners.report.study import Row, Size
from tests.messages import wording
from tests.runners import here, tiny
from tests.runners.family import PROVENANCE, artifact

LAYERS, KEPT = 6, (0, 2, 4)
INPUTS_BT = torch.arange(2 * 9).reshape(2, 9) % tiny.VOCABULARY
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"
SPEC = """\
# Does it grow? ```no fence```
boomspec: 1
name: grown
teacher: {model: base-6L}
student: {keep: [0, 2, 4]}
data: {files: "*.txt", sequence_length: 16, held_out: {every: 4}}
distill: {tokens: 2048, batch_tokens: 256, optimizer: {lr: 0.00123}, precision: fp32}
interpolate: {sizes: [5 layers]}
evaluate: {held_out: {}, precision: fp32}
execution: {store: store}
"""


@dataclass
class Made:
    folder: Path
    spec: Path
    graph: TaskGraph
    store: Store

    def publish(self, node: Node) -> Path:
        """The payload of a node is what `tests.runners` makes up for it."""
        with self.store.workspace(node.task.kind, node.id) as workspace:
            if node.name == "distill student":
                save_student(self.folder / "base-6L", workspace.path / "model")
            else:
                loss = {"evaluate student: held_out": 3.75, "evaluate teacher: held_out": 3.25}.get(node.name, 3.5)
                for name, text in artifact(
                    [("held_out", "loss", loss, 0.02, False)], [("held_out", "loss", 0, 1, loss)]
                ).items():
                    (workspace.path / name).write_text(text)
            return self.store.publish(workspace, node.task.kind, node.id, node.task.identity(), PROVENANCE)


def save_student(teacher: Path, folder: Path) -> None:
    assemble({"t": teacher}, teacher_layers(KEPT), folder, tied=True)
    student = AutoModelForCausalLM.from_pretrained(folder)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    student.save_pretrained(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Made:
    folder = tmp_path_factory.mktemp("export")
    for i in range(8):
        (folder / f"{i}.txt").write_text(f"document {i}\n" * 40)
    base = folder / "base-6L"
    tiny.model("llama", layers=LAYERS, tie_word_embeddings=True).save_pretrained(base)
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())[: tiny.VOCABULARY - 1]
    words = Tokenizer(models.BPE({token: i for i, token in enumerate(["<eos>", *letters])}, []))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    named = {"eos_token": "<eos>", "chat_template": TEMPLATE}
    PreTrainedTokenizerFast(tokenizer_object=words, **named).save_pretrained(base)
    (base / "README.md").write_text(
        "---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\nlanguage: [en, de]\n---\n# Base\n"
    )
    spec = folder / "spec.yaml"
    spec.write_text(SPEC)
    graph = compile_experiments([load_spec(spec)]).graph
    made = Made(folder, spec, graph, FolderStore(folder / "store"))
    for node in graph.nodes.values():
        if node.name == "distill student" or isinstance(node.task.record, Evaluate):
            made.publish(node)
    run_folder = made.store.run_folder(graph.name, graph.id)
    run_folder.mkdir(parents=True)
    graph.write(run_folder / "graph.json")
    return made


def plan(made: Made, size: str) -> str:
    assert made.graph.family is not None
    return layers_text(made.graph.family.pick(size).plan)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(INPUTS_BT).logits


def call(*arguments: object):
    return CliRunner().invoke(command_line, [str(a) for a in arguments], catch_exceptions=False)


def test_the_command_writes_a_folder_that_transformers_loads(made, tmp_path):
    target = tmp_path / "new" / "model"
    command = [sys.executable, "-m", "boomspec.commands.cli", "export", made.spec, "4 layers", target, "--json"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    written = json.loads(done.stdout)
    assert (written["layers"], written["plan"]) == (4, "s0 s1 t4 t5")  # the spec asks for 5 layers only
    model = AutoModelForCausalLM.from_pretrained(target)
    assert sum(p.numel() for p in model.parameters()) == written["parameters"]
    # What else reads Hugging Face folders (vLLM, which is not here) goes by these.
    assert json.loads((target / "config.json").read_text())["architectures"] == [type(model).__name__]
    assert set(read_checkpoint(target)) == set(model.state_dict())
    folders = {"t": made.folder / "base-6L", "s": made.store.path("distill", made.graph.family.student) / "model"}
    assemble(folders, read_layers("s0 s1 t4 t5"), tmp_path / "expected", tied=False)
    assert torch.equal(logits(model), logits(AutoModelForCausalLM.from_pretrained(tmp_path / "expected")))
    assert AutoTokenizer.from_pretrained(target).chat_template == TEMPLATE
    assert (target / "generation_config.json").is_file()
    assert target.stat().st_mode & 0o777 == 0o755
    assert [path.name for path in target.parent.iterdir()] == ["model"]


def test_every_size_is_written_at_once_each_as_it_would_be_alone(made, tmp_path):
    export(made.graph, made.store, None, tmp_path / "all")
    members = made.graph.family.members
    names = [f"{member.layers}-layers" for member in members]
    assert sorted(path.name for path in (tmp_path / "all").iterdir()) == [*names, "README.md", "index.json"]
    for member in members:
        alone, together = tmp_path / f"{member.layers}", tmp_path / "all" / f"{member.layers}-layers"
        export(made.graph, made.store, layers_text(member.plan), alone)
        models = [AutoModelForCausalLM.from_pretrained(path) for path in (together, alone)]
        assert torch.equal(*map(logits, models))
        assert models[0].config.num_hidden_layers == member.layers
        assert f"{member.layers} layers" in (together / "README.md").read_text()
    with pytest.raises(BoomspecError, match="is not empty"):
        export(made.graph, made.store, None, tmp_path / "all")


def test_the_card_and_the_index_of_all_sizes_say_what_each_is_and_what_was_measured(made, tmp_path):
    export(made.graph, made.store, None, tmp_path / "all")
    written = json.loads((tmp_path / "all" / "index.json").read_text())
    assert [size["path"] for size in written["sizes"]] == ["3-layers", "4-layers", "5-layers", "6-layers"]
    losses = [[result["value"] for result in size["results"]] for size in written["sizes"]]
    assert losses == [[3.75], [], [3.5], [3.25]]
    assert (written["base_model"], written["license"]) == ("base-6L", "other")
    card = (tmp_path / "all" / "README.md").read_text()
    assert front_matter_of(card)["base_model"] == "base-6L"
    assert front_matter_of(card)["license_name"] == "tiny"
    listed = yaml.safe_load(card.split("---")[1])
    assert listed["base_model_relation"] == "merge"
    assert listed["model-index"] == [
        {"name": f"grown, {size}-layers", "results": [held_out_result(loss)]}
        for size, loss in ((3, 3.75), (5, 3.5), (6, 3.25))  # 4 layers were not measured
    ]
    lines = [line for line in card.splitlines() if line.startswith("| `")]
    assert [line.split("|")[-2].strip() for line in lines] == ["3.750 ± 0.020", "", "3.500 ± 0.020", "3.250 ± 0.020"]
    for size, line in zip(written["sizes"], lines, strict=True):
        assert f"`{size['path']}` | {size['layers']} | {size['parameters']:,} |" in line
        AutoModelForCausalLM.from_pretrained(tmp_path / "all", subfolder=size["path"])  # as the card says


def test_a_family_in_one_folder_needs_neither_its_spec_nor_its_store(made, tmp_path):
    export(made.graph, made.store, None, tmp_path / "family", shared=True)
    read = open_family_folder(tmp_path / "family")
    family = boomspec.family(made.spec)
    for member in family.lineage.members:
        size = f"{member.layers} layers"
        assert torch.equal(logits(read.model(size)), logits(family.model(size)))
    assert AutoTokenizer.from_pretrained(tmp_path / "family").chat_template == TEMPLATE
    values = {result["plan"]: result["value"] for result in read.weights.file.results}
    assert values == {"s0 s1 s2": 3.75, "s0 t2 t3 t4 t5": 3.5, "t0 t1 t2 t3 t4 t5": 3.25}
    export(made.graph, made.store, None, tmp_path / "all")
    sizes = [
        sum(f.stat().st_size for f in path.rglob("*.safetensors")) for path in (tmp_path / "family", tmp_path / "all")
    ]
    assert sizes[0] < 0.6 * sizes[1]
    card = (tmp_path / "family" / "README.md").read_text()
    assert 'boomspec.family("family")' in card
    assert "`5-layers`" in card
    with pytest.raises(BoomspecError, match="is not empty"):
        export(made.graph, made.store, None, tmp_path / "family", shared=True)
    export(made.graph, made.store, None, tmp_path / "family", shared=True, force=True)


def test_every_size_is_written_as_a_gguf_file_with_one_card(made, tmp_path):
    export(made.graph, made.store, None, tmp_path / "files", gguf="stored")
    names = [f"grown-{size}-layers-f32.gguf" for size in (3, 4, 5, 6)]
    assert sorted(path.name for path in (tmp_path / "files").iterdir()) == ["README.md", *names, "index.json"]
    family = boomspec.family(made.spec)
    for name, member in zip(names, family.lineage.members, strict=True):
        read = AutoModelForCausalLM.from_pretrained(tmp_path / "files", gguf_file=name, dtype=torch.float32)
        assert torch.equal(logits(read), logits(family.model(f"{member.layers} layers")))
    assert [size["path"] for size in json.loads((tmp_path / "files" / "index.json").read_text())["sizes"]] == names
    card = (tmp_path / "files" / "README.md").read_text()
    assert front_matter_of(card)["library_name"] == "gguf"
    assert front_matter_of(card)["license"] == "other"
    assert f'gguf_file="{names[0]}"' in card
    export(made.graph, made.store, plan(made, "5 layers"), tmp_path / "one", gguf="q8_0")
    assert sorted(path.name for path in (tmp_path / "one").iterdir()) == ["README.md", "grown-5-layers-q8_0.gguf"]
    export(made.graph, made.store, plan(made, "5 layers"), tmp_path / "one", gguf="f16", force=True)
    assert (tmp_path / "one" / "grown-5-layers-f16.gguf").is_file()


def test_the_card_of_a_family_says_where_no_licence_was_found(made):
    card = made.folder / "base-6L" / "README.md"
    text = card.read_text()
    card.unlink()
    try:
        sizes = size_folders(made.graph.family)
        written = family_card(made.graph, made.store, sizes, [], kind="family", name="family")
    finally:
        card.write_text(text)
    assert wording("export.licence_not_found") in written
    assert "license" not in front_matter_of(written)
    assert wording("export.no_size_measured") in written


def test_without_its_package_gguf_is_an_error_that_names_the_extra(made, tmp_path, monkeypatch):
    for name in [name for name in sys.modules if name.split(".")[0] == "gguf" or "gguf" in name.split(".")[-1]]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(BoomspecError, match=wording("export.gguf_not_installed")) as found:
        export(made.graph, made.store, None, tmp_path / "files", gguf="f32")
    assert "boomspec[gguf]" in str(found.value.hint)
    assert list(tmp_path.iterdir()) == []


def test_a_family_that_is_not_known_to_come_out_right_is_refused(tmp_path):
    with pytest.raises(BoomspecError, match=wording("export.not_written_as_gguf")) as found:
        check_known("gpt_neox", "pythia")
    assert "llama, mistral, qwen2, qwen3" in str(found.value.hint)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--family", "--gguf", "f16", "x"], wording("export.gguf_or_family")),
        (["--all", "--family", "x"], wording("export.one_of_two")),
        (["--all", "3 layers", "x"], wording("export.option_takes_a_folder", option="--all", count=2)),
        (["--family"], wording("export.option_takes_a_folder", option="--family", count=0)),
        (["3 layers"], wording("export.size_and_folder", count=1)),
    ],
)
def test_a_call_that_means_nothing_is_an_error(made, arguments, message):
    result = call("export", made.spec, *arguments)
    assert result.exit_code == 2
    assert message in result.output


def held_out_result(value: float) -> dict[str, object]:
    return {
        "task": {"type": "text-generation"},
        "dataset": {"type": "held_out", "name": "held-out documents of the training data"},
        "metrics": [{"type": "loss", "name": "loss", "value": value}],
    }


def test_the_card_says_what_the_model_is_and_how_it_was_made(made, tmp_path):
    export(made.graph, made.store, plan(made, "5 layers"), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert front_matter_of(card) == {
        "base_model": "base-6L",
        "base_model_relation": "merge",
        "license": "other",
        "license_name": "tiny",
        "license_link": "LICENSE",
        "language": ["en", "de"],
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["boomerang-distillation", "model-interpolation", "boomspec"],
        "model-index": [{"name": "grown, 5 layers", "results": [held_out_result(3.5)]}],
    }
    parameters = sum(p.numel() for p in AutoModelForCausalLM.from_pretrained(tmp_path / "model").parameters())
    for text in (
        "# grown, 5 layers",
        f"{parameters:,}",
        "`s0 t2-5`",
        "lr: 0.00123",
        "| student | this model | teacher |",
        "| held out | loss ↓ | 3.750 ± 0.020 | 3.500 ± 0.020 | 3.250 ± 0.020 |",
        f"````yaml\n{SPEC.strip()}\n````",  # a fence longer than the one inside
        "torch 2.13.0",
        "abc123",
        made.graph.id,
        made.graph.family.student,
    ):
        assert text in card, card
    assert "not been evaluated" not in card


def test_the_metadata_names_every_data_set_and_results_as_the_hub_reads_them(made, tmp_path):
    chat = {"hub": "owner/chat", "revision": "0" * 40, "config": None, "split": "train"}
    named = [Source("hub_dataset", chat | more, {}) for more in ({}, {"split": "more"}, {"hub": "owner/pile"})]
    graph = replace(made.graph, sources=made.graph.sources | {source.id: source for source in named})
    sizes = {"grown": made.graph.family.pick("5 layers")}
    found = yaml.safe_load(front_matter(graph, made.store, sizes, {}, library="transformers"))
    assert found["datasets"] == ["owner/chat", "owner/pile"]
    assert "base_model_relation" not in found  # there is no base
    base = {"base_model": "a/b"}
    for size, relation in (("student", "finetune"), ("teacher", None), ("5 layers", "merge")):
        member = {"grown": made.graph.family.pick(size)}
        found = yaml.safe_load(front_matter(graph, made.store, member, base, library="transformers"))
        assert found.get("base_model_relation") == relation
    (tmp_path / "artifact.json").write_text(json.dumps({"task": {"inputs": {}}}))
    arc = {"dataset_path": "allenai/ai2_arc", "dataset_name": "ARC-Easy", "test_split": "test"}
    local = {"dataset_path": "json", "dataset_kwargs": {"data_files": "own.jsonl"}, "test_split": "test"}
    content = {"configs": {"arc_easy": arc, "own": local}, "n-shot": {"arc_easy": 5, "own": 0}}
    (tmp_path / "results.json").write_text(json.dumps(content))
    rows = []
    for measure, task in (("arc_easy", None), ("arc_easy (chat)", "arc_easy"), ("own", None), ("group", None)):
        known = {"parameters": 1, "bytes": 1, "input": "0"}
        cell = Cell(series="interpolated", layers=5, measure=measure, task=task, **known)
        for metric, value in (("acc", 0.25), ("exact_match,strict", 0.5)):
            rows.append(Row(cell, Size(5), tmp_path, "", measure, metric, value, None, True))
    written = evaluation_results(made.graph, rows, "text-generation")
    name, read = model_index_to_eval_results(eval_results_to_model_index("grown", written))
    assert (name, read) == ("grown", written)
    places = [(one.dataset_type, one.dataset_config, one.dataset_split, one.dataset_args) for one in read[::2]]
    assert places == [
        ("allenai/ai2_arc", "ARC-Easy", "test", {"num_few_shot": 5}),
        ("arc_easy (chat)", None, None, {"num_few_shot": 5}),
        ("own", None, None, {"num_few_shot": 0}),
        ("group", None, None, None),
    ]
    assert [(one.metric_type, one.metric_value) for one in read[:2]] == [("acc", 0.25), ("exact_match", 0.5)]


def test_the_card_of_a_size_that_was_not_evaluated_shows_student_and_teacher(made, tmp_path):
    export(made.graph, made.store, plan(made, "4 layers"), tmp_path / "model")
    card = (tmp_path / "model" / "README.md").read_text()
    assert "| held out | loss ↓ | 3.750 ± 0.020 |  | 3.250 ± 0.020 |" in card
    assert wording("export.size_itself_not_been") in card


@pytest.mark.parametrize("size", ["student", "teacher"])
def test_the_ends_of_a_family_can_be_exported(made, tmp_path, size):
    export(made.graph, made.store, plan(made, size), tmp_path / "model")
    own = {
        "student": made.store.path("distill", made.graph.family.student) / "model",
        "teacher": made.folder / "base-6L",
    }[size]
    expected = AutoModelForCausalLM.from_pretrained(own)
    assert torch.equal(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "model")), logits(expected))
    card = (tmp_path / "model" / "README.md").read_text()
    assert f"{size} (this model)" in card
    assert "| held out | loss ↓ | 3.750 ± 0.020 | 3.250 ± 0.020 |" in card


def test_a_folder_that_holds_something_is_kept_unless_it_is_a_model_and_force_is_given(made, tmp_path):
    target = tmp_path / "model"
    target.mkdir()
    export(made.graph, made.store, plan(made, "student"), target)  # an empty folder is as good as none
    (target / "mine.txt").write_text("mine")
    with pytest.raises(BoomspecError, match="is not empty"):
        export(made.graph, made.store, plan(made, "5 layers"), target)
    assert (target / "mine.txt").is_file()
    export(made.graph, made.store, plan(made, "5 layers"), target, force=True)
    assert json.loads((target / "config.json").read_text())["num_hidden_layers"] == 5
    assert not (target / "mine.txt").exists()
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    with pytest.raises(BoomspecError, match=wording("export.holds_no_model_so")):
        export(made.graph, made.store, plan(made, "5 layers"), tmp_path / "home", force=True)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "model"]


@pytest.mark.parametrize("place", ["file/model", "/proc/nowhere/model"])
def test_a_folder_that_cannot_be_written_is_an_error_of_the_call(made, tmp_path, place):
    (tmp_path / "file").write_text("not a folder")
    target = tmp_path / place
    done = here.boomspec("export", made.spec, "4 layers", target)
    assert done.returncode == 2
    assert wording("export.error_cannot_written", target=target) in done.stderr
    assert "hint: give another folder" in done.stderr
    assert "Traceback" not in done.stderr
    done = here.boomspec("export", made.spec, "4 layers", target, "--json")
    assert done.returncode == 2
    assert f"{target}: cannot be written: " in json.loads(done.stdout)["error"]["message"]


def test_a_failed_export_leaves_what_was_there(made, tmp_path, capsys):
    export(made.graph, made.store, plan(made, "student"), tmp_path / "model")
    before = {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()}
    weights = made.store.path("distill", made.graph.family.student) / "model" / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-100])
    made.graph.write(tmp_path / "graph.json")
    arguments = [str(tmp_path / "graph.json"), "--store", str(made.store.root), "--plan", "s0 s1 t4 t5"]
    try:
        code = main([*arguments, "--folder", str(tmp_path / "model"), "--force"])
    finally:
        weights.write_bytes(content)
    assert code == 2
    assert "truncated" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in (tmp_path / "model").iterdir()} == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["graph.json", "model"]


def test_a_run_that_has_not_finished_is_an_error_that_says_what_is_missing(made, tmp_path):
    result = call("export", made.spec, "5 layers", tmp_path / "model", "--store", tmp_path / "empty")
    assert result.exit_code == 2
    assert wording("export.run_not_finished_distill") in result.output
    assert f"hint: boomspec run {made.spec}" in result.output
    with pytest.raises(BoomspecError, match="has not finished"):
        boomspec.family(made.spec, store=tmp_path / "empty")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("size", "message"),
    [
        ("7 layers", wording("export.no_model_size_layers")),
        ("huge", wording("export.size_expected_size", name="huge")),
        ("1%", wording("export.no_model_size")),
    ],
)
def test_a_size_that_the_family_does_not_have_is_an_error(made, tmp_path, size, message):
    result = call("export", made.spec, size, tmp_path / "model", "--json")
    assert result.exit_code == 2
    assert message in json.loads(result.output)["error"]["message"]


def test_a_folder_that_is_no_runs_is_an_error(made, tmp_path):
    result = call("export", tmp_path, "5 layers", tmp_path / "model")
    assert result.exit_code == 2
    assert "holds no graph.json" in result.output


def test_python_loads_a_size_and_a_family_by_spec_or_by_run_folder(made, tmp_path):
    run_folder = made.store.run_folder(made.graph.name, made.graph.id)
    family = boomspec.family(run_folder)
    assert [(size.layers, layers_text(size.plan)) for size in family.sizes] == [
        (3, "s0 s1 s2"),
        (4, "s0 s1 t4 t5"),
        (5, "s0 t2 t3 t4 t5"),
        (6, "t0 t1 t2 t3 t4 t5"),
    ]
    for size in ("student", "4 layers", "80%", "teacher"):
        one = boomspec.load(made.spec, size)
        assert torch.equal(logits(one), logits(family.model(size)))
    assert boomspec.load(run_folder, "5 layers", dtype="bfloat16").dtype == torch.bfloat16


def test_a_size_that_has_been_built_is_taken_as_it_is(made, tmp_path):
    node = next(n for n in made.graph.nodes.values() if n.task.kind == "interpolate")
    with made.store.workspace("interpolate", node.id) as workspace:
        save_student(made.folder / "base-6L", workspace.path / "model")  # not what would be assembled
        made.store.publish(workspace, "interpolate", node.id, node.task.identity(), PROVENANCE)
    try:
        export(made.graph, made.store, layers_text(node.task.record.plan), tmp_path / "model")
        built = made.store.path("interpolate", node.id) / "model" / "model.safetensors"
        assert (tmp_path / "model" / "model.safetensors").read_bytes() == built.read_bytes()
    finally:
        made.store.discard("interpolate", node.id)


def test_importing_boomspec_loads_nothing_heavy():
    code = (
        "import sys, boomspec; print([m for m in ('torch', 'transformers', 'runners', 'pydantic') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_metadata_that_cannot_be_read_is_no_metadata():
    assert front_matter_of("# no front matter") == {}
    assert front_matter_of("---\n[1, 2\n---\n") == {}
    assert front_matter_of("---\n- a list\n---\n") == {}
    assert yaml.safe_load("license: mit") == front_matter_of("---\nlicense: mit\n---\ntext")
    assert fence("a") == "```yaml\na\n```"


def test_the_chat_template_that_the_data_brought_goes_along(made, tmp_path):
    chat = Conversations(messages="messages", template=TEMPLATE + "{# of the data #}")

    def brought(node: Node) -> Node:
        if not isinstance(record := node.task.record, Tokenize):
            return node
        return replace(node, task=replace(node.task, record=record.model_copy(update={"chat": chat})))

    graph = replace(made.graph, nodes={i: brought(node) for i, node in made.graph.nodes.items()})
    export(graph, made.store, None, tmp_path / "all")
    folders = [path.parent for path in (tmp_path / "all").rglob("config.json")]
    assert len(folders) > 1
    assert {AutoTokenizer.from_pretrained(folder).chat_template for folder in folders} == {chat.template}
    distilled = graph.nodes[student := lineage_of(graph).student]
    given = {"teacher": distilled.task.inputs["teacher"], "base": "base", "distilled": "distilled"}
    transferred = replace(distilled, task=replace(distilled.task, record=Transfer(kept=(0,)), inputs=given))
    nodes = {**graph.nodes, student: transferred, "distilled": distilled}
    assert (brought_template(graph), brought_template(replace(graph, nodes=nodes))) == (chat.template, None)
